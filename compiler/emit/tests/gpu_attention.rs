//! Attention for a GPU: its PTX assembles without spills and holds the tensor-core instructions that its tiles need; on a GPU it agrees with
//! f64 for any length, mask, stride and number of key heads, and gives the same bits at every run.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a panic is the report, a line says what did not run"
)]

mod support;

use dspc_emit::{GpuChip, compile_ptx, gpu_module};
use dspc_graph::ir::DType::{self, Bf16, F16, F32};
use dspc_graph::mask::Mask;
use dspc_kernel::describe::{AttentionKernel, Kernel};
use dspc_program::GpuLaunch;
use support::attention::{
    Machine, backward, blocks_with_gaps, case, forward, large_numbers, operand, scattered, sparse, window,
};
use support::cuda::Gpu;
use support::operand::{Numbers, Operand, unit};
use support::ptxas::assemble;

/// Those that run on `mma.sync`; an H100 has kernels of its own, and runs these too.
const CHIPS: [GpuChip; 2] = [GpuChip::Sm80, GpuChip::Sm120];

/// Separate operands with gaps, or one of q, k and v side by side.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    Gaps(u64),
    Packed,
}

/// The kernel and its gradient with strides.
fn both(kernel: &AttentionKernel, layout: Layout) -> [Kernel; 2] {
    let mut k = kernel.clone();
    let (wide, narrow) = (k.heads * k.head_dim, k.kv_heads * k.head_dim);
    k.strides = match layout {
        Layout::Gaps(gap) => vec![wide + gap, narrow + gap, narrow, wide],
        Layout::Packed => vec![wide + 2 * narrow, wide + 2 * narrow, wide + 2 * narrow, wide],
    };
    let mut back = k.clone();
    let s = &k.strides;
    back.strides = vec![s[0], s[1], s[2], s[3], s[3], s[0], s[1], s[2]];
    [Kernel::Attention(k), Kernel::AttentionBackward(back)]
}

fn module(kernels: &[Kernel], chip: GpuChip) -> (String, Vec<Vec<GpuLaunch>>) {
    let named: Vec<_> = kernels.iter().enumerate().map(|(i, k)| (format!("k{i}"), k)).collect();
    gpu_module(&named, chip).unwrap()
}

fn cases() -> Vec<(AttentionKernel, Layout)> {
    let mut cases = vec![];
    let lengths = [(1, 1), (5, 5), (17, 33), (64, 64), (65, 64), (100, 131), (129, 129)];
    for (i, lengths) in lengths.into_iter().enumerate() {
        let (one, other) = if i % 2 == 0 { (Bf16, F16) } else { (F16, Bf16) };
        cases.push((case(2, (2, 2), 64, lengths, one, Mask::causal()), Layout::Gaps(8)));
        cases.push((case(1, (4, 2), 128, lengths, other, Mask::causal()), Layout::Gaps(0)));
        cases.push((case(1, (6, 2), 40, lengths, one, Mask::Full), Layout::Gaps(16)));
        cases.push((case(1, (2, 1), 64, lengths, other, window(7)), Layout::Gaps(3)));
        cases.push((case(1, (1, 1), 7, lengths, one, sparse()), Layout::Gaps(0)));
        cases.push((case(1, (1, 1), 80, lengths, other, scattered()), Layout::Gaps(8)));
    }
    cases.push((case(1, (2, 1), 64, (200, 200), Bf16, blocks_with_gaps()), Layout::Packed));
    cases.push((case(2, (2, 2), 64, (70, 70), F16, Mask::causal()), Layout::Packed));
    cases.push((case(1, (2, 2), 99, (80, 80), Bf16, Mask::causal()), Layout::Packed));
    cases.push((case(1, (2, 1), 64, (150, 140), Bf16, large_numbers()), Layout::Gaps(0)));
    let mut negative = case(1, (1, 1), 64, (70, 70), Bf16, Mask::causal());
    negative.scale = -0.2;
    cases.push((negative, Layout::Gaps(0)));
    cases.extend(single_cases());
    cases
}

