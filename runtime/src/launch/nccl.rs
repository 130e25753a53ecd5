//! NVIDIA's collectives library: our own table of its functions, found when it is needed, and its failures in its own words.
//!
//! `cudarc` never looks for `libnccl.so.2`, the only name that NVIDIA's packages have, so the loader is ours. Nothing here touches a GPU before
//! [`Nccl::join`]; finding the library and making an id work on a host without one.

use super::error::LaunchError;
use crate::device::cuda::libraries;
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;

/// 2.18: the first whose collectives may be captured beside others, and that splits communicators.
const OLDEST: c_int = 21_800;
const FILES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// `ncclInProgress`
const IN_PROGRESS: c_int = 7;

/// An id that all ranks of a communicator need, made by one.
pub type UniqueId = [u8; 128];

/// A communicator of the library's: a handle that [`Nccl::join`] and [`Nccl::split`] give, good until it is left or aborted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Comm(*mut c_void);

impl Comm {
    const NONE: Self = Self(std::ptr::null_mut());
}

// SAFETY: the library's communicators may be used from any thread; one thread queues, another asks for its health or ends it.
unsafe impl Send for Comm {}
// SAFETY: as above.
unsafe impl Sync for Comm {}

/// A CUDA stream.
pub type Stream = *mut c_void;

#[repr(C)]
#[derive(Clone, Copy)]
struct Id([c_char; 128]);

/// Types of elements, with the library's numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum Type {
    /// 8-bit unsigned.
    Bytes = 1,
    /// 32-bit signed.
    I32 = 2,
    /// IEEE half.
    F16 = 6,
    /// IEEE single.
    F32 = 7,
    /// bfloat16.
    Bf16 = 9,
}

/// The library.
pub struct Nccl {
    /// 22707 is 2.27.7.
    pub version: u32,
    /// Its file, or the name that the loader found it by.
    pub file: PathBuf,
    functions: Functions,
}

macro_rules! functions {
    ($($name:ident: $symbol:literal ($($argument:ty),*) -> $result:ty;)*) => {
        /// One pointer a function; all are there in every version that is accepted.
        struct Functions {
            $($name: unsafe extern "C" fn($($argument),*) -> $result,)*
            _library: Library,
        }

        impl Functions {
            fn of(library: Library) -> Result<Self, libloading::Error> {
                // SAFETY: the signatures are those of nccl.h, which keeps them within its major version; the library stays with the pointers.
                unsafe {
                    Ok(Self { $($name: *library.get(concat!($symbol, "\0").as_bytes())?,)* _library: library })
                }
            }
        }
    };
}

functions! {
    get_unique_id: "ncclGetUniqueId" (*mut Id) -> c_int;
    init_rank: "ncclCommInitRank" (*mut Comm, c_int, Id, c_int) -> c_int;
    finalize: "ncclCommFinalize" (Comm) -> c_int;
    destroy: "ncclCommDestroy" (Comm) -> c_int;
    abort: "ncclCommAbort" (Comm) -> c_int;
    split: "ncclCommSplit" (Comm, c_int, c_int, *mut Comm, *mut c_void) -> c_int;
    async_error: "ncclCommGetAsyncError" (Comm, *mut c_int) -> c_int;
    error_string: "ncclGetErrorString" (c_int) -> *const c_char;
    last_error: "ncclGetLastError" (Comm) -> *const c_char;
    reduce_scatter: "ncclReduceScatter" (*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> c_int;
    all_gather: "ncclAllGather" (*const c_void, *mut c_void, usize, c_int, Comm, Stream) -> c_int;
    send: "ncclSend" (*const c_void, usize, c_int, c_int, Comm, Stream) -> c_int;
    recv: "ncclRecv" (*mut c_void, usize, c_int, c_int, Comm, Stream) -> c_int;
    group_start: "ncclGroupStart" () -> c_int;
    group_end: "ncclGroupEnd" () -> c_int;
}

/// The library of this process, opened once.
///
/// # Errors
/// R0831.
pub fn library() -> Result<&'static Nccl, LaunchError> {
    static FOUND: OnceLock<Result<Nccl, LaunchError>> = OnceLock::new();
    FOUND.get_or_init(|| open(libraries::find(&FILES))).as_ref().map_err(Clone::clone)
}

