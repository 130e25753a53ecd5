//! Which kernel a product gets, and its tile.

use super::hopper;
use super::problem::Problem;
use super::warps;
use crate::gpu::GpuChip;
use dspc_graph::ir::DType;

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

/// Multiprocessors of the cards that tiles are chosen for: H100 and H200.
pub(super) const PROCESSORS: u64 = 132;

/// The way for a product.
pub(super) fn way(problem: &Problem<'_>, chip: GpuChip) -> Way {
    if problem.left.dtype == DType::F32 {
        return Way::Plain;
    }
    if chip == GpuChip::Sm90a && hopper::accepts(problem) {
        return Way::Hopper(hopper_tile(problem));
    }
    let stages = if chip == GpuChip::Sm120 { 3 } else { 4 };
    let blocks = |m: u64, n: u64| problem.m.div_ceil(m) * problem.n.div_ceil(n) * problem.kernel.splits;
    let (m, n) =
        [(128, 128), (64, 128)].into_iter().find(|&(m, n)| blocks(m, n) >= PROCESSORS).unwrap_or((64, 64));
    Way::Warps(warps::Tile { m, n, stages })
}

/// The width whose rounds of tiles are done first: a tile's time is its width and a fixed part.
fn hopper_tile(problem: &Problem<'_>) -> hopper::Tile {
    let time = |&n: &u64| {
        let tiles = problem.m.div_ceil(hopper::ROWS) * problem.n.div_ceil(n) * problem.kernel.splits;
        // Narrow tiles read more for each product.
        tiles.div_ceil(PROCESSORS) * (n + 24)
    };
    let n = [256, 192, 160, 128].into_iter().min_by_key(time).unwrap_or(256);
    hopper::Tile { n }
}
