//! Products by Hopper's warpgroups: one thread has the copy engine bring tiles of both factors, two warpgroups multiply them out of shared memory.
//!
//! Accepts   factors of 16 bits in whole 16-byte rows; results likewise.
//! Blocks    one a multiprocessor, each with tile after tile; while a tile's sums are stored, the next one's factors come.
//! Numerics  f32 sums in the order of the terms; parts of the summed dim apart from each other.

use super::column_sums::ColumnSums;
use super::finish::{Finish, Strip};
use super::problem::{Factor, Neighbours, Problem};
use crate::gpu::memory::stored;
use crate::mlir::{
    Element, Factor as Left, Function, Onto, Order, Product, Registers, SharedMatrix, Space, Summed, Type,
    Value,
};
use dspc_kernel::tiles::{DEPTH, PROCESSORS, ROWS};
use dspc_program::{GpuLaunch, TensorMap};

/// Warpgroups that multiply.
const GROUPS: u64 = 2;
const THREADS: u32 = 384;
/// Pieces by which the first warpgroup is ahead.
const LEAD: u64 = 2;
/// Shared memory of a block.
const SHARED_MAX: u64 = 227 << 10;
/// Bytes of 64 columns and 64 terms.
pub(super) const ATOM: u64 = 8192;
/// Rows of tiles that follow each other before the next column.
const BAND: u64 = 16;

/// Sizes of a block's work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tile {
    /// Columns: a multiple of 32, at most 256.
    pub n: u64,
}

/// Whether there is such a kernel for a product.
pub(super) fn accepts(problem: &Problem<'_>) -> bool {
    let (pieces, share) = problem.pieces(DEPTH);
    let last_part_has_some = share * (problem.kernel.splits - 1) < pieces;
    let fits = |x: u64| x < 1 << 31;
    problem.is_regular()
        && last_part_has_some
        && problem.left.dtype.bytes() == 2
        && fits(problem.m)
        && fits(problem.n)
        && fits(problem.k)
}

/// A loop over so few pieces would be written out turn by turn.
const PIECES_FEW: u64 = 8;

/// Where things lie in a block's shared memory: stages, then a barrier for each that is full, then one for each that is empty.
struct Layout {
    tile: Tile,
    right_bytes: u64,
    stages: u64,
}

impl Layout {
    fn of(problem: &Problem<'_>, tile: Tile) -> Self {
        let right_bytes = match problem.right.neighbours {
            Neighbours::Terms => tile.n * DEPTH * 2,
            Neighbours::Sums => tile.n.div_ceil(64) * ATOM,
        };
        let stages = (SHARED_MAX - 256) / (Self::LEFT_BYTES + right_bytes);
        Layout { tile, right_bytes, stages }
    }

    const LEFT_BYTES: u64 = ROWS * DEPTH * 2;

    fn stage_bytes(&self) -> u64 {
        Self::LEFT_BYTES + self.right_bytes
    }

    fn bytes(&self) -> u64 {
        self.stages * (self.stage_bytes() + 16)
    }

    fn full(&self, f: &mut Function, shared: Value, stage: Value) -> Value {
        let at = f.shl(stage, 3);
        let at = f.addi(shared, at);
        f.plus(at, self.stages * self.stage_bytes())
    }

    fn empty(&self, f: &mut Function, shared: Value, stage: Value) -> Value {
        let at = self.full(f, shared, stage);
        f.plus(at, self.stages * 8)
    }

    /// The next stage, and its parity.
    fn next(&self, f: &mut Function, stage: Value, parity: Value) -> (Value, Value) {
        let (one, none, end) = (f.int32(1), f.int32(0), f.int32(self.stages));
        let stage = f.addi(stage, one);
        let is_end = f.order(Order::Equal, stage, end);
        let other = f.xor(parity, one);
        (f.select(is_end, none, stage), f.select(is_end, other, parity))
    }
}

/// What a block of the grid works on.
struct Work<'w> {
    problem: &'w Problem<'w>,
    layout: Layout,
    shared: Value,
    /// The block, how many works there are, and how many blocks.
    range: (Value, Value, Value),
}

/// One tile and part.
pub(super) struct Share {
    /// First row and column.
    pub row: Value,
    pub col: Value,
    /// Of the summed dim.
    pub part: Value,
    /// Pieces.
    pub begin: Value,
    pub end: Value,
}

