//! A thread's part of a warpgroup's 64 rows: two rows, and in each 8 columns two neighbours.
//!
//! Number 4j + 2h + e of a thread is of row 16 · warp + lane / 4 + 8h and column 8j + 2 (lane % 4) + e. The same numbers, packed in pairs, are
//! a left factor of the next product.

use super::loads::Tiles;
use super::stage::{GLOBAL, wide};
use crate::mlir::{Element, Factor, Function, INT, Order, SharedMatrix, Summed, Turned, Value};
use dspc_graph::ir::DType;
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
        let group = f.shr(thread, 7);
        let group = f.of_first_lane(group);
        Lane {
            group,
            row: f.addi(row, above),
            column: f.times(column, 2),
            is_first: f.order(Order::Equal, lane, zero),
        }
    }
}

/// Where 64 rows of an own tile are held while an item lasts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hold {
    /// In shared memory, read by each product.
    Shared,
    /// In registers: shared memory then feeds the other factor alone.
    Registers,
}

/// 64 rows of an own tile as a left factor.
pub(super) enum Left {
    Shared(SharedMatrix),
    Registers(Vec<Value>),
}

impl Left {
    /// Of the rows that begin at an address.
    pub fn new(f: &mut Function, hold: Hold, tile: Tiles, at: Value, thread: Value) -> Self {
        match hold {
            Hold::Shared => Left::Shared(tile.matrix(f, at, Summed::Columns)),
            Hold::Registers => Left::Registers(in_registers(f, thread, tile, at)),
        }
    }

    pub fn factor(&self) -> Factor<'_> {
        match self {
            Left::Shared(matrix) => Factor::Shared(*matrix),
            Left::Registers(registers) => Factor::Registers(registers),
        }
    }
}

/// A lane addresses a row of one of four 8 × 8 matrices: upper and lower rows, then the same of the next 8 columns.
fn in_registers(f: &mut Function, thread: Value, tile: Tiles, at: Value) -> Vec<Value> {
    let (in_matrix, in_pair, warp) = (f.int32(7), f.int32(15), f.int32(0x60));
    let (row, swizzle) = (f.and(thread, in_pair), f.and(thread, in_matrix));
    let warp = f.and(thread, warp);
    let before = f.shr(warp, 1);
    let row = f.addi(row, before);
    let row = f.times(row, 128);
    let at = f.addi(at, row);
    let (one, half) = (f.int32(1), f.shr(thread, 4));
    let half = f.and(half, one);
    let mut registers = vec![];
    for step in 0..tile.head_dim / 16 {
        let chunk = f.plus(half, (step % 4 * 2).into());
        let chunk = f.xor(chunk, swizzle);
        let chunk = f.times(chunk, 16);
        let chunk = f.addi(at, chunk);
        let at = f.shared_at(chunk, (step / 4 * tile.rows * 128).into());
        registers.extend(f.load_matrices(at, Turned::No));
    }
    registers
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
