//! Row kernels for a CPU: a loop over items, and in it a walk over the columns for each pass, a few vectors at a time.
//!
//! A walk is a loop over blocks of `unroll` vectors, then what is left of the row as one shorter block whose last vector is masked; all
//! of it is known when the kernel is compiled. Each vector of a block has an accumulator of its own for each reduction; they are added as
//! a tree at the end, so the sum's order is a function of the row's length and the machine's vector width alone.
//!
//! Column sums of a chunk are kept in f32 in a row on the stack, which the first cache holds, and written when the chunk's last row is done.

use super::combine::combine;
use super::memory::{Mask, address, load, store};
use crate::mlir::{Element, Function, Order, Type, Value};
use crate::row::{Analysis, Draw, Level, Pass, Stream, Target as Machine};
use crate::row::{draw_of, draws, known, mapped_row, reduce_pair, reduction, target_node};
use crate::row::{emit_pure, for_result, neutral, operands, uniform, uniform_quads, weight};
use dspc_graph::ir::DType;
use dspc_graph::rowfn::{Access, Node, NodeId};
use dspc_kernel::describe::{RowKernel, Split, Target, Write};

/// Stack memory that one kernel may take: rows of column sums.
const STACK_BYTES_MAX: u64 = 512 << 10;

/// Dear values that later passes need are kept in row buffers up to this size, what a first and second cache hold; else computed again.
const KEPT_BYTES_MAX: u64 = 64 << 10;

type Values = Vec<Value>;
type Emitted<T> = Result<T, String>;

/// What stays the same while a kernel is written.
struct Kernel<'k> {
    kernel: &'k RowKernel,
    analysis: Analysis,
    lanes: u32,
    /// Operands' addresses.
    reads: Values,
    /// Results' addresses.
    writes: Values,
    /// By kept node, its row buffer.
    kept: Vec<(NodeId, Value)>,
    /// By write, the row of a column sum.
    sums: Vec<Option<Value>>,
    draws: Vec<Draw>,
}

/// Values of the nodes that are worth one for the kernel or the row.
#[derive(Clone)]
struct Scalars {
    values: Vec<Option<Value>>,
    /// The same in all lanes.
    spread: Vec<Option<Value>>,
}

/// Where a walk takes place.
struct Place {
    /// By operand, the address of the row's first element.
    reads: Values,
    /// By result.
    writes: Values,
    /// Elements before this row.
    before: Value,
}

/// A run of vectors in a walk.
struct Block {
    /// Column of the first lane.
    column: Value,
    /// Vectors.
    count: u32,
    /// Of the last vector; the others are whole.
    last: Mask,
    /// From a column to its partner in a half-rotated operand.
    partner: i64,
    /// Whether its first element's number, as random numbers count, is a multiple of four.
    quads: bool,
}

/// Writes a kernel.
pub(super) fn emit(symbol: &str, kernel: &RowKernel, lanes: u32) -> Emitted<String> {
    let arguments = [Function::pointer_type(), Type::scalar(Element::I64), Type::scalar(Element::I64)];
    let (mut f, args) = Function::new(&arguments);
    let &[table, begin, end] = args.as_slice() else {
        return Err("three arguments".to_string());
    };
    let mut this = Kernel {
        kernel,
        analysis: Analysis::of(kernel, KEPT_BYTES_MAX)?,
        lanes,
        reads: vec![],
        writes: vec![],
        kept: vec![],
        sums: vec![],
        draws: vec![],
    };
    let scalars = this.prologue(&mut f, table)?;
    match kernel.split {
        Split::Elements => this.elements(&mut f, &scalars, begin, end)?,
        Split::Rows => this.rows(&mut f, &scalars, begin, end)?,
        Split::Chunks(rows) => this.chunks(&mut f, &scalars, rows, begin, end)?,
    }
    Ok(f.finish(symbol, &arguments, ""))
}

