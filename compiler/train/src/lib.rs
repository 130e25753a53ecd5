//! Adds the backward pass, clipping and the optimizer step to a graph.
//!
//! Accepts only verified graphs that end in a loss. Never sees a mesh: what is summed over ranks is the plan's business.

#![forbid(unsafe_code)]

mod differentiate;
#[cfg(test)]
mod fixture;
pub mod optimizer;
mod print;
mod recompute;

pub use differentiate::{NotTrainable, differentiate};
pub use print::print;
pub use recompute::{Recompute, recompute};

use std::collections::BTreeSet;

use dspc_graph::ir::{Graph, ParamId, ValueId};

/// A graph with its gradient.
#[derive(Clone, Debug)]
pub struct TrainGraph {
    /// Forward steps, then backward steps.
    pub graph: Graph,
    /// Index into `graph.body.steps`.
    pub backward_start: usize,
    /// One per param, in param order.
    pub gradients: Vec<ParamGradient>,
    /// How weights change.
    pub optimizer: dspc_spec::settings::Optimizer,
    /// Global-norm limit.
    pub clip: Option<f64>,
    /// How much the backward pass computes again.
    pub recompute: Recompute,
    /// The values that it does compute again.
    pub again: BTreeSet<ValueId>,
}

/// The gradient of one parameter.
#[derive(Clone, Debug)]
pub struct ParamGradient {
    /// Whose.
    pub param: ParamId,
    /// Their sum is the gradient: several where a parameter is used in several places. For a parameter of a repeat they are
    /// values of the body of the backward repeat; none if the loss does not depend on it.
    pub contributions: Vec<ValueId>,
    /// Weight decay acts on it: it has two dims or more.
    pub decay: bool,
}
