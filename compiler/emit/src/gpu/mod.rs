//! Kernels for a GPU: MLIR text, PTX of it, and how each kernel is launched.
//!
//! Parameters of a kernel are a pointer for each operand, reads first, then writes, and an i64 turn last where it has one. Operands begin on
//! 16-byte boundaries.

mod attention;
mod chip;
mod layout;
mod memory;
mod product;
mod row;
mod scatter;
mod wgmma_attention;

pub use chip::GpuChip;

use crate::error::EmitError;
use crate::mlir::{lower_gpu, with_context};
use dspc_kernel::describe::Kernel;
use dspc_program::GpuLaunch;

/// MLIR text of a module with these kernels, and each one's launches in order.
pub fn gpu_module(
    kernels: &[(String, &Kernel)],
    chip: GpuChip,
) -> Result<(String, Vec<Vec<GpuLaunch>>), EmitError> {
    let mut functions = vec![];
    let mut launches = vec![];
    for (symbol, kernel) in kernels {
        let (text, launch) = gpu_function(symbol, kernel, chip)?;
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

/// Text of one kernel's functions, and their launches in order.
pub(crate) fn gpu_function(
    symbol: &str,
    kernel: &Kernel,
    chip: GpuChip,
) -> Result<(String, Vec<GpuLaunch>), EmitError> {
    match kernel {
        Kernel::Row(kernel) => row::emit(symbol, kernel, chip).map(|(text, launch)| (text, vec![launch])),
        Kernel::ScatterAdd(kernel) => {
            scatter::emit(symbol, kernel).map(|(text, launch)| (text, vec![launch]))
        }
        Kernel::Attention(kernel) if chip == GpuChip::Sm90a && wgmma_attention::supports(kernel) => {
            wgmma_attention::forward(symbol, kernel)
        }
        Kernel::AttentionBackward(kernel) if chip == GpuChip::Sm90a && wgmma_attention::supports(kernel) => {
            wgmma_attention::backward(symbol, kernel)
        }
        Kernel::Attention(kernel) => attention::emit_forward(symbol, kernel),
        Kernel::AttentionBackward(kernel) => attention::emit_backward(symbol, kernel),
        Kernel::Product(kernel) => product::emit(symbol, kernel, chip),
    }
    .map_err(|reason| EmitError::Description { kernel: symbol.to_string(), reason })
}

/// A launch of the function `symbol` without shared memory of its own size.
fn launch(symbol: &str, grid: [u32; 2], block: u32) -> GpuLaunch {
    GpuLaunch { symbol: symbol.into(), grid: [grid[0], grid[1], 1], block, shared: 0, maps: vec![] }
}

/// Attributes of a kernel's function with this many threads a block.
fn attributes(threads: u32) -> String {
    format!(" attributes {{gpu.kernel, nvvm.kernel, nvvm.maxntid = array<i32: {threads}, 1, 1>}}")
}

/// The same, for a kernel of which a multiprocessor is to run this many blocks at once: registers are then given out up to what they leave, where else
/// ptxas would rather spill and read one thing after another than have fewer blocks.
fn attributes_of(threads: u32, blocks: u32) -> String {
    format!(
        " attributes {{gpu.kernel, nvvm.kernel, nvvm.maxntid = array<i32: {threads}, 1, 1>, nvvm.minctasm = {blocks} : i32}}"
    )
}
