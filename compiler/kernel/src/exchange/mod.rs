//! Exchanges: the plan's collectives as steps, where in an entry they belong.

mod accumulate;
mod ahead;
mod counter;
mod gather;
mod reduce;
mod squares;
mod sum;

pub(crate) use ahead::gather_ahead;
pub(crate) use gather::{gather_losses, gather_summed, gather_updated};
pub(crate) use reduce::reduce_gradients;
pub(crate) use squares::squares;

use dspc_plan::{Collective as Planned, Plan};

use dspc_program::{Over, When};

use crate::piece::Piece;
use crate::steps::{Collective, CollectiveKind, Part, Place, Step};

/// The plan's collectives of a piece.
fn planned<'p>(plan: &'p Plan, piece: &Piece) -> impl Iterator<Item = &'p Planned> {
    let class = piece.class;
    plan.collectives.iter().filter(move |c| c.class.is_some() && c.class == class)
}

/// The bucket `after` turns behind the turn's, or that of a given turn.
fn bucket(at: Place, turns: u64, after: u64) -> Place {
    Place { add: if turns > 1 { after % turns } else { 0 }, ..at }
}

/// A collective of the buckets at hand; those of all turns where they travel together.
pub(crate) fn collective(kind: CollectiveKind, parts: Vec<Part>, origin: &str) -> Step {
    Step::Collective(Collective { kind, parts, origin: origin.into() })
}

/// Only in the last of several micro-batches.
fn in_last_micro_batch(plan: &Plan, step: Step) -> Step {
    match plan.batch.accumulation {
        0 | 1 => step,
        every => Step::Only(When::each(Over::MicroBatches, every, every - 1), Box::new(step)),
    }
}

/// Only at every so many turns.
fn at_turns(every: u64, at: u64, step: Step) -> Step {
    if every == 1 { step } else { Step::Only(When::each(Over::Turns, every, at), Box::new(step)) }
}
