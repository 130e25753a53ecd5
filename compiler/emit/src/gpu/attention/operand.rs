//! Operands in global memory: heads side by side in rows, rows a stride apart, batches one after the other.

use crate::mlir::{Element, Function, Value};
use dspc_graph::ir::DType;
use dspc_kernel::describe::AttentionKernel;

/// One head of an operand.
#[derive(Clone, Copy, Debug)]
pub(in crate::gpu) struct Head {
    /// Address of the first row's first element.
    pub base: Value,
    /// Elements from one row to the next.
    pub stride: u64,
    /// Rows.
    pub positions: u64,
    /// Elements of a row.
    pub columns: u64,
    /// Whether 16 bytes of elements from a multiple of their number on can be accessed at once.
    pub is_wide: bool,
}

/// What an element is in memory.
pub(in crate::gpu) fn element(dtype: DType) -> Element {
    match dtype {
        DType::F32 => Element::F32,
        DType::F16 => Element::F16,
        DType::Bf16 | DType::I32 => Element::Bf16,
    }
}

/// A head of an operand; batch and head are 32-bit numbers.
pub(in crate::gpu) fn head(
    f: &mut Function,
    kernel: &AttentionKernel,
    (pointer, stride, positions): (Value, u64, u64),
    (batch, head): (Value, Value),
) -> Head {
    let (batch, head) = (f.zero_extend(batch, Element::I64), f.zero_extend(head, Element::I64));
    let first = f.times(batch, positions * stride);
    let column = f.times(head, kernel.head_dim);
    let at = f.addi(first, column);
    let base = f.offset(pointer, at, element(kernel.dtype));
    let each = 16 / kernel.dtype.bytes();
    let is_wide = stride.is_multiple_of(each) && kernel.head_dim.is_multiple_of(each);
    Head { base, stride, positions, columns: kernel.head_dim, is_wide }
}

/// The address of a row of an f32 statistic [batch, heads, `positions`].
pub(in crate::gpu) fn statistic(
    f: &mut Function,
    kernel: &AttentionKernel,
    (pointer, positions): (Value, u64),
    (batch, head): (Value, Value),
) -> Value {
    let row = f.times(batch, kernel.heads);
    let row = f.addi(row, head);
    let row = f.zero_extend(row, Element::I64);
    let at = f.times(row, positions);
    f.offset(pointer, at, Element::F32)
}
