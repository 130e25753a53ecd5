//! The sum over micro-batches as a binary counter: after micro-batch i, level l holds the sum of 2ˡ of them where bit l of i + 1 is set.
//!
//! With the sum over ranks before it, which is the same tree over the lowest bits, a batch of 2ⁿ micro-batches is summed in one order, however they are divided
//! between ranks and turns of the loop. Every node is stored, and so rounded to the gradients' type.

use dspc_plan::{GRID_ELEMENTS, Plan};
use dspc_program::{Over, When};

use super::accumulate;
use crate::piece::Piece;
use crate::pool::Pool;
use crate::steps::{Place, Step, StorageKind};

/// The steps at the end of a micro-batch; none where there is but one. The sum of all is then where the last micro-batch's gradients are.
pub(super) fn count_up(plan: &Plan, piece: &Piece, pool: &mut Pool) -> Vec<Step> {
    let own = piece.own_gradients();
    let dtype = pool.storages[piece.gradients.0 as usize].dtype;
    let mut steps = vec![];
    for level in 0..plan.batch.accumulation.ilog2() {
        let name = format!("sum{}.{}", 1u64 << level, piece.name);
        let kept = pool.storage(&name, dtype, piece.shard, piece.turns, StorageKind::Gradients);
        let kept = Place { turn: piece.turns > 1, ..Place::start(kept) };
        let every = 2u64 << level;
        for (at, from, to, adds) in [(every - 1, kept, own, true), (every / 2 - 1, own, kept, false)] {
            steps.extend(piece.over_turns(vec![from, to], piece.shard, |rows, at_rows| {
                let step = accumulate::rows(rows, at_rows[0], at_rows[1], adds, pool);
                Step::Only(When::each(Over::MicroBatches, every, at), Box::new(step))
            }));
        }
    }
    debug_assert!(piece.shard.is_multiple_of(GRID_ELEMENTS));
    steps
}
