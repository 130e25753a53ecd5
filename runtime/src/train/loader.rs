//! The next batch: filled on a thread of its own where the device works on its own, so that a slow disk holds up neither.

use crate::sampler::Sampler;
use dspc_program::Program;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;

/// Batches that the thread may fill before they are asked for.
const AHEAD: usize = 2;

/// The ids of one step.
pub(super) struct Batch {
    pub(super) tokens: Vec<i32>,
    pub(super) targets: Vec<i32>,
    sequences: u64,
    sequence: usize,
}

impl Batch {
    fn new(program: &Program) -> Self {
        let (sequences, sequence) = (program.training.batch, program.data.sequence as usize);
        let ids = sequences as usize * sequence;
        Self { tokens: vec![0; ids], targets: vec![0; ids], sequences, sequence }
    }

    /// The samples of the step after `steps`.
    fn fill(&mut self, sampler: &Sampler<'_>, steps: u64) {
        let rows = self.tokens.chunks_mut(self.sequence).zip(self.targets.chunks_mut(self.sequence));
        for (i, (tokens, targets)) in rows.enumerate() {
            sampler.fill(steps * self.sequences + i as u64, tokens, targets);
        }
    }
}

/// Gives the batches of a run, in order.
pub(super) struct Loader<'a> {
    batch: Batch,
    source: Source<'a>,
}

enum Source<'a> {
    Here(Sampler<'a>),
    Thread { take: Receiver<Batch>, give_back: Sender<Batch> },
}

impl<'a> Loader<'a> {
    /// For the steps after each of `steps`; on a thread if there is a scope for one.
    pub(super) fn new<'scope>(
        sampler: Sampler<'a>,
        program: &Program,
        steps: Range<u64>,
        scope: Option<&'scope Scope<'scope, '_>>,
    ) -> Self
    where
        'a: 'scope,
    {
        let batch = Batch::new(program);
        let Some(scope) = scope else { return Self { batch, source: Source::Here(sampler) } };
        let (give_back, empty) = channel::<Batch>();
        let (full, take) = channel();
        for _ in 0..AHEAD {
            _ = give_back.send(Batch::new(program));
        }
        scope.spawn(move || {
            for steps in steps {
                // Either end is gone when the run has ended.
                let Ok(mut batch) = empty.recv() else { return };
                batch.fill(&sampler, steps);
                if full.send(batch).is_err() {
                    return;
                }
            }
        });
        Self { batch, source: Source::Thread { take, give_back } }
    }

    /// The batch of the step after `steps`; each step is asked for once, in order.
    pub(super) fn next(&mut self, steps: u64) -> &Batch {
        match &self.source {
            Source::Here(sampler) => self.batch.fill(sampler, steps),
            Source::Thread { take, give_back } => {
                // The thread ends before its last batch only by a panic, which the scope passes on.
                if let Ok(batch) = take.recv() {
                    _ = give_back.send(std::mem::replace(&mut self.batch, batch));
                }
            }
        }
        &self.batch
    }
}
