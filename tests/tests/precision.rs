//! Mixed precision on the CPU: compiled programs against the graph with every value rounded to its type, against single precision, and
//! the loss scale against DeepSpeed's rules.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::path::Path;
use std::sync::atomic::AtomicBool;

use dspc_graph::interpret::{Inputs, Tensor, interpret_as_stored};
use dspc_runtime::train::RunOptions;
use dspc_runtime::{Artifact, Session, Silent};
use dspc_tests::{Compiled, compile_text, file, hash, hashed, scale_and_offset};

const SPEC: &str = "parity/gpt2_small.dsp";
const BATCH: u64 = 3;
const SEQUENCE: u64 = 24;
const VOCAB: u32 = 67;

/// The small GPT-2 in a precision.
fn compiled(precision: &str) -> Compiled {
    let text = std::fs::read_to_string(file(SPEC)).unwrap();
    compile_text(&file(SPEC), &format!("{text}\nprecision = {precision}\n"))
}

fn artifact(compiled: &Compiled, folder: &Path) -> Artifact {
    let directory = folder.join("gpt2.dspx");
    dspc::build::write(std::slice::from_ref(&compiled.lowered), &["cpu".to_string()], &directory).unwrap();
    dspc_runtime::artifact::read(&directory, Default::default()).unwrap()
}

fn weight(name: &str, site: u64, element: u64) -> f32 {
    let (scale, offset) = scale_and_offset(name);
    hashed(element, site, scale, offset)
}

/// With weights that follow from names and places.
fn session(compiled: &Compiled) -> Session {
    let folder = tempfile::tempdir().unwrap();
    let artifact = artifact(compiled, folder.path());
    let mut session = Session::new(&artifact.program, artifact.cpu(2).unwrap()).unwrap();
    for (i, param) in artifact.program.params.iter().enumerate() {
        let elements = param.dims.iter().product();
        let values: Vec<f32> = (0..elements).map(|e| weight(&param.name, i as u64, e)).collect();
        session.set_param(i, &values).unwrap();
    }
    session
}

/// Ids of a step, and those that follow, which a step's position tells: something to learn.
fn ids(step: u64) -> (Vec<i32>, Vec<i32>) {
    let id = |b: u64, t: u64| ((hash(step * BATCH + b, 9) % VOCAB + 5 * t as u32) % VOCAB) as i32;
    let places = || (0..BATCH).flat_map(|b| (0..SEQUENCE).map(move |t| (b, t)));
    (places().map(|(b, t)| id(b, t)).collect(), places().map(|(b, t)| id(b, t + 1)).collect())
}

fn losses(precision: &str, steps: u64) -> Vec<f32> {
    let mut session = session(&compiled(precision));
    let step = |step| {
        let (tokens, targets) = ids(step);
        let stats = session.step(&tokens, &targets).unwrap();
        assert!(stats.finite, "{precision}, step {step}: {stats:?}");
        stats.loss
    };
    (0..steps).map(step).collect()
}

#[test]
fn sixteen_bits_learn_as_single_precision_does() {
    const STEPS: u64 = 60;
    let single = losses("fp32", STEPS);
    assert!(single[STEPS as usize - 1] < 0.8 * single[0], "{single:?}");
    let cases = [
        ("tf32", 0.0),
        ("bf16", 0.02),
        ("bf16(accumulate: bf16)", 0.02),
        ("fp16(loss_scale: 1024)", 0.003),
        ("fp16(loss_scale: dynamic(start: 1024))", 0.003),
    ];
    for (precision, tolerance) in cases {
        for (step, (found, expected)) in losses(precision, STEPS).iter().zip(&single).enumerate() {
            let far = (found - expected).abs() > tolerance * expected;
            assert!(!far, "{precision}, step {step}: {found}, and {expected} in single precision");
        }
    }
}

