//! Adds rows by id on a GPU: a block has a few rows of the result, a warp each, and looks for their ids among all.
//!
//! Ids are read by all threads of the block, as many at a time as a *round* holds. Those that are the block's are listed in order in shared memory, and every
//! warp adds the rows that the list has for it, some at a time so that their reads overlap, but in order. No atomics: the sums are the same bits at
//! every run. A row of the result that no id names is not touched.

use super::memory::{load, load_packed, store, stored, unpack};
use super::{attributes, launch};
use crate::mlir::{Element, Function, INT, Order, Space, Type, Value};
use dspc_graph::ir::DType;
use dspc_kernel::describe::ScatterAddKernel;
use dspc_program::GpuLaunch;

/// Warps of a block, and so rows of the result.
const WARPS: u64 = 16;
const THREADS: u64 = 32 * WARPS;
/// Ids that a thread reads in a round.
const IDS: u64 = 8;
/// Columns of a lane: what it holds in registers.
const LANE_COLS: u64 = 16;
/// Rows whose reads overlap.
const AT_ONCE: u32 = 8;

/// Writes a kernel, and how it is launched.
pub(super) fn emit(symbol: &str, kernel: &ScatterAddKernel) -> Result<(String, GpuLaunch), String> {
    let wide = [8, 4, 2, 1].into_iter().find(|wide| {
        let bytes = wide * kernel.dtype.bytes();
        bytes <= 16 && kernel.cols.is_multiple_of(*wide) && kernel.stride.is_multiple_of(*wide)
    });
    let wide = wide.unwrap_or(1);
    let grid = [kernel.out_rows.div_ceil(WARPS), kernel.cols.div_ceil(32 * LANE_COLS)].map(u32::try_from);
    let [Ok(grid_x), Ok(grid_y)] = grid else {
        return Err(format!("{} rows are too many for a grid", kernel.out_rows));
    };
    let rounds = kernel.rows.div_ceil(THREADS * IDS);
    if rounds * THREADS * IDS > 1 << 26 {
        return Err(format!("{} ids are too many", kernel.rows));
    }
    let types = [Type::scalar(Element::Pointer(Space::Global)); 3];
    let (mut f, args) = Function::new(&types);
    let &[ids, x, out] = args.as_slice() else {
        return Err("three operands".to_string());
    };
    let f = &mut f;
    let thread = f.special("tid.x");
    let block = f.special("ctaid.x");
    let mask = f.int(INT, 31);
    let shared = |f: &mut Function, name: &str| {
        let ty = Type::scalar(Element::Pointer(Space::Shared));
        f.value(ty, format!("llvm.mlir.addressof @{symbol}.{name} : !llvm.ptr<3>"))
    };
    let scatter = Scatter {
        kernel,
        wide,
        ids,
        x,
        thread,
        lane: f.and(thread, mask),
        warp: f.shr(thread, 5),
        first_row: f.times(block, WARPS),
        counts: shared(f, "counts"),
        list: shared(f, "list"),
    };
    let slice = f.special("ctaid.y");
    let runs = scatter.runs(f, slice);
    let zero = f.float(1, 0.0);
    let none = f.int(INT, 0);
    let mut carried = vec![zero; LANE_COLS as usize];
    carried.push(none);
    let (from, to, step) = (f.int(INT, 0), f.int(INT, rounds as i64), f.int(INT, 1));
    let sums = f.fold((from, to, step), &carried, |f, round, carried| {
        let count = scatter.list_round(f, round);
        let sums = scatter.add_listed(f, count, &runs, carried);
        f.barrier(); // the next round lists anew
        sums
    });
    scatter.finish(f, out, &runs, &sums);
    let globals = format!(
        "  llvm.mlir.global internal @{symbol}.counts() {{addr_space = 3 : i32, alignment = 16 : i64}} : !llvm.array<{WARPS} x i32>\n  llvm.mlir.global internal @{symbol}.list() {{addr_space = 3 : i32, alignment = 16 : i64}} : !llvm.array<{} x i32>\n",
        THREADS * IDS
    );
    let launch = launch(symbol, [grid_x, grid_y], THREADS as u32);
    let f = std::mem::replace(f, Function::new(&[]).0);
    Ok((globals + &f.finish(symbol, &types, &attributes(THREADS as u32)), launch))
}

