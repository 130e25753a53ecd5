//! `dspc run`

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dspc_program::Family;
use dspc_runtime::device::cuda::Card;
use dspc_runtime::device::{Algorithms, Wanted};
use dspc_runtime::train::{self, RunOptions};
use dspc_runtime::{Artifact, Terminal, artifact};

use super::ranks::{self, Role};
use crate::build::Wish;
use crate::cli::{Comm, RankMode, When};
use crate::exit::Exit;
use crate::{build, facts, report};

/// What the command line said.
pub struct Options<'a> {
    pub out: &'a Option<PathBuf>,
    pub resume: bool,
    pub max_steps: Option<u64>,
    pub save: bool,
    pub data: &'a Option<PathBuf>,
    pub device: Wanted,
    pub locked: bool,
    pub ranks: Option<u64>,
    pub rank_mode: RankMode,
    pub comm: Comm,
}

/// Builds if need be, and trains.
pub fn run(file: &Path, options: &Options, when: When) -> Exit {
    let role = match ranks::role(options) {
        Ok(role) => role,
        Err(error) => return super::fault(&error),
    };
    if !role.speaks() {
        report::hush();
    }
    match artifact_of(file, options.device, options.ranks.or(role.world()), when) {
        Ok(artifact) => train(file, &artifact, options, role),
        Err(exit) => exit,
    }
}

/// The program of a spec, built if the cache has none, or of an artifact: for the device that is wanted, and so many ranks if that was said.
pub fn artifact_of(file: &Path, device: Wanted, ranks: Option<u64>, when: When) -> Result<Artifact, Exit> {
    if file.is_dir() {
        let artifact = artifact::open(file, device).map_err(|error| super::fault(&error))?;
        let program = &artifact.program;
        return match ranks.filter(|found| *found != program.world()) {
            Some(found) => {
                let (built, name) = (program.world(), program.name.clone());
                Err(super::fault(&dspc_runtime::Error::WorldMismatch { built, found, name }))
            }
            None => Ok(artifact),
        };
    }
    let (front, facts) = super::checked(file, ranks, when)?;
    let (target, bytes) = target(device).map_err(|error| super::fault(&error))?;
    let wish = Wish { target, bytes, or_cpu: device == Wanted::Auto };
    let (directory, family) = build::cached(&front, facts.characters, wish, when)?;
    let device = match family {
        Family::Cpu => Wanted::Cpu,
        Family::Cuda => Wanted::Cuda,
    };
    artifact::open(&directory, device).map_err(|error| super::fault(&error))
}

/// What to build for, and the memory it has where that is a limit.
fn target(device: Wanted) -> Result<(&'static str, Option<u64>), dspc_runtime::Error> {
    let card = || Card::find().and_then(|card| Ok((card.targets()?[0], Some(card.bytes))));
    match device {
        Wanted::Cpu => Ok(("cpu", None)),
        Wanted::Cuda => card(),
        Wanted::Auto => Ok(card().unwrap_or(("cpu", None))),
    }
}

fn train(file: &Path, artifact: &Artifact, options: &Options, role: Role) -> Exit {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    // A second signal ends the process at once: somebody who insists is obeyed.
    let handler = ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    });
    if let Err(error) = handler {
        report::fault(
            "R0001",
            &format!("signals cannot be caught: {error}"),
            "run again; Ctrl-C would lose the step at hand",
        );
        return Exit::Environment;
    }
    let run_dir =
        options.out.clone().unwrap_or_else(|| default_run_dir(&artifact.program.name, options.resume));
    let mut options = RunOptions {
        run_dir,
        data_root: options.data.clone().unwrap_or_else(|| facts::root(file)),
        cache_dir: build::cache_dir(),
        resume: options.resume,
        max_steps: options.max_steps,
        save: options.save,
        lock: super::lock_beside(file),
        algorithms: if options.locked { Algorithms::Locked } else { Algorithms::Measure },
    };
    let trained = match role {
        Role::Supervisor(host) => return ranks::supervise(&artifact.program, host, &stop),
        Role::Threads => train::run(artifact, &options, &stop),
        Role::Rank(_) | Role::Mpi(_) | Role::Nccl => ranks::join(role, artifact, &mut options, file)
            .and_then(|others| train::run_rank(artifact, &options, &stop, &mut Terminal::new(), others)),
    };
    match trained {
        Ok(summary) if summary.interrupted => Exit::Interrupted,
        Ok(_) => Exit::Success,
        Err(error) => super::fault(&error),
    }
}

/// runs/NAME, or the first of runs/NAME-2, -3, … that is free; to resume, the newest that there is.
fn default_run_dir(name: &str, resume: bool) -> PathBuf {
    let candidate = |i: u32| match i {
        1 => Path::new("runs").join(name),
        i => Path::new("runs").join(format!("{name}-{i}")),
    };
    let mut free = 1;
    while candidate(free).exists() {
        free += 1;
    }
    candidate(if resume { (free - 1).max(1) } else { free })
}
