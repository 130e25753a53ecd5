//! Attention for Hopper: products of warpgroups on tiles that the copy engine brings, for heads of 64 and 128.
//!
//! A block is some warpgroups that compute, 64 rows each, and one warp more that loads. Blocks stay and take item after item, so that the
//! loads of the next item run while the last one ends. Three kernels are one pattern: some tiles stay for an item, others come through a
//! ring, two at a time. Forward keeps queries and visits keys and values; the gradient of queries keeps queries and dy and visits keys and
//! values; the gradients of keys and values keep those and visit queries and dy. Scores are computed in each, so no two blocks write one
//! number and sums have one order: the gradient is the same bits at every run.
//!
//! Scores, exponentials and their gradients stay in registers: a result's registers, packed in pairs, are the next product's left factor.
//! Source: Shah et al. 2024 (FlashAttention-3); Dao 2023 (FlashAttention-2).

mod allowed;
mod backward_keys;
mod backward_queries;
mod forward;
mod fragment;
mod items;
mod loads;
mod softmax;
mod stage;
mod statistics;
mod visits;

use crate::mlir::{Element, Function, Order, Registers, Type, Value};
use dspc_graph::ir::DType;
use dspc_kernel::describe::AttentionKernel;
use dspc_program::{GpuLaunch, TensorMap};

/// Sizes of a kernel's tiles.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tiling {
    /// Warpgroups that compute, 64 rows of the block's own tile each.
    pub groups: u32,
    /// Rows of a visited tile.
    pub visited: u32,
    /// Visits that there is room for.
    pub stages: u32,
    /// Items whose own tiles there is room for.
    pub items: u32,
}

/// Multiprocessors of the largest Hopper GPU, with a block each; on a smaller one some blocks begin when others have ended.
const PROCESSORS: u32 = 132;

/// Whether these kernels serve a description; another form must serve the others.
pub(super) fn supports(kernel: &AttentionKernel) -> bool {
    let sizes = [kernel.batch, kernel.heads, kernel.kv_heads, kernel.keys];
    let small = |x: u64| x < 1 << 30;
    // The copy engine takes rows on 16-byte boundaries. Statistics of one query alone would not fit the workspace.
    matches!(kernel.head_dim, 64 | 128)
        && matches!(kernel.dtype, DType::Bf16 | DType::F16)
        && sizes.iter().all(|&size| size > 0 && small(size))
        && kernel.queries > 1
        && small(kernel.queries)
        && small(kernel.batch * kernel.heads * kernel.queries.next_multiple_of(128))
        && kernel.heads.is_multiple_of(kernel.kv_heads)
        && kernel.strides.iter().all(|stride| stride.is_multiple_of(8))
        && kernel.scale > 0.0
        && kernel.scale.is_finite()
}

/// The function and launch of attention. Parameters: q, k, v, y, log-sum-exp, then the maps.
pub(super) fn forward(symbol: &str, kernel: &AttentionKernel) -> Result<(String, Vec<GpuLaunch>), String> {
    let (text, launch) = forward::emit(symbol, kernel, forward::tiling(kernel))?;
    Ok((text, vec![launch]))
}

/// The functions and launches of its gradient. Parameters: q, k, v, y, log-sum-exp, dy, dq, dk, dv, the workspace, then the maps.
pub(super) fn backward(symbol: &str, kernel: &AttentionKernel) -> Result<(String, Vec<GpuLaunch>), String> {
    let (rows, first) = statistics::emit(&format!("{symbol}_statistics"), kernel)?;
    let tiling = backward_keys::tiling(kernel);
    let (keys, second) = backward_keys::emit(&format!("{symbol}_keys"), kernel, tiling)?;
    let tiling = backward_queries::tiling(kernel);
    let (queries, third) = backward_queries::emit(&format!("{symbol}_queries"), kernel, tiling)?;
    Ok((rows + &keys + &queries, vec![first, second, third]))
}

/// Arguments of a function: pointers, then maps.
fn arguments(pointers: usize, maps: usize) -> Vec<Type> {
    let mut types = vec![stage::GLOBAL; pointers];
    types.extend(vec![Type::scalar(Element::TensorMap); maps]);
    types
}

impl Tiling {
    /// Rows of the block's own tile.
    fn own(&self) -> u32 {
        64 * self.groups
    }

    /// Threads of a block: those that compute, and a warpgroup that loads and gives its registers away.
    fn threads(&self) -> u32 {
        128 * self.groups + 128
    }

    /// Registers of the threads that load and of those that compute: together no more than at the start.
    fn registers(&self) -> (u32, u32) {
        match self.groups {
            ..=2 => (40, 232),
            _ => (32, 160),
        }
    }

    /// The function's attributes.
    fn attributes(&self) -> String {
        format!(
            " attributes {{gpu.kernel, nvvm.kernel, nvvm.maxntid = array<i32: {}, 1, 1>, nvvm.minctasm = 1 : i32}}",
            self.threads()
        )
    }

    fn launch(&self, symbol: &str, items: u64, shared: u32, maps: Vec<TensorMap>) -> GpuLaunch {
        let blocks = u64::from(PROCESSORS).min(items) as u32;
        GpuLaunch { symbol: symbol.into(), grid: [blocks, 1, 1], block: self.threads(), shared, maps }
    }

    /// Threads that load take one way, those that compute the other.
    fn roles(
        &self,
        f: &mut Function,
        thread: Value,
        items: u64,
        load: impl FnOnce(&mut Function),
        compute: impl FnOnce(&mut Function),
    ) {
        let loader = f.int32((128 * self.groups).into());
        let computes = f.order(Order::Below, thread, loader);
        let (fewer, more) = self.registers();
        f.either(
            computes,
            |f| {
                f.change_registers(Registers::Increase(more));
                // Each block has an item, and where that is known no products run into a place that is reached without any.
                let (block, end) = (f.special("ctaid.x"), f.int32(items));
                let has_one = f.order(Order::Less, block, end);
                f.only_if(has_one, compute);
            },
            |f| {
                f.change_registers(Registers::Decrease(fewer));
                let is_loader = f.order(Order::Equal, thread, loader);
                f.only_if(is_loader, load);
            },
        );
    }
}

/// `log₂ e` times the scale of scores.
fn scale_of_powers(kernel: &AttentionKernel) -> f32 {
    (kernel.scale * std::f64::consts::LOG2_E) as f32
}
