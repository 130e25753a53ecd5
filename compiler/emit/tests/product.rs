//! Matrix products of our own on a GPU: PTX assembles for each generation, with tensor-core instructions and without spills; on a GPU the
//! results agree with the description's f64 meaning. Without an assembler or a GPU these say loudly what they left out.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is the report, a line says what did not run"
)]

mod support;

use dspc_emit::{GpuChip, compile_ptx, gpu_module};
use dspc_graph::ir::DType::{self, Bf16, F16, F32};
use dspc_kernel::describe::{Kernel, ProductFused, ProductKernel, ProductMatrix};
use dspc_program::GpuLaunch;
use support::cuda::Gpu;
use support::operand::{Numbers, Operand, unit};
use support::ptxas::assemble;

/// Both factors as they are, the right one turned, the left one, both.
const TURNS: [[bool; 2]; 4] = [[false, false], [false, true], [true, false], [true, true]];

fn matrix(dtype: DType, rows: u64, cols: u64, transposed: bool, gap: u64) -> ProductMatrix {
    ProductMatrix { dtype, stride: if transposed { rows } else { cols } + gap, transposed }
}

/// A product of factors and into results of these types, with rows this many elements longer than they need be.
fn product([m, n, k]: [u64; 3], turns: [bool; 2], [factors, result]: [DType; 2], gap: u64) -> ProductKernel {
    ProductKernel {
        m,
        n,
        k,
        a: matrix(factors, m, k, turns[0], gap),
        b: matrix(factors, k, n, turns[1], gap),
        c: matrix(result, m, n, false, gap),
        accumulate: false,
        tf32: false,
        fused: None,
        splits: 1,
        aligned: gap.is_multiple_of(8),
    }
}

/// Every epilogue.
fn epilogues(k: &ProductKernel) -> [ProductFused; 4] {
    let (bias, pre) = (k.a.dtype, k.c);
    [
        ProductFused::Bias(bias),
        ProductFused::BiasGelu { bias, pre },
        ProductFused::GeluGradient { pre },
        ProductFused::BiasGradient(bias),
    ]
}

/// Products of every type, turn and epilogue, even and odd.
fn cases() -> Vec<ProductKernel> {
    let mut all = vec![];
    for (i, turns) in TURNS.into_iter().enumerate() {
        for types in [[Bf16, Bf16], [F16, F32], [F32, F32]] {
            all.push(product([136, 200, 328], turns, types, 8));
            all.push(product([37, 131, 61], turns, types, 3));
            for (splits, shape) in
                [(1 + i as u64 % 2 * 2, [264, 392, 456]), (3 - i as u64 % 2 * 2, [65, 67, 129])]
            {
                let plain = product(shape, turns, types, shape[0] % 8 * 3);
                let fused = Some(epilogues(&plain)[i]);
                let accumulate = splits > 1;
                all.push(ProductKernel { fused, splits, accumulate, ..plain });
            }
        }
    }
    // Column sums inside tiles of 128, 192 and 256 columns, in one part and in two.
    for (shape, splits) in [([200, 136, 200], 2), ([1000, 3000, 72], 1), ([1024, 4096, 72], 1)] {
        let plain = product(shape, [true, false], [Bf16, F32], 0);
        let fused = Some(ProductFused::BiasGradient(F32));
        all.push(ProductKernel { fused, splits, ..plain });
    }
    for (i, turns) in TURNS.into_iter().enumerate() {
        let plain = product([136, 204, 172], turns, [F32, F32], 4);
        let fused = Some(epilogues(&plain)[i]);
        let splits = 1 + i as u64 % 2 * 2;
        all.push(ProductKernel { tf32: true, aligned: true, fused, splits, ..plain });
        all.push(ProductKernel { tf32: true, ..product([67, 33, 90], turns, [F32, F32], 3) });
    }
    let turned = product([40, 72, 96], [false, true], [Bf16, Bf16], 0);
    all.push(ProductKernel { c: matrix(Bf16, 40, 72, true, 0), ..turned });
    all
}

fn ptx_of(kernels: &[Kernel], chip: GpuChip) -> (String, Vec<Vec<GpuLaunch>>) {
    let named: Vec<_> = kernels.iter().enumerate().map(|(i, k)| (format!("k{i}"), k)).collect();
    let (text, launches) = gpu_module(&named, chip).unwrap();
    (compile_ptx(&text, chip).unwrap(), launches)
}

fn count(ptx: &str, what: &str) -> usize {
    ptx.matches(what).count()
}

