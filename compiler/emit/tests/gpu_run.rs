//! Row kernels and scatter-add on a GPU against their f64 reading. Without a GPU these say loudly that they did not run.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is the report, a line says what did not run"
)]

mod support;

use dspc_emit::{compile_ptx, gpu_module};
use dspc_graph::ir::DType::{self, Bf16, F16, F32, I32};
use dspc_graph::rowfn::{Access, Node, RowMap, UnaryFn};
use dspc_kernel::describe::{Kernel, RowKernel, ScatterAddKernel, Split, Target};
use support::cuda::Gpu;
use support::draw::{operands, usual};
use support::kernels;
use support::operand::{Numbers, Operand};
use support::random;
use support::reading;

fn find() -> Option<Gpu> {
    let gpu = Gpu::find();
    if gpu.is_none() {
        eprintln!("SKIPPED: no NVIDIA GPU here, so no kernel ran on one");
    }
    gpu
}

fn cases() -> Vec<RowKernel> {
    let mut all = vec![];
    for (rows, cols) in [
        (1, 1),
        (3, 2),
        (7, 17),
        (9, 64),
        (33, 1024),
        (5, 2050),
        (6, 4096),
        (2, 9001),
        (2, 40_000),
        (1, 70_001),
    ] {
        for dtype in [F32, Bf16, F16] {
            all.push(kernels::residual_layer_norm(rows, cols, dtype, cols + cols % 2 * 3));
            all.push(kernels::gelu_tanh(rows, cols, dtype));
            all.push(kernels::gelu_erf(rows, cols, dtype));
            all.push(kernels::bias_gradient(rows, cols, dtype, 4));
            all.push(kernels::embedding(rows, cols, 4, dtype));
            if cols < 10_000 {
                all.push(kernels::layer_norm_backward(rows, cols, dtype, 4));
            }
            if cols > 3 {
                all.push(kernels::cross_entropy(rows, cols, dtype, cols));
                all.push(kernels::cross_entropy(rows, cols, dtype, cols.next_multiple_of(64)));
            }
        }
        all.push(kernels::sum_parts(rows, cols));
        all.push(kernels::dropout(rows, cols, Bf16, Split::Rows));
        all.push(kernels::dropout(rows, cols, F32, Split::Elements));
        all.push(kernels::adamw(rows * cols));
        all.push(kernels::rope(rows * 6, cols, 5, 2, cols * 3));
    }
    all.extend((0..300).map(random::kernel));
    all
}

#[test]
fn row_kernels_agree_with_their_reading() {
    let Some(gpu) = find() else { return };
    let kernels: Vec<Kernel> = cases().into_iter().map(Kernel::Row).collect();
    let named: Vec<_> = kernels.iter().enumerate().map(|(i, k)| (format!("k{i}"), k)).collect();
    let mut numbers = Numbers(0x6B0);
    // Some at a time: a module of all takes an assembler minutes.
    for named in named.chunks(40) {
        row_kernels_agree(&gpu, named, &mut numbers);
    }
}

fn row_kernels_agree(gpu: &Gpu, named: &[(String, &Kernel)], numbers: &mut Numbers) {
    let (text, launches) = gpu_module(named, gpu.chip).unwrap();
    let module = gpu.load(&compile_ptx(&text, gpu.chip).unwrap());
    for ((symbol, kernel), launch) in named.iter().zip(launches) {
        let Kernel::Row(row) = kernel else { unreachable!() };
        let (inputs, outputs) = operands(row, numbers, usual);
        let turn = row.uses_turn().then_some(3);
        let (got, _) = module.run(&launch, &inputs, &outputs, turn, 1);
        if gpu.only_records() {
            continue;
        }
        let want = reading::read(row, &inputs, &outputs, turn.unwrap_or(0));
        // `lg2` is exact to 2⁻²² absolutely, and `ex2` and `rsqrt` to a unit more than the CPU's functions.
        let log = row.nodes.iter().any(|n| matches!(n, Node::Unary(UnaryFn::Log, _)));
        let slack = if log { 5e-7 } else { 0.0 };
        for ((write, got), want) in row.writes.iter().zip(&got).zip(&want) {
            for (i, (got, want)) in got.values.iter().zip(want).enumerate() {
                assert!(
                    (got - want.x).abs() <= 2.0 * want.e + slack,
                    "{symbol} {}x{} `{}`[{i}]: {got} but {} ± {:.3e}",
                    row.rows,
                    row.cols,
                    write.name,
                    want.x,
                    want.e
                );
            }
        }
    }
}

