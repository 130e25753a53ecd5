//! How a process becomes a rank: it meets the others, and gets its door to them.

use super::board::Board;
use super::discover::{Environment, Place, Rank};
use super::error::LaunchError;
use super::nccl::{self, Nccl, UniqueId};
use super::process::{BOARD, TOKEN};
use super::rendezvous::{self, Hello, Options, TIMEOUT, Token};
use crate::communicator::mpi::Mpi;
use crate::communicator::nccl::OverNccl;
use crate::communicator::processes::Processes;
use crate::communicator::{Cause, Communicator, Solo};
use crate::error::Error;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What ranks must have in common, as hashes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// The compiler's version.
    pub version: String,
    /// Of the program.
    pub program: String,
    /// Of `dspc.lock`; empty where none is used.
    pub lock: String,
    /// Of the text.
    pub data: String,
}

impl Facts {
    /// Of a program and what it is trained on.
    ///
    /// # Errors
    /// R0101 to R0103 for text that cannot be read; R0202.
    pub fn gather(
        program: &dspc_program::Program,
        data_root: &Path,
        lock: Option<&Path>,
    ) -> Result<Self, Error> {
        let malformed = |e: serde_json::Error| Error::ArtifactMalformed {
            path: crate::artifact::PROGRAM_FILE.into(),
            reason: e.to_string(),
        };
        let bytes = serde_json::to_vec(program).map_err(malformed)?;
        let mut data = blake3::Hasher::new();
        for text in crate::data::read(data_root, &program.data.text)? {
            data.update(&(text.bytes.len() as u64).to_le_bytes()).update(&text.bytes);
        }
        let lock = lock.and_then(|path| std::fs::read(path).ok());
        Ok(Self {
            version: program.dspc.clone(),
            program: blake3::hash(&bytes).to_hex().to_string(),
            lock: lock.map_or(String::new(), |bytes| blake3::hash(&bytes).to_hex().to_string()),
            data: data.finalize().to_hex().to_string(),
        })
    }

    fn hello(&self, rank: u64, world: u64, restarts: u64) -> Hello {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Hello {
            version: self.version.clone(),
            program: self.program.clone(),
            lock: self.lock.clone(),
            data: self.data.clone(),
            rank,
            world,
            host,
            process: std::process::id(),
            restarts,
        }
    }
}

/// How and where this rank meets the others.
///
/// # Errors
/// R0820 for a time that is none, R0834 where no place is known.
pub fn meeting(rank: &Rank, environment: &Environment) -> Result<Options, LaunchError> {
    let place = rank
        .place
        .clone()
        .ok_or_else(|| LaunchError::NoPlace { world: rank.world, launcher: rank.launcher.name().into() })?;
    let name = "DSPC_RENDEZVOUS_TIMEOUT";
    let timeout = match environment.get(name).filter(|text| !text.is_empty()) {
        None => TIMEOUT,
        Some(text) => {
            let seconds = text.parse().ok().filter(|seconds| (1..=86_400).contains(seconds));
            Duration::from_secs(seconds.ok_or_else(|| LaunchError::Variable {
                name: name.into(),
                value: text.clone(),
                reason: "which is no number of seconds from 1 to 86400".into(),
            })?)
        }
    };
    // Without a secret, the job's name at least keeps launches apart.
    let secret = environment.get(TOKEN).filter(|text| !text.is_empty());
    let token = Token::of(&secret.cloned().unwrap_or_else(|| match &place {
        Place::Job(job) => format!("job {job}"),
        other => format!("place {other}"),
    }));
    Ok(Options { place, token, timeout })
}

/// What rank 0 gives all.
#[derive(Serialize, Deserialize)]
struct Gift {
    /// The name of the block of memory that they share.
    board: String,
    /// An id for NCCL, where ranks are GPUs.
    nccl: Option<Vec<u8>>,
}

/// What does a rank's work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum On {
    /// Cores.
    Cpu,
    /// GPUs, which NCCL connects.
    Gpu,
}

fn id_of(bytes: &[u8]) -> Result<UniqueId, Error> {
    let call = "taking rank 0's id";
    bytes.try_into().map_err(|_| {
        let (library, reason) = ("NCCL".into(), format!("it has {} bytes", bytes.len()));
        Error::launch(LaunchError::CallFailed { library, call: call.into(), reason })
    })
}

