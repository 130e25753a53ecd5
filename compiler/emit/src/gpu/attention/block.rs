//! What the kernels of attention share: a block of threads with a tile of its own, that walks over the tiles of others.

use super::blocks::{Blocks, Inner, Outer, Walk};
use super::factors::{Factors, Left};
use super::operand::Head;
use super::pipeline::Buffers;
use super::shape::{Grid, Place, padded_width};
use super::tile::{Copier, Format, Lanes};
use crate::mask;
use crate::mlir::{Element, Function, Order, Quad, Space, Type, Value};
use dspc_graph::mask::Mask;
use dspc_kernel::describe::AttentionKernel;
use dspc_program::GpuLaunch;

/// Sizes of a kernel's tiles.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tiling {
    /// Warps of a block.
    pub warps: u64,
    /// 16 rows each that a warp holds.
    pub groups: u64,
    /// Rows of an inner tile.
    pub inner: u64,
    /// Rows of an inner tile whose scores are in registers at a time.
    pub chunk: u64,
    /// Buffers of inner tiles.
    pub buffers: u64,
    /// Blocks that are to fit on a multiprocessor: registers are dealt so.
    pub resident: u64,
    /// Whether a warp's own rows stay in registers.
    pub held: bool,
}

/// A kernel while it is written.
pub(super) struct Plan<'k> {
    pub kernel: &'k AttentionKernel,
    pub symbol: String,
    pub tiling: Tiling,
    pub format: Format,
    pub buffers: Buffers,
    outer: Outer,
    blocks: Blocks,
    grid: Grid,
    pointers: usize,
    /// Bytes of the block's own tiles, before the buffers.
    own_bytes: u64,
}

/// A thread's view of its block.
pub(super) struct Block {
    pub place: Place,
    pub walk: Walk,
    pub thread: Value,
    pub lane: Value,
    pub copier: Copier,
    pub lanes: Lanes,
    /// Shared address of the block's own tiles.
    pub own: Value,
    /// Shared address of the first buffer.
    pub buffers: Value,
    /// First position of the block.
    pub first: Value,
    /// First row of the warp in the block's tile.
    pub warp_row: Value,
    /// Bytes of the rows before it.
    pub warp_bytes: Value,
    /// Position of the lane's first row, the next being 8 further.
    pub row: Value,
    /// First of a lane's two columns among 8.
    pub column: Value,
}

/// The mask on some columns of an inner tile.
pub(super) struct Masking {
    /// Whether there is anything to do; none if no tile needs it.
    is_partial: Option<Value>,
    /// Position of the lane's first column.
    first: Value,
    /// Bits that say which pairs may look, if the predicate was evaluated before.
    bits: Vec<Value>,
}

impl<'k> Plan<'k> {
    /// A plan of `own` tiles that stay and `inner` tiles a buffer, and `extra` bytes more a buffer.
    pub fn new(
        symbol: String,
        kernel: &'k AttentionKernel,
        (outer, tiling): (Outer, Tiling),
        (own, inner, extra): (u64, u64, u64),
    ) -> Result<Self, String> {
        let (strides, pointers) = if kernel.strides.len() == 4 { (4, 5) } else { (8, 10) };
        let width = padded_width(kernel, strides)?;
        let factors = Factors::of(kernel);
        let format = Format { dtype: kernel.dtype, factors, width, threads: tiling.warps * 32 };
        let rows = tiling.warps * tiling.groups * 16;
        let blocks = Blocks::new(&symbol, kernel, outer, (rows, tiling.inner));
        let (heads, length) = match outer {
            Outer::Queries => (kernel.heads, kernel.keys),
            Outer::Keys => (kernel.kv_heads, kernel.queries),
        };
        let grid = Grid::new(kernel.batch, heads, blocks.outer_tiles(), 2 * length * format.row_bytes());
        let bytes = (format.bytes(tiling.inner) * inner + extra).next_multiple_of(1024);
        let buffers = Buffers { count: tiling.buffers, bytes };
        let own_bytes = format.bytes(rows) * own;
        Ok(Plan { kernel, symbol, tiling, format, buffers, outer, blocks, grid, pointers, own_bytes })
    }

