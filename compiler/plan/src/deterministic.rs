//! What bits that do not depend on the layout cost.

use dspc_train::Storage;

use crate::{CollectiveKind, Exchanged, Held, Plan};

/// What a rank pays for `deterministic`, against the same plan without it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeterministicCost {
    /// Elements sent in a step, more.
    pub elements: u64,
    /// Bytes of sums of 1, 2, 4, … micro-batches.
    pub bytes: u64,
}

/// Of a plan with `deterministic`; `None` without.
///
/// Sums over ranks are made in every micro-batch, which ZeRO stages 2 and 3 do anyway; and each level of the counter over micro-batches keeps a rank's shards.
pub fn deterministic_cost(plan: &Plan) -> Option<DeterministicCost> {
    if !plan.deterministic {
        return None;
    }
    let once_otherwise = |class: Option<crate::ClassId>| {
        class.is_some_and(|id| plan.holdings[id.0 as usize].gradients == Held::Whole)
    };
    let reduced = plan.collectives.iter().filter(|c| {
        (c.kind, c.of) == (CollectiveKind::ReduceScatter, Exchanged::Gradients) && once_otherwise(c.class)
    });
    let accumulation = plan.batch.accumulation;
    let elements = reduced.map(|c| c.sent(plan) / accumulation * (accumulation - 1)).sum();
    let trained = plan.partition.classes.iter().filter(|c| !plan.partition.update(c).frozen);
    let shards: u64 = trained.map(|c| c.turns * plan.partition.shard(c)).sum();
    let levels = u64::from(accumulation.max(1).ilog2());
    let bytes = levels * shards * Storage::of(&plan.train.precision).accumulate.bytes();
    Some(DeterministicCost { elements, bytes })
}
