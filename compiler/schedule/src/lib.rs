//! Orders kernels for each rank: streams, events, and a byte offset in an arena for every storage.
//!
//! It writes the artifact's own instruction types, so that nothing is translated twice. Memory is planned, not allocated: the peak is known to the
//! byte. Never makes code.

#![forbid(unsafe_code)]

mod alias;
mod bytes;
mod evaluate;
mod lifetime;
mod operands;
mod pack;
mod print;
mod ranks;
mod streams;
mod write;

pub use evaluate::Machine;
pub use print::print;
pub use ranks::run_ranks;
pub use write::{Job, schedule};
