//! Adds the backward pass, loss scaling, clipping and the optimizer step to a graph.
#![forbid(unsafe_code)]
pub mod optimizer;
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
}
/// The gradient of one parameter.
#[derive(Clone, Debug)]
pub struct ParamGradient {
    /// Whose.
    pub param: ParamId,
    /// Summed.
    pub contributions: Vec<ValueId>,
    /// Weight decay acts on it.
    pub decay: bool,
}
