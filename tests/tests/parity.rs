//! The whole small GPT-2 against an independent PyTorch run (`tests/parity/reference.py`): the program in f64 against PyTorch's f64, and the
//! compiled program against both.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use dspc_runtime::Session;
use dspc_schedule::Machine;
use dspc_tests::{Compiled, compile, file, fill, fill_params, hash, hashed, read};
use serde_json::Value;

const STEPS: u64 = 20;
const BATCH: u64 = 3;
const SEQUENCE: u64 = 24;
const IDS_SITE: u64 = 1000;

fn reference() -> Value {
    serde_json::from_str(&std::fs::read_to_string(file("parity/gpt2_small.json")).unwrap()).unwrap()
}

/// Ids and targets of a step; a target at every seventh place is ignored.
fn ids(step: u64) -> (Vec<i32>, Vec<i32>) {
    let id = |i: u64| (hash(step * BATCH * (SEQUENCE + 1) + i, IDS_SITE) % 67) as i32;
    let places = || (0..BATCH).flat_map(|b| (0..SEQUENCE).map(move |t| (b, t)));
    let tokens = places().map(|(b, t)| id(b * (SEQUENCE + 1) + t)).collect();
    let ignored = |b: u64, t: u64| (b * SEQUENCE + t) % 7 == 3;
    let target = |(b, t)| if ignored(b, t) { -100 } else { id(b * (SEQUENCE + 1) + t + 1) };
    (tokens, places().map(target).collect())
}

fn weight(reference: &Value, name: &str, element: u64) -> f32 {
    let row = reference["params"].as_array().unwrap().iter().find(|r| r["name"] == name).unwrap();
    let number = |key: &str| row[key].as_f64().unwrap();
    hashed(element, number("site") as u64, number("scale"), number("offset"))
}

/// A key's bias has no gradient by mathematics: its elements are left out, as in the reference.
fn is_key_bias(name: &str, element: usize) -> bool {
    name.ends_with("c_attn.bias") && (32..64).contains(&element)
}

/// Sum, sum of squares and samples of a tensor against the reference's, each in its own unit.
fn assert_figures(what: &str, name: &str, values: &[f64], expected: &Value, samples: &Value, tolerance: f64) {
    let kept: Vec<f64> =
        values.iter().enumerate().filter(|(e, _)| !is_key_bias(name, *e)).map(|(_, x)| *x).collect();
    let count = kept.len() as f64;
    let square = expected["sum_of_squares"].as_f64().unwrap();
    let check = |what: &str, got: f64, want: f64, unit: f64| {
        assert!((got - want).abs() <= tolerance * unit, "{what}: {got}, not {want} (unit {unit:e})");
    };
    check(
        &format!("{what} {name}: sum"),
        kept.iter().sum(),
        expected["sum"].as_f64().unwrap(),
        (count * square).sqrt(),
    );
    check(&format!("{what} {name}: squares"), kept.iter().map(|x| x * x).sum(), square, square);
    for (at, want) in samples.as_array().unwrap().iter().zip(expected["sample"].as_array().unwrap()) {
        let at = at.as_u64().unwrap() as usize;
        check(&format!("{what} {name}[{at}]"), values[at], want.as_f64().unwrap(), (square / count).sqrt());
    }
}

fn for_each_param(compiled: &Compiled, reference: &Value, mut f: impl FnMut(usize, &str, &Value)) {
    let rows = reference["params"].as_array().unwrap();
    assert_eq!(compiled.lowered.program.params.len(), rows.len());
    for (i, param) in compiled.lowered.program.params.iter().enumerate() {
        let row = rows.iter().find(|r| r["name"] == param.name.as_str()).unwrap();
        f(i, &param.name, &row["sample"]);
    }
}

