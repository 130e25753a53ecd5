//! A thread's part of a warpgroup's 64 rows: two rows, and in each 8 columns two neighbours.
//!
//! Number 4j + 2h + e of a thread is of row 16 · warp + lane / 4 + 8h and column 8j + 2 (lane % 4) + e. The same numbers, packed in pairs, are
//! a left factor of the next product.

use super::stage::{GLOBAL, wide};
use crate::mask::{is_narrow, predicate};
use crate::mlir::{Element, Function, INT, Order, Value};
use dspc_graph::ir::DType;
use dspc_graph::mask::Mask;
use dspc_kernel::describe::AttentionKernel;

/// Where a thread's numbers are.
#[derive(Clone, Copy)]
pub(super) struct Lane {
    /// Its warpgroup.
    pub group: Value,
    /// Its first row in the block's tile; the second is 8 further.
    pub row: Value,
    /// Its first column.
    pub column: Value,
    /// Whether it is its warp's first.
    pub is_first: Value,
}

impl Lane {
    /// Of this thread, in a tile of 64 rows a warpgroup.
    pub fn new(f: &mut Function, thread: Value) -> Self {
        let (low, three, zero) = (f.int32(31), f.int32(3), f.int32(0));
        let lane = f.and(thread, low);
        let warp = f.shr(thread, 5);
        let row = f.times(warp, 16);
        let above = f.shr(lane, 2);
        let column = f.and(lane, three);
        Lane {
            group: f.shr(thread, 7),
            row: f.addi(row, above),
            column: f.times(column, 2),
            is_first: f.order(Order::Equal, lane, zero),
        }
    }
}

/// Which direction of scores is a thread's rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rows {
    Queries,
    Keys,
}

/// Puts −∞ where a query may not look, and where there is no key. `row` and `column` are positions of the thread's first number.
pub(super) fn apply_mask(
    f: &mut Function,
    kernel: &AttentionKernel,
    scores: &mut [Value],
    (rows, row, column): (Rows, Value, Value),
) {
    let narrow = match &kernel.mask {
        Mask::Full => true,
        Mask::Where(expr) => is_narrow(expr, kernel.queries + 512, kernel.keys + 512),
    };
    let position = |f: &mut Function, x: Value, more: u64| {
        let x = f.plus(x, more);
        if narrow { x } else { wide(f, x) }
    };
    let rows_at = [position(f, row, 0), position(f, row, 8)];
    let nothing = f.float(1, f32::NEG_INFINITY);
    let columns = scores.len() as u64 / 4;
    for j in 0..columns {
        for e in 0..2 {
            let column = position(f, column, 8 * j + e);
            for (h, &row) in rows_at.iter().enumerate() {
                let (q, k) = if rows == Rows::Queries { (row, column) } else { (column, row) };
                let mut allowed = vec![];
                if let Mask::Where(expr) = &kernel.mask {
                    allowed.push(predicate(f, expr, q, k));
                }
                // A causal mask keeps queries that there are from keys that there are not.
                let keys_bound = kernel.mask == Mask::causal() && kernel.queries <= kernel.keys;
                if !keys_bound || allowed.is_empty() {
                    let end = f.int(k.ty, kernel.keys as i64);
                    allowed.push(f.order(Order::Less, k, end));
                }
                let allowed = allowed.into_iter().reduce(|a, b| f.and(a, b));
                let at = 4 * j as usize + 2 * h + e as usize;
                if let Some(allowed) = allowed {
                    scores[at] = f.select(allowed, scores[at], nothing);
                }
            }
        }
    }
}

/// Numbers as a left factor.
pub(super) fn pack(f: &mut Function, dtype: DType, numbers: &[Value]) -> Vec<Value> {
    numbers.chunks(2).map(|pair| f.pack_halves(dtype, pair[0], pair[1])).collect()
}

/// One of a pair of lanes' rows as an operand's memory: which, its first row of the tile, and rows past `end` left out.
pub(super) struct Target {
    /// The operand.
    pub operand: Value,
    /// Batch, as a number.
    pub batch: Value,
    /// Head in the operand.
    pub head: Value,
    /// Position of the thread's first row.
    pub row: Value,
    /// Positions of the operand.
    pub positions: u64,
    /// Elements from one position to the next.
    pub stride: u64,
}

/// Writes numbers times a factor of each row, 16 bytes at a time.
pub(super) fn store(
    f: &mut Function,
    kernel: &AttentionKernel,
    lane: Lane,
    numbers: &[Value],
    factors: [Value; 2],
    to: &Target,
) {
    let end = f.int32(to.positions);
    for (h, factor) in factors.into_iter().enumerate() {
        let row = f.plus(to.row, 8 * h as u64);
        let is_there = f.order(Order::Below, row, end);
        let first = f.times(to.batch, to.positions);
        let row = f.addi(first, row);
        let row = wide(f, row);
        let row = f.times(row, to.stride);
        let column = f.times(to.head, kernel.head_dim);
        let own = f.times(lane.column, 4);
        let column = f.addi(column, own);
        let column = wide(f, column);
        let at = f.addi(row, column);
        let at = f.offset(to.operand, at, Element::I16);
        debug_assert_eq!(at.ty, GLOBAL);
        let pairs: Vec<Value> = (numbers.chunks(4))
            .map(|four| {
                let low = f.mul(four[2 * h], factor);
                let high = f.mul(four[2 * h + 1], factor);
                let pair = f.pack_halves(kernel.dtype, low, high);
                f.float_of_bits(pair)
            })
            .collect();
        let runs: Vec<Value> = pairs.chunks(4).map(|four| own_run(f, lane, four)).collect();
        f.only_if(is_there, |f| {
            for (i, run) in runs.into_iter().enumerate() {
                let step = f.int(INT, 32 * i as i64);
                let at = f.offset(at, step, Element::I16);
                f.store(run, at, 16);
            }
        });
    }
}

/// Four lanes of a row hold a pair of each of four runs of 8 columns; each gets one run whole: lanes at distance 1, then 2 exchange halves.
fn own_run(f: &mut Function, lane: Lane, pairs: &[Value]) -> Value {
    let mut pairs = pairs.to_vec();
    for distance in [1, 2] {
        let (bit, zero) = (f.int32(2 * distance as u64), f.int32(0));
        let bit = f.and(lane.column, bit);
        let is_low = f.order(Order::Equal, bit, zero);
        for i in (0..pairs.len()).filter(|i| i & distance == 0) {
            let (low, high) = (pairs[i], pairs[i + distance]);
            let sent = f.select(is_low, high, low);
            let got = f.of_lane_across(sent, distance as u64);
            pairs[i] = f.select(is_low, low, got);
            pairs[i + distance] = f.select(is_low, got, high);
        }
    }
    f.gather(&pairs)
}
