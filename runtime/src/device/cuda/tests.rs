//! The device on a GPU. Without one these say loudly that they did not run.

use super::*;
use crate::device::Algorithms;
use crate::fixture::{Builder, at, instruction, launch, repeat};
use crate::philox::Stream;
use dspc_program::ElementType::{self, Bf16, F16, F32, I32};
use dspc_program::{
    Action, Arg, Entry, Epilogue, Fused, Gemm, GpuLaunch, KernelId, Matrix, Over, Place, Role, Target,
};
use std::path::Path;
use std::time::Instant;

const PTX: &str = include_str!("tests.ptx");

fn gpu() -> bool {
    match Card::find() {
        Ok(_) => true,
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            false
        }
    }
}

/// The library, or a line that says that it is not there.
fn library() -> bool {
    gpu()
        && match libraries::cublaslt() {
            Ok(_) => true,
            Err(error) => {
                eprintln!("SKIPPED: {error}");
                false
            }
        }
}

fn options(dir: &Path) -> DeviceOptions {
    DeviceOptions {
        threads: 1,
        cache_dir: dir.into(),
        lock: dir.join("dspc.lock"),
        algorithms: Algorithms::Measure,
    }
}

fn target(builder: &Builder, shared: u32) -> Target {
    let launches = builder.program.kernels.iter().map(|kernel| {
        let symbol = kernel.symbol.clone();
        vec![GpuLaunch { symbol, grid: [1; 3], block: 1, shared, maps: vec![] }]
    });
    Target {
        name: "sm_80".into(),
        file: "tests.ptx".into(),
        hash: String::new(),
        level: String::new(),
        features: vec![],
        launches: launches.collect(),
    }
}

fn device(builder: &Builder, dir: &Path) -> Result<Cuda, Error> {
    Cuda::new(&builder.program, &target(builder, 0), PTX.as_bytes(), &options(dir))
}

fn bytes_of(device: &Cuda, buffer: BufferId, slot: u64, count: usize) -> Vec<u8> {
    let mut out = vec![0; count];
    device.read(buffer, slot, 0, &mut out).unwrap();
    out
}

fn floats(device: &Cuda, buffer: BufferId, count: usize) -> Vec<f32> {
    unpacked(&bytes_of(device, buffer, 0, count * 4), F32).into_iter().map(|x| x as f32).collect()
}

/// The same program as the CPU's test of loops, with the same answer.
fn loops() -> (Builder, BufferId, BufferId) {
    let mut b = Builder::new();
    let log = b.buffer("log", F32, 16, 1, Role::Inner);
    let slots = b.buffer("slots", F32, 1, 3, Role::Inner);
    let visit = b.kernel("visit", 1, &[F32, F32], true, "");
    let slot = |add, turn, micro| Arg::At(Place { add, turn, micro, ..Place::of(slots) });
    let see = |place| launch(visit, &[at(log), place, Arg::Turn]);
    let turns = repeat(Over::Turns, 3, true, vec![see(slot(1, true, false))]);
    let micro = repeat(Over::MicroBatches, 2, false, vec![turns, see(slot(2, false, true))]);
    b.program.train = Entry { body: vec![see(slot(1, false, false)), micro], peak_bytes: 0 };
    (b, log, slots)
}

#[test]
fn a_recorded_entry_visits_turns_and_micro_batches_in_their_order() {
    if !gpu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (b, log, slots) = loops();
    for _ in 0..2 {
        let begun = Instant::now();
        let mut d = device(&b, dir.path()).unwrap();
        println!("device made in {:.3} s, {}", begun.elapsed().as_secs_f64(), d.describe());
        for (i, x) in [5f32, 6.0, 7.0].into_iter().enumerate() {
            d.write(slots, i as u64, bytemuck::bytes_of(&x)).unwrap();
        }
        for _ in 0..2 {
            d.write(log, 0, &[0; 64]).unwrap();
            d.run(EntryKind::Train).unwrap();
            let seen = floats(&d, log, 10);
            assert_eq!(seen, [9.0, 60.0, 52.0, 71.0, 60.0, 70.0, 52.0, 71.0, 60.0, 50.0]);
        }
    }
}

