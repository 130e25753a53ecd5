//! Reduce-scatter: gradients are summed over ranks as soon as the backward pass has filled their bucket.
//!
//! Reads   the steps of a micro-batch, the plan's collectives.
//! Writes  the same steps with those collectives: in the loop that fills a class' buckets turn by turn, or behind the last step that touches it.
//! Keeps   every step and their order.
//! Leaves  alone classes that no step touches: their gradients are zero on every rank.
//! Cost    one walk over the steps.

use dspc_plan::{CollectiveKind as Kind, Exchanged, Moment, Plan};

use super::{at_turns, bucket, collective, in_last_micro_batch, planned};
use crate::piece::Piece;
use crate::pool::Pool;
use crate::state::State;
use crate::steps::{CollectiveKind, KernelIndex, Part, Place, Step, StorageId};

/// Adds the collectives of gradients to a micro-batch.
pub(crate) fn reduce_gradients(
    plan: &Plan,
    state: &State,
    mut steps: Vec<Step>,
    pool: &mut Pool,
) -> Vec<Step> {
    let shared = state.pieces.iter().filter(|piece| piece.is_shared());
    // What is added stands behind a step, so that the places of those before do not move: the last first.
    let mut ends: Vec<(usize, &Piece)> =
        shared.filter_map(|piece| Some((last_use(&steps, piece.gradients, pool)?, piece))).collect();
    ends.sort_by_key(|(end, _)| std::cmp::Reverse(*end));
    for (end, piece) in ends {
        let exchange = Exchange { plan, piece, sum: sum_over_ranks(plan, piece, pool) };
        match &mut steps[end] {
            Step::Loop(inner) if inner.count == piece.turns && piece.turns > 1 => {
                inner.body.extend(exchange.in_loop());
                let after = exchange.after_loop();
                steps.splice(end + 1..end + 1, after);
            }
            _ => {
                let after = exchange.after_loop();
                steps.splice(end + 1..end + 1, after);
            }
        }
    }
    steps
}

/// The last of the steps that uses a storage.
fn last_use(steps: &[Step], storage: StorageId, pool: &Pool) -> Option<usize> {
    steps.iter().rposition(|step| step.places().iter().any(|p| pool.root(p.storage) == storage))
}

/// The collectives of one piece's gradients.
struct Exchange<'a> {
    plan: &'a Plan,
    piece: &'a Piece,
    sum: KernelIndex,
}

impl Exchange<'_> {
    /// At the end of a turn of the loop that fills the buckets, from the last turn to the first.
    fn in_loop(&self) -> Vec<Step> {
        self.steps(|together| together < self.piece.turns)
    }

    /// Behind that loop, or behind the step that fills the one bucket.
    fn after_loop(&self) -> Vec<Step> {
        self.steps(|together| together == self.piece.turns)
    }

    fn steps(&self, here: impl Fn(u64) -> bool) -> Vec<Step> {
        let gradients = planned(self.plan, self.piece).filter(|c| c.of == Exchanged::Gradients);
        let in_backward = gradients.filter(|c| matches!(c.moment, Moment::Backward | Moment::LastBackward));
        let step = |c: &dspc_plan::Collective| {
            let step = self.collective(c.kind, c.together);
            match c.moment {
                Moment::LastBackward => in_last_micro_batch(self.plan, step),
                _ if c.together < self.piece.turns => at_turns(c.together, 0, step),
                _ => step,
            }
        };
        in_backward.filter(|c| here(c.together)).map(step).collect()
    }

    fn collective(&self, kind: Kind, together: u64) -> Step {
        let piece = self.piece;
        let by_turn = together < piece.turns;
        let parts = (0..together).map(|i| {
            let at = |place: Place| bucket(Place { turn: by_turn, ..place }, piece.turns, i);
            let whole = at(piece.at_turn(piece.gradients, piece.holding.gradients, piece.elements));
            let own = at(piece.own_gradients());
            match kind {
                Kind::ReduceScatter => Part { from: whole, to: own, elements: piece.shard },
                Kind::AllGather => Part { from: own, to: whole, elements: piece.shard },
            }
        });
        let kind = match kind {
            Kind::ReduceScatter => {
                CollectiveKind::ReduceScatter { sum: self.sum, tree: self.plan.deterministic }
            }
            Kind::AllGather => CollectiveKind::AllGather,
        };
        collective(kind, parts.collect(), &piece.name)
    }
}

/// The kernel that adds a shard of every rank.
fn sum_over_ranks(plan: &Plan, piece: &Piece, pool: &mut Pool) -> KernelIndex {
    super::sum::sum_over_ranks(
        plan.partition.shards,
        piece.shard,
        pool.storages[piece.gradients.0 as usize].dtype,
        pool,
    )
}
