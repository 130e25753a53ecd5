//! The loss on the holdout: the mean over its ids, each counted once.

use crate::error::Error;
use crate::sampler::Holdout;
use crate::session::Session;
use dspc_program::Program;

/// The held-out ids, ready to go through a session.
pub(super) struct Evaluation<'a> {
    holdout: Holdout<'a>,
    micro_batches: u64,
    rows: usize,
    sequence: usize,
    tokens: Vec<i32>,
    targets: Vec<i32>,
}

impl<'a> Evaluation<'a> {
    /// Over the whole holdout, or its first `eval_batches` micro-batches.
    pub(super) fn new(program: &Program, holdout: Holdout<'a>) -> Self {
        let (rows, sequence) = (program.training.micro_batch, program.data.sequence as usize);
        let all = holdout.windows().div_ceil(rows);
        let micro_batches = match program.training.eval_batches {
            0 => all,
            some => some.min(all),
        };
        let ids = rows as usize * sequence;
        Self {
            holdout,
            micro_batches,
            rows: rows as usize,
            sequence,
            tokens: vec![0; ids],
            targets: vec![0; ids],
        }
    }

    /// Runs it.
    pub(super) fn loss(&mut self, session: &mut Session) -> Result<f64, Error> {
        let (mut sum, mut counted) = (0.0, 0);
        for micro in 0..self.micro_batches {
            let rows = self.tokens.chunks_mut(self.sequence).zip(self.targets.chunks_mut(self.sequence));
            let mut here = 0;
            for (row, (tokens, targets)) in rows.enumerate() {
                here += self.holdout.fill(micro * self.rows as u64 + row as u64, tokens, targets);
            }
            sum += f64::from(session.evaluate(&self.tokens, &self.targets)?) * here as f64;
            counted += here;
        }
        Ok(sum / counted.max(1) as f64)
    }
}
