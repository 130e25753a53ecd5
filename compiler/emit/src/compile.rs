//! All kernels of a program for all its targets, in parallel.
//!
//! Kernels are put in groups by the length of their text alone, and a group is one module: parsing and lowering share what they can, and
//! the bytes do not depend on the number of threads. Threads come from a pool of this call's own, each with an MLIR context.

use crate::cpu::{CpuLevel, compile_cpu, cpu_function, cpu_module_of};
use crate::error::EmitError;
use crate::gpu::{GpuChip, compile_ptx, gpu_function, gpu_module_of};
use dspc_kernel::describe::Kernel;
use dspc_program::GpuLaunch;
use rayon::prelude::*;

/// What to compile for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CompileTarget {
    /// A CPU.
    Cpu(CpuLevel),
    /// A GPU generation.
    Gpu(GpuChip),
}

/// Code of a group of kernels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unit {
    /// Symbols it defines, in order.
    pub symbols: Vec<String>,
    /// The code.
    pub code: Code,
}

/// Code, by the kind of its target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Code {
    /// A relocatable ELF object; `cc -shared` makes a library of all of a target's.
    Object(Vec<u8>),
    /// PTX, and how each kernel is launched, in the order of the symbols.
    Ptx(String, Vec<Vec<GpuLaunch>>),
}

/// Text of a module grows to about this before the next begins.
const GROUP_BYTES: usize = 96 << 10;

/// Compiles kernels for targets on `threads` threads; a target's units come in the order of the kernels.
///
/// A symbol that comes twice is an error. Of several errors the first kernel's is told.
pub fn compile(
    kernels: &[(String, &Kernel)],
    targets: &[CompileTarget],
    threads: usize,
) -> Result<Vec<Vec<Unit>>, EmitError> {
    let mut symbols: Vec<&String> = kernels.iter().map(|(symbol, _)| symbol).collect();
    symbols.sort_unstable();
    if let Some(pair) = symbols.windows(2).find(|pair| pair[0] == pair[1]) {
        let reason = "another kernel has the same symbol".to_string();
        return Err(EmitError::Description { kernel: pair[0].clone(), reason });
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build();
    let pool =
        pool.map_err(|why| EmitError::Lowering { stage: "starting threads", message: why.to_string() })?;
    pool.install(|| targets.iter().map(|target| compile_target(kernels, target)).collect())
}

fn compile_target(kernels: &[(String, &Kernel)], target: &CompileTarget) -> Result<Vec<Unit>, EmitError> {
    match target {
        CompileTarget::Cpu(level) => {
            let functions = texts(kernels, |symbol, kernel| cpu_function(symbol, kernel, level))?;
            let units = groups(&functions, String::len).into_par_iter().map(|group| {
                let module = cpu_module_of(group.clone().map(|i| functions[i].as_str()));
                let object = compile_cpu(&module, level)?;
                Ok(Unit { symbols: symbols(kernels, group), code: Code::Object(object) })
            });
            units.collect()
        }
        CompileTarget::Gpu(chip) => {
            let functions = texts(kernels, |symbol, kernel| gpu_function(symbol, kernel, *chip))?;
            let units = groups(&functions, |(text, _)| text.len()).into_par_iter().map(|group| {
                let module = gpu_module_of(group.clone().map(|i| functions[i].0.as_str()));
                let ptx = compile_ptx(&module, *chip)?;
                let launches = group.clone().map(|i| functions[i].1.clone()).collect();
                Ok(Unit { symbols: symbols(kernels, group), code: Code::Ptx(ptx, launches) })
            });
            units.collect()
        }
    }
}

fn symbols(kernels: &[(String, &Kernel)], group: std::ops::Range<usize>) -> Vec<String> {
    kernels[group].iter().map(|(symbol, _)| symbol.clone()).collect()
}

fn texts<T: Send>(
    kernels: &[(String, &Kernel)],
    write: impl Fn(&str, &Kernel) -> Result<T, EmitError> + Sync,
) -> Result<Vec<T>, EmitError> {
    kernels.par_iter().map(|(symbol, kernel)| write(symbol, kernel)).collect()
}

/// Runs of neighbours whose texts are about [`GROUP_BYTES`] together.
fn groups<T>(functions: &[T], size: impl Fn(&T) -> usize) -> Vec<std::ops::Range<usize>> {
    let mut all = vec![];
    let (mut first, mut bytes) = (0, 0);
    for (i, function) in functions.iter().enumerate() {
        if i > first && bytes + size(function) > GROUP_BYTES {
            all.push(first..i);
            (first, bytes) = (i, 0);
        }
        bytes += size(function);
    }
    if first < functions.len() {
        all.push(first..functions.len());
    }
    all
}