/// In f32, as two TF32 numbers and as one.
fn single_cases() -> Vec<(AttentionKernel, Layout)> {
    let mut cases = vec![];
    let lengths = [(1, 1), (5, 5), (17, 33), (64, 64), (65, 64), (100, 131), (129, 129)];
    let mut turn = false;
    let mut push = |mut kernel: AttentionKernel, layout| {
        turn = !turn;
        kernel.tf32 = turn;
        cases.push((kernel, layout));
    };
    for lengths in lengths {
        push(case(2, (2, 2), 64, lengths, F32, Mask::causal()), Layout::Gaps(4));
        push(case(1, (4, 2), 128, lengths, F32, Mask::causal()), Layout::Gaps(0));
        push(case(1, (6, 2), 36, lengths, F32, Mask::Full), Layout::Gaps(12));
        push(case(1, (2, 1), 64, lengths, F32, window(7)), Layout::Gaps(3));
        push(case(1, (1, 1), 7, lengths, F32, sparse()), Layout::Gaps(0));
    }
    for _ in 0..2 {
        // Each of these in both forms.
        push(case(1, (1, 1), 80, (65, 64), F32, scattered()), Layout::Gaps(8));
        push(case(1, (2, 1), 64, (200, 200), F32, blocks_with_gaps()), Layout::Packed);
        push(case(2, (2, 2), 64, (80, 80), F32, Mask::causal()), Layout::Packed);
        push(case(1, (2, 2), 99, (80, 80), F32, Mask::causal()), Layout::Packed);
        push(case(1, (2, 1), 64, (150, 140), F32, large_numbers()), Layout::Gaps(0));
        let mut negative = case(1, (1, 1), 64, (70, 70), F32, Mask::causal());
        negative.scale = -0.2;
        push(negative, Layout::Gaps(0));
        push(case(1, (1, 1), 128, (300, 257), F32, Mask::causal()), Layout::Gaps(4));
    }
    cases
}

/// Assembles PTX and finds no spill in it; without an assembler says loudly that it did not.
fn assembles_without_spills(ptx: &str, chip: GpuChip) {
    let Some(said) = assemble(ptx, chip) else {
        eprintln!("SKIPPED: no ptxas in DSPC_PTXAS or PATH, so PTX for {} is not assembled", chip.name());
        return;
    };
    let (mut entry, mut spills) = ("", vec![]);
    for line in said.lines() {
        entry = if line.contains("Compiling entry") { line } else { entry };
        if line.contains("spill") && !line.contains(", 0 bytes spill stores") {
            spills.push(format!("{entry}\n{line}"));
        }
    }
    assert!(spills.is_empty(), "for {}:\n{}", chip.name(), spills.join("\n"));
}

#[test]
fn every_shape_assembles_for_every_generation() {
    for chip in CHIPS {
        let kernels: Vec<Kernel> = cases()
            .iter()
            .filter(|(k, _)| [(65, 64), (200, 200), (80, 80)].contains(&(k.queries, k.keys)))
            .flat_map(|(k, layout)| both(k, *layout))
            .collect();
        let (text, launches) = module(&kernels, chip);
        assert_eq!(launches.iter().map(Vec::len).sum::<usize>(), kernels.len() * 2);
        for (i, k) in kernels.iter().enumerate() {
            eprintln!("TEMP {i} {k:?}");
        }
        let ptx = compile_ptx(&text, chip).unwrap_or_else(|e| panic!("{e}"));
        assert!(ptx.lines().all(|line| !line.contains(".extern") || line.contains(".extern .shared")));
        assembles_without_spills(&ptx, chip);
    }
}

#[test]
fn the_usual_shapes_are_all_tensor_cores() {
    for (head_dim, length, chip) in [(64, 1024, GpuChip::Sm80), (128, 4096, GpuChip::Sm120)] {
        let kernel = case(16, (16, 16), head_dim, (length, length), Bf16, Mask::causal());
        let kernels = both(&kernel, Layout::Packed);
        let (text, launches) = module(&kernels, chip);
        let ptx = compile_ptx(&text, chip).unwrap();
        assembles_without_spills(&ptx, chip);
        let bodies: Vec<&str> = ptx.split(".visible .entry").skip(1).collect();
        let names: Vec<&str> = launches.iter().flatten().map(|l| l.symbol.as_str()).collect();
        assert_eq!(names, ["k0", "k1_delta", "k1_keys", "k1_queries"]);
        for (name, products) in [("k0", 2), ("k1_keys", 4), ("k1_queries", 3)] {
            let body = bodies.iter().find(|body| body.trim_start().starts_with(name)).unwrap();
            let count = |what: &str| body.lines().filter(|l| l.contains(what)).count();
            // A loop over inner tiles: its size does not grow with the sequence.
            assert!(count("mma.sync") <= products * 64 * head_dim as usize / 128 * 2, "{name}");
            assert_eq!(count("mma.sync") % products, 0, "{name}");
            assert!(count("ldmatrix") > 0 && count("cp.async.cg") > 0, "{name}");
            assert!(count("st.global.v4") > 0, "{name}");
            assert_eq!(count("atom.") + count("\tred."), 0, "{name}");
        }
    }
}

