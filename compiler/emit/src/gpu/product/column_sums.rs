//! A bias gradient: the sums of b's columns in parts, then over the parts in their order.
//!
//! Where a warpgroup's kernel has b's columns in shared memory ([`ColumnSums`]), rows of tiles take turns at its pieces: a product with ones
//! by each warp's tensor core, beside the warpgroup's own. Elsewhere a kernel reads b once more, in runs of rows.

use super::hopper::{ATOM, Share};
use super::problem::{Neighbours, Problem};
use super::{below, grid, operand_types};
use crate::gpu::memory::{load, store, stored};
use crate::gpu::{attributes, launch};
use crate::mlir::{Element, Function, Order, Quad, Turned, Value};
use dspc_graph::ir::DType;
use dspc_kernel::describe::{ProductFused, ProductKernel};
use dspc_kernel::tiles::{DEPTH, ROWS};
use dspc_program::GpuLaunch;

const THREADS: u32 = 128;
/// Rows that are read before the first is added.
const AHEAD: u64 = 8;

/// Writes the kernels that follow the product's own, and how they are launched; `parts` of the sums are there already.
pub(super) fn emit(
    symbol: &str,
    problem: &Problem<'_>,
    dtype: DType,
    parts: Option<u64>,
) -> Result<Vec<(String, GpuLaunch)>, String> {
    let total = total(&format!("{symbol}_total"), problem, dtype, parts.unwrap_or(ProductKernel::SUM_PARTS))?;
    Ok(match parts {
        Some(_) => vec![total],
        None => vec![partial(&format!("{symbol}_partial"), problem)?, total],
    })
}

fn workspace(f: &mut Function, problem: &Problem<'_>, operands: &[Value]) -> Value {
    let at = f.index(problem.parts_elements());
    f.offset(operands[operand_types(problem.kernel).len() - 1], at, Element::F32)
}

fn partial(symbol: &str, problem: &Problem<'_>) -> Result<(String, GpuLaunch), String> {
    let ProductKernel { k, n, b, .. } = *problem.kernel;
    let types = operand_types(problem.kernel);
    let (mut f, operands) = Function::new(&types);
    let wide = if b.transposed { 1 } else { super::wide(problem, b.dtype) };
    let (row_step, column_step) = if b.transposed { (1, b.stride) } else { (b.stride, 1) };
    let (thread, block, part) = (f.special("tid.x"), f.special("ctaid.x"), f.special("ctaid.y"));
    let first = f.times(block, THREADS.into());
    let run = f.addi(first, thread);
    let runs = n / wide;
    let is_run = below(&mut f, run, runs);
    let share = k.div_ceil(ProductKernel::SUM_PARTS).next_multiple_of(AHEAD);
    f.only_if(is_run, |f| {
        let column = f.times(run, wide);
        let column = f.zero_extend(column, Element::I64);
        let offset = f.times(column, column_step);
        let start = f.offset(operands[1], offset, stored(b.dtype));
        let begin = f.times(part, share);
        let end = f.plus(begin, share);
        let (last, end_of_all, step) = (f.int32(k - 1), f.int32(k), f.int32(AHEAD));
        let zero = f.float(1, 0.0);
        let end = f.minu(end, end_of_all);
        let sums = f.fold((begin, end, step), &vec![zero; wide as usize], |f, row, sums| {
            let rows: Vec<(Value, Vec<Value>)> = (0..AHEAD)
                .map(|i| {
                    let row = f.plus(row, i);
                    let is_row = f.order(Order::Below, row, end_of_all);
                    let row = f.minu(row, last);
                    let row = f.zero_extend(row, Element::I64);
                    let row = f.times(row, row_step);
                    let at = f.offset(start, row, stored(b.dtype));
                    (is_row, load(f, b.dtype, at, wide as u32))
                })
                .collect();
            rows.into_iter().fold(sums.to_vec(), |sums, (is_row, values)| {
                let add = |(&sum, x): (&Value, Value)| {
                    let x = f.select(is_row, x, zero);
                    f.add(sum, x)
                };
                sums.iter().zip(values).map(add).collect()
            })
        });
        let workspace = workspace(f, problem, &operands);
        let part = f.zero_extend(part, Element::I64);
        let before = f.times(part, n);
        let at = f.addi(before, column);
        let at = f.offset(workspace, at, Element::F32);
        for (i, &sum) in sums.iter().enumerate() {
            let step = f.index(i as u64);
            let at = f.offset(at, step, Element::F32);
            store(f, DType::F32, &[sum], at);
        }
    });
    let blocks = grid(runs.div_ceil(THREADS.into()))?;
    let launch = launch(symbol, [blocks, ProductKernel::SUM_PARTS as u32], THREADS);
    Ok((f.finish(symbol, &types, &attributes(THREADS)), launch))
}

