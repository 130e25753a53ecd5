//! The second kernel of a product in parts: adds the parts in their order, then finishes as the first would have.

use super::finish::Finish;
use super::problem::Problem;
use super::{below, operand_types, part_of_workspace, wide};
use crate::gpu::memory::load;
use crate::gpu::{attributes, launch};
use crate::mlir::{Element, Function, Value};
use dspc_graph::ir::DType;
use dspc_program::GpuLaunch;

const THREADS: u32 = 256;

/// Writes it, and how it is launched.
pub(super) fn emit(symbol: &str, problem: &Problem<'_>) -> Result<(String, GpuLaunch), String> {
    let types = operand_types(problem.kernel);
    let (mut f, operands) = Function::new(&types);
    let wide = wide(problem, DType::F32);
    let runs = problem.m * (problem.n / wide);
    if runs * wide > i32::MAX as u64 {
        return Err(format!("{}×{} are too many elements for parts", problem.m, problem.n));
    }
    let (thread, block) = (f.special("tid.x"), f.special("ctaid.x"));
    let first = f.times(block, THREADS.into());
    let index = f.addi(first, thread);
    let is_run = below(&mut f, index, runs);
    f.only_if(is_run, |f| {
        let across = f.int32(problem.n / wide);
        let (row, column) = (f.divu(index, across), f.remu(index, across));
        let column = f.times(column, wide);
        let element = f.times(index, wide);
        let element = f.zero_extend(element, Element::I64);
        let mut sums: Vec<Value> = vec![];
        for part in 0..problem.kernel.splits {
            let part = f.int32(part);
            let products = part_of_workspace(f, problem, &operands, part);
            let at = f.offset(products, element, Element::F32);
            let products = load(f, DType::F32, at, wide as u32);
            sums = match sums.is_empty() {
                true => products,
                false => sums.iter().zip(products).map(|(&sum, x)| f.add(sum, x)).collect(),
            };
        }
        Finish::new(problem, &operands).run(f, row, column, &sums);
    });
    let launch = launch(symbol, [super::grid(runs.div_ceil(THREADS.into()))?, 1], THREADS);
    Ok((f.finish(symbol, &types, &attributes(THREADS)), launch))
}
