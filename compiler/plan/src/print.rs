//! `--emit plan`.

use std::fmt::Write;

use dspc_graph::ir::{Block, Def, Graph, Step, ValueId};

use dspc_train::Storage;

use crate::{AxisId, Plan, state_bytes};

/// The plan as text: mesh and batch, the partition, every op's results with their placement, collectives.
pub fn print(plan: &Plan) -> String {
    let mut out = String::new();
    let b = plan.batch;
    let data = plan.mesh.size(AxisId::Data);
    let _ = writeln!(
        out,
        "plan {}   {}   batch {} = micro-batch {} × accumulation {} × data {data}\n",
        plan.name, plan.mesh, b.batch, b.micro_batch, b.accumulation
    );
    print_partition(plan, &mut out);
    let (forward, backward) = plan.train.graph.body.steps.split_at(plan.train.backward_start);
    for (title, steps) in [("forward", forward), ("backward", backward)] {
        let _ = writeln!(out, "\n{title}");
        print_block(plan, &Block { steps: steps.to_vec() }, 1, &mut out);
    }
    let _ = writeln!(out, "\nupdate");
    for c in &plan.collectives {
        let name = &plan.partition.groups[c.group.0 as usize].name;
        let _ = writeln!(out, "  {:?} gradients.{name} over {}   {} elements", c.kind, c.axis, c.elements);
    }
    let storage = Storage::of(&plan.train.precision);
    for group in &plan.partition.groups {
        let name = &group.name;
        let masters = if storage.has_masters() { "masters" } else { "params" };
        let _ = writeln!(
            out,
            "  {masters}.{name} = adamw {masters}.{name}, grads.{name}, m.{name}, v.{name}   f32 flat({})",
            group.elements
        );
        if storage.has_masters() {
            let (dtype, elements) = (storage.compute, group.elements);
            let _ = writeln!(out, "  params.{name} = cast masters.{name}   {dtype} flat({elements})");
        }
    }
    out
}

fn print_partition(plan: &Plan, out: &mut String) {
    let bytes = state_bytes(plan);
    let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    let _ = write!(out, "state   parameters {:.2} MiB", mib(bytes.parameters));
    if bytes.masters > 0 {
        let _ = write!(out, "   masters {:.2} MiB", mib(bytes.masters));
    }
    let _ =
        writeln!(out, "   gradients {:.2} MiB   moments {:.2} MiB", mib(bytes.gradients), mib(bytes.moments));
    for (i, group) in plan.partition.groups.iter().enumerate() {
        let _ = writeln!(out, "  {:<8} flat({})", group.name, group.elements);
        let members = plan.train.graph.params.iter().zip(&plan.partition.members);
        for (param, m) in members.filter(|(_, m)| m.group.0 as usize == i) {
            let turns =
                if m.turns > 1 { format!(" + {}·turn, {} turns", m.stride, m.turns) } else { String::new() };
            let _ =
                writeln!(out, "    {:<28} {:<16} at {}{turns}", param.name, param.ty.to_string(), m.offset);
        }
    }
}

fn print_block(plan: &Plan, block: &Block, depth: usize, out: &mut String) {
    let graph = &plan.train.graph;
    let pad = "  ".repeat(depth);
    for step in &block.steps {
        match step {
            Step::Op(node) => {
                let results: Vec<String> =
                    node.outputs.iter().map(|&v| graph.value(v).name.clone()).collect();
                let operands: Vec<&str> = node.inputs.iter().map(|&v| name_of(graph, v)).collect();
                let types: Vec<String> = node.outputs.iter().map(|&v| placed(plan, v)).collect();
                let attributes = node.op.attributes();
                let comma = if attributes.is_empty() { "" } else { "   " };
                let left = format!(
                    "{pad}{} = {} {}{comma}{attributes}",
                    results.join(", "),
                    node.op.name(),
                    operands.join(", ")
                );
                let _ = writeln!(out, "{left:<64} {}", types.join(", "));
            }
            Step::Repeat(repeat) => {
                let order = if repeat.reverse { " in reverse" } else { "" };
                let _ = writeln!(out, "{pad}repeat {} as {}{order}", repeat.count, repeat.name);
                for c in &repeat.carried {
                    let name = |v: ValueId| name_of(graph, v);
                    let _ = writeln!(
                        out,
                        "{pad}  carry {} = {} then {}, in the end {}",
                        name(c.arg),
                        name(c.init),
                        name(c.result),
                        name(c.out)
                    );
                }
                print_block(plan, &repeat.body, depth + 1, out);
            }
        }
    }
}

fn name_of(graph: &Graph, value: ValueId) -> &str {
    match graph.value(value).def {
        Def::Param(p) => &graph.param(p).name,
        _ => &graph.value(value).name,
    }
}

/// `f32 [B/data, T, D] partial(data)`
fn placed(plan: &Plan, value: ValueId) -> String {
    let ty = plan.train.graph.ty(value);
    let placement = &plan.placements[value.0 as usize];
    let dims = ty.dims.iter().zip(&placement.dims).map(|(d, axis)| match axis {
        Some(axis) => format!("{}/{axis}", d.name),
        None => d.name.clone(),
    });
    let dims: Vec<String> = dims.collect();
    let shape = if dims.is_empty() { String::new() } else { format!(" [{}]", dims.join(", ")) };
    let partial: String = placement.partial.iter().map(|axis| format!(" partial({axis})")).collect();
    format!("{}{shape}{partial}", ty.dtype)
}
