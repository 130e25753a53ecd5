//! Groups ops into kernels and library calls, and describes each. Still plain data: MLIR begins below.
//!
//! Never names a stream, an arena or a byte offset. One description of a kernel serves the CPU and every GPU generation.

#![forbid(unsafe_code)]

pub mod describe;
mod fuse;
mod locate;
mod lower;
mod pool;
mod state;
pub mod steps;
