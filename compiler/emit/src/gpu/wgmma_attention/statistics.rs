//! What the gradient needs of each query: log-sum-exp in powers of two, and δ, the row sum of dy · y.
//!
//! Both lie in the workspace, one after the other, with queries rounded up to 128, so that the copy engine can take any tile of them.
//! Queries that are not there, or looked at nothing, have log-sum-exp +∞: their exponentials are 0.

use super::stage::{GLOBAL, wide};
use crate::gpu::memory::load;
use crate::mlir::{Element, Function, Order, Value};
use dspc_kernel::describe::AttentionKernel;
use dspc_program::GpuLaunch;

const THREADS: u64 = 256;
/// Elements of a thread.
const WIDE: u64 = 8;

/// Queries of a head in the workspace.
pub(super) fn padded(kernel: &AttentionKernel) -> u64 {
    kernel.queries.next_multiple_of(128)
}

/// Where δ begins in the workspace.
pub(super) fn delta_at(kernel: &AttentionKernel) -> u64 {
    kernel.batch * kernel.heads * padded(kernel)
}

/// Writes the kernel; parameters are those of the gradient.
pub(super) fn emit(symbol: &str, kernel: &AttentionKernel) -> Result<(String, GpuLaunch), String> {
    let &[_, _, _, sy, sdy, ..] = kernel.strides.as_slice() else {
        return Err("eight strides".to_string());
    };
    let types = [GLOBAL; 10];
    let (mut f, args) = Function::new(&types);
    let f = &mut f;
    let (y, lse, dy, workspace) = (args[3], args[4], args[5], args[9]);
    let lanes = kernel.head_dim / WIDE;
    let rows = THREADS / lanes;
    let (thread, block) = (f.special("tid.x"), f.special("ctaid.x"));
    let of_row = f.int32(lanes);
    let (row, lane) = (f.divu(thread, of_row), f.remu(thread, of_row));
    let before = f.times(block, rows);
    let row = f.addi(before, row);
    // Heads innermost: neighbours in memory.
    let (heads, queries) = (f.int32(kernel.heads), f.int32(padded(kernel)));
    let (rest, head) = (f.divu(row, heads), f.remu(row, heads));
    let (batch, query) = (f.divu(rest, queries), f.remu(rest, queries));
    let (all, end) = (f.int32(kernel.batch), f.int32(kernel.queries));
    let is_row = f.order(Order::Below, batch, all);
    let is_query = f.order(Order::Below, query, end);
    let is_there = f.and(is_row, is_query);
    let nothing = f.float(1, 0.0);
    let column = f.times(head, kernel.head_dim);
    let part = f.times(lane, WIDE);
    let column = f.addi(column, part);
    let column = wide(f, column);
    let position = f.times(batch, kernel.queries);
    let position = f.addi(position, query);
    let position = wide(f, position);
    let sum = f.replace_if(is_there, &[nothing], |f| {
        let mut vector = |operand: Value, stride: u64| {
            let at = f.times(position, stride);
            let at = f.addi(at, column);
            let at = f.offset(operand, at, Element::I16);
            load(f, kernel.dtype, at, WIDE as u32)
        };
        let (y, dy) = (vector(y, sy), vector(dy, sdy));
        let products = y.into_iter().zip(dy);
        vec![products.fold(nothing, |sum, (y, dy)| f.fma(y, dy, sum))]
    });
    let mut sum = sum[0];
    let mut distance = lanes / 2;
    while distance > 0 {
        let other = f.of_lane_across(sum, distance);
        sum = f.add(sum, other);
        distance /= 2;
    }
    let zero = f.int32(0);
    let is_first = f.order(Order::Equal, lane, zero);
    let writes = f.and(is_first, is_row);
    let number = f.times(batch, kernel.heads);
    let number = f.addi(number, head);
    f.only_if(writes, |f| {
        let never = f.float(1, f32::INFINITY);
        let exponent = f.replace_if(is_query, &[never], |f| {
            let at = f.times(number, kernel.queries);
            let at = f.addi(at, query);
            let at = wide(f, at);
            let at = f.offset(lse, at, Element::F32);
            let lse = f.load(at, never.ty, 4);
            let (none, scale) = (f.float(1, f32::NEG_INFINITY), f.float(1, std::f32::consts::LOG2_E));
            let is_empty = f.compare("oeq", lse, none);
            let lse = f.mul(lse, scale);
            vec![f.select(is_empty, never, lse)]
        });
        let at = f.times(number, padded(kernel));
        let at = f.addi(at, query);
        let at = wide(f, at);
        let at = f.offset(workspace, at, Element::F32);
        f.store(exponent[0], at, 4);
        let delta = f.index(delta_at(kernel));
        let at = f.offset(at, delta, Element::F32);
        f.store(sum, at, 4);
    });
    let items = kernel.batch * padded(kernel) * kernel.heads;
    let grid = [items.div_ceil(rows) as u32, 1];
    let (f, grid) = (std::mem::replace(f, Function::new(&[]).0), grid);
    let text = f.finish(symbol, &types, &crate::gpu::attributes(THREADS as u32));
    Ok((text, crate::gpu::launch(symbol, grid, THREADS as u32)))
}
