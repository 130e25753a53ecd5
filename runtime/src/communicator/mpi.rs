//! Ranks that MPI connects: the CPUs of several hosts. MPI itself is a plug-in, built against the MPI of those hosts and loaded on demand.
//!
//! Everything is pairwise exchange: in round s a rank sends to the one s places on and receives from the one s places back. A gather sends each rank's
//! shard to all, a reduce-scatter each other's shard to its owner, who adds up with the program's own kernel: the same bits as on every communicator.
//! Of a rank that is lost MPI's launcher knows first, and ends the others.

mod table;

use super::{Cause, Communicator, Exchange, Kind, Piece, Range, Team};
use crate::artifact::PROGRAM_FILE;
use crate::error::Error;
use crate::launch::{LaunchError, nccl::words};
use libloading::Library;
use std::any::Any;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use table::{Door, Table, VERSION};

const FILE: &str = "libdspc_comm_mpi.so";
/// The variable that names the plug-in's file.
const VARIABLE: &str = "DSPC_COMM_MPI";

/// A rank's door.
pub struct Mpi {
    rank: u64,
    world: u64,
    on_host: u64,
    table: &'static Table,
    teams: OnceLock<Vec<Team>>,
    failed: OnceLock<Cause>,
    /// Others' shards, before they are added up.
    scratch: Mutex<Vec<u128>>,
}

fn unusable(reason: String) -> Error {
    let remedy = format!(
        "build it against this host's MPI (`cargo build --release` in `runtime/mpi`), and name {FILE} in {VARIABLE}"
    );
    Error::launch(LaunchError::Library { name: FILE.into(), reason, remedy })
}

/// Where the plug-in is looked for, in order.
fn candidates() -> Vec<PathBuf> {
    if let Some(file) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        return vec![file.into()];
    }
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_path_buf()));
    let beside = beside.into_iter().flat_map(|folder| [folder.join(FILE), folder.join("../lib").join(FILE)]);
    beside.filter(|file| file.is_file()).chain([PathBuf::from(FILE)]).collect()
}

fn load() -> Result<&'static Table, Error> {
    use libloading::os::unix;
    let mut reason = format!("it was not found in {VARIABLE}, beside `dspc`, and on the loader's path");
    for file in candidates() {
        // SAFETY: the user's own plug-in. MPI's parts look for one another among all symbols, so these are open to all.
        let library: Library =
            match unsafe { unix::Library::open(Some(&file), unix::RTLD_NOW | unix::RTLD_GLOBAL) } {
                Ok(library) => library.into(),
                Err(error) => {
                    if file.is_absolute() || file.components().count() > 1 {
                        reason = words(&error);
                    }
                    continue;
                }
            };
        // SAFETY: the plug-in is built with the same declaration; its version is looked at before anything else of it.
        let table = unsafe { library.get::<Door>(b"dspc_comm_mpi\0").map(|door| &*door()) };
        let table = table.map_err(|error| unusable(format!("`{}`: {}", file.display(), words(&error))))?;
        if table.version != VERSION {
            let found = table.version;
            return Err(unusable(format!(
                "`{}` is version {found}, and {VERSION} is needed",
                file.display()
            )));
        }
        // MPI cannot be unloaded.
        std::mem::forget(library);
        return Ok(table);
    }
    Err(unusable(reason))
}

fn malformed(reason: &str) -> Error {
    Error::ArtifactMalformed { path: PROGRAM_FILE.into(), reason: reason.into() }
}

impl Mpi {
    /// Starts MPI; once in a process.
    ///
    /// # Errors
    /// R0831, R0832.
    pub fn start() -> Result<Self, Error> {
        let table = load()?;
        let (mut rank, mut world, mut on_host) = (0, 0, 0);
        // SAFETY: the table is the plug-in's; pointers are to locals.
        unsafe {
            outcome(table, "MPI_Init_thread", (table.start)())?;
            outcome(table, "MPI_Comm_split_type", (table.shape)(&mut rank, &mut world, &mut on_host))?;
        }
        let (teams, failed, scratch) = (OnceLock::new(), OnceLock::new(), Mutex::default());
        Ok(Self { rank, world, on_host, table, teams, failed, scratch })
    }

