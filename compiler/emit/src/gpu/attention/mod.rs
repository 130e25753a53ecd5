//! Attention on tensor cores through `mma.sync`: what every generation from sm_80 on runs.
//!
//! Forward is one launch. The gradient is three: δ, then dk and dv with keys outermost, then dq with queries outermost; nothing is added
//! across blocks of threads, so results are the same bits at every run. A matrix of scores is never in memory: a warp has a strip of one in
//! registers. Heads narrower than 64 or 128 are filled with zeros in shared memory.
//!
//! The mask is data: [`blocks`] says which tiles are skipped, and which run the predicate.

mod block;
pub(in crate::gpu) mod blocks;
pub(in crate::gpu) mod delta;
mod forward;
mod gradient;
mod keys;
pub(in crate::gpu) mod operand;
mod pipeline;
mod queries;
pub(in crate::gpu) mod shape;
mod tile;

use crate::mask::is_narrow;
use block::Tiling;
use dspc_graph::mask::Mask;
use dspc_kernel::describe::AttentionKernel;
use dspc_program::GpuLaunch;

/// Text of the functions, and their launches in order. Operands are q, k, v, y, log-sum-exp.
pub(super) fn emit_forward(
    symbol: &str,
    kernel: &AttentionKernel,
) -> Result<(String, Vec<GpuLaunch>), String> {
    let width = shape::padded_width(kernel, 4)?;
    let (text, launch) = forward::emit(symbol, kernel, spare(kernel, forward_tiling(width)))?;
    Ok((text, vec![launch]))
}

/// The same of the gradient. Operands are q, k, v, y, log-sum-exp, dy, dq, dk, dv, workspace.
pub(super) fn emit_backward(
    symbol: &str,
    kernel: &AttentionKernel,
) -> Result<(String, Vec<GpuLaunch>), String> {
    let width = shape::padded_width(kernel, 8)?;
    let strides = [3, 4].map(|i| kernel.strides[i]);
    let reads = [(3, strides[0]), (5, strides[1]), (9, 0)];
    let functions = [
        delta::emit(&format!("{symbol}_delta"), kernel, width, 10, reads)?,
        keys::emit(&format!("{symbol}_keys"), kernel, spare(kernel, keys_tiling(width)))?,
        queries::emit(&format!("{symbol}_queries"), kernel, spare(kernel, queries_tiling(width)))?,
    ];
    let (texts, launches): (Vec<String>, Vec<GpuLaunch>) = functions.into_iter().unzip();
    Ok((texts.concat(), launches))
}

/// Fewer scores at a time where registers are needed for more: copies element by element, or a predicate with numbers of 64 bits.
fn spare(kernel: &AttentionKernel, tiling: Tiling) -> Tiling {
    let is_wide = kernel.strides.iter().chain([&kernel.head_dim]).all(|n| n.is_multiple_of(8));
    let is_narrow = match &kernel.mask {
        Mask::Full => true,
        Mask::Where(expr) => is_narrow(expr, kernel.queries, kernel.keys),
    };
    if is_wide && is_narrow { tiling } else { Tiling { inner: 32, chunk: 16, held: false, ..tiling } }
}

fn forward_tiling(width: u64) -> Tiling {
    match width {
        64 => Tiling { warps: 4, groups: 1, inner: 64, chunk: 64, buffers: 2, resident: 3, held: true },
        _ => Tiling { warps: 4, groups: 1, inner: 64, chunk: 64, buffers: 2, resident: 2, held: true },
    }
}

fn keys_tiling(width: u64) -> Tiling {
    match width {
        64 => Tiling { warps: 4, groups: 1, inner: 64, chunk: 64, buffers: 2, resident: 2, held: true },
        _ => Tiling { warps: 4, groups: 1, inner: 32, chunk: 32, buffers: 2, resident: 2, held: false },
    }
}

fn queries_tiling(width: u64) -> Tiling {
    match width {
        64 => Tiling { warps: 4, groups: 1, inner: 64, chunk: 64, buffers: 2, resident: 2, held: true },
        _ => Tiling { warps: 4, groups: 1, inner: 64, chunk: 32, buffers: 2, resident: 2, held: false },
    }
}