#[test]
fn every_product_assembles_for_every_generation() {
    // A third for each: their text is long.
    for (first, chip) in GpuChip::ALL.into_iter().enumerate() {
        let kernels: Vec<Kernel> = cases().into_iter().skip(first).step_by(3).map(Kernel::Product).collect();
        let (ptx, launches) = ptx_of(&kernels, chip);
        assert_eq!(launches.len(), kernels.len());
        let Some(said) = assemble(&ptx, chip) else {
            eprintln!("SKIPPED: no ptxas in DSPC_PTXAS or PATH, so PTX for {} is not assembled", chip.name());
            continue;
        };
        let spills = said.lines().filter(|l| l.contains("spill") && !l.contains("0 bytes spill stores"));
        assert_eq!(spills.collect::<Vec<_>>(), Vec::<&str>::new(), "spills for {}", chip.name());
        let slow = said.lines().filter(|l| l.contains("serialized") || l.contains("setmaxnreg ignored"));
        assert_eq!(slow.collect::<Vec<_>>(), Vec::<&str>::new(), "for {}", chip.name());
    }
}

#[test]
fn warps_read_sixteen_bytes_and_multiply_blocks() {
    let kernel = Kernel::Product(product([4096, 4096, 4096], [false, true], [Bf16, Bf16], 0));
    let (ptx, _) = ptx_of(std::slice::from_ref(&kernel), GpuChip::Sm80);
    // A warp's 64 × 64 × 32: 4 × 8 blocks, twice.
    assert_eq!(count(&ptx, "mma.sync.aligned.m16n8k16"), 4 * 8 * 2);
    assert_eq!(count(&ptx, "ldmatrix.sync.aligned.m8n8.x4"), (4 + 4) * 2);
    assert_eq!(count(&ptx, "cp.async.cg.shared.global"), 8 * 4);
    // 64 rows of 64 columns, 8 at a time, among 32 lanes.
    assert_eq!(count(&ptx, "st.global.v4"), 16);
    assert_eq!(count(&ptx, "st.global"), 16);
}

