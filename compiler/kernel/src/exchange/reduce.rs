//! Reduce-scatter: gradients are summed over ranks as soon as the backward pass has filled their bucket.
//!
//! Reads   the steps of a micro-batch, the plan's collectives.
//! Writes  the same steps with those collectives: in the loop that fills a class' buckets turn by turn, or behind the last step that touches it; what is kept in
//!         shards is added up over micro-batches, later than its collective so that nobody waits for it.
//! Keeps   every step and their order.
//! Leaves  alone classes that no step touches: their gradients are zero on every rank.
//! Cost    one walk over the steps.

use dspc_plan::{CollectiveKind as Kind, Exchanged, Moment, Plan};
use dspc_program::{Over, When};

use super::{accumulate, at_turns, bucket, collective, counter, in_last_micro_batch, planned, sum};
use crate::piece::Piece;
use crate::pool::Pool;
use crate::state::State;
use crate::steps::{CollectiveKind, KernelIndex, Part, Place, Step, StorageId, StorageKind};

/// Adds the collectives of gradients to a micro-batch, and what sums them over micro-batches.
pub(crate) fn reduce_gradients(plan: &Plan, state: &State, steps: Vec<Step>, pool: &mut Pool) -> Vec<Step> {
    let mut woven = Woven { steps, added: vec![] };
    let mut end = vec![];
    for piece in state.trained() {
        let Some((first, last)) = uses(&woven.steps, piece.written, pool) else { continue };
        if piece.is_shared() {
            let exchange = Exchange::of(plan, piece, pool);
            woven.before(first, piece, exchange.zero());
            let (in_loop, after) = exchange.collectives();
            let sums = exchange.sums(pool);
            woven.after(last, piece, in_loop.into_iter().chain(sums.in_loop).collect(), after);
            end.extend(sums.at_end);
        }
        if plan.deterministic {
            end.extend(counter::count_up(plan, piece, pool));
        }
    }
    let mut steps = woven.finish();
    steps.extend(end);
    steps
}

/// The first and the last of the steps that use a storage.
fn uses(steps: &[Step], storage: StorageId, pool: &Pool) -> Option<(usize, usize)> {
    let uses = |step: &Step| step.places().iter().any(|p| pool.root(p.storage) == storage);
    Some((steps.iter().position(uses)?, steps.iter().rposition(uses)?))
}

/// Steps, and what is to stand between them.
struct Woven {
    steps: Vec<Step>,
    /// By the place before which they stand.
    added: Vec<(usize, Vec<Step>)>,
}

impl Woven {
    /// The body of the loop at a place, if its turns are the piece's.
    fn turns_of(&mut self, at: usize, piece: &Piece) -> Option<&mut Vec<Step>> {
        match &mut self.steps[at] {
            Step::Loop(inner) if piece.turns > 1 && inner.count == piece.turns => Some(&mut inner.body),
            _ => None,
        }
    }

    /// At the beginning of each turn of a loop, or before a step.
    fn before(&mut self, at: usize, piece: &Piece, steps: Vec<Step>) {
        match self.turns_of(at, piece) {
            Some(body) => drop(body.splice(0..0, steps)),
            None => self.added.push((at, steps)),
        }
    }

    /// At the end of each turn of a loop, and behind it.
    fn after(&mut self, at: usize, piece: &Piece, in_loop: Vec<Step>, after: Vec<Step>) {
        if let Some(body) = self.turns_of(at, piece) {
            body.extend(in_loop);
        }
        self.added.push((at + 1, after));
    }

    fn finish(mut self) -> Vec<Step> {
        self.added.sort_by_key(|(at, _)| *at);
        for (at, steps) in self.added.into_iter().rev() {
            self.steps.splice(at..at, steps);
        }
        self.steps
    }
}

/// The collectives of one piece's gradients.
struct Exchange<'a> {
    plan: &'a Plan,
    piece: &'a Piece,
    sum: KernelIndex,
    /// Shards that are added to the gradients, where micro-batches are summed after ranks; some turns'.
    arrived: Option<StorageId>,
}

/// Sums over micro-batches: in a turn of the loop that fills the buckets, and at the end of the micro-batch.
struct Sums {
    in_loop: Vec<Step>,
    at_end: Vec<Step>,
}

