//! Kernels for a GPU: MLIR text, PTX of it, and how each kernel is launched.
//!
//! Parameters of a kernel are a pointer for each operand, reads first, then writes, and an i64 turn last where it has one. Operands begin on
//! 16-byte boundaries. Attention and matrix products have no GPU form here: the CPU's serves as their description.

mod chip;
mod layout;
mod memory;
mod row;
mod scatter;

pub use chip::GpuChip;

use crate::error::EmitError;
use crate::mlir::{lower_gpu, with_context};
use dspc_kernel::describe::Kernel;

/// How a kernel is launched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GpuLaunch {
    /// Blocks, x and y.
    pub grid: [u32; 2],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

/// MLIR text of a module with these kernels, and their launches in order.
pub fn gpu_module(kernels: &[(String, &Kernel)]) -> Result<(String, Vec<GpuLaunch>), EmitError> {
    let mut functions = vec![];
    let mut launches = vec![];
    for (symbol, kernel) in kernels {
        let (text, launch) = gpu_function(symbol, kernel)?;
        functions.push(text);
        launches.push(launch);
    }
    Ok((gpu_module_of(functions.iter().map(String::as_str)), launches))
}

/// PTX of a module's text.
///
/// PTX that calls a function it does not hold would only fail in the driver, so it fails here.
pub fn compile_ptx(mlir: &str, chip: GpuChip) -> Result<String, EmitError> {
    let ptx = with_context(|context| lower_gpu(context, mlir, chip.name(), chip.features()))?;
    match ptx.lines().find(|line| line.contains(".extern .func")) {
        None => Ok(ptx),
        Some(line) => {
            let message = format!("the PTX needs a function that is not there: `{}`", line.trim());
            Err(EmitError::Lowering { stage: "writing PTX", message })
        }
    }
}

/// A module of functions' texts.
pub(crate) fn gpu_module_of<'t>(functions: impl Iterator<Item = &'t str>) -> String {
    format!("module {{\ngpu.module @kernels {{\n{}}}\n}}\n", functions.collect::<String>())
}

/// Text of one kernel's function, and its launch.
pub(crate) fn gpu_function(symbol: &str, kernel: &Kernel) -> Result<(String, GpuLaunch), EmitError> {
    match kernel {
        Kernel::Row(kernel) => row::emit(symbol, kernel),
        Kernel::ScatterAdd(kernel) => scatter::emit(symbol, kernel),
        Kernel::Attention(_) | Kernel::AttentionBackward(_) => Err("attention has no GPU form".to_string()),
    }
    .map_err(|reason| EmitError::Description { kernel: symbol.to_string(), reason })
}

/// Attributes of a kernel's function with this many threads a block.
fn attributes(threads: u32) -> String {
    format!(" attributes {{gpu.kernel, nvvm.kernel, nvvm.maxntid = array<i32: {threads}, 1, 1>}}")
}
