//! Ranks of `dspc run`: which one this process is, and starting those of this machine.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use dspc_program::{Family, Program};
use dspc_runtime::communicator::mpi::Mpi;
use dspc_runtime::communicator::{Cause, Communicator};
use dspc_runtime::launch::LaunchError;
use dspc_runtime::launch::discover::{self, Discovered, Environment, Flags, Host, Rank};
use dspc_runtime::launch::join::{self, Facts, On};
use dspc_runtime::launch::process::{self, Crew};
use dspc_runtime::train::RunOptions;
use dspc_runtime::{Artifact, Error};

use super::run::Options;
use crate::cli::{Comm, RankMode};
use crate::exit::Exit;
use crate::report;

/// What this process is to do about ranks.
pub enum Role {
    /// All ranks, each a thread.
    Threads,
    /// Start a process for each rank of this machine, and wait.
    Supervisor(Option<Host>),
    /// Be one, of a launcher's or of a supervisor's.
    Rank(Rank),
    /// Be one that MPI connects to the others.
    Mpi(Mpi),
    /// Be the only one, through NCCL.
    Nccl,
}

impl Role {
    /// Ranks in all, where somebody said how many.
    pub fn world(&self) -> Option<u64> {
        match self {
            Self::Threads => None,
            Self::Nccl => Some(1),
            Self::Supervisor(host) => host.as_ref().and_then(|host| Some(host.hosts * host.ranks?)),
            Self::Rank(rank) => Some(rank.world),
            Self::Mpi(mpi) => Some(mpi.world()),
        }
    }

    /// Whether this process says what all would say.
    pub fn speaks(&self) -> bool {
        match self {
            Self::Threads | Self::Nccl => true,
            Self::Supervisor(host) => host.as_ref().is_none_or(|host| host.host == 0),
            Self::Rank(rank) => rank.rank == 0 && !process::is_supervised(),
            Self::Mpi(mpi) => mpi.rank() == 0,
        }
    }
}

/// Variables that are text; a launcher's are.
fn environment() -> Environment {
    let text =
        |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    std::env::vars_os().filter_map(text).collect()
}

/// The rank that the environment says this process is.
///
/// # Errors
/// R0820.
pub fn found() -> Result<Discovered, Error> {
    let parent = std::os::unix::process::parent_id();
    discover::discover(&Flags::default(), &environment(), parent).map_err(|e| Error::Launch(Box::new(e)))
}

/// Finds out from the flags and the environment.
///
/// # Errors
/// R0820, R0829, R0831, R0832.
pub fn role(options: &Options) -> Result<Role, Error> {
    process::bind_to_supervisor()?;
    if options.comm == Comm::Mpi {
        return Mpi::start().map(Role::Mpi);
    }
    let found = found()?;
    let said = found.describe();
    let role = match (found, options.rank_mode) {
        (Discovered::Rank(rank), _) if rank.world > 1 => Role::Rank(rank),
        (Discovered::Host(host), _) if host.hosts > 1 => Role::Supervisor(Some(host)),
        // A launcher of one process is none.
        (_, RankMode::Process) => return Ok(Role::Supervisor(None)),
        (_, RankMode::Thread) if options.comm == Comm::Nccl => return Ok(Role::Nccl),
        (_, RankMode::Thread) => return Ok(Role::Threads),
    };
    if role.speaks() {
        eprintln!("{said}");
    }
    Ok(role)
}

/// Starts the ranks of this machine, each with this process's own arguments, and waits for them.
pub fn supervise(program: &Program, host: Option<Host>, stop: &AtomicBool) -> Exit {
    let world = program.world();
    let (index, hosts, place) = host.map_or((0, 1, None), |host| (host.host, host.hosts, host.place));
    let local = world / hosts;
    if local * hosts != world {
        let (built, found, name) = (world, world.next_multiple_of(hosts), program.name.clone());
        return super::fault(&Error::WorldMismatch { built, found, name });
    }
    let own = match std::env::current_exe() {
        Ok(path) => path,
        Err(error) => {
            let title = format!("`dspc` does not find its own file: {error}");
            report::fault("R0001", &title, "run it by its full path, or with `--rank-mode thread`");
            return Exit::Environment;
        }
    };
    let mut command = |_| {
        let mut command = Command::new(&own);
        command.args(std::env::args_os().skip(1));
        command
    };
    let crew = Crew { first: index * local, local, world, place };
    match process::supervise(&crew, &mut command, stop, &mut |line| eprintln!("{line}")) {
        Ok(ended) => Exit::Code(ended.code as u8),
        Err(error) => super::fault(&error),
    }
}

/// Meets the other ranks; they write where the first one does.
///
/// # Errors
/// R0101 to R0103, R0801, R0820 to R0849.
pub fn join(
    role: Role,
    artifact: &Artifact,
    options: &mut RunOptions,
    file: &Path,
) -> Result<Arc<dyn Communicator>, Error> {
    let program = &artifact.program;
    let on = match program.family {
        Family::Cpu => On::Cpu,
        Family::Cuda => On::Gpu,
    };
    let lock = (on == On::Gpu).then_some(options.lock.as_path());
    let facts = Facts::gather(program, &options.data_root, lock)?;
    let communicator = match role {
        Role::Mpi(mpi) => {
            let variables = ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"];
            let variables = variables.iter().find_map(|name| std::env::var(name).ok()?.parse().ok());
            let card = variables.unwrap_or_else(|| mpi.rank());
            join::join_mpi(mpi, on, card, &facts)?
        }
        Role::Nccl if on == On::Cpu => {
            return Err(Error::Launch(Box::new(LaunchError::Library {
                name: "NCCL".into(),
                reason: "the program runs on the CPU".into(),
                remedy: "run it on a GPU with `--device cuda`, or leave out `--comm nccl`".into(),
            })));
        }
        Role::Nccl => join::alone_over_nccl()?,
        Role::Rank(rank) => {
            let give_up = |cause: &Cause| {
                super::fault(&cause.error());
                std::process::exit(8);
            };
            let command = format!("dspc run {}", file.display());
            let say = &mut |line: &str| eprintln!("{line}");
            join::join_host(&rank, on, &facts, &environment(), &command, give_up, say)?
        }
        Role::Threads | Role::Supervisor(_) => {
            return Ok(Arc::new(dspc_runtime::communicator::Solo::default()));
        }
    };
    let folder = communicator.broadcast(0, options.run_dir.as_os_str().as_bytes())?;
    options.run_dir = PathBuf::from(OsString::from_vec(folder));
    Ok(communicator)
}