/// Writes a kernel, and how it is launched.
pub(super) fn emit(symbol: &str, problem: &Problem<'_>, tile: Tile) -> Result<(String, GpuLaunch), String> {
    let mut types = super::operand_types(problem.kernel);
    let operand_count = types.len();
    types.extend([Type::scalar(Element::TensorMap); 2]);
    let (mut function, arguments) = Function::new(&types);
    let f = &mut function;
    let (operands, maps) = arguments.split_at(operand_count);
    let layout = Layout::of(problem, tile);
    let shared_symbol = format!("{symbol}_shared");
    let shared = f.address_in(Space::Shared, &shared_symbol);
    let shared = f.number_of_address(shared);
    let (thread, block) = (f.special("tid.x"), f.special("ctaid.x"));
    let works = problem.m.div_ceil(ROWS) * problem.n.div_ceil(tile.n) * problem.kernel.splits;
    let blocks = works.min(PROCESSORS);
    let range = (block, f.int32(works), f.int32(blocks));
    super::grid(works)?;
    let launch = GpuLaunch {
        symbol: symbol.into(),
        grid: [blocks as u32, 1, 1],
        block: THREADS,
        shared: layout.bytes() as u32,
        maps: vec![map(problem.left, problem.k, ROWS), map(problem.right, problem.k, tile.n)],
    };
    let work = Work { problem, layout, shared, range };
    work.begin(f, thread);
    let group = f.shr(thread, 7);
    let copies = f.int32(GROUPS);
    let is_copier = f.order(Order::Equal, group, copies);

    f.either(
        is_copier,
        |f| {
            f.change_registers(Registers::Decrease(40));
            let first = f.int32(u64::from(THREADS) - 128);
            let is_first = f.order(Order::Equal, thread, first);
            f.only_if(is_first, |f| work.copy(f, maps));
        },
        |f| {
            f.change_registers(Registers::Increase(232));
            work.multiply(f, operands, thread, group);
        },
    );
    let attributes = format!(
        " attributes {{gpu.kernel, nvvm.kernel, nvvm.maxntid = array<i32: {THREADS}, 1, 1>, nvvm.minctasm = 1 : i32}}"
    );
    let text = function.finish(symbol, &types, &attributes);
    Ok((super::dynamic_shared(&shared_symbol) + &text, launch))
}

/// The copy engine's view of a factor: 128 bytes by so many rows, or 64 elements by 64 terms.
fn map(factor: Factor, terms: u64, rows: u64) -> TensorMap {
    let (dims, tile) = match factor.neighbours {
        Neighbours::Terms => (vec![terms, factor.length], vec![DEPTH as u32, rows as u32]),
        Neighbours::Sums => (vec![factor.length, terms], vec![64, DEPTH as u32]),
    };
    let strides = vec![factor.stride * factor.dtype.bytes()];
    TensorMap { operand: factor.operand as u32, dims, strides, tile, swizzle: 128 }
}

