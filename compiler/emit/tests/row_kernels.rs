//! Row kernels on this CPU against their f64 reading, at odd shapes, in pieces, with canaries round every operand.

#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use dspc_emit::CpuLevel;
use dspc_graph::ir::DType::{self, Bf16, F16, F32};
use dspc_graph::rowfn::{Access, RowMap};
use dspc_kernel::describe::{Kernel, RowKernel, Split, Target};
use support::kernels;
use support::native::Native;
use support::operand::{Numbers, Operand};
use support::reading;

/// How an operand's numbers are drawn.
type Draw = fn(&str, &mut Numbers) -> f64;

fn usual(name: &str, numbers: &mut Numbers) -> f64 {
    match name {
        "rstd" | "c1" | "c2" | "v" => 0.5 + numbers.unit(),
        "finite" => 1.0,
        "seed" => 0.125,
        "lr" => 0.01,
        "targets" => numbers.below(5) as f64 - 1.0,
        "ids" => numbers.below(7) as f64,
        "rng" => f64::from(numbers.below(1 << 20) as u32),
        _ => numbers.normal() * 1.5,
    }
}

/// Elements that an operand must have.
fn elements(kernel: &RowKernel, index: usize) -> u64 {
    let read = &kernel.reads[index];
    let rows = |map: &RowMap| match map {
        RowMap::Affine { divide, modulo } => {
            let rows = (kernel.rows - 1) / divide + 1;
            modulo.map_or(rows, |m| m.min(rows))
        }
        RowMap::Gather(_) => 7,
    };
    match &read.access {
        Access::Scalar if read.name == "rng" => 4,
        Access::Scalar => 1,
        Access::Row(map) => (rows(map) - 1) * read.stride + 1,
        Access::Element(map) | Access::HalfRotated(map) | Access::Table(map) => {
            (rows(map) - 1) * read.stride + kernel.cols
        }
    }
}

fn operands(kernel: &RowKernel, numbers: &mut Numbers, draw: Draw) -> (Vec<Operand>, Vec<Operand>) {
    let mut inputs: Vec<Operand> = vec![];
    for (i, read) in kernel.reads.iter().enumerate() {
        // A name that comes twice is one operand, read in two ways.
        let same = kernel.reads[..i].iter().position(|other| other.name == read.name);
        inputs.push(match same {
            Some(same) => inputs[same].clone(),
            None => Operand::new(read.dtype, (0..elements(kernel, i)).map(|_| draw(&read.name, numbers))),
        });
    }
    let outputs = kernel.writes.iter().map(|write| {
        let (rows, cols) = match write.what {
            Target::Element(_) => (kernel.rows, kernel.cols),
            Target::Row(_) => (kernel.rows, 1),
            Target::ColumnSum(_) => (Kernel::Row(kernel.clone()).items(), kernel.cols),
        };
        Operand::new(write.dtype, (0..(rows - 1) * write.stride + cols).map(|_| numbers.normal()))
    });
    let outputs = outputs.collect();
    (inputs, outputs)
}

/// Runs kernels whole and in pieces: within the bound, and the same bits.
fn check_with(cases: Vec<RowKernel>, level: &CpuLevel, draw: Draw) {
    let kernels: Vec<Kernel> = cases.into_iter().map(Kernel::Row).collect();
    let named: Vec<_> = kernels.iter().enumerate().map(|(i, k)| (format!("k{i}"), k)).collect();
    let native = Native::new(&named, level);
    let mut numbers = Numbers(0x5EED);
    for (symbol, kernel) in &named {
        let Kernel::Row(row) = kernel else { unreachable!() };
        let (inputs, outputs) = operands(row, &mut numbers, draw);
        let turn = row.uses_turn().then_some(3);
        let items = kernel.items();
        let got = native.run(symbol, &inputs, &outputs, turn, &[0, items]);
        let want = reading::read(row, &inputs, &outputs, turn.unwrap_or(0));
        for ((write, got), want) in row.writes.iter().zip(&got).zip(&want) {
            for (i, (got, want)) in got.values.iter().zip(want).enumerate() {
                assert!(
                    (got - want.x).abs() <= want.e || (got.is_nan() && want.x.is_nan()) || *got == want.x,
                    "{symbol} {}x{} `{}`[{i}]: {got} but {} ± {:.3e}",
                    row.rows,
                    row.cols,
                    write.name,
                    want.x,
                    want.e
                );
            }
        }
        let mut cuts = vec![0, numbers.below(items + 1), numbers.below(items + 1), items];
        cuts.sort_unstable();
        let again = native.run(symbol, &inputs, &outputs, turn, &cuts);
        for (a, b) in got.iter().zip(&again) {
            assert_eq!(a.bytes(), b.bytes(), "{symbol} in pieces {cuts:?}");
        }
    }
}

