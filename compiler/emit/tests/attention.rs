//! Attention and scatter-add on this CPU against plain f64, at odd lengths, with masks, shared key heads and queries that see nothing.

#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use dspc_emit::CpuLevel;
use dspc_graph::ir::DType::{self, Bf16, F16, F32, I32};
use dspc_graph::mask::{Mask, MaskExpr, MaskOp};
use dspc_kernel::describe::{AttentionKernel, Kernel, ScatterAddKernel};
use std::sync::Arc;
use support::native::Native;
use support::operand::{Numbers, Operand, smallest, unit};

const U: f64 = 5.960_464_477_539_063e-8;

fn binary(op: MaskOp, a: MaskExpr, b: MaskExpr) -> MaskExpr {
    MaskExpr::Binary(op, Arc::new(a), Arc::new(b))
}

fn window(size: i64) -> Mask {
    use MaskExpr::{Const, Key, Query};
    let near = binary(MaskOp::Less, binary(MaskOp::Subtract, Query, Key), Const(size));
    Mask::Where(Arc::new(binary(MaskOp::And, binary(MaskOp::LessEqual, Key, Query), near)))
}

/// Queries 0 to 4 see nothing, the others every third key.
fn sparse() -> Mask {
    use MaskExpr::{Const, Key, Query};
    let third = binary(MaskOp::Equal, binary(MaskOp::Remainder, Key, Const(3)), Const(1));
    let late = binary(MaskOp::Less, Const(4), binary(MaskOp::Divide, Query, Const(1)));
    Mask::Where(Arc::new(binary(MaskOp::And, third, late)))
}

#[derive(Clone)]
struct Case {
    kernel: AttentionKernel,
}

fn case(batch: u64, heads: (u64, u64), head_dim: u64, lengths: (u64, u64), dtype: DType, mask: Mask) -> Case {
    let (heads, kv_heads) = heads;
    let kernel = AttentionKernel {
        batch,
        heads,
        kv_heads,
        head_dim,
        queries: lengths.0,
        keys: lengths.1,
        dtype,
        scale: 1.0 / (head_dim as f64).sqrt(),
        mask,
        strides: vec![],
    };
    Case { kernel }
}

fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (queries, keys) in [(1, 1), (5, 5), (17, 33), (64, 64), (65, 64), (100, 131)] {
        cases.push(case(2, (2, 2), 32, (queries, keys), F32, Mask::causal()));
        cases.push(case(1, (4, 2), 20, (queries, keys), F32, Mask::Full));
        cases.push(case(1, (2, 1), 64, (queries, keys), Bf16, window(7)));
        cases.push(case(1, (1, 1), 7, (queries, keys), F16, sparse()));
    }
    cases.push(case(1, (2, 1), 130, (50, 70), F32, Mask::causal()));
    cases.push(case(1, (1, 1), 256, (33, 33), F32, window(40)));
    cases.push(case(1, (3, 1), 1, (70, 70), Bf16, Mask::causal()));
    cases
}

/// Index of an element: batch, position, head, column.
fn at(stride: u64, positions: u64, head_dim: u64, (b, t, h, d): (u64, u64, u64, u64)) -> usize {
    ((b * positions + t) * stride + h * head_dim + d) as usize
}

fn operand(numbers: &mut Numbers, dtype: DType, batch: u64, positions: u64, stride: u64) -> Operand {
    Operand::new(dtype, (0..batch * positions * stride).map(|_| numbers.normal()))
}

fn near(what: &str, i: usize, got: f64, want: f64, bound: f64, dtype: DType) {
    let bound = bound + 1.02 * unit(dtype) * (want.abs() + bound) + smallest(dtype);
    assert!((got - want).abs() <= bound || got == want, "{what}[{i}]: {got} but {want} ± {bound:.2e}");
}

/// Probabilities of one query with a bound on each, and log-sum-exp with its bound.
struct Softmax {
    p: Vec<f64>,
    e: Vec<f64>,
    lse: f64,
    lse_e: f64,
}

