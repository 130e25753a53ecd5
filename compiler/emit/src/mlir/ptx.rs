//! PTX out of a lowered module.

use melior::ir::attribute::AttributeLike;
use melior::ir::operation::OperationLike;
use melior::ir::{BlockLike, Module};

/// The text in the module's `gpu.binary`.
pub(super) fn text_of(module: &Module) -> Option<String> {
    let body = module.body();
    let mut next = body.first_operation();
    while let Some(operation) = next {
        if operation.name().as_string_ref().as_str() == Ok("gpu.binary") {
            let objects = operation.attribute("objects").ok()?.to_raw();
            // SAFETY: the attribute lives as long as the module's context; its kinds are asked before it is read as one, and the bytes are
            // copied before anything changes.
            unsafe {
                if !mlir_sys::mlirAttributeIsAArray(objects)
                    || mlir_sys::mlirArrayAttrGetNumElements(objects) < 1
                {
                    return None;
                }
                let object = mlir_sys::mlirArrayAttrGetElement(objects, 0);
                if !mlir_sys::mlirAttributeIsAGPUObjectAttr(object) {
                    return None;
                }
                let text = mlir_sys::mlirGPUObjectAttrGetObject(object);
                let bytes = std::slice::from_raw_parts(text.data.cast::<u8>(), text.length);
                return Some(String::from_utf8_lossy(bytes).trim_end_matches('\0').to_string());
            }
        }
        next = operation.next_in_block();
    }
    None
}
