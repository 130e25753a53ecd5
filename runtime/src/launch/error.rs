//! What can go wrong between ranks, from the first variable that is read to the last collective. One variant each.
//!
//! These travel: rank 0 sends one to all ranks, so that every rank ends for the same reason and says it in the same words.

use serde::{Deserialize, Serialize};

/// A fault of ranks.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum LaunchError {
    /// R0820. A launcher's variable does not say what it should.
    #[error("{name} is {value:?}, {reason}")]
    Variable {
        /// `WORLD_SIZE`
        name: String,
        /// As set; empty where it is not.
        value: String,
        /// What is wrong with it: a clause.
        reason: String,
    },
    /// R0821. Something else listens where rank 0 should.
    #[error("rank 0 cannot listen at {place}: {reason}")]
    PortTaken {
        /// `tcp://n1:29500`
        place: String,
        /// The system's words.
        reason: String,
    },
    /// R0822. Rank 0 does not answer.
    #[error("rank {rank} cannot reach rank 0 at {place} within {seconds} s: {reason}")]
    MasterUnreachable {
        /// Who says so.
        rank: u64,
        /// `tcp://n1:29500`
        place: String,
        /// How long it was tried.
        seconds: u64,
        /// The last try's words.
        reason: String,
    },
    /// R0823. Some ranks did not come.
    #[error("{} of {world} ranks did not come to {place} within {seconds} s: {}", missing.len(), ranks(missing))]
    RanksMissing {
        /// Ranks in all.
        world: u64,
        /// Those that are missing.
        missing: Vec<u64>,
        /// Where they were waited for.
        place: String,
        /// How long.
        seconds: u64,
    },
    /// R0824. A rank was told of another number of ranks.
    #[error("rank {rank} was started as one of {found} ranks, and rank 0 as one of {world}")]
    WorldDiffers {
        /// The odd one.
        rank: u64,
        /// Its world.
        found: u64,
        /// Rank 0's.
        world: u64,
    },
    /// R0825. Two processes are the same rank.
    #[error("two processes are rank {rank}: {first} and {second}")]
    RankTwice {
        /// It.
        rank: u64,
        /// `process 4711 on n1`
        first: String,
        /// The one that came later.
        second: String,
    },
    /// R0826. A rank runs something else than the others.
    #[error("rank {rank} ({process}) has another {what} than {}: {found}, and not {expected}", others(*of))]
    OddRank {
        /// The odd one.
        rank: u64,
        /// `process 4711 on n1`
        process: String,
        /// What is odd about it.
        what: Odd,
        /// Ranks that agree, of all.
        of: (u64, u64),
        /// The odd one's.
        found: String,
        /// The others'.
        expected: String,
    },
    /// R0827. What answers is no rank of this launch.
    #[error("what answers at {place} is no rank of this launch: {reason}")]
    Stranger {
        /// Where.
        place: String,
        /// What it did.
        reason: String,
    },
    /// R0829. A rank cannot be started.
    #[error("rank {rank} cannot be started: {reason}")]
    NotStarted {
        /// It.
        rank: u64,
        /// The system's words.
        reason: String,
    },
    /// R0830. Ranks on several hosts need MPI.
    #[error("{world} ranks on {hosts} hosts have no way to talk to one another without MPI")]
    HostsNeedMpi {
        /// Ranks in all.
        world: u64,
        /// Hosts.
        hosts: u64,
        /// What the user runs: `dspc run train.dsp`.
        command: String,
    },
    /// R0831. A library for talking to other ranks is not there or is not what it should be.
    #[error("{name} cannot be used: {reason}")]
    Library {
        /// `NCCL`, `libdspc_comm_mpi.so`
        name: String,
        /// Why not.
        reason: String,
        /// What to do about it.
        remedy: String,
    },
    /// R0832. A call of such a library failed.
    #[error("{library} failed at {call}: {reason}")]
    CallFailed {
        /// `NCCL`
        library: String,
        /// What was called.
        call: String,
        /// The library's words.
        reason: String,
    },
    /// R0833. Memory that ranks of one host share cannot be had.
    #[error("memory that {ranks} ranks share cannot be had: {reason}")]
    SharedMemory {
        /// How many.
        ranks: u64,
        /// The system's words.
        reason: String,
    },
    /// R0834. The launcher does not say where ranks on several hosts meet.
    #[error(
        "{world} ranks on several hosts have no place to meet: {launcher} does not say which host is first"
    )]
    NoPlace {
        /// Ranks in all.
        world: u64,
        /// `Open MPI`
        launcher: String,
    },
    /// R0836. The connection to rank 0 broke before all ranks had come.
    #[error("rank {rank} lost rank 0 at {place} while waiting for the others: {reason}")]
    MasterLost {
        /// Who says so.
        rank: u64,
        /// Where they met.
        place: String,
        /// The system's words.
        reason: String,
    },
}