fn total(
    symbol: &str,
    problem: &Problem<'_>,
    dtype: DType,
    parts: u64,
) -> Result<(String, GpuLaunch), String> {
    let n = problem.kernel.n;
    let types = operand_types(problem.kernel);
    let (mut f, operands) = Function::new(&types);
    let (thread, block) = (f.special("tid.x"), f.special("ctaid.x"));
    let first = f.times(block, THREADS.into());
    let column = f.addi(first, thread);
    let is_column = below(&mut f, column, n);
    f.only_if(is_column, |f| {
        let wide = f.zero_extend(column, Element::I64);
        let workspace = workspace(f, problem, &operands);
        let start = f.offset(workspace, wide, Element::F32);
        let parts: Vec<Value> = (0..parts)
            .map(|part| {
                let step = f.index(part * n);
                let at = f.offset(start, step, Element::F32);
                load(f, DType::F32, at, 1)[0]
            })
            .collect();
        let sum = parts[1..].iter().fold(parts[0], |sum, &x| f.add(sum, x));
        let at = f.offset(operands[3], wide, stored(dtype));
        store(f, dtype, &[sum], at);
    });
    let launch = launch(symbol, [grid(n.div_ceil(THREADS.into()))?, 1], THREADS);
    Ok((f.finish(symbol, &types, &attributes(THREADS)), launch))
}

/// Columns' sums inside a kernel of warpgroups.
pub(super) struct ColumnSums<'p> {
    problem: &'p Problem<'p>,
    /// Columns of a tile.
    tile: u64,
    thread: Value,
}

impl<'p> ColumnSums<'p> {
    /// If a kernel with tiles of so many columns does it.
    pub fn new(problem: &'p Problem<'p>, tile: u64, thread: Value) -> Option<Self> {
        Self::parts(problem, tile).map(|_| ColumnSums { problem, tile, thread })
    }

    /// How many parts there are then: one for each row of tiles and part of the summed dim.
    pub fn parts(problem: &Problem<'_>, tile: u64) -> Option<u64> {
        let wants = matches!(problem.kernel.fused, Some(ProductFused::BiasGradient(_)));
        // Warps with 16 or 32 columns each, of the b that is in shared memory by terms.
        let fits = matches!(tile, 128 | 192 | 256)
            && problem.right.operand == 1
            && problem.right.neighbours == Neighbours::Sums;
        let parts = problem.m.div_ceil(ROWS) * problem.kernel.splits;
        (wants && fits && parts <= ProductKernel::SUM_PARTS).then_some(parts)
    }

    /// Columns of a warp: of eight warps, six sum 192.
    fn own(&self) -> u64 {
        if self.tile == 128 { 16 } else { 32 }
    }

    /// Whether this warp has columns.
    fn has_columns(&self, f: &mut Function) -> Value {
        let warp = f.shr(self.thread, 5);
        below(f, warp, self.tile / self.own())
    }

    /// Sums before the first piece.
    pub fn begin(&self, f: &mut Function) -> Vec<Value> {
        let zero = f.float(1, 0.0);
        vec![zero; self.own() as usize / 8 * 4]
    }

