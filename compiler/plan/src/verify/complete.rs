//! Partial values: each is read by nothing but the collective that completes it, and that comes before the update; shards are gathered before they are read.

use dspc_graph::ir::{Block, Graph, ParamId, Step, ValueId};

use crate::{AxisId, ClassId, CollectiveKind, Exchanged, Held, Holding, Moment, Plan};

pub(super) fn verify(plan: &Plan) -> Result<(), String> {
    if let Some((value, op)) = reader_of_partial(plan, &plan.train.graph, &plan.train.graph.body) {
        return Err(format!("`{op}` reads `{value}`, which is a sum over ranks that is not made yet"));
    }
    for gradient in &plan.train.gradients {
        let placement = |v: &ValueId| &plan.placements[v.0 as usize];
        let partial = gradient.contributions.iter().flat_map(|v| &placement(v).partial);
        for axis in partial.filter(|axis| plan.mesh.size(**axis) > 1) {
            completed(plan, gradient.param, *axis)?;
        }
    }
    plan.partition.classes().try_for_each(|(id, _)| gathered(plan, id))
}

/// The first op that reads a partial value, and the value.
fn reader_of_partial<'p>(plan: &'p Plan, graph: &'p Graph, block: &'p Block) -> Option<(&'p str, &'p str)> {
    let is_partial = |v: &&ValueId| !plan.placements[v.0 as usize].partial.is_empty();
    block.steps.iter().find_map(|step| match step {
        Step::Op(node) => {
            node.inputs.iter().find(is_partial).map(|v| (graph.value(*v).name.as_str(), node.op.name()))
        }
        Step::Repeat(repeat) => {
            let carried = repeat.carried.iter().flat_map(|c| [&c.init, &c.result]).find(is_partial);
            let carried = carried.map(|v| (graph.value(*v).name.as_str(), repeat.name.as_str()));
            carried.or_else(|| reader_of_partial(plan, graph, &repeat.body))
        }
    })
}

fn moments(plan: &Plan, class: ClassId, axis: AxisId, what: (CollectiveKind, Exchanged)) -> Vec<Moment> {
    let these = plan
        .collectives
        .iter()
        .filter(|c| c.class == Some(class) && c.axis == axis && (c.kind, c.of) == what);
    these.map(|c| c.moment).collect()
}

/// A gradient is summed over an axis once, and before the update.
fn completed(plan: &Plan, param: ParamId, axis: AxisId) -> Result<(), String> {
    let class = plan.partition.members[param.0 as usize].class;
    let found = moments(plan, class, axis, (CollectiveKind::ReduceScatter, Exchanged::Gradients));
    let [Moment::Backward | Moment::LastBackward] = found[..] else {
        let name = &plan.train.graph.param(param).name;
        return Err(format!("the gradient of `{name}` is summed over {axis} {} times", found.len()));
    };
    // A sum of many micro-batches in whole buckets is that of all of them only at the last one.
    let whole = plan.holdings[class.0 as usize].gradients == Held::Whole;
    let early = found[0] == Moment::Backward && whole && !plan.deterministic;
    if early && plan.batch.accumulation > 1 {
        return Err(format!(
            "class `{}` is summed over {axis} while it still grows",
            plan.partition.class(class).name
        ));
    }
    Ok(())
}

/// What is used whole is whole: gradients of an update that every rank makes, parameters that every rank holds, parameters that ops read.
fn gathered(plan: &Plan, class: ClassId) -> Result<(), String> {
    let axis = AxisId::Data;
    if plan.mesh.size(axis) == 1 {
        return Ok(());
    }
    let holding = plan.holdings[class.0 as usize];
    let gather = |of| moments(plan, class, axis, (CollectiveKind::AllGather, of));
    let (gradients, parameters) = (gather(Exchanged::Gradients), gather(Exchanged::Parameters));
    let update = plan.partition.update(plan.partition.class(class));
    if update.frozen {
        let silent = holding == Holding::WHOLE && gradients.is_empty() && parameters.is_empty();
        let name = &plan.partition.class(class).name;
        return if silent { Ok(()) } else { Err(format!("class `{name}` is frozen, and ranks exchange it")) };
    }
    let whole_update = holding.optimizer == Held::Whole;
    let for_rule = gather(Exchanged::Tensors).len() + gather(Exchanged::Lengths).len();
    if (for_rule > 0) != (update.by_tensor() && !whole_update) {
        let name = &plan.partition.class(class).name;
        return Err(format!(
            "what the rule of class `{name}` needs of other ranks is gathered {for_rule} times"
        ));
    }
    let expected = match (whole_update, holding.parameters) {
        (true, _) => vec![],
        (false, Held::Whole) => vec![Moment::AfterUpdate],
        (false, Held::Shard(_)) => vec![Moment::Forward, Moment::Backward],
    };
    if parameters != expected || whole_update != (gradients.len() == 1) {
        let name = &plan.partition.class(class).name;
        return Err(format!("class `{name}` is gathered {parameters:?}, its gradients {gradients:?}"));
    }
    Ok(())
}
