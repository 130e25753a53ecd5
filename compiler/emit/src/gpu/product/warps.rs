//! Products by the tensor cores of every generation: warps that multiply 16 × 16 × 8 blocks out of shared memory (`mma.sync`).
//!
//! Shapes    any; a block is [`Tile::m`] × [`Tile::n`] of the result, four warps with a quarter each.
//! Factors   16 bits, or f32 rounded to TF32: a block is then 16 × 8 × 8, the same number of bytes.
//! Copies    16 bytes at a time by the copy unit, [`Tile::stages`] pieces of 64 bytes of terms ahead; where rows are not whole 16 bytes, by element.
//! Banks     16-byte runs of a piece are permuted by the row, so that eight rows of a matrix lie in all 32 banks.
//! Numerics  f32 sums in the order of the terms, a block's at a time; parts of the summed dim apart from each other.

use super::finish::{Finish, Strip};
use super::problem::{Factor, Neighbours, Problem};
use crate::gpu::attributes;
use crate::gpu::memory::stored;
use crate::mlir::{Element, Function, INT, Order, Quad, Space, Turned, Type, Value};
use dspc_graph::ir::DType;
use dspc_program::GpuLaunch;

/// Bytes of a piece's terms, and how many blocks they are.
const LINE: u64 = 64;
const BLOCKS: u64 = 2;
/// Threads of a block.
const THREADS: u64 = 128;
/// Rows of blocks that follow each other before the next column of blocks: what they share stays in the second cache.
const BAND: u64 = 8;

/// A block's share of the result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tile {
    /// Rows, 64 or 128.
    pub m: u64,
    /// Columns, 64 or 128.
    pub n: u64,
    /// Pieces in shared memory.
    pub stages: u64,
}

/// A factor while a block is written.
struct Side {
    factor: Factor,
    /// First element.
    pointer: Value,
    /// Rows (or columns) of the tile.
    length: u64,
    /// Bytes before the factor in a stage.
    start: u64,
    /// This thread's runs of 16 bytes.
    runs: Vec<Run>,
}

/// 16 bytes of neighbours that a thread copies.
struct Run {
    /// Row (or column) of the factor, past the end too.
    sum: Value,
    /// Term in the piece.
    term: Value,
    /// Where they lie in the factor, piece 0: 64-bit elements. The last whole run where they are past the end.
    elements: Value,
    /// Where they go in the stage, bytes.
    to: Value,
}

/// Writes a kernel, and how it is launched.
pub(super) fn emit(symbol: &str, problem: &Problem<'_>, tile: Tile) -> Result<(String, GpuLaunch), String> {
    let types = super::operand_types(problem.kernel);
    let (mut function, operands) = Function::new(&types);
    let f = &mut function;
    let (thread, block) = (f.special("tid.x"), f.special("ctaid.x"));
    let shared_symbol = format!("{symbol}_shared");
    let shared = f.address_in(Space::Shared, &shared_symbol);
    let shared = f.number_of_address(shared);
    let (rows, cols) = (problem.m.div_ceil(tile.m), problem.n.div_ceil(tile.n));
    let (row, col) = super::band(f, block, rows, cols, BAND);
    let (row, col) = (f.times(row, tile.m), f.times(col, tile.n));
    let (pieces, share) = problem.pieces(depth(problem));
    let (begin, end) = part(f, problem, pieces, share);
    let stage_bytes = (tile.m + tile.n) * LINE;
    let (left, right) = (operands[problem.left.operand], operands[problem.right.operand]);
    let sides = [
        Side::new(f, problem, problem.left, left, (tile.m, row, 0), thread),
        Side::new(f, problem, problem.right, right, (tile.n, col, tile.m * LINE), thread),
    ];
    let copy = Copy { problem, shared, sides: &sides };
    // The first pieces.
    for stage in 0..tile.stages - 1 {
        let piece = f.plus(begin, stage);
        let is_piece = f.order(Order::Less, piece, end);
        let at = f.int32(stage * stage_bytes);
        f.only_if(is_piece, |f| copy.piece(f, piece, at));
        f.commit_copies();
    }
    let warps = Warps::new(f, thread, tile, &sides);
    let zero = f.float(1, 0.0);
    let count = warps.sums();
    let (none, one) = (f.int32(0), f.int32(1));
    let writes = f.int32((tile.stages - 1) * stage_bytes);
    let mut carried = vec![none, writes];
    carried.extend(std::iter::repeat_n(zero, count));
    let sums = f.fold((begin, end, one), &carried, |f, piece, carried| {
        let (reads, writes) = (carried[0], carried[1]);
        f.await_copies(tile.stages - 2);
        f.barrier();
        let next = f.plus(piece, tile.stages - 1);
        let is_piece = f.order(Order::Less, next, end);
        f.only_if(is_piece, |f| copy.piece(f, next, writes));
        f.commit_copies();
        let stage = f.addi(shared, reads);
        let sums = warps.multiply(f, problem, stage, &carried[2..]);
        let after = |f: &mut Function, at: Value| {
            let at = f.plus(at, stage_bytes);
            let all = f.int32(tile.stages * stage_bytes);
            let is_end = f.order(Order::Equal, at, all);
            f.select(is_end, none, at)
        };
        let mut next = vec![after(f, reads), after(f, writes)];
        next.extend(sums);
        next
    });
    warps.finish(f, problem, &operands, (row, col), &sums[2..]);
    let text = function.finish(symbol, &types, &attributes(THREADS as u32));
    let launch = GpuLaunch {
        symbol: symbol.into(),
        grid: [super::grid(rows * cols)?, 1, super::grid(problem.kernel.splits)?],
        block: THREADS as u32,
        shared: (tile.stages * stage_bytes) as u32,
        maps: vec![],
    };
    Ok((super::dynamic_shared(&shared_symbol) + &text, launch))
}

