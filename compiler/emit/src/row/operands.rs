//! What both targets do with a row kernel's operands: rows of other operands, random streams, values by node.

use super::philox::Stream;
use crate::mlir::{Element, Function, Type, Value};
use dspc_graph::rowfn::{Access, Node, NodeId, ReduceFn, RowMap};
use dspc_kernel::describe::{RowKernel, Target};

/// The operand's row for a row of the kernel; `reads` are the operands' addresses.
pub(crate) fn mapped_row(
    f: &mut Function,
    kernel: &RowKernel,
    reads: &[Value],
    map: &RowMap,
    row: Value,
) -> Result<Value, String> {
    match map {
        RowMap::Affine { modulo: Some(1), .. } => Ok(f.index(0)),
        RowMap::Affine { divide, modulo } => {
            let mut row = row;
            if *divide > 1 {
                let by = f.index(*divide);
                row = f.divu(row, by);
            }
            if let Some(rows) = modulo {
                let by = f.index(*rows);
                row = f.remu(row, by);
            }
            Ok(row)
        }
        RowMap::Gather(ids) => {
            let read = &kernel.reads[ids.0 as usize];
            let Access::Row(map) = &read.access else {
                return Err(format!("`{}` is not one id a row", read.name));
            };
            let row = mapped_row(f, kernel, reads, map, row)?;
            let at = f.times(row, read.stride);
            let at = f.offset(reads[ids.0 as usize], at, Element::I32);
            let id = f.load(at, Type::scalar(Element::I32), 4);
            Ok(f.sign_extend(id, Element::I64))
        }
    }
}

/// A node's random numbers: who draws, and the number of the kernel's first element.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draw {
    node: NodeId,
    /// Who draws.
    pub stream: Stream,
    /// The first element's number, 64 bits.
    pub first: Value,
}

/// The random streams of a kernel; `turn` is its last argument.
pub(crate) fn draws(f: &mut Function, kernel: &RowKernel, reads: &[Value], turn: Value) -> Vec<Draw> {
    let turn = f.truncate(turn, Element::I32);
    let mut all = vec![];
    for (index, node) in kernel.nodes.iter().enumerate() {
        let &Node::Uniform { rng, site, sample_elements } = node else { continue };
        let words: Vec<Value> = (0..4)
            .map(|i| {
                let i = f.index(i);
                let at = f.offset(reads[rng.0 as usize], i, Element::I32);
                f.load(at, Type::scalar(Element::I32), 4)
            })
            .collect();
        let site = f.plus(turn, site.into());
        let sample = f.zero_extend(words[3], Element::I64);
        let first = f.times(sample, sample_elements);
        let stream = Stream { key: [words[0], words[1]], step: words[2], site };
        all.push(Draw { node: NodeId(index as u32), stream, first });
    }
    all
}

/// A node's stream.
pub(crate) fn draw_of(draws: &[Draw], node: NodeId) -> Result<Draw, String> {
    let found = draws.iter().find(|draw| draw.node == node).copied();
    found.ok_or_else(|| format!("node {} has no random stream", node.0))
}

/// The node a result comes from.
pub(crate) fn target_node(target: Target) -> NodeId {
    let (Target::Element(node) | Target::Row(node) | Target::ColumnSum(node)) = target;
    node
}

/// A node's value; none is a bug of the emitter.
pub(crate) fn known(values: &[Option<Value>], node: NodeId) -> Result<Value, String> {
    values[node.0 as usize].ok_or_else(|| format!("node {} has no value where it is used", node.0))
}

/// A reduction's function and operand.
pub(crate) fn reduction(kernel: &RowKernel, node: NodeId) -> Result<(ReduceFn, NodeId), String> {
    match kernel.nodes[node.0 as usize] {
        Node::Reduce(function, x) => Ok((function, x)),
        _ => Err(format!("node {} is no reduction", node.0)),
    }
}

/// Two partial results of a reduction in one.
pub(crate) fn reduce_pair(f: &mut Function, function: ReduceFn, a: Value, b: Value) -> Value {
    match function {
        ReduceFn::Sum => f.add(a, b),
        ReduceFn::Max => f.max(a, b),
    }
}
