//! Repeats: a loop over turns, its carried values in slots.
//!
//! A carried value has one storage: turn t reads slot t and writes slot t + 1 (in reverse: reads t + 1, writes t). With count + 1 slots every
//! turn's value is kept for the mirror; with two they take turns.

use dspc_graph::ir::{Carried, Repeat, Step as GraphStep, ValueId};

use super::{Lowering, Site};
use crate::locate::Location;
use crate::steps::{Loop, Place, Step};

impl Lowering<'_> {
    /// Gives carried values their storages before anything that writes them is lowered. `around` is the block the repeat stands in.
    pub(super) fn place_carried(&mut self, repeat: &Repeat, around: &[GraphStep]) {
        for c in &repeat.carried {
            let saved = self.saved.contains(&c.arg) || self.saved.contains(&c.result);
            let slots = if saved { repeat.count + 1 } else { 2 };
            let storage = self.storage(c.arg, slots);
            let dims = self.dims(c.arg);
            let at = |add: u64, turn: bool| {
                Location::dense(Place { add: add % slots, turn, ..Place::start(storage) }, &dims)
            };
            let (first, last) = if repeat.reverse { (repeat.count, 0) } else { (0, repeat.count) };
            let (read, write) = if repeat.reverse { (1, 0) } else { (0, 1) };
            self.locations.insert(c.arg, at(read, true));
            self.locations.insert(c.out, at(last, false));
            let overwritten = !saved && self.uses.get(&c.init).is_some_and(|&uses| uses > 1);
            if overwritten || !self.place(around, c.init, at(first, false)) {
                self.carried_inits.insert(c.arg, at(first, false));
            }
            if !self.place(&repeat.body.steps, c.result, at(write, true)) {
                self.carried_results.insert(c.arg, at(write, true));
            }
        }
    }

    /// Puts a value that an op of `steps` writes where it is wanted; false if it lies elsewhere already or is not written there.
    pub(super) fn place(&mut self, steps: &[GraphStep], value: ValueId, at: Location) -> bool {
        let here = steps.iter().any(|s| matches!(s, GraphStep::Op(node) if node.outputs.contains(&value)));
        let free = !self.locations.contains_key(&value) && !self.contributions.contains_key(&value);
        let placed = here && free && self.sites.get(&value).is_some_and(Site::writes);
        if placed {
            self.locations.insert(value, at);
        }
        placed
    }

    pub(super) fn lower_repeat(&mut self, repeat: &Repeat) -> Vec<Step> {
        let mut steps = vec![];
        for c in &repeat.carried {
            if let Some(to) = self.carried_inits.remove(&c.arg) {
                steps.extend(self.copy_to(c.init, &to, false));
            }
        }
        let moved = |c: &Carried, lowering: &mut Self| {
            lowering.carried_results.remove(&c.arg).map(|to| (c.result, to))
        };
        let results: Vec<_> = repeat.carried.iter().filter_map(|c| moved(c, self)).collect();
        let mut body = self.lower_block(&repeat.body);
        for (result, to) in results {
            body.extend(self.copy_to(result, &to, false));
        }
        steps.push(Step::Loop(Loop {
            name: repeat.name.clone(),
            micro: false,
            count: repeat.count,
            reverse: repeat.reverse,
            body,
        }));
        steps
    }

    pub(super) fn copy_to(&mut self, value: ValueId, to: &Location, accumulate: bool) -> Vec<Step> {
        let from = self.locate(value);
        let mut steps = std::mem::take(&mut self.pending);
        steps.extend(self.copy_steps(&from, to, self.graph.ty(value).dtype, accumulate));
        steps
    }
}
