//! Matrix products on a GPU: our own kernels, for hosts without NVIDIA's library and where they are faster.
//!
//! [`hopper`] for 16-bit factors in whole 16-byte rows on sm_90a, [`warps`] for all other 16-bit factors and for TF32, [`plain`] for f32. A
//! product in parts leaves them in its workspace, and [`combine`] adds them in order; a bias gradient is summed by [`column_sums`].

mod choose;
mod column_sums;
mod combine;
mod finish;
mod hopper;
mod plain;
mod problem;
mod warps;

use self::problem::Problem;
use super::GpuChip;
use crate::mlir::{Element, Function, Order, Space, Type, Value};
use dspc_graph::ir::DType;
use dspc_kernel::describe::{ProductFused, ProductKernel};
use dspc_program::GpuLaunch;

/// Writes a product's kernels, and how they are launched.
pub(super) fn emit(
    symbol: &str,
    kernel: &ProductKernel,
    chip: GpuChip,
) -> Result<(String, Vec<GpuLaunch>), String> {
    let problem = Problem::of(kernel)?;
    let way = choose::way(&problem, chip);
    let (mut text, launch) = match way {
        choose::Way::Hopper(tile) => hopper::emit(symbol, &problem, tile)?,
        choose::Way::Warps(tile) => warps::emit(symbol, &problem, tile)?,
        choose::Way::Plain => plain::emit(symbol, &problem)?,
    };
    let mut launches = vec![launch];
    let mut add = |(more, launch): (String, GpuLaunch)| {
        text += &more;
        launches.push(launch);
    };
    if kernel.splits > 1 {
        add(combine::emit(&format!("{symbol}_combine"), &problem)?);
    }
    if let Some(ProductFused::BiasGradient(dtype)) = kernel.fused {
        let parts = match way {
            choose::Way::Hopper(tile) => column_sums::ColumnSums::parts(&problem, tile.n),
            choose::Way::Warps(_) | choose::Way::Plain => None,
        };
        column_sums::emit(&format!("{symbol}_sums"), &problem, dtype, parts)?.into_iter().for_each(add);
    }
    Ok((text, launches))
}

/// Operands of a product's kernels.
fn operand_types(kernel: &ProductKernel) -> Vec<Type> {
    let fused = match kernel.fused {
        None => 0,
        Some(ProductFused::Bias(_) | ProductFused::GeluGradient { .. } | ProductFused::BiasGradient(_)) => 1,
        Some(ProductFused::BiasGelu { .. }) => 2,
    };
    let workspace = usize::from(kernel.workspace_elements() > 0);
    vec![Type::scalar(Element::Pointer(Space::Global)); 3 + fused + workspace]
}

/// A size of a grid.
fn grid(blocks: u64) -> Result<u32, String> {
    match u32::try_from(blocks) {
        Ok(blocks) if blocks <= i32::MAX as u32 => Ok(blocks),
        _ => Err(format!("{blocks} blocks are too many for a grid")),
    }
}

/// Shared memory whose size the launch says.
fn dynamic_shared(symbol: &str) -> String {
    format!(
        "  llvm.mlir.global external @{symbol}() {{addr_space = 3 : i32, alignment = 1024 : i64}} : !llvm.array<0 x i8>\n"
    )
}

/// The row and the column of a number among `rows` × `cols`: down `height` rows, then to the next column.
fn band(f: &mut Function, index: Value, rows: u64, cols: u64, height: u64) -> (Value, Value) {
    let each = f.int32(height * cols);
    let band = f.divu(index, each);
    let inside = f.remu(index, each);
    let first = f.times(band, height);
    let all = f.int32(rows);
    let left = f.subi(all, first);
    let height = f.int32(height);
    let height = f.minu(left, height);
    let (row, col) = (f.remu(inside, height), f.divu(inside, height));
    (f.addi(first, row), col)
}

/// Where the products of a part of the summed dim go.
fn part_of_workspace(f: &mut Function, problem: &Problem<'_>, operands: &[Value], part: Value) -> Value {
    let workspace = operands[operand_types(problem.kernel).len() - 1];
    let part = f.zero_extend(part, Element::I64);
    let before = f.times(part, problem.m * problem.n);
    f.offset(workspace, before, Element::F32)
}

/// Elements of an access that the rows of a matrix allow.
fn wide(problem: &Problem<'_>, dtype: DType) -> u64 {
    match (problem.is_regular(), dtype.bytes()) {
        (false, _) => 1,
        (true, 2) => 8,
        (true, _) => 4,
    }
}

/// Whether an index is below an end.
fn below(f: &mut Function, x: Value, end: u64) -> Value {
    let end = f.int32(end);
    f.order(Order::Below, x, end)
}
