//! Runs a compiled program: data in, steps through a device, checkpoints and numbers out.
//!
//! Never links the compiler or MLIR, never reads a spec, never prints: text goes through the [`Reporter`] that the caller hands in.
//! Result bits depend on the program, the seed and the text; never on the number of threads.
//!
//! Ways in: [`artifact::read`], [`train::run`], [`generate::generate`], and [`Session`] for programs that feed their own ids
//! (from [`artifact::Embedded`] where the artifact lies in the binary).

pub mod artifact;
pub mod checkpoint;
pub mod communicator;
pub mod data;
pub mod device;
mod durable;
mod error;
mod fingerprint;
#[cfg(test)]
mod fixture;
pub mod generate;
mod initial;
pub mod launch;
mod metrics;
pub mod philox;
mod report;
mod sampler;
mod session;
mod shuffle;
mod tables;
mod tokenizer;
mod tokens;
pub mod train;

pub use artifact::Artifact;
pub use error::{Error, explain};
pub use report::{Reporter, Silent, Terminal};
pub use sampler::{Holdout, Sampler};
pub use session::{Session, StepStats};
pub use shuffle::Permutation;
pub use tokenizer::{TextTokenizer, decode_stream::DecodeStream};
pub use tokens::TokenStream;