    /// Adds the piece at an address of shared memory, if it is this row of tiles' turn.
    pub fn add(
        &self,
        f: &mut Function,
        share: &Share,
        piece: Value,
        right: Value,
        sums: Vec<Value>,
    ) -> Vec<Value> {
        let rows = f.int32(self.problem.m.div_ceil(ROWS));
        let turn = f.remu(piece, rows);
        let row = f.shr(share.row, ROWS.trailing_zeros().into());
        let is_turn = f.order(Order::Equal, turn, row);
        let has_columns = self.has_columns(f);
        let adds = f.and(is_turn, has_columns);
        f.replace_if(adds, &sums, |f| self.products(f, right, &sums))
    }

    fn products(&self, f: &mut Function, right: Value, sums: &[Value]) -> Vec<Value> {
        let dtype = self.problem.right.dtype;
        let one = if dtype == DType::F16 { 0x3C00_3C00 } else { 0x3F80_3F80 };
        let ones: Quad = [f.int32(one); 4];
        let (warp, fifteen, seven) = (f.shr(self.thread, 5), f.int32(15), f.int32(7));
        let lane = f.int32(31);
        let lane = f.and(self.thread, lane);
        let (line, half) = (f.and(lane, fifteen), f.shr(lane, 4));
        let key = f.and(lane, seven);
        let column = f.times(warp, self.own());
        let atom = f.shr(column, 6);
        let chunk = f.shr(column, 3);
        let chunk = f.and(chunk, seven);
        let chunk = f.addi(chunk, half);
        let at = f.times(atom, ATOM);
        let at = f.addi(right, at);
        let line = f.shl(line, 7);
        let at = f.addi(at, line);
        let mut sums = sums.to_vec();
        for block in 0..self.own() / 16 {
            let chunk = f.plus(chunk, 2 * block);
            let chunk = f.xor(chunk, key);
            let chunk = f.shl(chunk, 4);
            let at = f.addi(at, chunk);
            for terms in 0..DEPTH / 16 {
                let at = f.shared_at(at, terms * 16 * 128);
                let matrices = f.load_matrices(at, Turned::Yes);
                for (i, b) in matrices.chunks(2).enumerate() {
                    let first = (block as usize * 2 + i) * 4;
                    let c = [sums[first], sums[first + 1], sums[first + 2], sums[first + 3]];
                    let c = f.multiply_matrices(dtype, ones, [b[0], b[1]], c);
                    sums[first..first + 4].copy_from_slice(&c);
                }
            }
        }
        sums
    }

    /// Stores a tile's part; every row of the product with ones is the same.
    pub fn store(&self, f: &mut Function, operands: &[Value], share: &Share, sums: &[Value]) {
        let n = self.problem.n;
        let (warp, lane) = (f.shr(self.thread, 5), f.int32(31));
        let lane = f.and(self.thread, lane);
        let rows = self.problem.m.div_ceil(ROWS);
        let row = f.shr(share.row, ROWS.trailing_zeros().into());
        let part = f.times(share.part, rows);
        let part = f.addi(part, row);
        let part = f.zero_extend(part, Element::I64);
        let before = f.times(part, n);
        let workspace = workspace(f, self.problem, operands);
        let start = f.offset(workspace, before, Element::F32);
        let column = f.times(warp, self.own());
        let column = f.addi(share.col, column);
        let own = f.shl(lane, 1);
        let column = f.addi(column, own);
        let is_first_row = below(f, lane, 4);
        let has_columns = self.has_columns(f);
        let is_first_row = f.and(is_first_row, has_columns);
        for (j, quad) in sums.chunks(4).enumerate() {
            let column = f.plus(column, 8 * j as u64);
            let is_column = below(f, column, n);
            let is_own = f.and(is_first_row, is_column);
            f.only_if(is_own, |f| {
                let column = f.zero_extend(column, Element::I64);
                let at = f.offset(start, column, Element::F32);
                store(f, DType::F32, &quad[..2], at);
            });
        }
    }
}
