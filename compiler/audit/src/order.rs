//! Streams and events: who is sure to come before whom.
//!
//! Each stream carries a vector clock. A record stores the stream's clock, a wait takes it in; an access of another stream that the clock
//! does not know of may happen at the same time.

use crate::region::Region;
use crate::{EntryKind, Rule, finding::Findings, uses::Use, walk::Step};
use dspc_program::{Action, Entry, EventId, Instruction, StreamId};
use std::collections::{BTreeSet, HashMap};

pub(crate) struct Order {
    streams: Vec<StreamId>,
    clocks: Vec<Vec<u64>>,
    events: HashMap<EventId, Vec<u64>>,
    /// Events that some instruction records, at some turn.
    recorded: BTreeSet<EventId>,
    accesses: Vec<Access>,
}

/// What a stream did to some bytes, at its own time.
struct Access {
    stream: usize,
    time: u64,
    arena: u32,
    region: Region,
    writes: bool,
    by: String,
}

impl Order {
    pub(crate) fn of(entry: &Entry) -> Self {
        let mut streams = BTreeSet::new();
        let mut recorded = BTreeSet::new();
        collect(&entry.body, &mut streams, &mut recorded);
        let streams: Vec<StreamId> = streams.into_iter().collect();
        let clocks = vec![vec![0; streams.len()]; streams.len()];
        Self { streams, clocks, events: HashMap::new(), recorded, accesses: vec![] }
    }

    pub(crate) fn step(&mut self, kind: EntryKind, step: &Step<'_>, uses: &[Use], findings: &mut Findings) {
        let Ok(stream) = self.streams.binary_search(&step.instruction.stream) else { return };
        for wait in &step.instruction.waits {
            match self.events.get(wait) {
                Some(clock) => {
                    let mine = &mut self.clocks[stream];
                    mine.iter_mut().zip(clock).for_each(|(mine, theirs)| *mine = (*mine).max(*theirs));
                }
                // A turn that comes first waits for nothing of the turn before.
                None if self.recorded.contains(wait) => {}
                None => {
                    let facts = format!("nothing records event {}", wait.0);
                    findings.add_at(Rule::WaitWithoutRecord, kind, step, facts);
                }
            }
        }
        self.clocks[stream][stream] += 1;
        if self.streams.len() > 1 {
            uses.iter().for_each(|used| self.access(kind, step, stream, used, findings));
        }
        if let Some(event) = step.instruction.records {
            self.events.insert(event, self.clocks[stream].clone());
        }
    }

    fn access(
        &mut self,
        kind: EntryKind,
        step: &Step<'_>,
        stream: usize,
        used: &Use,
        findings: &mut Findings,
    ) {
        let clock = &self.clocks[stream];
        let known = |past: &Access| past.time <= clock[past.stream];
        let clash = |past: &&Access| {
            past.arena == used.arena
                && (past.writes || used.writes())
                && !known(past)
                && past.region.meets(&used.region)
        };
        if let Some(past) = self.accesses.iter().find(clash) {
            findings.add_at(Rule::Race, kind, step, format!("nothing orders it after {}", past.by));
        }
        // Whoever is ordered after this access is ordered after those it replaces.
        self.accesses.retain(|past| {
            let replaced = past.arena == used.arena && used.region.covers(&past.region) && known(past);
            !(replaced && (used.writes() || (!past.writes && past.stream == stream)))
        });
        self.accesses.push(Access {
            stream,
            time: clock[stream],
            arena: used.arena,
            region: used.region,
            writes: used.writes(),
            by: step.to_string(),
        });
    }
}

fn collect(body: &[Instruction], streams: &mut BTreeSet<StreamId>, recorded: &mut BTreeSet<EventId>) {
    for instruction in body {
        recorded.extend(instruction.records);
        match &instruction.action {
            Action::Loop { body, .. } => collect(body, streams, recorded),
            Action::Launch { .. } | Action::Gemm(_) | Action::Zero { .. } | Action::Collective(_) => {
                streams.insert(instruction.stream);
            }
        }
    }
}
