//! The loss on the holdout: the mean over its ids, each counted once.

use crate::error::Error;
use crate::sampler::{Holdout, IGNORED};
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

    /// Runs it: of several ranks each takes every so-manieth micro-batch, and all know all losses.
    pub(super) fn loss(&mut self, session: &mut Session) -> Result<f64, Error> {
        let (ranks, own) = session.ranks();
        let (mut sum, mut counted) = (0.0, 0);
        for first in (0..self.micro_batches).step_by(ranks.max(1) as usize) {
            self.fill(first + own);
            let losses = session.evaluate_ranks(&self.tokens, &self.targets)?;
            for (micro, loss) in (first..self.micro_batches).zip(losses) {
                let first_row = micro * self.rows as u64;
                let here: u64 =
                    (first_row..first_row + self.rows as u64).map(|row| self.holdout.counted(row)).sum();
                sum += f64::from(loss) * here as f64;
                counted += here;
            }
        }
        Ok(sum / counted.max(1) as f64)
    }

    /// The ids of a micro-batch; none counts past the last.
    fn fill(&mut self, micro: u64) {
        let rows = self.tokens.chunks_mut(self.sequence).zip(self.targets.chunks_mut(self.sequence));
        for (row, (tokens, targets)) in rows.enumerate() {
            if micro < self.micro_batches {
                self.holdout.fill(micro * self.rows as u64 + row as u64, tokens, targets);
            } else {
                tokens.fill(0);
                targets.fill(IGNORED);
            }
        }
    }
}
