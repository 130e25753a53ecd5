//! δ = Σ dy · y of every query, before the gradient's other kernels: a few lanes a row, eight elements each.
//!
//! Shapes    y, dy: [batch, queries, heads, head_dim]   δ: f32 [batch, heads, queries rounded up]
//! Numerics  products and sums in f32: a lane's eight in order, then a butterfly.

use super::operand::{element, head, statistic};
use crate::mlir::{Element, Function, INT, Order, Space, Type, Value};
use dspc_kernel::describe::AttentionKernel;
use dspc_program::GpuLaunch;

/// Threads of a block.
const THREADS: u64 = 256;
/// δ has so many rows a head, times a number.
const ROWS_STEP: u64 = 128;

/// Rows of δ from one head to the next.
pub(in crate::gpu) fn delta_rows(kernel: &AttentionKernel) -> u64 {
    kernel.queries.next_multiple_of(ROWS_STEP)
}

/// Writes the function. It has `pointers` parameters: y, dy and the workspace, which begins with δ, are those of these numbers.
pub(in crate::gpu) fn emit(
    symbol: &str,
    kernel: &AttentionKernel,
    width: u64,
    pointers: usize,
    [y, dy, workspace]: [(usize, u64); 3],
) -> Result<(String, GpuLaunch), String> {
    let types = vec![Type::scalar(Element::Pointer(Space::Global)); pointers];
    let (mut f, args) = Function::new(&types);
    let rows = kernel.batch * kernel.heads * kernel.queries;
    let blocks = rows.div_ceil(THREADS * 8 / width);
    let Ok(grid) = i32::try_from(blocks) else {
        return Err(format!("{blocks} blocks are too many for a grid"));
    };
    let operands = [y, dy, workspace].map(|(number, stride)| (args[number], stride));
    sum_rows(&mut f, kernel, width / 8, rows, operands);
    let attributes = super::super::attributes(THREADS as u32);
    let launch = super::super::launch(symbol, [grid as u32, 1], THREADS as u32);
    Ok((f.finish(symbol, &types, &attributes), launch))
}

/// A thread's part, with `lanes` threads a row. Threads after the last row do that one again.
fn sum_rows(
    f: &mut Function,
    kernel: &AttentionKernel,
    lanes: u64,
    rows: u64,
    [y, dy, workspace]: [(Value, u64); 3],
) {
    let (block, thread) = (f.special("ctaid.x"), f.special("tid.x"));
    let first = f.times(block, THREADS / lanes);
    let own = f.shr(thread, lanes.ilog2().into());
    let row = f.addi(first, own);
    let last = f.int32(rows - 1);
    let row = f.minu(row, last);
    let (heads, queries) = (f.int32(kernel.heads), f.int32(kernel.queries));
    let (position, head_number) = (f.divu(row, heads), f.remu(row, heads));
    let (batch, query) = (f.divu(position, queries), f.remu(position, queries));
    let mask = f.int32(lanes - 1);
    let lane = f.and(thread, mask);
    let column = f.shl(lane, 3);
    let [y, dy] = [y, dy].map(|(pointer, stride)| {
        let from = head(f, kernel, (pointer, stride, kernel.queries), (batch, head_number));
        let query = f.zero_extend(query, Element::I64);
        let at = f.times(query, from.stride);
        let row = f.offset(from.base, at, element(kernel.dtype));
        eight(f, kernel, row, column, from.is_wide)
    });
    let mut sum = f.float(1, 0.0);
    for (&y, &dy) in y.iter().zip(&dy) {
        sum = f.fma(y, dy, sum);
    }
    for bits in (0..lanes.ilog2()).map(|i| 1 << i) {
        let other = f.of_lane_across(sum, bits);
        sum = f.add(sum, other);
    }
    let base = statistic(f, kernel, (workspace.0, delta_rows(kernel)), (batch, head_number));
    let query = f.zero_extend(query, Element::I64);
    let at = f.offset(base, query, Element::F32);
    let zero = f.int32(0);
    let is_first = f.order(Order::Equal, lane, zero);
    f.only_if(is_first, |f| f.store(sum, at, 4));
}

/// Eight elements of a row from a column on, 0 after the last.
fn eight(f: &mut Function, kernel: &AttentionKernel, row: Value, column: Value, is_wide: bool) -> Vec<Value> {
    let of = element(kernel.dtype);
    let zero = f.float(1, 0.0);
    let is_half = kernel.dtype.bytes() == 2;
    if is_wide {
        let each = 16 / kernel.dtype.bytes();
        let mut values = vec![];
        for first in (0..8).step_by(each as usize) {
            let column = f.plus(column, first);
            let end = f.int32(kernel.head_dim);
            let inside = f.order(Order::Below, column, end);
            let none = f.int32(0);
            let column = f.select(inside, column, none);
            let at = f.offset(row, column, of);
            let all = f.load(at, Type::vector(of, each as u32), 16);
            let all = if is_half { f.widen_half(all) } else { all };
            values.extend((0..each as u32).map(|i| {
                let x = f.extract(all, i);
                f.select(inside, x, zero)
            }));
        }
        return values;
    }
    (0..8)
        .map(|i| {
            let column = f.plus(column, i);
            let last = f.int(INT, kernel.head_dim as i64 - 1);
            let inside = f.order(Order::LessEqual, column, last);
            let column = f.minu(column, last);
            let at = f.offset(row, column, of);
            let x = f.load(at, Type::scalar(of), kernel.dtype.bytes());
            let x = if is_half { f.widen_half(x) } else { x };
            f.select(inside, x, zero)
        })
        .collect()
}
