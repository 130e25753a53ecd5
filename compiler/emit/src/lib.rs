//! Kernels to code: descriptions to MLIR text, MLIR to objects for a CPU and to PTX for a GPU; a program to Rust bindings. Alone names
//! melior, LLVM and quote.
//!
//! Never reads a file, a clock or the environment; never links: objects are bytes, and who called links them. Same description and
//! target, same bytes, whatever the number of threads. `unsafe` stands in `mlir` alone.

pub mod bindings;
mod compile;
mod cpu;
mod error;
mod gpu;
mod mask;
mod mlir;
mod row;

pub use bindings::bindings;
pub use compile::{Code, CompileTarget, Unit, compile};
pub use cpu::{CpuLevel, assembly_cpu, compile_cpu, cpu_module};
pub use error::EmitError;
pub use gpu::{GpuChip, compile_ptx, gpu_module};
