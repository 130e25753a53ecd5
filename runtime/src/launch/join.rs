//! How a process becomes a rank: it meets the others, and gets its door to them.

use super::board::Board;
use super::discover::{Environment, Place, Rank};
use super::error::LaunchError;
use super::process::{BOARD, TOKEN};
use super::rendezvous::{self, Hello, Options, TIMEOUT, Token};
use crate::communicator::processes::Processes;
use crate::communicator::{Cause, Communicator, Solo};
use crate::error::Error;
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

    fn hello(&self, rank: &Rank) -> Hello {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Hello {
            version: self.version.clone(),
            program: self.program.clone(),
            lock: self.lock.clone(),
            data: self.data.clone(),
            rank: rank.rank,
            world: rank.world,
            host,
            process: std::process::id(),
            restarts: rank.restarts,
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

/// Joins the ranks of this host, on the CPU. `command` is what the user runs, for advice. `give_up` ends the process: it is called from another
/// thread when a peer was lost and this rank does not end by itself.
///
/// # Errors
/// R0820 to R0836.
pub fn join_host(
    rank: &Rank,
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
    let gift = |_: &[Hello]| match given {
        Some(name) => Ok(name.clone().into_bytes()),
        None => {
            let board = Board::new(rank.world)?;
            let name = board.name();
            own = Some(board);
            Ok(name.into_bytes())
        }
    };
    let met = rendezvous::meet(&facts.hello(rank), &options, gift, say).map_err(Error::launch)?;
    if met.hosts() > 1 {
        let (world, hosts, command) = (rank.world, met.hosts(), command.to_string());
        return Err(Error::launch(LaunchError::HostsNeedMpi { world, hosts, command }));
    }
    let board = match own {
        Some(board) => board,
        None => Board::open(&String::from_utf8_lossy(&met.gift), rank.world).map_err(Error::launch)?,
    };
    let communicator = Processes::enter(board, rank.rank, give_up)?;
    // Rank 0's block is found through its process: it waits until all have it.
    communicator.barrier()?;
    Ok(Arc::new(communicator))
}
