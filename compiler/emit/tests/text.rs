//! The MLIR text of small kernels, to be read; and the excerpt that the documentation shows.

#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use dspc_emit::{CpuLevel, GpuChip, cpu_module, gpu_module};
use dspc_graph::ir::DType::{Bf16, F32};
use dspc_graph::rowfn::BinaryFn::{Add, Multiply};
use dspc_graph::rowfn::UnaryFn::Rsqrt;
use dspc_kernel::describe::{Kernel, RowKernel, Split, Target};
use support::kernels::{self, Builder};

/// y = x / √(mean x² + ε)
fn rms_norm(rows: u64, cols: u64) -> RowKernel {
    let mut k = Builder::new(rows, cols, Split::Rows);
    let x = k.element("x", F32, cols);
    let square = k.bin(Multiply, x, x);
    let mean = k.mean(square);
    let mean = k.by(Add, mean, 1e-5);
    let rstd = k.un(Rsqrt, mean);
    let y = k.bin(Multiply, x, rstd);
    k.write("y", F32, Target::Element(y), cols);
    k.0
}

fn cpu(kernel: RowKernel) -> String {
    let kernel = Kernel::Row(kernel);
    cpu_module(&[("kernel".to_string(), &kernel)], &CpuLevel::named("x86-64-v3").unwrap()).unwrap()
}

#[test]
fn a_norm_walks_its_row_twice() {
    insta::assert_snapshot!(cpu(rms_norm(6, 21)));
}

#[test]
fn element_wise_work_is_one_flat_run() {
    let mut k = Builder::new(3, 50, Split::Elements);
    let x = k.element("x", Bf16, 50);
    let y = k.by(Multiply, x, 2.0);
    k.write("y", F32, Target::Element(y), 50);
    insta::assert_snapshot!(cpu(k.0));
}

#[test]
fn column_sums_stay_on_the_stack() {
    insta::assert_snapshot!(cpu(kernels::bias_gradient(10, 12, F32, 4)));
}

#[test]
fn a_gpu_norm_is_a_warp_a_row() {
    let kernel = Kernel::Row(rms_norm(6, 128));
    let (text, launches) = gpu_module(&[("kernel".to_string(), &kernel)], GpuChip::Sm80).unwrap();
    insta::assert_snapshot!(format!("{launches:?}\n{text}"));
}

#[test]
fn the_documentation_shows_what_is_emitted() {
    let page = include_str!("../../../docs/layers/emit.md");
    let shown = page.split("```mlir\n").nth(1).unwrap().split("```").next().unwrap();
    let text = cpu(rms_norm(6, 21));
    let begin = text.find("scf.for").unwrap();
    let lines: Vec<&str> = text[begin..].lines().map(str::trim).collect();
    for line in shown.lines().map(str::trim).filter(|line| !line.is_empty() && *line != "...") {
        assert!(lines.contains(&line), "not emitted any more: {line}\n{text}");
    }
}
