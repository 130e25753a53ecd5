//! Kernels for a CPU: MLIR text of a module, and machine code of it.

mod level;
mod memory;
mod row;

pub use level::CpuLevel;

use crate::error::EmitError;
use crate::mlir::{Output, emit_cpu, lower_cpu, with_context};
use dspc_kernel::describe::Kernel;

/// MLIR text of a module with a function for each kernel, in order.
pub fn cpu_module(kernels: &[(String, &Kernel)], level: &CpuLevel) -> Result<String, EmitError> {
    let mut text = "module {\n".to_string();
    for (symbol, kernel) in kernels {
        let function = match kernel {
            Kernel::Row(kernel) => row::emit(symbol, kernel, level.lanes),
            _ => Err("not yet".to_string()),
        };
        text += &function.map_err(|reason| EmitError::Description { kernel: symbol.clone(), reason })?;
    }
    text += "}\n";
    Ok(text)
}

/// A relocatable object of a module's text. Same text and level, same bytes.
pub fn compile_cpu(mlir: &str, level: &CpuLevel) -> Result<Vec<u8>, EmitError> {
    machine_code(mlir, level, Output::Object)
}

/// Assembly of a module's text, for people.
pub fn assembly_cpu(mlir: &str, level: &CpuLevel) -> Result<String, EmitError> {
    machine_code(mlir, level, Output::Assembly).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn machine_code(mlir: &str, level: &CpuLevel, output: Output) -> Result<Vec<u8>, EmitError> {
    with_context(|context| {
        let module = lower_cpu(context, mlir)?;
        emit_cpu(&module, &level.name, &level.features, output)
    })
}