struct Scatter<'k> {
    kernel: &'k ScatterAddKernel,
    /// Neighbours that a lane reads at once.
    wide: u64,
    ids: Value,
    x: Value,
    thread: Value,
    lane: Value,
    warp: Value,
    /// The block's first row of the result.
    first_row: Value,
    /// Shared: how many ids each warp found.
    counts: Value,
    /// Shared: the round's finds, each a position times [`WARPS`] plus a row of the block.
    list: Value,
}

/// A lane's neighbouring columns.
struct Run {
    /// The first; inside the row.
    column: Value,
    inside: Value,
}

impl Scatter<'_> {
    fn runs(&self, f: &mut Function, slice: Value) -> Vec<Run> {
        let turns = LANE_COLS / self.wide;
        let first = f.times(slice, 32 * LANE_COLS);
        let (end, last) =
            (f.int(INT, self.kernel.cols as i64), f.int(INT, (self.kernel.cols - self.wide) as i64));
        (0..turns)
            .map(|turn| {
                let mine = f.times(self.lane, self.wide);
                let column = f.addi(first, mine);
                let column = f.plus(column, turn * 32 * self.wide);
                let inside = f.order(Order::Below, column, end);
                let column = f.minu(column, last);
                Run { column: f.zero_extend(column, Element::I64), inside }
            })
            .collect()
    }

    /// Lists the ids of a round that are the block's, in order; how many.
    fn list_round(&self, f: &mut Function, round: Value) -> Value {
        let first = f.times(round, THREADS * IDS);
        let mine = f.times(self.thread, IDS);
        let first = f.addi(first, mine);
        let (end, last) = (f.int(INT, self.kernel.rows as i64), f.int(INT, self.kernel.rows as i64 - 1));
        let rows = f.int(INT, WARPS as i64);
        let all = f.int(INT, -1);
        let mut finds = vec![];
        for i in 0..IDS {
            let position = f.plus(first, i);
            let is_id = f.order(Order::Below, position, end);
            let at = f.minu(position, last);
            let at = f.zero_extend(at, Element::I64);
            let at = f.offset(self.ids, at, Element::I32);
            let id = f.load(at, INT, 4);
            let row = f.subi(id, self.first_row);
            let mine = f.order(Order::Below, row, rows);
            let hit = f.and(mine, is_id);
            let hits = f.intrinsic("llvm.nvvm.vote.ballot.sync", &[all, hit], INT);
            let entry = f.times(position, WARPS);
            finds.push((hit, hits, f.addi(entry, row)));
        }
        let below = f.value(INT, "nvvm.read.ptx.sreg.lanemask.lt : i32");
        let zero = f.int(INT, 0);
        let (mut before, mut found) = (zero, zero);
        for (_, hits, _) in &finds {
            let lower = f.and(*hits, below);
            let lower = f.intrinsic("llvm.ctpop.i32", &[lower], INT);
            before = f.addi(before, lower);
            let count = f.intrinsic("llvm.ctpop.i32", &[*hits], INT);
            found = f.addi(found, count);
        }
        let is_first = f.order(Order::Equal, self.lane, zero);
        f.only_if(is_first, |f| {
            let to = f.offset(self.counts, self.warp, Element::I32);
            f.store(found, to, 4);
        });
        f.barrier();
        let (mut total, mut offset) = (zero, zero);
        for warp in 0..WARPS {
            let index = f.int(INT, warp as i64);
            let at = f.offset(self.counts, index, Element::I32);
            let count = f.load(at, INT, 4);
            total = f.addi(total, count);
            let is_before = f.order(Order::Below, index, self.warp);
            let counted = f.select(is_before, count, zero);
            offset = f.addi(offset, counted);
        }
        let mut next = f.addi(offset, before);
        for (hit, _, entry) in finds {
            f.only_if(hit, |f| {
                let to = f.offset(self.list, next, Element::I32);
                f.store(entry, to, 4);
            });
            let one = f.zero_extend(hit, Element::I32);
            next = f.addi(next, one);
        }
        f.barrier();
        total
    }

    /// Adds the rows that the list has for this warp; carried: a lane's sums, and how many rows went into them.
    fn add_listed(&self, f: &mut Function, count: Value, runs: &[Run], carried: &[Value]) -> Vec<Value> {
        let (zero, step) = (f.int(INT, 0), f.int(INT, 32));
        f.fold((zero, count, step), carried, |f, first, carried| {
            let at = f.addi(first, self.lane);
            let is_entry = f.order(Order::Below, at, count);
            let one = f.int(INT, 1);
            let last = f.subi(count, one);
            let at = f.minu(at, last);
            let at = f.offset(self.list, at, Element::I32);
            let entry = f.load(at, INT, 4);
            let mask = f.int(INT, WARPS as i64 - 1);
            let row = f.and(entry, mask);
            let mine = f.order(Order::Equal, row, self.warp);
            let hit = f.and(mine, is_entry);
            let all = f.int(INT, -1);
            let hits = f.intrinsic("llvm.nvvm.vote.ballot.sync", &[all, hit], INT);
            let found = f.intrinsic("llvm.ctpop.i32", &[hits], INT);
            let at_once = f.int(INT, AT_ONCE.into());
            let (sums, rows) = carried.split_at(carried.len() - 1);
            let rows = f.addi(rows[0], found);
            let carried: Vec<Value> = std::iter::once(hits).chain(sums.iter().copied()).collect();
            let next = f.fold((zero, found, at_once), &carried, |f, _, carried| {
                self.add_some(f, first, carried, runs)
            });
            next[1..].iter().copied().chain([rows]).collect()
        })
    }

    /// Adds the rows of the lowest hits; carried: hits that are left, sums.
    fn add_some(&self, f: &mut Function, first: Value, carried: &[Value], runs: &[Run]) -> Vec<Value> {
        let (zero, one) = (f.int(INT, 0), f.int(INT, 1));
        let mut hits = carried[0];
        let mut rows: Vec<(Value, Vec<Value>)> = vec![];
        let mut lowest = None;
        for _ in 0..AT_ONCE {
            let is_hit = f.order(Order::NotEqual, hits, zero);
            let bit = f.value(
                INT,
                format!("\"llvm.intr.cttz\"({hits}) <{{is_zero_poison = false}}> : (i32) -> i32"),
            );
            // Where there is none, the first one's row is read again and counts nothing.
            let bit = match lowest {
                None => bit,
                Some(lowest) => f.select(is_hit, bit, lowest),
            };
            lowest = lowest.or(Some(bit));
            let less = f.subi(hits, one);
            hits = f.and(hits, less);
            let at = f.addi(first, bit);
            let at = f.offset(self.list, at, Element::I32);
            let entry = f.load(at, INT, 4);
            let position = f.shr(entry, WARPS.trailing_zeros().into());
            let position = f.zero_extend(position, Element::I64);
            let from = f.times(position, self.kernel.stride);
            let mut values = vec![];
            for run in runs {
                let at = f.addi(from, run.column);
                let at = f.offset(self.x, at, stored(self.kernel.dtype));
                values.extend(load_packed(f, self.kernel.dtype, at, self.wide as u32));
            }
            rows.push((is_hit, values));
        }
        let mut sums = carried[1..].to_vec();
        let nothing = f.float(1, 0.0);
        for (is_hit, values) in rows {
            let values = unpack(f, &values);
            for (sum, value) in sums.iter_mut().zip(values) {
                let value = f.select(is_hit, value, nothing);
                *sum = f.add(*sum, value);
            }
        }
        std::iter::once(hits).chain(sums).collect()
    }

    /// Adds the sums to a row of the result that got some.
    fn finish(&self, f: &mut Function, out: Value, runs: &[Run], sums: &[Value]) {
        let (sums, rows) = sums.split_at(sums.len() - 1);
        let zero = f.int(INT, 0);
        let is_named = f.order(Order::NotEqual, rows[0], zero);
        f.only_if(is_named, |f| {
            let row = f.addi(self.first_row, self.warp);
            let row = f.zero_extend(row, Element::I64);
            let first = f.times(row, self.kernel.cols);
            for (run, sums) in runs.iter().zip(sums.chunks(self.wide as usize)) {
                f.only_if(run.inside, |f| {
                    let at = f.addi(first, run.column);
                    let at = f.offset(out, at, Element::F32);
                    let before = load(f, DType::F32, at, self.wide as u32);
                    let added: Vec<Value> = before.iter().zip(sums).map(|(&a, &b)| f.add(a, b)).collect();
                    store(f, DType::F32, &added, at);
                });
            }
        });
    }
}
