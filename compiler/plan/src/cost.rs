//! What a plan costs before any kernel is known: FLOPs and the bytes of the training state.

use dspc_graph::ir::{Block, Graph, OpNode, Step, TensorType, ValueId};

use dspc_train::Storage;

use crate::{Class, ClassId, Collective, Exchanged, Held, Holding, Plan};

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

/// The training state of one rank: 4Ψ + 4Ψ + 8Ψ in single precision, 2Ψ + 4Ψ + 4Ψ + 8Ψ in a 16-bit one; what ranks share out is divided by their number.
pub fn state_bytes(plan: &Plan) -> StateBytes {
    let storage = Storage::of(&plan.train.precision);
    let held = |pick: fn(&Holding) -> Held| -> u64 {
        let of = |((_, class), holding): ((ClassId, &Class), &Holding)| match pick(holding) {
            Held::Whole => class.turns * class.elements,
            Held::Shard(_) => class.turns * plan.partition.shard(class),
        };
        plan.partition.classes().zip(&plan.holdings).map(of).sum()
    };
    let optimizer = held(|h| h.optimizer);
    StateBytes {
        parameters: storage.compute.bytes() * held(|h| h.parameters),
        masters: if storage.has_masters() { 4 * optimizer } else { 0 },
        gradients: storage.accumulate.bytes() * held(|h| h.gradients),
        moments: 8 * optimizer,
    }
}

/// Elements that a rank sends in a step: gradients and parameters, then squares and losses.
pub fn elements_sent(plan: &Plan) -> (u64, u64) {
    let of = |state: bool| {
        let counts = |c: &&Collective| matches!(c.of, Exchanged::Gradients | Exchanged::Parameters) == state;
        plan.collectives.iter().filter(counts).map(|c| c.sent(plan)).sum()
    };
    (of(true), of(false))
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
