//! What a plan costs before any kernel is known: FLOPs and the bytes of the training state.

use dspc_graph::ir::{Block, Graph, OpNode, Step, TensorType, ValueId};

use dspc_train::Storage;

use crate::Plan;

/// Bytes a rank holds from step to step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StateBytes {
    /// Parameters as ops read them.
    pub parameters: u64,
    /// The f32 weights that the optimizer changes, where ops read others; else 0.
    pub masters: u64,
    /// Their gradients.
    pub gradients: u64,
    /// Optimizer moments.
    pub moments: u64,
}

/// The training state of one rank: 4Ψ + 4Ψ + 8Ψ in single precision, 2Ψ + 4Ψ + 4Ψ + 8Ψ in a 16-bit one.
pub fn state_bytes(plan: &Plan) -> StateBytes {
    let (elements, storage) = (plan.partition.elements(), Storage::of(&plan.train.precision));
    StateBytes {
        parameters: storage.compute.bytes() * elements,
        masters: if storage.has_masters() { 4 * elements } else { 0 },
        gradients: storage.accumulate.bytes() * elements,
        moments: 8 * elements,
    }
}

/// FLOPs of one trained token, forward and backward, as the ops of the training graph count them; what is computed again is not counted twice.
pub fn flops_per_token(plan: &Plan, sequence: u64) -> f64 {
    flops(plan, sequence, &|node| !is_again(plan, node))
}

/// FLOPs of one trained token that are done a second time.
pub fn recomputed_flops_per_token(plan: &Plan, sequence: u64) -> f64 {
    flops(plan, sequence, &|node| is_again(plan, node))
}

fn is_again(plan: &Plan, node: &OpNode) -> bool {
    node.outputs.iter().any(|v| plan.train.again.contains(v))
}

fn flops(plan: &Plan, sequence: u64, counts: &dyn Fn(&OpNode) -> bool) -> f64 {
    let graph = &plan.train.graph;
    block_flops(graph, &graph.body, counts) / (plan.batch.micro_batch * sequence) as f64
}

fn block_flops(graph: &Graph, block: &Block, counts: &dyn Fn(&OpNode) -> bool) -> f64 {
    let step = |step: &Step| match step {
        Step::Op(node) if !counts(node) => 0.0,
        Step::Op(node) => {
            let types = |ids: &[ValueId]| ids.iter().map(|&v| graph.ty(v)).collect::<Vec<&TensorType>>();
            node.op.cost(&types(&node.inputs), &types(&node.outputs)).flops
        }
        Step::Repeat(repeat) => repeat.count as f64 * block_flops(graph, &repeat.body, counts),
    };
    block.steps.iter().map(step).sum()
}
