//! The order of sequences: a permutation of `0..n` that is computed, not stored.
//!
//! A Feistel network of six rounds on the smallest even number of bits that holds `n`, its round function one Philox block each;
//! a result outside `0..n` goes through again (cycle walking), which keeps it a permutation. At most 4 walks on average.

use crate::philox::{SITE_SHUFFLE, Stream};

const ROUNDS: u64 = 6;

/// One epoch's order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Permutation {
    stream: Stream,
    count: u64,
    half_bits: u32,
}

impl Permutation {
    /// The order of `count` sequences, at least one, in an epoch of a run.
    pub fn new(seed: u64, epoch: u32, count: u64) -> Self {
        let count = count.max(1);
        let bits = 64 - (count - 1).leading_zeros();
        let stream = Stream { seed, step: epoch, site: SITE_SHUFFLE };
        Self { stream, count, half_bits: bits.div_ceil(2).max(1) }
    }

    /// Which sequence comes at place `index`, which is below the count.
    pub fn at(self, index: u64) -> u64 {
        debug_assert!(index < self.count);
        let mut x = self.mix(index);
        while x >= self.count {
            x = self.mix(x);
        }
        x
    }

    fn mix(self, x: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        for round in 0..ROUNDS {
            let words = self.stream.words(round << 32 | right);
            (left, right) = (right, left ^ (u64::from(words[0]) & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_epoch_visits_each_sequence_once(seed: u64, epoch: u32, count in 1u64..3000) {
            let order = Permutation::new(seed, epoch, count);
            let mut seen = vec![false; count as usize];
            for i in 0..count {
                let x = order.at(i) as usize;
                prop_assert!(!seen[x]);
                seen[x] = true;
            }
        }

        #[test]
        fn large_counts_stay_in_range(seed: u64, count in 1u64..1 << 62, index: u64) {
            prop_assert!(Permutation::new(seed, 0, count).at(index % count) < count);
        }
    }

    #[test]
    fn epochs_and_seeds_have_their_own_order() {
        let order =
            |seed, epoch| (0..100).map(|i| Permutation::new(seed, epoch, 100).at(i)).collect::<Vec<_>>();
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
        assert_eq!(order(1, 0), order(1, 0));
        assert_ne!(order(1, 0), (0..100).collect::<Vec<_>>());
    }

    /// Where each element lands is near uniform over many keys: chi-square of 16 cells with 4096 keys, 15 degrees of freedom.
    #[test]
    fn places_are_spread_evenly() {
        for index in [0, 7, 15] {
            let mut cells = [0f64; 16];
            for seed in 0..4096 {
                cells[Permutation::new(seed, 0, 16).at(index) as usize] += 1.0;
            }
            let chi: f64 = cells.iter().map(|c| (c - 256.0).powi(2) / 256.0).sum();
            assert!(chi < 45.0, "index {index}: chi-square {chi}");
        }
    }
}