    /// Sends to one rank while receiving from another.
    fn swap(&self, to: u64, given: &[u8], from: u64, taken: &mut [u8]) -> Result<(), Error> {
        let (given_at, taken_at) = (given.as_ptr().addr(), taken.as_mut_ptr().expose_provenance());
        given.as_ptr().expose_provenance();
        // SAFETY: both slices live through the call.
        unsafe { self.swap_at(to, (given_at, given.len()), from, (taken_at, taken.len())) }
    }

    /// The same, for memory of a device.
    ///
    /// # Safety
    /// The ranges hold so many bytes, and nobody else touches what is received into.
    unsafe fn swap_at(
        &self,
        to: u64,
        given: (usize, usize),
        from: u64,
        taken: (usize, usize),
    ) -> Result<(), Error> {
        let given_at = std::ptr::with_exposed_provenance::<c_void>(given.0);
        let taken_at = std::ptr::with_exposed_provenance_mut::<c_void>(taken.0);
        // SAFETY: as the caller promises.
        let code =
            unsafe { (self.table.exchange)(given_at, given.1 as u64, to, taken_at, taken.1 as u64, from) };
        outcome(self.table, "MPI_Sendrecv", code)
    }

    /// The members to send to and to receive from in each round, by place in the team.
    fn rounds(team: &Team) -> impl Iterator<Item = (usize, usize)> {
        let (count, index) = (team.members.len(), team.index);
        (1..count).map(move |s| ((index + s) % count, (index + count - s) % count))
    }

    fn all_gather_piece(&self, team: &Team, piece: &Piece) -> Result<(), Error> {
        let own = piece.to.address + team.index * piece.bytes;
        if own != piece.from.address {
            let address = std::ptr::with_exposed_provenance_mut::<u8>;
            // SAFETY: both ranges lie in this rank's arenas, and only it touches them.
            unsafe { std::ptr::copy(address(piece.from.address), address(own), piece.bytes) };
        }
        for (to, from) in Self::rounds(team) {
            let place = piece.to.address + from * piece.bytes;
            // SAFETY: the rank's own shard, and another's place in its own result.
            unsafe {
                self.swap_at(team.members[to], (own, piece.bytes), team.members[from], (place, piece.bytes))?;
            }
        }
        Ok(())
    }

    fn reduce_scatter_piece(
        &self,
        team: &Team,
        piece: &Piece,
        sum: &mut dyn FnMut(&[*mut u8]),
    ) -> Result<(), Error> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        // 64 bytes apart, as kernels like their operands.
        let stride = piece.bytes.next_multiple_of(64);
        let words = (team.members.len() * stride + 64) / size_of::<u128>();
        if scratch.len() < words {
            scratch.resize(words, 0);
        }
        let start = scratch.as_mut_ptr().expose_provenance().next_multiple_of(64);
        let mut operands: Vec<*mut u8> = Vec::with_capacity(team.members.len() + 1);
        for member in 0..team.members.len() {
            let at = if member == team.index {
                piece.from.address + member * piece.bytes
            } else {
                start + member * stride
            };
            operands.push(std::ptr::with_exposed_provenance_mut(at));
        }
        for (to, from) in Self::rounds(team) {
            let given = piece.from.address + to * piece.bytes;
            // SAFETY: the other's shard of this rank's whole, and its place in the scratch memory, which is this call's.
            unsafe {
                let taken = (start + from * stride, piece.bytes);
                self.swap_at(team.members[to], (given, piece.bytes), team.members[from], taken)?;
            }
        }
        operands.push(std::ptr::with_exposed_provenance_mut(piece.to.address));
        sum(&operands);
        Ok(())
    }
}