#[test]
fn single_precision_is_tensor_cores_too() {
    for (head_dim, tf32, chip) in
        [(64, true, GpuChip::Sm80), (64, false, GpuChip::Sm90a), (128, false, GpuChip::Sm120)]
    {
        let kernel = AttentionKernel { tf32, ..case(4, (4, 4), head_dim, (512, 512), F32, Mask::causal()) };
        let (text, launches) = module(&both(&kernel, Layout::Packed), chip);
        let ptx = compile_ptx(&text, chip).unwrap();
        assembles_without_spills(&ptx, chip);
        // What a block of sm_120 has, the least of all.
        assert!(launches.iter().flatten().all(|launch| launch.shared <= 99 << 10));
        let products =
            ptx.lines().filter(|l| l.contains("mma.sync.aligned.m16n8k8.row.col.f32.tf32")).count();
        assert!(products > 0 && products % if tf32 { 1 } else { 3 } == 0, "{products}");
        for body in ptx.split(".visible .entry").skip(1) {
            let count = |what: &str| body.lines().filter(|l| l.contains(what)).count();
            assert_eq!(count("atom.") + count("\tred."), 0);
            if count("mma.sync") > 0 {
                assert!(count("ldmatrix") > 0 && count("cp.async.cg") > 0);
                assert!(count("st.global.v4") + count("st.global.v2.b64") > 0);
            }
        }
    }
}

#[test]
fn a_product_of_two_part_factors_to_read() {
    let [kernel, _] = both(&case(1, (1, 1), 64, (32, 32), F32, Mask::Full), Layout::Packed);
    let (text, _) = module(&[kernel], GpuChip::Sm80);
    let lines: Vec<&str> = text.lines().filter(|l| !l.contains("extractvalue")).collect();
    let products: Vec<usize> = (0..lines.len()).filter(|&i| lines[i].contains("mma.sync")).collect();
    // Of probabilities and values: the last eight columns' first.
    let last = products.len() - 12;
    insta::assert_snapshot!(lines[products[last - 1] + 1..=products[last + 2]].join("\n"));
}

#[test]
fn a_small_kernel_to_read() {
    let [kernel, _] = both(&case(1, (1, 1), 64, (64, 64), Bf16, Mask::causal()), Layout::Packed);
    let (text, launches) = module(&[kernel], GpuChip::Sm80);
    // The loop over tiles up to its softmax is what is worth a look; products repeat.
    let lines: Vec<&str> = text.lines().filter(|l| !l.contains("extractvalue")).collect();
    let begin = lines.iter().position(|l| l.contains("llvm.func")).unwrap();
    let (head, rest) = (lines[..=begin].join("\n"), &lines[begin..]);
    let walk = rest.iter().position(|l| l.contains("scf.for")).unwrap();
    let first = rest[walk..].iter().position(|l| l.contains("mma.sync")).unwrap();
    let walk = rest[walk..=walk + first].join("\n");
    insta::assert_snapshot!(format!("{launches:?}\n{head}\n...\n{walk}\n..."));
}

#[test]
fn what_is_not_accepted_is_said() {
    let refusal = |kernel: AttentionKernel| {
        let [kernel, _] = both(&kernel, Layout::Packed);
        gpu_module(&[("k".to_string(), &kernel)], GpuChip::Sm80).unwrap_err().to_string()
    };
    let usual = || case(1, (2, 2), 64, (8, 8), Bf16, Mask::Full);
    let wide = refusal(case(1, (1, 1), 256, (8, 8), Bf16, Mask::Full));
    assert!(wide.contains("wider than 128"), "{wide}");
    let whole = refusal(case(1, (1, 1), 64, (8, 8), DType::I32, Mask::Full));
    assert!(whole.contains("whole numbers"), "{whole}");
    let still = refusal(AttentionKernel { scale: 0.0, ..usual() });
    assert!(still.contains("scores times 0"), "{still}");
    let uneven = refusal(AttentionKernel { kv_heads: 3, ..usual() });
    assert!(uneven.contains("2 query heads for 3 key heads"), "{uneven}");
}

fn find() -> Option<Gpu> {
    let gpu = Gpu::find();
    if gpu.is_none() {
        eprintln!("SKIPPED: no NVIDIA GPU here, so no attention ran on one");
    }
    gpu
}

#[test]
fn attention_and_its_gradient_agree_with_f64() {
    let Some(gpu) = find() else { return };
    let mut numbers = Numbers(0xA77E);
    for (kernel, layout) in cases() {
        check(&gpu, GpuChip::Sm80, &kernel, layout, &mut numbers);
    }
    if gpu.chip != GpuChip::Sm90a {
        return;
    }
    for (kernel, layout) in cases().into_iter().chain(hopper_cases()) {
        let (_, launches) = module(&both(&kernel, layout), gpu.chip);
        if launches.iter().flatten().any(|launch| !launch.maps.is_empty()) {
            check(&gpu, gpu.chip, &kernel, layout, &mut numbers);
        }
    }
}

