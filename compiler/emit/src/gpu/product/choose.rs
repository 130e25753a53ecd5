//! Which kernel a product gets, and its tile.

use super::hopper;
use super::problem::{Neighbours, Problem};
use super::warps;
use crate::gpu::GpuChip;
use dspc_graph::ir::DType;
use dspc_kernel::describe::ProductFused;
use dspc_kernel::tiles::{PROCESSORS, Shape};

/// A kernel and its tile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// Warpgroups and the copy engine.
    Hopper(hopper::Tile),
    /// Warps.
    Warps(warps::Tile),
    /// Threads.
    Plain,
}

/// The way for a product.
pub(super) fn way(problem: &Problem<'_>, chip: GpuChip) -> Way {
    if problem.left.dtype == DType::F32 && !problem.kernel.tf32 {
        return Way::Plain;
    }
    if chip == GpuChip::Sm90a && hopper::accepts(problem) {
        return Way::Hopper(hopper_tile(problem));
    }
    let blocks = |m: u64, n: u64| problem.m.div_ceil(m) * problem.n.div_ceil(n) * problem.kernel.splits;
    let (m, n) =
        [(128, 128), (64, 128)].into_iter().find(|&(m, n)| blocks(m, n) >= PROCESSORS).unwrap_or((64, 64));
    // Small tiles have room for more.
    let stages = if chip == GpuChip::Sm120 && m + n > 128 { 3 } else { 4 };
    Way::Warps(warps::Tile { m, n, stages })
}

/// The width that is done first.
fn hopper_tile(problem: &Problem<'_>) -> hopper::Tile {
    let Problem { m, n, k, .. } = *problem;
    let by_terms = problem.right.neighbours == Neighbours::Terms;
    let sums_columns = matches!(problem.kernel.fused, Some(ProductFused::BiasGradient(_)));
    // Columns come in whole 64s where they lie side by side; a warp that sums them has 16 or 32.
    let allowed = |width: u64| width.is_multiple_of(64) || by_terms && !sums_columns;
    let n = Shape { m, n, k }.best_width(problem.kernel.splits, allowed).0;
    hopper::Tile { n }
}