fn scores(k: &AttentionKernel, q: &Operand, key: &Operand, place: (u64, u64, u64)) -> Vec<(f64, f64)> {
    let (b, h, i) = place;
    let (group, d) = (k.heads / k.kv_heads, k.head_dim);
    let row = |j: u64| {
        if !k.mask.allows(i, j) {
            return (f64::NEG_INFINITY, 0.0);
        }
        let (mut s, mut size) = (0.0, 0.0);
        for c in 0..d {
            let x = q.values[at(k.strides[0], k.queries, d, (b, i, h, c))]
                * key.values[at(k.strides[1], k.keys, d, (b, j, h / group, c))];
            s += x;
            size += x.abs();
        }
        (s * k.scale, (8.0 * (d as f64).sqrt() + 2.0) * U * size * k.scale)
    };
    (0..k.keys).map(row).collect()
}

fn softmax(scores: &[(f64, f64)]) -> Softmax {
    let max = scores.iter().map(|s| s.0).fold(f64::NEG_INFINITY, f64::max);
    let base = if max.is_finite() { max } else { 0.0 };
    let total: f64 = scores.iter().map(|s| (s.0 - base).exp()).sum();
    let worst = scores.iter().map(|s| s.1).fold(0.0, f64::max);
    let n = scores.len() as f64;
    let reach = scores.iter().filter(|s| s.0.is_finite()).map(|s| base - s.0).fold(0.0, f64::max);
    // Each exponential: twice the worst score's error, rounding of the shift, 3 units of its own; their sum 8 √n.
    let relative = 2.0 * worst + U * (2.0 * base.abs() + 2.0 * reach + 8.0 * n.sqrt() + 16.0);
    let p: Vec<f64> =
        scores.iter().map(|s| if total > 0.0 { (s.0 - base).exp() / total } else { 0.0 }).collect();
    let e = p.iter().map(|p| p * relative + 2e-38).collect();
    let lse = base + total.ln();
    Softmax { p, e, lse, lse_e: relative + 4.0 * U * lse.abs() }
}

fn check(case: &Case, level: &CpuLevel, numbers: &mut Numbers) {
    let mut k = case.kernel.clone();
    let (d, group) = (k.head_dim, k.heads / k.kv_heads);
    let (wide, narrow) = (k.heads * d + 3, k.kv_heads * d);
    k.strides = vec![wide, narrow, narrow + 1, k.heads * d];
    let mut back = k.clone();
    back.strides = vec![wide, narrow, narrow + 1, k.heads * d, wide, wide, narrow + 2, narrow];
    let kernels = [Kernel::Attention(k.clone()), Kernel::AttentionBackward(back.clone())];
    let named = [("fwd".to_string(), &kernels[0]), ("bwd".to_string(), &kernels[1])];
    let native = Native::new(&named, level);
    let what =
        format!("{}x{}/{}x{d} {}x{} {} {}", k.batch, k.heads, k.kv_heads, k.queries, k.keys, k.dtype, k.mask);

    let q = operand(numbers, k.dtype, k.batch, k.queries, wide);
    let key = operand(numbers, k.dtype, k.batch, k.keys, narrow);
    let v = operand(numbers, k.dtype, k.batch, k.keys, narrow + 1);
    let y = operand(numbers, k.dtype, k.batch, k.queries, k.heads * d);
    let lse = Operand::new(F32, vec![7.0; (k.batch * k.heads * k.queries) as usize]);
    let inputs = [q.clone(), key.clone(), v.clone()];
    let items = kernels[0].items();
    let outputs = native.run("fwd", &inputs, &[y, lse], None, &[0, items]);
    let pieces: Vec<u64> = (0..=items).collect();
    let again = native.run("fwd", &inputs, &outputs, None, &pieces);
    assert_eq!(outputs[0].bytes(), again[0].bytes(), "{what} in pieces");

    let mut all = vec![];
    for b in 0..k.batch {
        for h in 0..k.heads {
            for i in 0..k.queries {
                let soft = softmax(&scores(&k, &q, &key, (b, h, i)));
                let n = ((b * k.heads + h) * k.queries + i) as usize;
                near(&format!("{what} lse"), n, outputs[1].values[n], soft.lse, soft.lse_e, F32);
                for c in 0..d {
                    let value = |j: u64| v.values[at(k.strides[2], k.keys, d, (b, j, h / group, c))];
                    let want: f64 = (0..k.keys).map(|j| soft.p[j as usize] * value(j)).sum();
                    let size: f64 = (0..k.keys).map(|j| soft.p[j as usize] * value(j).abs()).sum();
                    let e: f64 = (0..k.keys).map(|j| soft.e[j as usize] * value(j).abs()).sum();
                    let bound = e + 8.0 * (k.keys as f64).sqrt() * U * size;
                    let place = at(k.strides[3], k.queries, d, (b, i, h, c));
                    near(&format!("{what} y"), place, outputs[0].values[place], want, bound, k.dtype);
                }
                all.push(soft);
            }
        }
    }
    check_backward(&what, &back, &native, [&q, &key, &v, &outputs[0], &outputs[1]], numbers);
}

