//! Compiling many kernels: the same bytes on any number of threads, an error for what cannot be, and how long it takes.

#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use dspc_emit::{Code, CompileTarget, CpuLevel, EmitError, GpuChip, Unit, compile};
use dspc_graph::ir::DType::{self, F32, I32};
use dspc_graph::mask::Mask;
use dspc_graph::rowfn::{BinaryFn, UnaryFn};
use dspc_kernel::describe::{AttentionKernel, Kernel, Split, Target};
use std::time::Instant;
use support::kernels;

/// What a small GPT-2 needs, and more of it.
fn model(dtype: DType) -> Vec<(String, Kernel)> {
    let mut all = vec![];
    for cols in [384, 768, 1024] {
        all.push(kernels::residual_layer_norm(512, cols, dtype, cols));
        all.push(kernels::layer_norm_backward(512, cols, dtype, 64));
        all.push(kernels::gelu_tanh(512, 4 * cols, dtype));
        all.push(kernels::gelu_erf(512, 4 * cols, dtype));
        all.push(kernels::dropout(512, cols, dtype, Split::Rows));
        all.push(kernels::embedding(512, cols, 128, dtype));
        all.push(kernels::bias_gradient(512, 4 * cols, dtype, 64));
        all.push(kernels::rope(512 * 6, 64, 128, 6, cols));
        all.push(kernels::adamw(cols * cols));
        all.push(kernels::cross_entropy(512, cols, F32, cols));
    }
    let mut all: Vec<(String, Kernel)> =
        all.into_iter().enumerate().map(|(i, k)| (format!("row_{i}"), Kernel::Row(k))).collect();
    let attention = AttentionKernel {
        batch: 8,
        heads: 6,
        kv_heads: 6,
        head_dim: 64,
        queries: 128,
        keys: 128,
        dtype,
        tf32: false,
        scale: 0.125,
        mask: Mask::causal(),
        strides: vec![3 * 384, 3 * 384, 3 * 384, 384],
    };
    let strides = vec![3 * 384, 3 * 384, 3 * 384, 384, 384, 3 * 384, 3 * 384, 3 * 384];
    all.push(("attend".to_string(), Kernel::Attention(attention.clone())));
    all.push((
        "attend_backward".to_string(),
        Kernel::AttentionBackward(AttentionKernel { strides, ..attention }),
    ));
    all
}

fn named(kernels: &[(String, Kernel)]) -> Vec<(String, &Kernel)> {
    kernels.iter().map(|(symbol, kernel)| (symbol.clone(), kernel)).collect()
}

fn targets() -> Vec<CompileTarget> {
    vec![CompileTarget::Cpu(CpuLevel::named("x86-64-v3").unwrap())]
}

#[test]
fn bytes_do_not_depend_on_threads() {
    let kernels = model(F32);
    let compiled = |threads| compile(&named(&kernels), &targets(), threads).unwrap();
    let one = compiled(1);
    assert!(one == compiled(2) && one == compiled(3));
    let symbols: Vec<&String> = one[0].iter().flat_map(|unit| &unit.symbols).collect();
    assert_eq!(symbols, kernels.iter().map(|(symbol, _)| symbol).collect::<Vec<_>>());
    assert!(
        one[0].iter().all(|Unit { code, .. }| matches!(code, Code::Object(o) if o.starts_with(b"\x7FELF")))
    );
}

#[test]
fn ptx_does_not_depend_on_threads() {
    let kernels: Vec<_> = model(DType::Bf16).into_iter().take(30).collect();
    let compiled =
        |threads| compile(&named(&kernels), &[CompileTarget::Gpu(GpuChip::Sm80)], threads).unwrap();
    assert!(compiled(1) == compiled(2));
}

#[test]
fn what_cannot_be_is_said() {
    let refused = |kernel: Kernel| match compile(&[("k".to_string(), &kernel)], &targets(), 1) {
        Err(EmitError::Description { kernel, reason }) => format!("{kernel}: {reason}"),
        other => panic!("{other:?}"),
    };
    let mut k = kernels::Builder::new(4, 4, Split::Rows);
    let x = k.element("x", I32, 4);
    let y = k.un(UnaryFn::Exp, x);
    k.write("y", F32, Target::Element(y), 4);
    insta::assert_snapshot!(refused(Kernel::Row(k.0)), @"k: node 1: operand 0 is Int where Float is needed");
    let mut k = kernels::Builder::new(4, 4, Split::Elements);
    let x = k.element("x", F32, 4);
    let sum = k.sum(x);
    let y = k.bin(BinaryFn::Add, x, sum);
    k.write("y", F32, Target::Element(y), 4);
    insta::assert_snapshot!(refused(Kernel::Row(k.0)), @"k: a reduction where items are elements");
    let mut k = kernels::Builder::new(4, 4, Split::Rows);
    let x = k.element("x", F32, 4);
    k.write("y", F32, Target::ColumnSum(x), 4);
    insta::assert_snapshot!(refused(Kernel::Row(k.0)), @"k: `y` is a column sum, so items must be chunks of rows");
    let kernels = model(F32);
    let twice = [kernels[0].clone(), kernels[0].clone()];
    let error = compile(&named(&twice), &targets(), 1).unwrap_err();
    insta::assert_snapshot!(error, @"kernel `row_0`: another kernel has the same symbol");
    insta::assert_snapshot!(CpuLevel::named("pentium").unwrap_err(), @"unknown target `pentium`: it is one of `host`, `x86-64-v2`, `x86-64-v3`, `x86-64-v4`");
    insta::assert_snapshot!(GpuChip::named("sm_999").unwrap_err(), @"unknown target `sm_999`: it is one of `sm_80`, `sm_90a`, `sm_120`");
}

/// `cargo test --release -p dspc-emit --test compile -- --ignored --nocapture`
#[test]
#[ignore = "timings"]
fn cold_compile() {
    let kernels = model(F32);
    for target in [CompileTarget::Cpu(CpuLevel::host()), CompileTarget::Gpu(GpuChip::Sm90a)] {
        let count = if matches!(target, CompileTarget::Cpu(_)) { 32 } else { 30 };
        for threads in [2, 1] {
            let start = Instant::now();
            let units = compile(&named(&kernels[..count]), std::slice::from_ref(&target), threads).unwrap();
            let name = if count == 32 { "host" } else { "sm_90a" };
            println!("{name} {threads} threads: {:.2?}, {} units", start.elapsed(), units[0].len());
        }
    }
}
