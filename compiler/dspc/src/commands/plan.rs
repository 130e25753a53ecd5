//! `dspc plan`

use std::path::Path;

use dspc_plan::{CollectiveKind, Exchanged, deterministic_cost, elements_sent, state_bytes};
use serde_json::json;

use crate::cli::{Format, When};
use crate::exit::Exit;
use crate::fit::Memory;
use crate::passes::{self, Lowered};
use crate::{build, report};

/// Says what a job will cost, before anything is built or run.
pub fn plan(file: &Path, target: &str, ranks: Option<u64>, format: Format, when: When) -> Exit {
    let (front, facts) = match super::checked(file, ranks, when) {
        Ok(checked) => checked,
        Err(exit) => return exit,
    };
    let Some(spec) = &front.spec else { return Exit::InputErrors };
    if let Err(exit) = build::known(target) {
        return exit;
    }
    match passes::lower(spec, &front.sources, facts.characters, build::family(target)) {
        Ok(lowered) => print(&lowered, format),
        Err(diagnostics) => {
            report::print(&diagnostics, &front.sources, format, when);
            return Exit::InputErrors;
        }
    }
    Exit::Success
}

fn print(lowered: &Lowered, format: Format) {
    match format {
        Format::Json => print_json(lowered),
        Format::Text => print_text(lowered),
    }
}

/// FLOPs of a step that are done a second time.
fn recomputed_flops(lowered: &Lowered) -> f64 {
    let program = &lowered.program;
    let tokens = program.training.batch * program.data.sequence;
    dspc_plan::recomputed_flops_per_token(&lowered.plan, program.data.sequence) * tokens as f64
}

fn print_json(lowered: &Lowered) {
    let program = &lowered.program;
    let Memory { arenas, driver } = Memory::of(program);
    let (total, masters) = (Memory::of(program).total(), state_bytes(&lowered.plan).masters);
    let of = |name: &str| arenas.iter().find(|(arena, _)| arena == name).map_or(0, |(_, bytes)| *bytes);
    let memory = json!({
        "parameters": of("parameters"), "gradients": of("gradients"), "moments": of("optimizer") - masters, "masters": masters,
        "activations": of("activations"), "inputs": of("inputs"), "state": of("state"), "driver": driver, "total": total,
    });
    let t = &program.training;
    let batch = json!({ "batch": t.batch, "micro_batch": t.micro_batch, "accumulation": t.accumulation });
    let tokens = t.batch * program.data.sequence;
    let recompute = json!({
        "choice": lowered.plan.train.recompute.to_string(), "flops_per_step": recomputed_flops(lowered),
    });
    let value = json!({
        "schema_version": 1, "name": program.name, "parameters": program.model.parameters, "batch": batch,
        "tokens_per_step": tokens, "flops_per_step": program.model.flops_per_token * tokens as f64,
        "recompute": recompute, "communication": communication(lowered), "memory_bytes_per_rank": memory, "kernels": program.kernels.len(), "steps": t.steps,
    });
    println!("{value}");
}

fn print_text(lowered: &Lowered) {
    let program = &lowered.program;
    let t = &program.training;
    let tokens = t.batch * program.data.sequence;
    let flops = program.model.flops_per_token * tokens as f64;
    let parameters = count(program.model.parameters as f64);
    println!("{}   {parameters} parameters, {}", program.name, lowered.plan.mesh);
    let data = t.batch / (t.micro_batch * t.accumulation);
    println!(
        "batch   {} = micro-batch {} × accumulation {} × {data} data ranks",
        t.batch, t.micro_batch, t.accumulation
    );
    println!(
        "step    {tokens} tokens, {}FLOP; {} steps, {}tokens in all",
        count(flops),
        t.steps,
        count((tokens * t.steps) as f64)
    );
    let again = recomputed_flops(lowered);
    let recompute = lowered.plan.train.recompute;
    match again > 0.0 {
        true => println!(
            "recompute   {recompute}: {}FLOP a step more, {:.1} %",
            count(again),
            100.0 * again / flops
        ),
        false => println!("recompute   {recompute}"),
    }
    println!("memory per rank");
    let memory = Memory::of(program);
    let of =
        |name: &str| memory.arenas.iter().find(|(arena, _)| arena == name).map_or(0, |(_, bytes)| *bytes);
    let masters = state_bytes(&lowered.plan).masters;
    let rows = [
        ("parameters", of("parameters")),
        ("gradients", of("gradients")),
        ("moments", of("optimizer") - masters),
        ("activations", of("activations")),
        ("inputs and tables", of("inputs") + of("state")),
    ];
    let masters = (masters > 0).then_some(("master weights", masters));
    let driver = (memory.driver > 0).then_some(("driver", memory.driver));
    for (name, bytes) in rows.into_iter().chain(masters).chain(driver).chain([("total", memory.total())]) {
        println!("  {name:<18} {:>12}", mebibytes(bytes));
    }
    print_communication(lowered);
}

/// What a rank sends, by stage of the step.
fn print_communication(lowered: &Lowered) {
    let plan = &lowered.plan;
    let ranks = plan.mesh.world();
    if ranks == 1 {
        println!("communication   none: one rank");
    } else {
        let overlap = if plan.zero.overlap { ", beside compute" } else { "" };
        println!(
            "communication   a rank of {ranks} sends in a step, ZeRO stage {}{overlap}",
            plan.zero.stage
        );
        for (name, kind, of) in EXCHANGES {
            let these = plan.collectives.iter().filter(|c| c.kind == kind && c.of == of);
            let sent: u64 = these.map(|c| c.sent(plan)).sum();
            if sent > 0 {
                println!("  {name:<26} {:>9} elements", count(sent as f64));
            }
        }
        println!("  {:<26} {:>9} elements", "squares and losses", count(elements_sent(plan).1 as f64));
    }
    if let Some(cost) = deterministic_cost(plan) {
        println!(
            "deterministic   {} elements a step more, and {} of partial sums",
            count(cost.elements as f64),
            mebibytes(cost.bytes)
        );
    }
}

/// What is exchanged, in words.
const EXCHANGES: [(&str, CollectiveKind, Exchanged); 3] = [
    ("gradients, reduce-scatter", CollectiveKind::ReduceScatter, Exchanged::Gradients),
    ("gradients, all-gather", CollectiveKind::AllGather, Exchanged::Gradients),
    ("parameters, all-gather", CollectiveKind::AllGather, Exchanged::Parameters),
];

/// The same for programs.
fn communication(lowered: &Lowered) -> serde_json::Value {
    let plan = &lowered.plan;
    let (state, other) = elements_sent(plan);
    let cost = deterministic_cost(plan);
    json!({
        "ranks": plan.mesh.world(), "zero_stage": plan.zero.stage,
        "elements_sent_per_step": state, "elements_sent_per_step_of_squares_and_losses": other,
        "deterministic": cost.map(|cost| json!({ "elements_sent_per_step": cost.elements, "bytes": cost.bytes })),
    })
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}

/// `817.26k`, `3.20G`
fn count(x: f64) -> String {
    let units = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match units.iter().find(|(size, _)| x >= *size) {
        Some((size, unit)) => format!("{:.2}{unit}", x / size),
        None => format!("{x}"),
    }
}
