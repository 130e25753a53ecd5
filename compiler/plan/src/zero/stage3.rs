//! ZeRO stage 3: parameters are shared out too.
//!
//! Reads   a plan of ZeRO stage 2.
//! Writes  the same plan with the parameters of large classes in shards: each bucket is gathered ahead of its use, forward and again backward, and its bytes are
//!         free after. Small classes stay as they are in stage 2.
//! Keeps   every parameter's value.

use crate::collective::of_class;
use crate::{AxisId, ClassId, CollectiveKind, Exchanged, Held, Moment, Plan};

/// Partitions the parameters of large classes over the data axis.
pub(super) fn partition_parameters(plan: &mut Plan) {
    let large: Vec<ClassId> =
        plan.trained_classes().into_iter().filter(|id| !plan.partition.class(*id).small).collect();
    let what = (CollectiveKind::AllGather, Exchanged::Parameters);
    plan.collectives.retain(|c| (c.kind, c.of) != what || c.class.is_none_or(|id| !large.contains(&id)));
    for id in large {
        plan.holdings[id.0 as usize].parameters = Held::Shard(AxisId::Data);
        for moment in [Moment::Forward, Moment::Backward] {
            let gathered = of_class(plan, id, what, plan.zero.gather_bucket, moment);
            plan.collectives.push(gathered);
        }
    }
}