/// Steps follow each other without a wait, and each sees its own inputs.
#[test]
fn inputs_of_the_next_step_do_not_disturb_the_one_that_runs() {
    if !gpu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut b = Builder::new();
    let ids = b.buffer("ids", I32, 8, 1, Role::Tokens);
    let sum = b.buffer("sum", F32, 1, 1, Role::Loss);
    let gather = b.kernel("gather", 1, &[I32, F32], false, "");
    b.program.train.body =
        vec![instruction(Action::Zero { at: Place::of(sum) }), launch(gather, &[at(ids), at(sum)])];
    let mut d = Cuda::new(&b.program, &target(&b, 72 << 10), PTX.as_bytes(), &options(dir.path())).unwrap();
    let mut ended = vec![];
    for step in 0..500i32 {
        let mut values = [0i32; 8];
        (values[0], values[7]) = (step, step % 7);
        d.write(ids, 0, bytemuck::cast_slice(&values)).unwrap();
        d.start(EntryKind::Train, &[crate::device::Word { buffer: sum, slot: 0, start: 0 }]).unwrap();
        if step > 0 {
            ended.push(f32::from_le_bytes(d.finish().unwrap()[0]));
        }
    }
    ended.push(f32::from_le_bytes(d.finish().unwrap()[0]));
    let want: Vec<f32> = (0..500).map(|step| (step + 1000 * (step % 7)) as f32).collect();
    assert_eq!(ended, want);
    assert!(d.finish().unwrap().is_empty());
}

#[test]
fn a_program_that_does_not_fit_is_refused_before_anything_is_taken() {
    if !gpu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut b = Builder::new();
    b.buffer("huge", F32, 1 << 40, 1, Role::Inner);
    b.program.arenas[0].bytes = 1 << 42;
    let error = device(&b, dir.path()).map(|_| ()).unwrap_err();
    assert_eq!(error.code(), "R0610", "{error}");
    println!("{error}");
}

/// Runs in a process of its own: after such a fault a process cannot use the card again.
#[test]
fn a_fault_names_its_kernel_when_kernels_run_one_by_one() {
    const VARIABLE: &str = "DSPC_TEST_ASTRAY";
    if !gpu() {
        return;
    }
    if std::env::var_os(VARIABLE).is_some() {
        let dir = tempfile::tempdir().unwrap();
        let mut b = Builder::new();
        let sum = b.buffer("sum", F32, 1, 1, Role::Inner);
        let astray = b.kernel("astray", 1, &[F32], false, "");
        b.program.train.body = vec![launch(astray, &[at(sum)])];
        let mut d = device(&b, dir.path()).unwrap();
        let error = d.run(EntryKind::Train).err().or_else(|| d.read(sum, 0, 0, &mut [0; 4]).err()).unwrap();
        println!("error[{}]: {error}\n  = help: {}", error.code(), error.remedy());
        return;
    }
    let name = "device::cuda::tests::a_fault_names_its_kernel_when_kernels_run_one_by_one";
    for (careful, words) in [("1", "kernel `astray` of `here`"), ("0", "DSPC_CUDA_SYNC=1")] {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(VARIABLE, "1")
            .env("DSPC_CUDA_SYNC", careful)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("error[R0701]") && text.contains(words), "{text}");
        println!("{}", text.lines().filter(|l| l.contains("R0701")).collect::<String>());
    }
}

fn rounded(x: f64, dtype: ElementType) -> f64 {
    match dtype {
        F32 => f64::from(x as f32),
        Bf16 => half::bf16::from_f64(x).to_f64(),
        F16 => half::f16::from_f64(x).to_f64(),
        I32 => x,
    }
}

