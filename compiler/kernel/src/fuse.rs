//! Fusion: which ops of a block become one kernel.
//!
//! Reads   a block and the forms of its ops.
//! Writes  units in an order that respects every dependence: groups of row ops over one iteration space, contractions (perhaps with a group as epilogue), all else alone.
//! Keeps   every value's meaning; a group runs where its last dependence allows.
//! Leaves  alone repeats: nothing fuses across a turn.
//! Cost    O(ops × open groups).
//!
//! A row op joins the group that yields one of its operands if it sees it pointwise (same rows, same columns) and if either all else it needs is
//! there before the group runs, or nobody reads the group's results yet, so that the group can run later.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dspc_graph::form::Form;
use dspc_graph::ir::{Block, Graph, OpNode, Step, TensorType, ValueId};
use dspc_graph::rowfn::{Access, RowFn, RowMap, Yield};
use dspc_program::Family;

use crate::absorb::{Absorbed, absorb};

/// Ops that run as one. Numbers are indices into [`Block::steps`].
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Unit {
    /// One row kernel, ops in order.
    Rows(Vec<usize>),
    /// A matrix product, the row kernel that runs on each block of its rows (on a CPU), and what it does itself (on a GPU).
    Contract { op: usize, epilogue: Vec<usize>, absorbed: Absorbed },
    /// Anything else that works.
    Alone(usize),
}

/// The form of an op of a graph.
pub(crate) fn form_of(graph: &Graph, node: &OpNode) -> Form {
    let types = |ids: &[ValueId]| ids.iter().map(|&v| graph.ty(v)).collect::<Vec<&TensorType>>();
    node.op.form(&types(&node.inputs), &types(&node.outputs))
}

/// Groups a block's ops for a kind of device; `uses` counts the readers of each value.
pub(crate) fn fuse(
    graph: &Graph,
    block: &Block,
    forms: &[Option<Form>],
    uses: &HashMap<ValueId, u32>,
    family: Family,
) -> Vec<Unit> {
    let mut absorbed = match family {
        Family::Cpu => BTreeMap::new(),
        Family::Cuda => absorb(graph, block, forms, uses),
    };
    let gone: BTreeSet<usize> = absorbed.values().flat_map(|a| a.steps()).collect();
    let mut fusion =
        Fusion { graph, block, forms, units: vec![], producer: HashMap::new(), base: HashMap::new() };
    for index in (0..block.steps.len()).filter(|index| !gone.contains(index)) {
        fusion.add(index, absorbed.remove(&index).unwrap_or_default());
    }
    if family == Family::Cpu {
        fusion.attach_epilogues();
    }
    fusion.units
}

struct Fusion<'a> {
    graph: &'a Graph,
    block: &'a Block,
    forms: &'a [Option<Form>],
    units: Vec<Unit>,
    /// The step that yields a value of this block.
    producer: HashMap<ValueId, usize>,
    /// What a view is a view of.
    base: HashMap<ValueId, ValueId>,
}

