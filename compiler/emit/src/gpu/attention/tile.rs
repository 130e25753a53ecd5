//! Tiles in shared memory, and the registers of tensor cores that come from them.
//!
//! A row is 128, 256 or 512 bytes, in pieces of 16. The piece of a row has its number xor (row mod 8), so that neither rows nor columns of pieces
//! meet in a bank. Tiles begin at multiples of 1024 bytes, so the xor can be done on whole addresses.

use super::factors::Factors;
use super::operand::{Head, element};
use crate::mlir::{Element, Function, INT, Order, Quad, Turned, Type, Value};
use dspc_graph::ir::DType;

/// A tile's columns, and the threads that fill it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    pub dtype: DType,
    /// What tensor cores make of it.
    pub factors: Factors,
    /// Columns: 64 or 128.
    pub width: u64,
    /// Threads of the block.
    pub threads: u64,
}

/// What of tiles a thread copies: the same piece of every `step`-th row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copier {
    format: Format,
    row: Value,
    piece: Value,
    /// Where its first piece lies in a tile.
    offset: Value,
    /// Rows that all threads copy at once.
    step: u64,
}

/// Addresses from which a lane loads matrices, but for the tile's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lanes {
    row_bytes: u64,
    /// Matrices a, b / c, d of a square of 16 rows and 32 bytes: a over b.
    pub down: Value,
    /// a beside b.
    pub across: Value,
    /// Words one by one, of f32: row 2t and column g, as lane 4g + t has it.
    words: Option<Value>,
}

impl Format {
    /// Bytes of a row.
    pub fn row_bytes(self) -> u64 {
        self.width * self.dtype.bytes()
    }

    /// Bytes of a tile.
    pub fn bytes(self, rows: u64) -> u64 {
        rows * self.row_bytes()
    }

    /// Pieces of 16 bytes in a row.
    pub fn pieces(self) -> u64 {
        self.row_bytes() / 16
    }

    /// Elements of a piece.
    fn each(self) -> u64 {
        16 / self.dtype.bytes()
    }

    /// Where a piece lies in a tile.
    fn place(self, f: &mut Function, row: Value, piece: Value) -> Value {
        let seven = f.int32(7);
        let low = f.and(row, seven);
        let piece = f.xor(piece, low);
        let piece = f.shl(piece, 4);
        let row = f.times(row, self.row_bytes());
        f.addi(row, piece)
    }

    /// A thread's part of all copies.
    pub fn copier(self, f: &mut Function, thread: Value) -> Copier {
        let pieces = f.int32(self.pieces());
        let (row, piece) = (f.divu(thread, pieces), f.remu(thread, pieces));
        let offset = self.place(f, row, piece);
        Copier { format: self, row, piece, offset, step: self.threads / self.pieces() }
    }

    /// A lane's addresses.
    pub fn lanes(self, f: &mut Function, lane: Value) -> Lanes {
        let (seven, fifteen, one) = (f.int32(7), f.int32(15), f.int32(1));
        let (row, half) = (f.and(lane, fifteen), f.shr(lane, 4));
        let down = self.place(f, row, half);
        let (low, second) = (f.and(lane, seven), f.shl(half, 3));
        let row = f.addi(low, second);
        let quarter = f.shr(lane, 3);
        let piece = f.and(quarter, one);
        let across = self.place(f, row, piece);
        let words = (self.dtype == DType::F32).then(|| self.words(f, lane));
        Lanes { row_bytes: self.row_bytes(), down, across, words }
    }

    /// Where a lane's word of 8 × 8 lies: row 2t, column g.
    fn words(self, f: &mut Function, lane: Value) -> Value {
        let three = f.int32(3);
        let (column, row) = (f.shr(lane, 2), f.and(lane, three));
        let row = f.shl(row, 1);
        let (piece, within) = (f.shr(column, 2), f.and(column, three));
        let at = self.place(f, row, piece);
        let within = f.shl(within, 2);
        f.addi(at, within)
    }

