//! Streams: collectives beside compute, and the events that keep them apart where they touch the same bytes.
//!
//! Reads   an entry in the order in which it would run on one stream, with every byte placed.
//! Writes  collectives on a stream of their own; what they wait for, and what waits for them.
//! Keeps   the instructions and their order on each stream; every result: two instructions that touch common bytes, one of them writing, stay in order.
//! Leaves  alone entries without collectives.
//! Cost    a few walks over the unrolled entry, of three micro-batches at most.
//!
//! A collective waits for all compute that was issued before it. Compute waits for a collective where it first touches bytes of it, or, where the collective's event
//! would be recorded anew before that, at the last instruction before: so a bucket has one turn of the loop's to travel. A wait for an event that was not
//! recorded yet in this run of the entry is no wait.

use std::collections::BTreeSet;

use dspc_program::{Action, Entry, EventId, Instruction, Over, Program, StreamId};

use crate::bytes::{Use, uses};

/// Where collectives run.
const COLLECTIVES: StreamId = StreamId(1);

/// Micro-batches that are walked: what later ones do, the third does.
const MICRO_BATCHES_MAX: u64 = 3;

/// Moves an entry's collectives to a stream of their own.
pub(crate) fn overlap_collectives(program: &Program, entry: &mut Entry) {
    let mut flat = Flat::default();
    flat.block(&entry.body);
    if flat.instructions.iter().all(|i| !is_collective(i)) {
        return;
    }
    let events = Events::of(&flat);
    let mut waits = vec![BTreeSet::new(); flat.instructions.len()];
    // A wait that is found late in a walk holds in its beginning too, and may make others needless; that costs nothing.
    loop {
        let mut walk = Walk {
            program,
            flat: &flat,
            waits: &mut waits,
            issued: vec![],
            open: vec![],
            compute: vec![],
            changed: false,
        };
        walk.block(&flat.tree, 0, 0);
        if !walk.changed {
            break;
        }
    }
    let mut next = 0;
    write(&mut entry.body, &events, &waits, &mut next);
}

fn is_collective(instruction: &Instruction) -> bool {
    matches!(instruction.action, Action::Collective(_))
}

/// Instructions but for loops, numbered in the order in which they are written.
#[derive(Default)]
struct Flat<'a> {
    instructions: Vec<&'a Instruction>,
    tree: Vec<Node<'a>>,
}

/// A block's content.
enum Node<'a> {
    One(usize),
    Loop { over: Over, count: u64, reverse: bool, body: Vec<Node<'a>>, of: &'a Instruction },
}

impl<'a> Flat<'a> {
    fn block(&mut self, body: &'a [Instruction]) {
        let tree = self.nodes(body);
        self.tree = tree;
    }

    fn nodes(&mut self, body: &'a [Instruction]) -> Vec<Node<'a>> {
        let node = |instruction: &'a Instruction| match &instruction.action {
            Action::Loop { over, count, reverse, body } => Node::Loop {
                over: *over,
                count: *count,
                reverse: *reverse,
                body: self.nodes(body),
                of: instruction,
            },
            _ => {
                self.instructions.push(instruction);
                Node::One(self.instructions.len() - 1)
            }
        };
        body.iter().map(node).collect()
    }
}

/// Which event each instruction records, and for which of compute's each collective waits.
struct Events {
    records: Vec<Option<EventId>>,
    before: Vec<BTreeSet<usize>>,
}

impl Events {
    fn of(flat: &Flat<'_>) -> Self {
        let count = flat.instructions.len();
        let mut before = vec![BTreeSet::new(); count];
        before_collectives(flat, &flat.tree, &BTreeSet::new(), &mut before);
        let waited: BTreeSet<usize> = before.iter().flatten().copied().collect();
        let mut next = 0;
        let record = |i: usize| {
            (is_collective(flat.instructions[i]) || waited.contains(&i)).then(|| {
                next += 1;
                EventId(next - 1)
            })
        };
        Self { records: (0..count).map(record).collect(), before }
    }
}