impl Work<'_> {
    fn tile(&self) -> Tile {
        self.layout.tile
    }

    /// Makes the barriers.
    fn begin(&self, f: &mut Function, thread: Value) {
        let none = f.int32(0);
        let is_first = f.order(Order::Equal, thread, none);
        f.only_if(is_first, |f| {
            for stage in 0..self.layout.stages {
                let stage = f.int32(stage);
                let (full, empty) =
                    (self.layout.full(f, self.shared, stage), self.layout.empty(f, self.shared, stage));
                f.barrier_new(full, 1);
                f.barrier_new(empty, (GROUPS * 4) as u32);
            }
        });
        f.barriers_ready();
    }

    fn share(&self, f: &mut Function, work: Value) -> Share {
        let tile = self.tile();
        let (rows, cols) = (self.problem.m.div_ceil(ROWS), self.problem.n.div_ceil(tile.n));
        let (pieces, share) = self.problem.pieces(DEPTH);
        let each = f.int32(rows * cols);
        let (part, index) = match self.problem.kernel.splits {
            1 => (f.int32(0), work),
            _ => (f.divu(work, each), f.remu(work, each)),
        };
        let (row, col) = super::band(f, index, rows, cols, BAND);
        let (row, col) = (f.times(row, ROWS), f.times(col, tile.n));
        let begin = f.times(part, share);
        let end = f.plus(begin, share);
        let all = f.int32(pieces);
        let end = f.minu(end, all);
        let end = if pieces <= PIECES_FEW { f.unknown(end) } else { end };
        Share { row, col, part, begin, end }
    }

    /// One thread: brings piece after piece as stages become empty.
    fn copy(&self, f: &mut Function, maps: &[Value]) {
        let (none, one) = (f.int32(0), f.int32(1));
        f.fold(self.range, &[none, one], |f, work, state| {
            let share = self.share(f, work);
            f.fold((share.begin, share.end, one), state, |f, piece, state| {
                let (stage, parity) = (state[0], state[1]);
                let full = self.layout.full(f, self.shared, stage);
                let empty = self.layout.empty(f, self.shared, stage);
                f.barrier_wait(empty, parity);
                f.barrier_expect(full, self.layout.stage_bytes() as u32);
                let term = f.times(piece, DEPTH);
                let at = f.times(stage, self.layout.stage_bytes());
                let at = f.addi(self.shared, at);
                self.copy_left(f, maps[0], (share.row, term), at, full);
                self.copy_right(f, maps[1], (share.col, term), at, full);
                let (stage, parity) = self.layout.next(f, stage, parity);
                vec![stage, parity]
            })
        });
    }

    fn copy_left(&self, f: &mut Function, map: Value, (row, term): (Value, Value), at: Value, full: Value) {
        match self.problem.left.neighbours {
            Neighbours::Terms => f.copy_tile(map, &[term, row], at, full),
            Neighbours::Sums => {
                for atom in 0..ROWS / 64 {
                    let row = f.plus(row, atom * 64);
                    let at = f.plus(at, atom * ATOM);
                    f.copy_tile(map, &[row, term], at, full);
                }
            }
        }
    }

    fn copy_right(&self, f: &mut Function, map: Value, (col, term): (Value, Value), at: Value, full: Value) {
        let at = f.plus(at, Layout::LEFT_BYTES);
        match self.problem.right.neighbours {
            Neighbours::Terms => f.copy_tile(map, &[term, col], at, full),
            Neighbours::Sums => {
                for atom in 0..self.tile().n.div_ceil(64) {
                    let col = f.plus(col, atom * 64);
                    let at = f.plus(at, atom * ATOM);
                    f.copy_tile(map, &[col, term], at, full);
                }
            }
        }
    }

    /// A warpgroup: multiplies what has come, and stores a tile's half.
    ///
    /// The second begins [`LEAD`] pieces after the first, and stays so far behind: while one stores, the other multiplies.
    fn multiply(&self, f: &mut Function, operands: &[Value], thread: Value, group: Value) {
        let (none, one) = (f.int32(0), f.int32(1));
        let mask = f.int32(31);
        let lane = f.and(thread, mask);
        let is_first = f.order(Order::Equal, group, none);
        let leads = self.leads();
        if leads {
            let is_second = f.order(Order::Equal, group, one);
            f.only_if(is_second, |f| f.meet_at(1, 256));
        }
        let finish = Finish::new(self.problem, operands);
        let sums = ColumnSums::new(self.problem, self.tile().n, thread);
        f.fold(self.range, &[none, none], |f, work, state| {
            let share = self.share(f, work);
            let (stage, parity) = (state[0], state[1]);
            let at = self.strip_at(f, &share, thread);
            let ahead = (self.problem.kernel.splits == 1).then(|| finish.ahead(f, at, self.tile().n));
            let is_first_work = f.order(Order::Equal, work, self.range.0);
            let signals = f.and(is_first, is_first_work);
            let lead = f.plus(share.begin, LEAD);
            let never = f.int(lead.ty, -1);
            let lead = f.select(signals, lead, never);
            let products = self.piece(f, group, stage, parity, Onto::Zero);
            let count = products.len();
            let begun = sums.as_ref().map(|sums| sums.begin(f));
            let columns = begun.unwrap_or_default();
            let columns = self.column_sums(f, &sums, &share, share.begin, stage, columns);
            let (next, next_parity) = self.layout.next(f, stage, parity);
            let second = f.plus(share.begin, 1);
            let mut carried = vec![next, next_parity, stage];
            carried.extend(products);
            carried.extend(columns);
            let carried = f.fold((second, share.end, one), &carried, |f, piece, carried| {
                let (stage, parity, before) = (carried[0], carried[1], carried[2]);
                let (products, columns) = carried[3..].split_at(count);
                let products = self.piece(f, group, stage, parity, Onto::Sum(products));
                if leads {
                    let is_lead = f.order(Order::Equal, piece, lead);
                    f.only_if(is_lead, |f| f.pass_by(1, 256));
                }
                let columns = self.column_sums(f, &sums, &share, piece, stage, columns.to_vec());
                let products = f.await_products(1, &products);
                self.release(f, lane, before);
                let (next, next_parity) = self.layout.next(f, stage, parity);
                let mut carried = vec![next, next_parity, stage];
                carried.extend(products);
                carried.extend(columns);
                carried
            });
            let (products, columns) = carried[3..].split_at(count);
            let products = f.await_products(0, products);
            self.release(f, lane, carried[2]);
            match &ahead {
                Some(ahead) => finish.strip(f, at, &products, ahead),
                None => {
                    let to = super::part_of_workspace(f, self.problem, operands, share.part);
                    finish.partial(f, at, &products, to);
                }
            }
            if let Some(sums) = &sums {
                sums.store(f, operands, &share, columns);
            }
            vec![carried[0], carried[1]]
        });
    }

    /// Whether every part has more pieces than the first warpgroup leads by.
    fn leads(&self) -> bool {
        let (pieces, share) = self.problem.pieces(DEPTH);
        let last = pieces - share * (self.problem.kernel.splits - 1);
        share.min(last) > LEAD
    }

    /// Adds a piece's columns to their sums, if that is this tile's to do.
    fn column_sums(
        &self,
        f: &mut Function,
        sums: &Option<ColumnSums<'_>>,
        share: &Share,
        piece: Value,
        stage: Value,
        columns: Vec<Value>,
    ) -> Vec<Value> {
        let Some(sums) = sums else { return columns };
        let at = f.times(stage, self.layout.stage_bytes());
        let at = f.addi(self.shared, at);
        let right = f.plus(at, Layout::LEFT_BYTES);
        sums.add(f, share, piece, right, columns)
    }

    /// Where a thread's sums lie.
    fn strip_at(&self, f: &mut Function, share: &Share, thread: Value) -> Strip {
        let warp = f.shr(thread, 5);
        let (mask, three) = (f.int32(7), f.int32(3));
        let first = f.shl(warp, 4);
        let own = f.shr(thread, 2);
        let own = f.and(own, mask);
        let row = f.addi(share.row, first);
        let row = f.addi(row, own);
        Strip { row, column: share.col, quarter: f.and(thread, three) }
    }

    /// Starts the products of a stage once it is full.
    fn piece(
        &self,
        f: &mut Function,
        group: Value,
        stage: Value,
        parity: Value,
        onto: Onto<'_>,
    ) -> Vec<Value> {
        let full = self.layout.full(f, self.shared, stage);
        f.barrier_wait(full, parity);
        let at = f.times(stage, self.layout.stage_bytes());
        let at = f.addi(self.shared, at);
        // 64 rows of 128 bytes, or one atom.
        let own = f.times(group, ATOM);
        let left = f.addi(at, own);
        let right = f.plus(at, Layout::LEFT_BYTES);
        let left = matrix(f, left, self.problem.left);
        let right = matrix(f, right, self.problem.right);
        let product = Product {
            columns: self.tile().n as u32,
            depth: DEPTH as u32,
            element: stored(self.problem.left.dtype),
        };
        f.product(product, Left::Shared(left), right, onto)
    }

    /// Tells the copier that this warp has done with a stage.
    fn release(&self, f: &mut Function, lane: Value, stage: Value) {
        let empty = self.layout.empty(f, self.shared, stage);
        let none = f.int32(0);
        let tells = f.order(Order::Equal, lane, none);
        f.only_if(tells, |f| f.barrier_arrive(empty));
    }
}

/// A factor's piece at an address.
fn matrix(f: &mut Function, at: Value, factor: Factor) -> SharedMatrix {
    let rows = 64;
    let descriptor = f.descriptor(at, rows);
    let summed = match factor.neighbours {
        Neighbours::Terms => Summed::Columns,
        Neighbours::Sums => Summed::Rows,
    };
    SharedMatrix { descriptor, rows, summed }
}
