//! Runs a compiled program: data in, steps through a device, checkpoints and numbers out.
//!
//! Never links the compiler or MLIR, never reads a spec, never prints: text goes through the `Reporter` that the caller hands in.
//! Result bits depend on the program, the seed and the text; never on the number of threads.
//!
//! Ways in: [`device::cpu::Cpu`] runs entries, [`Sampler`] yields ids.

pub mod data;
pub mod device;
mod durable;
mod error;
#[cfg(test)]
mod fixture;
pub mod philox;
mod sampler;
mod shuffle;
mod tokenizer;
mod tokens;

pub use error::Error;
pub use sampler::{Holdout, Sampler};
pub use shuffle::Permutation;
pub use tokenizer::{TextTokenizer, decode_stream::DecodeStream};
pub use tokens::TokenStream;