fn unusable(reason: String) -> LaunchError {
    let remedy = "install it (`pip install nvidia-nccl-cu13`), or name its folder in DSPC_CUDA_LIBS".into();
    LaunchError::Library { name: "NCCL".into(), reason, remedy }
}

/// The loader's own words, which lie below what went wrong.
pub(crate) fn words(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

fn open((file, searched): (Option<PathBuf>, Vec<String>)) -> Result<Nccl, LaunchError> {
    let tried: Vec<PathBuf> = match file {
        Some(file) => vec![file],
        None => FILES.iter().map(PathBuf::from).collect(),
    };
    let mut reason = format!("{} was not found in {}", FILES[0], searched.join(", "));
    for file in tried {
        // SAFETY: NVIDIA's library, whose initialisers touch nothing of ours.
        match unsafe { Library::new(&file) } {
            Ok(library) => return check(file, library),
            // A file that is there and does not load says why.
            Err(error) if file.is_absolute() => reason = words(&error),
            Err(_) => {}
        }
    }
    Err(unusable(reason))
}

fn check(file: PathBuf, library: Library) -> Result<Nccl, LaunchError> {
    let shown = file.display().to_string();
    // SAFETY: every version has this function, with this signature.
    let version = unsafe {
        let mut version: c_int = 0;
        let get: Result<libloading::Symbol<unsafe extern "C" fn(*mut c_int) -> c_int>, _> =
            library.get(b"ncclGetVersion\0");
        get.map_err(|e| unusable(format!("`{shown}` is no NCCL: {}", words(&e))))?(&mut version);
        version
    };
    if version < OLDEST {
        return Err(unusable(format!(
            "`{shown}` is version {}, and {} is needed",
            dotted(version),
            dotted(OLDEST)
        )));
    }
    let functions = Functions::of(library).map_err(|e| unusable(format!("`{shown}`: {}", words(&e))))?;
    Ok(Nccl { version: version as u32, file, functions })
}

/// `2.27.7` for 22707
fn dotted(version: c_int) -> String {
    format!("{}.{}.{}", version / 10_000, version % 10_000 / 100, version % 100)
}

impl Nccl {
    /// `2.27.7`
    pub fn version(&self) -> String {
        dotted(self.version as c_int)
    }

    /// An error of the library's, with what it knows of it.
    fn outcome(&self, call: &str, code: c_int, comm: Comm) -> Result<(), LaunchError> {
        if code == 0 || code == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: both give texts of the library's own that stay; a null communicator asks for the last error of all.
        let (what, last) = unsafe {
            let text = |pointer: *const c_char| match pointer.is_null() {
                true => String::new(),
                false => CStr::from_ptr(pointer).to_string_lossy().trim().to_string(),
            };
            (text((self.functions.error_string)(code)), text((self.functions.last_error)(comm)))
        };
        let reason = if last.is_empty() { what } else { format!("{what}: {last}") };
        Err(LaunchError::CallFailed { library: "NCCL".into(), call: call.into(), reason })
    }

    /// An id for a communicator to be; the process that makes it must stay until all have joined.
    ///
    /// # Errors
    /// R0832.
    pub fn unique_id(&self) -> Result<UniqueId, LaunchError> {
        let mut id = Id([0; 128]);
        // SAFETY: the pointer is to a local of the right size.
        let code = unsafe { (self.functions.get_unique_id)(&mut id) };
        self.outcome("ncclGetUniqueId", code, Comm::NONE)?;
        Ok(id.0.map(|byte| byte as u8))
    }

    /// Joins `world` ranks as `rank`, on the GPU whose context is current; returns when all have come.
    ///
    /// # Errors
    /// R0832.
    pub fn join(&self, id: &UniqueId, rank: u64, world: u64) -> Result<Comm, LaunchError> {
        let mut comm = Comm::NONE;
        let id = Id(id.map(|byte| byte as c_char));
        // SAFETY: the pointer is to a local, and a context is current as the caller promises.
        let code = unsafe { (self.functions.init_rank)(&mut comm, world as c_int, id, rank as c_int) };
        self.outcome("ncclCommInitRank", code, Comm::NONE)?;
        Ok(comm)
    }

    /// The ranks of `comm` that give the same colour, in the order of `key`.
    ///
    /// # Errors
    /// R0832.
    pub fn split(&self, comm: Comm, colour: u64, key: u64) -> Result<Comm, LaunchError> {
        let mut part = Comm::NONE;
        // SAFETY: the communicator is alive, the pointer is to a local, and no settings are given.
        let code = unsafe {
            (self.functions.split)(comm, colour as c_int, key as c_int, &mut part, std::ptr::null_mut())
        };
        self.outcome("ncclCommSplit", code, comm)?;
        Ok(part)
    }

    /// What went wrong since, if something did.
    ///
    /// # Errors
    /// R0832.
    pub fn health(&self, comm: Comm) -> Result<(), LaunchError> {
        let mut state = 0;
        // SAFETY: the communicator is alive, and the pointer is to a local.
        let code = unsafe { (self.functions.async_error)(comm, &mut state) };
        self.outcome("ncclCommGetAsyncError", code, comm)?;
        self.outcome("a collective", state, comm)
    }

    /// Ends a communicator whose peers may be gone. It is not used after.
    pub fn abort(&self, comm: Comm) {
        // SAFETY: the communicator is alive; whatever this says, nothing more can be done with it.
        _ = unsafe { (self.functions.abort)(comm) };
    }

    /// Ends a communicator in good order; all its ranks do so. It is not used after.
    pub fn leave(&self, comm: Comm) {
        // SAFETY: the communicator is alive, and nothing of it is under way.
        unsafe {
            if (self.functions.finalize)(comm) == 0 {
                _ = (self.functions.destroy)(comm);
            } else {
                _ = (self.functions.abort)(comm);
            }
        }
    }

    /// Queues what `queue` does as one.
    ///
    /// # Errors
    /// R0832, or what `queue` says.
    pub fn group(&self, queue: impl FnOnce() -> Result<(), LaunchError>) -> Result<(), LaunchError> {
        // SAFETY: start and end come in pairs on this thread.
        let code = unsafe { (self.functions.group_start)() };
        self.outcome("ncclGroupStart", code, Comm::NONE)?;
        let queued = queue();
        // SAFETY: as above; ended even where queueing failed.
        let code = unsafe { (self.functions.group_end)() };
        queued?;
        self.outcome("ncclGroupEnd", code, Comm::NONE)
    }

    /// Queues the sum of all ranks' `from`, of which this one gets its shard of `elements`.
    ///
    /// # Errors
    /// R0832.
    ///
    /// # Safety
    /// `from` holds a shard a rank and `to` one, on the communicator's GPU, until the stream has done it.
    pub unsafe fn reduce_scatter(
        &self,
        (from, to): (usize, usize),
        elements: usize,
        of: Type,
        comm: Comm,
        stream: Stream,
    ) -> Result<(), LaunchError> {
        let (from, to) = (std::ptr::with_exposed_provenance(from), std::ptr::with_exposed_provenance_mut(to));
        const SUM: c_int = 0;
        // SAFETY: as the caller promises.
        let code =
            unsafe { (self.functions.reduce_scatter)(from, to, elements, of as c_int, SUM, comm, stream) };
        self.outcome("ncclReduceScatter", code, comm)
    }

    /// Queues all ranks' shards of so many bytes, one behind the other, to all.
    ///
    /// # Errors
    /// R0832.
    ///
    /// # Safety
    /// `from` holds a shard and `to` one a rank, on the communicator's GPU, until the stream has done it.
    pub unsafe fn all_gather(
        &self,
        (from, to): (usize, usize),
        bytes: usize,
        comm: Comm,
        stream: Stream,
    ) -> Result<(), LaunchError> {
        let (from, to) = (std::ptr::with_exposed_provenance(from), std::ptr::with_exposed_provenance_mut(to));
        // SAFETY: as the caller promises.
        let code =
            unsafe { (self.functions.all_gather)(from, to, bytes, Type::Bytes as c_int, comm, stream) };
        self.outcome("ncclAllGather", code, comm)
    }

    /// Queues bytes to another rank, which must queue as many from this one.
    ///
    /// # Errors
    /// R0832.
    ///
    /// # Safety
    /// `from` holds them on the communicator's GPU until the stream has done it.
    pub unsafe fn send(
        &self,
        from: usize,
        bytes: usize,
        to: u64,
        comm: Comm,
        stream: Stream,
    ) -> Result<(), LaunchError> {
        let from = std::ptr::with_exposed_provenance(from);
        // SAFETY: as the caller promises.
        let code =
            unsafe { (self.functions.send)(from, bytes, Type::Bytes as c_int, to as c_int, comm, stream) };
        self.outcome("ncclSend", code, comm)
    }

    /// Queues bytes from another rank.
    ///
    /// # Errors
    /// R0832.
    ///
    /// # Safety
    /// `to` has room for them on the communicator's GPU until the stream has done it.
    pub unsafe fn recv(
        &self,
        to: usize,
        bytes: usize,
        from: u64,
        comm: Comm,
        stream: Stream,
    ) -> Result<(), LaunchError> {
        let to = std::ptr::with_exposed_provenance_mut(to);
        // SAFETY: as the caller promises.
        let code =
            unsafe { (self.functions.recv)(to, bytes, Type::Bytes as c_int, from as c_int, comm, stream) };
        self.outcome("ncclRecv", code, comm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::discover::Place;
    use crate::launch::rendezvous::{Hello, Options, Token, meet};
    use std::time::Duration;

    fn found() -> Option<&'static Nccl> {
        match library() {
            Ok(nccl) => Some(nccl),
            Err(error) => {
                eprintln!("SKIPPED: {error}; {}", error.remedy());
                None
            }
        }
    }

    #[test]
    fn versions_for_people() {
        assert_eq!(dotted(22_707), "2.27.7");
        assert_eq!(dotted(OLDEST), "2.18.0");
    }

    #[test]
    fn what_is_missing_or_no_nccl_says_so() {
        let searched = vec!["the loader's path".to_string()];
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("libnccl.so.2");
        std::fs::write(&file, b"no library").unwrap();
        let error = open((Some(file.clone()), searched.clone())).map(|_| ()).unwrap_err();
        assert_eq!(error.code(), "R0831");
        assert!(error.to_string().contains(&file.display().to_string()), "{error}");
        // A library, but another.
        let other = ["libm.so.6", "libc.so.6"].iter().find_map(|name| {
            // SAFETY: the system's own library.
            unsafe { Library::new(*name) }.ok()
        });
        let error = check("libm.so.6".into(), other.unwrap()).map(|_| ()).unwrap_err();
        assert!(error.to_string().starts_with("NCCL cannot be used: `libm.so.6` is no NCCL"), "{error}");
    }

    /// With the library of NVIDIA's wheel, no driver and no GPU: `DSPC_CUDA_LIBS` or a Python environment names its folder.
    #[test]
    fn ids_are_made_without_a_gpu_and_reach_all_ranks() {
        let Some(nccl) = found() else { return };
        assert!(nccl.version >= OLDEST as u32, "{}", nccl.version());
        let (one, other) = (nccl.unique_id().unwrap(), nccl.unique_id().unwrap());
        assert_ne!(one, other);
        let place = Place::Job(format!("nccl-{}", std::process::id()));
        let ids: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let rank = |rank| {
                let hello = Hello { rank, world: 3, ..Hello::default() };
                let timeout = Duration::from_secs(20);
                let options = Options { place: place.clone(), token: Token::of("nccl"), timeout };
                scope.spawn(move || meet(&hello, &options, |_| Ok(one.to_vec()), &mut |_| ()).unwrap().gift)
            };
            let threads: Vec<_> = (0..3).map(rank).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(ids, [one, one, one]);
    }

    #[test]
    fn a_failure_is_told_in_the_librarys_words() {
        let Some(nccl) = found() else { return };
        let error = nccl.outcome("ncclCommInitRank", 4, Comm::NONE).unwrap_err();
        assert_eq!(error.code(), "R0832");
        let text = error.to_string();
        assert!(text.starts_with("NCCL failed at ncclCommInitRank: invalid argument"), "{text}");
    }
}
