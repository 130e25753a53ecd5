//! Attention in plain f64, with a bound on what a machine's rounding may do, for any mask, stride and number of key heads.

use super::operand::{Numbers, Operand, smallest, unit};
use dspc_graph::ir::DType::{self, F32};
use dspc_graph::mask::{Mask, MaskExpr, MaskOp};
use dspc_kernel::describe::AttentionKernel;
use std::sync::Arc;

/// How a machine rounds.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Of sums, exponentials and products.
    pub unit: f64,
    /// Of probabilities and their gradients before they are factors.
    pub probability: f64,
    /// Of a product's two factors together, where they are rounded once more.
    pub factors: f64,
}

/// An infix expression.
pub fn binary(op: MaskOp, a: MaskExpr, b: MaskExpr) -> MaskExpr {
    MaskExpr::Binary(op, Arc::new(a), Arc::new(b))
}

/// The last `size` keys.
pub fn window(size: i64) -> Mask {
    use MaskExpr::{Const, Key, Query};
    let near = binary(MaskOp::Less, binary(MaskOp::Subtract, Query, Key), Const(size));
    Mask::Where(Arc::new(binary(MaskOp::And, binary(MaskOp::LessEqual, Key, Query), near)))
}

/// Queries 0 to 4 see nothing, the others every third key.
pub fn sparse() -> Mask {
    use MaskExpr::{Const, Key, Query};
    let third = binary(MaskOp::Equal, binary(MaskOp::Remainder, Key, Const(3)), Const(1));
    let late = binary(MaskOp::Less, Const(4), binary(MaskOp::Divide, Query, Const(1)));
    Mask::Where(Arc::new(binary(MaskOp::And, third, late)))
}

/// Every other block of 64 keys, and the block of the query itself; nothing later than it.
pub fn blocks_with_gaps() -> Mask {
    use MaskExpr::{Const, Key, Query};
    let block = |x| binary(MaskOp::Divide, x, Const(64));
    let even = binary(MaskOp::Equal, binary(MaskOp::Remainder, block(Key), Const(2)), Const(0));
    let own = binary(MaskOp::Equal, block(Key), block(Query));
    let earlier = binary(MaskOp::LessEqual, Key, Query);
    Mask::Where(Arc::new(binary(MaskOp::And, earlier, binary(MaskOp::Or, even, own))))
}

/// Divides by the query's position, so that intervals tell little.
pub fn scattered() -> Mask {
    use MaskExpr::{Const, Key, Query};
    let seven = binary(MaskOp::Multiply, Key, Const(7));
    let rest = binary(MaskOp::Remainder, seven, binary(MaskOp::Add, Query, Const(3)));
    Mask::Where(Arc::new(binary(MaskOp::Less, rest, Const(9))))
}

/// Two keys of five, by numbers that do not fit 32 bits.
pub fn large_numbers() -> Mask {
    use MaskExpr::{Const, Key, Query};
    let large = binary(MaskOp::Multiply, Key, Const(3_000_000_001));
    let rest = binary(MaskOp::Remainder, binary(MaskOp::Add, large, Query), Const(5));
    Mask::Where(Arc::new(binary(MaskOp::Less, rest, Const(2))))
}

/// A kernel without strides, with `lengths` queries and keys, and (query, key) heads.
pub fn case(
    batch: u64,
    (heads, kv_heads): (u64, u64),
    head_dim: u64,
    (queries, keys): (u64, u64),
    dtype: DType,
    mask: Mask,
) -> AttentionKernel {
    let scale = 1.0 / (head_dim as f64).sqrt();
    let (tf32, strides) = (false, vec![]);
    AttentionKernel { batch, heads, kv_heads, head_dim, queries, keys, dtype, tf32, scale, mask, strides }
}

/// Index of an element: batch, position, head, column.
fn at(stride: u64, positions: u64, head_dim: u64, (b, t, h, d): (u64, u64, u64, u64)) -> usize {
    ((b * positions + t) * stride + h * head_dim + d) as usize
}

/// Numbers for all rows of an operand.
pub fn operand(numbers: &mut Numbers, dtype: DType, batch: u64, positions: u64, stride: u64) -> Operand {
    Operand::new(dtype, (0..batch * positions * stride).map(|_| numbers.normal()))
}

fn name(k: &AttentionKernel) -> String {
    let sizes = format!("{}x{}/{}x{}", k.batch, k.heads, k.kv_heads, k.head_dim);
    format!("{sizes} {}x{} {} {}", k.queries, k.keys, k.dtype, k.mask)
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

fn scores(
    k: &AttentionKernel,
    machine: Machine,
    [q, key]: [&Operand; 2],
    (b, h, i): (u64, u64, u64),
) -> Vec<(f64, f64)> {
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
        let rounding = (8.0 * (d as f64).sqrt() + 2.0) * machine.unit + machine.factors;
        (s * k.scale, rounding * size * k.scale.abs())
    };
    (0..k.keys).map(row).collect()
}

