//! Where a program runs: memory with named buffers, and entries to run.
//!
//! A device never interprets a program's meaning: roles, data and checkpoints are the session's business.

mod arena;
mod call;
pub mod cpu;
mod gemm;
mod lower;
mod pool;

use crate::error::Error;
use dspc_program::BufferId;

pub(crate) use arena::element_bytes;
pub use pool::threads_wanted;

/// The entries of a program.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EntryKind {
    /// One optimizer step.
    Train,
    /// The loss of one micro-batch.
    Evaluate,
    /// The logits of one sequence.
    Logits,
}

/// A device that holds one program.
pub trait Device {
    /// Runs an entry to its end.
    ///
    /// # Errors
    /// R0603 for an entry that the program lacks.
    fn run(&mut self, entry: EntryKind) -> Result<(), Error>;

    /// Copies bytes to the start of a slot.
    ///
    /// # Errors
    /// R0202 where the slot is not there or is shorter.
    fn write(&mut self, buffer: BufferId, slot: u64, bytes: &[u8]) -> Result<(), Error>;

    /// Copies bytes from a slot, from its byte `start` on.
    ///
    /// # Errors
    /// R0202 where the slot is not there or is shorter.
    fn read(&self, buffer: BufferId, slot: u64, start: u64, bytes: &mut [u8]) -> Result<(), Error>;

    /// A slot as it lies, where the device's memory is the host's: nothing is copied.
    fn lent(&self, _buffer: BufferId, _slot: u64, _bytes: usize) -> Option<&[u8]> {
        None
    }

    /// For people: `2 threads`.
    fn describe(&self) -> String;
}
