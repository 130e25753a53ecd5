//! Tiles of 16-bit elements in shared memory, and the registers of tensor cores that come from them.
//!
//! A row is 128 or 256 bytes, in pieces of 16. The piece of a row has its number xor (row mod 8), so that neither rows nor columns of pieces
//! meet in a bank. Tiles begin at multiples of 1024 bytes, so the xor can be done on whole addresses.

use super::operand::{Head, element};
use crate::mlir::{Element, Function, Order, Quad, Turned, Type, Value};
use dspc_graph::ir::DType;

/// A tile's columns, and the threads that fill it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    pub dtype: DType,
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
    /// Matrices a, b / c, d of a square of 16 × 16: a over b.
    down: Value,
    /// a beside b.
    across: Value,
}

impl Format {
    /// Bytes of a row.
    pub fn row_bytes(self) -> u64 {
        self.width * 2
    }

    /// Bytes of a tile.
    pub fn bytes(self, rows: u64) -> u64 {
        rows * self.row_bytes()
    }

    /// Pieces of 16 bytes in a row.
    pub fn pieces(self) -> u64 {
        self.width / 8
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
        Lanes { row_bytes: self.row_bytes(), down, across }
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
        let low = f.shl(low, 4);
        let line = f.times(row, self.row_bytes());
        let within = f.shl(pair, 2);
        let own = f.addi(line, within);
        let own = f.addi(own, shared);
        let own = f.addi(own, low);
        for (group, columns) in (0..).zip(groups) {
            for (n, quad) in (0..).zip(columns) {
                let turn = f.int32(n << 4);
                let at = f.xor(own, turn);
                for half in 0..2 {
                    let pair = f.pack_halves(self.dtype, quad[half * 2], quad[half * 2 + 1]);
                    let at = f.shared_at(at, self.bytes(group * 16 + half as u64 * 8));
                    f.store(pair, at, 4);
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
        let column = f.shl(piece, 3);
        f.fold((zero, rows, step), &[], |f, start, _| {
            let row = f.addi(row, start);
            let at = self.place(f, row, piece);
            let at = f.addi(at, shared);
            let at = f.shared_at(at, 0);
            let of = element(self.dtype);
            let eight = f.load(at, Type::vector(of, 8), 16);
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
                f.only_if(inside, |f| f.store(eight, at, 16));
                return vec![];
            }
            for i in 0..8 {
                let column = f.plus(column, i);
                let is_column = f.order(Order::Below, column, columns);
                let inside = f.and(is_row, is_column);
                let at = f.offset(line, column, of);
                let one = f.extract(eight, i as u32);
                f.only_if(inside, |f| f.store(one, at, 2));
            }
            vec![]
        });
    }
}

impl Copier {
    /// Begins to copy `rows` rows of a head, from `first` on, to the tile at shared address `to`; what is not there becomes 0.
    pub fn copy(&self, f: &mut Function, from: &Head, first: Value, rows: u64, to: Value) {
        if from.is_wide {
            self.copy_wide(f, from, first, rows, to)
        } else {
            self.copy_narrow(f, from, first, rows, to)
        }
    }

    fn copy_wide(&self, f: &mut Function, from: &Head, first: Value, rows: u64, to: Value) {
        let of = element(self.format.dtype);
        let position = f.addi(first, self.row);
        let column = f.shl(self.piece, 3);
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
            let to = f.shared_at(own, self.format.bytes(row));
            let (at, is_row) = match base {
                Some(base) => (f.bytes_after(base, row * from.stride * 2), None),
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
            let size = inside.map(|inside| {
                let (all, none) = (f.int32(16), f.int32(0));
                f.select(inside, all, none)
            });
            f.copy_async(to, at, 16, size);
        }
    }

    /// Element by element: the columns of a head, or its rows, do not begin on 16 bytes. One loop over rows and columns, so that few registers
    /// are held around it.
    fn copy_narrow(&self, f: &mut Function, from: &Head, first: Value, rows: u64, to: Value) {
        let of = element(self.format.dtype);
        let (zero, end, one) = (f.int32(0), f.int32(rows / self.step * 8), f.int32(1));
        f.fold((zero, end, one), &[], |f, i, _| {
            let seven = f.int32(7);
            let (turn, within) = (f.shr(i, 3), f.and(i, seven));
            let start = f.times(turn, self.step);
            let row = f.addi(self.row, start);
            let position = f.addi(first, row);
            let column = f.shl(self.piece, 3);
            let column = f.addi(column, within);
            let [last_row, last_column] = [from.positions, from.columns].map(|n| f.int32(n - 1));
            let is_row = f.order(Order::LessEqual, position, last_row);
            let is_column = f.order(Order::LessEqual, column, last_column);
            let (position, column) = (f.minu(position, last_row), f.minu(column, last_column));
            let line = f.zero_extend(position, Element::I64);
            let line = f.times(line, from.stride);
            let line = f.offset(from.base, line, of);
            let at = f.offset(line, column, of);
            let bits = Type::scalar(Element::I16);
            let x = f.load(at, bits, 2);
            let inside = f.and(is_row, is_column);
            let none = f.int(bits, 0);
            let x = f.select(inside, x, none);
            let to = f.addi(to, self.offset);
            let below = f.times(start, self.format.row_bytes());
            let beside = f.shl(within, 1);
            let to = f.addi(to, below);
            let to = f.addi(to, beside);
            let to = f.shared_at(to, 0);
            f.store(x, to, 2);
            vec![]
        });
    }
}

impl Lanes {
    /// The square of 16 × 16 at (16 · row, 16 · column), `start` + a lane's offset being `lane`.
    fn square(
        &self,
        f: &mut Function,
        start: Value,
        rows: u64,
        (row, column): (u64, u64),
        turned: Turned,
    ) -> Quad {
        let turn = f.int32(column << 5);
        let at = if column == 0 { start } else { f.xor(start, turn) };
        let at = f.shared_at(at, (rows + row * 16) * self.row_bytes);
        f.load_matrices(at, turned)
    }
}

/// Left factors of a product: for each group of 16 rows, and each 16 of depth, a square.
#[derive(Clone, Debug)]
pub(super) enum Left {
    /// In registers, by group and depth.
    Held(Vec<Vec<Quad>>),
    /// In shared memory: where a lane begins, groups, depths.
    Shared(Value, usize, usize),
}

impl Left {
    /// Rows of a tile, 16 a group, from the tile's first on.
    pub fn held(f: &mut Function, lanes: &Lanes, tile: Value, groups: u64, depths: u64) -> Self {
        let start = f.addi(tile, lanes.down);
        let square =
            |f: &mut Function, group, depth| lanes.square(f, start, group * 16, (0, depth), Turned::No);
        Left::Held(
            (0..groups).map(|group| (0..depths).map(|depth| square(f, group, depth)).collect()).collect(),
        )
    }

    /// The same, loaded whenever they are used.
    pub fn shared(f: &mut Function, lanes: &Lanes, tile: Value, groups: u64, depths: u64) -> Self {
        Left::Shared(f.addi(tile, lanes.down), groups as usize, depths as usize)
    }

    fn depths(&self) -> usize {
        match self {
            Left::Held(all) => all[0].len(),
            Left::Shared(_, _, depths) => *depths,
        }
    }

    /// The squares of a depth, one a group.
    fn squares(&self, f: &mut Function, lanes: &Lanes, depth: usize) -> Vec<Quad> {
        match self {
            Left::Held(all) => all.iter().map(|group| group[depth]).collect(),
            Left::Shared(start, groups, _) => (0..*groups as u64)
                .map(|group| lanes.square(f, *start, group * 16, (0, depth as u64), Turned::No))
                .collect(),
        }
    }
}

/// How a tile is a right factor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Right {
    /// As it lies: depth runs over its rows.
    Tile,
    /// Transposed: depth runs over its columns.
    Transposed,
}

/// `sums += left · right`, sums by group and 8 columns; the right factor is a tile's rows from `rows` on.
pub(super) fn multiply(
    f: &mut Function,
    (dtype, lanes): (DType, &Lanes),
    left: &Left,
    (right, tile, rows): (Right, Value, u64),
    sums: &mut [Vec<Quad>],
) {
    let start = f.addi(tile, if right == Right::Tile { lanes.down } else { lanes.across });
    for depth in 0..left.depths() {
        let left = left.squares(f, lanes, depth);
        for pair in 0..sums[0].len() / 2 {
            let (d, p) = (depth as u64, pair as u64);
            let [a, b, c, d] = match right {
                Right::Tile => lanes.square(f, start, rows, (d, p), Turned::Yes),
                Right::Transposed => lanes.square(f, start, rows, (p, d), Turned::No),
            };
            for (&left, sums) in left.iter().zip(sums.iter_mut()) {
                sums[pair * 2] = f.multiply_matrices(dtype, left, [a, b], sums[pair * 2]);
                sums[pair * 2 + 1] = f.multiply_matrices(dtype, left, [c, d], sums[pair * 2 + 1]);
            }
        }
    }
}

/// Numbers of sums as left factors of a further product: two neighbours of 8 columns are 16 of depth.
pub(super) fn as_left(f: &mut Function, dtype: DType, groups: &[Vec<Quad>]) -> Left {
    let groups = groups
        .iter()
        .map(|columns| {
            columns
                .chunks(2)
                .map(|two| {
                    [
                        f.pack_halves(dtype, two[0][0], two[0][1]),
                        f.pack_halves(dtype, two[0][2], two[0][3]),
                        f.pack_halves(dtype, two[1][0], two[1][1]),
                        f.pack_halves(dtype, two[1][2], two[1][3]),
                    ]
                })
                .collect()
        })
        .collect();
    Left::Held(groups)
}