/// Terms of a piece.
fn depth(problem: &Problem<'_>) -> u64 {
    LINE / problem.left.dtype.bytes()
}

/// Pieces of this block's part of the summed dim.
fn part(f: &mut Function, problem: &Problem<'_>, pieces: u64, share: u64) -> (Value, Value) {
    if problem.kernel.splits == 1 {
        return (f.int32(0), f.int32(pieces));
    }
    let part = f.special("ctaid.z");
    let begin = f.times(part, share);
    let end = f.plus(begin, share);
    let all = f.int32(pieces);
    (f.minu(begin, all), f.minu(end, all))
}

impl Side {
    fn new(
        f: &mut Function,
        problem: &Problem<'_>,
        factor: Factor,
        pointer: Value,
        (length, first, start): (u64, Value, u64),
        thread: Value,
    ) -> Self {
        let runs = length * LINE / 16 / THREADS;
        let each = 16 / factor.dtype.bytes();
        let is_regular = problem.is_regular();
        let run = |i: u64| {
            let index = f.plus(thread, i * THREADS);
            let across = match factor.neighbours {
                Neighbours::Terms => LINE / 16,
                Neighbours::Sums => length / each,
            };
            let mask = f.int32(across - 1);
            let chunk = f.and(index, mask);
            let line = f.shr(index, i64::from(across.trailing_zeros()));
            let to = shared_offset(f, &factor, length, line, chunk);
            let to = f.plus(to, start);
            let along = f.times(chunk, each);
            let (sum, term) = match factor.neighbours {
                Neighbours::Terms => (f.addi(first, line), along),
                Neighbours::Sums => (f.addi(first, along), line),
            };
            let wide = |f: &mut Function, x: Value| f.zero_extend(x, Element::I64);
            let elements = match factor.neighbours {
                Neighbours::Terms => {
                    let last = f.int32(factor.length - 1);
                    let row = f.minu(sum, last);
                    let (row, term) = (wide(f, row), wide(f, term));
                    let row = f.times(row, factor.stride);
                    f.addi(row, term)
                }
                Neighbours::Sums => {
                    let last = f.int32(if is_regular { factor.length - each } else { factor.length - 1 });
                    let sum = f.minu(sum, last);
                    let (sum, term) = (wide(f, sum), wide(f, term));
                    let row = f.times(term, factor.stride);
                    f.addi(row, sum)
                }
            };
            Run { sum, term, elements, to }
        };
        let runs = (0..runs).map(run).collect();
        Side { factor, pointer, length, start, runs }
    }