/// What ranks must have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Odd {
    /// The compiler's version.
    Version,
    /// The program and its kernels.
    Program,
    /// `dspc.lock`: the algorithms of matrix products.
    Lock,
    /// The text that is trained on.
    Data,
}

impl std::fmt::Display for Odd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Version => "version of dspc",
            Self::Program => "program",
            Self::Lock => "dspc.lock",
            Self::Data => "training text",
        })
    }
}

/// `1, 2 and 5`
pub(super) fn ranks(list: &[u64]) -> String {
    const SHOWN: usize = 8;
    let mut words: Vec<String> = list.iter().take(SHOWN).map(u64::to_string).collect();
    if list.len() > SHOWN {
        words.push(format!("{} more", list.len() - SHOWN));
    }
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        Some((only, _)) => only.clone(),
        None => String::new(),
    }
}

fn others((agree, world): (u64, u64)) -> String {
    match (agree, world) {
        (1, 2) => "the other rank".into(),
        (agree, world) if agree + 1 == world => "all others".into(),
        (agree, world) => format!("{agree} of {world} ranks"),
    }
}

impl LaunchError {
    /// The stable code, `R0820`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Variable { .. } => "R0820",
            Self::PortTaken { .. } => "R0821",
            Self::MasterUnreachable { .. } => "R0822",
            Self::RanksMissing { .. } => "R0823",
            Self::WorldDiffers { .. } => "R0824",
            Self::RankTwice { .. } => "R0825",
            Self::OddRank { .. } => "R0826",
            Self::Stranger { .. } => "R0827",
            Self::NotStarted { .. } => "R0829",
            Self::HostsNeedMpi { .. } => "R0830",
            Self::Library { .. } => "R0831",
            Self::CallFailed { .. } => "R0832",
            Self::SharedMemory { .. } => "R0833",
            Self::NoPlace { .. } => "R0834",
            Self::MasterLost { .. } => "R0836",
        }
    }

    /// What to do about it, one line.
    pub fn remedy(&self) -> String {
        match self {
            Self::Variable { .. } => {
                "start all ranks with one launcher, or unset what is left of another; `dspc doctor` shows what is found".into()
            }
            Self::PortTaken { .. } => {
                "name a free port in DSPC_PORT on every host, or end what is left of an earlier run".into()
            }
            Self::MasterUnreachable { .. } => {
                "see whether rank 0 was started and MASTER_ADDR is its host, and that no firewall closes the port".into()
            }
            Self::RanksMissing { .. } => {
                "see why they did not start in the launcher's log; DSPC_RENDEZVOUS_TIMEOUT sets how many seconds they have".into()
            }
            Self::WorldDiffers { .. } => "start all ranks with one launcher and the same number".into(),
            Self::RankTwice { .. } => "give each process its own rank; an earlier run may not have ended".into(),
            Self::OddRank { .. } => "give every host the same artifact, `dspc.lock`, text and `dspc`".into(),
            Self::Stranger { .. } => "name another port in DSPC_PORT on every host".into(),
            Self::NotStarted { .. } => "check the limits on processes and memory of this host".into(),
            Self::HostsNeedMpi { world, command, .. } => format!("mpirun -np {world} --hostfile hosts {command} --comm mpi"),
            Self::Library { remedy, .. } => remedy.clone(),
            Self::CallFailed { .. } => {
                "run again with NCCL_DEBUG=INFO (for NCCL), which says more; `--resume` goes on from the newest checkpoint".into()
            }
            Self::SharedMemory { .. } => {
                "run with `--rank-mode thread`, or raise the limits on memory of this host".into()
            }
            Self::NoPlace { .. } => {
                "hand MASTER_ADDR=HOST to all ranks (mpirun: `-x MASTER_ADDR=HOST`; mpiexec: `-genv MASTER_ADDR HOST`)".into()
            }
            Self::MasterLost { .. } => "see what ended rank 0: its report comes first".into(),
        }
    }

    /// What the process should end with: 5 environment, 7 something made for something else, 8 other ranks.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Variable { .. } | Self::PortTaken { .. } | Self::NotStarted { .. } => 5,
            Self::HostsNeedMpi { .. } | Self::Library { .. } | Self::SharedMemory { .. } => 5,
            Self::NoPlace { .. } => 5,
            Self::WorldDiffers { .. } | Self::RankTwice { .. } | Self::OddRank { .. } => 7,
            Self::MasterUnreachable { .. } | Self::RanksMissing { .. } | Self::Stranger { .. } => 8,
            Self::CallFailed { .. } | Self::MasterLost { .. } => 8,
        }
    }
}