impl Fusion<'_> {
    fn add(&mut self, index: usize, absorbed: Absorbed) {
        match (&self.block.steps[index], &self.forms[index]) {
            (Step::Op(node), Some(Form::View(_))) => {
                let base = self.base_of(node.inputs[0]);
                self.base.extend(node.outputs.iter().map(|&v| (v, base)));
                return;
            }
            // A constant can be there from the start, so that whoever reads it need not wait.
            (Step::Op(node), Some(Form::Row(_))) if node.inputs.is_empty() => {
                self.units.insert(0, Unit::Rows(vec![index]));
            }
            (Step::Op(node), Some(Form::Row(function))) => match self.group_for(node, function) {
                Some(position) => self.join(position, index),
                None => self.units.push(Unit::Rows(vec![index])),
            },
            (Step::Op(_), Some(Form::Contract { .. })) => {
                self.units.push(Unit::Contract { op: index, epilogue: vec![], absorbed })
            }
            _ => self.units.push(Unit::Alone(index)),
        }
        for index in std::iter::once(index).chain(absorbed.steps()) {
            let outputs = outputs_of(&self.block.steps[index]);
            self.producer.extend(outputs.into_iter().map(|v| (v, index)));
        }
    }

    fn base_of(&self, value: ValueId) -> ValueId {
        self.base.get(&value).copied().unwrap_or(value)
    }

    /// The place of the group that a row op joins, after making room for it: the group may move to the end.
    fn group_for(&mut self, node: &OpNode, function: &RowFn) -> Option<usize> {
        for position in (0..self.units.len()).rev() {
            let Unit::Rows(ops) = &self.units[position] else { continue };
            if !self.same_space(ops[0], function) || !self.reads_pointwise(node, function, ops) {
                continue;
            }
            let needed = node.inputs.iter().filter_map(|v| self.producer.get(&self.base_of(*v)));
            let latest = needed.filter(|p| !ops.contains(p)).filter_map(|p| self.position_of(*p)).max();
            if latest.is_none_or(|latest| latest < position) {
                return Some(position);
            }
            if !self.is_read_after(position) {
                let unit = self.units.remove(position);
                self.units.push(unit);
                return Some(self.units.len() - 1);
            }
        }
        None
    }

    fn join(&mut self, position: usize, index: usize) {
        if let Unit::Rows(ops) = &mut self.units[position] {
            ops.push(index);
        }
    }

    fn same_space(&self, op: usize, function: &RowFn) -> bool {
        matches!(&self.forms[op], Some(Form::Row(f)) if f.rows == function.rows && f.cols == function.cols)
    }

    /// Some operand comes from the group, and all that do are seen at the row and column that yields them.
    fn reads_pointwise(&self, node: &OpNode, function: &RowFn, ops: &[usize]) -> bool {
        let mut any = false;
        for (value, access) in node.inputs.iter().zip(&function.inputs) {
            let Some(producer) = self.producer.get(&self.base_of(*value)).filter(|p| ops.contains(p)) else {
                continue;
            };
            if self.base.contains_key(value) || !self.is_pointwise(*producer, *value, access) {
                return false;
            }
            any = true;
        }
        any
    }

    fn is_pointwise(&self, producer: usize, value: ValueId, access: &Access) -> bool {
        let (Step::Op(node), Some(Form::Row(function))) =
            (&self.block.steps[producer], &self.forms[producer])
        else {
            return false;
        };
        let Some(result) = node.outputs.iter().position(|&v| v == value) else { return false };
        match (access, function.outputs[result]) {
            (Access::Element(map), Yield::Element(_)) | (Access::Row(map), Yield::Row(_)) => {
                *map == RowMap::EACH
            }
            (Access::Scalar, Yield::Row(_)) => function.rows == 1,
            _ => false,
        }
    }

    fn position_of(&self, step: usize) -> Option<usize> {
        self.units.iter().position(|unit| steps_of(unit).contains(&step))
    }

    /// Whether a unit behind this one reads what it yields.
    fn is_read_after(&self, position: usize) -> bool {
        let yields = self.yields(&self.units[position]);
        self.units[position + 1..].iter().any(|unit| self.reads_any(unit, &yields))
    }

    fn yields(&self, unit: &Unit) -> Vec<ValueId> {
        steps_of(unit).iter().flat_map(|&s| outputs_of(&self.block.steps[s])).collect()
    }

    fn reads_any(&self, unit: &Unit, values: &[ValueId]) -> bool {
        let mut inputs = steps_of(unit).into_iter().flat_map(|s| inputs_of(&self.block.steps[s]));
        inputs.any(|v| values.contains(&self.base_of(v)))
    }

    /// A group that reads a matrix product pointwise runs on its rows while they are in cache, if nobody reads the product before.
    fn attach_epilogues(&mut self) {
        let mut position = 0;
        while position < self.units.len() {
            if let Some(product) = self.product_for(position)
                && let (&Unit::Contract { op, absorbed, .. }, Unit::Rows(ops)) =
                    (&self.units[product], &self.units[position])
            {
                self.units[position] = Unit::Contract { op, epilogue: ops.clone(), absorbed };
                self.units.remove(product);
                continue; // the units behind moved up by one
            }
            position += 1;
        }
    }

    fn product_for(&self, position: usize) -> Option<usize> {
        let Unit::Rows(ops) = &self.units[position] else { return None };
        (0..position).rev().find(|&product| {
            let Unit::Contract { op, epilogue, .. } = &self.units[product] else { return false };
            let value = outputs_of(&self.block.steps[*op])[0];
            epilogue.is_empty()
                && ops.iter().any(|&s| self.reads_rows_of(s, value))
                && !ops.iter().any(|&s| self.reads_otherwise(s, value))
                && !self.units[product + 1..position].iter().any(|unit| self.reads_any(unit, &[value]))
        })
    }

    fn reads_rows_of(&self, step: usize, value: ValueId) -> bool {
        self.row_accesses(step, value).any(|(function, access)| {
            let ty = self.graph.ty(value);
            *access == Access::Element(RowMap::EACH)
                && (function.rows, function.cols) == (ty.rows(), ty.cols())
        })
    }

    /// Rows that another block of rows may hold, or a view of the product.
    fn reads_otherwise(&self, step: usize, value: ValueId) -> bool {
        let Step::Op(node) = &self.block.steps[step] else { return true };
        let by_view = node.inputs.iter().any(|&v| v != value && self.base_of(v) == value);
        by_view
            || self.row_accesses(step, value).any(|(_, access)| match access {
                Access::Element(map) | Access::HalfRotated(map) | Access::Row(map) | Access::Table(map) => {
                    *map != RowMap::EACH
                }
                Access::Scalar => true,
            })
    }

    fn row_accesses(&self, step: usize, value: ValueId) -> impl Iterator<Item = (&RowFn, &Access)> {
        let pair = match (&self.block.steps[step], &self.forms[step]) {
            (Step::Op(node), Some(Form::Row(function))) => Some((node, function)),
            _ => None,
        };
        pair.into_iter().flat_map(move |(node, function)| {
            node.inputs
                .iter()
                .zip(&function.inputs)
                .filter(move |(v, _)| **v == value)
                .map(move |(_, a)| (function, a))
        })
    }
}

fn steps_of(unit: &Unit) -> Vec<usize> {
    match unit {
        Unit::Rows(ops) => ops.clone(),
        Unit::Contract { op, epilogue, absorbed } => {
            std::iter::once(*op).chain(epilogue.iter().copied()).chain(absorbed.steps()).collect()
        }
        Unit::Alone(step) => vec![*step],
    }
}

/// Values that a step yields to its block.
pub(crate) fn outputs_of(step: &Step) -> Vec<ValueId> {
    match step {
        Step::Op(node) => node.outputs.clone(),
        Step::Repeat(repeat) => repeat.carried.iter().map(|c| c.out).collect(),
    }
}

/// Values that a step reads, those read inside a repeat's body included.
pub(crate) fn inputs_of(step: &Step) -> Vec<ValueId> {
    match step {
        Step::Op(node) => node.inputs.clone(),
        Step::Repeat(repeat) => {
            let inner = repeat.body.steps.iter().flat_map(inputs_of);
            repeat.carried.iter().flat_map(|c| [c.init, c.result]).chain(inner).collect()
        }
    }
}
