//! ZeRO stage 1: masters and moments are shared out.
//!
//! Reads   a plan whose gradients are summed by a reduce-scatter and an all-gather.
//! Writes  the same plan with masters and moments in shards: each rank updates its own shard, which the reduce-scatter alone completes, and parameters are gathered
//!         after the update.
//! Keeps   the sum's order, every parameter's value, the elements that are sent; frozen classes, which every rank holds whole.

use dspc_spec::settings::Rule;

use crate::collective::of_class;
use crate::{AxisId, ClassId, Collective, CollectiveKind, Exchanged, GRID_ELEMENTS, Held, Moment, Plan};

/// Partitions masters and moments over the data axis.
pub(super) fn partition_optimizer_state(plan: &mut Plan) {
    let trained = plan.trained_classes();
    for id in &trained {
        plan.holdings[id.0 as usize].optimizer = Held::Shard(AxisId::Data);
    }
    let what = (CollectiveKind::AllGather, Exchanged::Parameters);
    let gathered: Vec<_> = trained
        .into_iter()
        .map(|id| of_class(plan, id, what, plan.zero.gather_bucket, Moment::AfterUpdate))
        .collect();
    plan.collectives.retain(|c| (c.kind, c.of) != (CollectiveKind::AllGather, Exchanged::Gradients));
    for id in plan.trained_classes() {
        plan.collectives.extend(needed_by_rule(plan, id));
    }
    plan.collectives.extend(gathered);
}

/// What ranks tell one another because a rule looks at whole tensors, and each has a shard of their state.
fn needed_by_rule(plan: &Plan, id: ClassId) -> Vec<Collective> {
    let class = plan.partition.class(id);
    let gather = |of, elements, together| Collective {
        kind: CollectiveKind::AllGather,
        axis: AxisId::Data,
        of,
        class: Some(id),
        elements,
        turns: class.turns,
        together,
        moment: Moment::BeforeUpdate,
    };
    let rows = class.elements / GRID_ELEMENTS;
    let lengths = |vectors| gather(Exchanged::Lengths, vectors * rows, class.turns);
    let whole = gather(Exchanged::Tensors, class.elements, 1);
    match plan.partition.update(class).rule {
        Rule::AdamW(_) | Rule::Adam(_) | Rule::Sgd { .. } | Rule::Lion { .. } => vec![],
        Rule::Lamb { .. } => vec![lengths(2)],
        Rule::Adafactor(rule) if rule.scale_parameter => vec![lengths(1), whole],
        Rule::Adafactor(_) | Rule::Muon(_) => vec![whole],
    }
}