    /// Writes 16 rows a group from registers to a head's rows from `first` on, through a part of shared memory that is the
    /// warp's own.
    pub fn store(
        self,
        f: &mut Function,
        groups: &[Vec<Quad>],
        to: &Head,
        (first, shared, lane): (Value, Value, Value),
    ) {
        f.warp_barrier();
        let (seven, three) = (f.int32(7), f.int32(3));
        let (row, pair) = (f.shr(lane, 2), f.and(lane, three));
        let low = f.and(row, seven);
        let is_half = self.dtype.bytes() == 2;
        let (low, within) = if is_half {
            (low, f.shl(pair, 2))
        } else {
            let (one, piece) = (f.int32(1), f.shr(pair, 1));
            let within = f.and(pair, one);
            (f.xor(low, piece), f.shl(within, 3))
        };
        let low = f.shl(low, 4);
        let line = f.times(row, self.row_bytes());
        let own = f.addi(line, within);
        let own = f.addi(own, shared);
        let own = f.addi(own, low);
        for (group, columns) in (0..).zip(groups) {
            for (n, quad) in (0..).zip(columns) {
                let turn = f.int32(n * 8 * self.dtype.bytes());
                let at = f.xor(own, turn);
                for half in 0..2 {
                    let two = [quad[half * 2], quad[half * 2 + 1]];
                    let pair =
                        if is_half { f.pack_halves(self.dtype, two[0], two[1]) } else { f.gather(&two) };
                    let at = f.shared_at(at, self.bytes(group * 16 + half as u64 * 8));
                    f.store(pair, at, 2 * self.dtype.bytes());
                }
            }
        }
        f.warp_barrier();
        self.copy_out(f, groups.len() as u64 * 16, to, (first, shared, lane));
    }

    /// Writes rows of a tile to a head's rows.
    fn copy_out(self, f: &mut Function, rows: u64, to: &Head, (first, shared, lane): (Value, Value, Value)) {
        let pieces = f.int32(self.pieces());
        let (row, piece) = (f.divu(lane, pieces), f.remu(lane, pieces));
        let step = f.int32(32 / self.pieces());
        let (zero, rows) = (f.int32(0), f.int32(rows));
        let column = f.shl(piece, self.each().ilog2().into());
        f.fold((zero, rows, step), &[], |f, start, _| {
            let row = f.addi(row, start);
            let at = self.place(f, row, piece);
            let at = f.addi(at, shared);
            let at = f.shared_at(at, 0);
            let of = element(self.dtype);
            let all = f.load(at, Type::vector(of, self.each() as u32), 16);
            let position = f.addi(first, row);
            let (end, columns) = (f.int32(to.positions), f.int32(to.columns));
            let is_row = f.order(Order::Below, position, end);
            let wide = f.zero_extend(position, Element::I64);
            let line = f.times(wide, to.stride);
            let line = f.offset(to.base, line, of);
            if to.is_wide {
                let is_column = f.order(Order::Below, column, columns);
                let inside = f.and(is_row, is_column);
                let at = f.offset(line, column, of);
                f.only_if(inside, |f| f.store(all, at, 16));
                return vec![];
            }
            for i in 0..self.each() {
                let column = f.plus(column, i);
                let is_column = f.order(Order::Below, column, columns);
                let inside = f.and(is_row, is_column);
                let at = f.offset(line, column, of);
                let one = f.extract(all, i as u32);
                f.only_if(inside, |f| f.store(one, at, self.dtype.bytes()));
            }
            vec![]
        });
    }
}

impl Copier {
    /// Begins to copy `rows` rows of a head, from `first` on, to the tile at shared address `to`; what is not there becomes 0.
    pub fn copy(&self, f: &mut Function, from: &Head, first: Value, rows: u64, to: Value) {
        if from.is_wide && self.format.row_bytes() == 512 {
            self.copy_by_turns(f, from, first, rows, to, self.format.each())
        } else if from.is_wide {
            self.copy_wide(f, from, first, rows, to)
        } else {
            self.copy_by_turns(f, from, first, rows, to, 1)
        }
    }

    fn copy_wide(&self, f: &mut Function, from: &Head, first: Value, rows: u64, to: Value) {
        let of = element(self.format.dtype);
        let size = self.format.dtype.bytes();
        let position = f.addi(first, self.row);
        let column = f.shl(self.piece, self.format.each().ilog2().into());
        let is_ragged = !from.positions.is_multiple_of(rows);
        let is_column = (from.columns < self.format.width).then(|| {
            let end = f.int32(from.columns);
            f.order(Order::Below, column, end)
        });
        let column = match is_column {
            None => column,
            Some(inside) => {
                let zero = f.int32(0);
                f.select(inside, column, zero)
            }
        };
        let column = f.zero_extend(column, Element::I64);
        let address = |f: &mut Function, position: Value| {
            let line = f.zero_extend(position, Element::I64);
            let line = f.times(line, from.stride);
            let at = f.addi(line, column);
            f.offset(from.base, at, of)
        };
        let base = (!is_ragged).then(|| address(f, position));
        let own = f.addi(to, self.offset);
        for row in (0..rows).step_by(self.step as usize) {
            // Of rows that differ in their numbers mod 8 the pieces do too.
            let own = match row % 8 {
                0 => own,
                key => {
                    let key = f.int32(key << 4);
                    f.xor(own, key)
                }
            };
            let to = f.shared_at(own, self.format.bytes(row));
            let (at, is_row) = match base {
                Some(base) => (f.bytes_after(base, row * from.stride * size), None),
                None => {
                    let position = f.plus(position, row);
                    let last = f.int32(from.positions - 1);
                    let is_row = f.order(Order::LessEqual, position, last);
                    let position = f.minu(position, last);
                    (address(f, position), Some(is_row))
                }
            };
            let inside = match (is_row, is_column) {
                (Some(a), Some(b)) => Some(f.and(a, b)),
                (one, other) => one.or(other),
            };
            let present = inside.map(|inside| {
                let (all, none) = (f.int32(16), f.int32(0));
                f.select(inside, all, none)
            });
            f.copy_async(to, at, 16, present);
        }
    }