/// Gradients, with the y and log-sum-exp that the forward kernel left taken as exact.
fn check_backward(
    what: &str,
    k: &AttentionKernel,
    native: &Native,
    [q, key, v, y, lse]: [&Operand; 5],
    numbers: &mut Numbers,
) {
    let (d, group) = (k.head_dim, k.heads / k.kv_heads);
    let s = &k.strides;
    let dy = operand(numbers, k.dtype, k.batch, k.queries, s[4]);
    let dq = operand(numbers, k.dtype, k.batch, k.queries, s[5]);
    let dk = operand(numbers, k.dtype, k.batch, k.keys, s[6]);
    let dv = operand(numbers, k.dtype, k.batch, k.keys, s[7]);
    let inputs = [q.clone(), key.clone(), v.clone(), y.clone(), lse.clone(), dy.clone()];
    let outputs = [dq.clone(), dk.clone(), dv.clone()];
    let items = k.batch * k.kv_heads;
    let got = native.run("bwd", &inputs, &outputs, None, &[0, items]);
    let pieces: Vec<u64> = (0..=items).collect();
    let again = native.run("bwd", &inputs, &outputs, None, &pieces);
    assert!((0..3).all(|i| got[i].bytes() == again[i].bytes()), "{what} backward in pieces");

    // value and bound, summed in place
    let sums = |o: &Operand| vec![(0.0f64, 0.0f64, 0.0f64); o.values.len()];
    let (mut want_q, mut want_k, mut want_v) = (sums(&dq), sums(&dk), sums(&dv));
    let add = |to: &mut (f64, f64, f64), x: f64, e: f64| {
        to.0 += x;
        to.1 += e;
        to.2 += x.abs();
    };
    for b in 0..k.batch {
        for h in 0..k.heads {
            for i in 0..k.queries {
                let dot = |other: &dyn Fn(u64) -> f64| {
                    let x = |c: u64| dy.values[at(s[4], k.queries, d, (b, i, h, c))] * other(c);
                    let sum: f64 = (0..d).map(x).sum();
                    let size: f64 = (0..d).map(|c| x(c).abs()).sum();
                    (sum, 8.0 * (d as f64).sqrt() * U * size)
                };
                let (delta, delta_e) = dot(&|c| y.values[at(s[3], k.queries, d, (b, i, h, c))]);
                let lse = lse.values[((b * k.heads + h) * k.queries + i) as usize];
                for (j, (score, score_e)) in (0..).zip(scores(k, q, key, (b, h, i))) {
                    if !score.is_finite() {
                        continue;
                    }
                    let p = (score - lse).exp();
                    let p_e = p * (score_e + U * (2.0 * (score - lse).abs() + 8.0)) + 2e-38;
                    let (dp, dp_e) = dot(&|c| v.values[at(s[2], k.keys, d, (b, j, h / group, c))]);
                    let ds = p * (dp - delta);
                    let ds_e = p_e * (dp - delta).abs() + p * (dp_e + delta_e) + 4.0 * U * ds.abs();
                    for c in 0..d {
                        let kv = (b, j, h / group, c);
                        let (iq, ik, iv) = (
                            at(s[5], k.queries, d, (b, i, h, c)),
                            at(s[6], k.keys, d, kv),
                            at(s[7], k.keys, d, kv),
                        );
                        let kc = key.values[at(s[1], k.keys, d, kv)];
                        let qc = q.values[at(s[0], k.queries, d, (b, i, h, c))];
                        let yc = dy.values[at(s[4], k.queries, d, (b, i, h, c))];
                        add(&mut want_q[iq], k.scale * ds * kc, k.scale * ds_e * kc.abs());
                        add(&mut want_k[ik], k.scale * ds * qc, k.scale * ds_e * qc.abs());
                        add(&mut want_v[iv], p * yc, p_e * yc.abs());
                    }
                }
            }
        }
    }
    for (n, heads, stride, positions, got, want) in [
        ("dq", k.heads, s[5], k.queries, &got[0], &want_q),
        ("dk", k.kv_heads, s[6], k.keys, &got[1], &want_k),
        ("dv", k.kv_heads, s[7], k.keys, &got[2], &want_v),
    ] {
        for b in 0..k.batch {
            for t in 0..positions {
                for column in 0..heads * d {
                    let i = ((b * positions + t) * stride + column) as usize;
                    let (x, e, size) = want[i];
                    let terms = (k.queries.max(k.keys) * group) as f64;
                    near(
                        &format!("{what} {n}"),
                        i,
                        got.values[i],
                        x,
                        e + 8.0 * terms.sqrt() * U * size,
                        k.dtype,
                    );
                }
            }
        }
    }
}

