//! Adds rows by id on a GPU: a block has every n-th row of the result and a slice of its columns, and looks for their ids among all.
//!
//! Ids are read by all threads of the block, a *round* at a time. Those that are the block's are listed in order in shared memory. When the list is nearly full, and
//! at the end, a warp a row adds up the rows that the list has for it, in order, and adds their sum to the result. What an id has too many of for one warp is
//! divided among all warps, a run of the list each, and the runs' sums are added in order. Nothing but counts is added by atomics: the sums are the same bits at every run. A row of
//! the result that no id names is not touched.

use super::memory::{load, load_packed, store, stored, unpack};
use super::{attributes_of, launch};
use crate::mlir::{Element, Function, INT, Order, Space, Type, Value};
use dspc_graph::ir::DType;
use dspc_kernel::describe::ScatterAddKernel;
use dspc_program::GpuLaunch;

/// Warps of a block.
const WARPS: u64 = 8;
const THREADS: u64 = 32 * WARPS;
/// Blocks that a multiprocessor runs at once.
const RESIDENT: u32 = 3;
/// Blocks: those of an H100 at once; the order of sums does not depend on it.
const BLOCKS: u64 = 396;
/// Ids that a thread reads in a round.
const IDS: u64 = 8;
/// Ids of a round.
const ROUND: u64 = THREADS * IDS;
/// Entries of the list.
const LISTED_MAX: u64 = 2 * ROUND;
/// Columns of a lane: what it holds in registers.
const LANE_COLS: u64 = 8;
/// Columns of a block.
const SLICE: u64 = 32 * LANE_COLS;
/// Rows for one id that a warp adds up; more are divided among all warps.
const LIGHT_MAX: u64 = 32;
/// Ids of a warp that may have more.
const HEAVY_MAX: u64 = LISTED_MAX / LIGHT_MAX;
/// Rows whose reads overlap where an id has few, and where it has many, if there are registers for them.
const FEW_AT_ONCE: u64 = 4;
const MANY_AT_ONCE: u64 = 8;
/// Registers of a lane for rows on their way and where they are.
const READ_REGISTERS: u64 = 48;
/// Entries of the list that a lane looks at in one turn of a loop.
const LOOKS: u64 = 4;

/// Counters of the block's rows: row r counts in counter r % COUNTERS.
const COUNTERS: u64 = 1024;

/// Where things lie in shared memory, in words.
const POSITIONS: u64 = LISTED_MAX;
const NAMED: u64 = POSITIONS + LISTED_MAX;
const COUNTS: u64 = NAMED + COUNTERS;
const HEAVY_COUNTS: u64 = COUNTS + WARPS;
const HEAVY_ROWS: u64 = HEAVY_COUNTS + WARPS;
const LIGHT: u64 = HEAVY_ROWS + WARPS * HEAVY_MAX;
const SUMS: u64 = LIGHT + WARPS * LIGHT_MAX;
const WORDS: u64 = SUMS + WARPS * SLICE;

