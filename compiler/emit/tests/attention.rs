//! Attention and scatter-add on this CPU against plain f64, at odd lengths, with masks, shared key heads and queries that see nothing.

#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use dspc_emit::CpuLevel;
use dspc_graph::ir::DType::{Bf16, F16, F32, I32};
use dspc_graph::mask::Mask;
use dspc_kernel::describe::{AttentionKernel, Kernel, ScatterAddKernel};
use support::attention::{Machine, backward, case, forward, operand, sparse, window};
use support::native::Native;
use support::operand::{Numbers, Operand};

/// Sums in f32, and nothing else is rounded.
const CPU: Machine = Machine { unit: 5.960_464_477_539_063e-8, probability: 0.0, factors: 0.0 };

fn cases() -> Vec<AttentionKernel> {
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

fn check(case: &AttentionKernel, level: &CpuLevel, numbers: &mut Numbers) {
    let mut k = case.clone();
    let (wide, narrow) = (k.heads * k.head_dim + 3, k.kv_heads * k.head_dim);
    k.strides = vec![wide, narrow, narrow + 1, k.heads * k.head_dim];
    let mut back = k.clone();
    back.strides.extend([wide, wide, narrow + 2, narrow]);
    let kernels = [Kernel::Attention(k.clone()), Kernel::AttentionBackward(back.clone())];
    let named = [("fwd".to_string(), &kernels[0]), ("bwd".to_string(), &kernels[1])];
    let native = Native::new(&named, level);
    let run = |symbol: &str, items: u64, inputs: &[Operand], outputs: &[Operand]| {
        let got = native.run(symbol, inputs, outputs, None, &[0, items]);
        let pieces: Vec<u64> = (0..=items).collect();
        let again = native.run(symbol, inputs, &got, None, &pieces);
        assert!(got.iter().zip(&again).all(|(a, b)| a.bytes() == b.bytes()), "{k:?} {symbol} in pieces");
        got
    };
    let q = operand(numbers, k.dtype, k.batch, k.queries, k.strides[0]);
    let key = operand(numbers, k.dtype, k.batch, k.keys, k.strides[1]);
    let v = operand(numbers, k.dtype, k.batch, k.keys, k.strides[2]);
    let y = operand(numbers, k.dtype, k.batch, k.queries, k.strides[3]);
    let lse = Operand::new(F32, vec![7.0; (k.batch * k.heads * k.queries) as usize]);
    let got = run("fwd", kernels[0].items(), &[q.clone(), key.clone(), v.clone()], &[y, lse]);
    forward(&k, CPU, [&q, &key, &v], [&got[0], &got[1]]);

    let dy = operand(numbers, k.dtype, k.batch, k.queries, back.strides[4]);
    let dq = operand(numbers, k.dtype, k.batch, k.queries, back.strides[5]);
    let dk = operand(numbers, k.dtype, k.batch, k.keys, back.strides[6]);
    let dv = operand(numbers, k.dtype, k.batch, k.keys, back.strides[7]);
    let inputs = [q, key, v, got[0].clone(), got[1].clone(), dy];
    let gradients = run("bwd", kernels[1].items(), &inputs, &[dq, dk, dv]);
    backward(&back, CPU, &inputs, &gradients);
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
