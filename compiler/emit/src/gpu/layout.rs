//! How the elements of a row kernel are dealt to a GPU's threads.

use crate::row::Analysis;
use dspc_graph::rowfn::{Access, Node, RowMap};
use dspc_kernel::describe::{RowKernel, Split, Target};

/// Columns up to this many are a warp's.
const WARP_COLS_MAX: u64 = 2048;
/// Beyond this many, a warp has too few registers for a row and for what is the same of all rows: a block then walks several.
const LONE_ROW_COLS_MAX: u64 = 1024;
/// Rows that such a block walks, at least, and how many blocks there are then, at most.
const WALK_ROWS_MIN: u64 = 16;
const WALK_BLOCKS_MAX: u64 = 528;
/// Elements a thread keeps in registers.
const HELD_MAX: u64 = 64;
/// The same of rows that have as many threads as share a multiprocessor well: longer ones are better kept in shared memory.
const LONG_HELD_MAX: u64 = 32;

/// Columns beyond which rows may be ragged.
const RAGGED_COLS_MIN: u64 = 4096;
/// Threads of a block that walks several rows of a chunk at once.
const BLOCK_THREADS: u32 = 512;
/// Rows at once, at most: a barrier each.
const GROUPS_MAX: u32 = 15;
/// Shared memory for column sums, without asking for more than a block has anyway.
const SUMS_BYTES_MAX: u64 = 40 << 10;

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
    /// Rows that a block of a chunk walks at once.
    pub groups: u32,
    /// The last run of a row reaches past its end, into a gap before the next one.
    pub ragged: bool,
}

/// How a kernel's work is divided on a GPU: rows with reductions and with operands that are the same for all of them are walked like a chunk's.
pub(super) fn split_of(kernel: &RowKernel) -> Split {
    let reduces = kernel.nodes.iter().any(|node| matches!(node, Node::Reduce(..)));
    let same = kernel.reads.iter().any(|read| read.access == Access::Element(RowMap::SAME));
    let long = (LONE_ROW_COLS_MAX + 1..=WARP_COLS_MAX).contains(&kernel.cols) && fits(kernel, 4);
    match kernel.split {
        Split::Rows if reduces && same && long => {
            Split::Chunks(kernel.rows.div_ceil(WALK_BLOCKS_MAX).max(WALK_ROWS_MIN))
        }
        split => split,
    }
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
                let fits = fits(kernel, wide.into()) || has_gaps(kernel);
                wide <= widest && u64::from(wide) * 32 <= items.max(32) && fits
            })
            .unwrap_or(1);
        let has_rows = kernel.writes.iter().any(|w| matches!(w.what, Target::Row(_)))
            || analysis.passes.iter().any(|p| !p.reduces.is_empty());
        let ragged = kernel.split != Split::Elements && !cols.is_multiple_of(wide.into());
        let runs = cols.div_ceil(wide.into());
        let layout = |threads: u32, across: u64| {
            let turns = runs.div_ceil(u64::from(threads) * across);
            let held = turns * u64::from(wide) <= HELD_MAX;
            Layout { threads, wide, turns, held, across, groups: 1, ragged }
        };
        Ok(match kernel.split {
            Split::Elements => {
                Layout { threads: 256, wide, turns: 1, held: true, across: 1, groups: 1, ragged }
            }
            Split::Rows if cols <= WARP_COLS_MAX => layout(32, 1),
            Split::Rows if cols <= 8192 => layout(256, 1),
            Split::Rows => {
                let layout = layout(512, 1);
                Layout { held: layout.turns * u64::from(wide) <= LONG_HELD_MAX, ..layout }
            }
            Split::Chunks(rows) => {
                let threads = if has_rows { runs.next_multiple_of(32).clamp(32, 512) as u32 } else { 32 };
                let across = if has_rows { 1 } else { runs.div_ceil(threads.into()) };
                let layout = layout(threads, across);
                if !layout.held {
                    return Err(format!(
                        "column sums of rows of {cols} with reductions are too wide for a block"
                    ));
                }
                layout.in_groups(kernel, rows)
            }
        })
    }
}

impl Layout {
    /// With twice the threads, where there are rows that fit once only into the memory for two blocks.
    pub fn alone(self, kernel: &RowKernel) -> Self {
        let threads = 2 * self.threads;
        let runs = kernel.cols.div_ceil(self.wide.into());
        Layout { threads, turns: runs.div_ceil(threads.into()), ..self }
    }

    /// Turns of which every thread's run is wholly inside a row.
    pub fn whole_turns(&self, cols: u64) -> u64 {
        cols / (u64::from(self.threads) * u64::from(self.wide))
    }

    /// With as many rows at once as a block has threads for, and shared memory for their sums.
    fn in_groups(self, kernel: &RowKernel, rows: u64) -> Self {
        let fits = |groups: &u32| {
            let layout = Layout { groups: *groups, ..self };
            u64::from(*groups) <= rows && layout.shared_sums(kernel) * 4 <= SUMS_BYTES_MAX
        };
        let most = (BLOCK_THREADS / self.threads).clamp(1, GROUPS_MAX);
        let groups = (1..=most).rev().find(fits).unwrap_or(1);
        Layout { groups, ..self }
    }

    /// Numbers of shared memory that a block's groups leave their column sums in.
    pub fn shared_sums(&self, kernel: &RowKernel) -> u64 {
        let sums = kernel.writes.iter().filter(|w| matches!(w.what, Target::ColumnSum(_))).count() as u64;
        let span = u64::from(self.threads) * self.turns * u64::from(self.wide);
        sums * span * (u64::from(self.groups) - 1)
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

/// Whether rows can be accessed up to 64 elements at a time because all have a gap behind them that takes the last run's end.
fn has_gaps(kernel: &RowKernel) -> bool {
    // Wide enough to be a row of logits alone: a column band of another matrix might begin anywhere.
    let gap = |stride: u64| kernel.cols > RAGGED_COLS_MIN && stride == kernel.cols.next_multiple_of(64);
    let plain = |node: &Node| !matches!(node, Node::Uniform { .. });
    kernel.split == Split::Rows
        && kernel.nodes.iter().all(plain)
        && kernel.reads.iter().all(|read| match &read.access {
            Access::Element(map) => *map == RowMap::EACH && gap(read.stride),
            Access::HalfRotated(_) => false,
            Access::Row(_) | Access::Scalar | Access::Table(_) => true,
        })
        && kernel.writes.iter().all(|write| match write.what {
            Target::Element(_) => gap(write.stride),
            Target::Row(_) => true,
            Target::ColumnSum(_) => false,
        })
}