    /// Elements from one piece to the next.
    fn piece_elements(&self) -> u64 {
        let depth = LINE / self.factor.dtype.bytes();
        match self.factor.neighbours {
            Neighbours::Terms => depth,
            Neighbours::Sums => depth * self.factor.stride,
        }
    }
}

/// Bytes into a factor's part of a stage: lines of a row's terms, or lines of a term's elements; 16 bytes of it.
fn shared_offset(f: &mut Function, factor: &Factor, length: u64, line: Value, chunk: Value) -> Value {
    let bits = |f: &mut Function, x: Value, mask: u64| {
        let mask = f.int32(mask);
        f.and(x, mask)
    };
    let (key, bytes) = match (factor.neighbours, factor.dtype.bytes()) {
        (Neighbours::Terms, _) => {
            let key = f.shr(line, 1);
            (bits(f, key, 3), LINE)
        }
        (Neighbours::Sums, 2) => (bits(f, line, 7), length * 2),
        // Eight elements of each of four lines are read together.
        (Neighbours::Sums, size) => {
            let key = bits(f, line, 3);
            (f.shl(key, 1), length * size)
        }
    };
    let chunk = f.xor(chunk, key);
    let chunk = f.shl(chunk, 4);
    let line = f.times(line, bytes);
    f.addi(line, chunk)
}

/// Brings pieces of both factors to shared memory.
struct Copy<'c> {
    problem: &'c Problem<'c>,
    shared: Value,
    sides: &'c [Side; 2],
}

impl Copy<'_> {
    /// Into the stage that begins at so many bytes.
    fn piece(&self, f: &mut Function, piece: Value, stage: Value) {
        let stage = f.addi(self.shared, stage);
        let wide = f.zero_extend(piece, Element::I64);
        let term = f.times(piece, depth(self.problem));
        for side in self.sides {
            let before = f.times(wide, side.piece_elements());
            for run in &side.runs {
                let to = f.addi(stage, run.to);
                let to = f.shared_at(to, 0);
                if self.problem.is_regular() {
                    self.regular(f, side, run, (term, before), to);
                } else {
                    self.guarded(f, side, run, term, to);
                }
            }
        }
    }

    /// 16 bytes by the copy unit; zeros where the terms have ended.
    fn regular(&self, f: &mut Function, side: &Side, run: &Run, (term, before): (Value, Value), to: Value) {
        let element = stored(side.factor.dtype);
        let mut at = f.addi(run.elements, before);
        let mut size = None;
        if !self.problem.k.is_multiple_of(depth(self.problem)) {
            let term = f.addi(term, run.term);
            let end = f.int32(self.problem.k);
            let is_term = f.order(Order::Less, term, end);
            let (none, whole, start) = (f.int32(0), f.int32(16), f.index(0));
            at = f.select(is_term, at, start);
            size = Some(f.select(is_term, whole, none));
        }
        let from = f.offset(side.pointer, at, element);
        f.copy_async(to, from, 16, size);
    }

    /// Element by element.
    fn guarded(&self, f: &mut Function, side: &Side, run: &Run, term: Value, to: Value) {
        let element = stored(side.factor.dtype);
        let size = side.factor.dtype.bytes();
        let bits = Type::scalar(if size == 2 { Element::I16 } else { Element::I32 });
        let none = f.int(bits, 0);
        let term = f.addi(term, run.term);
        let values: Vec<Value> = (0..16 / size)
            .map(|e| {
                let (sum, term) = match side.factor.neighbours {
                    Neighbours::Terms => (run.sum, f.plus(term, e)),
                    Neighbours::Sums => (f.plus(run.sum, e), term),
                };
                let (last_sum, last_term, end) =
                    (f.int32(side.factor.length - 1), f.int32(self.problem.k - 1), f.int32(self.problem.k));
                let is_term = f.order(Order::Less, term, end);
                let (sum, term) = (f.minu(sum, last_sum), f.minu(term, last_term));
                let (line, neighbour) = match side.factor.neighbours {
                    Neighbours::Terms => (sum, term),
                    Neighbours::Sums => (term, sum),
                };
                let (line, neighbour) =
                    (f.zero_extend(line, Element::I64), f.zero_extend(neighbour, Element::I64));
                let at = f.times(line, side.factor.stride);
                let at = f.addi(at, neighbour);
                let at = f.offset(side.pointer, at, element);
                let x = f.load(at, bits, size);
                f.select(is_term, x, none)
            })
            .collect();
        let all = f.gather(&values);
        f.store(all, to, 16);
    }
}

