//! What every byte holds: whether it was written, through which buffer, and for which turn.

use crate::memory::{buffer_end, bytes_of, root, roots_that_outlive, share, slot_bytes};
use crate::region::{Region, Regions};
use crate::walk::{Step, micro_batches_max};
use crate::{EntryKind, Rule, finding::Findings, uses, uses::Use, walk};
use dspc_program::{Action, Buffer, Entry, Instruction, Over, Place, Program, Role};
use std::collections::HashMap;

/// The state of memory while an entry runs.
pub(crate) struct Contents<'a> {
    program: &'a Program,
    kind: EntryKind,
    /// By root: a view's bytes are kept with the buffer that it is a view of.
    held: Vec<Held>,
    /// By buffer: which index a slot was last written for.
    writers: Vec<HashMap<u64, Index>>,
    /// By root: other roots with bytes of this one.
    sharers: Vec<Vec<usize>>,
    /// By root: its views.
    views: Vec<Vec<usize>>,
}

/// What a buffer holds.
#[derive(Clone, Default)]
struct Held {
    /// Bytes that were written through this buffer and not overwritten through another.
    valid: Regions,
    /// Bytes that were ever written through this buffer.
    ever: Regions,
}

/// A place with the loops' values put in, before the slots wrap round.
#[derive(Clone, Copy)]
struct Index {
    /// Whether the place follows the turn, and the micro-batch.
    follows: (bool, bool),
    value: i128,
}

impl Index {
    /// `add` counts forward, but for the last slot of three or more: that is one step back.
    fn of(place: &Place, slots: u64, step: &Step<'_>) -> Self {
        let turn = if place.turn { step.turn.unwrap_or(0) } else { 0 };
        let micro = if place.micro { step.micro.unwrap_or(0) } else { 0 };
        let back = slots > 2 && place.add == slots - 1;
        let add = if back { -1 } else { i128::from(place.add) };
        Self { follows: (place.turn, place.micro), value: add + i128::from(turn) + i128::from(micro) }
    }

    /// Whether a place that meets the same slot means the same turn's data. Nothing to compare where only one follows the loop.
    fn is_for(&self, other: &Self) -> bool {
        self.follows != other.follows || self.value == other.value
    }
}

impl<'a> Contents<'a> {
    pub(crate) fn at_start(program: &'a Program, kind: EntryKind) -> Self {
        let all = &program.buffers;
        let outlive = roots_that_outlive(program);
        let sharers_of = |a: usize| {
            let other = |b: &usize| *b != a && all[*b].within.is_none() && share(&all[a], &all[*b]);
            (0..all.len()).filter(|_| all[a].within.is_none()).filter(other).collect()
        };
        let views_of = |a: usize| (0..all.len()).filter(|b| *b != a && root(program, *b) == a).collect();
        let sharers: Vec<Vec<usize>> = (0..all.len()).map(sharers_of).collect();
        let views: Vec<Vec<usize>> = (0..all.len()).map(views_of).collect();
        let held = |(index, buffer)| {
            if outlive.contains(&index) {
                Held::filled(buffer, [])
            } else if !is_activation(program, buffer) && sharers[index].is_empty() && !views[index].is_empty()
            {
                Held::filled(buffer, views[index].iter().map(|view| &all[*view]))
            } else {
                Held::default()
            }
        };
        let held = all.iter().enumerate().map(held).collect();
        Self { program, kind, held, writers: vec![HashMap::new(); all.len()], sharers, views }
    }

    /// What an entry that was run before has left; its own mistakes are found when it is walked for itself.
    pub(crate) fn after(&mut self, entry: &Entry) {
        let mut ignored = Findings::default();
        walk::walk(entry, &mut |step| {
            let uses = uses::of(self.program, EntryKind::Refresh, step, &mut ignored);
            self.step(EntryKind::Refresh, step, &uses, &mut ignored);
        });
    }

    pub(crate) fn step(&mut self, kind: EntryKind, step: &Step<'_>, uses: &[Use], findings: &mut Findings) {
        // A product is written before its epilogue reads.
        for epilogue in [false, true] {
            let part = || uses.iter().filter(|used| used.in_epilogue() == epilogue);
            part().filter(|used| used.reads()).for_each(|used| self.read(kind, step, used, findings));
            part().filter(|used| used.writes()).for_each(|used| self.write(kind, step, used, findings));
        }
    }

