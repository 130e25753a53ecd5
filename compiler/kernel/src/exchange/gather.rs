//! All-gather: what ranks must know of one another's shards, parameters after the update and losses.

use dspc_plan::{CollectiveKind as Kind, Exchanged, Moment, Plan};

use super::{at_turns, bucket, collective, planned};
use crate::piece::Piece;
use crate::state::State;
use crate::steps::{CollectiveKind, Part, Place, Step};

/// Parameters that every rank holds whole, from the shards that each rank has updated.
pub(crate) fn gather_updated(plan: &Plan, state: &State) -> Vec<Step> {
    let gathered = |piece: &Piece| {
        let mut all = planned(plan, piece);
        let found = all.find(|c| {
            (c.kind, c.of, c.moment) == (Kind::AllGather, Exchanged::Parameters, Moment::AfterUpdate)
        });
        found.map_or(vec![], |c| gather_class(piece, c.together))
    };
    state.pieces.iter().flat_map(gathered).collect()
}

fn gather_class(piece: &Piece, together: u64) -> Vec<Step> {
    let by_turn = together < piece.turns;
    let parts = (0..together).map(|i| {
        // In a loop the last of the turns that travel together is at hand.
        let after = if by_turn { piece.turns - i } else { i };
        let at = |elements| {
            let place = piece.at_turn(piece.parameters, piece.holding.parameters, elements);
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