/// Writes a kernel, and how it is launched.
pub(super) fn emit(symbol: &str, kernel: &ScatterAddKernel) -> Result<(String, GpuLaunch), String> {
    let wide = [8, 4, 2, 1].into_iter().find(|wide| {
        let bytes = wide * kernel.dtype.bytes();
        bytes <= 16 && kernel.cols.is_multiple_of(*wide) && kernel.stride.is_multiple_of(*wide)
    });
    let wide = wide.unwrap_or(1);
    let slices = kernel.cols.div_ceil(SLICE);
    let blocks = (BLOCKS / slices).clamp(1, kernel.out_rows.max(1));
    let grid = [blocks, slices].map(u32::try_from);
    let [Ok(grid_x), Ok(grid_y)] = grid else {
        return Err(format!("{} columns are too many for a grid", kernel.cols));
    };
    let rounds = kernel.rows.div_ceil(ROUND);
    if rounds * ROUND > 1 << 30 || kernel.out_rows > 1 << 30 {
        return Err(format!("{} ids of {} are too many", kernel.rows, kernel.out_rows));
    }
    let types = [Type::scalar(Element::Pointer(Space::Global)); 3];
    let (mut f, args) = Function::new(&types);
    let &[ids, x, out] = args.as_slice() else {
        return Err("three operands".to_string());
    };
    let f = &mut f;
    let thread = f.special("tid.x");
    let mask = f.int(INT, 31);
    let memory = format!("{symbol}_list");
    let shared = f.address_in(Space::Shared, &memory);
    let mut scatter = Scatter {
        kernel,
        wide,
        slice_cols: kernel.cols.div_ceil(slices).next_multiple_of(wide),
        blocks,
        ids,
        x,
        out,
        thread,
        lane: f.and(thread, mask),
        warp: f.shr(thread, 5),
        block: f.special("ctaid.x"),
        slice: f.special("ctaid.y"),
        shared,
        runs: vec![],
    };
    scatter.runs = scatter.runs(f);
    scatter.clear(f);
    f.barrier();
    let none = f.int(INT, 0);
    let (to, step) = (f.int(INT, rounds as i64), f.int(INT, 1));
    f.fold((none, to, step), &[none], |f, round, listed| {
        let ids = scatter.ids_of(f, round);
        let count = scatter.list_round(f, round, listed[0], &ids);
        let (full, last) = (f.int(INT, (LISTED_MAX - ROUND) as i64), f.int(INT, rounds as i64 - 1));
        let is_full = f.order(Order::Below, full, count);
        let is_last = f.order(Order::Equal, round, last);
        let is_due = f.or(is_full, is_last);
        f.only_if(is_due, |f| scatter.add_all(f, count));
        vec![f.select(is_due, none, count)]
    });
    let global = format!(
        "  llvm.mlir.global external @{memory}() {{addr_space = 3 : i32, alignment = 16 : i64}} : !llvm.array<0 x i8>\n"
    );
    let mut launch = launch(symbol, [grid_x, grid_y], THREADS as u32);
    launch.shared = WORDS as u32 * 4;
    let f = std::mem::replace(f, Function::new(&[]).0);
    Ok((global + &f.finish(symbol, &types, &attributes_of(THREADS as u32, RESIDENT)), launch))
}

struct Scatter<'k> {
    kernel: &'k ScatterAddKernel,
    /// Neighbours that a lane reads at once.
    wide: u64,
    /// Columns of a block.
    slice_cols: u64,
    /// Blocks over the rows of the result: block b has rows b, b + blocks, …
    blocks: u64,
    ids: Value,
    x: Value,
    out: Value,
    thread: Value,
    lane: Value,
    warp: Value,
    block: Value,
    slice: Value,
    /// Of each find, which of the block's rows it is; its position; how many ids each warp found; what has many of them; a warp's few; and sums.
    shared: Value,
    runs: Vec<Run>,
}

/// A lane's neighbouring columns.
struct Run {
    /// The first; inside the row.
    column: Value,
    inside: Value,
}

