//! Row kernels for a GPU: a warp or a block a row, a block a chunk of rows, a thread a few elements.
//!
//! A thread holds runs of `wide` neighbouring columns, one 16-byte access each where rows allow it; runs of one turn lie side by side over the
//! threads of a row. Up to [`HELD_MAX`](super::layout) elements stay in registers from pass to pass; longer rows are copied to shared memory at once, as far as they
//! fit, and walked again for each pass.
//! Columns past the end are read as another run and kept out of reductions and stores: no access needs a branch but the store.
//!
//! A reduction is a thread's own values in order, a butterfly over the warp, and for a block one number a warp through shared memory: the
//! same tree at every run.

mod chunks;
mod stash;

use super::layout::{Layout, split_of};
use super::memory::{load, store, stored};
use super::{GpuChip, attributes, launch};
use crate::mlir::{Element, Function, Order, Space, Type, Value};
use crate::row::{Analysis, Draw, Level, Pass, Target as Machine};
use crate::row::{draw_of, draws, known, mapped_row, reduce_pair, reduction};
use crate::row::{
    emit_pure, exp_of_distance, for_result, is_share, is_sum_of_shares, neutral, uniform, uniform_quads,
};
use chunks::{Ready, shared_sums};
use dspc_graph::ir::DType;
use dspc_graph::rowfn::{Access, BinaryFn, Node, NodeId, ReduceFn, UnaryFn};
use dspc_kernel::describe::{RowKernel, Split, Target, Write};
use dspc_program::GpuLaunch;
use stash::{Stash, Stashed};

/// Warps, and so rows, of a block of such rows.
const WARPS: u32 = 4;
/// Turns of a loop over a long row whose reads overlap: of one that lies in memory, and in shared memory.
const TURNS_AT_ONCE: u64 = 4;
const SHARED_AT_ONCE: u64 = 2;
type Values = Vec<Value>;
type Emitted<T> = Result<T, String>;

struct Kernel<'k> {
    symbol: &'k str,
    kernel: &'k RowKernel,
    analysis: Analysis,
    layout: Layout,
    /// Operands' addresses.
    reads: Values,
    /// Results' addresses.
    writes: Values,
    /// The number of this thread among those of its row.
    thread: Value,
    /// The number of its row among those that the block walks at once; none if it walks one at a time.
    group: Option<Value>,
    /// Number of the block over the columns.
    across: Value,
    /// Shared numbers, one a warp and reduction; none where a row is a warp's.
    shared: Option<Value>,
    /// Shared column sums of all groups but the first.
    sums: Option<Value>,
    /// Operands of a row that are kept in shared memory.
    stash: Stash,
    draws: Vec<Draw>,
}

/// Row and kernel values by node.
type Scalars = Vec<Option<Value>>;
/// Element values by node, for one run.
type Held = Vec<Option<Values>>;

/// Where a run's row begins.
struct Place {
    reads: Values,
    writes: Values,
    /// Elements before the row.
    before: Value,
}

/// One run of neighbouring columns.
#[derive(Clone, Copy)]
struct Run {
    /// Its first column, inside the row.
    column: Value,
    /// Whether it is one of the row's own; none if all are.
    inside: Option<Value>,
    /// Where its first column would be if it went on past the end, if it may be only in part inside.
    ragged: Option<Value>,
    /// Whether it is one of those that are kept in shared memory, if any of its row are.
    kept: bool,
}

