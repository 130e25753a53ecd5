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
}