#[test]
fn scatter_add_sums_in_order() {
    let Some(gpu) = find() else { return };
    let mut numbers = Numbers(4);
    // Few rows an id: one warp adds them in order.
    let cases = [
        (1, 1, 3, F32),
        (70, 33, 35, F32),
        (500, 1030, 1032, Bf16),
        (129, 8, 8, F16),
        (300, 768, 776, F32),
        (700, 1600, 1600, Bf16),
    ];
    for (rows, cols, stride, dtype) in cases {
        let out_rows = 61;
        let kernel = Kernel::ScatterAdd(ScatterAddKernel { rows, cols, out_rows, dtype, stride });
        let (text, launches) = gpu_module(&[("s".to_string(), &kernel)], gpu.chip).unwrap();
        let module = gpu.load(&compile_ptx(&text, gpu.chip).unwrap());
        let ids = Operand::new(I32, (0..rows).map(|_| numbers.below(out_rows) as f64));
        let x = Operand::new(dtype, (0..rows * stride).map(|_| numbers.normal()));
        let out = Operand::new(F32, (0..out_rows * cols).map(|_| numbers.normal()));
        let outputs = std::slice::from_ref(&out);
        let (got, _) = module.run(&launches[0], &[ids.clone(), x.clone()], outputs, None, 1);
        if gpu.only_records() {
            continue;
        }
        // An id's rows in order, then what was there: f32 sums are the same bits.
        let mut want = vec![0f32; out.values.len()];
        for n in 0..rows {
            for c in 0..cols {
                want[(ids.values[n as usize] as u64 * cols + c) as usize] +=
                    x.values[(n * stride + c) as usize] as f32;
            }
        }
        want.iter_mut().zip(&out.values).for_each(|(sum, &before)| *sum += before as f32);
        assert!(got[0].values.iter().zip(&want).all(|(got, want)| *got == f64::from(*want)));
    }
}

/// An id that has many rows is summed by all warps of its block, and a long list is added up in parts: in another order, but the same one every time.
#[test]
fn scatter_add_divides_what_an_id_has_many_of() {
    let Some(gpu) = find() else { return };
    let mut numbers = Numbers(14);
    for (rows, cols, out_rows, dtype) in
        [(20_000, 64, 50_257, Bf16), (9001, 256, 3, F32), (12_000, 40, 1, F16), (6000, 1030, 1000, Bf16)]
    {
        let kernel = Kernel::ScatterAdd(ScatterAddKernel { rows, cols, out_rows, dtype, stride: cols });
        let (text, launches) = gpu_module(&[("s".to_string(), &kernel)], gpu.chip).unwrap();
        let module = gpu.load(&compile_ptx(&text, gpu.chip).unwrap());
        let id = |n: u64, drawn: u64| if n.is_multiple_of(3) { out_rows / 2 } else { drawn };
        let ids = Operand::new(I32, (0..rows).map(|n| id(n, numbers.below(out_rows)) as f64));
        let x = Operand::new(dtype, (0..rows * cols).map(|_| numbers.normal()));
        let out = Operand::new(F32, (0..out_rows * cols).map(|_| numbers.normal()));
        let inputs = [ids.clone(), x.clone()];
        let outputs = std::slice::from_ref(&out);
        let (got, _) = module.run(&launches[0], &inputs, outputs, None, 1);
        let (again, _) = module.run(&launches[0], &inputs, outputs, None, 1);
        assert_eq!(got[0].bytes(), again[0].bytes());
        let mut want = out.values.clone();
        let mut sizes: Vec<f64> = out.values.iter().map(|x| x.abs()).collect();
        for n in 0..rows {
            for c in 0..cols {
                let (to, x) = (ids.values[n as usize] as u64 * cols + c, x.values[(n * cols + c) as usize]);
                want[to as usize] += x;
                sizes[to as usize] += x.abs();
            }
        }
        for ((got, want), size) in got[0].values.iter().zip(&want).zip(&sizes) {
            let bound = 6e-8 * (4.0 + 2.0 * (rows as f64).sqrt()) * size;
            assert!((got - want).abs() <= bound, "{rows}x{cols}: {got} but {want} ± {bound:.1e}");
        }
    }
}

