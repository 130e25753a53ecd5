//! Chunks of rows: a block walks its chunk, several rows at a time, and adds columns up in registers.
//!
//! A *group* of threads has a row, and the block as many groups as it takes to keep memory busy: while one waits for the others of its row, the next
//! row's operands are on their way already. At the end the groups' sums are added in order through shared memory: the same tree at every run.

use super::{Emitted, HeldRun, Kernel, Scalars, Values, guarded, put, row_value, value_of};
use crate::gpu::launch;
use crate::gpu::memory::{load, load_packed, packs, store, stored, unpack};
use crate::mlir::{Element, Function, Order, Space, Type, Value};
use crate::row::target_node;
use dspc_graph::ir::DType;
use dspc_graph::rowfn::{Access, Node, RowMap};
use dspc_kernel::describe::{Target, Write};
use dspc_program::GpuLaunch;

/// What is read before a row is walked: by node, values of each turn of an operand's elements, or of the row.
#[derive(Clone, Default)]
pub(super) struct Ready {
    /// Node, turn, values.
    pub elements: Vec<(usize, usize, Values)>,
    /// Node, value.
    pub rows: Vec<(usize, Value)>,
}

impl Kernel<'_> {
    /// A block a chunk.
    pub(super) fn chunks(
        &self,
        f: &mut Function,
        scalars: &Scalars,
        rows: u64,
        block: Value,
    ) -> Emitted<GpuLaunch> {
        let layout = self.layout;
        let groups = u64::from(layout.groups);
        let (chunks, across_blocks) = (self.kernel.rows.div_ceil(rows), layout.across);
        let grid = [chunks, across_blocks].map(u32::try_from);
        let [Ok(x), Ok(y)] = grid else { return Err(format!("{chunks} chunks are too many for a grid")) };
        let item = f.zero_extend(block, Element::I64);
        let first = f.times(item, rows);
        let end = f.plus(first, rows);
        let all = f.index(self.kernel.rows);
        let end = f.minu(end, all);
        let start = match self.group {
            Some(group) => {
                let group = f.zero_extend(group, Element::I64);
                f.addi(first, group)
            }
            None => first,
        };
        let step = f.index(groups);
        let sums: Vec<usize> = self.column_sums().collect();
        let per_sum = (layout.turns * u64::from(layout.wide)) as usize;
        let zero = f.float(1, 0.0);
        let same = self.of_all_rows(f);
        let one = f.index(1);
        let last = f.subi(end, one);
        let ahead = self.packed_row(f, start, last)?;
        let mut carried = vec![zero; sums.len() * per_sum];
        carried.extend(&ahead);
        let carried = f.for_range((start, end, step), &carried, |f, row, carried| {
            let (sums_before, packed) = carried.split_at(sums.len() * per_sum);
            let next_row = f.addi(row, step);
            let ahead = self.packed_row(f, next_row, last)?;
            let mut ready = same.clone();
            self.unpack_row(f, packed, &mut ready);
            let held = self.row(f, scalars, row, &ready)?;
            let mut next = vec![];
            for &write in &sums {
                let node = target_node(self.kernel.writes[write].what);
                for run in &held {
                    for i in 0..layout.wide {
                        let value =
                            value_of(scalars, &run.values, node, i).or_else(|_| row_value(run, node))?;
                        next.push(f.add(sums_before[next.len()], value));
                    }
                }
            }
            next.extend(ahead);
            Ok::<_, String>(next)
        })?;
        let runs: Vec<HeldRun> = self.held_runs(f);
        for (slot, (&write, sums)) in sums.iter().zip(carried.chunks(per_sum)).enumerate() {
            let sums = self.over_groups(f, slot, sums);
            self.write_sums(f, write, item, &runs, &sums);
        }
        Ok(launch(self.symbol, [x, y], layout.threads * layout.groups))
    }

    fn column_sums(&self) -> impl Iterator<Item = usize> {
        let is_sum = |w: &Write| matches!(w.what, Target::ColumnSum(_));
        self.kernel.writes.iter().enumerate().filter(move |(_, w)| is_sum(w)).map(|(i, _)| i)
    }

    /// The operands' elements of a row that are read where it lies, and its scalars: what can be on its way early.
    fn early(&self) -> impl Iterator<Item = (usize, usize, bool)> {
        self.kernel.nodes.iter().enumerate().filter_map(|(node, described)| match described {
            Node::Load(input) => match &self.kernel.reads[input.0 as usize].access {
                Access::Element(map) if *map == RowMap::EACH => Some((node, input.0 as usize, true)),
                Access::Row(map) if *map == RowMap::EACH => Some((node, input.0 as usize, false)),
                _ => None,
            },
            _ => None,
        })
    }

    /// What is early of a row, as it lies in memory; of the last row past the end.
    fn packed_row(&self, f: &mut Function, row: Value, last: Value) -> Emitted<Values> {
        let row = f.minu(row, last);
        let runs = self.held_runs(f);
        let mut values = vec![];
        for (_, input, by_element) in self.early() {
            let read = &self.kernel.reads[input];
            let first = f.times(row, read.stride);
            let base = f.offset(self.reads[input], first, stored(read.dtype));
            match by_element {
                true => {
                    for held in &runs {
                        let at = super::address(f, read.dtype, base, held.run.column);
                        values.extend(load_packed(f, read.dtype, at, self.layout.wide));
                    }
                }
                false => values.extend(load_packed(f, read.dtype, base, 1)),
            }
        }
        Ok(values)
    }

    fn unpack_row(&self, f: &mut Function, packed: &[Value], ready: &mut Ready) {
        let mut packed = packed.iter().copied();
        for (node, input, by_element) in self.early() {
            let dtype = self.kernel.reads[input].dtype;
            match by_element {
                true => {
                    for turn in 0..self.layout.turns as usize {
                        let all: Values = packed.by_ref().take(packs(dtype, self.layout.wide)).collect();
                        ready.elements.push((node, turn, unpack(f, &all)));
                    }
                }
                false => {
                    let all: Values = packed.by_ref().take(1).collect();
                    ready.rows.push((node, unpack(f, &all)[0]));
                }
            }
        }
    }

    /// Operands that are the same for all rows: a gain.
    fn of_all_rows(&self, f: &mut Function) -> Ready {
        let mut ready = Ready::default();
        let runs = self.held_runs(f);
        for (node, described) in self.kernel.nodes.iter().enumerate() {
            let Node::Load(input) = described else { continue };
            let read = &self.kernel.reads[input.0 as usize];
            if read.access != Access::Element(RowMap::SAME) {
                continue;
            }
            for (turn, held) in runs.iter().enumerate() {
                let at = super::address(f, read.dtype, self.reads[input.0 as usize], held.run.column);
                let packed = load_packed(f, read.dtype, at, self.layout.wide);
                ready.elements.push((node, turn, unpack(f, &packed)));
            }
        }
        ready
    }

    /// The sums of all groups in order, known to the first.
    fn over_groups(&self, f: &mut Function, slot: usize, sums: &[Value]) -> Values {
        let (Some(group), Some(shared)) = (self.group, self.sums) else { return sums.to_vec() };
        let layout = self.layout;
        let span = u64::from(layout.threads) * layout.turns * u64::from(layout.wide);
        let others = u64::from(layout.groups) - 1;
        let place = |f: &mut Function, before: Value, turn: usize| {
            // Of this thread's turn, behind `before` groups' sums.
            let mine = f.times(self.thread, layout.wide.into());
            let skipped = f.times(before, span);
            let at = f.addi(skipped, mine);
            let first = slot as u64 * others * span + turn as u64 * u64::from(layout.threads * layout.wide);
            let at = f.plus(at, first);
            f.offset(shared, at, Element::F32)
        };
        let zero = f.int(group.ty, 0);
        let is_other = f.order(Order::Below, zero, group);
        f.only_if(is_other, |f| {
            let one = f.int(group.ty, 1);
            let before = f.subi(group, one);
            for (turn, sums) in sums.chunks(layout.wide as usize).enumerate() {
                let at = place(f, before, turn);
                store(f, DType::F32, sums, at);
            }
        });
        f.barrier();
        let is_first = f.order(Order::Equal, group, zero);
        f.replace_if(is_first, sums, |f| {
            let mut all = sums.to_vec();
            for other in 0..others {
                let before = f.int(group.ty, other as i64);
                for (turn, sums) in all.chunks_mut(layout.wide as usize).enumerate() {
                    let at = place(f, before, turn);
                    let theirs = load(f, DType::F32, at, layout.wide);
                    for (sum, other) in sums.iter_mut().zip(theirs) {
                        *sum = f.add(*sum, other);
                    }
                }
            }
            all
        })
    }

    /// Writes a chunk's sums, by its first group.
    fn write_sums(&self, f: &mut Function, index: usize, item: Value, runs: &[HeldRun], sums: &[Value]) {
        let write = &self.kernel.writes[index];
        let body = |f: &mut Function| {
            for (held, sums) in runs.iter().zip(sums.chunks(self.layout.wide as usize)) {
                let row = f.times(item, write.stride);
                let column = f.zero_extend(held.run.column, Element::I64);
                let at = f.addi(row, column);
                let at = f.offset(self.writes[index], at, stored(write.dtype));
                guarded(f, held.run.inside, |f| put(f, write, sums, at));
            }
        };
        match self.group {
            Some(group) => {
                let zero = f.int(group.ty, 0);
                let is_first = f.order(Order::Equal, group, zero);
                f.only_if(is_first, body);
            }
            None => body(f),
        }
    }
}

/// A place in shared memory for the sums of all groups but the first.
pub(super) fn shared_sums(f: &mut Function, symbol: &str) -> Value {
    let ty = Type::scalar(Element::Pointer(Space::Shared));
    f.value(ty, format!("llvm.mlir.addressof @{symbol} : !llvm.ptr<3>"))
}
