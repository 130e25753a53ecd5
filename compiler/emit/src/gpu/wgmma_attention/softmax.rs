//! Online softmax of a thread's two rows. The four lanes of a row meet for its maximum at each tile, and for its sum at the end.
//!
//! Exponentials are powers of two, the scale folded into the exponent: p = 2^(s · scale · log₂e − m). Source: Milakov, Gimelshein 2018.

use crate::mlir::{Function, Order, Value};

/// What is known of two rows so far: the greatest score, and this lane's sum of exponentials.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub maximum: [Value; 2],
    pub total: [Value; 2],
}

impl Rows {
    /// Nothing.
    pub fn new(f: &mut Function) -> Self {
        let (none, zero) = (f.float(1, f32::NEG_INFINITY), f.float(1, 0.0));
        Rows { maximum: [none; 2], total: [zero; 2] }
    }

    /// As carried values.
    pub fn values(self) -> Vec<Value> {
        [self.maximum, self.total].concat()
    }

    /// From carried values.
    pub fn of(values: &[Value]) -> Self {
        Rows { maximum: [values[0], values[1]], total: [values[2], values[3]] }
    }
}

/// Scores to exponentials; gives the rows after them and the factor of what was summed before. `scale` includes log₂e.
pub(super) fn exponentials(
    f: &mut Function,
    scores: &mut [Value],
    rows: Rows,
    scale: f32,
) -> (Rows, [Value; 2]) {
    let scale = f.float(1, scale);
    let (none, zero) = (f.float(1, f32::NEG_INFINITY), f.float(1, 0.0));
    let mut next = rows;
    let mut factors = rows.maximum;
    for (h, factor) in factors.iter_mut().enumerate() {
        let numbers = own(scores, h);
        let greatest = tree(f, &numbers, Function::max_number);
        let greatest = f.max_number(greatest, rows.maximum[h]);
        let greatest = across(f, greatest, Function::max_number);
        let is_empty = f.compare("oeq", greatest, none);
        let base = f.mul(greatest, scale);
        let base = f.select(is_empty, zero, base);
        let below = f.neg(base);
        for at in (2 * h..scores.len()).step_by(4) {
            for at in [at, at + 1] {
                let power = f.fma(scores[at], scale, below);
                scores[at] = f.fast_exp2(power);
            }
        }
        let power = f.fma(rows.maximum[h], scale, below);
        *factor = f.fast_exp2(power);
        let numbers = own(scores, h);
        let sum = tree(f, &numbers, Function::add);
        next.maximum[h] = greatest;
        next.total[h] = f.fma(rows.total[h], *factor, sum);
    }
    (next, factors)
}

/// What is left to do when all keys were seen: one over each row's sum (0 where it is 0), and log-sum-exp.
pub(super) fn finish(f: &mut Function, rows: Rows, scale: f32) -> ([Value; 2], [Value; 2]) {
    let zero = f.float(1, 0.0);
    let (scale, ln2) = (f.float(1, scale), f.float(1, std::f32::consts::LN_2));
    let both = [0, 1].map(|h| {
        let total = across(f, rows.total[h], Function::add);
        let is_zero = f.compare("oeq", total, zero);
        let inverse = f.fast_reciprocal(total);
        let inverse = f.select(is_zero, zero, inverse);
        let log = f.fast_log2(total);
        let exponent = f.fma(rows.maximum[h], scale, log);
        (inverse, f.mul(exponent, ln2))
    });
    (both.map(|b| b.0), both.map(|b| b.1))
}

/// Multiplies each row's numbers.
pub(super) fn scale_rows(f: &mut Function, numbers: &[Value], factors: [Value; 2]) -> Vec<Value> {
    numbers.iter().enumerate().map(|(i, &x)| f.mul(x, factors[i / 2 % 2])).collect()
}

/// Numbers of one of the two rows.
fn own(numbers: &[Value], h: usize) -> Vec<Value> {
    numbers.chunks(4).flat_map(|four| [four[2 * h], four[2 * h + 1]]).collect()
}

/// Combines numbers: four chains, so that none waits long for the one before.
fn tree(f: &mut Function, numbers: &[Value], combine: fn(&mut Function, Value, Value) -> Value) -> Value {
    let chains: Vec<Value> = (0..4.min(numbers.len()))
        .filter_map(|c| numbers.iter().copied().skip(c).step_by(4).reduce(|a, b| combine(f, a, b)))
        .collect();
    let pairs: Vec<Value> =
        chains.chunks(2).filter_map(|p| p.iter().copied().reduce(|a, b| combine(f, a, b))).collect();
    pairs.into_iter().reduce(|a, b| combine(f, a, b)).unwrap_or_else(|| f.float(1, 0.0))
}

/// Combines over the four lanes of a row.
fn across(f: &mut Function, x: Value, combine: fn(&mut Function, Value, Value) -> Value) -> Value {
    [1, 2].into_iter().fold(x, |x, bits| {
        let other = f.of_lane_across(x, bits);
        combine(f, x, other)
    })
}

/// Whether a lane is the first of its row.
pub(super) fn is_first_of_row(f: &mut Function, column: Value) -> Value {
    let zero = f.int32(0);
    f.order(Order::Equal, column, zero)
}
