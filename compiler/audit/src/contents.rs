//! What every byte holds: whether it was written, through which buffer, and for which turn.

use crate::memory::{outlives_entries, share, slot_bytes};
use crate::region::{Region, Regions};
use crate::walk::{MICRO_BATCHES_MAX, Step};
use crate::{EntryKind, Rule, finding::Findings, uses::Use};
use dspc_program::{Action, Buffer, Entry, Instruction, Over, Place, Program, Role};

/// The state of memory while an entry runs.
pub(crate) struct Contents<'a> {
    program: &'a Program,
    kind: EntryKind,
    buffers: Vec<Held>,
    /// Other buffers with bytes of this one.
    sharers: Vec<Vec<usize>>,
}

/// What a buffer holds.
#[derive(Clone, Default)]
struct Held {
    /// Bytes that were written through this buffer and not overwritten through another.
    valid: Regions,
    /// Bytes that were ever written through this buffer.
    ever: Regions,
    /// Who wrote a slot last.
    writers: Vec<Option<Index>>,
}

/// A place with the loops' values put in, before the slots wrap round.
#[derive(Clone, Copy)]
struct Index {
    place: Place,
    value: u64,
}

impl Index {
    fn of(place: &Place, step: &Step<'_>) -> Self {
        let turn = if place.turn { step.turn.unwrap_or(0) } else { 0 };
        let micro = if place.micro { step.micro.unwrap_or(0) } else { 0 };
        Self { place: *place, value: place.add.saturating_add(turn).saturating_add(micro) }
    }

    /// Whether a place that meets the same slot means the same turn's data.
    ///
    /// `add` may stand for a step back (`slots − 1` for −1), so where two places differ in it, one wrap is no evidence. Where one of them
    /// does not follow the loop there is nothing to compare.
    fn is_for(&self, other: &Self, slots: u64) -> bool {
        let comparable = (self.place.turn, self.place.micro) == (other.place.turn, other.place.micro);
        let apart = self.value.abs_diff(other.value);
        !comparable || apart == 0 || (apart == slots && self.place.add != other.place.add)
    }
}

impl<'a> Contents<'a> {
    pub(crate) fn at_start(program: &'a Program, kind: EntryKind) -> Self {
        let all = &program.buffers;
        let buffers = all.iter().map(Held::at_start).collect();
        let sharers_of = |a: usize| {
            let other = |b: &usize| *b != a && share(&all[a], &all[*b]);
            (0..all.len()).filter(other).collect()
        };
        Self { program, kind, buffers, sharers: (0..all.len()).map(sharers_of).collect() }
    }

    pub(crate) fn step(&mut self, kind: EntryKind, step: &Step<'_>, uses: &[Use], findings: &mut Findings) {
        for (index, used) in uses.iter().enumerate() {
            // An epilogue reads the product that stands before it in the list.
            if used.reads() && !uses[..index].iter().any(|u| u.writes() && u.region.covers(&used.region)) {
                self.read(kind, step, used, findings);
            }
        }
        for used in uses.iter().filter(|used| used.writes()) {
            self.write(kind, step, used, findings);
        }
    }

    fn read(&self, kind: EntryKind, step: &Step<'_>, used: &Use, findings: &mut Findings) {
        let buffer = &self.program.buffers[used.buffer];
        let held = &self.buffers[used.buffer];
        if !held.valid.covers(&used.region) {
            let lost = held.ever.covers(&used.region);
            let rule = if lost { Rule::ReadAfterOverwritten } else { Rule::ReadBeforeWritten };
            findings.add_at(rule, kind, step, format!("slot {} of `{}`", used.slot, buffer.name));
        } else if let Some(writer) = held.writers[used.slot as usize] {
            let reader = Index::of(&used.place, step);
            if !writer.is_for(&reader, buffer.slots) {
                let facts = format!(
                    "slot {} of `{}` holds index {}, and {} is wanted",
                    used.slot, buffer.name, writer.value, reader.value
                );
                findings.add_at(Rule::SlotReused, kind, step, facts);
            }
        }
    }

    fn write(&mut self, kind: EntryKind, step: &Step<'_>, used: &Use, findings: &mut Findings) {
        let buffer = &self.program.buffers[used.buffer];
        if !may_write(kind, buffer.role) {
            findings.add_at(Rule::WriteForbidden, kind, step, format!("`{}` ({:?})", buffer.name, buffer.role));
        }
        for other in &self.sharers[used.buffer] {
            self.buffers[*other].valid.remove(&used.region);
        }
        let held = &mut self.buffers[used.buffer];
        let region = with_padding(buffer, used);
        held.valid.add(region);
        held.ever.add(region);
        held.writers[used.slot as usize] = Some(Index::of(&used.place, step));
    }

    /// What the runtime reads after the entry must be there.
    pub(crate) fn at_end(&self, entry: &Entry, findings: &mut Findings) {
        let cut_short = longest_accumulation(&entry.body) > MICRO_BATCHES_MAX;
        for (buffer, held) in self.program.buffers.iter().zip(&self.buffers) {
            let slots = match (self.kind, buffer.role) {
                (EntryKind::Train, Role::Loss) if cut_short => buffer.slots.min(MICRO_BATCHES_MAX),
                (EntryKind::Train, Role::Loss | Role::GradNorm | Role::Finite) => buffer.slots,
                (EntryKind::Evaluate, Role::Loss) | (EntryKind::Logits, Role::Logits) => 1,
                _ => 0,
            };
            for slot in 0..slots {
                let region = Region::run(buffer.offset + slot * buffer.stride, slot_bytes(buffer));
                if !held.valid.covers(&region) {
                    let facts = format!("slot {slot} of `{}` ({:?})", buffer.name, buffer.role);
                    findings.add(Rule::ResultMissing, self.kind.name(), facts);
                    break;
                }
            }
        }
    }
}

impl Held {
    fn at_start(buffer: &Buffer) -> Self {
        let mut held = Self { writers: vec![None; buffer.slots as usize], ..Self::default() };
        if outlives_entries(buffer.role) {
            let whole = buffer.stride.saturating_mul(buffer.slots - 1) + slot_bytes(buffer);
            held.valid.add(Region::run(buffer.offset, whole));
            held.ever = held.valid.clone();
        }
        held
    }
}

/// Whether instructions of an entry may write a buffer of this role.
fn may_write(kind: EntryKind, role: Role) -> bool {
    match role {
        Role::Inner | Role::Loss | Role::GradNorm | Role::Finite | Role::Logits => true,
        Role::Param | Role::Moment | Role::AppliedSteps => kind == EntryKind::Train,
        Role::Tokens | Role::Targets | Role::InvTargets | Role::Rng | Role::Table => false,
    }
}

/// The bytes written, and the padding behind a slot that is written to its end: whoever reads across slots reads it too.
fn with_padding(buffer: &Buffer, used: &Use) -> Region {
    let slot_start = buffer.offset + used.slot * buffer.stride;
    let whole = Region::run(slot_start, slot_bytes(buffer));
    let last = used.slot + 1 == buffer.slots;
    if used.region == whole && !last { Region::run(slot_start, buffer.stride) } else { used.region }
}

fn longest_accumulation(body: &[Instruction]) -> u64 {
    let count = |instruction: &Instruction| match &instruction.action {
        Action::Loop { over: Over::MicroBatches, count, .. } => *count,
        _ => 0,
    };
    body.iter().map(count).max().unwrap_or(0)
}
