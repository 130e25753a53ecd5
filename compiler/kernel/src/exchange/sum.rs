//! The sum over ranks: a shard of each, added as a binary tree over neighbours, (r0 + r1) + (r2 + r3).
//!
//! The tree's order is part of what the program means: it is the same wherever the shards come from. Every node is rounded to the gradients' type.

use dspc_graph::ir::DType;
use dspc_graph::rowfn::{Access, BinaryFn, InputId, Node, NodeId, RowMap, UnaryFn};
use dspc_plan::GRID_ELEMENTS;

use crate::describe::{Kernel, Read, RowKernel, Split, Target, Write};
use crate::pool::Pool;
use crate::steps::KernelIndex;

/// A kernel that reads `elements` of each rank and writes their sum.
pub(super) fn sum_over_ranks(ranks: u64, elements: u64, dtype: DType, pool: &mut Pool) -> KernelIndex {
    let cols = GRID_ELEMENTS;
    let read = |rank: u64| Read {
        name: format!("rank{rank}"),
        dtype,
        access: Access::Element(RowMap::EACH),
        stride: cols,
    };
    let mut nodes: Vec<Node> = (0..ranks as u32).map(|rank| Node::Load(InputId(rank))).collect();
    let mut level: Vec<NodeId> = (0..ranks as u32).map(NodeId).collect();
    while level.len() > 1 {
        let pair = |pair: &[NodeId]| match pair {
            [a, b] => {
                nodes.push(Node::Binary(BinaryFn::Add, *a, *b));
                // A sum of two neighbours is one that a rank stores, where the two are its own micro-batches.
                if dtype == DType::Bf16 {
                    nodes.push(Node::Unary(UnaryFn::RoundBf16, NodeId(nodes.len() as u32 - 1)));
                }
                NodeId(nodes.len() as u32 - 1)
            }
            one => one[0],
        };
        level = level.chunks(2).map(pair).collect();
    }
    let what = Target::Element(level[0]);
    let writes = vec![Write { name: "sum".into(), dtype, what, stride: cols, accumulate: false }];
    let kernel = RowKernel {
        rows: elements / cols,
        cols,
        reads: (0..ranks).map(read).collect(),
        nodes,
        writes,
        split: Split::Elements,
    };
    pool.kernel("sum_ranks", Kernel::Row(kernel))
}
