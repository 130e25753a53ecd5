//! What a plan costs before any kernel is known: FLOPs and the bytes of the training state.

use dspc_graph::ir::{Block, Graph, OpNode, Step, TensorType, ValueId};

use dspc_train::Storage;
use dspc_train::optimizer::{Moment, Update};

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

/// The training state of one rank: under AdamW 4Ψ + 4Ψ + 8Ψ in single precision, 2Ψ + 4Ψ + 4Ψ + 8Ψ in a 16-bit one; what ranks share out is divided by their number.
pub fn state_bytes(plan: &Plan) -> StateBytes {
    let storage = Storage::of(&plan.train.precision);
    let held = |pick: fn(&Holding) -> Held, times: &dyn Fn(&Update) -> u64| -> u64 {
        let of = |((_, class), holding): ((ClassId, &Class), &Holding)| {
            let bucket = match pick(holding) {
                Held::Whole => class.elements,
                Held::Shard(_) => plan.partition.shard(class),
            };
            class.turns * bucket * times(plan.partition.update(class))
        };
        plan.partition.classes().zip(&plan.holdings).map(of).sum()
    };
    let flat = held(|h| h.optimizer, &|update| update.flat_moments().len() as u64);
    StateBytes {
        parameters: storage.compute.bytes() * held(|h| h.parameters, &|_| 1),
        masters: if storage.has_masters() { 4 * held(|h| h.optimizer, &|_| 1) } else { 0 },
        gradients: storage.accumulate.bytes() * held(|h| h.gradients, &|update| u64::from(!update.frozen)),
        moments: 4 * (flat + own_moments(plan)),
    }
}

/// Elements of the moments that are no flat ranges like their parameters'.
fn own_moments(plan: &Plan) -> u64 {
    let params = plan.train.graph.params.iter().zip(&plan.train.gradients);
    let of = params.map(|(param, gradient)| {
        let update = plan.train.update(gradient.update);
        let (rows, cols) = (param.ty.rows(), param.ty.cols());
        let elements = |moment: &Moment| moment.elements(rows, cols);
        param.turns.unwrap_or(1) * update.own_moments(param.ty.dims.len()).iter().map(elements).sum::<u64>()
    });
    of.sum()
}

/// Elements that a rank sends in a step: gradients and parameters, then squares and losses. What a rule needs of whole tensors is among the first.
pub fn elements_sent(plan: &Plan) -> (u64, u64) {
    let of = |state: bool| {
        let counts = |c: &&Collective| {
            matches!(c.of, Exchanged::Gradients | Exchanged::Parameters | Exchanged::Tensors) == state
        };
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
