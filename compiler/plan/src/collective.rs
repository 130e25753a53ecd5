//! What ranks tell one another in a step, and how much.
//!
//! Reads   the mesh, the partition, how often micro-batches are summed.
//! Writes  the collectives of ZeRO stage 0: gradients are summed over the data axis, squares and losses made known to all.
//! Keeps   an all-reduce is a reduce-scatter and an all-gather, always.
//! Leaves  alone what a rank holds: ZeRO's passes rewrite the list with it.
//! Cost    one walk over the classes.

use crate::{AxisId, ClassId, GRID_ELEMENTS, Plan};

/// Kinds of collectives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CollectiveKind {
    /// Every rank gets its shard of the sum.
    ReduceScatter,
    /// Every rank gets all shards.
    AllGather,
}

/// What is exchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exchanged {
    /// A class' gradients.
    Gradients,
    /// A class' parameters.
    Parameters,
    /// Sums of squares of a class' gradients, one a row of the grid.
    Squares,
    /// Sums of squares of a class' parameters and directions, one a row of the grid: for rules that measure tensors.
    Lengths,
    /// A class' gradients or momentum once more, whole as long as a bucket is updated: for rules that look at whole tensors.
    Tensors,
    /// Losses of a step.
    Losses,
}

/// When in a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// Ahead of their use in every micro-batch's forward pass.
    Forward,
    /// In every micro-batch's backward pass.
    Backward,
    /// In that of the last micro-batch.
    LastBackward,
    /// After all micro-batches, before the update.
    BeforeUpdate,
    /// After the update.
    AfterUpdate,
}

/// A collective over one axis.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Collective {
    /// Which.
    pub kind: CollectiveKind,
    /// Over which axis.
    pub axis: AxisId,
    /// Of what.
    pub of: Exchanged,
    /// Of which class; `None` for losses.
    pub class: Option<ClassId>,
    /// Elements of a bucket, whole.
    pub elements: u64,
    /// Buckets, one a turn.
    pub turns: u64,
    /// Buckets that travel together.
    pub together: u64,
    /// When.
    pub moment: Moment,
}

impl Collective {
    /// Elements that a rank sends in a step: it has one shard of each bucket already.
    pub fn sent(&self, plan: &Plan) -> u64 {
        let ranks = plan.mesh.size(self.axis);
        let times = match self.moment {
            Moment::Forward | Moment::Backward => plan.batch.accumulation,
            Moment::LastBackward | Moment::BeforeUpdate | Moment::AfterUpdate => 1,
        };
        self.elements / ranks * (ranks - 1) * self.turns * times
    }
}

/// Elements that travel together, at most, whatever the spec allows: more gains nothing.
const TOGETHER_MAX: u64 = 32 << 20;

/// A collective of a class' gradients or parameters; `bucket` is the most elements that may travel together.
pub(crate) fn of_class(
    plan: &Plan,
    id: ClassId,
    (kind, of): (CollectiveKind, Exchanged),
    bucket: u64,
    moment: Moment,
) -> Collective {
    let class = plan.partition.class(id);
    let fits = |turns: &u64| {
        class.turns.is_multiple_of(*turns) && turns * class.elements <= bucket.min(TOGETHER_MAX)
    };
    let together = (1..=class.turns).rev().find(fits).unwrap_or(1);
    // Only some turns, and only of one micro-batch, is more than an instruction can say.
    let one_micro_batch = moment == Moment::LastBackward && plan.batch.accumulation > 1;
    let together = if one_micro_batch && together < class.turns { 1 } else { together };
    Collective {
        kind,
        axis: AxisId::Data,
        of,
        class: Some(id),
        elements: class.elements,
        turns: class.turns,
        together,
        moment,
    }
}

/// The collectives of ZeRO stage 0; none on an axis of one rank.
pub(crate) fn place_collectives(plan: &mut Plan) {
    if plan.mesh.size(AxisId::Data) == 1 {
        return;
    }
    let moment = if plan.deterministic { Moment::Backward } else { Moment::LastBackward };
    let gathered = if plan.deterministic { Moment::BeforeUpdate } else { Moment::LastBackward };
    let bucket = plan.zero.reduce_bucket;
    let of = |kind| (kind, Exchanged::Gradients);
    let mut all = vec![];
    for (id, class) in plan.partition.classes().filter(|(_, c)| !plan.partition.update(c).frozen) {
        all.push(of_class(plan, id, of(CollectiveKind::ReduceScatter), bucket, moment));
        all.push(of_class(plan, id, of(CollectiveKind::AllGather), bucket, gathered));
        all.push(Collective {
            kind: CollectiveKind::AllGather,
            axis: AxisId::Data,
            of: Exchanged::Squares,
            class: Some(id),
            elements: class.elements / GRID_ELEMENTS,
            turns: class.turns,
            together: class.turns,
            moment: Moment::BeforeUpdate,
        });
    }
    all.push(Collective {
        kind: CollectiveKind::AllGather,
        axis: AxisId::Data,
        of: Exchanged::Losses,
        class: None,
        elements: plan.mesh.size(AxisId::Data),
        turns: plan.batch.accumulation,
        together: plan.batch.accumulation,
        moment: Moment::BeforeUpdate,
    });
    plan.collectives = all;
}