/// Writes a kernel, and how it is launched.
pub(super) fn emit(symbol: &str, kernel: &RowKernel, chip: GpuChip) -> Emitted<(String, GpuLaunch)> {
    let kernel = &RowKernel { split: split_of(kernel), ..kernel.clone() };
    let analysis = Analysis::of(kernel, 0)?;
    let layout = Layout::of(kernel, &analysis)?;
    let (stash, layout) = Stash::of(kernel, &analysis, layout, chip.shared_bytes_max());
    let mut types =
        vec![Type::scalar(Element::Pointer(Space::Global)); kernel.reads.len() + kernel.writes.len()];
    if kernel.uses_turn() {
        types.push(Type::scalar(Element::I64));
    }
    let (mut f, args) = Function::new(&types);
    let special = |f: &mut Function, name: &str| {
        f.value(Type::scalar(Element::I32), format!("nvvm.read.ptx.sreg.{name} : i32"))
    };
    let (thread, block) = (special(&mut f, "tid.x"), special(&mut f, "ctaid.x"));
    let across = special(&mut f, "ctaid.y");
    let reductions = kernel.nodes.iter().filter(|n| matches!(n, Node::Reduce(..))).count() as u32;
    let warps = layout.threads / 32;
    let rows_share_a_block = matches!(kernel.split, Split::Rows) && warps == 1;
    let needs_shared = reductions > 0 && warps > 1;
    let shared_symbol = format!("{symbol}.shared");
    let shared = needs_shared.then(|| {
        let ty = Type::scalar(Element::Pointer(Space::Shared));
        f.value(ty, format!("llvm.mlir.addressof @{shared_symbol} : !llvm.ptr<3>"))
    });
    let (lane, group) = if rows_share_a_block {
        let mask = f.int(thread.ty, 31);
        (f.and(thread, mask), None)
    } else if layout.groups > 1 {
        let threads = f.int(thread.ty, layout.threads.into());
        (f.remu(thread, threads), Some(f.divu(thread, threads)))
    } else {
        (thread, None)
    };
    let sums_symbol = format!("{symbol}.sums");
    let sums = group.is_some().then(|| shared_sums(&mut f, &sums_symbol));
    let (reads, writes) = args.split_at(kernel.reads.len());
    let mut this = Kernel {
        symbol,
        kernel,
        analysis,
        layout,
        reads: reads.to_vec(),
        writes: writes[..kernel.writes.len()].to_vec(),
        thread: lane,
        group,
        across,
        shared,
        sums,
        stash,
        draws: vec![],
    };
    if kernel.uses_turn() {
        this.draws = draws(&mut f, kernel, reads, args[args.len() - 1]);
    }
    let scalars = this.kernel_values(&mut f)?;
    let mut launch = match kernel.split {
        Split::Elements => this.elements(&mut f, &scalars, block)?,
        Split::Rows => this.rows(&mut f, &scalars, thread, block)?,
        Split::Chunks(rows) => this.chunks(&mut f, &scalars, rows, block)?,
    };
    let mut text = String::new();
    if needs_shared {
        let n = reductions * warps * layout.groups;
        text += &format!(
            "  llvm.mlir.global internal @{shared_symbol}() {{addr_space = 3 : i32, alignment = 16 : i64}} : !llvm.array<{n} x f32>\n"
        );
    }
    if group.is_some() {
        let n = layout.shared_sums(kernel);
        text += &format!(
            "  llvm.mlir.global internal @{sums_symbol}() {{addr_space = 3 : i32, alignment = 16 : i64}} : !llvm.array<{n} x f32>\n"
        );
    }
    if this.stash.bytes > 0 {
        text += &format!(
            "  llvm.mlir.global external @{}() {{addr_space = 3 : i32, alignment = 16 : i64}} : !llvm.array<0 x i8>\n",
            row_symbol(symbol)
        );
        launch.shared = this.stash.bytes as u32;
    }
    text += &f.finish(symbol, &types, &attributes(launch.block));
    Ok((text, launch))
}

