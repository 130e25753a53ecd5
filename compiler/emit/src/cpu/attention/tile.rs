//! Tiles: small f32 matrices on the stack, and what attention does with them.
//!
//! Rows and columns are multiples of a vector and of [`ROW_STEP`]; what lies outside the operand is 0.

use crate::cpu::memory::{Mask, address, load, store};
use crate::mlir::{Element, Function, Value};
use dspc_graph::ir::DType;

/// Rows of every tile are a multiple of this: what the inner product takes at once, or half of it.
pub(crate) const ROW_STEP: u64 = 8;

/// A matrix on the stack, row by row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile {
    pub base: Value,
    pub rows: u64,
    pub cols: u64,
}

/// An operand of the kernel: head `head` of rows that begin at `first`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    /// Address of the first row's first element.
    pub base: Value,
    pub dtype: DType,
    /// Elements from one row to the next.
    pub stride: u64,
    /// Elements of a row.
    pub cols: u64,
}

/// How an inner product begins.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start {
    /// From 0.
    Zero,
    /// From what the result holds.
    Result,
    /// From that times a row of factors, one a column.
    Scaled(Tile),
}

/// The left factor of a product, element (i, k) at `i · row + k · step`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    pub tile: Tile,
    pub row: u64,
    pub step: u64,
}

impl Tile {
    /// Room for one.
    pub fn new(f: &mut Function, rows: u64, cols: u64) -> Self {
        Tile { base: f.stack(rows * cols), rows, cols }
    }

    /// The address of an element.
    pub fn at(&self, f: &mut Function, row: Value, col: Value) -> Value {
        let row = f.times(row, self.cols);
        let at = f.addi(row, col);
        address(f, DType::F32, self.base, at)
    }

    /// A vector of a row.
    pub fn load(&self, f: &mut Function, row: Value, col: u64, lanes: u32) -> Value {
        let col = f.index(col);
        let at = self.at(f, row, col);
        load(f, DType::F32, at, lanes, Mask::All)
    }

    /// Writes a vector of a row.
    pub fn store(&self, f: &mut Function, value: Value, row: Value, col: u64) {
        let col = f.index(col);
        let at = self.at(f, row, col);
        store(f, DType::F32, value, at, Mask::All);
    }

    /// The same number everywhere.
    pub fn fill(&self, f: &mut Function, x: f32, lanes: u32) {
        let x = f.float(lanes, x);
        f.repeat(self.rows * self.cols, lanes.into(), |f, at| {
            let at = address(f, DType::F32, self.base, at);
            store(f, DType::F32, x, at, Mask::All);
        });
    }

    /// As a left factor: rows of it.
    pub fn rows_left(self) -> Left {
        Left { tile: self, row: self.cols, step: 1 }
    }

    /// As a left factor: columns of it.
    pub fn cols_left(self) -> Left {
        Left { tile: self, row: 1, step: self.cols }
    }
}

/// Vectors of a row of `cols` elements: first column and mask.
pub(crate) fn vectors(f: &mut Function, cols: u64, lanes: u32) -> Vec<(u64, Mask)> {
    let mut all = vec![];
    for col in (0..cols).step_by(lanes as usize) {
        let left = cols - col;
        let mask = if left >= lanes.into() {
            Mask::All
        } else {
            let inside: Vec<i64> = (0..lanes.into()).map(|lane| i64::from(lane < left as i64)).collect();
            Mask::Lanes(f.lanes(Element::I1, &inside))
        };
        all.push((col, mask));
    }
    all
}

/// Copies `count` rows into a tile, times a factor, and zeroes the rest of it.
pub(crate) fn pack(f: &mut Function, from: &Matrix, count: Value, scale: f32, to: &Tile, lanes: u32) {
    let columns = vectors(f, from.cols, lanes);
    let (zero_index, one, rows) = (f.index(0), f.index(1), f.index(to.rows));
    let (factor, zero) = (f.float(lanes, scale), f.float(lanes, 0.0));
    f.fold((zero_index, count, one), &[], |f, row, _| {
        let first = f.times(row, from.stride);
        let first = address(f, from.dtype, from.base, first);
        for (col, mask) in columns {
            let at = f.index(col);
            let at = address(f, from.dtype, first, at);
            let mut value = load(f, from.dtype, at, lanes, mask);
            if scale != 1.0 {
                value = f.mul(value, factor);
            }
            to.store(f, value, row, col);
        }
        for col in (from.cols.next_multiple_of(lanes.into())..to.cols).step_by(lanes as usize) {
            to.store(f, zero, row, col);
        }
        vec![]
    });
    f.fold((count, rows, one), &[], |f, row, _| {
        for col in (0..to.cols).step_by(lanes as usize) {
            to.store(f, zero, row, col);
        }
        vec![]
    });
}

/// What [`unpack`] does with what is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Onto {
    /// Overwrites it.
    Nothing,
    /// Adds to it.
    Sum,
}