#[test]
#[ignore = "timings"]
fn timings() {
    let Some(gpu) = find() else { return };
    let bytes = |k: &RowKernel| {
        let each = |dtype: DType, element: bool| if element { k.rows * k.cols * dtype.bytes() } else { 0 };
        let reads = k.reads.iter().map(|r| each(r.dtype, r.access == Access::Element(RowMap::EACH)));
        let writes = k.writes.iter().map(|w| each(w.dtype, matches!(w.what, Target::Element(_))));
        reads.sum::<u64>() + writes.sum::<u64>()
    };
    let cases = [
        ("residual layer norm bf16", kernels::residual_layer_norm(16_384, 1024, Bf16, 1024)),
        ("layer norm backward bf16", kernels::layer_norm_backward(16_384, 1024, Bf16, 64)),
        ("the same, 16 rows a chunk", kernels::layer_norm_backward(16_384, 1024, Bf16, 16)),
        ("the same, 63 rows a chunk", kernels::layer_norm_backward(16_384, 1024, Bf16, 63)),
        ("the same, 125 rows a chunk", kernels::layer_norm_backward(16_384, 1024, Bf16, 125)),
        ("the same, 1600 columns", kernels::layer_norm_backward(8192, 1600, Bf16, 32)),
        ("the same, 768 columns", kernels::layer_norm_backward(32_768, 768, Bf16, 125)),
        ("sum of 264 parts", kernels::sum_parts(264, 1024)),
        ("gelu bf16", kernels::gelu_flat(16_384, 4096, Bf16)),
        ("adamw", kernels::adamw(64 << 20)),
        ("cross entropy f32", kernels::cross_entropy(2048, 50_304, F32, 50_304)),
        ("cross entropy bf16", kernels::cross_entropy(8192, 50_257, Bf16, 50_304)),
        ("dropout bf16", kernels::dropout(16_384, 1024, Bf16, Split::Elements)),
        ("bias gradient bf16", kernels::bias_gradient(16_384, 4096, Bf16, 63)),
        ("embedding bf16", kernels::embedding(16_384, 1024, 1024, Bf16)),
    ];
    for (name, kernel) in cases {
        let mut numbers = Numbers(9);
        let (inputs, outputs) = operands(&kernel, &mut numbers, usual);
        let turn = kernel.uses_turn().then_some(3);
        let size = bytes(&kernel);
        let kernel = Kernel::Row(kernel);
        let (text, launches) = gpu_module(&[("k".to_string(), &kernel)], gpu.chip).unwrap();
        let module = gpu.load(&compile_ptx(&text, gpu.chip).unwrap());
        let (_, seconds) = module.run(&launches[0], &inputs, &outputs, turn, 20);
        println!("{name:28} {:8.1} us {:7.2} TB/s", seconds * 1e6, size as f64 / seconds / 1e12);
    }
    let (rows, cols, out_rows, dtype) = (32_768, 768, 50_257, Bf16);
    let kernel = Kernel::ScatterAdd(ScatterAddKernel { rows, cols, out_rows, dtype, stride: cols });
    let (text, launches) = gpu_module(&[("s".to_string(), &kernel)], gpu.chip).unwrap();
    let module = gpu.load(&compile_ptx(&text, gpu.chip).unwrap());
    let mut numbers = Numbers(5);
    // Ids of a text: few are often there, most hardly ever.
    let id = |u: f64| ((out_rows as f64).powf(u) as u64 - 1).min(out_rows - 1) as f64;
    let ids = Operand::new(I32, (0..rows).map(|_| id(numbers.below(1 << 20) as f64 / (1 << 20) as f64)));
    let x = Operand::new(dtype, (0..rows * cols).map(|i| (i % 7) as f64));
    let out = Operand::new(F32, (0..out_rows * cols).map(|_| 0.0));
    let (_, seconds) = module.run(&launches[0], &[ids, x], &[out], None, 20);
    let size = rows * cols * 2 + out_rows * cols * 8;
    println!(
        "{:28} {:8.1} us {:7.2} TB/s",
        "embedding gradient bf16",
        seconds * 1e6,
        size as f64 / seconds / 1e12
    );
}