fn packed(values: &[f64], dtype: ElementType) -> Vec<u8> {
    let bytes = |&x: &f64| match dtype {
        F32 | I32 => (x as f32).to_le_bytes().to_vec(),
        Bf16 => half::bf16::from_f64(x).to_le_bytes().to_vec(),
        F16 => half::f16::from_f64(x).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(bytes).collect()
}

fn unpacked(bytes: &[u8], dtype: ElementType) -> Vec<f64> {
    let two = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    match dtype {
        F32 | I32 => {
            bytes.chunks(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
        }
        Bf16 => bytes.chunks(2).map(|b| half::bf16::from_bits(two(b)).to_f64()).collect(),
        F16 => bytes.chunks(2).map(|b| half::f16::from_bits(two(b)).to_f64()).collect(),
    }
}

/// Half a unit in the last place, relative.
fn half_unit(dtype: ElementType) -> f64 {
    match dtype {
        F32 | I32 => 2f64.powi(-24),
        Bf16 => 2f64.powi(-9),
        F16 => 2f64.powi(-12),
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum With {
    Nothing,
    Bias,
    BiasGelu,
    GeluGradient,
    BiasGradient,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    size: (u64, u64, u64),
    factors: ElementType,
    result: ElementType,
    turned: (bool, bool, bool),
    with: With,
    accumulate: bool,
    tf32: bool,
    pad: u64,
}

fn gelu(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + libm::tanh(inner))
}

fn gelu_slope(x: f64) -> f64 {
    let c = (2.0 / std::f64::consts::PI).sqrt();
    let t = libm::tanh(c * (x + 0.044_715 * x * x * x));
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3.0 * 0.044_715 * x * x)
}

/// Runs one case and gives the largest error in units of what rounding and summing allow; `None` where the library has no algorithm.
fn product(case: Case, dir: &Path) -> Option<f64> {
    let (m, n, k) = case.size;
    let mut b = Builder::new();
    let matrix = |b: &mut Builder, name: &str, rows: u64, cols: u64, dtype, transposed: bool| {
        let (r, c) = if transposed { (cols, rows) } else { (rows, cols) };
        let stride = c + case.pad;
        let buffer = b.buffer(name, dtype, r * stride, 1, Role::Inner);
        Matrix { at: Place::of(buffer), stride, transposed }
    };
    let a = matrix(&mut b, "a", m, k, case.factors, case.turned.0);
    let w = matrix(&mut b, "b", k, n, case.factors, case.turned.1);
    let c = matrix(&mut b, "c", m, n, case.result, case.turned.2);
    let pre = matrix(&mut b, "pre", m, n, case.result, false);
    let vector = b.buffer("vector", case.result, n, 1, Role::Inner);
    let fused = match case.with {
        With::Nothing => None,
        With::Bias => Some(Fused::Bias { bias: Place::of(vector) }),
        With::BiasGelu => Some(Fused::BiasGelu { bias: Place::of(vector), pre }),
        With::GeluGradient => Some(Fused::GeluGradient { pre }),
        With::BiasGradient => Some(Fused::BiasGradient { sum: Place::of(vector) }),
    };
    let gemm = Gemm {
        m,
        n,
        k,
        a,
        b: w,
        c,
        accumulate: case.accumulate,
        tf32: case.tf32,
        fused,
        own: None,
        epilogue: None,
    };
    b.program.train.body = vec![instruction(Action::Gemm(gemm))];
    let mut d = match device(&b, dir) {
        Ok(d) => d,
        Err(Error::NoAlgorithm { .. }) => return None,
        Err(error) => panic!("{case:?}: {error}"),
    };
    let mut site = 0;
    let mut fill = |d: &mut Cuda, buffer: BufferId, dtype, scale: f64| {
        site += 1;
        let stream = Stream { seed: m * 31 + n * 7 + k, step: 0, site };
        let count = b.program.buffers[buffer.0 as usize].elements;
        let values: Vec<f64> =
            (0..count).map(|i| rounded(scale * (stream.uniform(i) * 2.0 - 1.0), dtype)).collect();
        d.write(buffer, 0, &packed(&values, dtype)).unwrap();
        values
    };
    let av = fill(&mut d, a.at.buffer, case.factors, 1.0);
    let wv = fill(&mut d, w.at.buffer, case.factors, 2.0 / (k as f64).sqrt());
    let cv = fill(&mut d, c.at.buffer, case.result, 1.0);
    let pv = fill(&mut d, pre.at.buffer, case.result, 2.0);
    let bv = fill(&mut d, vector, case.result, 1.0);
    let results = |d: &Cuda| {
        let read = |buffer: BufferId, dtype| {
            let count = b.program.buffers[buffer.0 as usize].elements * element_bytes(dtype);
            unpacked(&bytes_of(d, buffer, 0, count as usize), dtype)
        };
        [c.at.buffer, pre.at.buffer, vector].map(|buffer| read(buffer, case.result))
    };
    d.run(EntryKind::Train).unwrap();
    let got = results(&d);
    // The same bits again, from the same start.
    for (buffer, values) in [(c.at.buffer, &cv), (pre.at.buffer, &pv), (vector, &bv)] {
        d.write(buffer, 0, &packed(values, case.result)).unwrap();
    }
    d.run(EntryKind::Train).unwrap();
    assert!(got == results(&d), "{case:?}: other bits the second time");
    let index = |x: &Matrix, r: u64, c: u64| {
        let (r, c) = if x.transposed { (c, r) } else { (r, c) };
        (r * x.stride + c) as usize
    };
    let rounding = half_unit(case.result);
    let factor_error = if case.tf32 { 2f64.powi(-10) } else { 2f64.powi(-23) };
    let mut worst = 0f64;
    let mut check = |got: f64, want: f64, slack: f64, what: &str| {
        let units = (got - want).abs() / slack;
        worst = worst.max(units);
        assert!(units <= 1.0, "{case:?} {what}: {got} but {want} ± {slack:.3e}");
    };
    for i in 0..m {
        for j in 0..n {
            let terms = (0..k).map(|l| av[index(&a, i, l)] * wv[index(&w, l, j)]);
            let (sum, size) = terms.fold((0.0, 0.0), |(s, z), x| (s + x, z + x.abs()));
            let at = index(&c, i, j);
            let sum = sum + if case.accumulate { cv[at] } else { 0.0 };
            // Sums in f32 in any order: far fewer than k units in practice.
            let slack = size * (factor_error + (k as f64).sqrt() * 2f64.powi(-23)) + 1e-6;
            let bias = bv[j as usize];
            // A library may round the product before it adds to it or scales it, and takes tanh to about 2⁻¹¹.
            let between = if case.accumulate || case.with != With::Nothing {
                2.0 * rounding * (sum.abs() + bias.abs() + cv[at].abs())
            } else {
                0.0
            };
            let own = |x: f64, slack: f64| slack * 1.2 + 2.0 * rounding * x.abs() + between + 1e-6;
            match case.with {
                With::Nothing | With::BiasGradient => check(got[0][at], sum, own(sum, slack), "c"),
                With::Bias => check(got[0][at], sum + bias, own(sum + bias, slack), "c"),
                With::BiasGelu => {
                    let x = sum + bias;
                    check(got[1][index(&pre, i, j)], x, own(x, slack), "pre");
                    check(
                        got[0][at],
                        gelu(x),
                        own(gelu(x), slack) + 1e-3 * f64::from(u8::from(case.result != F32)),
                        "gelu",
                    );
                }
                With::GeluGradient => {
                    let x = sum * gelu_slope(pv[index(&pre, i, j)]);
                    check(
                        got[0][at],
                        x,
                        own(x, slack) + 4e-3 * sum.abs() * f64::from(u8::from(case.result != F32)) + 1e-5,
                        "slope",
                    );
                }
            }
        }
    }
    if case.with == With::BiasGradient {
        for j in 0..n {
            let sum: f64 = (0..k).map(|l| wv[index(&w, l, j)]).sum();
            let size: f64 = (0..k).map(|l| wv[index(&w, l, j)].abs()).sum();
            check(got[2][j as usize], sum, size * 2f64.powi(-20) + 2.0 * rounding * sum.abs() + 1e-6, "sum");
        }
    }
    Some(worst)
}

#[test]
fn products_of_all_types_and_epilogues_agree_with_f64() {
    if !library() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let kinds = [
        (F32, F32, false),
        (F32, F32, true),
        (Bf16, Bf16, false),
        (Bf16, F32, false),
        (F16, F16, false),
        (F16, F32, false),
    ];
    let withs = [With::Nothing, With::Bias, With::BiasGelu, With::GeluGradient, With::BiasGradient];
    let mut refused = vec![];
    for (factors, result, tf32) in kinds {
        for with in withs {
            let mut worst = 0f64;
            let turnings: &[(bool, bool, bool)] = match with {
                With::Nothing => {
                    &[(false, false, false), (true, false, false), (false, true, true), (true, true, false)]
                }
                With::BiasGradient => &[(true, false, false), (true, false, true)],
                _ => &[(false, false, false), (false, true, false)],
            };
            for &turned in turnings {
                for accumulate in [false, true] {
                    if accumulate && !matches!(with, With::Nothing | With::BiasGradient) {
                        continue;
                    }
                    let case = Case {
                        size: (128, 192, 256),
                        factors,
                        result,
                        turned,
                        with,
                        accumulate,
                        tf32,
                        pad: 8,
                    };
                    match product(case, dir.path()) {
                        Some(units) => worst = worst.max(units),
                        None => refused.push(format!("{case:?}")),
                    }
                }
            }
            println!("{factors:?}→{result:?} tf32 {tf32} {with:?}: {worst:.3} of the bound");
        }
    }
    println!("no algorithm: {}", refused.len());
    refused.iter().for_each(|case| println!("  {case}"));
}

#[test]
fn products_of_odd_shapes() {
    if !library() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (factors, result) in [(F32, F32), (Bf16, Bf16), (Bf16, F32), (F16, F16)] {
        for size in [(1, 1, 1), (37, 51, 73), (64, 50257 / 16, 96), (3, 257, 1000)] {
            for with in [With::Nothing, With::Bias] {
                let case = Case {
                    size,
                    factors,
                    result,
                    turned: (false, true, false),
                    with,
                    accumulate: false,
                    tf32: false,
                    pad: 0,
                };
                match product(case, dir.path()) {
                    Some(units) => println!("{size:?} {factors:?}→{result:?} {with:?}: {units:.3}"),
                    None => println!("{size:?} {factors:?}→{result:?} {with:?}: no algorithm"),
                }
            }
        }
    }
}

/// The lock that one device writes serves the next; what it lacks is refused where it is locked.
#[test]
fn what_was_measured_once_is_not_measured_again() {
    if !library() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (b, _) = timed_product((512, 512, 512), Bf16, Bf16, None, 1, (false, false));
    let make = |algorithms| {
        let options = DeviceOptions { algorithms, ..options(dir.path()) };
        Cuda::new(&b.program, &target(&b, 0), PTX.as_bytes(), &options).map(|d| d.describe())
    };
    assert_eq!(make(Algorithms::Locked).unwrap_err().code(), "R0704");
    assert!(make(Algorithms::Measure).unwrap().contains("1 products measured"));
    let first = std::fs::read(dir.path().join("dspc.lock")).unwrap();
    assert!(!make(Algorithms::Measure).unwrap().contains("measured"));
    assert!(!make(Algorithms::Locked).unwrap().contains("measured"));
    assert_eq!(std::fs::read(dir.path().join("dspc.lock")).unwrap(), first);
    assert!(make(Algorithms::Again).unwrap().contains("measured"));
}

/// A program that runs one product so many times.
fn timed_product(
    (m, n, k): (u64, u64, u64),
    factors: ElementType,
    result: ElementType,
    with: Option<With>,
    times: u64,
    turned: (bool, bool),
) -> (Builder, BufferId) {
    let mut b = Builder::new();
    let matrix = |b: &mut Builder, name: &str, rows: u64, cols: u64, dtype, transposed| {
        let buffer = b.buffer(name, dtype, rows * cols, 1, Role::Inner);
        Matrix { at: Place::of(buffer), stride: if transposed { rows } else { cols }, transposed }
    };
    let a = matrix(&mut b, "a", m, k, factors, turned.0);
    let w = matrix(&mut b, "b", k, n, factors, turned.1);
    let c = matrix(&mut b, "c", m, n, result, false);
    let pre = matrix(&mut b, "pre", m, n, result, false);
    let vector = b.buffer("vector", result, n, 1, Role::Inner);
    let fused = with.map(|with| match with {
        With::BiasGelu => Fused::BiasGelu { bias: Place::of(vector), pre },
        With::GeluGradient => Fused::GeluGradient { pre },
        With::BiasGradient => Fused::BiasGradient { sum: Place::of(vector) },
        With::Nothing | With::Bias => Fused::Bias { bias: Place::of(vector) },
    });
    let gemm = Gemm { m, n, k, a, b: w, c, accumulate: false, tf32: false, fused, own: None, epilogue: None };
    b.program.train.body = vec![repeat(Over::Turns, times, false, vec![instruction(Action::Gemm(gemm))])];
    (b, vector)
}

#[test]
#[ignore = "timings"]
fn timings_of_products() {
    if !library() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (t, d) = (16 * 1024, 1024);
    let cases = [
        ("qkv", (t, 3 * d, d), Some(With::Bias), (false, false)),
        ("proj", (t, d, d), Some(With::Bias), (false, false)),
        ("up + gelu", (t, 4 * d, d), Some(With::BiasGelu), (false, false)),
        ("up", (t, 4 * d, d), None, (false, false)),
        ("down", (t, d, 4 * d), Some(With::Bias), (false, false)),
        ("d down ∘ gelu′", (t, 4 * d, d), Some(With::GeluGradient), (false, true)),
        ("d up", (t, d, 4 * d), None, (false, true)),
        ("dw up + db", (d, 4 * d, t), Some(With::BiasGradient), (true, false)),
        ("dw up", (d, 4 * d, t), None, (true, false)),
        ("dw qkv", (d, 3 * d, t), None, (true, false)),
        ("logits chunk", (2048, 50_304, d), None, (false, true)),
        ("logits 50257", (2048, 50_257, d), None, (false, true)),
    ];
    for result in [Bf16, F32] {
        for (name, size, with, turned) in cases {
            if result == F32 && !name.starts_with("dw") {
                continue;
            }
            let (b, vector) = timed_product(size, Bf16, result, with, 50, turned);
            let begun = Instant::now();
            let mut device = match device(&b, dir.path()) {
                Ok(device) => device,
                Err(error) => {
                    println!("{name:16} → {result:?} {error}");
                    continue;
                }
            };
            let made = begun.elapsed().as_secs_f64();
            let stream = Stream { seed: 1, step: 0, site: 1 };
            let noise: Vec<u8> = (0..1 << 20)
                .flat_map(|i| half::bf16::from_f64(stream.uniform(i) - 0.5).to_le_bytes())
                .collect();
            for buffer in [BufferId(0), BufferId(1), BufferId(3)] {
                let all = b.program.buffers[buffer.0 as usize].elements
                    * element_bytes(b.program.buffers[buffer.0 as usize].dtype);
                let bytes: Vec<u8> = noise.iter().copied().cycle().take(all as usize).collect();
                device.write(buffer, 0, &bytes).unwrap();
            }
            let mut best = f64::INFINITY;
            for _ in 0..3 {
                let begun = Instant::now();
                device.run(EntryKind::Train).unwrap();
                device.read(vector, 0, 0, &mut [0; 2]).unwrap();
                best = best.min(begun.elapsed().as_secs_f64() / 50.0);
            }
            let (m, n, k) = size;
            let rate = 2.0 * (m * n * k) as f64 / best / 1e12;
            println!(
                "{name:16} → {result:?} {:8.1} us {rate:6.1} TFLOP/s  (device made in {made:.2} s)",
                best * 1e6
            );
        }
    }
}

#[test]
#[ignore = "timings"]
fn timings_of_graphs() {
    if !gpu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for turns in [1_000u64, 10_000, 50_000, 150_000, 250_000] {
        let mut b = Builder::new();
        let log = b.buffer("log", F32, turns + 2, 1, Role::Inner);
        let slots = b.buffer("slots", F32, 1, 1, Role::Inner);
        let visit = b.kernel("visit", 1, &[F32, F32], true, "");
        b.program.train.body =
            vec![repeat(Over::Turns, turns, false, vec![launch(visit, &[at(log), at(slots), Arg::Turn])])];
        let mut d = device(&b, dir.path()).unwrap();
        let before = d.device_bytes().unwrap();
        let mut run = || {
            let begun = Instant::now();
            d.write(log, 0, &[0; 4]).unwrap();
            d.run(EntryKind::Train).unwrap();
            d.read(slots, 0, 0, &mut [0; 4]).unwrap();
            begun.elapsed().as_secs_f64()
        };
        let (first, second, third) = (run(), run(), run());
        println!(
            "{turns:7} nodes: first {:.1} ms, then {:.2} us a node, {:.1} MiB",
            first * 1e3,
            second.min(third) * 1e6 / turns as f64,
            (d.device_bytes().unwrap() - before) as f64 / f64::from(1 << 20)
        );
    }
}

/// A row kernel that follows a product, on one device: its items are one launch after the product.
#[test]
fn a_row_kernel_follows_its_product() {
    if !library() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut b, _) = timed_product((64, 64, 64), F32, F32, None, 1, (false, false));
    let log = b.buffer("log", F32, 8, 1, Role::Inner);
    let visit = b.kernel("visit", 64, &[F32, F32], true, "");
    assert_eq!(visit, KernelId(0));
    let Action::Loop { body, .. } = &mut b.program.train.body[0].action else { unreachable!() };
    let Action::Gemm(gemm) = &mut body[0].action else { unreachable!() };
    gemm.epilogue = Some(Epilogue {
        kernel: visit,
        args: vec![at(log), Arg::At(gemm.c.at), Arg::Turn],
        rows_per_item: 1,
    });
    let mut d = device(&b, dir.path()).unwrap();
    for buffer in [BufferId(0), BufferId(1)] {
        d.write(buffer, 0, bytemuck::cast_slice(&[0.5f32; 64 * 64])).unwrap();
    }
    d.run(EntryKind::Train).unwrap();
    assert_eq!(floats(&d, log, 2), [1.0, 160.0], "10 · c[0, 0], c[0, 0] = 64 / 4");
}

/// Each rank's four elements a member are added up and gathered again, three times over.
fn over_nccl(world: u64, tree: bool, dir: &Path) -> Result<Vec<Vec<f32>>, Error> {
    use crate::communicator::nccl::OverNccl;
    use crate::communicator::{guarded, local};
    use crate::fixture::across;
    use dspc_program::{Collective, CollectiveKind, Part, Shard};
    let mut b = Builder::new();
    across(&mut b, world);
    let all = 4 * world;
    let gradient = b.buffer("gradient", F32, all, 1, Role::Inner);
    let sum = b.kernel(&format!("sum_{world}"), 1, &vec![F32; world as usize + 1], false, "");
    let whole = Place::of(gradient);
    let own = Place { shard: Some(Shard { group: 0, elements: 4 }), ..whole };
    let part = |from, to| vec![Part { from, to, elements: 4 }];
    let collective = |kind, parts| instruction(Action::Collective(Collective { kind, group: 0, parts }));
    b.program.train.body = vec![
        collective(CollectiveKind::ReduceScatter { sum, tree }, part(whole, own)),
        collective(CollectiveKind::AllGather, part(own, whole)),
    ];
    let nccl = crate::launch::nccl::library().map_err(Error::launch)?;
    let id = nccl.unique_id().map_err(Error::launch)?;
    let (target, options) = (target(&b, 0), options(dir));
    std::thread::scope(|scope| {
        let rank = |host: local::Local| {
            let (b, target, options) = (&b, &target, &options);
            scope.spawn(move || {
                let rank = host.rank();
                let communicator: Arc<dyn Communicator> = Arc::new(OverNccl::new(Arc::new(host), id, rank)?);
                guarded(&*communicator, || {
                    let communicator = Arc::clone(&communicator);
                    let mut d = Cuda::of_rank(&b.program, target, PTX.as_bytes(), options, communicator)?;
                    let values: Vec<f32> = (0..all).map(|i| (i + 10 * rank) as f32).collect();
                    for _ in 0..3 {
                        d.write(gradient, 0, bytemuck::cast_slice(&values))?;
                        d.run(EntryKind::Train)?;
                    }
                    Ok(floats(&d, gradient, all as usize))
                })
            })
        };
        let ranks: Vec<_> = local::ranks(world).into_iter().map(rank).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// With one card a world of one; with two a world of two as well.
#[test]
fn collectives_over_nccl_are_recorded_and_replayed() {
    if !gpu() {
        return;
    }
    if let Err(error) = crate::launch::nccl::library() {
        eprintln!("SKIPPED: {error}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let cards = driver::device::get_count().unwrap() as u64;
    for world in 1..=2 {
        if world > cards {
            eprintln!("SKIPPED: {world} ranks need as many cards");
            continue;
        }
        for tree in [true, false] {
            let begun = Instant::now();
            let seen = over_nccl(world, tree, dir.path()).unwrap();
            let ranks = |i: u64| (0..world).map(|rank| (i + 10 * rank) as f32).sum::<f32>();
            let expected: Vec<f32> = (0..4 * world).map(ranks).collect();
            assert!(seen.iter().all(|rank| *rank == expected), "{world} ranks, tree {tree}: {seen:?}");
            eprintln!("{world} rank(s) over NCCL, tree {tree}: {:.1} s", begun.elapsed().as_secs_f64());
        }
    }
}
