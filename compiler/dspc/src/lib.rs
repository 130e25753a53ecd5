//! The list of passes and the commands. Alone in the compiler this crate touches disk, clock, environment and the linker.
//!
//! Start at [`passes`]: it reads as a table of contents.

#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command prints: data to stdout, talk to stderr"
)]

pub mod build;
pub mod cli;
mod commands;
pub mod exit;
pub mod facts;
pub mod fit;
pub mod job;
pub mod passes;
mod report;

pub use commands::dispatch;
