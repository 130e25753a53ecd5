//! All-gather ahead of use: parameters that ranks share out are whole only where ops read them.
//!
//! Reads   the steps of an entry's micro-batch, in which ops read shared parameters from a class' whole buckets.
//! Writes  the same steps with all-gathers before each stretch of uses: outside a repeat once, in the loop over a repeat's turns a bucket (or some that travel together)
//!         at a time, while the turns before compute. Each stretch has storages of its own, whose bytes are free before and after.
//! Keeps   every step and their order.
//! Leaves  alone classes that every rank holds whole.
//! Cost    one walk over the steps a class.

use std::collections::BTreeMap;

use dspc_plan::{CollectiveKind as Kind, Exchanged, Plan};
use dspc_program::{Over, When};

use super::{at_turns, bucket, collective, planned};
use crate::piece::Piece;
use crate::pool::Pool;
use crate::state::State;
use crate::steps::{CollectiveKind, Loop, Part, Place, Step, StorageId, Within};

/// Adds the gathers of parameters to entries. Entries share no storage: each is placed in memory on its own.
pub(crate) fn gather_ahead<const N: usize>(
    plan: &Plan,
    state: &State,
    mut entries: [Vec<Step>; N],
    pool: &mut Pool,
) -> [Vec<Step>; N] {
    for piece in state.pieces.iter().filter(|piece| piece.holding.parameters.is_shard()) {
        let together =
            planned(plan, piece).find(|c| (c.kind, c.of) == (Kind::AllGather, Exchanged::Parameters));
        let mut gathering =
            Gathering { piece, together: together.map_or(1, |c| c.together), stretches: 0, pool };
        for steps in &mut entries {
            gathering.entry(steps);
        }
    }
    entries
}

struct Gathering<'a> {
    piece: &'a Piece,
    /// Buckets that travel together.
    together: u64,
    /// Stretches so far: the first takes the storages that ops read in all of them.
    stretches: u32,
    pool: &'a mut Pool,
}

impl Gathering<'_> {
    fn uses(&self, step: &Step) -> bool {
        step.places().iter().any(|p| self.pool.root(p.storage) == self.piece.read)
    }

    /// From the last stretch to the first, so that what is added moves no place that is still to be visited.
    fn entry(&mut self, steps: &mut Vec<Step>) {
        for (first, last) in self.stretches(steps).into_iter().rev() {
            let whole = self.own_storages(&mut steps[first..=last]);
            let before = match &mut steps[first] {
                Step::Loop(inner) if first == last && self.is_of_turns(inner) => self.in_loop(whole, inner),
                _ => vec![self.gather(whole, 0..self.piece.turns)],
            };
            steps.splice(first..first, before);
        }
    }

    fn is_of_turns(&self, inner: &Loop) -> bool {
        self.piece.turns > 1 && inner.count == self.piece.turns
    }

    /// Runs of steps that use the piece with no loop between that does not; a loop over the piece's turns is one of its own.
    fn stretches(&self, steps: &[Step]) -> Vec<(usize, usize)> {
        let mut all: Vec<(usize, usize)> = vec![];
        let mut open = false;
        for (i, step) in steps.iter().enumerate() {
            let by_turn = matches!(step, Step::Loop(inner) if self.is_of_turns(inner));
            match (self.uses(step), step) {
                (true, _) if open && !by_turn => {
                    if let Some((_, last)) = all.last_mut() {
                        *last = i;
                    }
                }
                (true, _) => {
                    all.push((i, i));
                    open = !by_turn;
                }
                (false, Step::Loop(_)) => open = false,
                (false, _) => {}
            }
        }
        all
    }

    /// Gives a stretch its own storages; that of its whole buckets.
    fn own_storages(&mut self, steps: &mut [Step]) -> StorageId {
        self.stretches += 1;
        if self.stretches == 1 {
            return self.piece.read;
        }
        let (pool, read) = (&mut *self.pool, self.piece.read);
        let root = pool.storages[read.0 as usize].clone();
        let whole = pool.storage(&root.name, root.dtype, root.elements, root.slots, root.kind);
        let mut copies = BTreeMap::from([(read, whole)]);
        for step in steps {
            step.change_places(&mut |place: &mut Place| {
                if pool.root(place.storage) == read {
                    place.storage = *copies.entry(place.storage).or_insert_with(|| {
                        let view = pool.storages[place.storage.0 as usize].clone();
                        let (offset, stride) = view.within.map_or((0, 0), |w| (w.offset, w.stride));
                        let within = Within { storage: whole, offset, stride };
                        pool.part(&view.name, view.elements, view.slots, view.kind, within)
                    });
                }
            });
        }
        whole
    }

    /// Buckets of given turns.
    fn gather(&self, whole: StorageId, turns: std::ops::Range<u64>) -> Step {
        let slots = self.pool.storages[whole.0 as usize].slots;
        let parts = turns.map(|turn| self.part(whole, false, (turn, turn % slots)));
        collective(CollectiveKind::AllGather, parts.collect(), &self.piece.name)
    }

    /// The bucket so many slots behind, of the shards and of the whole.
    fn part(&self, whole: StorageId, turn: bool, (of_shards, of_whole): (u64, u64)) -> Part {
        let from = bucket(Place { turn, ..Place::start(self.piece.parameters) }, self.piece.turns, of_shards);
        let to = Place { turn, add: of_whole, ..Place::start(whole) };
        Part { from, to, elements: self.piece.shard }
    }

    /// Gathers in each turn what turns to come will read; what must be there before the first.
    fn in_loop(&self, whole: StorageId, inner: &mut Loop) -> Vec<Step> {
        let (turns, together) = (self.piece.turns, self.together);
        let slots = self.pool.storages[whole.0 as usize].slots;
        if slots == turns {
            return vec![self.gather(whole, 0..turns)];
        }
        // One group of turns ahead, where there is memory for it.
        let ahead = if slots > together { together } else { 0 };
        let parts = (0..together).map(|i| {
            let after = if inner.reverse { turns - ahead - i } else { ahead + i };
            let slot = if inner.reverse { 2 * slots - ahead - i } else { ahead + i };
            self.part(whole, true, (after % turns, slot % slots))
        });
        let gather = collective(CollectiveKind::AllGather, parts.collect(), &self.piece.name);
        let at = if inner.reverse { together - 1 } else { 0 };
        let each = When::each(Over::Turns, together, at);
        let (when, first) = match (ahead, inner.reverse) {
            (0, _) => (each, None),
            (_, false) => (When { below: Some(turns - ahead), ..each }, Some(0..together)),
            (_, true) => (When { from: ahead, ..each }, Some(turns - together..turns)),
        };
        let step =
            if ahead == 0 { at_turns(together, at, gather) } else { Step::Only(when, Box::new(gather)) };
        inner.body.insert(0, step);
        first.map(|first| self.gather(whole, first)).into_iter().collect()
    }
}
