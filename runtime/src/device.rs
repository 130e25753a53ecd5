//! Where a program runs: memory with named buffers, and entries to run.
//!
//! A device never interprets a program's meaning: roles, data and checkpoints are the session's business.

mod arena;
mod call;
pub mod cpu;
pub mod cuda;
mod gemm;
mod lower;
mod pool;
#[cfg(test)]
mod ranks;

use crate::error::Error;
use dspc_program::BufferId;
use std::path::PathBuf;

pub(crate) use arena::element_bytes;
pub(crate) use pool::share;
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
    /// Parameters as ops read them, from those that were set; nothing where they are the same.
    Refresh,
}

/// Which device the user asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Wanted {
    /// A GPU where there is one and the program can run on it, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU.
    Cuda,
}

/// Where the algorithms of matrix products come from, on a GPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Algorithms {
    /// The lock file; what it lacks is measured and added.
    #[default]
    Measure,
    /// The lock file alone.
    Locked,
    /// All are measured again.
    Again,
}

/// What a device needs besides a program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceOptions {
    /// Threads, on a CPU.
    pub threads: usize,
    /// Images of kernels are kept here, for GPUs.
    pub cache_dir: PathBuf,
    /// `dspc.lock`, for GPUs.
    pub lock: PathBuf,
    /// How it is used.
    pub algorithms: Algorithms,
}

/// The first four bytes at a place, which an entry leaves for the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Word {
    /// Which buffer.
    pub buffer: BufferId,
    /// Its slot.
    pub slot: u64,
    /// Bytes into it.
    pub start: u64,
}

/// A device that holds one program.
pub trait Device {
    /// Runs an entry. What it wrote is there for [`Self::read`], which waits for it if need be.
    ///
    /// # Errors
    /// R0603 for an entry that the program lacks; R0701 for a fault of a GPU, which may also come later.
    fn run(&mut self, entry: EntryKind) -> Result<(), Error>;

    /// Starts an entry; [`Self::finish`] gives the words, as the entry left them.
    ///
    /// # Errors
    /// Those of [`Self::run`].
    fn start(&mut self, entry: EntryKind, words: &[Word]) -> Result<(), Error>;

    /// Waits for the oldest entry that was started and not finished, and gives its words; nothing if there is none.
    ///
    /// # Errors
    /// R0701.
    fn finish(&mut self) -> Result<Vec<[u8; 4]>, Error>;

    /// Entries that should be started before the first is finished, so that the device never waits: none for one that works at once.
    fn ahead(&self) -> usize {
        0
    }

    /// Copies bytes to the start of a slot.
    ///
    /// # Errors
    /// R0202 where the slot is not there or is shorter. Buffers that an entry takes its inputs from may be written while an earlier entry runs.
    fn write(&mut self, buffer: BufferId, slot: u64, bytes: &[u8]) -> Result<(), Error> {
        self.write_at(buffer, slot, 0, bytes)
    }

    /// Copies bytes into a slot, from its byte `start` on.
    ///
    /// # Errors
    /// As [`Self::write`].
    fn write_at(&mut self, buffer: BufferId, slot: u64, start: u64, bytes: &[u8]) -> Result<(), Error>;

    /// Copies bytes from a slot, from its byte `start` on.
    ///
    /// # Errors
    /// R0202 where the slot is not there or is shorter.
    fn read(&self, buffer: BufferId, slot: u64, start: u64, bytes: &mut [u8]) -> Result<(), Error>;

    /// A slot as it lies, where the device's memory is the host's: nothing is copied.
    fn lent(&self, _buffer: BufferId, _slot: u64, _bytes: usize) -> Option<&[u8]> {
        None
    }

    /// Device memory that the program takes, where it is not the host's.
    fn device_bytes(&self) -> Option<u64> {
        None
    }

    /// For people: `2 threads`.
    fn describe(&self) -> String;
}

impl Device for Box<dyn Device + Send> {
    fn run(&mut self, entry: EntryKind) -> Result<(), Error> {
        (**self).run(entry)
    }

    fn start(&mut self, entry: EntryKind, words: &[Word]) -> Result<(), Error> {
        (**self).start(entry, words)
    }

    fn finish(&mut self) -> Result<Vec<[u8; 4]>, Error> {
        (**self).finish()
    }

    fn ahead(&self) -> usize {
        (**self).ahead()
    }

    fn write_at(&mut self, buffer: BufferId, slot: u64, start: u64, bytes: &[u8]) -> Result<(), Error> {
        (**self).write_at(buffer, slot, start, bytes)
    }

    fn read(&self, buffer: BufferId, slot: u64, start: u64, bytes: &mut [u8]) -> Result<(), Error> {
        (**self).read(buffer, slot, start, bytes)
    }

    fn lent(&self, buffer: BufferId, slot: u64, bytes: usize) -> Option<&[u8]> {
        (**self).lent(buffer, slot, bytes)
    }

    fn device_bytes(&self) -> Option<u64> {
        (**self).device_bytes()
    }

    fn describe(&self) -> String {
        (**self).describe()
    }
}