/// Rows that the copy engine can read, with lengths and masks that its tiles do not fit.
fn hopper_cases() -> Vec<(AttentionKernel, Layout)> {
    let masks = [Mask::causal(), Mask::Full, window(70), sparse(), blocks_with_gaps(), scattered()];
    let mut cases = vec![];
    for (i, length) in [1, 63, 129, 200, 300].into_iter().enumerate() {
        for (j, head_dim) in [64, 128].into_iter().enumerate() {
            let dtype = if (i + j) % 2 == 0 { Bf16 } else { F16 };
            let mask = masks[(2 * i + j) % masks.len()].clone();
            cases.push((case(2, (4, 2), head_dim, (length, length), dtype, mask), Layout::Packed));
        }
    }
    cases
}

fn check(gpu: &Gpu, chip: GpuChip, kernel: &AttentionKernel, layout: Layout, numbers: &mut Numbers) {
    let kernels = both(kernel, layout);
    let [Kernel::Attention(k), Kernel::AttentionBackward(back)] = &kernels else { unreachable!() };
    let (text, launches) = module(&kernels, chip);
    let module = gpu.load(&compile_ptx(&text, chip).unwrap());
    // Tensor cores cut their sums off rather than round them; the exponential has two units of error. Factors of f32 are TF32, with 11 bits,
    // or two of them, with 22.
    let (probability, factors) = match (k.dtype, k.tf32) {
        (F32, true) => (2f64.powi(-11), 2f64.powi(-10)),
        (F32, false) => (0.0, 2f64.powi(-20)),
        (half, _) => (unit(half), 0.0),
    };
    let machine = Machine { unit: 2f64.powi(-21), probability, factors };
    let mut draw = |positions: u64, stride: u64| operand(numbers, k.dtype, k.batch, positions, stride);
    let s = &back.strides;
    let (q, key, v) = (draw(k.queries, s[0]), draw(k.keys, s[1]), draw(k.keys, s[2]));
    let (y, dy) = (draw(k.queries, s[3]), draw(k.queries, s[4]));
    let gradients = [draw(k.queries, s[5]), draw(k.keys, s[6]), draw(k.keys, s[7])];
    let f32s = |count: u64| Operand::new(F32, vec![f64::NAN; count as usize]);
    let lse = f32s(k.batch * k.heads * k.queries);
    let run = |which: usize, inputs: &[Operand], outputs: &[Operand]| {
        let (got, _) = module.run(&launches[which], inputs, outputs, None, 1);
        if gpu.only_records() {
            return got;
        }
        let (again, _) = module.run(&launches[which], inputs, outputs, None, 1);
        let compared = got.iter().zip(&again).take(3);
        assert!(compared.into_iter().all(|(a, b)| a.bytes() == b.bytes()), "two runs of {k:?}");
        got
    };
    let got = run(0, &[q.clone(), key.clone(), v.clone()], &[y, lse]);
    if !gpu.only_records() {
        forward(k, machine, [&q, &key, &v], [&got[0], &got[1]]);
    }
    let inputs = [q, key, v, got[0].clone(), got[1].clone(), dy];
    let outputs = [gradients.to_vec(), vec![f32s(back.workspace_elements())]].concat();
    let got = run(1, &inputs, &outputs);
    if !gpu.only_records() {
        backward(back, machine, &inputs, &got);
    }
}

#[test]
#[ignore = "timings"]
fn rates() {
    let Some(gpu) = find() else { return };
    for (batch, head_dim, length) in [(16, 64, 1024), (4, 128, 4096)] {
        let kernel = case(batch, (16, 16), head_dim, (length, length), Bf16, Mask::causal());
        let kernels = both(&kernel, Layout::Gaps(0));
        let (text, launches) = module(&kernels, GpuChip::Sm80);
        let module = gpu.load(&compile_ptx(&text, GpuChip::Sm80).unwrap());
        let mut numbers = Numbers(1);
        let mut draw = || operand(&mut numbers, DType::Bf16, batch, length, 16 * head_dim);
        let (q, k, v, dy) = (draw(), draw(), draw(), draw());
        let f32s = |count: u64| Operand::new(F32, vec![0.0; count as usize]);
        let outputs = [q.clone(), f32s(batch * 16 * length)];
        let inputs = [q.clone(), k.clone(), v.clone()];
        let (got, forward) = module.run(&launches[0], &inputs, &outputs, None, 20);
        let inputs = [q, k, v, got[0].clone(), got[1].clone(), dy];
        let outputs = [vec![got[0].clone(); 3], vec![f32s(kernel.workspace_elements())]].concat();
        let (_, backward) = module.run(&launches[1], &inputs, &outputs, None, 20);
        let work = 2.0 * (batch * 16 * length * length * head_dim) as f64;
        println!(
            "B{batch} H16 T{length} D{head_dim} causal: forward {:.0}, backward {:.0} TFLOP/s",
            work / forward / 1e12,
            2.5 * work / backward / 1e12
        );
    }
}
