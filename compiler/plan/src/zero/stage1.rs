//! ZeRO stage 1: masters and moments are shared out.
//!
//! Reads   a plan whose gradients are summed by a reduce-scatter and an all-gather.
//! Writes  the same plan with masters and moments in shards: each rank updates its own shard, which the reduce-scatter alone completes, and parameters are gathered
//!         after the update.
//! Keeps   the sum's order, every parameter's value, the elements that are sent.

use crate::collective::of_class;
use crate::{AxisId, CollectiveKind, Exchanged, Held, Moment, Plan};

/// Partitions masters and moments over the data axis.
pub(super) fn partition_optimizer_state(plan: &mut Plan) {
    for holding in &mut plan.holdings {
        holding.optimizer = Held::Shard(AxisId::Data);
    }
    let what = (CollectiveKind::AllGather, Exchanged::Parameters);
    let gathered: Vec<_> = plan
        .partition
        .classes()
        .map(|(id, _)| of_class(plan, id, what, plan.zero.gather_bucket, Moment::AfterUpdate))
        .collect();
    plan.collectives.retain(|c| (c.kind, c.of) != (CollectiveKind::AllGather, Exchanged::Gradients));
    plan.collectives.extend(gathered);
}
