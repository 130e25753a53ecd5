//! Timings of kernels on this CPU, printed and never asserted: `cargo test -p dspc-emit --test speed -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use dspc_emit::CpuLevel;
use dspc_graph::ir::DType::{Bf16, F32};
use dspc_graph::mask::Mask;
use dspc_kernel::describe::{AttentionKernel, Kernel, RowKernel, Split};
use std::ffi::c_void;
use std::time::Instant;
use support::kernels;
use support::native::Native;

/// The best of some calls, in seconds; operands are all 0.25.
fn time(native: &Native, symbol: &str, kernel: &Kernel, elements: usize, operands: usize) -> f64 {
    let mut buffers: Vec<Vec<f32>> = (0..operands).map(|_| vec![0.25; elements + 64]).collect();
    let mut args: Vec<*mut c_void> = buffers.iter_mut().map(|b| b.as_mut_ptr().cast()).collect();
    args.push(std::ptr::null_mut());
    let mut best = f64::INFINITY;
    for _ in 0..30 {
        let start = Instant::now();
        native.call(symbol, &args, 0, kernel.items());
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

#[test]
#[ignore = "timings"]
fn row_kernels() {
    let cases: Vec<(&str, RowKernel)> = vec![
        ("gelu_flat f32", kernels::gelu_flat(512, 768, F32)),
        ("gelu_bias f32", kernels::gelu_tanh(512, 768, F32)),
        ("gelu_flat bf16", kernels::gelu_flat(512, 768, Bf16)),
        ("gelu_erf + slope f32", kernels::gelu_erf(512, 768, F32)),
        ("residual layer norm f32", kernels::residual_layer_norm(512, 768, F32, 768)),
        ("residual layer norm bf16", kernels::residual_layer_norm(512, 768, Bf16, 768)),
        ("layer norm backward f32", kernels::layer_norm_backward(512, 768, F32, 64)),
        ("cross entropy f32 65", kernels::cross_entropy(6050, 65, F32, 65)),
        ("cross entropy f32 50257", kernels::cross_entropy(8, 50257, F32, 50257)),
        ("dropout f32", kernels::dropout(512, 768, F32, Split::Elements)),
        ("adamw", kernels::adamw(512 * 768)),
        ("bias gradient f32", kernels::bias_gradient(512, 768, F32, 64)),
    ];
    for level in ["host", "x86-64-v3"] {
        let level = CpuLevel::named(level).unwrap();
        let kernels: Vec<_> = cases.iter().map(|(_, k)| Kernel::Row(k.clone())).collect();
        let named: Vec<_> = kernels.iter().enumerate().map(|(i, k)| (format!("k{i}"), k)).collect();
        let native = Native::new(&named, &level);
        for ((name, case), (symbol, kernel)) in cases.iter().zip(&named) {
            let elements = (case.rows * case.cols) as usize;
            let seconds = time(&native, symbol, kernel, elements, case.reads.len() + case.writes.len());
            println!(
                "{:10} {name:28} {:8.1} us {:6.2} elements/ns",
                level.name,
                seconds * 1e6,
                elements as f64 / seconds / 1e9
            );
        }
    }
}

/// Whether a CPU does two 512-bit multiply-adds a cycle is not asked: rates are printed next to one measured here.
#[test]
#[ignore = "timings"]
fn attention() {
    for level in ["host", "x86-64-v3"] {
        let level = CpuLevel::named(level).unwrap();
        for (heads, head_dim, length) in
            [(8, 32, 64), (8, 64, 64), (2, 32, 1024), (2, 64, 1024), (2, 128, 1024)]
        {
            let kernel = AttentionKernel {
                batch: if length == 64 { 8 } else { 1 },
                heads,
                kv_heads: heads,
                head_dim,
                queries: length,
                keys: length,
                dtype: F32,
                tf32: false,
                scale: 0.125,
                mask: Mask::Full,
                strides: vec![heads * head_dim; 4],
            };
            let back = AttentionKernel { strides: vec![heads * head_dim; 8], ..kernel.clone() };
            let elements = (kernel.batch * heads * head_dim * length) as usize;
            let products = 2.0 * (elements as u64 * length) as f64;
            let kernels = [Kernel::Attention(kernel), Kernel::AttentionBackward(back)];
            let named = [("fwd".to_string(), &kernels[0]), ("bwd".to_string(), &kernels[1])];
            let native = Native::new(&named, &level);
            let forward = time(&native, "fwd", &kernels[0], elements, 5);
            let backward = time(&native, "bwd", &kernels[1], elements, 9);
            println!(
                "{:10} head {head_dim:3} T {length:4}: forward {:7.1} us {:6.1} GFLOP/s, backward {:7.1} us {:6.1} GFLOP/s",
                level.name,
                forward * 1e6,
                2.0 * products / forward / 1e9,
                backward * 1e6,
                5.0 * products / backward / 1e9
            );
        }
    }
}
