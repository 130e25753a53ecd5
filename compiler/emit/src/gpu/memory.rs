//! A thread's run of neighbouring elements: one access of up to 16 bytes, or two, and a scalar for each element.

use crate::mlir::{Element, Function, Type, Value};
use dspc_graph::ir::DType;

/// What an element is in memory.
pub(super) fn stored(dtype: DType) -> Element {
    match dtype {
        DType::F32 => Element::F32,
        DType::F16 => Element::F16,
        DType::Bf16 => Element::Bf16,
        DType::I32 => Element::I32,
    }
}

/// Elements of one access.
fn piece(dtype: DType, count: u32) -> u32 {
    count.min((16 / dtype.bytes()) as u32)
}

/// Reads `count` neighbours; the address is aligned to as many bytes as they fill, at most 16.
pub(super) fn load(f: &mut Function, dtype: DType, pointer: Value, count: u32) -> Vec<Value> {
    let packed = load_packed(f, dtype, pointer, count);
    unpack(f, &packed)
}

/// Values of [`load_packed`].
pub(super) fn packs(dtype: DType, count: u32) -> usize {
    (count / piece(dtype, count)) as usize
}

/// The same, as they lie in memory: an access each.
pub(super) fn load_packed(f: &mut Function, dtype: DType, pointer: Value, count: u32) -> Vec<Value> {
    let element = stored(dtype);
    let piece = piece(dtype, count);
    let mut values = vec![];
    for first in (0..count).step_by(piece as usize) {
        let step = f.index(first.into());
        let at = if first == 0 { pointer } else { f.offset(pointer, step, element) };
        values.push(f.load(at, Type::vector(element, piece), u64::from(piece) * dtype.bytes()));
    }
    values
}

/// A scalar for each element.
pub(super) fn unpack(f: &mut Function, packed: &[Value]) -> Vec<Value> {
    let mut values = vec![];
    for &all in packed {
        for lane in 0..all.lanes() {
            let value = if all.lanes() == 1 { all } else { f.extract(all, lane) };
            values.push(widen(f, value));
        }
    }
    values
}

/// Writes neighbours.
pub(super) fn store(f: &mut Function, dtype: DType, values: &[Value], pointer: Value) {
    let element = stored(dtype);
    let piece = piece(dtype, values.len() as u32);
    for (i, values) in values.chunks(piece as usize).enumerate() {
        let step = f.index(i as u64 * u64::from(piece));
        let at = if i == 0 { pointer } else { f.offset(pointer, step, element) };
        let narrow: Vec<Value> = values.iter().map(|&v| narrow(f, dtype, v)).collect();
        let all = f.gather(&narrow);
        f.store(all, at, u64::from(piece) * dtype.bytes());
    }
}

fn widen(f: &mut Function, value: Value) -> Value {
    match value.ty.element {
        Element::F16 | Element::Bf16 => f.widen_half(value),
        _ => value,
    }
}

fn narrow(f: &mut Function, dtype: DType, value: Value) -> Value {
    match dtype {
        DType::F32 | DType::I32 => value,
        DType::F16 => f.narrow_half(value),
        DType::Bf16 => f.narrow_bfloat(value),
    }
}
