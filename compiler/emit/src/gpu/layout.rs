//! How the elements of a row kernel are dealt to a GPU's threads.

use crate::row::Analysis;
use dspc_graph::rowfn::{Access, RowMap};
use dspc_kernel::describe::{RowKernel, Split, Target};

/// Columns up to this many are a warp's.
const WARP_COLS_MAX: u64 = 2048;
/// Elements a thread keeps in registers.
const HELD_MAX: u64 = 64;

/// How threads and elements meet.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Layout {
    /// Threads of a row, or of a chunk; of a block where items are elements.
    pub threads: u32,
    /// Neighbours a thread holds.
    pub wide: u32,
    /// Runs a thread holds.
    pub turns: u64,
    /// Whether runs stay in registers.
    pub held: bool,
    /// Blocks side by side over the columns.
    pub across: u64,
}

impl Layout {
    /// For a kernel.
    pub fn of(kernel: &RowKernel, analysis: &Analysis) -> Result<Self, String> {
        let cols = kernel.cols;
        let items = match kernel.split {
            Split::Elements => kernel.rows * cols,
            Split::Rows | Split::Chunks(_) => cols,
        };
        let narrow = kernel.reads.iter().map(|r| r.dtype).chain(kernel.writes.iter().map(|w| w.dtype));
        let widest = if narrow.into_iter().any(|d| d.bytes() == 2) { 8 } else { 4 };
        let wide = [8u32, 4, 2, 1]
            .into_iter()
            .find(|&wide| {
                wide <= widest && u64::from(wide) * 32 <= items.max(32) && fits(kernel, wide.into())
            })
            .unwrap_or(1);
        let runs = cols.div_ceil(wide.into());
        let has_rows = kernel.writes.iter().any(|w| matches!(w.what, Target::Row(_)))
            || analysis.passes.iter().any(|p| !p.reduces.is_empty());
        let layout = |threads: u32, across: u64| {
            let turns = runs.div_ceil(u64::from(threads) * across);
            let held = turns * u64::from(wide) <= HELD_MAX;
            Layout { threads, wide, turns, held, across }
        };
        Ok(match kernel.split {
            Split::Elements => Layout { threads: 256, wide, turns: 1, held: true, across: 1 },
            Split::Rows if cols <= WARP_COLS_MAX => layout(32, 1),
            Split::Rows if cols <= 8192 => layout(256, 1),
            Split::Rows => layout(512, 1),
            Split::Chunks(_) => {
                let threads = (runs.next_multiple_of(32)).clamp(32, 256) as u32;
                let across = if has_rows { 1 } else { runs.div_ceil(threads.into()) };
                let threads =
                    if across == 1 { runs.next_multiple_of(32).clamp(32, 512) as u32 } else { threads };
                let layout = layout(threads, across);
                if !layout.held {
                    return Err(format!(
                        "column sums of rows of {cols} with reductions are too wide for a block"
                    ));
                }
                layout
            }
        })
    }
}

/// Whether every operand's rows can be accessed `wide` elements at a time.
fn fits(kernel: &RowKernel, wide: u64) -> bool {
    if kernel.split == Split::Elements {
        return true;
    }
    let strided = |stride: u64| stride.is_multiple_of(wide);
    kernel.cols.is_multiple_of(wide)
        && kernel.reads.iter().all(|read| match &read.access {
            Access::Element(RowMap::Affine { modulo: Some(1), .. }) => true,
            Access::Element(_) => strided(read.stride),
            Access::HalfRotated(_) => strided(read.stride) && (kernel.cols / 2).is_multiple_of(wide),
            Access::Row(_) | Access::Scalar | Access::Table(_) => true,
        })
        && kernel.writes.iter().all(|write| match write.what {
            Target::Element(_) | Target::ColumnSum(_) => strided(write.stride),
            Target::Row(_) => true,
        })
}
