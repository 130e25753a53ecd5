//! Every optimizer's step: on one rank it is its formula on whole tensors, and on several, in every ZeRO stage, it is that of one rank.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod harness;

use std::collections::BTreeMap;

use dspc_program::Family;
use harness::{Compiled, compile, initial, read, results, sent, state, step};

const MODEL: &str = "
model m(tokens: ids[B, T], targets: ids[B, T], layers: L, width: D, vocab: V) -> loss {
  param wte: [V, D] ~ normal(0.02)
  x = wte[tokens]
  repeat L as h { x = x + linear(gelu(linear(norm(x), 3*D) as up), D) as down }
  cross_entropy(norm(x) @ transpose(wte), targets)
}
model = m(layers: 3, width: 24, vocab: data.vocab)
data { text: [\"a.txt\"], tokenizer: \"bytes\", sequence: 8 }
";

/// Learning rate and every table of the harness.
const LR: f64 = 0.5;
const TABLE: f64 = 0.5;
const DECAY: f64 = 0.1;

const RULES: [&str; 10] = [
    "adamw(lr: 0.5, betas: (0.9, 0.95), weight_decay: 0.1)",
    "adam(lr: 0.5, betas: (0.9, 0.95), weight_decay: 0.1)",
    "sgd(lr: 0.5, weight_decay: 0.1)",
    "sgd(lr: 0.5, momentum: 0.9, nesterov: true, weight_decay: 0.1)",
    "lion(lr: 0.5, weight_decay: 0.1)",
    "lamb(lr: 0.5, betas: (0.9, 0.95), weight_decay: 0.1, max_ratio: 3)",
    "adafactor(lr: 0.5, weight_decay: 0.1, clip: 0.7)",
    "adafactor(lr: 0.5, weight_decay: 0.1, scale_parameter: true)",
    "muon(lr: 0.5, adam_lr: 0.25, weight_decay: 0.1)",
    "muon(lr: 0.5, adam_lr: 0.25, weight_decay: 0.1, scale: match_adamw, nesterov: false)",
];

fn compiled(rule: &str, family: Family, (ranks, accumulation): (u64, u64), more: &str) -> Compiled {
    let batch = ranks * accumulation;
    compile(
        &format!(
            "{MODEL}optimizer = {rule}\nparallel = mesh(data: {ranks})\n{more}\n\
             train {{ batch: {batch}, micro_batch: 1, steps: 10, clip: 0.5 }}\n"
        ),
        family,
    )
}

fn rms(x: &[f64]) -> f64 {
    (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt()
}

/// A matrix `[rows, cols]`.
#[derive(Clone)]
struct Matrix {
    rows: usize,
    cols: usize,
    data: Vec<f64>,
}

impl Matrix {
    fn transposed(&self) -> Matrix {
        let data = (0..self.cols).flat_map(|j| (0..self.rows).map(move |i| self.data[i * self.cols + j]));
        Matrix { rows: self.cols, cols: self.rows, data: data.collect() }
    }

    fn times(&self, other: &Matrix) -> Matrix {
        let at = |i: usize, j: usize| {
            (0..self.cols).map(|k| self.data[i * self.cols + k] * other.data[k * other.cols + j]).sum()
        };
        let data = (0..self.rows).flat_map(|i| (0..other.cols).map(move |j| at(i, j)).collect::<Vec<f64>>());
        Matrix { rows: self.rows, cols: other.cols, data: data.collect() }
    }

    fn plus(&self, a: f64, other: &Matrix, b: f64) -> Matrix {
        let data = self.data.iter().zip(&other.data).map(|(x, y)| a * x + b * y).collect();
        Matrix { data, ..*self }
    }
}

/// Newton–Schulz as the paper lists it.
fn orthogonal(u: &Matrix) -> Matrix {
    let tall = u.rows > u.cols;
    let mut x = if tall { u.transposed() } else { u.clone() };
    let length = x.data.iter().map(|x| x * x).sum::<f64>().sqrt() + 1e-7;
    x.data.iter_mut().for_each(|x| *x /= length);
    for _ in 0..5 {
        let a = x.times(&x.transposed());
        let b = a.plus(-4.775, &a.times(&a), 2.0315);
        x = x.plus(3.4445, &b.times(&x), 1.0);
    }
    if tall { x.transposed() } else { x }
}

/// The parameter after the first step, by the formulas of docs/optimizers.md.
fn by_formula(rule: &str, p: &[f64], g: &[f64], dims: &[u64], hidden: bool) -> Vec<f64> {
    let (name, _) = rule.split_once('(').unwrap();
    let decay = if dims.len() == 2 { DECAY } else { 0.0 };
    let each = |f: &dyn Fn(f64, f64) -> f64| p.iter().zip(g).map(|(p, g)| f(*p, *g)).collect::<Vec<f64>>();
    let adam = |g: f64, eps: f64| {
        let (m, v) = ((1.0 - 0.9) * g, (1.0 - 0.95) * g * g);
        (m / TABLE) / ((v / TABLE).sqrt() + eps)
    };
    match name {
        "adamw" => each(&|p, g| p * (1.0 - LR * decay) - LR * adam(g, 1e-8)),
        "adam" => each(&|p, g| p - LR * adam(g + decay * p, 1e-8)),
        "sgd" => each(&|p, g| {
            let g = g + decay * p;
            p - LR * if rule.contains("nesterov") { g + 0.9 * g } else { g }
        }),
        "lion" => each(&|p, g| p * (1.0 - LR * decay) - LR * if g == 0.0 { 0.0 } else { g.signum() }),
        "lamb" => {
            let u = each(&|p, g| adam(g, 1e-6) + decay * p);
            let (p_length, u_length) = (rms(p), rms(&u));
            let zero = p_length == 0.0 || u_length == 0.0;
            let ratio = if zero { 1.0 } else { (p_length / u_length).clamp(0.01, 3.0) };
            p.iter().zip(&u).map(|(p, u)| p - LR * ratio * u).collect()
        }
        "adafactor" => {
            let s: Vec<f64> = g.iter().map(|g| g * g + 1e-30).collect();
            let v: Vec<f64> = if let [rows, cols] = *dims {
                let (rows, cols) = (rows as usize, cols as usize);
                let r: Vec<f64> =
                    s.chunks(cols).map(|row| (1.0 - TABLE) * row.iter().sum::<f64>() / cols as f64).collect();
                let c =
                    |j: usize| (1.0 - TABLE) * (0..rows).map(|i| s[i * cols + j]).sum::<f64>() / rows as f64;
                let mean = r.iter().sum::<f64>() / rows as f64;
                (0..rows * cols).map(|i| r[i / cols] * c(i % cols) / mean).collect()
            } else {
                s.iter().map(|s| (1.0 - TABLE) * s).collect()
            };
            let u: Vec<f64> = g.iter().zip(&v).map(|(g, v)| g / v.sqrt()).collect();
            let clip = if rule.contains("clip") { 0.7 } else { 1.0 };
            let rate = LR * if rule.contains("scale_parameter") { rms(p).max(1e-3) } else { 1.0 };
            let by = (rms(&u) / clip).max(1.0);
            p.iter().zip(&u).map(|(p, u)| p * (1.0 - rate * decay) - rate / by * u).collect()
        }
        _ if !hidden => each(&|p, g| {
            // Half the rate of the matrices.
            p * (1.0 - 0.25 * decay) - 0.25 * adam(g, 1e-10)
        }),
        _ => {
            let (rows, cols) = (dims[0] as usize, dims[1] as usize);
            let share = if rule.contains("nesterov: false") { 0.05 } else { 0.05 + 0.95 * 0.05 };
            let u = Matrix { rows, cols, data: g.iter().map(|g| share * g).collect() };
            let scale = match rule.contains("match_adamw") {
                true => 0.2 * (rows.max(cols) as f64).sqrt(),
                false => (cols as f64 / rows as f64).max(1.0).sqrt(),
            };
            let x = orthogonal(&u);
            p.iter().zip(&x.data).map(|(p, x)| p * (1.0 - LR * decay) - LR * scale * x).collect()
        }
    }
}

fn assert_close(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let size = rms(expected).max(1e-3);
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= 1e-8 * size, "{what}[{i}] is {f}, not {e}");
    }
}

#[test]
fn a_step_on_one_rank_is_the_formula_on_whole_tensors() {
    for rule in RULES {
        for family in [Family::Cpu, Family::Cuda] {
            let compiled = compiled(rule, family, (1, 1), "");
            let machines = step(&compiled);
            let (program, machine) = (&compiled.program, &machines[0]);
            assert_eq!(dspc_audit::audit(program), vec![], "{rule}");
            let factor = read(machine, "grad_factor", 0)[0];
            assert!(factor < 1.0, "it clips");
            let after: BTreeMap<String, Vec<f64>> = state(&machines).into_iter().collect();
            for (param, (name, before)) in program.params.iter().zip(initial(program)) {
                let of_all_turns = match name.strip_prefix("h.") {
                    Some(rest) => format!("h.*.{}", rest.split_once('.').unwrap().1),
                    None => name.clone(),
                };
                let g = read(machine, &format!("{of_all_turns}.grad"), param.slot);
                let g: Vec<f64> = g.iter().map(|g| g * factor).collect();
                let hidden = name.contains(".up.weight") || name.contains(".down.weight");
                let expected = by_formula(rule, &before, &g, &param.dims, hidden);
                assert_close(&format!("{name} under {rule}"), &after[&name], &expected);
            }
        }
    }
}

/// `ranks` with `accumulation` do what one rank with as many micro-batches does.
fn means_one_rank(rule: &str, family: Family, (ranks, accumulation): (u64, u64), more: &str, zero: &str) {
    let one = compiled(rule, family, (1, ranks * accumulation), more);
    let many = compiled(rule, family, (ranks, accumulation), &format!("{more}\n{zero}"));
    let (one, many) = (step(&one), step(&many));
    let what = |part: &str| format!("{part} of {rule} on {ranks} × {accumulation}, {zero}");
    assert_close(&what("results"), &results(&many), &results(&one));
    for ((name, found), (_, expected)) in state(&many).iter().zip(state(&one)) {
        assert_close(&what(name), found, &expected);
    }
}

const STAGES: [&str; 6] = [
    "",
    "zero = stage(1)",
    "zero = stage(1, reduce_bucket: 1, gather_bucket: 1)",
    "zero = stage(2)",
    "zero = stage(3)",
    "zero = stage(3, keep_below: 0, reduce_bucket: 1, gather_bucket: 1)",
];

#[test]
fn a_step_over_ranks_is_that_of_one_rank() {
    for rule in RULES {
        for zero in STAGES {
            means_one_rank(rule, Family::Cpu, (2, 1), "", zero);
            means_one_rank(rule, Family::Cuda, (3, 2), "", zero);
            means_one_rank(rule, Family::Cpu, (2, 2), "precision = bf16", zero);
        }
    }
}

/// The state's bits after a step, everything in one.
fn bits(compiled: &Compiled) -> Vec<(String, Vec<u64>)> {
    let state = state(&step(compiled));
    state.into_iter().map(|(name, values)| (name, values.iter().map(|x| x.to_bits()).collect())).collect()
}

#[test]
fn where_it_is_asked_for_every_layout_has_the_same_bits() {
    for rule in RULES {
        let deterministic = "deterministic = true";
        let one = bits(&compiled(rule, Family::Cpu, (1, 4), deterministic));
        for zero in STAGES {
            for layout in [(2, 2), (4, 1)] {
                let many = compiled(rule, Family::Cpu, layout, &format!("{deterministic}\n{zero}"));
                for ((name, found), (_, expected)) in bits(&many).iter().zip(&one) {
                    assert!(found == expected, "{name} under {rule} on {layout:?}, {zero}");
                }
            }
        }
    }
}

#[test]
fn what_the_program_sends_is_what_the_plan_says() {
    for rule in RULES {
        // In stage 3 a bucket may be at hand already.
        for zero in &STAGES[..4] {
            let compiled = compiled(rule, Family::Cpu, (2, 1), zero);
            let planned = dspc_plan::elements_sent(&compiled.plan);
            let program = &compiled.program;
            let sent = sent(program, &program.train.body, (0, 0), |_| true);
            assert_eq!(sent, planned.0 + planned.1, "{rule}, {zero}");
        }
    }
}

#[test]
fn groups_have_their_own_pace_and_frozen_ones_do_not_move() {
    let groups = "groups: [group(\"wte\", freeze: true), group(\"*.bias\", weight_decay: 0.2, lr: 0.5), group(\"*norm.weight\", lr: 0)]";
    for rule in RULES {
        let grouped = format!("{}, {groups})", rule.strip_suffix(')').unwrap());
        let compiled = compiled(&grouped, Family::Cpu, (1, 1), "");
        let after: BTreeMap<String, Vec<f64>> = state(&step(&compiled)).into_iter().collect();
        for (name, before) in initial(&compiled.program) {
            let frozen = name == "wte" || name.ends_with("norm.weight");
            assert_eq!(after[&name] == before, frozen, "{name} under {grouped}");
        }
        for zero in STAGES {
            means_one_rank(&grouped, Family::Cpu, (2, 1), "", zero);
            means_one_rank(&grouped, Family::Cpu, (2, 2), "precision = bf16", zero);
        }
    }
}

#[test]
fn moments_are_named_as_pytorch_names_them_and_have_their_shapes() {
    let moments = |rule: &str, param: &str| -> Vec<(String, Vec<u64>)> {
        let program = compiled(rule, Family::Cpu, (1, 1), "").program;
        let found = program.params.iter().find(|p| p.name == param).unwrap();
        found.moments.iter().map(|m| (m.name.clone(), m.dims.clone())).collect()
    };
    let named = |name: &str, dims: &[u64]| (name.to_string(), dims.to_vec());
    let up = "h.1.up.weight";
    assert_eq!(moments(RULES[0], up), [named("exp_avg", &[24, 72]), named("exp_avg_sq", &[24, 72])]);
    assert_eq!(moments(RULES[2], up), []);
    assert_eq!(moments(RULES[3], up), [named("momentum_buffer", &[24, 72])]);
    assert_eq!(moments(RULES[4], up), [named("exp_avg", &[24, 72])]);
    assert_eq!(moments(RULES[6], up), [named("exp_avg_sq_row", &[24]), named("exp_avg_sq_col", &[72])]);
    assert_eq!(moments(RULES[6], "h.1.up.bias"), [named("exp_avg_sq", &[72])]);
    assert_eq!(moments(RULES[8], up), [named("momentum_buffer", &[24, 72])]);
    assert_eq!(moments(RULES[8], "wte").len(), 2);
}

#[test]
fn the_plan_counts_the_bytes_of_what_is_kept() {
    for rule in RULES {
        let compiled = compiled(rule, Family::Cpu, (1, 1), "");
        let kept = |role| {
            let buffers = compiled.program.buffers.iter().filter(|b| b.role == role);
            buffers.map(|b| b.elements * b.slots * 4).sum::<u64>()
        };
        let planned = dspc_plan::state_bytes(&compiled.plan);
        assert_eq!(planned.moments, kept(dspc_program::Role::Moment), "{rule}");
    }
}
