//! The GPU kernels of the examples and of the benchmark's works, for every generation: each assembles with NVIDIA's `ptxas` without spills,
//! reads and writes global memory sixteen bytes at a time where its rows allow it, and multiplies on tensor cores where it multiplies.
//!
//! Needs `ptxas`: `DSPC_PTXAS` or PATH. Without it the text is still written and looked at, and the test says loudly what it left out.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is the report, a line says what did not run"
)]

#[path = "../../compiler/emit/tests/support/ptxas.rs"]
mod ptxas;

use std::collections::BTreeMap;

use dspc::passes;
use dspc_emit::{GpuChip, compile_ptx, gpu_module};
use dspc_graph::ir::DType;
use dspc_kernel::describe::{AttentionKernel, Kernel, ProductKernel};
use dspc_program::{Family, GpuLaunch};
use dspc_source::{Colour, render_text};
use dspc_tests::optimizers::{self, CASES, Case};
use dspc_tests::{compile_for, file};
use ptxas::assemble;

/// Specs that train on a GPU: an example, the largest model, fp16, and sizes that fill no tile.
const SPECS: &[&str] = &[
    "../examples/gpt2-medium.dsp",
    "../bench/gpu/specs/gpt2_1558m_half_million.dsp",
    "../bench/gpu/specs/small_job.dsp",
    "../bench/gpu/specs/odd.dsp",
];

/// Specs that are taken in other precisions too: sizes that fill no tile, and sizes that do.
const IN_SINGLE: &[(&str, &str)] = &[
    ("../bench/gpu/specs/odd.dsp", "fp32"),
    ("../bench/gpu/specs/odd.dsp", "tf32"),
    ("../bench/gpu/specs/small_job.dsp", "fp32"),
    ("../bench/gpu/specs/small_job.dsp", "tf32"),
];

/// Kernels of a spec for GPUs, in its own precision or another, under names that say where they are from.
fn kernels_of(path: &str, precision: Option<&str>) -> Vec<(String, Kernel)> {
    let path = file(path);
    let mut stem = path.file_stem().unwrap().to_string_lossy().into_owned();
    let mut text = std::fs::read_to_string(&path).unwrap();
    if let Some(precision) = precision {
        let lines = text.lines().map(|line| match line.starts_with("precision") {
            true => format!("precision = {precision}\n"),
            false => format!("{line}\n"),
        });
        text = lines.collect();
        assert!(text.contains(&format!("\nprecision = {precision}\n")), "no precision in {stem}");
        stem = format!("{stem}_{precision}");
    }
    let mut front = passes::read(&format!("{stem}.dsp"), &text);
    let facts = dspc::facts::gather(&front.tree, &dspc::facts::root(&path));
    passes::check(&mut front, &stem, &facts.data);
    let report = || render_text(&front.diagnostics, &front.sources, Colour::Plain);
    let spec = front.spec.as_ref().unwrap_or_else(|| panic!("{}", report()));
    let lowered = passes::lower(spec, &front.sources, facts.characters, Family::Cuda).unwrap();
    let prefix: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let symbols = lowered.program.kernels.iter().map(|k| format!("{prefix}_{}", k.symbol));
    symbols.zip(lowered.kernels.kernels.into_iter().map(|k| k.kernel)).collect()
}

/// Those of a small model under an optimizer.
fn kernels_of_optimizer(case: &Case) -> Vec<(String, Kernel)> {
    let compiled = compile_for(Family::Cuda, &optimizers::path(), &optimizers::spec(case.optimizer, "bf16"));
    let lowered = compiled.lowered;
    let symbols = lowered.program.kernels.iter().map(|k| format!("{}_{}", case.name, k.symbol));
    symbols.zip(lowered.kernels.kernels.into_iter().map(|k| k.kernel)).collect()
}

/// Kernels of all the specs, each description once.
fn all_kernels() -> Vec<(String, Kernel)> {
    let mut distinct = BTreeMap::new();
    let own = SPECS.iter().map(|path| (*path, None));
    let single = IN_SINGLE.iter().map(|(path, precision)| (*path, Some(*precision)));
    let specs = own.chain(single).flat_map(|(path, precision)| kernels_of(path, precision));
    for (symbol, kernel) in specs.chain(CASES.iter().flat_map(kernels_of_optimizer)) {
        distinct.entry(format!("{kernel:?}")).or_insert((symbol, kernel));
    }
    distinct.into_values().collect()
}

/// Functions that spill, by what `ptxas -v` says of each.
fn spilling(said: &str) -> Vec<String> {
    let mut function = "";
    let mut found = vec![];
    for line in said.lines() {
        if let Some((_, name)) = line.split_once("Compiling entry function '") {
            function = name.split('\'').next().unwrap_or_default();
        }
        let Some((before, _)) = line.split_once(" bytes spill stores") else { continue };
        let stored: u64 = before.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(u64::MAX);
        if stored > 0 {
            found.push(format!("{function}: {}", line.trim()));
        }
    }
    found
}

