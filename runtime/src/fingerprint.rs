//! One number for the whole training state: 128 bits over parameters, moments and counters, the same for every way of sharing them out.
//!
//! Every element gives a hash of its tensor, its place in it and its bits; the number is their sum modulo 2¹²⁸. Sums of whole numbers have no order,
//! so each rank adds up what it holds, and the ranks' sums are added. It tells faults and differences, not forgers: those are for the hashes of a
//! checkpoint's commit.

use crate::checkpoint::{Tensor, state_of};
use crate::device::element_bytes;
use crate::error::Error;
use crate::session::Session;
use rayon::prelude::*;

/// Elements of one task.
const CHUNK: usize = 1 << 16;

/// The number of a session's state; all ranks call it.
pub(crate) fn of(session: &Session) -> Result<u128, Error> {
    let communicator = session.communicator();
    let (world, rank) = (communicator.world(), communicator.rank());
    let mut sum = 0u128;
    for tensor in state_of(session.program()) {
        let bytes = session.held_bytes(&tensor.stored)?;
        let (range, _) = session.held(&tensor.stored);
        let size = element_bytes(tensor.stored.dtype) as usize;
        // What all ranks hold is shared out for counting.
        let counted = match tensor.stored.shard {
            Some(_) => 0..range.end - range.start,
            None => rank * tensor.stored.elements / world..(rank + 1) * tensor.stored.elements / world,
        };
        let own = &bytes[counted.start as usize * size..counted.end as usize * size];
        sum = sum.wrapping_add(of_elements(key(&tensor), range.start + counted.start, own, size));
    }
    let applied = session.steps().1;
    if rank == 0 {
        let key = key_of("steps applied", &[], "count");
        sum = sum.wrapping_add(of_elements(key, 0, &(applied as u32).to_le_bytes(), 4));
    }
    let sums = communicator.all_gather(&sum.to_le_bytes())?;
    let whole = sums.iter().filter_map(|sum| Some(u128::from_le_bytes(sum.as_slice().try_into().ok()?)));
    Ok(whole.fold(0, u128::wrapping_add))
}

fn key(tensor: &Tensor) -> [u64; 2] {
    key_of(&tensor.name, &tensor.shape, &format!("{:?}", tensor.stored.dtype))
}

fn key_of(name: &str, shape: &[usize], dtype: &str) -> [u64; 2] {
    let hash = blake3::hash(format!("{name}\n{shape:?}\n{dtype}").as_bytes());
    let word = |i: usize| hash.as_bytes()[8 * i..8 * i + 8].iter().fold(0, |x, &b| x << 8 | u64::from(b));
    [word(0), word(1)]
}

/// The sum over elements, the first of them being number `first` of its tensor.
fn of_elements(key: [u64; 2], first: u64, bytes: &[u8], size: usize) -> u128 {
    let chunks = bytes.par_chunks(CHUNK * size).enumerate();
    let sums = chunks.map(|(chunk, bytes)| {
        let first = first + (chunk * CHUNK) as u64;
        let elements = (first..).zip(bytes.chunks_exact(size));
        let hashes = elements.map(|(place, bytes)| {
            let bits = bytes.iter().rev().fold(0u64, |x, &b| x << 8 | u64::from(b));
            hash(key, place, bits)
        });
        hashes.fold(0, u128::wrapping_add)
    });
    sums.reduce(|| 0, u128::wrapping_add)
}

/// Two words, each a mix of the element's place and bits under a key of its own.
fn hash(key: [u64; 2], place: u64, bits: u64) -> u128 {
    let low = mix(key[0] ^ mix(place.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ bits.rotate_left(32)));
    let high = mix(key[1] ^ low.wrapping_add(mix(bits ^ place.rotate_left(17))));
    u128::from(high) << 64 | u128::from(low)
}

/// The finaliser of MurmurHash3: every bit of the input changes half of the output's.
fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_division_gives_the_same_sum_and_any_flipped_bit_another() {
        let bytes: Vec<u8> =
            (0..300_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let key = key_of("h.0.w", &[300, 1000], "F32");
        let whole = of_elements(key, 0, &bytes, 4);
        for cut in [1, 7, 65_536, 131_071, 299_999] {
            let parts = of_elements(key, 0, &bytes[..4 * cut], 4).wrapping_add(of_elements(
                key,
                cut as u64,
                &bytes[4 * cut..],
                4,
            ));
            assert_eq!(parts, whole, "cut at {cut}");
        }
        for bit in [0, 5, 32 * 1000 + 31, 32 * 299_999] {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(of_elements(key, 0, &other, 4), whole);
        }
        let mut swapped = bytes.clone();
        swapped.swap(0, 4);
        swapped.swap(1, 5);
        swapped.swap(2, 6);
        swapped.swap(3, 7);
        assert_ne!(of_elements(key, 0, &swapped, 4), whole, "places count");
        assert_ne!(of_elements(key_of("h.1.w", &[300, 1000], "F32"), 0, &bytes, 4), whole);
    }
}
