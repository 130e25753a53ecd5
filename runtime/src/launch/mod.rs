//! Ranks: which one this process is, how they find one another, and what happens when one is lost.
//!
//! Knows nothing of programs but their memory and their hash; how data is exchanged is the communicators' business. It starts processes, listens
//! and connects; it never starts anything on another host: that is a launcher's work.

pub(crate) mod board;
pub mod discover;
mod error;
pub mod join;
pub mod nccl;
mod nodelist;
pub mod process;
pub mod rendezvous;

#[cfg(test)]
pub(crate) use error::examples;
pub use error::{LaunchError, Odd};
