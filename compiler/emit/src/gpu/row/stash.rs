//! A row too long for registers, kept in shared memory: it is copied there at once, and every pass reads it from there.
//!
//! A thread reads what it copied itself, so that nobody waits for anybody.

use crate::mlir::{Element, Function, Space, Type, Value};
use crate::row::Analysis;
use dspc_graph::rowfn::{Access, Node, RowMap};
use dspc_kernel::describe::{RowKernel, Split};

use crate::gpu::layout::Layout;

/// Bytes of a block for what up to 32 warps tell each other in a reduction.
const REDUCTION_BYTES: u64 = 128;

/// Where a node's row lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stashed {
    /// Load node.
    pub node: usize,
    /// Bytes before it.
    before: u64,
}

/// Rows in shared memory.
#[derive(Clone, Default, Debug)]
pub(super) struct Stash {
    rows: Vec<Stashed>,
    /// Of all.
    pub bytes: u64,
    /// Turns of the layout whose runs are there; of a row that is longer than the memory, only the first ones.
    pub turns: u64,
}

impl Stash {
    /// The operands that several passes read, as far as there is room in `shared_bytes`, and the layout: with more threads, if only one block's fit at once.
    pub fn of(kernel: &RowKernel, analysis: &Analysis, layout: Layout, shared_bytes: u64) -> (Self, Layout) {
        let mut stash = Stash { turns: layout.turns, ..Stash::default() };
        if layout.held || kernel.split != Split::Rows {
            return (stash, layout);
        }
        let reductions = kernel.nodes.iter().filter(|n| matches!(n, Node::Reduce(..))).count() as u64;
        let bytes_max = shared_bytes.saturating_sub(reductions * REDUCTION_BYTES);
        let mut first = None;
        for (node, described) in kernel.nodes.iter().enumerate() {
            let Node::Load(input) = described else { continue };
            let read = &kernel.reads[input.0 as usize];
            let passes = analysis.passes.iter().filter(|p| p.compute.iter().any(|n| n.0 as usize == node));
            let run = u64::from(layout.wide) * read.dtype.bytes();
            let whole = read.access == Access::Element(RowMap::EACH) && run >= 4;
            if !whole || passes.count() < 2 {
                continue;
            }
            first = first.or(Some((node, run)));
            let bytes = (kernel.cols.div_ceil(layout.wide.into()) * run).next_multiple_of(16);
            if stash.bytes + bytes <= bytes_max {
                stash.rows.push(Stashed { node, before: stash.bytes });
                stash.bytes += bytes;
            }
        }
        if stash.bytes == 0
            && let Some((node, run)) = first
        {
            let layout = layout.alone(kernel);
            let turn = u64::from(layout.threads) * run;
            let turns = bytes_max / turn;
            let row = Stashed { node, before: 0 };
            return (Stash { rows: vec![row], bytes: turns * turn, turns }, layout);
        }
        if stash.bytes > shared_bytes / 2 {
            let layout = layout.alone(kernel);
            return (Stash { turns: layout.turns, ..stash }, layout);
        }
        (stash, layout)
    }

    /// All of them.
    pub fn rows(&self) -> &[Stashed] {
        &self.rows
    }

    /// A node's row, if it is kept.
    pub fn row(&self, node: usize) -> Option<Stashed> {
        self.rows.iter().find(|row| row.node == node).copied()
    }
}

/// Where a row begins.
pub(super) fn begin(f: &mut Function, symbol: &str, row: Stashed) -> Value {
    let ty = Type::scalar(Element::Pointer(Space::Shared));
    let base = f.value(ty, format!("llvm.mlir.addressof @{symbol} : !llvm.ptr<3>"));
    let before = f.index(row.before);
    f.offset(base, before, Element::I8)
}
