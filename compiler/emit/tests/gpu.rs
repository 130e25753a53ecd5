//! PTX of row kernels and scatter-add for each GPU generation: it assembles, without spills, with 16-byte accesses.
//!
//! Needs `ptxas`: `DSPC_PTXAS` or PATH. Without it the text is still written, and the test says loudly what it left out.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is the report, a line says what did not run"
)]

mod support;

use dspc_emit::{GpuChip, compile_ptx, gpu_module};
use dspc_graph::ir::DType::{Bf16, F16, F32};
use dspc_kernel::describe::{Kernel, RowKernel, ScatterAddKernel, Split};
use dspc_program::GpuLaunch;
use support::kernels;
use support::ptxas::assemble;

fn rows() -> Vec<RowKernel> {
    let mut all = vec![];
    for (rows, cols) in [(1, 1), (7, 17), (8, 64), (33, 1024), (5, 2050), (9, 4096), (3, 50_257)] {
        all.push(kernels::residual_layer_norm(rows, cols, Bf16, cols));
        all.push(kernels::cross_entropy(rows, cols, F32, cols));
        all.push(kernels::cross_entropy(rows, cols, Bf16, cols.next_multiple_of(64)));
        all.push(kernels::sum_parts(rows, cols));
        all.push(kernels::gelu_tanh(rows, cols, F16));
        all.push(kernels::gelu_erf(rows, cols, F32));
        all.push(kernels::dropout(rows, cols, Bf16, Split::Rows));
        all.push(kernels::dropout(rows, cols, F32, Split::Elements));
        all.push(kernels::bias_gradient(rows, cols, Bf16, 4));
        all.push(kernels::embedding(rows, cols, 4, Bf16));
        all.push(kernels::adamw(rows * cols));
        if cols < 16_384 {
            all.push(kernels::layer_norm_backward(rows, cols, Bf16, 4));
        }
        if cols % 2 == 0 {
            all.push(kernels::rope(rows * 6, cols, 5, 2, cols * 3));
        }
    }
    all
}

fn ptx_of(kernels: &[Kernel], chip: GpuChip) -> (String, Vec<Vec<GpuLaunch>>) {
    let named: Vec<_> = kernels.iter().enumerate().map(|(i, k)| (format!("k{i}"), k)).collect();
    let (text, launches) = gpu_module(&named, chip).unwrap();
    (
        compile_ptx(&text, chip).unwrap_or_else(|e| panic!("{e}\n{}", &text[..text.len().min(20_000)])),
        launches,
    )
}

#[test]
fn every_kernel_assembles_for_every_generation() {
    let mut kernels: Vec<Kernel> = rows().into_iter().map(Kernel::Row).collect();
    for (rows, cols, dtype) in [(8192, 768, Bf16), (5, 1, F32), (100, 1030, F32)] {
        let out_rows = 100;
        kernels.push(Kernel::ScatterAdd(ScatterAddKernel { rows, cols, out_rows, dtype, stride: cols }));
    }
    for chip in GpuChip::ALL {
        let (ptx, launches) = ptx_of(&kernels, chip);
        assert_eq!(launches.len(), kernels.len());
        let Some(said) = assemble(&ptx, chip) else {
            eprintln!("SKIPPED: no ptxas in DSPC_PTXAS or PATH, so PTX for {} is not assembled", chip.name());
            continue;
        };
        // A line that names the function stands before what it takes.
        let pairs = said.lines().zip(said.lines().skip(1));
        let spills = pairs.filter(|(_, l)| l.contains("spill") && !l.contains(", 0 bytes spill stores"));
        assert_eq!(spills.collect::<Vec<_>>(), [], "spills for {}", chip.name());
    }
}

#[test]
fn wide_rows_are_read_sixteen_bytes_at_a_time() {
    let kernel = Kernel::Row(kernels::residual_layer_norm(8192, 1024, Bf16, 1024));
    let (ptx, launches) = ptx_of(&[kernel], GpuChip::Sm90a);
    // A lane: 4 runs of 8 of x and r (16 bytes each), w and b (2 × 16 bytes each); two results.
    let count = |what: &str| ptx.lines().filter(|l| l.contains(what)).count();
    assert_eq!(count("ld.global.v4") + count("ld.global.v2.b64"), 4 * 2 + 4 * 2 * 2);
    assert_eq!(count("st.global.v4"), 4 * 2);
    assert_eq!(count("shfl.sync.bfly"), 10);
    let launch = GpuLaunch { symbol: "k0".into(), grid: [2048, 1, 1], block: 128, shared: 0, maps: vec![] };
    assert_eq!(launches[0], [launch]);
}
