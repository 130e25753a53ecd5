//! The door between the runtime and its MPI plug-in, in C's terms: one source for both sides. The plug-in knows nothing else of ours.

use std::ffi::{c_char, c_int, c_void};

/// Both sides have the same, or the plug-in is not used.
pub const VERSION: u32 = 1;

/// The type of the plug-in's only function, `dspc_comm_mpi`.
pub type Door = extern "C" fn() -> *const Table;

/// What an MPI does for us. Ranks are those of MPI_COMM_WORLD. Functions give 0, or MPI's own number of what went wrong.
#[repr(C)]
pub struct Table {
    /// [`VERSION`]
    pub version: u32,
    /// Starts MPI; once.
    pub start: unsafe extern "C" fn() -> c_int,
    /// This rank, all ranks, ranks of this host.
    pub shape: unsafe extern "C" fn(rank: *mut u64, world: *mut u64, on_host: *mut u64) -> c_int,
    /// Returns when all have come.
    pub barrier: unsafe extern "C" fn() -> c_int,
    /// Sends bytes to one rank and receives bytes from one, both at once; either length may be 0.
    pub exchange: unsafe extern "C" fn(
        from: *const c_void,
        from_bytes: u64,
        to_rank: u64,
        to: *mut c_void,
        to_bytes: u64,
        from_rank: u64,
    ) -> c_int,
    /// MPI's words for a number, cut to `room` bytes with their end.
    pub words: unsafe extern "C" fn(code: c_int, text: *mut c_char, room: u64),
    /// Ends MPI in good order; all ranks do so.
    pub finish: unsafe extern "C" fn() -> c_int,
}
