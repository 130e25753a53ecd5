//! Packing: byte offsets for ranges with lifetimes, largest first, each at the lowest offset where it meets no range that lives at the same time.

use std::collections::BTreeMap;

use dspc_kernel::steps::StorageId;

use crate::lifetime::Lifetime;

/// Bytes that every buffer's start is a multiple of.
pub(crate) const ALIGN_BYTES: u64 = 64;

/// Offsets, and the end of the highest range.
pub(crate) fn pack(ranges: &[(StorageId, u64, Lifetime)]) -> (BTreeMap<StorageId, u64>, u64) {
    let mut order: Vec<&(StorageId, u64, Lifetime)> = ranges.iter().collect();
    order.sort_by_key(|(id, bytes, life)| (std::cmp::Reverse(*bytes), life.first, *id));
    let mut placed: Vec<(u64, u64, Lifetime)> = vec![];
    let mut offsets = BTreeMap::new();
    for &&(id, bytes, life) in &order {
        let mut busy: Vec<(u64, u64)> = placed
            .iter()
            .filter(|(_, _, l)| l.overlaps(life))
            .map(|(start, end, _)| (*start, *end))
            .collect();
        busy.sort_unstable();
        let mut offset = 0;
        for (start, end) in busy {
            if offset + bytes <= start {
                break;
            }
            offset = offset.max(end);
        }
        let end = offset + bytes.next_multiple_of(ALIGN_BYTES);
        placed.push((offset, end, life));
        offsets.insert(id, offset);
    }
    let peak = placed.iter().map(|(_, end, _)| *end).max().unwrap_or(0);
    (offsets, peak)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The most bytes that live at any one step: no packing can do with less.
    fn most_alive(ranges: &[(StorageId, u64, Lifetime)]) -> u64 {
        let alive = |step: u32| {
            let here = ranges.iter().filter(|(_, _, life)| life.first <= step && step <= life.last);
            here.map(|(_, bytes, _)| bytes.next_multiple_of(ALIGN_BYTES)).sum::<u64>()
        };
        ranges.iter().map(|(_, _, life)| alive(life.first)).max().unwrap_or(0)
    }

    fn life(first: u32, last: u32) -> Lifetime {
        Lifetime { first, last }
    }

    #[test]
    fn ranges_that_never_meet_share_bytes() {
        let ranges = [
            (StorageId(0), 100, life(0, 1)),
            (StorageId(1), 100, life(2, 3)),
            (StorageId(2), 64, life(1, 2)),
        ];
        let (offsets, peak) = pack(&ranges);
        assert_eq!(offsets[&StorageId(0)], offsets[&StorageId(1)]);
        assert_eq!((offsets[&StorageId(2)], peak), (128, 192));
    }

    #[test]
    fn a_gap_between_two_is_filled() {
        let ranges = [
            (StorageId(0), 128, life(0, 9)),
            (StorageId(1), 128, life(0, 1)),
            (StorageId(2), 128, life(0, 9)),
            (StorageId(3), 64, life(5, 6)),
        ];
        let (offsets, peak) = pack(&ranges);
        assert_eq!(offsets[&StorageId(3)], offsets[&StorageId(1)]);
        assert_eq!(peak, 384);
    }

    /// A step of training as a list of lifetimes: values kept from the forward to the backward loop, scratch inside each turn, a large buffer between.
    #[test]
    fn a_training_step_is_packed_within_a_fiftieth_of_its_bound() {
        for (kept, scratch, logits) in [(12, 9, 4000), (48, 14, 900), (36, 5, 1), (7, 23, 70_000)] {
            let mut ranges = vec![];
            let mut add = |bytes: u64, life| ranges.push((StorageId(ranges.len() as u32), bytes, life));
            let (forward, backward) = ((10, 10 + scratch), (30 + scratch, 30 + 3 * scratch));
            for i in 0..kept {
                add(64 * (1 + i * i % 7) * 12, life(forward.0, backward.1));
            }
            for i in 0..scratch {
                let size = u64::from(64 * (1 + i * 5 % 11));
                add(size, life(forward.0 + i, forward.0 + i + 1 + i % 3));
                add(size * 2, life(backward.0 + i, backward.0 + i + 2 + i % 4));
                add(size, life(backward.0 + 2 * i, backward.1.min(backward.0 + 2 * i + 3)));
            }
            add(64 * logits, life(forward.1 + 1, backward.0 - 1));
            let (_, peak) = pack(&ranges);
            let bound = most_alive(&ranges);
            assert!(peak <= bound + bound / 50, "{peak} for {bound}");
        }
    }
}