/// Loss and gradients of the graph with every value rounded to its type; gradients by name, without the loss scale.
fn by_graph(compiled: &Compiled, scale: f64) -> (f64, Vec<(String, Vec<f64>)>) {
    let (train, program) = (&compiled.lowered.plan.train, &compiled.lowered.program);
    let of_turn = |param: &dspc_graph::ir::Param, turn: u64| {
        let dims: Vec<usize> = param.ty.dims.iter().map(|d| d.size as usize).collect();
        let name = param.name_in(turn);
        let site = program.params.iter().position(|p| p.name == name).unwrap() as u64;
        Tensor::from_fn(&dims, |e| f64::from(weight(&name, site, e as u64)))
    };
    let params = train.graph.params.iter();
    let params = params.map(|p| (0..p.turns.unwrap_or(1)).map(|t| of_turn(p, t)).collect()).collect();
    let (tokens, targets) = ids(0);
    let tensor = |ids: Vec<i32>| Tensor {
        dims: vec![BATCH as usize, SEQUENCE as usize],
        data: ids.into_iter().map(f64::from).collect(),
    };
    let inputs = Inputs {
        tokens: tensor(tokens),
        targets: tensor(targets),
        inv_targets: 1.0 / (BATCH * SEQUENCE) as f64,
        rng: [0; 4],
        loss_scale: scale,
        params,
    };
    let results = interpret_as_stored(&train.graph, &inputs);
    let mut gradients = vec![];
    for gradient in &train.gradients {
        let param = train.graph.param(gradient.param);
        for turn in 0..param.turns.unwrap_or(1) {
            let mut sum = vec![0.0; param.ty.elements() as usize];
            for value in &gradient.contributions {
                let term =
                    if param.turns.is_some() { results.get_in(*value, turn) } else { results.get(*value) };
                sum.iter_mut().zip(&term.unwrap().data).for_each(|(s, t)| *s += t / scale);
            }
            gradients.push((param.name_in(turn), sum));
        }
    }
    (results.get(train.graph.loss.unwrap()).unwrap().data[0], gradients)
}

/// Both round what is stored, and the compiled program rounds less often; a unit in the last place is 2⁻⁸ or 2⁻¹¹, and errors of some twenty
/// roundings along a path add up as a random walk does.
#[test]
fn a_compiled_step_is_the_graph_with_every_value_rounded() {
    let cases =
        [("bf16", 1.0, 0.04), ("bf16(accumulate: bf16)", 1.0, 0.04), ("fp16(loss_scale: 512)", 512.0, 0.005)];
    for (precision, scale, tolerance) in cases {
        let compiled = compiled(precision);
        let (loss, gradients) = by_graph(&compiled, scale);
        let mut session = session(&compiled);
        let (tokens, targets) = ids(0);
        let stats = session.step(&tokens, &targets).unwrap();
        assert!(
            (f64::from(stats.loss) - loss).abs() < 0.1 * tolerance * loss,
            "{precision}: {stats:?}, {loss}"
        );
        let names: Vec<String> = session.program().params.iter().map(|p| p.name.clone()).collect();
        for (name, expected) in gradients {
            let index = names.iter().position(|n| *n == name).unwrap();
            let found = session.gradient(index).unwrap();
            let size = |xs: &mut dyn Iterator<Item = f64>| xs.map(|x| x * x).sum::<f64>().sqrt();
            let error = size(&mut found.iter().zip(&expected).map(|(f, e)| f64::from(*f) / scale - e));
            let whole = size(&mut expected.iter().copied());
            // A key's bias has no gradient by mathematics: what is there is rounding.
            if !name.ends_with("c_attn.bias") {
                assert!(error <= tolerance * whole, "{precision}, {name}: {error:e} of {whole:e}");
            }
        }
        let norm = f64::from(stats.grad_norm.unwrap());
        assert!(norm > 0.01 && norm < 100.0, "the norm is that without the scale: {norm}");
    }
}