    /// Writes the function: the body gets its parameters and the block.
    pub fn write(
        &self,
        body: impl FnOnce(&mut Function, &[Value], &Block) -> Result<(), String>,
    ) -> Result<(String, GpuLaunch), String> {
        let types = vec![Type::scalar(Element::Pointer(Space::Global)); self.pointers];
        let (mut f, args) = Function::new(&types);
        let shared = format!("{}_shared", self.symbol);
        let block = self.open(&mut f, &shared);
        body(&mut f, &args, &block)?;
        let threads = self.format.threads as u32;
        let attributes = format!(
            " attributes {{gpu.kernel, nvvm.kernel, nvvm.maxntid = array<i32: {threads}, 1, 1>, nvvm.minctasm = {} : i32}}",
            self.tiling.resident
        );
        let shared = format!(
            "  llvm.mlir.global external @{shared}() {{addr_space = 3 : i32, alignment = 1024 : i64}} : !llvm.array<0 x i8>\n"
        );
        let text = shared + &self.blocks.globals() + &f.finish(&self.symbol, &types, &attributes);
        let bytes = self.own_bytes + self.buffers.bytes * self.buffers.count;
        let launch = GpuLaunch {
            symbol: self.symbol.clone(),
            grid: self.grid.blocks()?,
            block: threads,
            shared: u32::try_from(bytes).map_err(|_| "shared memory of 4 GiB".to_string())?,
            maps: vec![],
        };
        Ok((text, launch))
    }

    fn open(&self, f: &mut Function, shared: &str) -> Block {
        let place = self.grid.place(f);
        let walk = self.blocks.walk(f, place.rank);
        let thread = f.special("tid.x");
        let (mask, three) = (f.int32(31), f.int32(3));
        let lane = f.and(thread, mask);
        let warp = f.shr(thread, 5);
        let copier = self.format.copier(f, thread);
        let lanes = self.format.lanes(f, lane);
        let own = f.address_in(Space::Shared, shared);
        let own = f.number_of_address(own);
        let buffers = f.plus(own, self.own_bytes);
        let first = f.times(walk.tile, self.rows());
        let warp_row = f.times(warp, self.tiling.groups * 16);
        let warp_bytes = f.times(warp_row, self.format.row_bytes());
        let row = f.shr(lane, 2);
        let row = f.addi(row, warp_row);
        let row = f.addi(row, first);
        let column = f.and(lane, three);
        let column = f.shl(column, 1);
        Block {
            place,
            walk,
            thread,
            lane,
            copier,
            lanes,
            own,
            buffers,
            first,
            warp_row,
            warp_bytes,
            row,
            column,
        }
    }

    /// Rows of a block's own tile.
    pub fn rows(&self) -> u64 {
        self.tiling.warps * self.tiling.groups * 16
    }

    /// Columns that products run over: those of a head, in whole squares; the rest of a tile's is 0 and never used.
    pub fn columns(&self) -> u64 {
        self.kernel.head_dim.next_multiple_of(16)
    }

    /// A warp's own rows of a tile as left factors; the address is of the first.
    pub fn left(&self, f: &mut Function, block: &Block, own: Value) -> Left {
        let (groups, depths) = (self.tiling.groups, self.columns() * self.format.dtype.bytes() / 32);
        match self.tiling.held {
            true => Left::held(f, &block.lanes, own, groups, depths),
            false => Left::shared(f, &block.lanes, own, groups, depths),
        }
    }

    /// Keys and values of an inner tile, one behind the other.
    pub fn copy_inner(
        &self,
        f: &mut Function,
        block: &Block,
        heads: [&Head; 2],
        (n, buffer): (Value, Value),
    ) {
        let inner = block.walk.inner(f, n);
        let first = f.times(inner.tile, self.tiling.inner);
        let to = f.addi(block.buffers, buffer);
        block.copier.copy(f, heads[0], first, self.tiling.inner, to);
        let to = f.plus(to, self.format.bytes(self.tiling.inner));
        block.copier.copy(f, heads[1], first, self.tiling.inner, to);
    }

    /// Sums by group and 8 columns, all 0.
    pub fn zeros(&self, f: &mut Function, columns: u64) -> Vec<Vec<Quad>> {
        let zero = f.float(1, 0.0);
        vec![vec![[zero; 4]; columns as usize / 8]; self.tiling.groups as usize]
    }

    /// The mask on an inner tile's columns `first` and on, before their scores are there: a predicate that needs many registers is evaluated
    /// now, in a loop, and leaves a bit for each of a lane's pairs.
    pub fn mask(&self, f: &mut Function, block: &Block, (inner, first): (Inner, u64)) -> Masking {
        let Some(is_partial) = inner.is_partial else {
            return Masking { is_partial: None, first: inner.tile, bits: vec![] };
        };
        let start = f.times(inner.tile, self.tiling.inner);
        let start = f.plus(start, first);
        let first = f.addi(start, block.column);
        let bits = if self.is_narrow() { vec![] } else { self.bits(f, block, is_partial, first) };
        Masking { is_partial: Some(is_partial), first, bits }
    }

