//! Bytes that a rank holds and elements that it sends are those of the ZeRO paper (Rajbhandari et al. 2020, sections 3 and 7), up to padding: with Ψ parameters in 16 bits,
//! 2Ψ + 4Ψ of f32 gradients + 12Ψ of masters and moments, each divided by N from its stage on; 2Ψ sent in stages 0 and 1, (1 + A)Ψ in stage 2, 3AΨ in stage 3.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod harness;

use dspc_program::{Family, Program};
use harness::{Compiled, compile};

const GPT2: &str = include_str!("../../../tests/suite/layers/gpt2.dsp");

fn compiled(ranks: u64, accumulation: u64, more: &str) -> Compiled {
    let (head, _) = GPT2.split_once("train {").unwrap();
    let head = head.replace("layers: 2", "layers: 4").replace("width: 8", "width: 128");
    let batch = ranks * accumulation;
    let text = format!(
        "{head}precision = bf16\nparallel = mesh(data: {ranks})\n{more}\ntrain {{\n  batch: {batch}\n  micro_batch: 1\n  steps: 10\n}}\n"
    );
    compile(&text, Family::Cpu)
}

/// Elements of parameters and gradients that the program's collectives send in a step of a rank.
fn sent(program: &Program) -> u64 {
    let state = |name: &str| !name.starts_with("squares") && !name.starts_with("loss");
    harness::sent(program, &program.train.body, (0, 0), state)
}

/// The padding of every bucket, at most.
fn padding(compiled: &Compiled, ranks: u64) -> u64 {
    let buckets: u64 = compiled.plan.partition.classes.iter().map(|c| c.turns).sum();
    buckets * 1024 * ranks
}

#[test]
fn bytes_and_traffic_follow_the_theory() {
    for ranks in [1, 2, 4, 8] {
        for accumulation in [1, 2, 4] {
            for (stage, deterministic) in
                [(0, false), (1, false), (2, false), (3, false), (0, true), (1, true), (3, true)]
            {
                let more = format!("zero = stage({stage}, keep_below: 0)\ndeterministic = {deterministic}");
                let compiled = compiled(ranks, accumulation, &more);
                let params = compiled.plan.train.graph.param_elements();
                let padded = compiled.plan.partition.elements();
                assert!(padded >= params && padded - params <= padding(&compiled, ranks));
                let bytes = dspc_plan::state_bytes(&compiled.plan);
                let by = |from: u64| if stage >= from { ranks } else { 1 };
                assert_eq!(bytes.parameters, 2 * padded / by(3));
                assert_eq!(bytes.gradients, 4 * padded / by(2));
                assert_eq!((bytes.masters, bytes.moments), (4 * padded / by(1), 8 * padded / by(1)));
                let arena =
                    |name: &str| compiled.program.arenas.iter().find(|a| a.name == name).unwrap().bytes;
                assert_eq!(arena("parameters"), bytes.parameters);
                assert_eq!(arena("optimizer"), bytes.masters + bytes.moments);
                let sums = dspc_plan::deterministic_cost(&compiled.plan).map_or(0, |cost| cost.bytes);
                assert_eq!(arena("gradients"), bytes.gradients + sums);
                let times = match (stage, deterministic) {
                    (0 | 1, false) => 2,
                    (3, _) => 3 * accumulation,
                    _ => 1 + accumulation,
                };
                let expected = times * padded / ranks * (ranks - 1);
                let what = format!("{ranks} ranks, accumulation {accumulation}, {more}");
                assert_eq!(dspc_plan::elements_sent(&compiled.plan).0, expected, "planned: {what}");
                let found = sent(&compiled.program);
                // Parameters outside repeats that forward and backward read close together are gathered once for both.
                let alone = compiled.plan.partition.classes.iter().filter(|c| c.name == "plain");
                let once: u64 = alone.map(|c| c.elements / ranks * (ranks - 1) * accumulation).sum();
                assert_eq!(found, expected - if stage == 3 { once } else { 0 }, "sent: {what}");
            }
        }
    }
}

/// What stays whole in ZeRO stage 3 is sent as in stage 2.
#[test]
fn small_parameters_stay_whole() {
    let compiled = compiled(4, 2, "zero = stage(3, keep_below: 2000)");
    let (mut small, mut large) = (0, 0);
    for class in &compiled.plan.partition.classes {
        *(if class.small { &mut small } else { &mut large }) += class.turns * class.elements;
    }
    assert!(small > 0 && large > 0);
    let expected = (3 * small + 6 * large) / 4 * 3;
    assert_eq!(dspc_plan::elements_sent(&compiled.plan).0, expected);
    assert_eq!(dspc_plan::state_bytes(&compiled.plan).parameters, 2 * small + 2 * large / 4);
}
