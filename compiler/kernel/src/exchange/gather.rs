//! All-gather: what ranks must know of one another's shards, parameters after the update and losses.

use dspc_plan::{CollectiveKind as Kind, Exchanged, Held, Moment, Plan};

use super::{at_turns, bucket, collective, planned};
use crate::piece::Piece;
use crate::state::State;
use crate::steps::{CollectiveKind, Part, Place, Step, StorageId};

/// Parameters that every rank holds whole, from the shards that each rank has updated.
pub(crate) fn gather_updated(plan: &Plan, state: &State) -> Vec<Step> {
    let what = (Kind::AllGather, Exchanged::Parameters, Moment::AfterUpdate);
    gathered(plan, state, what, |piece| (piece.parameters, piece.holding.parameters))
}

/// Gradients that every rank holds whole, from the shards in which they were summed.
pub(crate) fn gather_summed(plan: &Plan, state: &State) -> Vec<Step> {
    let what = (Kind::AllGather, Exchanged::Gradients, Moment::BeforeUpdate);
    gathered(plan, state, what, |piece| (piece.gradients, piece.holding.gradients))
}

fn gathered(
    plan: &Plan,
    state: &State,
    what: (Kind, Exchanged, Moment),
    storage: impl Fn(&Piece) -> (StorageId, Held),
) -> Vec<Step> {
    let of = |piece: &Piece| {
        let found = planned(plan, piece).find(|c| (c.kind, c.of, c.moment) == what);
        found.map_or(vec![], |c| gather_class(piece, storage(piece), c.together))
    };
    state.pieces.iter().flat_map(of).collect()
}

fn gather_class(piece: &Piece, (storage, held): (StorageId, Held), together: u64) -> Vec<Step> {
    let by_turn = together < piece.turns;
    let parts = (0..together).map(|i| {
        // In a loop the last of the turns that travel together is at hand.
        let after = if by_turn { piece.turns - i } else { i };
        let at = |elements| {
            let place = piece.at_turn(storage, held, elements);
            bucket(Place { turn: by_turn, ..place }, piece.turns, after)
        };
        Part { from: at(piece.shard), to: at(piece.elements), elements: piece.shard }
    });
    let gather = collective(CollectiveKind::AllGather, parts.collect(), &piece.name);
    if by_turn { piece.by_turn(vec![at_turns(together, together - 1, gather)]) } else { vec![gather] }
}

/// The losses of all ranks, of an entry of one micro-batch.
pub(crate) fn gather_losses(state: &State, steps: &mut Vec<Step>) {
    if let Some(part) = loss_parts(state, 1).first() {
        steps.push(collective(CollectiveKind::AllGather, vec![*part], "loss"));
    }
}

/// Parts that gather the losses of so many micro-batches; none on one rank.
pub(super) fn loss_parts(state: &State, micro_batches: u64) -> Vec<Part> {
    let Some(all) = state.losses else { return vec![] };
    let part = |i| Part {
        from: Place { add: i, ..Place::start(state.loss) },
        to: Place { add: i, ..Place::start(all) },
        elements: 1,
    };
    (0..micro_batches).map(part).collect()
}
