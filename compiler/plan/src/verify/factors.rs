//! Factors between the loss and a gradient: their product is one.
//!
//! A loss is a sum over the rank's micro-batch, divided by the targets of the whole batch: that factor comes in once, with the loss. Sums over ranks and over micro-batches
//! divide by nothing. The loss scale comes in once, as the loss' own gradient, where the update takes it away again.

use dspc_graph::ir::{Block, Def, Graph, Input, Step, ValueId};
use dspc_train::optimizer::scaler::Scaling;

use crate::Plan;

pub(super) fn verify(plan: &Plan) -> Result<(), String> {
    let graph = &plan.train.graph;
    let (forward, backward) = graph.body.steps.split_at(plan.train.backward_start);
    let losses = readers(graph, forward, &Input::InvTargets);
    if losses == 0 {
        return Err("no loss is divided by the targets of the batch".into());
    }
    if readers(graph, forward, &Input::LossScale) > 0 {
        return Err("the forward pass is scaled".into());
    }
    let scaled = Scaling::of(&plan.train.precision).is_scaled();
    let seeds = readers(graph, backward, &Input::LossScale);
    if scaled != (seeds > 0) {
        return Err(format!(
            "the loss' gradient is scaled {seeds} times, and the update {}",
            u32::from(scaled)
        ));
    }
    Ok(())
}

/// How many ops read an input, those of repeats once.
fn readers(graph: &Graph, steps: &[Step], input: &Input) -> usize {
    let is_input = |v: &&ValueId| matches!(&graph.value(**v).def, Def::Input(it) if it == input);
    let of = |step: &Step| match step {
        Step::Op(node) => node.inputs.iter().filter(is_input).count(),
        Step::Repeat(repeat) => {
            let Block { steps } = &repeat.body;
            readers(graph, steps, input)
        }
    };
    steps.iter().map(of).sum()
}