    /// `run` elements at a time, in one loop over rows and columns, so that few registers are held around it: one by one where the columns of a
    /// head, or its rows, do not begin on 16 bytes, a piece where registers are needed for more.
    fn copy_by_turns(&self, f: &mut Function, from: &Head, first: Value, rows: u64, to: Value, run: u64) {
        let format = self.format;
        let (of, size) = (element(format.dtype), format.dtype.bytes());
        let (runs, bits) = (format.each() / run, i64::from((format.each() / run).ilog2()));
        let (zero, end, one) = (f.int32(0), f.int32(rows / self.step * runs), f.int32(1));
        f.fold((zero, end, one), &[], |f, i, _| {
            let mask = f.int32(runs - 1);
            let (turn, within) = (f.shr(i, bits), f.and(i, mask));
            let start = f.times(turn, self.step);
            let row = f.addi(self.row, start);
            let position = f.addi(first, row);
            let column = f.shl(self.piece, format.each().ilog2().into());
            let beside = f.times(within, run);
            let column = f.addi(column, beside);
            let [last_row, last_column] = [from.positions - 1, from.columns - run].map(|n| f.int32(n));
            let is_row = f.order(Order::LessEqual, position, last_row);
            let is_column = f.order(Order::LessEqual, column, last_column);
            let (position, column) = (f.minu(position, last_row), f.minu(column, last_column));
            let line = f.zero_extend(position, Element::I64);
            let line = f.times(line, from.stride);
            let line = f.offset(from.base, line, of);
            let at = f.offset(line, column, of);
            let inside = f.and(is_row, is_column);
            let to = if self.step.is_multiple_of(8) {
                let below = f.times(start, format.row_bytes());
                let to = f.addi(to, self.offset);
                f.addi(to, below)
            } else {
                let place = format.place(f, row, self.piece);
                f.addi(to, place)
            };
            let beside = f.times(beside, size);
            let to = f.addi(to, beside);
            let to = f.shared_at(to, 0);
            if run * size >= 4 {
                let (all, none) = (f.int32(run * size), f.int32(0));
                let present = f.select(inside, all, none);
                f.copy_async(to, at, (run * size) as u32, Some(present));
            } else {
                let bits = Type::scalar(Element::I16);
                let x = f.load(at, bits, size);
                let none = f.int(bits, 0);
                let x = f.select(inside, x, none);
                f.store(x, to, size);
            }
            vec![]
        });
    }
}

impl Lanes {
    /// The square of 16 rows and 32 bytes at (16 · row, 32 bytes · column), `start` being the tile's address and a lane's offset.
    pub fn square(
        &self,
        f: &mut Function,
        start: Value,
        rows: u64,
        (row, column): (u64, u64),
        turned: Turned,
    ) -> Quad {
        let (turn, beside) = self.turn(column << 5);
        let turn_by = f.int32(turn);
        let at = if turn == 0 { start } else { f.xor(start, turn_by) };
        let at = f.shared_at(at, (rows + row * 16) * self.row_bytes + beside);
        f.load_matrices(at, turned)
    }

    /// Of 8 × 8 f32 at `rows` and 8 · column a lane's two words: those of rows 2t and 2t + 1. No instruction transposes 32 bits, and in this order
    /// of rows the words of a warp lie in all banks.
    pub fn pair(&self, f: &mut Function, tile: Value, rows: u64, column: u64) -> [Value; 2] {
        let own = self.words.unwrap_or(self.down);
        let start = f.addi(tile, own);
        // The piece's number xor the row's: the next row's differs in the last bit.
        [0, 1].map(|below| {
            let (turn, beside) = self.turn((column << 5) | (below << 4));
            let turn_by = f.int32(turn);
            let at = if turn == 0 { start } else { f.xor(start, turn_by) };
            let at = f.shared_at(at, (rows + below) * self.row_bytes + beside);
            f.load(at, INT, 4)
        })
    }

    /// Bytes along a row as what to xor an address with, and what to add: a row's number changes three bits of a piece's. Of f32, whose rows
    /// have many pieces, that leaves few addresses.
    fn turn(&self, bytes: u64) -> (u64, u64) {
        match self.words {
            None => (bytes, 0),
            Some(_) => (bytes % 128, bytes / 128 * 128),
        }
    }
}