    /// A word a group of rows: bit i of the i-th pair.
    fn bits(&self, f: &mut Function, block: &Block, is_partial: Value, first: Value) -> Vec<Value> {
        let zero = f.int32(0);
        let (end, one) = (f.int32(self.tiling.chunk / 2), f.int32(1));
        (0..self.tiling.groups)
            .map(|group| {
                let words = f.replace_if(is_partial, &[zero], |f| {
                    f.fold((zero, end, one), &[zero], |f, i, words| {
                        // Of four pairs the first two are of one row.
                        let (two, quad) = (f.int32(2), f.shr(i, 2));
                        let (below, beside) = (f.and(i, two), f.and(i, one));
                        let (below, quad) = (f.shl(below, 2), f.shl(quad, 3));
                        let row = f.plus(block.row, group * 16);
                        let row = f.addi(row, below);
                        let column = f.addi(first, quad);
                        let column = f.addi(column, beside);
                        let bit = match self.allowed(f, row, column) {
                            None => one,
                            Some(allowed) => f.zero_extend(allowed, Element::I32),
                        };
                        let bit = f.value(bit.ty, format!("arith.shli {bit}, {i} : i32"));
                        vec![f.or(words[0], bit)]
                    })
                });
                words[0]
            })
            .collect()
    }

    /// Where a tile is partial, puts `nothing` on the pairs that may not look.
    pub fn apply_mask(
        &self,
        f: &mut Function,
        block: &Block,
        mask: &Masking,
        nothing: f32,
        scores: &[Vec<Quad>],
    ) -> Vec<Vec<Quad>> {
        let Some(is_partial) = mask.is_partial else {
            return scores.to_vec();
        };
        let values = flat(scores);
        let masked = f.replace_if(is_partial, &values, |f| {
            let nothing = f.float(1, nothing);
            let mut next = vec![];
            for (group, columns) in (0..).zip(scores) {
                for (n, quad) in (0..).zip(columns) {
                    for (i, &score) in (0..).zip(quad) {
                        let allowed = if mask.bits.is_empty() {
                            let row = f.plus(block.row, group * 16 + i / 2 * 8);
                            let column = f.plus(mask.first, n * 8 + i % 2);
                            self.allowed(f, row, column)
                        } else {
                            let (bit, zero) = (f.int32(1 << (n * 4 + i)), f.int32(0));
                            let bit = f.and(mask.bits[group as usize], bit);
                            Some(f.order(Order::NotEqual, bit, zero))
                        };
                        next.push(match allowed {
                            None => score,
                            Some(allowed) => f.select(allowed, score, nothing),
                        });
                    }
                }
            }
            next
        });
        quads(&masked, scores)
    }

    /// Whether the predicate's numbers have 32 bits, for all positions of all tiles.
    fn is_narrow(&self) -> bool {
        let (k, margin) = (self.kernel, self.rows().max(self.tiling.inner));
        match &k.mask {
            Mask::Full => true,
            Mask::Where(expr) => mask::is_narrow(expr, k.queries + margin, k.keys + margin),
        }
    }

    /// Whether the query may look at the key of a row and a column of scores, and there is such a key; none if it always may.
    fn allowed(&self, f: &mut Function, row: Value, column: Value) -> Option<Value> {
        let k = self.kernel;
        let (query, key) = if self.outer == Outer::Queries { (row, column) } else { (column, row) };
        let tile = if self.outer == Outer::Queries { self.tiling.inner } else { self.rows() };
        let inside = (!k.keys.is_multiple_of(tile)).then(|| {
            let end = f.int32(k.keys);
            f.order(Order::Below, key, end)
        });
        let Mask::Where(expr) = &k.mask else {
            return inside;
        };
        let (query, key) = if self.is_narrow() {
            (query, key)
        } else {
            (f.zero_extend(query, Element::I64), f.zero_extend(key, Element::I64))
        };
        let allowed = mask::predicate(f, expr, query, key);
        Some(match inside {
            None => allowed,
            Some(inside) => f.and(allowed, inside),
        })
    }
}

/// Sums as a list.
pub(super) fn flat(groups: &[Vec<Quad>]) -> Vec<Value> {
    groups.iter().flatten().flatten().copied().collect()
}

/// A list as sums of this form.
pub(super) fn quads(values: &[Value], like: &[Vec<Quad>]) -> Vec<Vec<Quad>> {
    let mut all = values.chunks_exact(4).map(|four| [four[0], four[1], four[2], four[3]]);
    like.iter().map(|columns| all.by_ref().take(columns.len()).collect()).collect()
}