fn check(cases: Vec<RowKernel>) {
    check_with(cases, &CpuLevel::host(), usual);
}

/// Shapes at, below and above the sizes of vectors and blocks.
const SHAPES: [(u64, u64); 9] =
    [(1, 1), (3, 2), (5, 15), (4, 16), (7, 17), (2, 63), (3, 65), (9, 130), (2, 777)];

const FLOATS: [DType; 3] = [F32, Bf16, F16];

#[test]
fn layer_norm_with_its_residual() {
    let mut cases = vec![];
    for (rows, cols) in SHAPES {
        cases.extend(FLOATS.map(|d| kernels::residual_layer_norm(rows, cols, d, cols + 3)));
    }
    check(cases);
}

#[test]
fn layer_norm_backward_with_column_sums() {
    let mut cases = vec![];
    for (rows, cols) in SHAPES {
        cases.extend(FLOATS.map(|d| kernels::layer_norm_backward(rows, cols, d, 4)));
    }
    check(cases);
}

#[test]
fn cross_entropy_ignores_targets_below_zero() {
    let mut cases = vec![];
    for (rows, cols) in SHAPES.into_iter().filter(|(_, cols)| *cols > 3) {
        cases.extend([F32, Bf16].map(|d| kernels::cross_entropy(rows, cols, d, cols + 1)));
    }
    check(cases);
}

#[test]
fn gelu_by_tanh_and_by_erf() {
    let mut cases = vec![];
    for (rows, cols) in SHAPES {
        cases.extend(FLOATS.map(|d| kernels::gelu_tanh(rows, cols, d)));
        cases.extend(FLOATS.map(|d| kernels::gelu_flat(rows, cols, d)));
        cases.extend(FLOATS.map(|d| kernels::gelu_erf(rows, cols, d)));
    }
    check(cases);
}

#[test]
fn dropout_draws_what_philox_defines() {
    let mut cases = vec![];
    for (rows, cols) in SHAPES {
        cases.push(kernels::dropout(rows, cols, F32, Split::Elements));
        cases.push(kernels::dropout(rows, cols, Bf16, Split::Rows));
    }
    check(cases);
}

#[test]
fn adamw_and_rope_and_embeddings() {
    let mut cases = vec![];
    for (rows, cols) in SHAPES {
        cases.push(kernels::adamw(rows * cols));
        cases.push(kernels::embedding(rows, cols, 4, F32));
        cases.push(kernels::embedding(rows, cols, 4, Bf16));
        cases.push(kernels::bias_gradient(rows, cols, F16, 2));
        cases.push(kernels::rope(rows * 6, cols, 5, 2, cols + 4));
    }
    check(cases);
}

#[test]
fn portable_levels_agree_with_the_reading() {
    for level in ["x86-64-v2", "x86-64-v3", "x86-64-v4"] {
        let level = CpuLevel::named(level).unwrap();
        if level.lanes > CpuLevel::host().lanes {
            eprintln!("SKIPPED: this machine cannot run {}", level.name);
            continue;
        }
        let cases = vec![
            kernels::residual_layer_norm(3, 77, Bf16, 80),
            kernels::layer_norm_backward(7, 33, F16, 3),
            kernels::cross_entropy(4, 70, F32, 70),
            kernels::gelu_erf(3, 19, F32),
            kernels::dropout(3, 19, F32, Split::Elements),
        ];
        check_with(cases, &level, usual);
    }
}

#[test]
fn integers_sum_exactly_in_any_order() {
    let small: Draw = |name, numbers| match name {
        "targets" | "ids" => numbers.below(3) as f64,
        _ => numbers.below(17) as f64 - 8.0,
    };
    let cases = SHAPES.map(|(rows, cols)| kernels::bias_gradient(rows * 5, cols, F32, 3)).to_vec();
    check_with(cases, &CpuLevel::host(), small);
}
