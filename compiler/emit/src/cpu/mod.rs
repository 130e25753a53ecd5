//! Kernels for a CPU: MLIR text of a module, and machine code of it.

mod attention;
mod combine;
mod level;
pub(crate) mod memory;
mod row;
mod scatter;

pub use level::CpuLevel;

use crate::error::EmitError;
use crate::mlir::{Output, emit_cpu, lower_cpu, with_context};
use dspc_kernel::describe::Kernel;

/// MLIR text of a module with a function for each kernel, in order.
pub fn cpu_module(kernels: &[(String, &Kernel)], level: &CpuLevel) -> Result<String, EmitError> {
    let functions: Vec<String> = kernels
        .iter()
        .map(|(symbol, kernel)| cpu_function(symbol, kernel, level))
        .collect::<Result<_, _>>()?;
    Ok(cpu_module_of(functions.iter().map(String::as_str)))
}

/// A module of functions' texts.
pub(crate) fn cpu_module_of<'t>(functions: impl Iterator<Item = &'t str>) -> String {
    format!("module {{\n{}}}\n", functions.collect::<String>())
}

/// Text of one kernel's function, with the constants it needs.
pub(crate) fn cpu_function(symbol: &str, kernel: &Kernel, level: &CpuLevel) -> Result<String, EmitError> {
    match kernel {
        Kernel::Row(kernel) => row::emit(symbol, kernel, level.lanes),
        Kernel::Attention(kernel) => attention::emit_forward(symbol, kernel, level.lanes),
        Kernel::AttentionBackward(kernel) => attention::emit_backward(symbol, kernel, level.lanes),
        Kernel::ScatterAdd(kernel) => scatter::emit(symbol, kernel, level.lanes),
        Kernel::Product(_) => Err("a matrix product has no form for a CPU".to_string()),
    }
    .map_err(|reason| EmitError::Description { kernel: symbol.to_string(), reason })
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
