//! Philox4x32-10: random numbers that are a function of position alone.
//!
//! Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", section 4.3; the round of its library
//! Random123. A counter of four words gives four words; they serve four elements that follow each other.

use crate::mlir::{Element, Function, Order, Value};

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: u32 = 10;

/// Who asks: the words that are the same for the whole kernel, i32 scalars.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    /// Of the seed.
    pub key: [Value; 2],
    /// Step attempted.
    pub step: Value,
    /// Site and turn.
    pub site: Value,
}

/// Uniform in [0, 1), a multiple of 2⁻²⁴, for each of some elements: `elements` are their 64-bit numbers, one a lane.
///
/// Every lane computes its own counter. Lanes of one counter repeat its rounds, which is what makes any run of elements, aligned
/// or not, one straight line; where runs are aligned, [`uniform_quads`] does a quarter of the work.
pub(crate) fn uniform(f: &mut Function, stream: &Stream, elements: Value) -> Value {
    let words = words(f, stream, elements);
    let lane = f.truncate(elements, Element::I32);
    let three = f.int(lane.ty, 3);
    let lane = f.and(lane, three);
    let mut word = words[0];
    for (n, &other) in (1..).zip(&words[1..]) {
        let n = f.int(lane.ty, n);
        let is_it = f.order(Order::Equal, lane, n);
        word = f.select(is_it, other, word);
    }
    to_unit(f, word)
}

/// The same for four elements from each of `firsts`, which are multiples of four: element i of a lane in the i-th result.
pub(crate) fn uniform_quads(f: &mut Function, stream: &Stream, firsts: Value) -> [Value; 4] {
    words(f, stream, firsts).map(|word| to_unit(f, word))
}

fn words(f: &mut Function, stream: &Stream, elements: Value) -> [Value; 4] {
    let counter = f.shr(elements, 2);
    let low = f.truncate(counter, Element::I32);
    let high = f.shr(counter, 32);
    let high = f.truncate(high, Element::I32);
    let [step, site] = [stream.step, stream.site].map(|x| f.broadcast(x, elements.lanes()));
    philox(f, stream.key, [step, site, low, high])
}

fn to_unit(f: &mut Function, word: Value) -> Value {
    let top = f.shr(word, 8);
    let top = f.float_of_int(top);
    let unit = f.float(top.lanes(), 1.0 / 16_777_216.0);
    f.mul(top, unit)
}

/// Ten rounds.
fn philox(f: &mut Function, key: [Value; 2], counter: [Value; 4]) -> [Value; 4] {
    let mut c = counter;
    let mut key = key;
    for round in 0..ROUNDS {
        if round > 0 {
            key = [0, 1].map(|i| f.plus(key[i], WEYL[i].into()));
        }
        let k = key.map(|k| f.broadcast(k, counter[2].lanes()));
        let (low0, high0) = multiply(f, c[0], MULTIPLIER[0]);
        let (low1, high1) = multiply(f, c[2], MULTIPLIER[1]);
        let first = f.xor(high1, c[1]);
        let third = f.xor(high0, c[3]);
        c = [f.xor(first, k[0]), low1, f.xor(third, k[1]), low0];
    }
    c
}

/// The low and the high word of a product.
fn multiply(f: &mut Function, a: Value, by: u32) -> (Value, Value) {
    if a.lanes() == 1 {
        let wide = f.zero_extend(a, Element::I64);
        let product = f.times(wide, by.into());
        let low = f.truncate(product, Element::I32);
        let high = f.shr(product, 32);
        return (low, f.truncate(high, Element::I32));
    }
    // Vector units multiply the even words of a register into whole ones: even and odd words in turn, no widening of lanes.
    let pairs = f.reshape(a, Element::I64, a.lanes() / 2);
    let word = f.int(pairs.ty, 0xFFFF_FFFF);
    let (even, odd) = (f.and(pairs, word), f.shr(pairs, 32));
    let (even, odd) = (f.times(even, by.into()), f.times(odd, by.into()));
    let upper = f.int(pairs.ty, !0xFFFF_FFFF);
    let (low_even, low_odd) = (f.and(even, word), f.shl(odd, 32));
    let (high_even, high_odd) = (f.shr(even, 32), f.and(odd, upper));
    let (low, high) = (f.or(low_even, low_odd), f.or(high_even, high_odd));
    (f.reshape(low, Element::I32, a.lanes()), f.reshape(high, Element::I32, a.lanes()))
}
