//! A sum of two shards, or buckets, of gradients.

use dspc_graph::rowfn::{Access, InputId, Node, NodeId, RowMap};
use dspc_plan::GRID_ELEMENTS;

use crate::describe::{Kernel, Read, RowKernel, Split, Target, Write};
use crate::piece::Piece;
use crate::pool::Pool;
use crate::steps::{Launch, Place, Step};

/// `to += from`, a rank's shard of a bucket.
pub(super) fn add(piece: &Piece, from: Place, to: Place, pool: &mut Pool) -> Step {
    rows(piece.shard / GRID_ELEMENTS, from, to, true, pool)
}

/// `to = from`, or `to += from`, of so many rows of the grid.
pub(super) fn rows(rows: u64, from: Place, to: Place, adds: bool, pool: &mut Pool) -> Step {
    let (cols, dtype) = (GRID_ELEMENTS, pool.storages[to.storage.0 as usize].dtype);
    let access = Access::Element(RowMap::EACH);
    let read = Read { name: "term".into(), dtype, access, stride: cols };
    let what = Target::Element(NodeId(0));
    let write = Write { name: "sum".into(), dtype, what, stride: cols, accumulate: adds };
    let nodes = vec![Node::Load(InputId(0))];
    let kernel =
        RowKernel { rows, cols, reads: vec![read], nodes, writes: vec![write], split: Split::Elements };
    let kernel = pool.kernel(if adds { "add_gradients" } else { "keep_gradients" }, Kernel::Row(kernel));
    Step::Launch(Launch { kernel, operands: vec![from, to], origin: "accumulate".into() })
}
