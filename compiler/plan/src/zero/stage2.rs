//! ZeRO stage 2: gradients are shared out too.
//!
//! Reads   a plan of ZeRO stage 1.
//! Writes  the same plan with gradients in shards: a bucket's whole gradient lives from the backward turn that fills it to its reduce-scatter, in every micro-batch.
//! Keeps   the sum over ranks; with accumulation, the sum over micro-batches is now made after that over ranks.

use crate::collective::of_class;
use crate::{AxisId, CollectiveKind, Exchanged, Held, Moment, Plan};

/// Partitions gradients over the data axis.
pub(super) fn partition_gradients(plan: &mut Plan) {
    let trained = plan.trained_classes();
    for id in &trained {
        plan.holdings[id.0 as usize].gradients = Held::Shard(AxisId::Data);
    }
    let what = (CollectiveKind::ReduceScatter, Exchanged::Gradients);
    let reduced: Vec<_> = trained
        .into_iter()
        .map(|id| of_class(plan, id, what, plan.zero.reduce_bucket, Moment::Backward))
        .collect();
    plan.collectives.retain(|c| (c.kind, c.of) != what);
    plan.collectives.splice(0..0, reduced);
}