fn outcome(table: &Table, call: &str, code: c_int) -> Result<(), Error> {
    if code == 0 {
        return Ok(());
    }
    let mut text: [c_char; 1024] = [0; 1024];
    // SAFETY: the text has the room that is said, and ends with a zero.
    let reason = unsafe {
        (table.words)(code, text.as_mut_ptr(), text.len() as u64);
        CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned()
    };
    Err(Error::launch(LaunchError::CallFailed { library: "MPI".into(), call: call.into(), reason }))
}

impl Communicator for Mpi {
    fn rank(&self) -> u64 {
        self.rank
    }

    fn world(&self) -> u64 {
        self.world
    }

    fn ranks_on_host(&self) -> u64 {
        self.on_host
    }

    fn describe(&self) -> String {
        format!("{} ranks over MPI", self.world)
    }

    fn barrier(&self) -> Result<(), Error> {
        // SAFETY: MPI has been started.
        outcome(self.table, "MPI_Barrier", unsafe { (self.table.barrier)() })
    }

    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let everyone = Team { members: (0..self.world).collect(), index: self.rank as usize };
        let mut all: Vec<Vec<u8>> = vec![Vec::new(); self.world as usize];
        for (to, from) in Self::rounds(&everyone) {
            let mut length = [0; 8];
            self.swap(to as u64, &(bytes.len() as u64).to_le_bytes(), from as u64, &mut length)?;
            all[from] = vec![0; u64::from_le_bytes(length) as usize];
            self.swap(to as u64, bytes, from as u64, &mut all[from])?;
        }
        all[self.rank as usize] = bytes.to_vec();
        Ok(all)
    }

    fn attach(
        &self,
        teams: &[Team],
        _arenas: &[Range],
        _keep: Arc<dyn Any + Send + Sync>,
    ) -> Result<(), Error> {
        self.teams.set(teams.to_vec()).map_err(|_| malformed("two devices on one rank"))
    }

    fn exchange(&self, exchange: &Exchange<'_>, sum: &mut dyn FnMut(&[*mut u8])) -> Result<(), Error> {
        let team = self.teams.get().and_then(|teams| teams.get(exchange.group as usize));
        let team = team.ok_or_else(|| malformed("a collective of no group"))?;
        for piece in exchange.pieces {
            match exchange.kind {
                Kind::ReduceScatter { .. } => self.reduce_scatter_piece(team, piece, sum)?,
                Kind::AllGather => self.all_gather_piece(team, piece)?,
            }
        }
        Ok(())
    }

    fn abort(&self, cause: &Cause) {
        _ = self.failed.set(cause.clone());
    }

    fn failed(&self) -> Option<Cause> {
        self.failed.get().cloned()
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        // A rank that failed ends without MPI's farewell, by which its launcher knows to end the others; to wait for them would be to hang.
        if self.failed.get().is_none() {
            // SAFETY: MPI has been started, and nothing is under way.
            _ = unsafe { (self.table.finish)() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plug_in_that_is_missing_says_how_to_make_it() {
        if candidates().iter().any(|file| file.is_file()) {
            return;
        }
        let error = load().map(|_| ()).unwrap_err();
        assert_eq!(error.code(), "R0831");
        assert!(
            error.to_string().starts_with("libdspc_comm_mpi.so cannot be used: it was not found"),
            "{error}"
        );
        assert!(error.remedy().contains("runtime/mpi"), "{}", error.remedy());
    }

    #[test]
    fn in_every_round_all_send_and_all_receive_and_no_pair_meets_twice() {
        for world in 1..9usize {
            let mut met = std::collections::BTreeSet::new();
            let rounds = |index| {
                let members = (0..world as u64).collect();
                Mpi::rounds(&Team { members, index }).collect::<Vec<_>>()
            };
            for index in 0..world {
                for (round, (to, from)) in rounds(index).into_iter().enumerate() {
                    assert_eq!(rounds(to)[round].1, index, "who is sent to receives from the sender");
                    assert_ne!(from, index);
                    assert!(met.insert((index, to)));
                }
            }
            assert_eq!(met.len(), world * (world - 1));
        }
    }
}
