//! Adds the backward pass, clipping and the optimizer step to a graph.
//!
//! Accepts only verified graphs that end in a loss. Never sees a mesh: what is summed over ranks is the plan's business.

#![forbid(unsafe_code)]

mod differentiate;
#[cfg(test)]
mod fixture;
pub mod optimizer;
mod precision;
mod print;
mod recompute;

pub use differentiate::{NotTrainable, differentiate};
pub use precision::{Storage, store, store_forward};
pub use print::print;
pub use recompute::{Recompute, products_of_turns, recompute};

use std::collections::{BTreeMap, BTreeSet};

use dspc_graph::ir::{Graph, ParamId, ValueId};
use dspc_spec::settings::Precision;

use crate::optimizer::{Update, UpdateId};

/// A graph with its gradient.
#[derive(Clone, Debug)]
pub struct TrainGraph {
    /// Forward steps, then backward steps.
    pub graph: Graph,
    /// Index into `graph.body.steps`.
    pub backward_start: usize,
    /// One per param, in param order.
    pub gradients: Vec<ParamGradient>,
    /// Which value each gradient is of; the first, where one gradient is that of several.
    pub primals: BTreeMap<ValueId, ValueId>,
    /// The ways in which weights change.
    pub updates: Vec<Update>,
    /// Global-norm limit.
    pub clip: Option<f64>,
    /// How numbers are stored and multiplied.
    pub precision: Precision,
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
    /// values of the body of the backward repeat; none if the loss does not depend on it, or if it is frozen.
    pub contributions: Vec<ValueId>,
    /// How it changes.
    pub update: UpdateId,
}

impl TrainGraph {
    /// How a parameter changes.
    pub fn update(&self, id: UpdateId) -> &Update {
        &self.updates[id.0 as usize]
    }
}
