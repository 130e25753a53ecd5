//! How the ranks of a run reach one another: what the host says, and what devices exchange.
//!
//! Two planes. The *host's*: bytes to all ranks, for the handshake, checkpoints and the end of a run; slow is fine. The *data's*: the
//! collectives of a program, in the order of its instructions, on memory that the device names. A communicator knows nothing of a program's
//! meaning. Whoever fails says so with [`Communicator::abort`], and then every wait of every other rank ends with that cause: none hangs.
//!
//! [`Solo`] is one rank alone; [`local`] are threads of one process, [`processes`] are processes of one host, [`mpi`] what MPI started.

pub mod local;
pub mod mpi;
pub mod nccl;
mod plane;
pub mod processes;
mod solo;

use crate::error::Error;
use dspc_program::{ElementType, Program};
use memmap2::MmapMut;
use std::any::Any;
use std::hint::spin_loop;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use solo::Solo;

/// A rank's door to the others. All ranks call the same functions in the same order.
pub trait Communicator: Send + Sync {
    /// This rank's number.
    fn rank(&self) -> u64;

    /// All ranks.
    fn world(&self) -> u64;

    /// Ranks that share this host's cores and memory, this one counted.
    fn ranks_on_host(&self) -> u64 {
        self.world()
    }

    /// For people: `threads of one process`.
    fn describe(&self) -> String;

    /// This rank begins a step, from 1: for the word on where it was, should it be lost.
    fn at_step(&self, _step: u64) {}

    /// Returns when all ranks have come here.
    ///
    /// # Errors
    /// R0801 with the cause of the rank that failed.
    fn barrier(&self) -> Result<(), Error>;

    /// What each rank gives, by rank. Lengths may differ.
    ///
    /// # Errors
    /// R0801.
    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error>;

    /// What each rank gives, by rank, on `root`; nothing on the others.
    ///
    /// # Errors
    /// R0801.
    fn gather(&self, root: u64, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let all = self.all_gather(bytes)?;
        Ok(if self.rank() == root { all } else { Vec::new() })
    }

    /// What `root` gives; what the others give is dropped.
    ///
    /// # Errors
    /// R0801.
    fn broadcast(&self, root: u64, bytes: &[u8]) -> Result<Vec<u8>, Error> {
        let mine = if self.rank() == root { bytes } else { &[] };
        Ok(self.all_gather(mine)?.swap_remove(root as usize))
    }

    /// Memory for an arena of this host, zeroed: shared between processes where the data plane reads it from another.
    ///
    /// # Errors
    /// What the system says.
    fn memory(&self, _arena: u32, bytes: usize) -> std::io::Result<MmapMut> {
        MmapMut::map_anon(bytes.max(1))
    }

    /// Reduce-scatters in the order of a tree need [`Exchange::scratch`].
    fn needs_scratch(&self) -> bool {
        false
    }

    /// Which of the cards that this process sees is the rank's.
    fn card(&self) -> u64 {
        0
    }

    /// The device goes: nothing of it is used any more.
    fn detach(&self) {}

    /// Tells the data plane what it works on, before the first [`Self::exchange`]. `keep` holds the memory: whoever reads a peer's keeps it
    /// until all have left.
    ///
    /// # Errors
    /// R0801.
    fn attach(&self, teams: &[Team], arenas: &[Range], keep: Arc<dyn Any + Send + Sync>)
    -> Result<(), Error>;

    /// A collective of a program. It is done on return, or queued on [`Exchange::stream`].
    ///
    /// `sum` runs the program's kernel of a reduce-scatter: a shard of every member in the team's order, then the result; any addresses of
    /// this rank's device or of memory that [`Self::attach`] made readable.
    ///
    /// # Errors
    /// R0801, or the fault of this rank's own library.
    fn exchange(&self, exchange: &Exchange<'_>, sum: &mut dyn FnMut(&[*mut u8])) -> Result<(), Error>;

    /// This rank ends: all others must leave with its cause. The first cause stays.
    fn abort(&self, cause: &Cause);

    /// Whether some rank has failed, and why.
    fn failed(&self) -> Option<Cause>;
}

/// Ranks that work alike come within this; longer would take cores from those that still work.
const SPIN: Duration = Duration::from_micros(50);

/// Looks again and again whether there is still something to wait for, but not for long: who waits on must sleep.
pub(crate) fn spin_while(waits: impl Fn() -> bool) {
    let since = Instant::now();
    while waits() && since.elapsed() < SPIN {
        (0..64).for_each(|_| spin_loop());
    }
}

/// Why a run ended on all ranks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cause {
    /// The rank that failed first.
    pub rank: u64,
    /// What happened to it, one line.
    pub what: String,
}

