//! `dspc plan`

use std::path::Path;

use dspc_plan::{StateBytes, state_bytes};
use dspc_program::Family;
use serde_json::json;

use crate::cli::{Format, When};
use crate::exit::Exit;
use crate::passes::{self, Lowered};
use crate::report;

/// Says what a job will cost, before anything is built or run.
pub fn plan(file: &Path, format: Format, when: When) -> Exit {
    let (front, facts) = match super::checked(file, when) {
        Ok(checked) => checked,
        Err(exit) => return exit,
    };
    let Some(spec) = &front.spec else { return Exit::InputErrors };
    match passes::lower(spec, &front.sources, facts.characters, Family::Cpu) {
        Ok(lowered) => print(&lowered, format),
        Err(diagnostics) => {
            report::print(&diagnostics, &front.sources, Format::Text, when);
            return Exit::InputErrors;
        }
    }
    Exit::Success
}

fn print(lowered: &Lowered, format: Format) {
    let program = &lowered.program;
    let StateBytes { parameters, gradients, moments } = state_bytes(&lowered.plan);
    let arena = |name: &str| program.arenas.iter().find(|a| a.name == name).map_or(0, |a| a.bytes);
    let (activations, inputs, state) = (arena("activations"), arena("inputs"), arena("state"));
    let total: u64 = program.arenas.iter().map(|a| a.bytes).sum();
    let t = &program.training;
    let tokens = t.batch * program.data.sequence;
    let flops = program.model.flops_per_token * tokens as f64;
    if format == Format::Json {
        let memory = json!({
            "parameters": parameters, "gradients": gradients, "moments": moments,
            "activations": activations, "inputs": inputs, "state": state, "total": total,
        });
        let batch = json!({ "batch": t.batch, "micro_batch": t.micro_batch, "accumulation": t.accumulation });
        let value = json!({
            "schema_version": 1, "name": program.name, "parameters": program.model.parameters, "batch": batch,
            "tokens_per_step": tokens, "flops_per_step": flops, "memory_bytes_per_rank": memory,
            "kernels": program.kernels.len(), "steps": t.steps,
        });
        println!("{value}");
        return;
    }
    println!(
        "{}   {} parameters, {}",
        program.name,
        count(program.model.parameters as f64),
        lowered.plan.mesh
    );
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
    println!("memory per rank");
    let rows = [
        ("parameters", parameters),
        ("gradients", gradients),
        ("moments", moments),
        ("activations", activations),
        ("inputs and tables", inputs + state),
        ("total", total),
    ];
    for (name, bytes) in rows {
        println!("  {name:<18} {:>12}", mebibytes(bytes));
    }
    println!("communication   none: one rank");
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