    fn read(&self, kind: EntryKind, step: &Step<'_>, used: &Use, findings: &mut Findings) {
        let buffer = &self.program.buffers[used.buffer];
        let held = &self.held[root(self.program, used.buffer)];
        if !held.valid.covers(&used.region) {
            let lost = held.ever.covers(&used.region);
            let rule = if lost { Rule::ReadAfterOverwritten } else { Rule::ReadBeforeWritten };
            findings.add_at(rule, kind, step, format!("slot {} of `{}`", used.slot, buffer.name));
        } else if let Some(writer) = self.writers[used.buffer].get(&used.slot) {
            let reader = Index::of(&used.place, buffer.slots, step);
            if !writer.is_for(&reader) {
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
        let root = root(self.program, used.buffer);
        let region = with_padding(buffer, used);
        let all = self.views[root].iter().chain([&root]);
        for index in all.filter(|v| bytes_of(&self.program.buffers[**v]).meets(&region)) {
            let touched = &self.program.buffers[*index];
            if !may_write(kind, touched.role) {
                let facts = format!("`{}` ({:?})", touched.name, touched.role);
                findings.add_at(Rule::WriteForbidden, kind, step, facts);
            }
            // A place that follows a loop stays in its slot; another may run over the slots behind it.
            self.writers[*index].retain(|slot, _| !region.meets(&slot_region(touched, *slot)));
        }
        self.writers[used.buffer].insert(used.slot, Index::of(&used.place, buffer.slots, step));
        for other in &self.sharers[root] {
            self.held[*other].valid.remove(&used.region);
        }
        self.held[root].valid.add(region);
        self.held[root].ever.add(region);
    }

    /// What the runtime reads after the entry must be there.
    pub(crate) fn at_end(&self, entry: &Entry, findings: &mut Findings) {
        let walked = micro_batches_max(&entry.body);
        let cut_short = longest_accumulation(&entry.body) > walked;
        for (index, buffer) in self.program.buffers.iter().enumerate() {
            let slots = match (self.kind, buffer.role) {
                (EntryKind::Train, Role::Loss) if cut_short => buffer.slots.min(walked),
                (
                    EntryKind::Train,
                    Role::Loss | Role::GradNorm | Role::Finite | Role::ScaleExhausted | Role::FirstBad,
                ) => buffer.slots,
                (EntryKind::Evaluate, Role::Loss) | (EntryKind::Logits, Role::Logits) => 1,
                _ => 0,
            };
            let held = &self.held[root(self.program, index)];
            if let Some(slot) = (0..slots).find(|slot| !held.valid.covers(&slot_region(buffer, *slot))) {
                let facts = format!("slot {slot} of `{}` ({:?})", buffer.name, buffer.role);
                findings.add(Rule::ResultMissing, self.kind.name(), facts);
            }
        }
    }
}

impl Held {
    /// All of a buffer but for these views. What lies between views is written by nobody, and arenas begin zeroed.
    fn filled<'b>(buffer: &Buffer, but: impl IntoIterator<Item = &'b Buffer>) -> Self {
        let mut held = Self::default();
        held.valid.add(Region::run(buffer.offset, buffer_end(buffer) - buffer.offset));
        for view in but {
            (0..view.slots).for_each(|slot| held.valid.remove(&slot_region(view, slot)));
        }
        held.ever = held.valid.clone();
        held
    }
}

/// Whether what lies between a buffer's views is some instruction's, or nobody's.
fn is_activation(program: &Program, buffer: &Buffer) -> bool {
    program.arenas[buffer.arena as usize].name == "activations"
}

/// Whether instructions of an entry may write a buffer of this role.
fn may_write(kind: EntryKind, role: Role) -> bool {
    match role {
        Role::Inner | Role::Loss | Role::GradNorm | Role::Finite | Role::Logits => true,
        Role::Param
        | Role::Moment
        | Role::AppliedSteps
        | Role::LossScale
        | Role::CleanSteps
        | Role::Hysteresis
        | Role::ScaleExhausted
        | Role::FirstBad => kind == EntryKind::Train,
        Role::Tokens | Role::Targets | Role::InvTargets | Role::Rng | Role::Table => false,
    }
}

/// The bytes written, and the padding behind a slot that is written to its end: whoever reads across slots reads it too.
fn with_padding(buffer: &Buffer, used: &Use) -> Region {
    let whole = slot_region(buffer, used.slot);
    let last = used.slot + 1 == buffer.slots || buffer.within.is_some();
    if used.region == whole && !last { Region::run(whole.start(), buffer.stride) } else { used.region }
}

fn slot_region(buffer: &Buffer, slot: u64) -> Region {
    Region::run(buffer.offset + slot * buffer.stride, slot_bytes(buffer))
}

fn longest_accumulation(body: &[Instruction]) -> u64 {
    let count = |instruction: &Instruction| match &instruction.action {
        Action::Loop { over: Over::MicroBatches, count, .. } => *count,
        _ => 0,
    };
    body.iter().map(count).max().unwrap_or(0)
}
