//! What a step gives the host: a few words, copied to pinned memory behind the step, read when the next one runs.

use super::context::Gpu;
use super::fault;
use super::memory::{Event, Pinned};
use crate::error::Error;
use cudarc::driver::result;
use std::collections::VecDeque;

/// Words closer than this are copied together.
const GAP: u64 = 4096;

/// How some words are fetched.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Fetch {
    words: Vec<u64>,
    /// Device address and bytes.
    ranges: Vec<(u64, usize)>,
    /// Where each word comes to lie.
    places: Vec<usize>,
    bytes: usize,
}

impl Fetch {
    fn new(words: &[u64]) -> Self {
        let mut sorted = words.to_vec();
        sorted.sort_unstable();
        let mut ranges: Vec<(u64, usize)> = Vec::new();
        for word in sorted {
            match ranges.last_mut() {
                Some((start, bytes)) if word < *start + *bytes as u64 + GAP => {
                    *bytes = (*bytes).max((word + 4 - *start) as usize);
                }
                _ => ranges.push((word, 4)),
            }
        }
        let place = |word: u64| {
            let mut before = 0;
            for &(start, bytes) in &ranges {
                if (start..start + bytes as u64).contains(&word) {
                    return before + (word - start) as usize;
                }
                before += bytes.next_multiple_of(64);
            }
            before
        };
        let places = words.iter().map(|&word| place(word)).collect();
        let bytes = ranges.iter().map(|(_, bytes)| bytes.next_multiple_of(64)).sum();
        Self { words: words.to_vec(), ranges, places, bytes }
    }
}

/// A fetch under way, or memory for one.
struct Copy {
    pinned: Pinned,
    bytes: usize,
    done: Event,
    places: Vec<usize>,
}

/// Fetches under way, in order.
#[derive(Default)]
pub(super) struct Results {
    last: Option<Fetch>,
    under_way: VecDeque<Copy>,
    spare: Vec<Copy>,
}

impl Results {
    /// Starts to fetch words behind what was started before.
    pub(super) fn start(&mut self, gpu: &Gpu, words: &[u64]) -> Result<(), Error> {
        if self.last.as_ref().is_none_or(|fetch| fetch.words != words) {
            self.last = Some(Fetch::new(words));
        }
        let Some(fetch) = &self.last else { return Ok(()) };
        let spare = self.spare.iter().position(|copy| copy.bytes >= fetch.bytes);
        let mut copy = match spare {
            Some(at) => self.spare.swap_remove(at),
            None => Copy {
                pinned: Pinned::new(fetch.bytes)?,
                bytes: fetch.bytes,
                done: Event::new(false)?,
                places: vec![],
            },
        };
        let mut at = 0;
        for &(device, bytes) in &fetch.ranges {
            let target = &mut copy.pinned.bytes()[at..at + bytes];
            // SAFETY: the words lie in the arenas; nobody reads the copy before its event has passed.
            unsafe { result::memcpy_dtoh_async(target, device, gpu.stream) }
                .map_err(fault::driver("copying a step's results"))?;
            at += bytes.next_multiple_of(64);
        }
        copy.places.clone_from(&fetch.places);
        copy.done.record(gpu)?;
        self.under_way.push_back(copy);
        Ok(())
    }

    /// The words of the oldest fetch, in the order they were asked for.
    pub(super) fn finish(&mut self) -> Result<Vec<[u8; 4]>, Error> {
        let Some(mut copy) = self.under_way.pop_front() else { return Ok(vec![]) };
        copy.done.wait()?;
        let bytes = copy.pinned.bytes();
        let words = copy.places.iter().map(|&at| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let words = words.collect();
        self.spare.push(copy);
        Ok(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_lie_together_are_fetched_together() {
        let fetch = Fetch::new(&[10_064, 10_000, 90_000, 10_128]);
        assert_eq!(fetch.ranges, [(10_000, 132), (90_000, 4)]);
        assert_eq!(fetch.places, [64, 0, 192, 128]);
        assert_eq!(fetch.bytes, 256);
    }
}
