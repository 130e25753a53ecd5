//! Which ids make sample n: a function of the seed and n, with nothing to store and nothing to lose.
//!
//! The training text has N ids. Epoch e cuts it into W windows of `sequence` inputs, back to back, from an offset below
//! `sequence` that (seed, e) decides, so all alignments are seen in time; a window's targets are its inputs moved by one id.
//! W = ⌊(N − sequence) / sequence⌋, at least 1, is the same for every offset. Sample n is window π(n mod W) of epoch ⌊n / W⌋,
//! π the epoch's own permutation.
//!
//! The holdout is the end of the text. Each of its ids is predicted once: the first from the last id of the training text.

use crate::error::Error;
use crate::philox::{SITE_OFFSET, Stream};
use crate::shuffle::Permutation;
use crate::tokens::TokenStream;
use std::cell::Cell;

/// A target that is not counted.
pub(crate) const IGNORED: i32 = -100;

/// The training samples of a run.
pub struct Sampler<'a> {
    stream: &'a TokenStream,
    seed: u64,
    sequence: u64,
    windows: u64,
    offsets: u64,
    epoch: Cell<Option<(u64, u64, Permutation)>>,
}

impl<'a> Sampler<'a> {
    /// Over the first `train_tokens` ids of the stream.
    ///
    /// # Errors
    /// R0105 where there is no whole window.
    pub fn new(stream: &'a TokenStream, train_tokens: u64, sequence: u64, seed: u64) -> Result<Self, Error> {
        let tokens = train_tokens.min(stream.len());
        if sequence == 0 || tokens <= sequence {
            return Err(Error::DataShort { part: "training", tokens, needed: sequence.saturating_add(1) });
        }
        let windows = ((tokens - sequence) / sequence).max(1);
        let offsets = (tokens - windows * sequence).min(sequence);
        Ok(Self { stream, seed, sequence, windows, offsets, epoch: Cell::new(None) })
    }

    /// Samples of an epoch.
    pub fn windows(&self) -> u64 {
        self.windows
    }

    /// Fills the inputs and targets of sample `n`, each `sequence` long.
    pub fn fill(&self, n: u64, tokens: &mut [i32], targets: &mut [i32]) {
        let start = self.start(n);
        self.stream.copy_to(start, tokens);
        self.stream.copy_to(start + 1, targets);
    }

    fn start(&self, n: u64) -> u64 {
        let (epoch, place) = (n / self.windows, n % self.windows);
        let (offset, order) = match self.epoch.get() {
            Some((e, offset, order)) if e == epoch => (offset, order),
            _ => {
                let stream = Stream { seed: self.seed, step: epoch as u32, site: SITE_OFFSET };
                let offset = stream.below(self.offsets);
                let order = Permutation::new(self.seed, epoch as u32, self.windows);
                self.epoch.set(Some((epoch, offset, order)));
                (offset, order)
            }
        };
        offset + order.at(place) * self.sequence
    }
}

/// Ids of the training text and of the holdout: the share rounded down.
pub(crate) fn divide(tokens: u64, holdout: f64) -> (u64, u64) {
    let held = (tokens as f64 * holdout.clamp(0.0, 1.0)) as u64;
    (tokens - held.min(tokens), held.min(tokens))
}

/// The held-out ids, in order.
pub struct Holdout<'a> {
    stream: &'a TokenStream,
    first: u64,
    sequence: u64,
}

impl<'a> Holdout<'a> {
    /// The ids from `train_tokens` on.
    ///
    /// # Errors
    /// R0105 where there is none.
    pub fn new(stream: &'a TokenStream, train_tokens: u64, sequence: u64) -> Result<Self, Error> {
        if train_tokens == 0 || train_tokens >= stream.len() {
            let tokens = stream.len().saturating_sub(train_tokens);
            return Err(Error::DataShort { part: "holdout", tokens, needed: 1 });
        }
        Ok(Self { stream, first: train_tokens, sequence })
    }

    /// Sequences; the last may be short.
    pub fn windows(&self) -> u64 {
        (self.stream.len() - self.first).div_ceil(self.sequence)
    }

    /// Targets of sequence `i` that count; past the end none does.
    pub(crate) fn counted(&self, i: u64) -> u64 {
        let start = i.checked_mul(self.sequence).and_then(|start| start.checked_add(self.first));
        start.map_or(0, |start| self.stream.len().saturating_sub(start).min(self.sequence))
    }