impl Kernel<'_> {
    /// Addresses, stack rows, and the values that are the same for all rows.
    fn prologue(&mut self, f: &mut Function, table: Value) -> Emitted<Scalars> {
        let (pointer, long) = (Function::pointer_type(), Type::scalar(Element::I64));
        let (reads, writes) = (self.kernel.reads.len(), self.kernel.writes.len());
        let argument = |f: &mut Function, i: usize, ty: Type| {
            let i = f.index(i as u64);
            let at = f.offset(table, i, Element::I64);
            f.load(at, ty, 8)
        };
        self.reads = (0..reads).map(|i| argument(f, i, pointer)).collect();
        self.writes = (0..writes).map(|i| argument(f, reads + i, pointer)).collect();
        let turn = self.kernel.uses_turn().then(|| argument(f, reads + writes, long));
        let cols = self.kernel.cols;
        let is_sum = |w: &Write| matches!(w.what, Target::ColumnSum(_));
        let rows = self.kernel.writes.iter().filter(|w| is_sum(w)).count() as u64;
        if rows * cols * 4 > STACK_BYTES_MAX {
            return Err(format!("{rows} column sums of {cols} columns are more than the stack should hold"));
        }
        self.sums = self.kernel.writes.iter().map(|w| is_sum(w).then(|| f.stack(cols))).collect();
        let kept: Vec<_> = self.analysis.passes.iter().flat_map(|p| p.keep.clone()).collect();
        self.kept = kept.into_iter().map(|node| (node, f.stack(cols))).collect();
        if let Some(turn) = turn {
            self.draws = draws(f, self.kernel, &self.reads, turn);
        }
        let nothing = vec![None; self.kernel.nodes.len()];
        let mut scalars = Scalars { values: nothing.clone(), spread: nothing };
        for (index, node) in self.kernel.nodes.iter().enumerate() {
            if self.analysis.levels[index] == Level::Kernel {
                let value = self.scalar(f, node, &scalars, None)?;
                scalars.values[index] = Some(value);
            }
        }
        Ok(scalars)
    }

    /// Items are elements: one flat run.
    fn elements(&self, f: &mut Function, scalars: &Scalars, begin: Value, end: Value) -> Emitted<()> {
        let Some(pass) = self.analysis.passes.first() else { return Ok(()) };
        if self.analysis.passes.len() > 1 {
            return Err("an element-wise kernel with reductions".to_string());
        }
        let mut scalars = scalars.clone();
        self.spread(f, pass, &mut scalars)?;
        let zero = f.index(0);
        let place = Place { reads: self.reads.clone(), writes: self.writes.clone(), before: zero };
        let unroll = self.unroll(pass);
        let (vector, block) = (f.index(self.lanes.into()), f.index((self.lanes * unroll).into()));
        let steps: Vec<i64> = (0..self.lanes.into()).collect();
        let steps = f.lanes(Element::I64, &steps);
        let masked = |f: &mut Function, from: Value, to: Value| {
            f.for_range((from, to, vector), &[], |f, column, _| {
                let left = f.subi(to, column);
                let left = f.broadcast(left, self.lanes);
                let mask = f.order(Order::Less, steps, left);
                let at = Block { column, count: 1, last: Mask::Lanes(mask), partner: 0, quads: false };
                self.block(f, pass, &scalars, &place, &at, &[])
            })
        };
        let quads = self.draws_quads();
        let mut first = begin;
        if quads {
            f.comment("up to a multiple of four");
            let up = f.plus(begin, 3);
            let mask = f.int(up.ty, -4);
            let up = f.and(up, mask);
            first = f.minu(up, end);
            masked(f, begin, first)?;
        }
        let size = f.subi(end, first);
        let rest = f.remu(size, block);
        let whole = f.subi(end, rest);
        f.for_range((first, whole, block), &[], |f, column, _| {
            let at = Block { column, count: unroll, last: Mask::All, partner: 0, quads };
            self.block(f, pass, &scalars, &place, &at, &[])
        })?;
        f.comment("what is left, a vector at a time");
        masked(f, whole, end)?;
        Ok(())
    }

    /// Whether random numbers are drawn for elements whose numbers begin at multiples of four, samples and rows being whole fours.
    fn draws_quads(&self) -> bool {
        let flat = self.kernel.split == Split::Elements || self.kernel.cols.is_multiple_of(4);
        let mut samples = self.kernel.nodes.iter().filter_map(|node| match node {
            Node::Uniform { sample_elements, .. } => Some(*sample_elements),
            _ => None,
        });
        flat && self.kernel.uses_turn() && samples.all(|elements| elements.is_multiple_of(4))
    }

    /// Items are rows.
    fn rows(&self, f: &mut Function, scalars: &Scalars, begin: Value, end: Value) -> Emitted<()> {
        let one = f.index(1);
        f.for_range((begin, end, one), &[], |f, row, _| self.row(f, scalars, row).map(|()| vec![]))?;
        Ok(())
    }

    /// Items are runs of rows with column sums.
    fn chunks(
        &self,
        f: &mut Function,
        scalars: &Scalars,
        rows: u64,
        begin: Value,
        end: Value,
    ) -> Emitted<()> {
        let one = f.index(1);
        f.for_range((begin, end, one), &[], |f, item, _| {
            self.zero_sums(f)?;
            let first = f.times(item, rows);
            let last = f.plus(first, rows);
            let all = f.index(self.kernel.rows);
            let last = f.minu(last, all);
            f.for_range((first, last, one), &[], |f, row, _| self.row(f, scalars, row).map(|()| vec![]))?;
            self.write_sums(f, item)?;
            Ok::<_, String>(vec![])
        })?;
        Ok(())
    }

    /// All passes over one row, and the values it is worth.
    fn row(&self, f: &mut Function, scalars: &Scalars, row: Value) -> Emitted<()> {
        let before = f.times(row, self.kernel.cols);
        let mut reads = vec![];
        for (read, &base) in self.kernel.reads.iter().zip(&self.reads) {
            reads.push(match &read.access {
                Access::Scalar => base,
                Access::Element(map) | Access::HalfRotated(map) | Access::Row(map) | Access::Table(map) => {
                    let row = mapped_row(f, self.kernel, &self.reads, map, row)?;
                    let first = f.times(row, read.stride);
                    address(f, read.dtype, base, first)
                }
            });
        }
        let mut writes = vec![];
        for (write, &base) in self.kernel.writes.iter().zip(&self.writes) {
            let first = f.times(row, write.stride);
            writes.push(address(f, write.dtype, base, first));
        }
        let place = Place { reads, writes, before };
        let mut scalars = scalars.clone();
        for stage in 0..=self.analysis.passes.len() {
            self.row_values(f, stage, &mut scalars, &place)?;
            if let Some(pass) = self.analysis.passes.get(stage) {
                f.comment(format!("pass {stage}"));
                self.spread(f, pass, &mut scalars)?;
                self.walk(f, pass, &mut scalars, &place)?;
            }
        }
        self.write_row_values(f, &scalars, &place)
    }

    /// Row values that can be computed once `stage` passes are over.
    fn row_values(
        &self,
        f: &mut Function,
        stage: usize,
        scalars: &mut Scalars,
        place: &Place,
    ) -> Emitted<()> {
        for (index, node) in self.kernel.nodes.iter().enumerate() {
            let ready = self.analysis.levels[index] == Level::Row && self.analysis.stages[index] == stage;
            if ready && !matches!(node, Node::Reduce(..)) {
                let value = self.scalar(f, node, scalars, Some(place))?;
                scalars.values[index] = Some(value);
            }
        }
        Ok(())
    }

    /// A node that is worth one value.
    fn scalar(
        &self,
        f: &mut Function,
        node: &Node,
        scalars: &Scalars,
        place: Option<&Place>,
    ) -> Emitted<Value> {
        let rows = place.map_or(&self.reads, |p| &p.reads);
        match node {
            Node::Load(input) => {
                let input = input.0 as usize;
                Ok(load(f, self.kernel.reads[input].dtype, rows[input], 1, Mask::All))
            }
            Node::LoadAt(input, column) => {
                let input = input.0 as usize;
                // A target that is to be ignored may index nothing: its column is held inside, and a select drops what is read.
                let column = scalars.value(*column)?;
                let last = f.int(column.ty, self.kernel.cols as i64 - 1);
                let column = f.minu(column, last);
                let column = f.zero_extend(column, Element::I64);
                let dtype = self.kernel.reads[input].dtype;
                let at = address(f, dtype, rows[input], column);
                Ok(load(f, dtype, at, 1, Mask::All))
            }
            _ => emit_pure(f, Machine::Cpu, &self.analysis, node, 1, |n| scalars.value(n)),
        }
    }

    /// Puts the scalars that a pass uses in all lanes, before its loop.
    fn spread(&self, f: &mut Function, pass: &Pass, scalars: &mut Scalars) -> Emitted<()> {
        let nodes = &self.kernel.nodes;
        let used = pass.compute.iter().chain(&pass.reduces).flat_map(|n| operands(&nodes[n.0 as usize]));
        let written = pass.writes.iter().map(|&w| target_node(self.kernel.writes[w].what));
        for node in used.chain(written) {
            let index = node.0 as usize;
            if self.analysis.levels[index] < Level::Element && scalars.spread[index].is_none() {
                let value = scalars.value(node)?;
                scalars.spread[index] = Some(f.broadcast(value, self.lanes));
            }
        }
        Ok(())
    }

    /// Vectors a block holds: enough to hide latencies, few enough for registers.
    fn unroll(&self, pass: &Pass) -> u32 {
        let is_random = |n: &NodeId| matches!(self.kernel.nodes[n.0 as usize], Node::Uniform { .. });
        if self.draws_quads() && pass.compute.iter().any(is_random) {
            return 4;
        }
        let weight: u32 = pass.compute.iter().map(|n| weight(&self.kernel.nodes[n.0 as usize])).sum();
        match weight {
            0..=20 => 4,
            21..=60 => 2,
            _ => 1,
        }
    }

    /// One pass over the columns; leaves the reductions in `scalars`.
    fn walk(&self, f: &mut Function, pass: &Pass, scalars: &mut Scalars, place: &Place) -> Emitted<()> {
        let unroll = self.unroll(pass);
        let functions: Vec<_> =
            pass.reduces.iter().map(|n| reduction(self.kernel, *n)).collect::<Emitted<_>>()?;
        let mut sums: Values = vec![];
        for &(function, _) in &functions {
            sums.extend((0..unroll).map(|_| f.float(self.lanes, neutral(function))));
        }
        for (from, to, partner) in self.segments() {
            let quads = self.draws_quads() && from.is_multiple_of(4);
            let block = u64::from(self.lanes * unroll);
            let whole = (to - from) / block * block;
            if whole > 0 {
                let range = (f.index(from), f.index(from + whole), f.index(block));
                sums = f.for_range(range, &sums, |f, column, sums| {
                    let at = Block { column, count: unroll, last: Mask::All, partner, quads };
                    self.block(f, pass, scalars, place, &at, sums)
                })?;
            }
            let left = to - from - whole;
            if left > 0 {
                let column = f.index(from + whole);
                let count = left.div_ceil(self.lanes.into()) as u32;
                let tail = (left % u64::from(self.lanes)) as i64;
                let inside: Vec<_> = (0..self.lanes.into()).map(|lane| i64::from(lane < tail)).collect();
                let last = if tail == 0 { Mask::All } else { Mask::Lanes(f.lanes(Element::I1, &inside)) };
                let at = Block { column, count, last, partner, quads };
                sums = self.block(f, pass, scalars, place, &at, &sums)?;
            }
        }
        for (index, (&node, &(function, _))) in pass.reduces.iter().zip(&functions).enumerate() {
            let lanes = &sums[index * unroll as usize..(index + 1) * unroll as usize];
            scalars.values[node.0 as usize] = Some(combine(f, function, lanes));
        }
        Ok(())
    }

    /// Runs of columns in which a half-rotated operand is at one distance.
    fn segments(&self) -> Vec<(u64, u64, i64)> {
        let cols = self.kernel.cols;
        let rotated = self.kernel.reads.iter().any(|r| matches!(r.access, Access::HalfRotated(_)));
        let half = (cols / 2) as i64;
        let middle = cols - cols / 2;
        match rotated {
            true => vec![(0, middle, half), (middle, cols, half - cols as i64)],
            false => vec![(0, cols, 0)],
        }
        .into_iter()
        .filter(|(from, to, _)| from < to)
        .collect()
    }

    /// A few vectors of a pass: loads, functions, reductions, stores. Gives the accumulators back.
    fn block(
        &self,
        f: &mut Function,
        pass: &Pass,
        scalars: &Scalars,
        place: &Place,
        at: &Block,
        sums: &[Value],
    ) -> Emitted<Values> {
        let mut values: Vec<Vec<Option<Value>>> = vec![scalars.spread.clone(); at.count as usize];
        for &node in &pass.reload {
            for (u, values) in (0..).zip(&mut values) {
                let (pointer, mask) = (self.row_buffer(f, node, at, u)?, at.mask(u));
                values[node.0 as usize] = Some(load(f, DType::F32, pointer, self.lanes, mask));
            }
        }
        for &node in &pass.compute {
            let random = matches!(self.kernel.nodes[node.0 as usize], Node::Uniform { .. });
            if random && at.quads && (2..=4).contains(&at.count) {
                for (values, drawn) in values.iter_mut().zip(self.quads(f, node, place, at)?) {
                    values[node.0 as usize] = Some(drawn);
                }
                continue;
            }
            for (u, values) in (0..).zip(&mut values) {
                let value = self.element(f, node, values, place, at, u)?;
                values[node.0 as usize] = Some(value);
            }
        }
        for &node in &pass.keep {
            for (u, values) in (0..).zip(&values) {
                let (pointer, mask) = (self.row_buffer(f, node, at, u)?, at.mask(u));
                store(f, DType::F32, known(values, node)?, pointer, mask);
            }
        }
        let sums = self.reduce(f, pass, &values, at, sums)?;
        for &write in &pass.writes {
            for (u, values) in (0..).zip(&values) {
                self.write(f, write, values, place, at, u)?;
            }
        }
        Ok(sums)
    }

    fn reduce(
        &self,
        f: &mut Function,
        pass: &Pass,
        values: &[Vec<Option<Value>>],
        at: &Block,
        sums: &[Value],
    ) -> Emitted<Values> {
        let mut sums = sums.to_vec();
        let unroll = sums.len() / pass.reduces.len().max(1);
        for (index, &node) in pass.reduces.iter().enumerate() {
            let (function, x) = reduction(self.kernel, node)?;
            for (u, values) in values.iter().enumerate() {
                let mut x = known(values, x)?;
                if let Mask::Lanes(mask) = at.mask(u as u32) {
                    let nothing = f.float(self.lanes, neutral(function));
                    x = f.select(mask, x, nothing);
                }
                let sum = &mut sums[index * unroll + u];
                *sum = reduce_pair(f, function, *sum, x);
            }
        }
        Ok(sums)
    }

    /// The vector of an element node.
    fn element(
        &self,
        f: &mut Function,
        node: NodeId,
        values: &[Option<Value>],
        place: &Place,
        at: &Block,
        u: u32,
    ) -> Emitted<Value> {
        let lanes = self.lanes;
        match &self.kernel.nodes[node.0 as usize] {
            Node::Load(input) => {
                let read = &self.kernel.reads[input.0 as usize];
                let partner = if matches!(read.access, Access::HalfRotated(_)) { at.partner } else { 0 };
                let column = at.column(f, lanes, u);
                let by = f.int(column.ty, partner);
                let column = if partner == 0 { column } else { f.addi(column, by) };
                let pointer = address(f, read.dtype, place.reads[input.0 as usize], column);
                Ok(load(f, read.dtype, pointer, lanes, at.mask(u)))
            }
            Node::Column => {
                let mut column = at.column(f, lanes, u);
                let steps: Vec<i64> = (0..lanes.into()).collect();
                if self.kernel.split == Split::Elements {
                    let steps = f.lanes(Element::I64, &steps);
                    let cols = f.int(steps.ty, self.kernel.cols as i64);
                    column = f.broadcast(column, lanes);
                    let flat = f.addi(column, steps);
                    let column = f.remu(flat, cols);
                    return Ok(f.truncate(column, Element::I32));
                }
                let steps = f.lanes(Element::I32, &steps);
                let first = f.truncate(column, Element::I32);
                let first = f.broadcast(first, lanes);
                Ok(f.addi(first, steps))
            }
            Node::Uniform { .. } => {
                let (stream, element) = self.random_element(f, node, place, at, u)?;
                let element = f.broadcast(element, lanes);
                let steps: Vec<i64> = (0..lanes.into()).collect();
                let steps = f.lanes(Element::I64, &steps);
                let elements = f.addi(element, steps);
                Ok(uniform(f, &stream, elements))
            }
            pure => emit_pure(f, Machine::Cpu, &self.analysis, pure, lanes, |n| known(values, n)),
        }
    }

    /// Who draws, and the number of the element in the first lane of a vector.
    fn random_element(
        &self,
        f: &mut Function,
        node: NodeId,
        place: &Place,
        at: &Block,
        u: u32,
    ) -> Emitted<(Stream, Value)> {
        let draw = draw_of(&self.draws, node)?;
        let column = at.column(f, self.lanes, u);
        let element = f.addi(place.before, column);
        Ok((draw.stream, f.addi(draw.first, element)))
    }

    /// Random numbers of up to four vectors: a lane draws four neighbours, which then change places to lie in a row.
    fn quads(&self, f: &mut Function, node: NodeId, place: &Place, at: &Block) -> Emitted<Values> {
        let lanes = self.lanes;
        let (stream, element) = self.random_element(f, node, place, at, 0)?;
        let steps: Vec<i64> = (0..lanes.into()).map(|lane: i64| 4 * lane).collect();
        let steps = f.lanes(Element::I64, &steps);
        let element = f.broadcast(element, lanes);
        let firsts = f.addi(element, steps);
        let [a, b, c, d] = uniform_quads(f, &stream, firsts);
        let vectors = (0..at.count).map(|u| {
            let counter = |lane: u32| u * (lanes / 4) + lane / 4;
            let pair: Vec<u32> = (0..lanes).map(|lane| counter(lane) + lane % 2 * lanes).collect();
            let (ab, cd) = (f.shuffle(a, b, &pair), f.shuffle(c, d, &pair));
            let both: Vec<u32> =
                (0..lanes).map(|lane| if lane % 4 < 2 { lane } else { lane + lanes }).collect();
            f.shuffle(ab, cd, &both)
        });
        Ok(vectors.collect())
    }

    fn row_buffer(&self, f: &mut Function, node: NodeId, at: &Block, u: u32) -> Emitted<Value> {
        let buffer = self.kept.iter().find(|(n, _)| *n == node).map(|&(_, buffer)| buffer);
        let buffer = buffer.ok_or_else(|| format!("node {} has no row buffer", node.0))?;
        let column = at.column(f, self.lanes, u);
        Ok(address(f, DType::F32, buffer, column))
    }

    fn write(
        &self,
        f: &mut Function,
        index: usize,
        values: &[Option<Value>],
        place: &Place,
        at: &Block,
        u: u32,
    ) -> Emitted<()> {
        let write = &self.kernel.writes[index];
        let node = target_node(write.what);
        let value = known(values, node)?;
        let column = at.column(f, self.lanes, u);
        let mask = at.mask(u);
        if let Some(sum) = self.sums[index] {
            let pointer = address(f, DType::F32, sum, column);
            let before = load(f, DType::F32, pointer, self.lanes, mask);
            let after = f.add(before, value);
            store(f, DType::F32, after, pointer, mask);
            return Ok(());
        }
        let value = for_result(f, self.analysis.kind_of(node), write.dtype != DType::I32, value);
        let pointer = address(f, write.dtype, place.writes[index], column);
        put(f, write, value, pointer, mask);
        Ok(())
    }

    fn write_row_values(&self, f: &mut Function, scalars: &Scalars, place: &Place) -> Emitted<()> {
        for (write, &pointer) in self.kernel.writes.iter().zip(&place.writes) {
            if let Target::Row(node) = write.what {
                let value = scalars.value(node)?;
                let value = for_result(f, self.analysis.kind_of(node), write.dtype != DType::I32, value);
                put(f, write, value, pointer, Mask::All);
            }
        }
        Ok(())
    }

    /// Walks whole stack rows, which are as long as a multiple of a vector.
    fn over_sums(
        &self,
        f: &mut Function,
        body: impl FnOnce(&mut Function, Value) -> Emitted<()>,
    ) -> Emitted<()> {
        let (from, to) = (f.index(0), f.index(self.kernel.cols.next_multiple_of(self.lanes.into())));
        let step = f.index(self.lanes.into());
        f.for_range((from, to, step), &[], |f, column, _| body(f, column).map(|()| vec![]))?;
        Ok(())
    }

    fn zero_sums(&self, f: &mut Function) -> Emitted<()> {
        let zero = f.float(self.lanes, 0.0);
        self.over_sums(f, |f, column| {
            for &sum in self.sums.iter().flatten() {
                let pointer = address(f, DType::F32, sum, column);
                store(f, DType::F32, zero, pointer, Mask::All);
            }
            Ok(())
        })
    }

    fn write_sums(&self, f: &mut Function, item: Value) -> Emitted<()> {
        let steps: Vec<i64> = (0..self.lanes.into()).collect();
        let steps = f.lanes(Element::I64, &steps);
        let cols = f.int(steps.ty, self.kernel.cols as i64);
        self.over_sums(f, |f, column| {
            let first = f.broadcast(column, self.lanes);
            let columns = f.addi(first, steps);
            let mask = Mask::Lanes(f.order(Order::Less, columns, cols));
            for (index, write) in self.kernel.writes.iter().enumerate() {
                let Some(sum) = self.sums[index] else { continue };
                let pointer = address(f, DType::F32, sum, column);
                let value = load(f, DType::F32, pointer, self.lanes, Mask::All);
                let row = f.times(item, write.stride);
                let at = f.addi(row, column);
                let pointer = address(f, write.dtype, self.writes[index], at);
                put(f, write, value, pointer, mask);
            }
            Ok(())
        })
    }
}

impl Scalars {
    fn value(&self, node: NodeId) -> Emitted<Value> {
        known(&self.values, node)
    }
}

impl Block {
    fn mask(&self, u: u32) -> Mask {
        if u + 1 == self.count { self.last } else { Mask::All }
    }

    fn column(&self, f: &mut Function, lanes: u32, u: u32) -> Value {
        f.plus(self.column, (lanes * u).into())
    }
}

/// Stores a result, on top of what is there if the write says so.
fn put(f: &mut Function, write: &Write, value: Value, pointer: Value, mask: Mask) {
    let value = match write.accumulate {
        true => {
            let before = load(f, write.dtype, pointer, value.lanes(), mask);
            if write.dtype == DType::I32 { f.addi(before, value) } else { f.add(before, value) }
        }
        false => value,
    };
    store(f, write.dtype, value, pointer, mask);
}
