//! Loads and stores of vectors, whatever the type in memory: bf16 and f16 are f32 in registers, rounded once when stored.

use crate::mlir::{Element, Function, Type, Value};
use dspc_graph::ir::DType;

/// The lanes an access touches.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Mask {
    /// All.
    All,
    /// Those that are true in this value.
    Lanes(Value),
}

/// What an element is in memory.
pub(crate) fn stored(dtype: DType) -> Element {
    match dtype {
        DType::F32 => Element::F32,
        DType::F16 => Element::F16,
        DType::Bf16 => Element::I16,
        DType::I32 => Element::I32,
    }
}

/// The address of an element.
pub(crate) fn address(f: &mut Function, dtype: DType, base: Value, element: Value) -> Value {
    f.offset(base, element, stored(dtype))
}

/// Reads lanes; those beyond the mask are 0.
pub(crate) fn load(f: &mut Function, dtype: DType, pointer: Value, lanes: u32, mask: Mask) -> Value {
    let ty = Type::vector(stored(dtype), lanes);
    let raw = match mask {
        Mask::All => f.load(pointer, ty, dtype.bytes()),
        Mask::Lanes(mask) => f.load_masked(pointer, mask, ty, dtype.bytes()),
    };
    widen(f, dtype, raw)
}

/// Writes lanes.
pub(crate) fn store(f: &mut Function, dtype: DType, value: Value, pointer: Value, mask: Mask) {
    let raw = narrow(f, dtype, value);
    match mask {
        Mask::All => f.store(raw, pointer, dtype.bytes()),
        Mask::Lanes(mask) => f.store_masked(raw, pointer, mask, dtype.bytes()),
    }
}

/// From what memory holds.
pub(crate) fn widen(f: &mut Function, dtype: DType, raw: Value) -> Value {
    match dtype {
        DType::F32 | DType::I32 => raw,
        DType::F16 => f.widen_half(raw),
        DType::Bf16 => {
            let bits = f.zero_extend(raw, Element::I32);
            let bits = f.shl(bits, 16);
            f.float_of_bits(bits)
        }
    }
}

/// To what memory holds, to nearest even; a NaN stays one.
///
/// bf16 is rounded by integers: the instruction some CPUs have for it flushes subnormals, and the bits should not depend on the CPU.
pub(crate) fn narrow(f: &mut Function, dtype: DType, value: Value) -> Value {
    match dtype {
        DType::F32 | DType::I32 => value,
        DType::F16 => f.narrow_half(value),
        DType::Bf16 => {
            let bits = f.bits(value);
            let last = f.shr(bits, 16);
            let one = f.int(bits.ty, 1);
            let odd = f.and(last, one);
            let rounded = f.plus(bits, 0x7FFF);
            let rounded = f.addi(rounded, odd);
            let quiet = f.int(bits.ty, 0x7FC0_0000);
            let is_nan = f.compare("uno", value, value);
            let rounded = f.select(is_nan, quiet, rounded);
            let top = f.shr(rounded, 16);
            f.truncate(top, Element::I16)
        }
    }
}
