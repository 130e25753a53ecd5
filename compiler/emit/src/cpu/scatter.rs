//! Adds rows by id: `out[ids[n], c] += x[n, c]`, n in order, so that an id that comes twice sums in that order.
//!
//! An item is a column: any run of them is a few vectors of each row, and no two items touch the same place.

use super::memory::{Mask, address, load, store};
use crate::mlir::{Element, Function, Order, Type};
use dspc_graph::ir::DType;
use dspc_kernel::describe::ScatterAddKernel;

/// Writes a kernel.
pub(super) fn emit(symbol: &str, kernel: &ScatterAddKernel, lanes: u32) -> Result<String, String> {
    let arguments = [Function::pointer_type(), Type::scalar(Element::I64), Type::scalar(Element::I64)];
    let (mut f, args) = Function::new(&arguments);
    let &[table, begin, end] = args.as_slice() else {
        return Err("three arguments".to_string());
    };
    let [ids, x, out] = [0, 1, 2].map(|i| {
        let i = f.index(i);
        let at = f.offset(table, i, Element::I64);
        f.load(at, Function::pointer_type(), 8)
    });
    let steps: Vec<i64> = (0..lanes.into()).collect();
    let steps = f.lanes(Element::I64, &steps);
    f.repeat(kernel.rows, 1, |f, n| {
        let id = address(f, DType::I32, ids, n);
        let id = f.load(id, Type::scalar(Element::I32), 4);
        let id = f.sign_extend(id, Element::I64);
        let from = f.times(n, kernel.stride);
        let to = f.times(id, kernel.cols);
        let step = f.index(lanes.into());
        f.fold((begin, end, step), &[], |f, column, _| {
            let left = f.subi(end, column);
            let left = f.broadcast(left, lanes);
            let mask = Mask::Lanes(f.order(Order::Less, steps, left));
            let at = f.addi(from, column);
            let at = address(f, kernel.dtype, x, at);
            let value = load(f, kernel.dtype, at, lanes, mask);
            let at = f.addi(to, column);
            let at = address(f, DType::F32, out, at);
            let before = load(f, DType::F32, at, lanes, mask);
            let after = f.add(before, value);
            store(f, DType::F32, after, at, mask);
            vec![]
        });
    });
    Ok(f.finish(symbol, &arguments, ""))
}