/// The compute instructions one of which is the last before what follows a block: all those behind the last that is always done, and that. `at` holds them for
/// the block's beginning.
fn before_collectives(
    flat: &Flat<'_>,
    block: &[Node<'_>],
    at: &BTreeSet<usize>,
    before: &mut [BTreeSet<usize>],
) -> BTreeSet<usize> {
    let mut at = at.clone();
    for node in block {
        match node {
            Node::One(i) if is_collective(flat.instructions[*i]) => before[*i].extend(&at),
            Node::One(i) => {
                if flat.instructions[*i].when.is_none() {
                    at.clear();
                }
                at.insert(*i);
            }
            Node::Loop { body, of, .. } => {
                // The turn before, or what stands before the loop.
                let end = before_collectives(flat, body, &at, before);
                at.extend(end);
                let end = before_collectives(flat, body, &at, before);
                if of.when.is_none() {
                    at.clear();
                }
                at.extend(end);
            }
        }
    }
    at
}

/// A collective that was issued.
struct Issued {
    number: usize,
    uses: Vec<Use>,
    /// Compute instructions that had been issued by then.
    compute: usize,
}

struct Walk<'a, 'f> {
    program: &'a Program,
    flat: &'f Flat<'a>,
    /// By instruction: collectives that it waits for.
    waits: &'f mut [BTreeSet<usize>],
    issued: Vec<Issued>,
    /// Of those, the ones that compute has not waited for.
    open: Vec<usize>,
    /// Compute instructions in the order issued.
    compute: Vec<usize>,
    changed: bool,
}

impl Walk<'_, '_> {
    fn block(&mut self, block: &[Node<'_>], turn: u64, micro: u64) {
        for node in block {
            match node {
                Node::One(i) => self.instruction(*i, turn, micro),
                Node::Loop { over: Over::MicroBatches, count, reverse, body, .. } => {
                    let walked = |i: &u64| *i + 1 < MICRO_BATCHES_MAX || *i + 1 == *count;
                    let all = (0..*count).filter(walked).map(|i| if *reverse { count - 1 - i } else { i });
                    all.for_each(|i| self.block(body, turn, i));
                }
                Node::Loop { over: Over::Turns, count, reverse, body, .. } => {
                    let all = (0..*count).map(|i| if *reverse { count - 1 - i } else { i });
                    all.for_each(|i| self.block(body, i, micro));
                }
            }
        }
    }

    fn instruction(&mut self, number: usize, turn: u64, micro: u64) {
        let instruction = self.flat.instructions[number];
        if instruction.when.is_some_and(|when| !when.holds(turn, micro)) {
            return;
        }
        if is_collective(instruction) {
            let uses = uses(self.program, instruction, turn, micro);
            self.open.push(self.issued.len());
            self.issued.push(Issued { number, uses, compute: self.compute.len() });
            return;
        }
        for waited in self.waits[number].clone() {
            self.close(waited);
        }
        self.compute.push(number);
        if self.open.is_empty() {
            return;
        }
        let own = uses(self.program, instruction, turn, micro);
        let clash = |issued: &Issued| issued.uses.iter().any(|a| own.iter().any(|b| a.clashes(b)));
        let found: Vec<usize> = self.open.iter().copied().filter(|&i| clash(&self.issued[i])).collect();
        for at in found {
            if self.open.contains(&at) {
                self.wait(at);
            }
        }
    }

    /// The stream of collectives keeps their order: all up to the last of that number are done.
    fn close(&mut self, number: usize) {
        let last = self.open.iter().rposition(|&i| self.issued[i].number == number);
        if let Some(last) = last {
            self.open.drain(..=last);
        }
    }

    /// The instruction at hand touches bytes of a collective.
    fn wait(&mut self, at: usize) {
        let Issued { number, compute: since, .. } = self.issued[at];
        let again = self.issued[at + 1..].iter().find(|later| later.number == number);
        // The last compute instruction before the event is recorded anew, if there is one that is always done.
        let until = again.map_or(self.compute.len(), |later| later.compute);
        let always = |i: &&usize| self.flat.instructions[**i].when.is_none();
        let earlier = again.and_then(|_| self.compute[since..until].iter().rev().find(always).copied());
        let waiting = earlier.unwrap_or(self.compute[self.compute.len() - 1]);
        self.changed |= self.waits[waiting].insert(number);
        self.open.retain(|&i| i > at);
    }
}

fn write(body: &mut [Instruction], events: &Events, waits: &[BTreeSet<usize>], next: &mut usize) {
    for instruction in body {
        if let Action::Loop { body, .. } = &mut instruction.action {
            write(body, events, waits, next);
            continue;
        }
        let number = *next;
        *next += 1;
        let waited = if is_collective(instruction) {
            instruction.stream = COLLECTIVES;
            &events.before[number]
        } else {
            &waits[number]
        };
        instruction.waits = waited.iter().filter_map(|&i| events.records[i]).collect();
        instruction.records = events.records[number];
    }
}
