//! A step means the same on every number of ranks and in every ZeRO stage: parameters, moments, losses and the norm are those of one rank that sees all
//! micro-batches, in f64, up to the order of sums.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod harness;

use dspc_program::{Family, Role};
use dspc_schedule::run_ranks;
use harness::{Compiled, compile, results, state, step};

const LAYERS: [(&str, &str); 3] = [
    ("bigram", include_str!("../../../tests/suite/layers/bigram.dsp")),
    ("gpt2", include_str!("../../../tests/suite/layers/gpt2.dsp")),
    ("llama", include_str!("../../../tests/suite/layers/llama.dsp")),
];

/// A spec of the suite with a batch of its own, over so many ranks.
fn compiled(name: &str, family: Family, ranks: u64, accumulation: u64, more: &str) -> Compiled {
    let text = match LAYERS.iter().find(|(layer, _)| *layer == name) {
        Some((_, text)) => (*text).to_string(),
        None => LAYERS[1].1.replace("layers: 2", "layers: 8"),
    };
    let (head, _) = text.split_once("train {").unwrap();
    let batch = ranks * accumulation;
    let text = format!(
        "{head}parallel = mesh(data: {ranks})\n{more}\ntrain {{\n  batch: {batch}\n  micro_batch: 1\n  steps: 10\n}}\n"
    );
    compile(&text, family)
}

fn assert_close(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let size = (expected.iter().map(|x| x * x).sum::<f64>() / expected.len() as f64).sqrt();
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= 1e-9 * size.max(1e-3), "{what}[{i}] is {f}, not {e}");
    }
}

/// `ranks` with `accumulation` do what one rank with as many micro-batches does.
fn means_one_rank(name: &str, family: Family, (ranks, accumulation): (u64, u64), more: &str, zero: &str) {
    let one = compiled(name, family, 1, ranks * accumulation, more);
    let many = compiled(name, family, ranks, accumulation, &format!("{more}\n{zero}"));
    let (one, many) = (step(&one), step(&many));
    let what = |part: &str| format!("{part} of {name} on {ranks} × {accumulation}, {zero}");
    assert_close(&what("results"), &results(&many), &results(&one));
    for ((name, found), (_, expected)) in state(&many).iter().zip(state(&one)) {
        assert_close(&what(name), found, &expected);
    }
}

fn means_one_rank_everywhere(zero: &str) {
    for (name, _) in LAYERS {
        for family in [Family::Cpu, Family::Cuda] {
            for layout in [(2, 1), (3, 1), (4, 1), (2, 2), (3, 3)] {
                means_one_rank(name, family, layout, "", zero);
            }
        }
        for precision in ["bf16", "fp16"] {
            means_one_rank(name, Family::Cpu, (2, 2), &format!("precision = {precision}"), zero);
        }
    }
}

#[test]
fn stage_0() {
    means_one_rank_everywhere("");
    // Buckets that travel alone.
    means_one_rank("gpt2", Family::Cpu, (2, 1), "", "zero = stage(0)");
}

#[test]
fn stage_1() {
    means_one_rank_everywhere("zero = stage(1)");
    means_one_rank_everywhere("zero = stage(1, reduce_bucket: 1, gather_bucket: 1)");
}

#[test]
fn stage_2() {
    means_one_rank_everywhere("zero = stage(2)");
    means_one_rank_everywhere("zero = stage(2, reduce_bucket: 1, gather_bucket: 1)");
    means_one_rank_everywhere("zero = stage(2, reduce_bucket: 1, gather_bucket: 1, overlap: false)");
}

#[test]
fn stage_3() {
    means_one_rank_everywhere("zero = stage(3)");
    means_one_rank_everywhere("zero = stage(3, keep_below: 0)");
    means_one_rank_everywhere("zero = stage(3, reduce_bucket: 1, gather_bucket: 1, keep_below: 20)");
    means_one_rank_everywhere(
        "zero = stage(3, reduce_bucket: 1, gather_bucket: 1, keep_below: 0, overlap: false)",
    );
}