impl Cause {
    /// As the ranks see it that leave because of it.
    pub fn error(&self) -> Error {
        Error::RankFailed { rank: self.rank, cause: self.what.clone() }
    }
}

/// Memory of an arena: a host's or a device's address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// First byte.
    pub address: usize,
    /// Length.
    pub bytes: usize,
}

/// The group of ranks that this one belongs to, for one of [`Program::groups`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Team {
    /// Ranks, in the group's order.
    pub members: Vec<u64>,
    /// This rank's place among them.
    pub index: usize,
}

/// This rank's team in each of the program's groups.
pub fn teams(program: &Program, rank: u64) -> Vec<Team> {
    let world = program.world();
    // Ranks of a team differ in the group's axes alone, so their numbers in all other axes are equal.
    let others = |axes: &[String]| {
        let axes =
            program.mesh.iter().map(|(name, _)| name.clone()).filter(|name| !axes.contains(name)).collect();
        dspc_program::RankGroup { axes, size: 0 }
    };
    let team = |group: &dspc_program::RankGroup| {
        let others = others(&group.axes);
        let mine = program.index_in(&others, rank);
        let mut members: Vec<u64> =
            (0..world).filter(|&other| program.index_in(&others, other) == mine).collect();
        members.sort_by_key(|&member| program.index_in(group, member));
        let index = members.iter().position(|&member| member == rank).unwrap_or(0);
        Team { members, index }
    };
    program.groups.iter().map(team).collect()
}

/// What is exchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `from` is whole, `to` the rank's shard of the sum.
    ReduceScatter {
        /// Only the order of the program's kernel will do.
        tree: bool,
    },
    /// `from` is the rank's shard, `to` whole.
    AllGather,
}

/// A collective with its addresses.
#[derive(Clone, Copy, Debug)]
pub struct Exchange<'a> {
    /// What.
    pub kind: Kind,
    /// Index of the team, as in [`Program::groups`].
    pub group: u32,
    /// Ranges, one after the other.
    pub pieces: &'a [Piece],
    /// A `CUstream` to queue it on; 0 for memory of the host, where it is done at once.
    pub stream: usize,
    /// Device memory for a shard of every member, each at a multiple of 256 bytes; 0 where [`Communicator::needs_scratch`] is not so.
    pub scratch: usize,
}

/// A range of a collective.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Read.
    pub from: Spot,
    /// Written.
    pub to: Spot,
    /// Elements of one shard.
    pub elements: usize,
    /// Of the elements.
    pub dtype: ElementType,
    /// Bytes of one shard.
    pub bytes: usize,
}

/// An address of this rank, and how that of another member is found from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spot {
    /// On this rank.
    pub address: usize,
    /// Which arena.
    pub arena: u32,
    /// Bytes into the arena, for the team's first member.
    pub origin: usize,
    /// Bytes added from one member to the next.
    pub step: usize,
}

impl Spot {
    /// Bytes into the arena of the team's member `index`.
    pub fn offset(&self, index: usize) -> usize {
        self.origin + index * self.step
    }
}

/// Runs a rank's work; if it fails or panics, all others leave with its cause.
pub fn guarded<T>(
    communicator: &dyn Communicator,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let rank = communicator.rank();
    let result = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(panic) => Err(Error::RankFailed { rank, cause: format!("it panicked: {}", words(&*panic)) }),
    };
    match &result {
        Ok(_) => {}
        Err(Error::RankFailed { rank, cause }) => {
            communicator.abort(&Cause { rank: *rank, what: cause.clone() })
        }
        Err(error) => communicator.abort(&Cause { rank, what: format!("error[{}]: {error}", error.code()) }),
    }
    result
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Builder;
    use dspc_program::RankGroup;

    #[test]
    fn a_team_holds_the_ranks_that_differ_in_its_axes_alone() {
        let mut program = Builder::new().program;
        program.mesh = vec![("data".into(), 2), ("tensor".into(), 3)];
        program.groups = ["data", "tensor"]
            .map(|axis| RankGroup { axes: vec![axis.into()], size: if axis == "data" { 2 } else { 3 } })
            .into();
        let seen = teams(&program, 4);
        assert_eq!(seen[0], Team { members: vec![1, 4], index: 1 });
        assert_eq!(seen[1], Team { members: vec![3, 4, 5], index: 1 });
    }
}