#[test]
fn the_program_in_f64_is_pytorch_in_f64() {
    let (compiled, reference) = (compile("parity/gpt2_small.dsp"), reference());
    let program = &compiled.lowered.program;
    let mut machine = Machine::new(program, &compiled.lowered.kernels.kernels);
    fill_params(&mut machine, program, |i, e| f64::from(weight(&reference, &program.params[i].name, e)));
    fill(&mut machine, "table.lr", 0, &[1e-3; STEPS as usize]);
    for (table, beta) in [("table.bias1", 0.9f64), ("table.bias2", 0.99)] {
        let values: Vec<f64> = (1..=STEPS).map(|t| 1.0 - beta.powi(t as i32)).collect();
        fill(&mut machine, table, 0, &values);
    }
    fill(&mut machine, "applied_steps", 0, &[0.0]);
    let expected = &reference["f64"];
    for step in 0..STEPS {
        let (tokens, targets) = ids(step);
        let as_f64 = |ids: &[i32]| ids.iter().map(|i| f64::from(*i)).collect::<Vec<f64>>();
        fill(&mut machine, "tokens", 0, &as_f64(&tokens));
        fill(&mut machine, "targets", 0, &as_f64(&targets));
        let count = targets.iter().filter(|t| **t >= 0).count();
        fill(&mut machine, "inv_targets", 0, &[1.0 / count as f64]);
        machine.run(&program.train.body, 0, 0);
        let loss = read(&machine, "loss", 0)[0];
        let want = expected["losses"][step as usize].as_f64().unwrap();
        assert!((loss - want).abs() <= 1e-9 * want, "step {step}: loss {loss}, not {want}");
        if step == 0 {
            for_each_param(&compiled, &reference, |i, name, samples| {
                let param = &program.params[i];
                let buffer = format!("{}.grad", program.buffers[param.buffer.0 as usize].name);
                let gradient = read(&machine, &buffer, param.slot);
                assert_figures("gradient of", name, &gradient, &expected["grads"][name], samples, 1e-9);
            });
        }
    }
    for_each_param(&compiled, &reference, |i, name, samples| {
        let param = &program.params[i];
        let values = read(&machine, &program.buffers[param.buffer.0 as usize].name, param.slot);
        assert_figures("after 20 steps", name, &values, &expected["final"][name], samples, 1e-7);
    });
}

#[test]
fn the_compiled_program_trains_as_pytorch_does() {
    let (compiled, reference) = (compile("parity/gpt2_small.dsp"), reference());
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("gpt2.dspx");
    dspc::build::write(std::slice::from_ref(&compiled.lowered), &["cpu".to_string()], &directory).unwrap();
    let artifact = dspc_runtime::artifact::read(&directory, Default::default()).unwrap();
    let mut session = Session::new(&artifact.program, artifact.cpu(2).unwrap()).unwrap();
    for (i, param) in artifact.program.params.iter().enumerate() {
        let elements: u64 = param.dims.iter().product();
        let values: Vec<f32> = (0..elements).map(|e| weight(&reference, &param.name, e)).collect();
        session.set_param(i, &values).unwrap();
    }
    let expected = &reference["f64"];
    for step in 0..STEPS {
        let (tokens, targets) = ids(step);
        let stats = session.step(&tokens, &targets).unwrap();
        let want = expected["losses"][step as usize].as_f64().unwrap();
        let tolerance = if step == 0 { 1e-6 } else { 1e-5 };
        let loss = f64::from(stats.loss);
        assert!((loss - want).abs() <= tolerance * want, "step {step}: loss {loss}, not {want}");
        let want = expected["grad_norms"][step as usize].as_f64().unwrap();
        let norm = f64::from(stats.grad_norm.unwrap());
        assert!((norm - want).abs() <= 1e-5 * want, "step {step}: norm {norm}, not {want}");
        if step == 0 {
            for_each_param(&compiled, &reference, |i, name, samples| {
                let gradient: Vec<f64> = session.gradient(i).unwrap().into_iter().map(f64::from).collect();
                assert_figures("gradient of", name, &gradient, &expected["grads"][name], samples, 1e-5);
            });
        }
    }
    for_each_param(&compiled, &reference, |i, name, samples| {
        let values: Vec<f64> = session.param(i).unwrap().into_iter().map(f64::from).collect();
        assert_figures("after 20 steps", name, &values, &expected["final"][name], samples, 1e-5);
    });
}
