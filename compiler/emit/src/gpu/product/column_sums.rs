//! A bias gradient: the sums of b's columns, in [`ProductKernel::SUM_PARTS`] runs of rows, then over those in their order.

use super::problem::Problem;
use super::{below, grid, operand_types};
use crate::gpu::memory::{load, store, stored};
use crate::gpu::{attributes, launch};
use crate::mlir::{Element, Function, Order, Value};
use dspc_graph::ir::DType;
use dspc_kernel::describe::ProductKernel;
use dspc_program::GpuLaunch;

const THREADS: u32 = 128;
/// Rows that are read before the first is added.
const AHEAD: u64 = 8;

/// Writes both kernels, and how they are launched.
pub(super) fn emit(
    symbol: &str,
    problem: &Problem<'_>,
    dtype: DType,
) -> Result<[(String, GpuLaunch); 2], String> {
    Ok([partial(&format!("{symbol}_partial"), problem)?, total(&format!("{symbol}_total"), problem, dtype)?])
}

fn workspace(f: &mut Function, problem: &Problem<'_>, operands: &[Value]) -> Value {
    let at = f.index(problem.parts_elements());
    f.offset(operands[operand_types(problem.kernel).len() - 1], at, Element::F32)
}

fn partial(symbol: &str, problem: &Problem<'_>) -> Result<(String, GpuLaunch), String> {
    let ProductKernel { k, n, b, .. } = *problem.kernel;
    let types = operand_types(problem.kernel);
    let (mut f, operands) = Function::new(&types);
    let wide = if b.transposed { 1 } else { super::wide(problem, b.dtype) };
    let (row_step, column_step) = if b.transposed { (1, b.stride) } else { (b.stride, 1) };
    let (thread, block, part) = (f.special("tid.x"), f.special("ctaid.x"), f.special("ctaid.y"));
    let first = f.times(block, THREADS.into());
    let run = f.addi(first, thread);
    let runs = n / wide;
    let is_run = below(&mut f, run, runs);
    let share = k.div_ceil(ProductKernel::SUM_PARTS).next_multiple_of(AHEAD);
    f.only_if(is_run, |f| {
        let column = f.times(run, wide);
        let column = f.zero_extend(column, Element::I64);
        let offset = f.times(column, column_step);
        let start = f.offset(operands[1], offset, stored(b.dtype));
        let begin = f.times(part, share);
        let end = f.plus(begin, share);
        let (last, end_of_all, step) = (f.int32(k - 1), f.int32(k), f.int32(AHEAD));
        let zero = f.float(1, 0.0);
        let end = f.minu(end, end_of_all);
        let sums = f.fold((begin, end, step), &vec![zero; wide as usize], |f, row, sums| {
            let rows: Vec<(Value, Vec<Value>)> = (0..AHEAD)
                .map(|i| {
                    let row = f.plus(row, i);
                    let is_row = f.order(Order::Below, row, end_of_all);
                    let row = f.minu(row, last);
                    let row = f.zero_extend(row, Element::I64);
                    let row = f.times(row, row_step);
                    let at = f.offset(start, row, stored(b.dtype));
                    (is_row, load(f, b.dtype, at, wide as u32))
                })
                .collect();
            rows.into_iter().fold(sums.to_vec(), |sums, (is_row, values)| {
                let add = |(&sum, x): (&Value, Value)| {
                    let x = f.select(is_row, x, zero);
                    f.add(sum, x)
                };
                sums.iter().zip(values).map(add).collect()
            })
        });
        let workspace = workspace(f, problem, &operands);
        let part = f.zero_extend(part, Element::I64);
        let before = f.times(part, n);
        let at = f.addi(before, column);
        let at = f.offset(workspace, at, Element::F32);
        for (i, &sum) in sums.iter().enumerate() {
            let step = f.index(i as u64);
            let at = f.offset(at, step, Element::F32);
            store(f, DType::F32, &[sum], at);
        }
    });
    let blocks = grid(runs.div_ceil(THREADS.into()))?;
    let launch = launch(symbol, [blocks, ProductKernel::SUM_PARTS as u32], THREADS);
    Ok((f.finish(symbol, &types, &attributes(THREADS)), launch))
}

fn total(symbol: &str, problem: &Problem<'_>, dtype: DType) -> Result<(String, GpuLaunch), String> {
    let n = problem.kernel.n;
    let types = operand_types(problem.kernel);
    let (mut f, operands) = Function::new(&types);
    let (thread, block) = (f.special("tid.x"), f.special("ctaid.x"));
    let first = f.times(block, THREADS.into());
    let column = f.addi(first, thread);
    let is_column = below(&mut f, column, n);
    f.only_if(is_column, |f| {
        let wide = f.zero_extend(column, Element::I64);
        let workspace = workspace(f, problem, &operands);
        let start = f.offset(workspace, wide, Element::F32);
        let parts: Vec<Value> = (0..ProductKernel::SUM_PARTS)
            .map(|part| {
                let step = f.index(part * n);
                let at = f.offset(start, step, Element::F32);
                load(f, DType::F32, at, 1)[0]
            })
            .collect();
        let sum = parts[1..].iter().fold(parts[0], |sum, &x| f.add(sum, x));
        let at = f.offset(operands[3], wide, stored(dtype));
        store(f, dtype, &[sum], at);
    });
    let launch = launch(symbol, [grid(n.div_ceil(THREADS.into()))?, 1], THREADS);
    Ok((f.finish(symbol, &types, &attributes(THREADS)), launch))
}