    /// Fills sequence `i`, each slice `sequence` long, and says how many targets count; past the end none does.
    pub fn fill(&self, i: u64, tokens: &mut [i32], targets: &mut [i32]) -> u64 {
        tokens.fill(0);
        targets.fill(IGNORED);
        let count = self.counted(i);
        let n = count as usize;
        if n > 0 {
            let start = self.first + i * self.sequence;
            self.stream.copy_to(start - 1, &mut tokens[..n]);
            self.stream.copy_to(start, &mut targets[..n]);
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counting(n: u64) -> TokenStream {
        TokenStream::from_ids((0..n as u32).collect())
    }

    proptest! {
        #[test]
        fn an_epoch_predicts_no_id_twice_and_nothing_outside(
            tokens in 2u64..600, sequence in 1u64..40, held in 0u64..50, seed: u64, epoch in 0u64..4,
        ) {
            let stream = counting(tokens + held);
            prop_assume!(tokens > sequence);
            let sampler = Sampler::new(&stream, tokens, sequence, seed).unwrap();
            let mut seen = vec![false; tokens as usize];
            for i in 0..sampler.windows() {
                let (mut x, mut y) = (vec![0; sequence as usize], vec![0; sequence as usize]);
                sampler.fill(epoch * sampler.windows() + i, &mut x, &mut y);
                for (a, b) in x.iter().zip(&y) {
                    prop_assert_eq!(a + 1, *b);
                    prop_assert!(!std::mem::replace(&mut seen[*b as usize], true));
                }
            }
            let count = seen.iter().filter(|&&s| s).count() as u64;
            prop_assert_eq!(count, sampler.windows() * sequence);
            prop_assert!(count + 2 * sequence > tokens - 1, "less than two sequences are left out");
        }

        #[test]
        fn a_sample_depends_on_its_number_alone(seed: u64, n in 0u64..100, m in 0u64..100) {
            let stream = counting(101);
            let read = |before: &[u64]| {
                let sampler = Sampler::new(&stream, 101, 7, seed).unwrap();
                let (mut x, mut y) = ([0; 7], [0; 7]);
                for &i in before {
                    sampler.fill(i, &mut x, &mut y);
                }
                sampler.fill(n, &mut x, &mut y);
                (x, y)
            };
            prop_assert_eq!(read(&[]), read(&[m, n, m]));
        }

        #[test]
        fn every_held_out_id_is_predicted_once(train in 1u64..50, held in 1u64..90, sequence in 1u64..20) {
            let stream = counting(train + held);
            let holdout = Holdout::new(&stream, train, sequence).unwrap();
            let mut predicted = Vec::new();
            let mut counted = 0;
            for i in 0..holdout.windows() + 2 {
                let (mut x, mut y) = (vec![7; sequence as usize], vec![7; sequence as usize]);
                counted += holdout.fill(i, &mut x, &mut y);
                for (a, b) in x.iter().zip(&y).filter(|(_, b)| **b != IGNORED) {
                    prop_assert_eq!(a + 1, *b);
                    predicted.push(*b as u64);
                }
            }
            prop_assert_eq!(counted, held);
            prop_assert_eq!(predicted, (train..train + held).collect::<Vec<_>>());
        }
    }

    #[test]
    fn all_alignments_are_seen() {
        let stream = counting(1000);
        let sampler = Sampler::new(&stream, 1000, 8, 3).unwrap();
        let offsets: std::collections::BTreeSet<u64> =
            (0..200).map(|e| sampler.start(e * sampler.windows()) % 8).collect();
        assert_eq!(offsets.len(), 8);
    }

    #[test]
    fn text_shorter_than_a_sequence_is_refused() {
        let stream = counting(8);
        let error = Sampler::new(&stream, 8, 8, 0).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "the training text has 8 tokens and needs at least 9");
        assert!(Sampler::new(&stream, 8, 7, 0).is_ok());
        assert_eq!(Holdout::new(&stream, 8, 4).map(|_| ()).unwrap_err().code(), "R0105");
    }

    #[test]
    fn the_holdout_is_the_end() {
        assert_eq!(divide(1000, 0.1), (900, 100));
        assert_eq!(divide(9, 0.1), (9, 0));
        assert_eq!(divide(9, 0.0), (9, 0));
    }
}
