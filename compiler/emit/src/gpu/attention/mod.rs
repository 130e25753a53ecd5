//! Attention on tensor cores through `mma.sync`: what every generation from sm_80 on runs.
//!
//! Forward is one launch. The gradient is three: δ, then dk and dv with keys outermost, then dq with queries outermost; nothing is added
//! across blocks of threads, so results are the same bits at every run. A matrix of scores is never in memory: a warp has a strip of one in
//! registers. Heads narrower than 64 or 128 are filled with zeros in shared memory. Operands are 16 bits or f32 ([`factors`]); f32 takes
//! twice the shared memory, so its tiles are smaller.
//!
//! The mask is data: [`blocks`] says which tiles are skipped, and which run the predicate.

mod block;
pub(in crate::gpu) mod blocks;
pub(in crate::gpu) mod delta;
mod factors;
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
use dspc_graph::ir::DType;
use dspc_graph::mask::Mask;
use dspc_kernel::describe::AttentionKernel;
use dspc_program::GpuLaunch;

/// Text of the functions, and their launches in order. Operands are q, k, v, y, log-sum-exp.
pub(super) fn emit_forward(
    symbol: &str,
    kernel: &AttentionKernel,
) -> Result<(String, Vec<GpuLaunch>), String> {
    let width = shape::padded_width(kernel, 4)?;
    let (text, launch) = forward::emit(symbol, kernel, spare(kernel, forward_tiling(kernel, width)))?;
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
        keys::emit(&format!("{symbol}_keys"), kernel, spare(kernel, keys_tiling(kernel, width)))?,
        queries::emit(&format!("{symbol}_queries"), kernel, spare(kernel, queries_tiling(kernel, width)))?,
    ];
    let (texts, launches): (Vec<String>, Vec<GpuLaunch>) = functions.into_iter().unzip();
    Ok((texts.concat(), launches))
}

/// Fewer scores at a time where registers are needed for more: copies element by element, or a predicate with numbers of 64 bits.
fn spare(kernel: &AttentionKernel, tiling: Tiling) -> Tiling {
    let each = 16 / kernel.dtype.bytes();
    let is_wide = kernel.strides.iter().chain([&kernel.head_dim]).all(|n| n.is_multiple_of(each));
    let is_narrow = match &kernel.mask {
        Mask::Full => true,
        Mask::Where(expr) => is_narrow(expr, kernel.queries, kernel.keys),
    };
    if is_wide && is_narrow {
        return tiling;
    }
    let inner = if kernel.dtype == DType::F32 { 16 } else { 32 };
    Tiling { inner, chunk: 16, held: false, ..tiling }
}

/// Four warps of 16 rows, that walk through two buffers.
const USUAL: Tiling =
    Tiling { warps: 4, groups: 1, inner: 64, chunk: 64, buffers: 2, resident: 2, held: true };
/// The same for f32: half as many rows a buffer.
const SINGLE: Tiling = Tiling { inner: 32, chunk: 32, held: false, ..USUAL };

fn forward_tiling(kernel: &AttentionKernel, width: u64) -> Tiling {
    match (kernel.dtype, width) {
        (DType::F32, 64) => SINGLE,
        (DType::F32, _) => Tiling { resident: 1, ..SINGLE },
        (_, 64) => Tiling { resident: 3, ..USUAL },
        _ => USUAL,
    }
}

fn keys_tiling(kernel: &AttentionKernel, width: u64) -> Tiling {
    match (kernel.dtype, width) {
        (DType::F32, 64) => Tiling { chunk: 16, resident: 1, ..SINGLE },
        (DType::F32, _) => Tiling { inner: 16, chunk: 16, resident: 1, ..SINGLE },
        (_, 64) => USUAL,
        _ => Tiling { inner: 32, chunk: 32, held: false, ..USUAL },
    }
}

fn queries_tiling(kernel: &AttentionKernel, width: u64) -> Tiling {
    match (kernel.dtype, width) {
        (DType::F32, 64) => Tiling { resident: 1, ..SINGLE },
        (DType::F32, _) => Tiling { inner: 16, chunk: 16, resident: 1, ..SINGLE },
        (_, 64) => USUAL,
        _ => Tiling { chunk: 32, held: false, ..USUAL },
    }
}
