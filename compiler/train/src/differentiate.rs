//! Differentiation: the backward pass behind the forward pass, in reverse mode.
//!
//! Reads   a verified graph that ends in a loss.
//! Writes  the same graph with a step for each gradient behind its own steps, and which values are the parameters' gradients.
//! Keeps   the forward steps; `repeat`: the backward of a repeat is a repeat that goes from the last turn to the first and mirrors it.
//! Leaves  alone the loss scale, which the plan puts on `dloss`, and sums over ranks and micro-batches.
//! Cost    one walk, O(ops).

mod backward;
mod builder;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dspc_graph::ir::{Def, Graph, OpNode, Step, ValueId};
use dspc_graph::ops::{Fill, gradient_name};
use dspc_spec::settings::Optimizer;

use crate::{ParamGradient, TrainGraph};
use backward::Backward;

/// Why a graph has no gradient.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotTrainable {
    /// It has no loss.
    NoLoss,
    /// Its loss depends on no parameter.
    NoParameters,
}

impl std::fmt::Display for NotTrainable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NotTrainable::NoLoss => "the model has no loss",
            NotTrainable::NoParameters => "the loss depends on no parameter",
        })
    }
}

impl std::error::Error for NotTrainable {}

/// Appends the backward pass of `graph.loss`.
///
/// # Errors
/// If there is nothing to differentiate.
pub fn differentiate(graph: Graph, optimizer: Optimizer, clip: Option<f64>) -> Result<TrainGraph, NotTrainable> {
    let loss = graph.loss.ok_or(NotTrainable::NoLoss)?;
    let wanted = depends_on_params(&graph);
    if !wanted.contains(&loss) {
        return Err(NotTrainable::NoParameters);
    }
    let backward_start = graph.body.steps.len();
    let forward = graph.body.steps.clone();
    let mut backward = Backward::new(graph, wanted);
    let seed = backward.fill(1.0, loss, "");
    backward.contribute(loss, seed);
    backward.steps(&forward);
    let (mut graph, steps, contributions) = backward.finish();
    graph.body.steps.extend(steps);
    let gradients = gather(&graph, &contributions);
    let roots: Vec<ValueId> = gradients.iter().flat_map(|g| g.contributions.iter().copied()).collect();
    dspc_graph::prune(&mut graph, &roots, backward_start);
    Ok(TrainGraph { graph, backward_start, gradients, optimizer, clip })
}

/// Gradients by parameter, in the parameters' order.
fn gather(graph: &Graph, contributions: &BTreeMap<ValueId, Vec<ValueId>>) -> Vec<ParamGradient> {
    let mut gradients: Vec<ParamGradient> = (0..graph.params.len())
        .map(|i| ParamGradient {
            param: dspc_graph::ir::ParamId(i as u32),
            contributions: vec![],
            decay: graph.params[i].ty.dims.len() >= 2,
        })
        .collect();
    for (value, terms) in contributions {
        if let Def::Param(param) = graph.value(*value).def {
            gradients[param.0 as usize].contributions.extend(terms);
        }
    }
    gradients
}

/// The values that a parameter has a part in.
fn depends_on_params(graph: &Graph) -> BTreeSet<ValueId> {
    let ids = (0..graph.values.len()).map(|i| ValueId(i as u32));
    let mut found: BTreeSet<ValueId> = ids.filter(|v| matches!(graph.value(*v).def, Def::Param(_))).collect();
    spread(&graph.body.steps, &mut found);
    found
}

fn spread(steps: &[Step], found: &mut BTreeSet<ValueId>) {
    for step in steps {
        match step {
            Step::Op(OpNode { inputs, outputs, .. }) => {
                if inputs.iter().any(|v| found.contains(v)) {
                    found.extend(outputs);
                }
            }
            Step::Repeat(repeat) => loop {
                let before = found.len();
                for c in &repeat.carried {
                    if found.contains(&c.init) || found.contains(&c.result) {
                        found.extend([c.arg, c.out]);
                    }
                }
                spread(&repeat.body.steps, found);
                if found.len() == before {
                    break;
                }
            },
        }
    }
}

/// A constant of a value's type.
fn fill_like(graph: &Graph, value: ValueId, number: f64) -> (Arc<Fill>, String) {
    let fill = Arc::new(Fill { value: number, ty: graph.ty(value).clone() });
    (fill, gradient_name(&graph.value(value).name))
}