/// One of each, in the order of the codes.
#[cfg(test)]
pub(crate) fn examples() -> Vec<LaunchError> {
    let process = |id: u32, host: &str| format!("process {id} on {host}");
    vec![
        LaunchError::Variable {
            name: "RANK".into(),
            value: "4".into(),
            reason: "which is not below WORLD_SIZE=4".into(),
        },
        LaunchError::PortTaken { place: "tcp://n1:29501".into(), reason: "address already in use".into() },
        LaunchError::MasterUnreachable {
            rank: 2,
            place: "tcp://n1:29501".into(),
            seconds: 600,
            reason: "connection refused".into(),
        },
        LaunchError::RanksMissing {
            world: 4,
            missing: vec![1, 3],
            place: "tcp://n1:29501".into(),
            seconds: 600,
        },
        LaunchError::WorldDiffers { rank: 1, found: 2, world: 4 },
        LaunchError::RankTwice { rank: 1, first: process(4711, "n1"), second: process(812, "n2") },
        LaunchError::OddRank {
            rank: 3,
            process: process(812, "n2"),
            what: Odd::Program,
            of: (3, 4),
            found: "09c7…".into(),
            expected: "4ae1…".into(),
        },
        LaunchError::Stranger {
            place: "tcp://n1:29501".into(),
            reason: "its first bytes are not those of `dspc`".into(),
        },
        LaunchError::NotStarted { rank: 3, reason: "resource temporarily unavailable".into() },
        LaunchError::HostsNeedMpi { world: 8, hosts: 2, command: "dspc run train.dspx".into() },
        LaunchError::Library {
            name: "NCCL".into(),
            reason: "libnccl.so.2 was not found in /usr/local/cuda/lib64, the loader's path".into(),
            remedy: "install it (`pip install nvidia-nccl-cu13`), or name its folder in DSPC_CUDA_LIBS"
                .into(),
        },
        LaunchError::CallFailed {
            library: "NCCL".into(),
            call: "ncclCommInitRank".into(),
            reason: "unhandled system error".into(),
        },
        LaunchError::SharedMemory { ranks: 4, reason: "cannot allocate memory".into() },
        LaunchError::NoPlace { world: 16, launcher: "Open MPI".into() },
        LaunchError::MasterLost {
            rank: 2,
            place: "tcp://n1:29501".into(),
            reason: "connection reset by peer".into(),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_travels_whole() {
        for error in examples() {
            let text = serde_json::to_string(&error).unwrap();
            assert_eq!(serde_json::from_str::<LaunchError>(&text).unwrap(), error);
        }
    }

    #[test]
    fn ranks_are_listed_as_people_do() {
        assert_eq!(ranks(&[1]), "1");
        assert_eq!(ranks(&[1, 2, 5]), "1, 2 and 5");
        assert_eq!(ranks(&(0..20).collect::<Vec<_>>()), "0, 1, 2, 3, 4, 5, 6, 7 and 12 more");
    }
}