/// Copies a tile's first `count` rows to an operand, times a factor.
pub(crate) fn unpack(
    f: &mut Function,
    from: &Tile,
    count: Value,
    scale: f32,
    to: &Matrix,
    onto: Onto,
    lanes: u32,
) {
    let columns = vectors(f, to.cols, lanes);
    let (zero, one, factor) = (f.index(0), f.index(1), f.float(lanes, scale));
    f.fold((zero, count, one), &[], |f, row, _| {
        let first = f.times(row, to.stride);
        let first = address(f, to.dtype, to.base, first);
        for (col, mask) in columns {
            let mut value = from.load(f, row, col, lanes);
            let at = f.index(col);
            let at = address(f, to.dtype, first, at);
            if onto == Onto::Sum {
                let before = load(f, to.dtype, at, lanes, mask);
                value = f.fma(value, factor, before);
            } else if scale != 1.0 {
                value = f.mul(value, factor);
            }
            store(f, to.dtype, value, at, mask);
        }
        vec![]
    });
}

/// `to[c][r] = from[r][c]`, in squares of a vector's size: halves are exchanged between rows further and further apart.
pub(crate) fn transpose(f: &mut Function, from: &Tile, to: &Tile, lanes: u32) {
    let size = u64::from(lanes);
    f.repeat(from.rows, size, |f, row| {
        f.repeat(from.cols, size, |f, col| {
            let mut square: Vec<Value> = (0..size)
                .map(|i| {
                    let row = f.plus(row, i);
                    let at = from.at(f, row, col);
                    load(f, DType::F32, at, lanes, Mask::All)
                })
                .collect();
            let mut distance = 1;
            while distance < lanes {
                exchange(f, &mut square, distance);
                distance *= 2;
            }
            for (i, value) in (0..size).zip(square) {
                let col = f.plus(col, i);
                let at = to.at(f, col, row);
                store(f, DType::F32, value, at, Mask::All);
            }
        });
    });
}

/// Exchanges the off-diagonal halves of all blocks of 2 · distance.
fn exchange(f: &mut Function, square: &mut [Value], distance: u32) {
    let lanes = square.len() as u32;
    let upper: Vec<u32> =
        (0..lanes).map(|l| if l & distance == 0 { l } else { lanes + l - distance }).collect();
    let lower: Vec<u32> =
        (0..lanes).map(|l| if l & distance == 0 { l + distance } else { lanes + l }).collect();
    for i in (0..lanes).filter(|i| i & distance == 0) {
        let (a, b) = (square[i as usize], square[(i + distance) as usize]);
        square[i as usize] = f.shuffle(a, b, &upper);
        square[(i + distance) as usize] = f.shuffle(a, b, &lower);
    }
}

/// `result[i][lanes] = start + Σ_k left(i, k) · right[k][lanes]`, k below `depth`.
///
/// A block of the result stays in registers while k runs: an element of the left factor is put in all lanes and meets a few vectors of the
/// right one. 16 accumulators hide the latency of the multiply-add on machines with two of them a cycle; with 16 registers it is 8.
pub(crate) fn multiply(
    f: &mut Function,
    left: Left,
    right: &Tile,
    depth: u64,
    result: &Tile,
    start: Start,
    lanes: u32,
) {
    let wide = if lanes == 16 { 4 } else { 2 };
    let vectors = result.cols / u64::from(lanes);
    for first in (0..vectors).step_by(wide as usize) {
        let count = wide.min(vectors - first);
        let rows = if count * 4 <= wide * 2 { ROW_STEP } else { ROW_STEP / 2 };
        f.repeat(result.rows, rows, |f, row| {
            let columns: Vec<u64> = (first..first + count).map(|v| v * u64::from(lanes)).collect();
            let mut sums = vec![];
            for i in 0..rows {
                let row = f.plus(row, i);
                for &col in &columns {
                    sums.push(begin(f, result, start, row, col, lanes));
                }
            }
            let range = (f.index(0), f.index(depth), f.index(1));
            let origin = f.times(row, left.row);
            let sums = f.fold(range, &sums, |f, k, sums| {
                let right: Vec<Value> = columns.iter().map(|&col| right.load(f, k, col, lanes)).collect();
                let step = f.times(k, left.step);
                let at = f.addi(origin, step);
                let mut next = vec![];
                for i in 0..rows {
                    let at = f.plus(at, i * left.row);
                    let at = address(f, DType::F32, left.tile.base, at);
                    let x = load(f, DType::F32, at, 1, Mask::All);
                    let x = f.broadcast(x, lanes);
                    for &right in &right {
                        let sum = sums[next.len()];
                        next.push(f.fma(x, right, sum));
                    }
                }
                next
            });
            let mut sums = sums.into_iter();
            for i in 0..rows {
                let row = f.plus(row, i);
                for (&col, sum) in columns.iter().zip(&mut sums) {
                    result.store(f, sum, row, col);
                }
            }
        });
    }
}

fn begin(f: &mut Function, result: &Tile, start: Start, row: Value, col: u64, lanes: u32) -> Value {
    match start {
        Start::Zero => f.float(lanes, 0.0),
        Start::Result => result.load(f, row, col, lanes),
        Start::Scaled(factors) => {
            let before = result.load(f, row, col, lanes);
            let zero = f.index(0);
            let factor = factors.load(f, zero, col, lanes);
            f.mul(before, factor)
        }
    }
}