#[test]
fn attention_and_its_gradient_agree_with_f64() {
    let mut numbers = Numbers(0xA77E);
    for case in cases() {
        check(&case, &CpuLevel::host(), &mut numbers);
    }
}

#[test]
fn attention_agrees_at_portable_levels() {
    let mut numbers = Numbers(0xA77F);
    for level in ["x86-64-v2", "x86-64-v3"] {
        let level = CpuLevel::named(level).unwrap();
        check(&case(1, (2, 1), 20, (70, 67), F32, Mask::causal()), &level, &mut numbers);
        check(&case(1, (1, 1), 48, (37, 40), Bf16, sparse()), &level, &mut numbers);
    }
}

#[test]
fn scatter_add_sums_ids_that_repeat() {
    let mut numbers = Numbers(3);
    for (rows, cols, dtype) in [(1, 1, F32), (9, 5, Bf16), (20, 33, F32), (50, 130, F16)] {
        let out_rows = 6;
        let stride = cols + 2;
        let kernel = Kernel::ScatterAdd(ScatterAddKernel { rows, cols, out_rows, dtype, stride });
        let native = Native::new(&[("s".to_string(), &kernel)], &CpuLevel::host());
        let ids = Operand::new(I32, (0..rows).map(|_| numbers.below(out_rows) as f64));
        // Small integers: every sum is exact.
        let x = Operand::new(dtype, (0..rows * stride).map(|_| numbers.below(9) as f64 - 4.0));
        let out = Operand::new(F32, (0..out_rows * cols).map(|_| numbers.below(9) as f64));
        let got = native.run(
            "s",
            &[ids.clone(), x.clone()],
            std::slice::from_ref(&out),
            None,
            &[0, cols / 2, cols],
        );
        let mut want = out.values.clone();
        for n in 0..rows {
            for c in 0..cols {
                want[(ids.values[n as usize] as u64 * cols + c) as usize] +=
                    x.values[(n * stride + c) as usize];
            }
        }
        assert_eq!(got[0].values, want);
    }
}