/// Not one bit of parameters, moments, losses and the norm depends on how eight micro-batches are divided.
#[test]
fn deterministic() {
    for name in ["gpt2", "llama"] {
        let bits = |layout: (u64, u64), stage: u64, keep: u64| {
            let zero = format!(
                "zero = stage({stage}, reduce_bucket: 5000, keep_below: {keep})\ndeterministic = true"
            );
            let compiled = compiled(name, Family::Cpu, layout.0, layout.1, &zero);
            let machines = step(&compiled);
            let all = state(&machines).into_iter().flat_map(|(_, values)| values);
            all.chain(results(&machines)).map(f64::to_bits).collect::<Vec<u64>>()
        };
        let expected = bits((1, 8), 0, 0);
        for stage in 0..4 {
            for layout in [(8, 1), (4, 2), (2, 4), (1, 8)] {
                assert!(bits(layout, stage, 0) == expected, "{name}: {layout:?}, ZeRO stage {stage}");
            }
        }
        means_one_rank(name, Family::Cpu, (4, 2), "", "zero = stage(3, keep_below: 0)\ndeterministic = true");
    }
}

/// Sums of bf16 gradients are rounded at every node, on one rank as on many; in f64, whose other sums are exact enough to be the same.
#[test]
fn every_sum_of_16_bits_is_rounded() {
    let compiled =
        compiled("gpt2", Family::Cpu, 4, 1, "precision = bf16(accumulate: bf16)\ndeterministic = true");
    let kernels = dspc_kernel::print(&compiled.kernels);
    let (_, sum) = kernels.split_once("sum_ranks").unwrap();
    let sum = sum.split("\n\n").next().unwrap();
    assert_eq!(sum.matches("= bf16 n").count(), 3, "{sum}");
}

/// A rank of a world that has more ranks than there are rows of the grid: its shards are padding.
#[test]
fn more_ranks_than_parameters() {
    for stage in 0..4 {
        means_one_rank("bigram", Family::Cpu, (9, 1), "", &format!("zero = stage({stage}, keep_below: 0)"));
    }
}

/// The other entries gather what they read: the losses of all ranks, the logits of each.
#[test]
fn evaluation_and_generation() {
    let outputs = |ranks: u64, zero: &str| {
        let compiled = compiled("gpt2", Family::Cpu, ranks, 1, zero);
        let mut machines = harness::prepared(&compiled);
        let program = &compiled.program;
        machines.iter_mut().for_each(|machine| harness::fill(machine, "inv_targets", 0, &[0.25]));
        run_ranks(&mut machines, &program.evaluate.body, 0, 0);
        let losses = harness::read(&machines[0], "loss", 0);
        run_ranks(&mut machines, &program.logits.as_ref().unwrap().body, 0, 0);
        let buffer = program.buffers.iter().find(|b| b.role == Role::Logits).unwrap();
        let logits: Vec<Vec<f64>> = machines.iter().map(|m| harness::read(m, &buffer.name, 0)).collect();
        (losses, logits)
    };
    let (losses, logits) = outputs(1, "");
    for stage in 0..4 {
        for bucket in [1, 500_000_000] {
            let zero = format!("zero = stage({stage}, gather_bucket: {bucket}, keep_below: 0)");
            let (found, by_rank) = outputs(3, &zero);
            assert_close("loss", &found[..1], &losses);
            by_rank.iter().for_each(|found| assert_eq!(found.len(), logits[0].len()));
            assert_close("logits", &by_rank[0], &logits[0]);
        }
    }
}

/// More turns than travel together, and groups of them that do.
#[test]
fn groups_of_turns() {
    for stage in 0..4 {
        for overlap in [true, false] {
            for layout in [(2, 1), (2, 2)] {
                let bucket = 5000;
                let zero = format!(
                    "zero = stage({stage}, reduce_bucket: {bucket}, gather_bucket: {bucket}, keep_below: 0, overlap: {overlap})"
                );
                means_one_rank("deep", Family::Cpu, layout, "", &zero);
            }
        }
    }
}
