//! Lifetimes: from which step to which a storage holds something.
//!
//! Steps are numbered in the order they are written, a loop's body once. A storage used in one turn of a loop alone lives inside the turn; one that is used
//! outside too, or has a slot a turn, lives through the whole loop. Slots of turns do not outlive a micro-batch: the next one writes them anew.

use std::collections::BTreeMap;

use dspc_kernel::steps::{Step, Storage, StorageId};

/// Steps `first..=last` in the numbering of [`lifetimes`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lifetime {
    pub first: u32,
    pub last: u32,
}

impl Lifetime {
    pub fn overlaps(self, other: Lifetime) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    pub fn with(self, other: Lifetime) -> Lifetime {
        Lifetime { first: self.first.min(other.first), last: self.last.max(other.last) }
    }
}

/// A loop around a use: its steps, and whether it counts micro-batches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Around {
    first: u32,
    last: u32,
    micro: bool,
}

/// Where a storage is used: the step, and the loops around it, outermost first.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Use {
    step: u32,
    loops: Vec<Around>,
    /// The slot follows the micro-batch.
    micro: bool,
}

/// The lifetime of every storage that an entry uses, itself or through a view; a view has none of its own.
pub(crate) fn lifetimes(steps: &[Step], storages: &[Storage]) -> BTreeMap<StorageId, Lifetime> {
    let mut uses: BTreeMap<StorageId, Vec<Use>> = BTreeMap::new();
    let mut next = 0;
    collect(steps, &mut next, &mut vec![], &mut uses);
    let mut roots: BTreeMap<StorageId, (Vec<Use>, u64)> = BTreeMap::new();
    for (id, uses) in uses {
        let storage = &storages[id.0 as usize];
        let (all, slots) = roots.entry(storage.within.map_or(id, |within| within.storage)).or_default();
        all.extend(uses);
        *slots = storage.slots.max(*slots);
    }
    roots.into_iter().map(|(id, (uses, slots))| (id, lifetime(&uses, slots))).collect()
}

fn collect(
    steps: &[Step],
    next: &mut u32,
    loops: &mut Vec<Around>,
    uses: &mut BTreeMap<StorageId, Vec<Use>>,
) {
    for step in steps {
        if let Step::Loop(inner) = step {
            let start = *next;
            loops.push(Around { first: start, last: start + count(&inner.body) - 1, micro: inner.micro });
            collect(&inner.body, next, loops, uses);
            loops.pop();
            continue;
        }
        for place in step.places() {
            uses.entry(place.storage).or_default().push(Use {
                step: *next,
                loops: loops.clone(),
                micro: place.micro,
            });
        }
        *next += 1;
    }
}

/// Steps, those of loops' bodies included.
fn count(steps: &[Step]) -> u32 {
    let of = |step: &Step| match step {
        Step::Loop(inner) => count(&inner.body),
        _ => 1,
    };
    steps.iter().map(of).sum::<u32>().max(1)
}

fn lifetime(uses: &[Use], slots: u64) -> Lifetime {
    let shared = uses.iter().map(|u| &u.loops).fold(uses[0].loops.clone(), |mut shared, loops| {
        let same = shared.iter().zip(loops).take_while(|(a, b)| a == b).count();
        shared.truncate(same);
        shared
    });
    // A storage outlives the loops that choose its slot.
    let by_micro = uses.iter().any(|u| u.micro);
    let depth =
        if slots > 1 { shared.iter().take_while(|l| l.micro && !by_micro).count() } else { shared.len() };
    let widened = uses.iter().map(|u| match u.loops.get(depth) {
        Some(around) => Lifetime { first: around.first, last: around.last },
        None => Lifetime { first: u.step, last: u.step },
    });
    widened.reduce(Lifetime::with).unwrap_or(Lifetime { first: 0, last: 0 })
}