impl<'a> Exchange<'a> {
    fn of(plan: &'a Plan, piece: &'a Piece, pool: &mut Pool) -> Self {
        let dtype = pool.storages[piece.gradients.0 as usize].dtype;
        let sum = sum::sum_over_ranks(plan.partition.shards, piece.shard, dtype, pool);
        let adds = piece.holding.gradients.is_shard() && plan.batch.accumulation > 1 && !plan.deterministic;
        let arrived = adds.then(|| {
            let slots = piece.slots_at_once(plan, (Kind::ReduceScatter, Exchanged::Gradients));
            let name = format!("arrived.{}", piece.name);
            pool.storage(&name, dtype, piece.shard, slots, StorageKind::Activation)
        });
        Self { plan, piece, sum, arrived }
    }

    /// A bucket that shares memory with others holds anything where no op writes.
    fn zero(&self) -> Vec<Step> {
        let transient = self.piece.written != self.piece.gradients;
        let zero = transient && self.piece.has_gaps;
        zero.then(|| Step::Zero(self.written(), "bucket".into())).into_iter().collect()
    }

    /// The turn's bucket as ops write it.
    fn written(&self) -> Place {
        Place { turn: self.piece.turns > 1, ..Place::start(self.piece.written) }
    }

    /// Where the turn's shard of the sum goes.
    fn to(&self) -> Place {
        match self.arrived {
            Some(arrived) => Place { turn: self.piece.turns > 1, ..Place::start(arrived) },
            None => self.piece.own_gradients(),
        }
    }

    fn together(&self) -> u64 {
        planned(self.plan, self.piece).find(|c| c.of == Exchanged::Gradients).map_or(1, |c| c.together)
    }

    /// At the end of a turn of the loop that fills the buckets, from the last turn to the first; and behind it, or behind the step that fills the one bucket.
    fn collectives(&self) -> (Vec<Step>, Vec<Step>) {
        let gradients = planned(self.plan, self.piece).filter(|c| c.of == Exchanged::Gradients);
        let in_backward = gradients.filter(|c| matches!(c.moment, Moment::Backward | Moment::LastBackward));
        let (mut in_loop, mut after) = (vec![], vec![]);
        for c in in_backward {
            let step = self.collective(c.kind, c.together);
            let by_turn = c.together < self.piece.turns;
            let step = match c.moment {
                Moment::LastBackward if self.plan.batch.accumulation > 1 => {
                    in_last_micro_batch(self.plan, step)
                }
                _ if by_turn => at_turns(c.together, 0, step),
                _ => step,
            };
            if by_turn { in_loop.push(step) } else { after.push(step) }
        }
        (in_loop, after)
    }

    fn collective(&self, kind: Kind, together: u64) -> Step {
        let by_turn = together < self.piece.turns;
        let parts = (0..together).map(|i| {
            let at = |place: Place| bucket(Place { turn: by_turn, ..place }, self.piece.turns, i);
            let (whole, own) = (at(self.written()), at(self.to()));
            match kind {
                Kind::ReduceScatter => Part { from: whole, to: own, elements: self.piece.shard },
                Kind::AllGather => Part { from: own, to: whole, elements: self.piece.shard },
            }
        });
        let kind = match kind {
            Kind::ReduceScatter => {
                CollectiveKind::ReduceScatter { sum: self.sum, tree: self.plan.deterministic }
            }
            Kind::AllGather => CollectiveKind::AllGather,
        };
        collective(kind, parts.collect(), &self.piece.name)
    }

    /// What arrived with the turns that went before is added in each turn; what came last, at the end.
    fn sums(&self, pool: &mut Pool) -> Sums {
        let mut sums = Sums { in_loop: vec![], at_end: vec![] };
        let Some(arrived) = self.arrived else { return sums };
        let (turns, together) = (self.piece.turns, self.together());
        let slots = pool.storages[arrived.0 as usize].slots;
        let mut add = |turn: bool, after: u64| {
            let place = |storage, slots: u64| Place { turn, add: after % slots, ..Place::start(storage) };
            accumulate::add(self.piece, place(arrived, slots), place(self.piece.gradients, turns), pool)
        };
        if slots < turns {
            // Those that travelled with the group of turns before; in its own turns their memory is another's.
            let lag = if slots > together { together } else { 0 };
            if lag > 0 {
                let below = Some(turns - lag);
                let when = When { below, ..When::each(Over::Turns, 1, 0) };
                sums.in_loop.push(Step::Only(when, Box::new(add(true, lag))));
                sums.at_end = (0..together).map(|turn| add(false, turn)).collect();
            } else {
                sums.in_loop =
                    (0..together).map(|i| add(true, i)).map(|step| at_turns(together, 0, step)).collect();
            }
        } else {
            sums.at_end = self.piece.by_turn(vec![add(turns > 1, 0)]);
        }
        sums
    }
}
