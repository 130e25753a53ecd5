//! `--emit plan`.

use std::fmt::Write;

use dspc_graph::ir::{Block, Def, Graph, Step, ValueId};

use dspc_train::Storage;
use dspc_train::optimizer;

use crate::{AxisId, ClassId, CollectiveKind, Exchanged, Moment, Plan, elements_sent, state_bytes};

/// The plan as text: mesh and batch, the partition, every op's results with their placement, collectives.
pub fn print(plan: &Plan) -> String {
    let mut out = String::new();
    let b = plan.batch;
    let data = plan.mesh.size(AxisId::Data);
    let _ = writeln!(
        out,
        "plan {}   {}{}   batch {} = micro-batch {} × accumulation {} × data {data}\n",
        plan.name,
        plan.mesh,
        spread(plan),
        b.batch,
        b.micro_batch,
        b.accumulation
    );
    print_partition(plan, &mut out);
    let (forward, backward) = plan.train.graph.body.steps.split_at(plan.train.backward_start);
    for (title, steps) in [("forward", forward), ("backward", backward)] {
        let _ = writeln!(out, "\n{title}");
        print_block(plan, &Block { steps: steps.to_vec() }, 1, &mut out);
    }
    let _ = writeln!(out, "\nupdate");
    let storage = Storage::of(&plan.train.precision);
    for group in &plan.partition.groups {
        let name = &group.name;
        if group.update.frozen {
            continue;
        }
        let masters = if storage.has_masters() { "masters" } else { "params" };
        let rule = optimizer::name(&group.update.rule);
        let mut moments = String::new();
        for moment in group.update.moments(2) {
            let _ = write!(moments, ", {}.{name}", moment.short());
        }
        let _ = writeln!(
            out,
            "  {masters}.{name} = {rule} {masters}.{name}, grads.{name}{moments}   f32 flat({})",
            group.elements
        );
        if storage.has_masters() {
            let (dtype, elements) = (storage.compute, group.elements);
            let _ = writeln!(out, "  params.{name} = cast masters.{name}   {dtype} flat({elements})");
        }
    }
    print_collectives(plan, &mut out);
    out
}

/// `   ZeRO stage 2   deterministic`
fn spread(plan: &Plan) -> String {
    let many = plan.mesh.size(AxisId::Data) > 1;
    let stage = if many { format!("   ZeRO stage {}", plan.zero.stage) } else { String::new() };
    format!("{stage}{}", if plan.deterministic { "   deterministic" } else { "" })
}

fn print_collectives(plan: &Plan, out: &mut String) {
    if plan.collectives.is_empty() {
        return;
    }
    let (state, other) = elements_sent(plan);
    let _ = writeln!(
        out,
        "\ncollectives   a rank sends {state} elements a step, and {other} of squares and losses"
    );
    for c in &plan.collectives {
        let kind = match c.kind {
            CollectiveKind::ReduceScatter => "reduce_scatter",
            CollectiveKind::AllGather => "all_gather",
        };
        let of = match c.of {
            Exchanged::Gradients => "grads",
            Exchanged::Parameters => "params",
            Exchanged::Squares => "squares",
            Exchanged::Lengths => "lengths",
            Exchanged::Tensors => "tensors",
            Exchanged::Losses => "losses",
        };
        let class = c.class.map_or(String::new(), |id| format!(".{}", plan.partition.class(id).name));
        let when = match c.moment {
            Moment::Forward => "forward, ahead of use",
            Moment::Backward => "backward",
            Moment::LastBackward => "backward of the last micro-batch",
            Moment::BeforeUpdate => "before the update",
            Moment::AfterUpdate => "after the update",
        };
        let turns = if c.turns > 1 {
            format!(" × {} turns, {} together", c.turns, c.together)
        } else {
            String::new()
        };
        let left = format!("{kind} {of}{class} over {}", c.axis);
        let _ = writeln!(out, "  {left:<44} {} elements{turns}   {when}", c.elements);
    }
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
    for (id, class) in plan.partition.classes() {
        let turns = if class.turns > 1 { format!(" × {} turns", class.turns) } else { String::new() };
        let held = held(plan, id);
        let _ = writeln!(out, "  {:<16} flat({}){turns}{held}", class.name, class.elements);
        let members = plan.train.graph.params.iter().zip(&plan.partition.members);
        for (param, m) in members.filter(|(_, m)| m.class == id) {
            let at = m.offset - class.start;
            let _ = writeln!(out, "    {:<28} {:<16} at {at}", param.name, param.ty.to_string());
        }
    }
}

/// `   params whole, grads /data, masters and moments /data`
fn held(plan: &Plan, id: ClassId) -> String {
    if plan.mesh.size(AxisId::Data) == 1 {
        return String::new();
    }
    let holding = plan.holdings[id.0 as usize];
    let (params, grads, optimizer) = (holding.parameters, holding.gradients, holding.optimizer);
    let masters =
        if Storage::of(&plan.train.precision).has_masters() { "masters and moments" } else { "moments" };
    format!("   params {params}, grads {grads}, {masters} {optimizer}")
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