#[test]
fn warps_multiply_f32_as_tf32_where_that_is_allowed() {
    let plain = product([4096, 4096, 4096], [false, true], [F32, F32], 0);
    for (tf32, products) in [(false, 0), (true, 4 * 8 * 2)] {
        let kernel = Kernel::Product(ProductKernel { tf32, ..plain.clone() });
        let (ptx, _) = ptx_of(std::slice::from_ref(&kernel), GpuChip::Sm90a);
        assert_eq!(count(&ptx, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"), products);
    }
}

#[test]
fn warpgroups_multiply_what_the_copy_engine_brings() {
    for turns in TURNS {
        let kernel = Kernel::Product(product([16_384, 4096, 4096], turns, [Bf16, Bf16], 0));
        let (ptx, launches) = ptx_of(std::slice::from_ref(&kernel), GpuChip::Sm90a);
        assert_eq!(count(&ptx, "mma.sync"), 0);
        // The first piece of a tile, and the others: 64 terms are four instructions.
        assert_eq!(count(&ptx, "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16"), 8);
        assert_eq!(count(&ptx, "setmaxnreg"), 2);
        assert!(count(&ptx, "cp.async.bulk.tensor.2d") >= 2);
        let [launch] = launches[0].as_slice() else { panic!("one kernel") };
        assert_eq!((launch.grid, launch.block, launch.maps.len()), ([132, 1, 1], 384, 2));
        assert!(launch.shared <= 227 << 10);
    }
}

#[test]
fn a_product_in_parts_has_a_second_kernel() {
    let plain = product([1024, 4096, 16_384], [true, false], [Bf16, Bf16], 0);
    let fused = Some(ProductFused::BiasGradient(Bf16));
    let kernel = ProductKernel { splits: 2, fused, ..plain };
    let sums = 128 * 4096;
    assert_eq!(kernel.workspace_elements(), 2 * 1024 * 4096 + sums);
    let (_, launches) = ptx_of(&[Kernel::Product(kernel)], GpuChip::Sm90a);
    let names: Vec<&str> = launches[0].iter().map(|l| l.symbol.as_str()).collect();
    assert_eq!(names, ["k0", "k0_combine", "k0_sums_total"]);
}

#[test]
fn parts_are_added_in_order() {
    let plain = product([24, 16, 640], [true, false], [Bf16, Bf16], 0);
    let fused = Some(ProductFused::BiasGelu { bias: Bf16, pre: plain.c });
    let kernel = Kernel::Product(ProductKernel { splits: 2, fused, ..plain });
    let (text, launches) = gpu_module(&[("product".to_string(), &kernel)], GpuChip::Sm80).unwrap();
    let begin = text.find("llvm.func @product_combine").unwrap();
    insta::assert_snapshot!(format!("{:?}\n{}", launches[0][1], &text[begin..]));
}

/// Operands of a product, drawn; gaps hold numbers too, and must keep them.
fn operands(k: &ProductKernel, numbers: &mut Numbers) -> Vec<Operand> {
    let mut draw = |dtype: DType, count: u64, size: f64| {
        Operand::new(dtype, (0..count).map(|_| numbers.normal() * size))
    };
    let mut matrix = |m: &ProductMatrix, rows: u64, cols: u64, size: f64| {
        draw(m.dtype, if m.transposed { cols } else { rows } * m.stride, size)
    };
    let size = (k.k as f64).powf(-0.25);
    let mut all =
        vec![matrix(&k.a, k.m, k.k, size), matrix(&k.b, k.k, k.n, size), matrix(&k.c, k.m, k.n, 1.0)];
    match &k.fused {
        None => {}
        Some(ProductFused::Bias(dtype) | ProductFused::BiasGradient(dtype)) => {
            all.push(draw(*dtype, k.n, 1.0))
        }
        Some(ProductFused::BiasGelu { bias, pre }) => {
            all.push(draw(*bias, k.n, 1.0));
            all.push(draw(pre.dtype, k.m * pre.stride, 1.0));
        }
        Some(ProductFused::GeluGradient { pre }) => all.push(draw(pre.dtype, k.m * pre.stride, 1.0)),
    }
    if k.workspace_elements() > 0 {
        all.push(Operand::new(F32, (0..k.workspace_elements()).map(|_| f64::NAN)));
    }
    all
}

/// What the operands hold after it, by the description's meaning.
fn reading(k: &ProductKernel, operands: &[Operand]) -> Vec<Vec<f64>> {
    let mut cells = vec![];
    let starts: Vec<usize> = operands
        .iter()
        .map(|o| {
            cells.extend(&o.values);
            cells.len() - o.values.len()
        })
        .collect();
    dspc_kernel::evaluate(&Kernel::Product(k.clone()), &starts, 0, &mut cells);
    operands.iter().zip(starts).map(|(o, start)| cells[start..start + o.values.len()].to_vec()).collect()
}

#[test]
fn products_agree_with_their_reading() {
    let Some(gpu) = Gpu::find() else {
        eprintln!("SKIPPED: no NVIDIA GPU here, so no product ran on one");
        return;
    };
    let mut numbers = Numbers(0x9E0D);
    let mut all = cases();
    for i in 0..16 {
        let [m, n, k] = [0; 3].map(|_| 1 + numbers.below(300));
        let types = [[Bf16, Bf16], [F16, F16], [Bf16, F32], [F32, F32]][i % 4];
        let gap = numbers.below(9);
        let plain = product([m, n, k], TURNS[numbers.below(4) as usize], types, gap);
        let fused = epilogues(&plain).get(numbers.below(5) as usize).copied();
        let splits = 1 + numbers.below(3);
        all.push(ProductKernel { fused, splits, aligned: true, ..plain });
    }
    for kernel in all {
        let description = Kernel::Product(kernel.clone());
        let (ptx, launches) = ptx_of(std::slice::from_ref(&description), gpu.chip);
        let before = operands(&kernel, &mut numbers);
        let (got, _) = gpu.load(&ptx).run(&launches[0], &[], &before, None, 1);
        if gpu.only_records() {
            continue;
        }
        let want = reading(&kernel, &before);
        let named = if kernel.workspace_elements() > 0 { before.len() - 1 } else { before.len() };
        for (i, (got, want)) in got.iter().zip(&want).enumerate().take(named) {
            // Factors are near k^-1/4, so a sum's terms are near k^-1/2, and an f32 sum of k of them is out by k^1/2 units.
            // TF32 has 11 bits: a term is out by 2^-10 of itself, and k terms with signs of their own by k^1/2 times that; 6 times the most.
            let rounding = if kernel.tf32 { 6.0 * 2f64.powi(-10) } else { 0.0 };
            let sum = rounding + 8.0 * kernel.k as f64 * unit(F32);
            // tanh is out by 2^-11 (by 2^-21 in f32): x/2 of it in GELU with |x| up to 6, and up to 5 times it in the slope, times a sum up to 4.
            let tanh = match (&kernel.fused, kernel.c.dtype) {
                (Some(ProductFused::GeluGradient { .. }), F32) => 2f64.powi(-16),
                (Some(ProductFused::BiasGelu { .. }), F32) => 2f64.powi(-19),
                (Some(ProductFused::GeluGradient { .. }), _) => 2f64.powi(-6),
                (Some(ProductFused::BiasGelu { .. }), _) => 2f64.powi(-9),
                _ => 0.0,
            };
            for (at, (got, want)) in got.values.iter().zip(want).enumerate() {
                let bound = 2.0 * unit(before[i].dtype) * want.abs() + sum + tanh * (1.0 + want.abs());
                assert!(
                    (got - want).abs() <= bound,
                    "{kernel:?} operand {i}[{at}]: {got} but {want} ± {bound:.2e}"
                );
            }
        }
    }
}