/// The scale after each step by DeepSpeed's rules, from which steps overflowed.
fn by_deepspeed(start: f64, window: i64, hysteresis: i64, overflows: &[bool]) -> Vec<f64> {
    let (mut scale, mut last, mut left) = (start, -1, hysteresis);
    let step = |(iteration, overflow): (usize, &bool)| {
        let iteration = iteration as i64;
        if *overflow {
            if left == 1 {
                scale = (scale / 2.0).max(1.0);
            } else {
                left -= 1;
            }
            last = iteration;
        } else if iteration - last > 1 && (iteration - last - 1) % window == 0 {
            scale *= 2.0;
            left = hysteresis;
        }
        scale
    };
    overflows.iter().enumerate().map(step).collect()
}

/// A scale so large that gradients overflow: steps are skipped without a trace, their tensor is named, and the scale finds its way.
#[test]
fn the_loss_scale_goes_as_deepspeeds() {
    let start = f64::from(1u32 << 26);
    let compiled = compiled("fp16(loss_scale: dynamic(start: 67108864, window: 4, hysteresis: 2, min: 1))");
    let mut session = session(&compiled);
    let (mut overflows, mut scales) = (vec![], vec![]);
    for step in 0..40 {
        let before = session.param(3).unwrap();
        let (tokens, targets) = ids(step);
        let stats = session.step(&tokens, &targets).unwrap();
        overflows.push(!stats.finite);
        scales.push(f64::from(stats.loss_scale.unwrap()));
        assert_eq!(session.param(3).unwrap() == before, !stats.finite, "step {step}: {stats:?}");
        assert!(stats.loss.is_finite() && !stats.scale_exhausted);
        match stats.first_bad {
            Some(row) => assert!(!stats.finite && !session.at_grid_row(row).is_empty(), "{stats:?}"),
            None => assert!(stats.finite, "{stats:?}"),
        }
    }
    assert_eq!(scales, by_deepspeed(start, 4, 2, &overflows));
    let skipped = overflows.iter().filter(|o| **o).count();
    assert!((2..30).contains(&skipped), "{overflows:?}");
    assert_eq!(session.steps(), (40, 40 - skipped as u64));
}

#[test]
fn an_overflow_at_the_lowest_scale_ends_the_run() {
    let compiled = compiled("fp16(loss_scale: dynamic(start: 1e12, hysteresis: 1, min: 1e12))");
    let folder = tempfile::tempdir().unwrap();
    let artifact = artifact(&compiled, folder.path());
    let error = train(&artifact, folder.path(), "run", false, None).unwrap_err();
    assert_eq!((error.code(), error.exit_code()), ("R0503", 6), "{error}");
    assert!(error.to_string().contains("of step 1 overflows at the lowest loss scale"), "{error}");
    assert!(error.to_string().contains('`'), "a tensor is named: {error}");
}

fn train(
    artifact: &Artifact,
    folder: &Path,
    name: &str,
    resume: bool,
    max_steps: Option<u64>,
) -> Result<(), dspc_runtime::Error> {
    let options = RunOptions {
        run_dir: folder.join(name),
        data_root: file(SPEC).parent().unwrap().into(),
        cache_dir: folder.join("cache"),
        resume,
        max_steps,
        save: true,
        lock: folder.join("dspc.lock"),
        algorithms: Default::default(),
    };
    let stop = AtomicBool::new(false);
    dspc_runtime::train::run_reported(artifact, &options, &stop, &mut Silent).map(|_| ())
}

/// Masters, moments, the scale and its counters are in the checkpoint, and the copy in half precision is made anew.
#[test]
fn a_run_in_half_precision_goes_on_with_the_same_bits() {
    let compiled = compiled("fp16(loss_scale: dynamic(start: 67108864, window: 3, hysteresis: 2))");
    let folder = tempfile::tempdir().unwrap();
    let artifact = artifact(&compiled, folder.path());
    train(&artifact, folder.path(), "whole", false, None).unwrap();
    train(&artifact, folder.path(), "parts", false, Some(9)).unwrap();
    train(&artifact, folder.path(), "parts", true, None).unwrap();
    for name in ["model.safetensors", "dspc/optimizer.safetensors"] {
        let read =
            |run: &str| std::fs::read(folder.path().join(run).join("checkpoint-20").join(name)).unwrap();
        assert_eq!(read("whole"), read("parts"), "{name}");
    }
}
