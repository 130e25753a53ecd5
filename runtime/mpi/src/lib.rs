//! The MPI plug-in: MPI's calls behind a table that does not know which MPI it is.
//!
//! Built against the MPI whose `mpicc` is found (`MPICC=mpicc.mpich` picks one), and of use under that MPI's launcher alone. It holds no state but
//! MPI's own, and never decides anything: what is sent where is the runtime's business.

#[path = "../../src/communicator/mpi/table.rs"]
mod table;

use mpi::ffi;
use std::ffi::{c_char, c_int, c_void};
use table::{Door, Table, VERSION};

/// MPI counts in `int`; longer messages go in parts.
const PART: u64 = 1 << 30;
/// `MPI_SUCCESS`, in every MPI.
const SUCCESS: c_int = 0;

static TABLE: Table =
    Table { version: VERSION, start, shape, barrier, exchange, words, finish };

/// What the runtime looks for has the type that it expects.
const _: Door = dspc_comm_mpi;

/// The table, for the runtime.
#[unsafe(no_mangle)]
pub extern "C" fn dspc_comm_mpi() -> *const Table {
    &TABLE
}

unsafe extern "C" fn start() -> c_int {
    let mut level = 0;
    // SAFETY: called once, before any other call of MPI; null arguments are allowed since MPI 2. Errors are returned and not fatal, so that
    // the runtime can say what they mean.
    unsafe {
        let code = ffi::MPI_Init_thread(
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            ffi::RSMPI_THREAD_SERIALIZED,
            &mut level,
        );
        if code != SUCCESS {
            return code;
        }
        ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, ffi::RSMPI_ERRORS_RETURN)
    }
}

unsafe extern "C" fn shape(rank: *mut u64, world: *mut u64, on_host: *mut u64) -> c_int {
    let (mut mine, mut all, mut here) = (0, 0, 0);
    // SAFETY: MPI has been started, and the pointers are to locals or given by the caller for this.
    unsafe {
        let everyone = ffi::RSMPI_COMM_WORLD;
        let mut host = ffi::RSMPI_COMM_NULL;
        let shared = ffi::RSMPI_COMM_TYPE_SHARED;
        let calls = [
            ffi::MPI_Comm_rank(everyone, &mut mine),
            ffi::MPI_Comm_size(everyone, &mut all),
            ffi::MPI_Comm_split_type(everyone, shared, 0, ffi::RSMPI_INFO_NULL, &mut host),
            ffi::MPI_Comm_size(host, &mut here),
            ffi::MPI_Comm_free(&mut host),
        ];
        (*rank, *world, *on_host) = (mine as u64, all as u64, here as u64);
        calls.into_iter().find(|&code| code != SUCCESS).unwrap_or(0)
    }
}

unsafe extern "C" fn barrier() -> c_int {
    // SAFETY: MPI has been started.
    unsafe { ffi::MPI_Barrier(ffi::RSMPI_COMM_WORLD) }
}

unsafe extern "C" fn exchange(
    from: *const c_void,
    from_bytes: u64,
    to_rank: u64,
    to: *mut c_void,
    to_bytes: u64,
    from_rank: u64,
) -> c_int {
    const TAG: c_int = 1;
    let mut done = 0;
    loop {
        let part = |bytes: u64| bytes.saturating_sub(done).min(PART) as c_int;
        // SAFETY: the caller gives as many bytes as it says, and each part lies within them; both sides cut them the same way.
        let code = unsafe {
            ffi::MPI_Sendrecv(
                from.wrapping_byte_add(done.min(from_bytes) as usize),
                part(from_bytes),
                ffi::RSMPI_UINT8_T,
                to_rank as c_int,
                TAG,
                to.wrapping_byte_add(done.min(to_bytes) as usize),
                part(to_bytes),
                ffi::RSMPI_UINT8_T,
                from_rank as c_int,
                TAG,
                ffi::RSMPI_COMM_WORLD,
                ffi::RSMPI_STATUS_IGNORE,
            )
        };
        done += PART;
        if code != SUCCESS || done >= from_bytes.max(to_bytes) {
            return code;
        }
    }
}

unsafe extern "C" fn words(code: c_int, text: *mut c_char, room: u64) {
    // Longer than any MPI's MPI_MAX_ERROR_STRING.
    let mut whole = [0 as c_char; 4096];
    let mut length = 0;
    // SAFETY: the array is as long as MPI's texts may be, and `text` has `room` bytes.
    unsafe {
        _ = ffi::MPI_Error_string(code, whole.as_mut_ptr(), &mut length);
        let length = (length.max(0) as u64).min(room.saturating_sub(1)) as usize;
        std::ptr::copy_nonoverlapping(whole.as_ptr(), text, length);
        if room > 0 {
            *text.add(length) = 0;
        }
    }
}

unsafe extern "C" fn finish() -> c_int {
    // SAFETY: MPI has been started, and nothing is under way.
    unsafe { ffi::MPI_Finalize() }
}