fn softmax(scores: &[(f64, f64)], u: f64) -> Softmax {
    let max = scores.iter().map(|s| s.0).fold(f64::NEG_INFINITY, f64::max);
    let base = if max.is_finite() { max } else { 0.0 };
    let total: f64 = scores.iter().map(|s| (s.0 - base).exp()).sum();
    let worst = scores.iter().map(|s| s.1).fold(0.0, f64::max);
    let n = scores.len() as f64;
    let reach = scores.iter().filter(|s| s.0.is_finite()).map(|s| base - s.0).fold(0.0, f64::max);
    // Each exponential: twice the worst score's error, rounding of the shift, 3 units of its own; their sum 8 √n.
    let relative = 2.0 * worst + u * (2.0 * base.abs() + 2.0 * reach + 8.0 * n.sqrt() + 16.0);
    let p: Vec<f64> =
        scores.iter().map(|s| if total > 0.0 { (s.0 - base).exp() / total } else { 0.0 }).collect();
    let e = p.iter().map(|p| p * relative + 2e-38).collect();
    let lse = base + total.ln();
    Softmax { p, e, lse, lse_e: relative + 4.0 * u * lse.abs() }
}

/// Checks y and log-sum-exp.
pub fn forward(k: &AttentionKernel, machine: Machine, [q, key, v]: [&Operand; 3], [y, lse]: [&Operand; 2]) {
    let (d, group, u, what) = (k.head_dim, k.heads / k.kv_heads, machine.unit, name(k));
    for b in 0..k.batch {
        for h in 0..k.heads {
            for i in 0..k.queries {
                let soft = softmax(&scores(k, machine, [q, key], (b, h, i)), u);
                let n = ((b * k.heads + h) * k.queries + i) as usize;
                near(&format!("{what} lse"), n, lse.values[n], soft.lse, soft.lse_e, F32);
                for c in 0..d {
                    let value = |j: u64| v.values[at(k.strides[2], k.keys, d, (b, j, h / group, c))];
                    let want: f64 = (0..k.keys).map(|j| soft.p[j as usize] * value(j)).sum();
                    let size: f64 = (0..k.keys).map(|j| soft.p[j as usize] * value(j).abs()).sum();
                    let e: f64 = (0..k.keys).map(|j| soft.e[j as usize] * value(j).abs()).sum();
                    let rounding = 8.0 * (k.keys as f64).sqrt() * u + machine.probability + machine.factors;
                    let bound = e + rounding * size;
                    let place = at(k.strides[3], k.queries, d, (b, i, h, c));
                    near(&format!("{what} y"), place, y.values[place], want, bound, k.dtype);
                }
            }
        }
    }
}

/// A sum: its value, a bound on the error of its terms, and the sum of their sizes.
#[derive(Clone, Copy, Default)]
struct Sum {
    x: f64,
    e: f64,
    size: f64,
}

impl Sum {
    fn add(&mut self, x: f64, e: f64) {
        self.x += x;
        self.e += e;
        self.size += x.abs();
    }
}

/// Checks dq, dk and dv, with the y and log-sum-exp that are there taken as exact. Inputs are q, k, v, y, log-sum-exp, dy.
pub fn backward(k: &AttentionKernel, machine: Machine, inputs: &[Operand], got: &[Operand]) {
    let [q, key, v, y, lse, dy] = inputs else { panic!("six inputs") };
    let (d, group, u, what) = (k.head_dim, k.heads / k.kv_heads, machine.unit, name(k));
    let s = &k.strides;
    let sums = |o: &Operand| vec![Sum::default(); o.values.len()];
    let (mut want_q, mut want_k, mut want_v) = (sums(&got[0]), sums(&got[1]), sums(&got[2]));
    for b in 0..k.batch {
        for h in 0..k.heads {
            for i in 0..k.queries {
                let dot = |other: &dyn Fn(u64) -> f64| {
                    let x = |c: u64| dy.values[at(s[4], k.queries, d, (b, i, h, c))] * other(c);
                    let sum: f64 = (0..d).map(x).sum();
                    let size: f64 = (0..d).map(|c| x(c).abs()).sum();
                    (sum, (8.0 * (d as f64).sqrt() * u + machine.factors) * size)
                };
                let (delta, delta_e) = dot(&|c| y.values[at(s[3], k.queries, d, (b, i, h, c))]);
                let lse = lse.values[((b * k.heads + h) * k.queries + i) as usize];
                for (j, (score, score_e)) in (0..).zip(scores(k, machine, [q, key], (b, h, i))) {
                    if !score.is_finite() {
                        continue;
                    }
                    let p = (score - lse).exp();
                    let shift = u * (2.0 * (score - lse).abs() + 2.0 * lse.abs() + 8.0);
                    let p_e = p * (score_e + shift) + 2e-38;
                    let (dp, dp_e) = dot(&|c| v.values[at(s[2], k.keys, d, (b, j, h / group, c))]);
                    let ds = p * (dp - delta);
                    let ds_e = p_e * (dp - delta).abs() + p * (dp_e + delta_e) + 4.0 * u * ds.abs();
                    let (p_e, ds_e) = (p_e + machine.probability * p, ds_e + machine.probability * ds.abs());
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
                        want_q[iq].add(k.scale * ds * kc, k.scale.abs() * ds_e * kc.abs());
                        want_k[ik].add(k.scale * ds * qc, k.scale.abs() * ds_e * qc.abs());
                        want_v[iv].add(p * yc, p_e * yc.abs());
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
        let terms = (k.queries.max(k.keys) * group) as f64;
        for row in 0..k.batch * positions {
            for column in 0..heads * d {
                let i = (row * stride + column) as usize;
                let bound = want[i].e + (8.0 * terms.sqrt() * u + machine.factors) * want[i].size;
                near(&format!("{what} {n}"), i, got.values[i], want[i].x, bound, k.dtype);
            }
        }
    }
}