impl Kernel<'_> {
    fn kernel_values(&self, f: &mut Function) -> Emitted<Scalars> {
        let mut scalars = vec![None; self.kernel.nodes.len()];
        for (index, node) in self.kernel.nodes.iter().enumerate() {
            if self.analysis.levels[index] == Level::Kernel {
                scalars[index] = Some(self.scalar(f, node, &scalars, &self.reads)?);
            }
        }
        Ok(scalars)
    }

    /// A thread a run of neighbours; those past the end of the last whole run go one by one.
    fn elements(&self, f: &mut Function, scalars: &Scalars, block: Value) -> Emitted<GpuLaunch> {
        let (threads, wide) = (self.layout.threads, u64::from(self.layout.wide));
        let all = self.kernel.rows * self.kernel.cols;
        let blocks = all.div_ceil(wide * u64::from(threads));
        let grid = u32::try_from(blocks).map_err(|_| format!("{all} elements are too many for a grid"))?;
        let launch = launch(self.symbol, [grid, 1], threads);
        let Some(pass) = self.analysis.passes.first() else { return Ok(launch) };
        let zero = f.index(0);
        let place = Place { reads: self.reads.clone(), writes: self.writes.clone(), before: zero };
        let block = f.zero_extend(block, Element::I64);
        let first = f.times(block, threads.into());
        let thread = f.zero_extend(self.thread, Element::I64);
        let run = f.addi(first, thread);
        let column = f.times(run, wide);
        let whole = all / wide * wide;
        let end = f.index(whole);
        let is_whole = f.order(Order::Less, column, end);
        let mut failed = None;
        f.only_if(is_whole, |f| {
            let at = Run { column, inside: None, ragged: None, kept: true };
            failed = self.flat_run(f, pass, scalars, &place, at, self.layout.wide).err();
        });
        if whole < all {
            let is_last = f.order(Order::Equal, column, end);
            f.only_if(is_last, |f| {
                for i in 0..all - whole {
                    let at = Run { column: f.plus(column, i), inside: None, ragged: None, kept: true };
                    failed = failed.take().or(self.flat_run(f, pass, scalars, &place, at, 1).err());
                }
            });
        }
        failed.map_or(Ok(launch), Err)
    }

    fn flat_run(
        &self,
        f: &mut Function,
        pass: &Pass,
        scalars: &Scalars,
        place: &Place,
        at: Run,
        wide: u32,
    ) -> Emitted<()> {
        let mut held = vec![None; self.kernel.nodes.len()];
        self.compute(f, pass, scalars, place, at, wide, &mut held)?;
        for &write in &pass.writes {
            self.write(f, write, scalars, &held, place, at, wide)?;
        }
        Ok(())
    }

    fn rows(&self, f: &mut Function, scalars: &Scalars, thread: Value, block: Value) -> Emitted<GpuLaunch> {
        let too_many = || format!("{} rows are too many for a grid", self.kernel.rows);
        let block_wide = f.zero_extend(block, Element::I64);
        if self.layout.threads > 32 {
            let grid = u32::try_from(self.kernel.rows).map_err(|_| too_many())?;
            self.row(f, scalars, block_wide, &Ready::default())?;
            return Ok(launch(self.symbol, [grid, 1], self.layout.threads));
        }
        let warps = u64::from(WARPS).min(self.kernel.rows);
        let grid = u32::try_from(self.kernel.rows.div_ceil(warps)).map_err(|_| too_many())?;
        let warp = f.shr(thread, 5);
        let warp = f.zero_extend(warp, Element::I64);
        let first = f.times(block_wide, warps);
        let row = f.addi(first, warp);
        let end = f.index(self.kernel.rows);
        let is_row = f.order(Order::Less, row, end);
        let mut failed = None;
        f.only_if(is_row, |f| failed = self.row(f, scalars, row, &Ready::default()).err());
        failed.map_or(Ok(launch(self.symbol, [grid, 1], warps as u32 * 32)), Err)
    }

    /// The run of a turn that is known when the kernel is written.
    fn run(&self, f: &mut Function, turn: u64) -> Run {
        let turn = f.int(Type::scalar(Element::I32), turn as i64);
        self.run_at(f, turn)
    }

    fn run_at(&self, f: &mut Function, turn: Value) -> Run {
        let Layout { threads, wide, turns, across, .. } = self.layout;
        let mut turn = turn;
        if across > 1 {
            let first = f.times(self.across, turns);
            turn = f.addi(first, turn);
        }
        let first = f.times(turn, threads.into());
        let run = f.addi(first, self.thread);
        let column = f.times(run, wide.into());
        let (cols, wide) = (self.kernel.cols, u64::from(wide));
        if u64::from(threads) * wide * turns * across == cols {
            return Run { column, inside: None, ragged: None, kept: true };
        }
        let (end, last) =
            (f.int(column.ty, cols as i64), f.int(column.ty, ((cols.div_ceil(wide) - 1) * wide) as i64));
        let inside = f.order(Order::Below, column, end);
        let ragged = self.layout.ragged.then_some(column);
        let column = match self.stash.bytes {
            0 => f.minu(column, last),
            // A thread looks at nothing in shared memory that is another's: its own first run is inside.
            _ => {
                let own = f.times(self.thread, wide);
                f.select(inside, column, own)
            }
        };
        Run { column, inside: Some(inside), ragged, kept: true }
    }

    /// A run of a turn of which all threads' runs are wholly inside.
    fn run_inside(&self, f: &mut Function, turn: Value) -> Run {
        let first = f.times(turn, self.layout.threads.into());
        let run = f.addi(first, self.thread);
        Run { column: f.times(run, self.layout.wide.into()), inside: None, ragged: None, kept: true }
    }

    /// Whether the i-th column of a run is one of the row's own; none if all are.
    fn is_inside(&self, f: &mut Function, run: Run, i: u32) -> Option<Value> {
        match run.ragged {
            Some(column) => {
                let column = f.plus(column, i.into());
                let end = f.int(column.ty, self.kernel.cols as i64);
                Some(f.order(Order::Below, column, end))
            }
            None => run.inside,
        }
    }

    /// The runs of a row that stay in registers, without values.
    fn held_runs(&self, f: &mut Function) -> Vec<HeldRun> {
        let turns = if self.layout.held { self.layout.turns } else { 0 };
        let nothing: Held = vec![None; self.kernel.nodes.len()];
        (0..turns)
            .map(|turn| HeldRun { run: self.run(f, turn), values: nothing.clone(), row: vec![] })
            .collect()
    }

    /// All passes over a row, but for what is ready of it; gives what is held of it.
    fn row(&self, f: &mut Function, scalars: &Scalars, row: Value, ready: &Ready) -> Emitted<Vec<HeldRun>> {
        let place = self.place(f, row)?;
        let mut scalars = scalars.clone();
        let mut held = self.held_runs(f);
        for (node, turn, values) in &ready.elements {
            held[*turn].values[*node] = Some(values.clone());
        }
        for (node, value) in &ready.rows {
            scalars[*node] = Some(*value);
        }
        self.fetch_stash(f, &place)?;
        let mut slot = 0;
        for stage in 0..=self.analysis.passes.len() {
            self.row_values(f, stage, &mut scalars, &place)?;
            let Some(pass) = self.analysis.passes.get(stage) else { continue };
            f.comment(format!("pass {stage}"));
            let totals = match self.layout.held {
                true => self.held_pass(f, pass, &scalars, &place, &mut held)?,
                false => self.looped_pass(f, pass, &scalars, &place)?,
            };
            let totals = self.over_threads(f, pass, totals, slot)?;
            slot += totals.len() as u32;
            for (&node, total) in pass.reduces.iter().zip(totals) {
                scalars[node.0 as usize] = Some(total);
            }
        }
        self.write_row_values(f, &scalars, &place)?;
        for run in &mut held {
            run.row.clone_from(&scalars);
        }
        Ok(held)
    }

    fn place(&self, f: &mut Function, row: Value) -> Emitted<Place> {
        let before = f.times(row, self.kernel.cols);
        let mut reads = vec![];
        for (read, &base) in self.kernel.reads.iter().zip(&self.reads) {
            reads.push(match &read.access {
                Access::Scalar => base,
                Access::Element(map) | Access::HalfRotated(map) | Access::Row(map) | Access::Table(map) => {
                    let row = mapped_row(f, self.kernel, &self.reads, map, row)?;
                    let first = f.times(row, read.stride);
                    f.offset(base, first, stored(read.dtype))
                }
            });
        }
        let mut writes = vec![];
        for (write, &base) in self.kernel.writes.iter().zip(&self.writes) {
            let first = f.times(row, write.stride);
            writes.push(f.offset(base, first, stored(write.dtype)));
        }
        Ok(Place { reads, writes, before })
    }

    fn row_values(
        &self,
        f: &mut Function,
        stage: usize,
        scalars: &mut Scalars,
        place: &Place,
    ) -> Emitted<()> {
        for (index, node) in self.kernel.nodes.iter().enumerate() {
            let ready = self.analysis.levels[index] == Level::Row && self.analysis.stages[index] == stage;
            if ready && scalars[index].is_none() && !matches!(node, Node::Reduce(..)) {
                scalars[index] = Some(self.scalar(f, node, scalars, &place.reads)?);
            }
        }
        Ok(())
    }

    fn scalar(&self, f: &mut Function, node: &Node, scalars: &Scalars, rows: &[Value]) -> Emitted<Value> {
        match node {
            Node::Load(input) => {
                let input = input.0 as usize;
                Ok(load(f, self.kernel.reads[input].dtype, rows[input], 1)[0])
            }
            Node::LoadAt(input, column) => {
                let input = input.0 as usize;
                // Held inside the row: what is read for an ignored target is dropped by a select.
                let column = known(scalars, *column)?;
                let last = f.int(column.ty, self.kernel.cols as i64 - 1);
                let column = f.minu(column, last);
                let column = f.zero_extend(column, Element::I64);
                let dtype = self.kernel.reads[input].dtype;
                let at = f.offset(rows[input], column, stored(dtype));
                Ok(load(f, dtype, at, 1)[0])
            }
            _ => emit_pure(f, Machine::Gpu, &self.analysis, node, 1, |n| known(scalars, n)),
        }
    }

    /// A pass over what registers hold; gives this thread's totals.
    fn held_pass(
        &self,
        f: &mut Function,
        pass: &Pass,
        scalars: &Scalars,
        place: &Place,
        held: &mut [HeldRun],
    ) -> Emitted<Values> {
        let wide = self.layout.wide;
        for run in held.iter_mut() {
            self.compute(f, pass, scalars, place, run.run, wide, &mut run.values)?;
        }
        let mut totals = self.neutrals(f, pass)?;
        for run in held.iter() {
            self.reduce(f, pass, scalars, &run.values, run.run, &mut totals)?;
        }
        for &write in &pass.writes {
            for run in held.iter() {
                self.write(f, write, scalars, &run.values, place, run.run, wide)?;
            }
        }
        Ok(totals)
    }

    /// A pass by a loop over turns, some at a time so that their reads overlap; the last one apart, if not all of its runs are inside.
    fn looped_pass(
        &self,
        f: &mut Function,
        pass: &Pass,
        scalars: &Scalars,
        place: &Place,
    ) -> Emitted<Values> {
        let mut totals = self.neutrals(f, pass)?;
        let whole = self.layout.whole_turns(self.kernel.cols);
        let kept = if self.stash.bytes > 0 { self.stash.turns.min(whole) } else { 0 };
        for (from, to, at_once) in [(0, kept, SHARED_AT_ONCE), (kept, whole, TURNS_AT_ONCE)] {
            let many = from + (to - from) / at_once * at_once;
            let kept = from < kept;
            if from < many {
                let ty = Type::scalar(Element::I32);
                let [first, end, step] = [from, many, at_once].map(|x| f.int(ty, x as i64));
                totals = f.for_range((first, end, step), &totals, |f, turn, totals| {
                    let runs = (0..at_once).map(|i| {
                        let turn = f.plus(turn, i);
                        Run { kept, ..self.run_inside(f, turn) }
                    });
                    let runs: Vec<Run> = runs.collect();
                    self.walked_runs(f, pass, scalars, place, &runs, totals)
                })?;
            }
            let rest: Vec<Run> = (many..to).map(|turn| Run { kept, ..self.run(f, turn) }).collect();
            totals = self.walked_runs(f, pass, scalars, place, &rest, &totals)?;
        }
        let last: Vec<Run> = (whole..self.layout.turns)
            .map(|turn| Run { kept: turn < self.stash.turns, ..self.run(f, turn) })
            .collect();
        self.walked_runs(f, pass, scalars, place, &last, &totals)
    }

    /// Runs of a pass whose values nobody keeps; gives the totals with them.
    fn walked_runs(
        &self,
        f: &mut Function,
        pass: &Pass,
        scalars: &Scalars,
        place: &Place,
        runs: &[Run],
        totals: &[Value],
    ) -> Emitted<Values> {
        let mut totals = totals.to_vec();
        let mut all = vec![];
        for &run in runs {
            let mut held = vec![None; self.kernel.nodes.len()];
            self.compute(f, pass, scalars, place, run, self.layout.wide, &mut held)?;
            all.push(held);
        }
        for (&run, held) in runs.iter().zip(&all) {
            self.reduce(f, pass, scalars, held, run, &mut totals)?;
        }
        for &write in &pass.writes {
            for (&run, held) in runs.iter().zip(&all) {
                self.write(f, write, scalars, held, place, run, self.layout.wide)?;
            }
        }
        Ok(totals)
    }

    fn neutrals(&self, f: &mut Function, pass: &Pass) -> Emitted<Values> {
        pass.reduces.iter().map(|&n| Ok(f.float(1, neutral(reduction(self.kernel, n)?.0)))).collect()
    }

    fn reduce(
        &self,
        f: &mut Function,
        pass: &Pass,
        scalars: &Scalars,
        held: &Held,
        run: Run,
        totals: &mut [Value],
    ) -> Emitted<()> {
        for (&node, total) in pass.reduces.iter().zip(totals) {
            let (function, x) = reduction(self.kernel, node)?;
            for i in 0..self.layout.wide {
                let mut value = value_of(scalars, held, x, i)?;
                if let Some(inside) = self.is_inside(f, run, i) {
                    let nothing = f.float(1, neutral(function));
                    value = f.select(inside, value, nothing);
                }
                *total = reduce_pair(f, function, *total, value);
            }
        }
        Ok(())
    }

    /// The element nodes of a pass that this run has no values of yet.
    #[expect(clippy::too_many_arguments, reason = "what a run is computed from")]
    fn compute(
        &self,
        f: &mut Function,
        pass: &Pass,
        scalars: &Scalars,
        place: &Place,
        run: Run,
        wide: u32,
        held: &mut Held,
    ) -> Emitted<()> {
        for &node in &pass.compute {
            if held[node.0 as usize].is_none() {
                let values = match self.stash.row(node.0 as usize).filter(|_| run.kept) {
                    Some(row) => self.stashed(f, row, run),
                    None => self.element(f, node, scalars, place, run, wide, held)?,
                };
                held[node.0 as usize] = Some(values);
            }
        }
        Ok(())
    }

    /// An operand's elements, from shared memory.
    fn stashed(&self, f: &mut Function, row: Stashed, run: Run) -> Values {
        let Node::Load(input) = self.kernel.nodes[row.node] else { return vec![] };
        let dtype = self.kernel.reads[input.0 as usize].dtype;
        let shared = stash::begin(f, &row_symbol(self.symbol), row);
        let at = address(f, dtype, shared, run.column);
        load(f, dtype, at, self.layout.wide)
    }

    /// Sends for a thread's runs of what is kept in shared memory, all at once, and waits until they are there.
    fn fetch_stash(&self, f: &mut Function, place: &Place) -> Emitted<()> {
        if self.stash.bytes == 0 {
            return Ok(());
        }
        let whole = self.layout.whole_turns(self.kernel.cols).min(self.stash.turns);
        let ty = Type::scalar(Element::I32);
        let range = (f.int(ty, 0), f.int(ty, whole as i64), f.int(ty, 1));
        f.fold(range, &[], |f, turn, _| {
            let run = self.run_inside(f, turn);
            self.fetch_run(f, place, run);
            vec![]
        });
        for turn in whole..self.layout.turns.min(self.stash.turns) {
            let run = self.run(f, turn);
            self.fetch_run(f, place, run);
        }
        f.commit_copies();
        f.await_copies(0);
        Ok(())
    }

    fn fetch_run(&self, f: &mut Function, place: &Place, run: Run) {
        for &row in self.stash.rows() {
            let Node::Load(input) = self.kernel.nodes[row.node] else { continue };
            let input = input.0 as usize;
            let dtype = self.kernel.reads[input].dtype;
            let shared = stash::begin(f, &row_symbol(self.symbol), row);
            let to = address(f, dtype, shared, run.column);
            let from = address(f, dtype, place.reads[input], run.column);
            let bytes = self.layout.wide * dtype.bytes() as u32;
            guarded(f, run.inside, |f| {
                for piece in (0..bytes).step_by(16) {
                    let (to, from) = (f.bytes_after(to, piece.into()), f.bytes_after(from, piece.into()));
                    f.copy_async(to, from, bytes.min(16), None);
                }
            });
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what a run is computed from")]
    fn element(
        &self,
        f: &mut Function,
        node: NodeId,
        scalars: &Scalars,
        place: &Place,
        run: Run,
        wide: u32,
        held: &Held,
    ) -> Emitted<Values> {
        match &self.kernel.nodes[node.0 as usize] {
            Node::Load(input) => {
                let read = &self.kernel.reads[input.0 as usize];
                let mut column = run.column;
                if matches!(read.access, Access::HalfRotated(_)) {
                    let cols = f.int(column.ty, self.kernel.cols as i64);
                    let partner = f.plus(column, self.kernel.cols / 2);
                    column = f.remu(partner, cols);
                }
                let at = address(f, read.dtype, place.reads[input.0 as usize], column);
                Ok(load(f, read.dtype, at, wide))
            }
            Node::Column => {
                let mut column = run.column;
                if column.ty.element == Element::I64 {
                    let cols = f.index(self.kernel.cols);
                    return Ok((0..wide)
                        .map(|i| {
                            let flat = f.plus(run.column, i.into());
                            column = f.remu(flat, cols);
                            f.truncate(column, Element::I32)
                        })
                        .collect());
                }
                Ok((0..wide).map(|i| f.plus(column, i.into())).collect())
            }
            &Node::Uniform { sample_elements, .. } => {
                let draw = draw_of(&self.draws, node)?;
                let column = match run.column.ty.element {
                    Element::I64 => run.column,
                    _ => f.zero_extend(run.column, Element::I64),
                };
                let element = f.addi(place.before, column);
                let element = f.addi(draw.first, element);
                let rows_whole = self.kernel.split == Split::Elements || self.kernel.cols.is_multiple_of(4);
                let mut values = vec![];
                if wide.is_multiple_of(4) && sample_elements % 4 == 0 && rows_whole {
                    for i in (0..wide).step_by(4) {
                        let element = f.plus(element, i.into());
                        values.extend(uniform_quads(f, &draw.stream, element));
                    }
                } else {
                    for i in 0..wide {
                        let element = f.plus(element, i.into());
                        values.push(uniform(f, &draw.stream, element));
                    }
                }
                Ok(values)
            }
            &Node::Unary(UnaryFn::Exp, x) if is_share(&self.kernel.nodes, node) => {
                (0..wide).map(|i| value_of(scalars, held, x, i).map(|x| exp_of_distance(f, x))).collect()
            }
            &Node::Binary(BinaryFn::Divide, a, sum) if is_sum_of_shares(&self.kernel.nodes, sum) => {
                let one = f.float(1, 1.0);
                let sum = known(scalars, sum)?;
                let share = f.div(one, sum);
                (0..wide).map(|i| value_of(scalars, held, a, i).map(|a| f.mul(a, share))).collect()
            }
            pure => (0..wide)
                .map(|i| {
                    emit_pure(f, Machine::Gpu, &self.analysis, pure, 1, |n| value_of(scalars, held, n, i))
                })
                .collect(),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what a run is written from")]
    fn write(
        &self,
        f: &mut Function,
        index: usize,
        scalars: &Scalars,
        held: &Held,
        place: &Place,
        run: Run,
        wide: u32,
    ) -> Emitted<()> {
        let write = &self.kernel.writes[index];
        let Target::Element(node) = write.what else { return Ok(()) };
        let kind = self.analysis.kind_of(node);
        let values: Values = (0..wide)
            .map(|i| {
                value_of(scalars, held, node, i).map(|v| for_result(f, kind, write.dtype != DType::I32, v))
            })
            .collect::<Emitted<_>>()?;
        if run.ragged.is_some() {
            self.write_ragged(f, write, &values, place.writes[index], run);
            return Ok(());
        }
        guarded(f, run.inside, |f| {
            let at = address(f, write.dtype, place.writes[index], run.column);
            put(f, write, &values, at);
        });
        Ok(())
    }

    /// All of a run at once where it is wholly inside, else one by one.
    fn write_ragged(&self, f: &mut Function, write: &Write, values: &[Value], row: Value, run: Run) {
        let Some(whole) = self.is_inside(f, run, self.layout.wide - 1) else { return };
        f.either(
            whole,
            |f| {
                let at = address(f, write.dtype, row, run.column);
                put(f, write, values, at);
            },
            |f| {
                for (i, value) in (0..).zip(values) {
                    let inside = self.is_inside(f, run, i);
                    guarded(f, inside, |f| {
                        let column = f.plus(run.column, i.into());
                        let at = address(f, write.dtype, row, column);
                        put(f, write, &[*value], at);
                    });
                }
            },
        );
    }

    fn write_row_values(&self, f: &mut Function, scalars: &Scalars, place: &Place) -> Emitted<()> {
        let mut results = vec![];
        for (write, &at) in self.kernel.writes.iter().zip(&place.writes) {
            if let Target::Row(node) = write.what {
                let value = known(scalars, node)?;
                results.push((
                    write,
                    for_result(f, self.analysis.kind_of(node), write.dtype != DType::I32, value),
                    at,
                ));
            }
        }
        if results.is_empty() {
            return Ok(());
        }
        let zero = f.int(self.thread.ty, 0);
        let is_first = f.order(Order::Equal, self.thread, zero);
        f.only_if(is_first, |f| {
            results.into_iter().for_each(|(write, value, at)| put(f, write, &[value], at))
        });
        Ok(())
    }

    /// Waits for all threads of the row.
    fn wait(&self, f: &mut Function) {
        match self.group {
            Some(group) => {
                let (number, threads) = (f.plus(group, 1), f.int32(self.layout.threads.into()));
                f.assembly("bar.sync $0, $1;", &[], &[], &[number, threads]);
            }
            None => f.barrier(),
        }
    }

    /// A pass's reductions over all threads of a row, known to all: however many, the block waits as often as for one.
    fn over_threads(&self, f: &mut Function, pass: &Pass, totals: Values, slot: u32) -> Emitted<Values> {
        let functions: Vec<ReduceFn> = pass
            .reduces
            .iter()
            .map(|&n| reduction(self.kernel, n).map(|(function, _)| function))
            .collect::<Emitted<_>>()?;
        let totals: Values =
            functions.iter().zip(totals).map(|(&function, total)| over_warp(f, function, total)).collect();
        let (Some(mut shared), false) = (self.shared, totals.is_empty()) else { return Ok(totals) };
        let warps = self.layout.threads / 32;
        let lane_mask = f.int(self.thread.ty, 31);
        let lane = f.and(self.thread, lane_mask);
        let zero = f.int(lane.ty, 0);
        let is_first = f.order(Order::Equal, lane, zero);
        let warp = f.shr(self.thread, 5);
        if let Some(group) = self.group {
            let reductions =
                self.kernel.nodes.iter().filter(|n| matches!(n, Node::Reduce(..))).count() as u64;
            let first = f.times(group, reductions * u64::from(warps));
            shared = f.offset(shared, first, Element::F32);
        }
        f.only_if(is_first, |f| {
            for (slot, &total) in (slot..).zip(&totals) {
                let index = f.plus(warp, (slot * warps).into());
                let to = f.offset(shared, index, Element::F32);
                f.store(total, to, 4);
            }
        });
        self.wait(f);
        let mut all = vec![];
        for (slot, function) in (slot..).zip(functions) {
            let mut parts = vec![];
            for warp in 0..warps {
                let index = f.int(Type::scalar(Element::I32), (slot * warps + warp).into());
                let from = f.offset(shared, index, Element::F32);
                parts.push(f.load(from, Type::scalar(Element::F32), 4));
            }
            let first = parts[0];
            all.push(parts[1..].iter().fold(first, |sum, &part| reduce_pair(f, function, sum, part)));
        }
        if matches!(self.kernel.split, Split::Chunks(_)) {
            // The next row writes the same numbers.
            self.wait(f);
        }
        Ok(all)
    }
}

/// The shared memory of a row that is kept there.
fn row_symbol(symbol: &str) -> String {
    format!("{symbol}_row")
}

/// One number of a warp's lanes, known to all: a butterfly.
fn over_warp(f: &mut Function, function: ReduceFn, total: Value) -> Value {
    let int = Type::scalar(Element::I32);
    [16, 8, 4, 2, 1].into_iter().fold(total, |total, distance| {
        let (all, distance, clamp) = (f.int(int, -1), f.int(int, distance), f.int(int, 31));
        let other = f
            .value(total.ty, format!("nvvm.shfl.sync bfly {all}, {total}, {distance}, {clamp} : f32 -> f32"));
        reduce_pair(f, function, total, other)
    })
}

/// A run, its values, and those of its row.
struct HeldRun {
    run: Run,
    values: Held,
    row: Scalars,
}

fn row_value(run: &HeldRun, node: NodeId) -> Emitted<Value> {
    known(&run.row, node)
}

/// A node's value at the i-th column of a run: its own, or the row's.
fn value_of(scalars: &Scalars, held: &Held, node: NodeId, i: u32) -> Emitted<Value> {
    match &held[node.0 as usize] {
        Some(values) => Ok(values[i as usize]),
        None => known(scalars, node),
    }
}

fn address(f: &mut Function, dtype: DType, row: Value, column: Value) -> Value {
    let column = match column.ty.element {
        Element::I64 => column,
        _ => f.zero_extend(column, Element::I64),
    };
    f.offset(row, column, stored(dtype))
}

fn guarded(f: &mut Function, inside: Option<Value>, body: impl FnOnce(&mut Function)) {
    match inside {
        None => body(f),
        Some(inside) => f.only_if(inside, body),
    }
}

/// Stores neighbours, on top of what is there if the write says so.
fn put(f: &mut Function, write: &Write, values: &[Value], at: Value) {
    let values: Values = match write.accumulate {
        true => {
            let before = load(f, write.dtype, at, values.len() as u32);
            let add = |(a, b): (Value, &Value)| {
                if write.dtype == DType::I32 { f.addi(a, *b) } else { f.add(a, *b) }
            };
            before.into_iter().zip(values).map(add).collect()
        }
        false => values.to_vec(),
    };
    store(f, write.dtype, &values, at);
}