/// One rank whose GPU is reached through NCCL all the same.
///
/// # Errors
/// R0831, R0832.
pub fn alone_over_nccl() -> Result<Arc<dyn Communicator>, Error> {
    let id = nccl::library().and_then(Nccl::unique_id).map_err(Error::launch)?;
    Ok(Arc::new(OverNccl::new(Arc::new(Solo::default()), id, 0)?))
}

/// Joins the ranks of this host. `command` is what the user runs, for advice. `give_up` ends the process: it is called from another
/// thread when a peer was lost and this rank does not end by itself.
///
/// # Errors
/// R0820 to R0836.
pub fn join_host(
    rank: &Rank,
    on: On,
    facts: &Facts,
    environment: &Environment,
    command: &str,
    give_up: impl Fn(&Cause) + Send + 'static,
    say: &mut dyn FnMut(&str),
) -> Result<Arc<dyn Communicator>, Error> {
    if rank.world == 1 {
        return Ok(Arc::new(Solo::default()));
    }
    if rank.local_world != rank.world {
        let hosts = rank.world.div_ceil(rank.local_world);
        let command = command.to_string();
        return Err(Error::launch(LaunchError::HostsNeedMpi { world: rank.world, hosts, command }));
    }
    let options = meeting(rank, environment).map_err(Error::launch)?;
    let given = environment.get(BOARD).filter(|text| !text.is_empty());
    let mut own = None;
    let gift = |_: &[Hello]| {
        let board = match given {
            Some(name) => name.clone(),
            None => own.insert(Board::new(rank.world)?).name(),
        };
        let nccl = match on {
            On::Cpu => None,
            On::Gpu => Some(nccl::library()?.unique_id()?.to_vec()),
        };
        serde_json::to_vec(&Gift { board, nccl })
            .map_err(|e| LaunchError::SharedMemory { ranks: rank.world, reason: e.to_string() })
    };
    let met = rendezvous::meet(&facts.hello(rank.rank, rank.world, rank.restarts), &options, gift, say)
        .map_err(Error::launch)?;
    if met.hosts() > 1 {
        let (world, hosts, command) = (rank.world, met.hosts(), command.to_string());
        return Err(Error::launch(LaunchError::HostsNeedMpi { world, hosts, command }));
    }
    let gift: Gift = serde_json::from_slice(&met.gift)
        .map_err(|e| Error::launch(LaunchError::SharedMemory { ranks: rank.world, reason: e.to_string() }))?;
    let board = match own {
        Some(board) => board,
        None => Board::open(&gift.board, rank.world).map_err(Error::launch)?,
    };
    let communicator = Processes::enter(board, rank.rank, give_up)?;
    // Rank 0's block is found through its process: it waits until all have it.
    communicator.barrier()?;
    let communicator = Arc::new(communicator);
    match gift.nccl {
        Some(id) => Ok(Arc::new(OverNccl::new(communicator, id_of(&id)?, rank.local_rank)?)),
        None => Ok(communicator),
    }
}

/// Joins the ranks that MPI connects; `card` is this rank's number on its host, for GPUs.
///
/// # Errors
/// R0826, R0831, R0832.
pub fn join_mpi(ranks: Mpi, on: On, card: u64, facts: &Facts) -> Result<Arc<dyn Communicator>, Error> {
    let hello = facts.hello(ranks.rank(), ranks.world(), 0);
    let bytes = serde_json::to_vec(&hello).unwrap_or_default();
    let all = ranks.all_gather(&bytes)?;
    let all: Vec<Hello> = all.iter().map(|bytes| serde_json::from_slice(bytes).unwrap_or_default()).collect();
    if let Err(fault) = rendezvous::agree(&all) {
        let error = Error::launch(fault);
        // All say so, and none waits for MPI's farewell.
        ranks.abort(&Cause { rank: ranks.rank(), what: error.to_string() });
        return Err(error);
    }
    if on == On::Cpu {
        return Ok(Arc::new(ranks));
    }
    let mine = match ranks.rank() {
        0 => nccl::library().and_then(Nccl::unique_id).map_err(Error::launch)?.to_vec(),
        _ => Vec::new(),
    };
    let id = id_of(&ranks.broadcast(0, &mine)?)?;
    Ok(Arc::new(OverNccl::new(Arc::new(ranks), id, card)?))
}
