//! Adds rows by id on a GPU: a warp a row of the result, which looks for its id among all, 128 at a time, and adds the rows it finds in order.
//!
//! No atomics, so the sums are the same bits at every run. Ids are read once a row of the result, from the second cache; four reads are
//! under way at once, because it is their latency that the search waits for.

use super::memory::{load, store, stored};
use super::{attributes, launch};
use crate::mlir::{Element, Function, Order, Space, Type, Value};
use dspc_graph::ir::DType;
use dspc_kernel::describe::ScatterAddKernel;
use dspc_program::GpuLaunch;

/// Columns of a warp: what its lanes hold in registers.
const COLS_MAX: u64 = 1024;
/// Warps of a block.
const WARPS: u64 = 4;
/// Ids that a lane looks at before it adds.
const LOOKS: u64 = 4;

/// Neighbouring columns of a lane: sixteen bytes of the narrowest type, where rows are whole runs of that.
fn run(kernel: &ScatterAddKernel) -> u64 {
    if kernel.cols.is_multiple_of(8) && kernel.stride.is_multiple_of(8) { 8 } else { 1 }
}

/// Writes a kernel, and how it is launched.
pub(super) fn emit(symbol: &str, kernel: &ScatterAddKernel) -> Result<(String, GpuLaunch), String> {
    let types = [Type::scalar(Element::Pointer(Space::Global)); 3];
    let (mut f, args) = Function::new(&types);
    let &[ids, x, out] = args.as_slice() else {
        return Err("three operands".to_string());
    };
    let grid = [kernel.out_rows.div_ceil(WARPS), kernel.cols.div_ceil(COLS_MAX)].map(u32::try_from);
    let [Ok(grid_x), Ok(grid_y)] = grid else {
        return Err(format!("{} rows are too many for a grid", kernel.out_rows));
    };
    let int = Type::scalar(Element::I32);
    let special = |f: &mut Function, name: &str| f.value(int, format!("nvvm.read.ptx.sreg.{name} : i32"));
    let (thread, block) = (special(&mut f, "tid.x"), special(&mut f, "ctaid.x"));
    let slice = special(&mut f, "ctaid.y");
    let mask = f.int(int, 31);
    let lane = f.and(thread, mask);
    let warp = f.shr(thread, 5);
    let first = f.times(block, WARPS);
    let row = f.addi(first, warp);
    let rows = f.int(int, kernel.out_rows as i64);
    let is_row = f.order(Order::Below, row, rows);
    f.only_if(is_row, |f| sum_row(f, kernel, [ids, x, out], row, lane, slice));
    let threads = 32 * WARPS as u32;
    let launch = launch(symbol, [grid_x, grid_y], threads);
    Ok((f.finish(symbol, &types, &attributes(threads)), launch))
}

fn sum_row(
    f: &mut Function,
    kernel: &ScatterAddKernel,
    [ids, x, out]: [Value; 3],
    row: Value,
    lane: Value,
    slice: Value,
) {
    let int = Type::scalar(Element::I32);
    let columns = columns(f, kernel, lane, slice);
    let row_wide = f.zero_extend(row, Element::I64);
    let to = f.times(row_wide, kernel.cols);
    let targets: Vec<Value> = columns
        .iter()
        .map(|&(column, _)| {
            let at = f.addi(to, column);
            f.offset(out, at, Element::F32)
        })
        .collect();
    let run = run(kernel) as usize;
    let before: Vec<Value> = targets.iter().flat_map(|&at| load(f, DType::F32, at, run as u32)).collect();
    let (zero, count, step) = (f.int(int, 0), f.int(int, kernel.rows as i64), f.int(int, 32 * LOOKS as i64));
    let sums = f.fold((zero, count, step), &before, |f, n, sums| {
        let hits: Vec<(Value, Value)> = (0..LOOKS)
            .map(|look| {
                let first = f.plus(n, 32 * look);
                (first, hits(f, kernel, ids, row, first, lane))
            })
            .collect();
        hits.into_iter()
            .fold(sums.to_vec(), |sums, (first, hits)| add_hits(f, kernel, x, &columns, first, hits, &sums))
    });
    for ((&at, sums), &(_, inside)) in targets.iter().zip(sums.chunks(run)).zip(&columns) {
        f.only_if(inside, |f| store(f, DType::F32, sums, at));
    }
}

/// Where each of a lane's runs begins, and whether that is a column at all; one that is not stands on the last run.
fn columns(f: &mut Function, kernel: &ScatterAddKernel, lane: Value, slice: Value) -> Vec<(Value, Value)> {
    let int = Type::scalar(Element::I32);
    let run = run(kernel);
    let first = f.times(slice, COLS_MAX);
    let end = f.int(int, kernel.cols as i64);
    let last = f.int(int, (kernel.cols - run) as i64);
    let own = f.times(lane, run);
    let own = f.addi(first, own);
    (0..kernel.cols.min(COLS_MAX).div_ceil(32 * run))
        .map(|i| {
            let column = f.plus(own, 32 * run * i);
            let inside = f.order(Order::Below, column, end);
            let column = f.minu(column, last);
            (f.zero_extend(column, Element::I64), inside)
        })
        .collect()
}

/// A bit for each of 32 ids from `first` on: whether it is the row's.
fn hits(
    f: &mut Function,
    kernel: &ScatterAddKernel,
    ids: Value,
    row: Value,
    first: Value,
    lane: Value,
) -> Value {
    let int = Type::scalar(Element::I32);
    let at = f.addi(first, lane);
    let count = f.int(int, kernel.rows as i64);
    let is_id = f.order(Order::Less, at, count);
    let last = f.int(int, kernel.rows as i64 - 1);
    let at = f.minu(at, last);
    let at = f.zero_extend(at, Element::I64);
    let at = f.offset(ids, at, Element::I32);
    let id = f.load(at, int, 4);
    let same = f.order(Order::Equal, id, row);
    let hit = f.and(same, is_id);
    let all = f.int(int, -1);
    f.intrinsic("llvm.nvvm.vote.ballot.sync", &[all, hit], int)
}

/// The sums after the rows of these hits, in order.
fn add_hits(
    f: &mut Function,
    kernel: &ScatterAddKernel,
    x: Value,
    columns: &[(Value, Value)],
    first: Value,
    hits: Value,
    sums: &[Value],
) -> Vec<Value> {
    let int = Type::scalar(Element::I32);
    let found = f.intrinsic("llvm.ctpop.i32", &[hits], int);
    let (zero, one) = (f.int(int, 0), f.int(int, 1));
    let carried: Vec<Value> = std::iter::once(hits).chain(sums.iter().copied()).collect();
    let carried = f.fold((zero, found, one), &carried, |f, _, carried| {
        let bit = f.value(
            int,
            format!("\"llvm.intr.cttz\"({}) <{{is_zero_poison = false}}> : (i32) -> i32", carried[0]),
        );
        let less = f.subi(carried[0], one);
        let rest = f.and(carried[0], less);
        let source = f.addi(first, bit);
        let source = f.zero_extend(source, Element::I64);
        let from = f.times(source, kernel.stride);
        let run = run(kernel);
        let values: Vec<Value> = columns
            .iter()
            .flat_map(|&(column, _)| {
                let at = f.addi(from, column);
                let at = f.offset(x, at, stored(kernel.dtype));
                load(f, kernel.dtype, at, run as u32)
            })
            .collect();
        let added = carried[1..].iter().zip(values).map(|(&sum, value)| f.add(sum, value));
        std::iter::once(rest).chain(added).collect()
    });
    carried[1..].to_vec()
}
