//! What the attention kernels of a GPU accept, and how blocks of threads are dealt to heads and tiles.

use crate::mlir::{Function, INT, Value};
use dspc_graph::ir::DType;
use dspc_kernel::describe::AttentionKernel;

/// The greatest length of a sequence: positions and tiles are 32-bit numbers.
const POSITIONS_MAX: u64 = 1 << 28;
/// The greatest distance of positions in memory: a tile's bytes are a 32-bit number.
const STRIDE_MAX: u64 = 1 << 20;
/// Heads whose inner operands are about so many bytes run at a time: they stay in the second cache until all their tiles are done.
const CACHED_BYTES: u64 = 16 << 20;

/// Columns of a head as the kernels hold it: 64 or 128. An error says what they do not accept.
pub(in crate::gpu) fn padded_width(kernel: &AttentionKernel, operands: usize) -> Result<u64, String> {
    let k = kernel;
    if [k.batch, k.heads, k.kv_heads, k.head_dim, k.queries, k.keys].contains(&0) {
        return Err("a size of attention is 0".to_string());
    }
    if k.head_dim > 128 {
        return Err(format!(
            "a head of {} is wider than 128, which is all that a GPU's kernel holds",
            k.head_dim
        ));
    }
    if !k.heads.is_multiple_of(k.kv_heads) {
        return Err(format!("{} query heads for {} key heads", k.heads, k.kv_heads));
    }
    if k.strides.len() != operands {
        return Err(format!("{} strides where {operands} operands have one", k.strides.len()));
    }
    if k.dtype == DType::I32 {
        return Err("attention over whole numbers".to_string());
    }
    if k.queries.max(k.keys) > POSITIONS_MAX {
        return Err(format!("more than {POSITIONS_MAX} positions"));
    }
    if let Some(stride) = k.strides.iter().find(|&&stride| stride > STRIDE_MAX) {
        return Err(format!("positions {stride} elements apart, where {STRIDE_MAX} are the most"));
    }
    if !k.scale.is_finite() || k.scale as f32 == 0.0 {
        return Err(format!("scores times {}", k.scale));
    }
    Ok(if k.head_dim <= 64 { 64 } else { 128 })
}

/// Where a block of threads works.
#[derive(Clone, Copy, Debug)]
pub(in crate::gpu) struct Place {
    /// Of its outer tile: 0 is the longest.
    pub rank: Value,
    /// Its sequence.
    pub batch: Value,
    /// Its head.
    pub head: Value,
}

/// A grid over (batch, head) and outer tiles: heads in groups, in a group the longest tiles of all its heads first.
#[derive(Clone, Copy, Debug)]
pub(in crate::gpu) struct Grid {
    heads: u64,
    all_heads: u64,
    ranks: u64,
    group: u64,
}

impl Grid {
    /// For this many heads a sequence, each reading `inner_bytes` of what it walks over.
    pub fn new(batch: u64, heads: u64, ranks: u64, inner_bytes: u64) -> Self {
        let all_heads = batch * heads;
        let most = (CACHED_BYTES / inner_bytes.max(1)).clamp(1, all_heads);
        Grid { heads, all_heads, ranks, group: all_heads.div_ceil(all_heads.div_ceil(most)) }
    }

    /// Blocks.
    pub fn blocks(&self) -> Result<[u32; 3], String> {
        let all = self.all_heads.saturating_mul(self.ranks);
        match i32::try_from(all) {
            Ok(all) => Ok([all as u32, 1, 1]),
            Err(_) => Err(format!("{all} blocks are too many for a grid")),
        }
    }

    /// Where this block works.
    pub fn place(&self, f: &mut Function) -> Place {
        let block = f.special("ctaid.x");
        let by = |f: &mut Function, a: Value, n: u64| {
            let n = f.int(INT, n as i64);
            (f.divu(a, n), f.remu(a, n))
        };
        let (group, rest) = by(f, block, self.group * self.ranks);
        let first = f.times(group, self.group);
        let (rank, within) = if self.all_heads.is_multiple_of(self.group) {
            by(f, rest, self.group)
        } else {
            let all = f.int32(self.all_heads);
            let left = f.subi(all, first);
            let most = f.int32(self.group);
            let size = f.minu(left, most);
            (f.divu(rest, size), f.remu(rest, size))
        };
        let row = f.addi(first, within);
        let (batch, head) = by(f, row, self.heads);
        Place { rank, batch, head }
    }
}