/// Where a lane finds its share of four 8 × 8 matrices, bytes after an address in a stage.
#[derive(Clone, Copy)]
enum Block {
    /// A row of one of them; they come into registers as they lie, or transposed.
    Matrices(Value, u64, Turned),
    /// Its words, one by one.
    Words([(Value, u64); 4]),
}

/// A warp's quarter of a tile.
struct Warps {
    tile: Tile,
    /// Addresses in a stage of each 16 rows' and 16 columns' blocks, by the blocks of terms.
    left: Vec<Vec<Block>>,
    right: Vec<Vec<Block>>,
    /// First row and column in the tile.
    row: Value,
    col: Value,
    lane: Value,
}

impl Warps {
    fn new(f: &mut Function, thread: Value, tile: Tile, sides: &[Side; 2]) -> Self {
        let mask = f.int32(31);
        let lane = f.and(thread, mask);
        let warp = f.shr(thread, 5);
        let (down, right) = (f.shr(warp, 1), f.int32(1));
        let across = f.and(warp, right);
        let (row, col) = (f.times(down, tile.m / 2), f.times(across, tile.n / 2));
        // Which row of which matrix a lane addresses: left matrices are rows first, right ones terms first.
        let left = Self::addresses(f, &sides[0], lane, row, tile.m / 2, true);
        let right = Self::addresses(f, &sides[1], lane, col, tile.n / 2, false);
        Warps { tile, left, right, row, col, lane }
    }

    /// Where a lane's row of the four matrices of each 16 × 16 block lies.
    ///
    /// Matrices of the left factor go down its rows first, then along the terms; of the right one along the terms first.
    fn addresses(
        f: &mut Function,
        side: &Side,
        lane: Value,
        first: Value,
        length: u64,
        rows_first: bool,
    ) -> Vec<Vec<Block>> {
        let bit = |f: &mut Function, n: i64| {
            let shifted = f.shr(lane, n);
            let one = f.int32(1);
            f.and(shifted, one)
        };
        let seven = f.int32(7);
        let inner = f.and(lane, seven);
        let (second, fourth) = (bit(f, 3), bit(f, 4));
        // The matrix's place among two along the sums, and among two along the terms.
        let (by_sum, by_term) = if rows_first { (second, fourth) } else { (fourth, second) };
        let (blocks, factor) = (0..length / 16, &side.factor);
        match (factor.neighbours, factor.dtype.bytes()) {
            (Neighbours::Terms, _) => {
                // Lines are rows: the lane's row of the block, and the 16 bytes of terms.
                let eight = f.shl(by_sum, 3);
                let line = f.addi(inner, eight);
                let line = f.addi(first, line);
                let by_depth: Vec<Value> = (0..BLOCKS)
                    .map(|s| {
                        let chunk = f.plus(by_term, 2 * s);
                        shared_offset(f, factor, side.length, line, chunk)
                    })
                    .collect();
                let block = |i: u64| {
                    let start = side.start + i * 16 * LINE;
                    by_depth.iter().map(|&at| Block::Matrices(at, start, Turned::No)).collect()
                };
                blocks.map(block).collect()
            }
            (Neighbours::Sums, 2) => {
                // Lines are terms: the lane's term, and the chunk of eight rows.
                let eight = f.shl(by_term, 3);
                let line = f.addi(inner, eight);
                let chunk = f.shr(first, 3);
                let chunk = f.addi(chunk, by_sum);
                let block = |i: u64| {
                    let chunk = f.plus(chunk, 2 * i);
                    let at = shared_offset(f, factor, side.length, line, chunk);
                    let step = 16 * side.length * 2;
                    (0..BLOCKS).map(|s| Block::Matrices(at, side.start + s * step, Turned::Yes)).collect()
                };
                blocks.map(block).collect()
            }
            (Neighbours::Sums, size) => {
                // No instruction transposes 32 bits: a lane's words are of the row lane / 4 and the term lane mod 4.
                let three = f.int32(3);
                let line = f.and(lane, three);
                let row = f.shr(lane, 2);
                let row = f.addi(first, row);
                let block = |i: u64| {
                    let [upper, lower] = [0, 8].map(|h| {
                        let row = f.plus(row, 16 * i + h);
                        let chunk = f.shr(row, 2);
                        let at = shared_offset(f, factor, side.length, line, chunk);
                        let word = f.and(row, three);
                        let word = f.shl(word, 2);
                        f.addi(at, word)
                    });
                    (0..BLOCKS)
                        .map(|s| {
                            let at = |lines: u64| side.start + (8 * s + lines) * side.length * size;
                            let (near, far) = (at(0), at(4));
                            Block::Words(match rows_first {
                                true => [(upper, near), (lower, near), (upper, far), (lower, far)],
                                false => [(upper, near), (upper, far), (lower, near), (lower, far)],
                            })
                        })
                        .collect()
                };
                blocks.map(block).collect()
            }
        }
    }