/// The body of each kernel function.
fn entries(ptx: &str) -> BTreeMap<&str, &str> {
    let parts = ptx.split(".entry ").skip(1);
    parts.map(|part| (part.split(['(', '\n', ' ']).next().unwrap_or_default(), part)).collect()
}

/// How PTX writes sixteen bytes of an access.
const WIDE: &[&str] = &[".v4.b32", ".v4.u32", ".v4.f32", ".v2.b64", ".v2.u64", ".v2.f64"];

/// Sixteen bytes in one access of global memory: a vector of words, an asynchronous copy, a tile of the copy engine.
fn moves_sixteen_bytes(body: &str) -> bool {
    body.lines().any(|line| {
        let line = line.trim();
        let global = line.contains("ld.global") || line.contains("st.global");
        (global && WIDE.iter().any(|width| line.contains(width)))
            || (line.contains("cp.async.cg.shared.global") && line.contains("16"))
            || line.contains("cp.async.bulk")
    })
}

/// Whether rows are whole runs of sixteen bytes in every type, and there is more than one block's worth of them.
fn streams(kernel: &Kernel, launch: &GpuLaunch) -> bool {
    let blocks: u64 = launch.grid.iter().map(|n| u64::from(*n)).product();
    let whole = match kernel {
        Kernel::Row(row) => row.cols % 8 == 0 && row.rows * row.cols > 65_536,
        Kernel::ScatterAdd(scatter) => scatter.cols % 8 == 0,
        Kernel::Attention(_) | Kernel::AttentionBackward(_) => true,
        Kernel::Product(product) => product.aligned && product.n % 8 == 0,
    };
    blocks > 1 && whole
}

/// Instructions of which its products must have one; none where it has no products, or only such of f32 as may not be rounded.
fn product_instructions(kernel: &Kernel, chip: GpuChip) -> &'static [&'static str] {
    let half = |dtype| matches!(dtype, DType::Bf16 | DType::F16);
    if let Kernel::Attention(AttentionKernel { dtype: DType::F32, .. })
    | Kernel::AttentionBackward(AttentionKernel { dtype: DType::F32, .. })
    | Kernel::Product(ProductKernel { tf32: true, .. }) = kernel
    {
        return &["mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"];
    }
    let (half, in_whole_tiles) = match kernel {
        Kernel::Row(_) | Kernel::ScatterAdd(_) => return &[],
        Kernel::Attention(a) | Kernel::AttentionBackward(a) => {
            (half(a.dtype), [64, 128].contains(&a.head_dim))
        }
        Kernel::Product(p) => {
            let whole = [p.m, p.n, p.k].iter().all(|size| size % 64 == 0);
            (half(p.a.dtype) && half(p.b.dtype), p.aligned && whole)
        }
    };
    match (half, chip == GpuChip::Sm90a, in_whole_tiles) {
        (false, ..) => &[],
        (true, true, true) => &["wgmma.mma_async"],
        (true, true, false) => &["wgmma.mma_async", "mma.sync"],
        (true, false, _) => &["mma.sync"],
    }
}

fn holds_for(chip: GpuChip) {
    let kernels = all_kernels();
    let named: Vec<(String, &Kernel)> = kernels.iter().map(|(name, kernel)| (name.clone(), kernel)).collect();
    let (mlir, launches) = gpu_module(&named, chip).unwrap();
    let ptx = compile_ptx(&mlir, chip).unwrap();
    let entries = entries(&ptx);
    let mut faults = vec![];
    for ((symbol, kernel), launches) in named.iter().zip(&launches) {
        // What follows the first launch adds up a few partial sums.
        let narrow = launches.iter().take(1).filter(|launch| {
            let body = entries.get(launch.symbol.as_str()).unwrap_or_else(|| panic!("no entry for {symbol}"));
            streams(kernel, launch) && !moves_sixteen_bytes(body)
        });
        faults.extend(narrow.map(|launch| format!("{}: no access of sixteen bytes", launch.symbol)));
        let bodies: Vec<&&str> = launches.iter().filter_map(|l| entries.get(l.symbol.as_str())).collect();
        let products = product_instructions(kernel, chip);
        if !products.is_empty() && !products.iter().any(|p| bodies.iter().any(|body| body.contains(p))) {
            faults.push(format!("{symbol}: none of {products:?}, {kernel:?}"));
        }
    }
    match assemble(&ptx, chip) {
        Some(said) => faults.extend(spilling(&said)),
        None => {
            eprintln!("SKIPPED: no ptxas in DSPC_PTXAS or PATH, so PTX for {} is not assembled", chip.name())
        }
    }
    assert!(faults.is_empty(), "{}, {} kernels:\n{}", chip.name(), kernels.len(), faults.join("\n"));
}

#[test]
fn programs_hold_up_on_sm_80() {
    holds_for(GpuChip::Sm80);
}

#[test]
fn programs_hold_up_on_sm_90a() {
    holds_for(GpuChip::Sm90a);
}

#[test]
fn programs_hold_up_on_sm_120() {
    holds_for(GpuChip::Sm120);
}
