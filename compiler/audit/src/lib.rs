//! Proves a program sane, not knowing how it was made.
//!
//! Reads nothing but [`dspc_program`]'s types, so that it cannot share a mistake with the layers that wrote the program. [`audit`] returns
//! every [`Finding`], but leaves out a proof where what it rests on does not hold; no finding means that all of the following does.
//!
//! - *Memory*: every buffer lies in its arena on a 64-byte boundary; every place, at every turn and micro-batch, lies in its buffer, with
//!   all the elements that a kernel or a matrix product touches through it; what the runtime owns shares no byte with anything.
//! - *Contents*: nothing is read before it was written, after other data took its bytes, or from a slot that a later turn took over; an
//!   entry leaves what the runtime reads afterwards; only `train` changes learned tensors.
//! - *Order*: every event that is waited for is recorded, and a wait before its first record is none, so nothing waits for ever; two streams touch common bytes only if events order them;
//!   within one instruction a written operand is apart from every other, or is exactly one of those read.
//! - *Form*: ids are in range, loops nest as micro-batches outside turns, arguments are what their kernel declares.
//!
//! It does not check what kernels compute, nor that a kernel keeps to the operands it declares: tests of the kernels do.
//! More than three micro-batches are proven as three where none is special: the fourth turn of that loop does what the third did.

#![forbid(unsafe_code)]

mod contents;
mod finding;
mod form;
mod memory;
mod order;
mod region;
mod uses;
mod walk;

#[cfg(test)]
mod mutations;

pub use finding::{Finding, Rule};

use dspc_program::{Entry, Program};
use finding::Findings;

/// Everything that is wrong with `program`; empty if it is sane.
pub fn audit(program: &Program) -> Vec<Finding> {
    let mut findings = Findings::default();
    memory::check(program, &mut findings);
    form::check(program, &mut findings);
    // The walk below indexes by the ids and sizes that were just checked.
    if findings.is_empty() {
        for (kind, entry) in entries(program) {
            walk_entry(program, kind, entry, &mut findings);
        }
    }
    findings.into_vec()
}

/// What an entry is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum EntryKind {
    /// [`Program::train`]
    Train,
    /// [`Program::evaluate`]
    Evaluate,
    /// [`Program::logits`]
    Logits,
    /// [`Program::refresh`]
    Refresh,
}

impl EntryKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Evaluate => "evaluate",
            Self::Logits => "logits",
            Self::Refresh => "refresh",
        }
    }
}

pub(crate) fn entries(program: &Program) -> impl Iterator<Item = (EntryKind, &Entry)> {
    let two = [(EntryKind::Train, &program.train), (EntryKind::Evaluate, &program.evaluate)];
    let logits = program.logits.as_ref().map(|entry| (EntryKind::Logits, entry));
    let refresh = program.refresh.as_ref().map(|entry| (EntryKind::Refresh, entry));
    two.into_iter().chain(logits).chain(refresh)
}

/// One walk in issue order feeds the proofs that depend on it.
fn walk_entry(program: &Program, kind: EntryKind, entry: &Entry, findings: &mut Findings) {
    let mut contents = contents::Contents::at_start(program, kind);
    if let Some(refresh) = program.refresh.as_ref().filter(|_| kind != EntryKind::Refresh) {
        contents.after(refresh);
    }
    let mut order = order::Order::of(entry);
    let mut highest = 0;
    walk::walk(entry, &mut |step| {
        let uses = uses::of(program, kind, step, findings);
        highest =
            uses.iter().filter(|u| u.in_activations(program)).map(|u| u.region.end()).fold(highest, u64::max);
        uses::check_apart(kind, step, &uses, findings);
        order.step(kind, step, &uses, findings);
        contents.step(kind, step, &uses, findings);
    });
    contents.at_end(entry, findings);
    if highest > entry.peak_bytes {
        let facts = format!("it uses {highest} bytes of the activations and says {}", entry.peak_bytes);
        findings.add(Rule::PeakUnderstated, kind.name(), facts);
    }
}