impl Scatter<'_> {
    fn runs(&self, f: &mut Function) -> Vec<Run> {
        let turns = self.slice_cols.div_ceil(32 * self.wide);
        let first = f.times(self.slice, self.slice_cols);
        let (end, last) =
            (f.int(INT, self.kernel.cols as i64), f.int(INT, (self.kernel.cols - self.wide) as i64));
        let slice_end = f.plus(first, self.slice_cols);
        let end = f.minu(end, slice_end);
        (0..turns)
            .map(|turn| {
                let mine = f.times(self.lane, self.wide);
                let column = f.addi(first, mine);
                let column = f.plus(column, turn * 32 * self.wide);
                let inside = f.order(Order::Below, column, end);
                let column = f.minu(column, last);
                Run { column, inside }
            })
            .collect()
    }

    /// Sets the counters to 0.
    fn clear(&self, f: &mut Function) {
        let zero = f.int(INT, 0);
        for first in (0..COUNTERS).step_by(THREADS as usize) {
            let at = self.word(f, NAMED + first, self.thread);
            f.store(zero, at, 4);
        }
    }

    /// The address of a row's counter.
    fn counter(&self, f: &mut Function, row: Value) -> Value {
        let mask = f.int(INT, COUNTERS as i64 - 1);
        let index = f.and(row, mask);
        self.word(f, NAMED, index)
    }

    /// The address of a word of shared memory.
    fn word(&self, f: &mut Function, first: u64, index: Value) -> Value {
        let index = f.plus(index, first);
        f.offset(self.shared, index, Element::I32)
    }

    /// A thread's ids of a round; of the last ones where there are no more.
    fn ids_of(&self, f: &mut Function, round: Value) -> Vec<Value> {
        let first = f.times(round, ROUND);
        let mine = f.times(self.thread, IDS);
        let first = f.addi(first, mine);
        let at = |f: &mut Function, position: Value, last: u64| {
            let last = f.int(INT, last as i64);
            let position = f.minu(position, last);
            let position = f.zero_extend(position, Element::I64);
            f.offset(self.ids, position, Element::I32)
        };
        if self.kernel.rows.is_multiple_of(IDS) {
            let at = at(f, first, self.kernel.rows - IDS);
            return load(f, DType::I32, at, IDS as u32);
        }
        let each = (0..IDS).map(|i| {
            let position = f.plus(first, i);
            let at = at(f, position, self.kernel.rows - 1);
            f.load(at, INT, 4)
        });
        each.collect()
    }

    /// Lists those of a round's ids that are the block's behind what is listed, in order; how many there are then.
    fn list_round(&self, f: &mut Function, round: Value, listed: Value, ids: &[Value]) -> Value {
        let first = f.times(round, ROUND);
        let mine = f.times(self.thread, IDS);
        let first = f.addi(first, mine);
        let (end, rows) = (f.int(INT, self.kernel.rows as i64), f.int(INT, self.kernel.out_rows as i64));
        let blocks = f.int(INT, self.blocks as i64);
        let (all, zero) = (f.int(INT, -1), f.int(INT, 0));
        let below = f.value(INT, "nvvm.read.ptx.sreg.lanemask.lt : i32");
        let (mut before, mut found) = (zero, zero);
        let mut finds = vec![];
        for (i, &id) in (0..).zip(ids) {
            let position = f.plus(first, i);
            let is_id = f.order(Order::Below, position, end);
            let is_row = f.order(Order::Below, id, rows);
            let (owner, row) = (f.remu(id, blocks), f.divu(id, blocks));
            let mine = f.order(Order::Equal, owner, self.block);
            let hit = f.and(mine, is_row);
            let hit = f.and(hit, is_id);
            let hits = f.intrinsic("llvm.nvvm.vote.ballot.sync", &[all, hit], INT);
            let lower = f.and(hits, below);
            let lower = f.intrinsic("llvm.ctpop.i32", &[lower], INT);
            before = f.addi(before, lower);
            let count = f.intrinsic("llvm.ctpop.i32", &[hits], INT);
            found = f.addi(found, count);
            finds.push((hit, position, row));
        }
        let is_first = f.order(Order::Equal, self.lane, zero);
        f.only_if(is_first, |f| {
            let to = self.word(f, COUNTS, self.warp);
            f.store(found, to, 4);
        });
        f.barrier();
        // A lane the count of a warp.
        let warps = f.int(INT, WARPS as i64);
        let is_warp = f.order(Order::Below, self.lane, warps);
        let at = f.select(is_warp, self.lane, zero);
        let at = self.word(f, COUNTS, at);
        let count = f.load(at, INT, 4);
        let count = f.select(is_warp, count, zero);
        let is_before = f.order(Order::Below, self.lane, self.warp);
        let earlier = f.select(is_before, count, zero);
        let [count, earlier] =
            [count, earlier].map(|x| f.value(INT, format!("nvvm.redux.sync add {x}, {all} : i32 -> i32")));
        let total = f.addi(listed, count);
        let mut next = f.addi(listed, earlier);
        next = f.addi(next, before);
        for (hit, position, row) in finds {
            f.only_if(hit, |f| {
                let to = self.word(f, 0, next);
                f.store(row, to, 4);
                let to = self.word(f, POSITIONS, next);
                f.store(position, to, 4);
                // How often a row is named is the same in whatever order it is counted.
                let counter = self.counter(f, row);
                let one = f.int(INT, 1);
                f.value(INT, format!("llvm.atomicrmw add {counter}, {one} monotonic : {}, i32", counter.ty));
            });
            let one = f.zero_extend(hit, Element::I32);
            next = f.addi(next, one);
        }
        // The list is whole, and the counts may change.
        f.barrier();
        total
    }

    /// Adds all that is listed to the result.
    fn add_all(&self, f: &mut Function, count: Value) {
        let zero = f.int(INT, 0);
        // Rows of this block.
        let (last, blocks) = (f.int(INT, self.kernel.out_rows as i64 - 1), f.int(INT, self.blocks as i64));
        let rows = f.subi(last, self.block);
        let rows = f.divu(rows, blocks);
        let rows = f.plus(rows, 1);
        let step = f.int(INT, WARPS as i64);
        let heavy = f.fold((self.warp, rows, step), &[zero], |f, row, heavy| {
            // None are looked for if no row of this counter is named.
            let at = self.counter(f, row);
            let named = f.load(at, INT, 4);
            let is_named = f.order(Order::NotEqual, named, zero);
            let listed = f.select(is_named, count, zero);
            let found = self.collect(f, listed, row);
            let most = f.int(INT, LIGHT_MAX as i64);
            let is_heavy = f.order(Order::Below, most, found);
            f.either(
                is_heavy,
                |f| {
                    let is_first = f.order(Order::Equal, self.lane, zero);
                    f.only_if(is_first, |f| {
                        let before = f.times(self.warp, HEAVY_MAX);
                        let index = f.addi(before, heavy[0]);
                        let to = self.word(f, HEAVY_ROWS, index);
                        f.store(row, to, 4);
                    });
                },
                |f| {
                    let is_named = f.order(Order::NotEqual, found, zero);
                    f.only_if(is_named, |f| {
                        let sums = self.sum_collected(f, found);
                        self.add_to_result(f, row, &sums);
                    });
                },
            );
            let one = f.zero_extend(is_heavy, Element::I32);
            vec![f.addi(heavy[0], one)]
        });
        let is_first = f.order(Order::Equal, self.lane, zero);
        f.only_if(is_first, |f| {
            let to = self.word(f, HEAVY_COUNTS, self.warp);
            f.store(heavy[0], to, 4);
        });
        f.barrier();
        let one = f.int(INT, 1);
        let warps = f.int(INT, WARPS as i64);
        f.fold((zero, warps, one), &[], |f, warp, _| {
            let at = self.word(f, HEAVY_COUNTS, warp);
            let heavy = f.load(at, INT, 4);
            f.fold((zero, heavy, one), &[], |f, i, _| {
                let before = f.times(warp, HEAVY_MAX);
                let index = f.addi(before, i);
                let at = self.word(f, HEAVY_ROWS, index);
                let row = f.load(at, INT, 4);
                self.add_heavy(f, count, row);
                vec![]
            });
            vec![]
        });
        self.clear(f);
        // The next round lists anew.
        f.barrier();
    }

    /// Collects the positions that the list has for a row, the first ones of them; how many it has.
    fn collect(&self, f: &mut Function, count: Value, row: Value) -> Value {
        // The warp is done with what it collected before.
        f.warp_barrier();
        let below = f.value(INT, "nvvm.read.ptx.sreg.lanemask.lt : i32");
        let (zero, step) = (f.int(INT, 0), f.int(INT, 32 * LOOKS as i64));
        let before = f.times(self.warp, LIGHT_MAX);
        let found = f.fold((zero, count, step), &[zero], |f, first, found| {
            let mut found = found[0];
            let firsts: Vec<Value> = (0..LOOKS).map(|look| f.plus(first, 32 * look)).collect();
            let looks: Vec<(Value, Value)> = firsts.iter().map(|&at| self.hits(f, at, count, row)).collect();
            for (first, (hit, hits)) in firsts.into_iter().zip(looks) {
                let lower = f.and(hits, below);
                let lower = f.intrinsic("llvm.ctpop.i32", &[lower], INT);
                let index = f.addi(found, lower);
                let most = f.int(INT, LIGHT_MAX as i64);
                let has_room = f.order(Order::Below, index, most);
                let is_kept = f.and(hit, has_room);
                f.only_if(is_kept, |f| {
                    let at = f.addi(first, self.lane);
                    let at = self.word(f, POSITIONS, at);
                    let position = f.load(at, INT, 4);
                    let to = f.addi(before, index);
                    let to = self.word(f, LIGHT, to);
                    f.store(position, to, 4);
                });
                let hits = f.intrinsic("llvm.ctpop.i32", &[hits], INT);
                found = f.addi(found, hits);
            }
            vec![found]
        });
        f.warp_barrier();
        found[0]
    }

    /// A lane's sums of the rows at the positions that were collected.
    fn sum_collected(&self, f: &mut Function, found: Value) -> Vec<Value> {
        let at_once = self.at_once(FEW_AT_ONCE);
        let (zero, step) = (f.int(INT, 0), f.int(INT, at_once as i64));
        let nothing = vec![f.float(1, 0.0); self.runs.len() * self.wide as usize];
        let before = f.times(self.warp, LIGHT_MAX);
        f.fold((zero, found, step), &nothing, |f, first, sums| {
            let rows: Vec<(Value, Vec<Value>)> = (0..at_once)
                .map(|i| {
                    let index = f.plus(first, i);
                    let is_one = f.order(Order::Below, index, found);
                    // Where there is none, the first one's row is read again and counts nothing.
                    let index = f.select(is_one, index, first);
                    let at = f.addi(before, index);
                    let at = self.word(f, LIGHT, at);
                    let position = f.load(at, INT, 4);
                    (is_one, self.read_row(f, position))
                })
                .collect();
            self.add_rows(f, rows, sums)
        })
    }

    /// How many rows are on their way at once, of `most`.
    fn at_once(&self, most: u64) -> u64 {
        let registers = self.runs.len() as u64 * ((self.wide * self.kernel.dtype.bytes()).div_ceil(4) + 2);
        (READ_REGISTERS / registers.max(1)).clamp(1, most)
    }

    /// A lane's columns of the row at a position, as they lie in memory.
    fn read_row(&self, f: &mut Function, position: Value) -> Vec<Value> {
        let position = f.zero_extend(position, Element::I64);
        let from = f.times(position, self.kernel.stride);
        let mut values = vec![];
        for run in &self.runs {
            let column = f.zero_extend(run.column, Element::I64);
            let at = f.addi(from, column);
            let at = f.offset(self.x, at, stored(self.kernel.dtype));
            values.extend(load_packed(f, self.kernel.dtype, at, self.wide as u32));
        }
        values
    }

    /// Adds rows in order, those that count.
    fn add_rows(&self, f: &mut Function, rows: Vec<(Value, Vec<Value>)>, sums: &[Value]) -> Vec<Value> {
        let mut sums = sums.to_vec();
        let nothing = f.float(1, 0.0);
        for (counts, values) in rows {
            let values = unpack(f, &values);
            for (sum, value) in sums.iter_mut().zip(values) {
                let value = f.select(counts, value, nothing);
                *sum = f.add(*sum, value);
            }
        }
        sums
    }

    /// Whether a lane's entry is a row's, and which of the warp's 32 are.
    fn hits(&self, f: &mut Function, first: Value, end: Value, row: Value) -> (Value, Value) {
        let at = f.addi(first, self.lane);
        let is_entry = f.order(Order::Below, at, end);
        let last = f.int(INT, LISTED_MAX as i64 - 1);
        let at = f.minu(at, last);
        let at = self.word(f, 0, at);
        let entry = f.load(at, INT, 4);
        let mine = f.order(Order::Equal, entry, row);
        let hit = f.and(mine, is_entry);
        let all = f.int(INT, -1);
        (hit, f.intrinsic("llvm.nvvm.vote.ballot.sync", &[all, hit], INT))
    }

    /// A lane's sums of the rows that a run of the list has for one of the result.
    fn sum_listed(&self, f: &mut Function, (from, to): (Value, Value), row: Value) -> Vec<Value> {
        let step = f.int(INT, 32);
        let nothing = vec![f.float(1, 0.0); self.runs.len() * self.wide as usize];
        f.fold((from, to, step), &nothing, |f, first, sums| {
            let (_, hits) = self.hits(f, first, to, row);
            let found = f.intrinsic("llvm.ctpop.i32", &[hits], INT);
            let (zero, at_once) = (f.int(INT, 0), f.int(INT, self.at_once(MANY_AT_ONCE) as i64));
            let carried: Vec<Value> = std::iter::once(hits).chain(sums.iter().copied()).collect();
            let next =
                f.fold((zero, found, at_once), &carried, |f, _, carried| self.add_some(f, first, carried));
            next[1..].to_vec()
        })
    }

    /// Adds the rows of the lowest hits; carried: hits that are left, sums.
    fn add_some(&self, f: &mut Function, first: Value, carried: &[Value]) -> Vec<Value> {
        let (zero, one) = (f.int(INT, 0), f.int(INT, 1));
        let mut hits = carried[0];
        let mut rows: Vec<(Value, Vec<Value>)> = vec![];
        let mut lowest = None;
        for _ in 0..self.at_once(MANY_AT_ONCE) {
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
            let at = self.word(f, POSITIONS, at);
            let position = f.load(at, INT, 4);
            rows.push((is_hit, self.read_row(f, position)));
        }
        let sums = self.add_rows(f, rows, &carried[1..]);
        std::iter::once(hits).chain(sums).collect()
    }

    /// The first element of one of the block's rows of the result.
    fn result_row(&self, f: &mut Function, row: Value) -> Value {
        let row = f.times(row, self.blocks);
        let row = f.addi(row, self.block);
        let row = f.zero_extend(row, Element::I64);
        f.times(row, self.kernel.cols)
    }

    /// Adds a lane's sums to a row of the result.
    fn add_to_result(&self, f: &mut Function, row: Value, sums: &[Value]) {
        let first = self.result_row(f, row);
        for (run, sums) in self.runs.iter().zip(sums.chunks(self.wide as usize)) {
            f.only_if(run.inside, |f| {
                let column = f.zero_extend(run.column, Element::I64);
                let at = f.addi(first, column);
                let at = f.offset(self.out, at, Element::F32);
                let before = load(f, DType::F32, at, self.wide as u32);
                let added: Vec<Value> = before.iter().zip(sums).map(|(&a, &b)| f.add(a, b)).collect();
                store(f, DType::F32, &added, at);
            });
        }
    }

    /// Adds what an id has many of: a run of the list each warp, a column each thread.
    fn add_heavy(&self, f: &mut Function, count: Value, row: Value) {
        let span = f.plus(count, THREADS - 1);
        let span = f.shr(span, THREADS.trailing_zeros().into());
        let span = f.times(span, 32);
        let from = f.muli(self.warp, span);
        let to = f.addi(from, span);
        let to = f.minu(to, count);
        let sums = self.sum_listed(f, (from, to), row);
        let before = f.times(self.warp, SLICE);
        let mine = f.times(self.lane, self.wide);
        let mine = f.addi(before, mine);
        for (turn, sums) in (0..).zip(sums.chunks(self.wide as usize)) {
            let at = f.plus(mine, turn * 32 * self.wide);
            let at = self.word(f, SUMS, at);
            store(f, DType::F32, sums, at);
        }
        f.barrier();
        let first = f.times(self.slice, self.slice_cols);
        let column = f.addi(first, self.thread);
        let (end, slice_end) = (f.int(INT, self.kernel.cols as i64), f.int(INT, self.slice_cols as i64));
        let inside = f.order(Order::Below, column, end);
        let of_slice = f.order(Order::Below, self.thread, slice_end);
        let inside = f.and(inside, of_slice);
        f.only_if(inside, |f| {
            let mut sum = f.float(1, 0.0);
            for warp in 0..WARPS {
                let at = f.plus(self.thread, warp * SLICE);
                let at = self.word(f, SUMS, at);
                let part = f.load(at, Type::scalar(Element::F32), 4);
                sum = f.add(sum, part);
            }
            let first = self.result_row(f, row);
            let column = f.zero_extend(column, Element::I64);
            let at = f.addi(first, column);
            let at = f.offset(self.out, at, Element::F32);
            let before = f.load(at, Type::scalar(Element::F32), 4);
            let sum = f.add(before, sum);
            f.store(sum, at, 4);
        });
        f.barrier();
    }
}