    fn sums(&self) -> usize {
        (self.tile.m * self.tile.n / THREADS) as usize
    }

    /// Adds the products of the stage at an address.
    fn multiply(&self, f: &mut Function, problem: &Problem<'_>, stage: Value, sums: &[Value]) -> Vec<Value> {
        let mut sums = sums.to_vec();
        let dtype = problem.left.dtype;
        let fetch = |f: &mut Function, blocks: &[Vec<Block>], s: usize| -> Vec<Quad> {
            let word = |f: &mut Function, (at, bytes): (Value, u64)| {
                let at = f.addi(stage, at);
                f.shared_at(at, bytes)
            };
            let quad = |block: &Vec<Block>| {
                let quad = match block[s] {
                    Block::Matrices(at, bytes, turned) => {
                        let at = word(f, (at, bytes));
                        f.load_matrices(at, turned)
                    }
                    Block::Words(words) => words.map(|at| {
                        let at = word(f, at);
                        f.load(at, INT, 4)
                    }),
                };
                if dtype == DType::F32 { quad.map(|word| f.round_to_tf32(word)) } else { quad }
            };
            blocks.iter().map(quad).collect()
        };
        for s in 0..BLOCKS as usize {
            let left = fetch(f, &self.left, s);
            let right = fetch(f, &self.right, s);
            let across = right.len() * 2;
            for (i, &a) in left.iter().enumerate() {
                for j in 0..across {
                    let b = right[j / 2];
                    let b = [b[j % 2 * 2], b[j % 2 * 2 + 1]];
                    let at = (i * across + j) * 4;
                    let c = [sums[at], sums[at + 1], sums[at + 2], sums[at + 3]];
                    let c = match dtype {
                        DType::F32 => f.multiply_tf32(a, b, c),
                        _ => f.multiply_matrices(dtype, a, b, c),
                    };
                    sums[at..at + 4].copy_from_slice(&c);
                }
            }
        }
        sums
    }

    /// Stores what this warp has.
    fn finish(
        &self,
        f: &mut Function,
        problem: &Problem<'_>,
        operands: &[Value],
        (row, col): (Value, Value),
        sums: &[Value],
    ) {
        let finish = Finish::new(problem, operands);
        let own = f.shr(self.lane, 2);
        let (row, col) = (f.addi(row, self.row), f.addi(col, self.col));
        let row = f.addi(row, own);
        let three = f.int32(3);
        let quarter = f.and(self.lane, three);
        let part = (problem.kernel.splits > 1).then(|| {
            let part = f.special("ctaid.z");
            super::part_of_workspace(f, problem, operands, part)
        });
        let across = (self.tile.n / 2 / 8 * 4) as usize;
        for (i, sums) in sums.chunks(across).enumerate() {
            let at = Strip { row: f.plus(row, 16 * i as u64), column: col, quarter };
            match part {
                Some(to) => finish.partial(f, at, sums, to),
                None => {
                    let ahead = finish.ahead(f, at, self.tile.n / 2);
                    finish.strip(f, at, sums, &ahead);
                }
            }
        }
    }
}
