//! Row kernels on this CPU against their f64 reading, at odd shapes, in pieces, with canaries round every operand.

#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use dspc_emit::CpuLevel;
use dspc_graph::ir::DType::{self, Bf16, F16, F32};
use dspc_kernel::describe::{Kernel, RowKernel, Split};
use support::draw::{Draw, operands, usual};
use support::kernels;
use support::native::Native;
use support::operand::Numbers;
use support::random;
use support::reading;

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
    // Samples of whole fours draw four numbers at once, the others one by one.
    for (rows, cols) in SHAPES.into_iter().chain([(3, 332), (8, 64), (1, 1000), (5, 12)]) {
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

#[test]
fn every_function_agrees() {
    check(SHAPES.map(|(rows, cols)| kernels::every_function(rows, cols)).to_vec());
}

#[test]
fn infinities_and_nan_stay_what_they_are() {
    let edges: Draw = |name, numbers| match name {
        "targets" => 1.0,
        _ => [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 0.0, -0.0, 1.0][numbers.below(6) as usize],
    };
    let mut kernel = kernels::every_function(2, 50);
    // Sums and their like of infinities are tested by their kind alone: what is not a number in f64 is none here.
    kernel.writes.retain(|w| w.name != "float 17");
    check_with(vec![kernel], &CpuLevel::host(), edges);
}

#[test]
fn a_result_may_lie_on_its_operand() {
    let kernel = Kernel::Row(kernels::cross_entropy(5, 100, F32, 100));
    let native = Native::new(&[("k".to_string(), &kernel)], &CpuLevel::host());
    let Kernel::Row(row) = &kernel else { unreachable!() };
    let (inputs, outputs) = operands(row, &mut Numbers(11), usual);
    let apart = native.run("k", &inputs, &outputs, None, &[0, 5]);
    let mut logits: Vec<f32> = inputs[0].values.iter().map(|&x| x as f32).collect();
    let targets: Vec<i32> = inputs[2].values.iter().map(|&x| x as i32).collect();
    let (seed, mut loss) = (inputs[3].values[0] as f32, [0f32; 5]);
    let at = logits.as_mut_ptr().cast::<std::ffi::c_void>();
    let args =
        [at, at, targets.as_ptr() as *mut _, (&raw const seed) as *mut _, loss.as_mut_ptr().cast(), at];
    native.call("k", &args, 0, 5);
    assert_eq!(loss.map(f64::from).to_vec(), apart[0].values);
    assert_eq!(logits.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(), apart[1].values);
}

#[test]
fn kernels_drawn_at_random_agree() {
    check((0..150).map(random::kernel).collect());
    let narrow = CpuLevel::named("x86-64-v3").unwrap();
    check_with((150..220).map(random::kernel).collect(), &narrow, usual);
}
