//! Which rank this process is: read from the flags and the environment, never from the network.
//!
//! The first launcher that matches wins; [`Discovered::describe`] says which, and by which variable. A launcher that starts one process a host
//! (a pod of a Kubernetes job) gives a [`Host`]: its ranks are still to be started. Nothing here reads the process's own environment: it is handed in.

use super::error::LaunchError;
use super::nodelist;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Environment variables by name.
pub type Environment = BTreeMap<String, String>;

/// Where ranks on other hosts find rank 0 if nothing else is said.
const PORT: u16 = 29_400;
/// More ranks than any launcher starts; a larger number is a mistake.
const WORLD_MAX: u64 = 1 << 20;

/// Who started the processes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Launcher {
    /// Flags of `dspc run`, or variables of ours.
    Own,
    /// torchrun, or what sets the same variables: accelerate, DeepSpeed's launcher.
    Torchrun,
    /// Open MPI's mpirun.
    OpenMpi,
    /// Hydra: mpiexec of MPICH, Intel MPI, Cray.
    Hydra,
    /// srun.
    Slurm,
    /// Kubeflow's torch policy, without torchrun.
    Kubeflow,
    /// An Indexed Job of Kubernetes, or a JobSet.
    IndexedJob,
    /// Volcano.
    Volcano,
    /// A PyTorchJob: its RANK counts pods.
    PyTorchJob,
}

impl Launcher {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Own => "dspc",
            Self::Torchrun => "torchrun",
            Self::OpenMpi => "Open MPI",
            Self::Hydra => "MPICH's Hydra",
            Self::Slurm => "srun",
            Self::Kubeflow => "Kubeflow",
            Self::IndexedJob => "an Indexed Job",
            Self::Volcano => "Volcano",
            Self::PyTorchJob => "a PyTorchJob",
        }
    }
}

/// What the command line said about ranks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Flags {
    /// This process's rank.
    pub rank: Option<u64>,
    /// Ranks in all.
    pub world: Option<u64>,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Discovered {
    /// Nobody started ranks: this process is alone, or starts its own.
    Alone,
    /// This process is a rank.
    Rank(Rank),
    /// This process is one a host, and starts the host's ranks.
    Host(Host),
}

/// A process's place among all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rank {
    /// Who says so.
    pub launcher: Launcher,
    /// The variable that told.
    pub by: String,
    /// From 0.
    pub rank: u64,
    /// Ranks in all.
    pub world: u64,
    /// From 0, on this host.
    pub local_rank: u64,
    /// Ranks on this host.
    pub local_world: u64,
    /// How often the launcher has started the job again.
    pub restarts: u64,
    /// Where rank 0 is met.
    pub place: Option<Place>,
}

/// A host's place among all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    /// Who says so.
    pub launcher: Launcher,
    /// The variable that told.
    pub by: String,
    /// From 0.
    pub host: u64,
    /// Hosts in all.
    pub hosts: u64,
    /// Ranks to start here, where the launcher says; else the world's share.
    pub ranks: Option<u64>,
    /// Where rank 0 is met.
    pub place: Option<Place>,
}

/// Where ranks meet at the start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// `tcp://HOST:PORT`: rank 0 listens.
    Tcp {
        /// Name or address of rank 0's host.
        host: String,
        /// Its port.
        port: u16,
    },
    /// `unix:PATH`: a socket that rank 0 makes; all ranks are on one host.
    Unix(PathBuf),
    /// A socket on one host, named by what the job's processes have in common and no other job has.
    Job(String),
    /// `file://DIR`: a folder that all hosts share.
    File(PathBuf),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            // An IPv6 address has colons of its own.
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Job(name) => write!(f, "the socket of job {name}"),
            Self::File(path) => write!(f, "file://{}", path.display()),
        }
    }
}

impl Place {
    /// Reads `tcp://HOST:PORT`, `unix:PATH` or `file://DIR`; nothing for another text.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return path.starts_with('/').then(|| Self::Unix(path.into()));
        }
        if let Some(path) = text.strip_prefix("file://") {
            return path.starts_with('/').then(|| Self::File(path.into()));
        }
        let (host, port) = text.strip_prefix("tcp://")?.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().ok().filter(|&port| port > 0)?;
        (!host.is_empty()).then(|| Self::Tcp { host: host.into(), port })
    }
}

impl Discovered {
    /// `rank 2 of 4, 2 of 4 on this host, by Open MPI (OMPI_COMM_WORLD_SIZE)`
    pub fn describe(&self) -> String {
        match self {
            Self::Alone => "no launcher: one process".into(),
            Self::Rank(r) => format!(
                "rank {} of {}, {} of {} on this host, by {} ({})",
                r.rank,
                r.world,
                r.local_rank,
                r.local_world,
                r.launcher.name(),
                r.by
            ),
            Self::Host(h) => {
                format!("host {} of {}, by {} ({})", h.host, h.hosts, h.launcher.name(), h.by)
            }
        }
    }
}

/// Finds out which rank this process is. `parent` is the process that started it.
///
/// # Errors
/// R0820 for a variable that is no number or does not fit the others.
pub fn discover(flags: &Flags, environment: &Environment, parent: u32) -> Result<Discovered, LaunchError> {
    let vars = Variables { environment, parent };
    let first = [
        own(flags, &vars)?,
        torchrun(&vars)?,
        open_mpi(&vars)?,
        hydra(&vars)?,
        slurm(&vars)?,
        kubeflow(&vars)?,
        indexed_job(&vars)?,
        volcano(&vars)?,
        pytorch_job(&vars)?,
    ];
    let mut found = first.into_iter().flatten().next().unwrap_or(Discovered::Alone);
    if let Some(text) = vars.text("DSPC_RENDEZVOUS") {
        let reason = "which is none of tcp://HOST:PORT, unix:/PATH, file:///DIR";
        let place = Place::parse(text).ok_or_else(|| bad("DSPC_RENDEZVOUS", text, reason))?;
        match &mut found {
            Discovered::Alone => {}
            Discovered::Rank(rank) => rank.place = Some(place),
            Discovered::Host(host) => host.place = Some(place),
        }
    }
    Ok(found)
}

struct Variables<'a> {
    environment: &'a Environment,
    parent: u32,
}

fn bad(name: &str, value: &str, reason: &str) -> LaunchError {
    LaunchError::Variable { name: name.into(), value: value.into(), reason: reason.into() }
}

impl Variables<'_> {
    /// A variable that is empty counts as not set.
    fn text(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn number(&self, name: &str) -> Result<Option<u64>, LaunchError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let number = text.trim().parse::<u64>().ok().filter(|&n| n <= WORLD_MAX);
        number.map(Some).ok_or_else(|| bad(name, text, &format!("which is no number from 0 to {WORLD_MAX}")))
    }

    /// A number that must be there because `beside` is.
    fn needed(&self, name: &str, beside: &str) -> Result<u64, LaunchError> {
        self.number(name)?.ok_or_else(|| bad(name, "", &format!("and {beside} is set without it")))
    }

    fn port(&self, name: &str) -> Result<Option<u16>, LaunchError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let port = text.trim().parse::<u16>().ok().filter(|&port| port > 0);
        port.map(Some).ok_or_else(|| bad(name, text, "which is no port"))
    }

    /// Rank 0's host and a port that is free there, where `MASTER_ADDR` says. What launched the ranks itself listens at `MASTER_PORT` if `taken`.
    fn master(&self, taken: u16) -> Result<Option<Place>, LaunchError> {
        let Some(host) = self.text("MASTER_ADDR").map(str::to_string) else { return Ok(None) };
        let port = match (self.port("DSPC_PORT")?, self.port("MASTER_PORT")?) {
            (Some(own), _) => own,
            (None, Some(port)) => port.checked_add(taken).unwrap_or(PORT),
            (None, None) => PORT,
        };
        Ok(Some(Place::Tcp { host, port }))
    }

    /// A place for ranks that are all on one host, or at rank 0's address.
    fn place(&self, job: String, one_host: bool, taken: u16) -> Result<Option<Place>, LaunchError> {
        if one_host { Ok(Some(Place::Job(job))) } else { self.master(taken) }
    }
}

/// Numbers as a launcher gave them, checked against one another; `names` are those of rank, world, local rank and local world.
fn checked(numbers: [u64; 4], names: [&str; 4]) -> Result<[u64; 4], LaunchError> {
    let [rank, world, local_rank, local_world] = numbers;
    let not_below = |i: usize, j: usize| {
        bad(names[i], &numbers[i].to_string(), &format!("which is not below {}={}", names[j], numbers[j]))
    };
    if world == 0 {
        return Err(bad(names[1], "0", "and a world has at least one rank"));
    }
    if rank >= world {
        return Err(not_below(0, 1));
    }
    if local_rank >= local_world {
        return Err(not_below(2, 3));
    }
    if local_world > world {
        let reason = format!("which is more than {}={world}", names[1]);
        return Err(bad(names[3], &local_world.to_string(), &reason));
    }
    Ok(numbers)
}

fn own(flags: &Flags, vars: &Variables) -> Result<Option<Discovered>, LaunchError> {
    if let Some(host) = vars.number("DSPC_NODE_RANK")?
        && flags.rank.is_none()
        && vars.text("DSPC_RANK").is_none()
    {
        let hosts = vars.needed("DSPC_NNODES", "DSPC_NODE_RANK")?;
        let ranks = vars.number("DSPC_NPROC_PER_NODE")?;
        return host_of(
            Launcher::Own,
            ["DSPC_NODE_RANK", "DSPC_NNODES"],
            (host, hosts),
            ranks,
            vars.master(0)?,
        );
    }
    let (rank, by) = match flags.rank {
        Some(rank) => (Some(rank), "--rank"),
        None => (vars.number("DSPC_RANK")?, "DSPC_RANK"),
    };
    let Some(rank) = rank else { return Ok(None) };
    let (world, world_by) = match flags.world {
        Some(world) => (world, "--ranks"),
        None => (vars.needed("DSPC_WORLD", by)?, "DSPC_WORLD"),
    };
    let local_rank = vars.number("DSPC_LOCAL_RANK")?.unwrap_or(rank);
    let local_world = vars.number("DSPC_LOCAL_WORLD")?.unwrap_or(world);
    let names = [by, world_by, "DSPC_LOCAL_RANK", "DSPC_LOCAL_WORLD"];
    let [rank, world, local_rank, local_world] = checked([rank, world, local_rank, local_world], names)?;
    let restarts = vars.number("DSPC_RESTARTS")?.unwrap_or(0);
    let job = match vars.text("DSPC_JOB") {
        Some(job) => job.to_string(),
        None => format!("dspc-{}", vars.parent),
    };
    let place = match vars.master(0)? {
        Some(place) => Some(place),
        None => vars.place(job, local_world == world, 0)?,
    };
    let launcher = Launcher::Own;
    Ok(Some(Discovered::Rank(Rank {
        launcher,
        by: by.into(),
        rank,
        world,
        local_rank,
        local_world,
        restarts,
        place,
    })))
}

fn torchrun(vars: &Variables) -> Result<Option<Discovered>, LaunchError> {
    if ["RANK", "WORLD_SIZE", "LOCAL_RANK"].iter().any(|name| vars.text(name).is_none()) {
        return Ok(None);
    }
    // DeepSpeed's launcher says LOCAL_SIZE.
    let (local_world, local_by) = match (vars.number("LOCAL_WORLD_SIZE")?, vars.number("LOCAL_SIZE")?) {
        (Some(size), _) => (size, "LOCAL_WORLD_SIZE"),
        (None, Some(size)) => (size, "LOCAL_SIZE"),
        (None, None) => (vars.needed("WORLD_SIZE", "RANK")?, "WORLD_SIZE"),
    };
    let numbers = [
        vars.needed("RANK", "WORLD_SIZE")?,
        vars.needed("WORLD_SIZE", "RANK")?,
        vars.needed("LOCAL_RANK", "RANK")?,
        local_world,
    ];
    let [rank, world, local_rank, local_world] =
        checked(numbers, ["RANK", "WORLD_SIZE", "LOCAL_RANK", local_by])?;
    let restarts = vars.number("TORCHELASTIC_RESTART_COUNT")?.unwrap_or(0);
    // The port is the agent's own, so it tells jobs apart that have the same id (`none` by default).
    let parts = ["TORCHELASTIC_RUN_ID", "MASTER_PORT"].iter().filter_map(|name| vars.text(name));
    let mut job: Vec<&str> = parts.collect();
    let parent = vars.parent.to_string();
    if job.is_empty() {
        job.push(&parent);
    }
    let place = vars.place(format!("torchrun-{}", job.join("-")), local_world == world, 1)?;
    Ok(Some(Discovered::Rank(Rank {
        launcher: Launcher::Torchrun,
        by: "RANK".into(),
        rank,
        world,
        local_rank,
        local_world,
        restarts,
        place,
    })))
}

fn open_mpi(vars: &Variables) -> Result<Option<Discovered>, LaunchError> {
    let by = "OMPI_COMM_WORLD_SIZE";
    let Some(world) = vars.number(by)? else { return Ok(None) };
    let names = ["OMPI_COMM_WORLD_RANK", by, "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"];
    let numbers = [vars.needed(names[0], by)?, world, vars.needed(names[2], by)?, vars.needed(names[3], by)?];
    let [rank, world, local_rank, local_world] = checked(numbers, names)?;
    let job = ["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"].iter().find_map(|name| vars.text(name));
    let job = job.map_or_else(|| format!("mpirun-{}", vars.parent), |job| format!("openmpi-{job}"));
    let place = vars.place(job, local_world == world, 0)?;
    Ok(Some(Discovered::Rank(Rank {
        launcher: Launcher::OpenMpi,
        by: by.into(),
        rank,
        world,
        local_rank,
        local_world,
        restarts: 0,
        place,
    })))
}

fn hydra(vars: &Variables) -> Result<Option<Discovered>, LaunchError> {
    let (Some(rank), Some(world)) = (vars.number("PMI_RANK")?, vars.number("PMI_SIZE")?) else {
        return Ok(None);
    };
    // srun with PMI sets these two as well, and says which host by its own variables.
    if vars.text("MPI_LOCALRANKID").is_none() && vars.text("SLURM_PROCID").is_some() {
        return Ok(None);
    }
    let names = ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"];
    let numbers = [rank, world, vars.needed(names[2], "PMI_RANK")?, vars.needed(names[3], "PMI_RANK")?];
    let [rank, world, local_rank, local_world] = checked(numbers, names)?;
    // Hydra gives a job no name; its proxy is the parent of all ranks of a host.
    let place = vars.place(format!("hydra-{}", vars.parent), local_world == world, 0)?;
    Ok(Some(Discovered::Rank(Rank {
        launcher: Launcher::Hydra,
        by: "PMI_RANK".into(),
        rank,
        world,
        local_rank,
        local_world,
        restarts: 0,
        place,
    })))
}

/// `SLURM_NTASKS` alone is no step: a bare call in a batch script would wait for ranks that nobody starts.
fn slurm(vars: &Variables) -> Result<Option<Discovered>, LaunchError> {
    let (Some(rank), Some(world)) = (vars.number("SLURM_PROCID")?, vars.number("SLURM_STEP_NUM_TASKS")?)
    else {
        return Ok(None);
    };
    let by = "SLURM_PROCID";
    let host = vars.number("SLURM_NODEID")?.unwrap_or(0);
    let local_world = match vars.text("SLURM_STEP_TASKS_PER_NODE") {
        Some(text) => nodelist::count_at(text, host).ok_or_else(|| {
            bad("SLURM_STEP_TASKS_PER_NODE", text, "which does not say how many tasks a node has")
        })?,
        None => world,
    };
    let names = [by, "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"];
    let numbers = [rank, world, vars.needed(names[2], by)?, local_world];
    let [rank, world, local_rank, local_world] = checked(numbers, names)?;
    let ids = ["SLURM_JOB_ID", "SLURM_STEP_ID"].map(|name| vars.text(name).unwrap_or("0"));
    let place = if local_world == world {
        Some(Place::Job(format!("slurm-{}.{}", ids[0], ids[1])))
    } else if let Some(place) = vars.master(0)? {
        Some(place)
    } else {
        let first = vars.text("SLURM_STEP_NODELIST").and_then(nodelist::first);
        let number = |id: &str| id.parse::<u64>().unwrap_or(0);
        let spread = (number(ids[0]).wrapping_mul(31).wrapping_add(number(ids[1]))) % 20_000;
        let port = vars.port("DSPC_PORT")?.unwrap_or(20_000 + spread as u16);
        first.map(|host| Place::Tcp { host, port })
    };
    Ok(Some(Discovered::Rank(Rank {
        launcher: Launcher::Slurm,
        by: by.into(),
        rank,
        world,
        local_rank,
        local_world,
        restarts: vars.number("SLURM_RESTART_COUNT")?.unwrap_or(0),
        place,
    })))
}

fn host_of(
    launcher: Launcher,
    names: [&str; 2],
    (host, hosts): (u64, u64),
    ranks: Option<u64>,
    place: Option<Place>,
) -> Result<Option<Discovered>, LaunchError> {
    if host >= hosts {
        let reason = format!("which is not below {}={hosts}", names[1]);
        return Err(bad(names[0], &host.to_string(), &reason));
    }
    Ok(Some(Discovered::Host(Host { launcher, by: names[0].into(), host, hosts, ranks, place })))
}

fn kubeflow(vars: &Variables) -> Result<Option<Discovered>, LaunchError> {
    let (by, size) = ("PET_NODE_RANK", "PET_NNODES");
    let Some(host) = vars.number(by)? else { return Ok(None) };
    // `2:4` is torchrun's range of hosts; the job begins with the lower end.
    let text = vars.text(size).unwrap_or("1");
    let hosts = text.split(':').next().and_then(|least| least.parse().ok());
    let hosts = hosts.ok_or_else(|| bad(size, text, "which is no number of hosts"))?;
    // `auto` and `gpu` leave it to us.
    let ranks = vars.text("PET_NPROC_PER_NODE").and_then(|text| text.parse().ok());
    let port = vars.port("DSPC_PORT")?.or(vars.port("PET_MASTER_PORT")?).unwrap_or(PORT);
    let place = vars.text("PET_MASTER_ADDR").map(|host| Place::Tcp { host: host.into(), port });
    host_of(Launcher::Kubeflow, [by, size], (host, hosts), ranks, place)
}

fn indexed_job(vars: &Variables) -> Result<Option<Discovered>, LaunchError> {
    let (by, size) = ("JOB_COMPLETION_INDEX", "DSPC_NNODES");
    let (Some(host), Some(hosts)) = (vars.number(by)?, vars.number(size)?) else { return Ok(None) };
    let place = match vars.master(0)? {
        Some(place) => Some(place),
        None => {
            // A pod's host name is the job's with its index; the first pod is found through the job's headless service.
            let own = vars.text("HOSTNAME").and_then(|name| name.strip_suffix(&format!("-{host}")));
            let service = vars.text("DSPC_SERVICE").map(|name| format!(".{name}")).unwrap_or_default();
            let port = vars.port("DSPC_PORT")?.unwrap_or(PORT);
            own.map(|job| Place::Tcp { host: format!("{job}-0{service}"), port })
        }
    };
    host_of(Launcher::IndexedJob, [by, size], (host, hosts), vars.number("DSPC_NPROC_PER_NODE")?, place)
}

fn volcano(vars: &Variables) -> Result<Option<Discovered>, LaunchError> {
    let by = "VC_TASK_INDEX";
    let Some(host) = vars.number(by)? else { return Ok(None) };
    let lists = vars
        .environment
        .iter()
        .filter(|(name, list)| name.starts_with("VC_") && name.ends_with("_HOSTS") && !list.is_empty());
    let lists: Vec<(&String, Vec<&str>)> =
        lists.map(|(name, list)| (name, list.split(',').map(str::trim).collect())).collect();
    // A job may have tasks of other kinds; ours is the one whose list has this host.
    let own = vars.text("HOSTNAME").unwrap_or_default();
    let has_own = |list: &[&str]| {
        let name = list.get(host as usize).map(|name| name.split('.').next().unwrap_or(name));
        name.is_some_and(|name| name == own)
    };
    let ours = lists.iter().find(|(_, list)| has_own(list)).or(lists.first());
    let Some((name, list)) = ours else { return Ok(None) };
    let port = vars.port("DSPC_PORT")?.unwrap_or(PORT);
    let place = list.first().map(|host| Place::Tcp { host: (*host).into(), port });
    let ranks = vars.number("DSPC_NPROC_PER_NODE")?;
    host_of(Launcher::Volcano, [by, name], (host, list.len() as u64), ranks, place)
}

/// A PyTorchJob of Kubeflow's first training operator sets RANK and WORLD_SIZE for each pod, and no LOCAL_RANK.
fn pytorch_job(vars: &Variables) -> Result<Option<Discovered>, LaunchError> {
    let (Some(host), Some(hosts)) = (vars.number("RANK")?, vars.number("WORLD_SIZE")?) else {
        return Ok(None);
    };
    let ranks = vars.number("DSPC_NPROC_PER_NODE")?;
    host_of(Launcher::PyTorchJob, ["RANK", "WORLD_SIZE"], (host, hosts), ranks, vars.master(0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(text: &str) -> Environment {
        text.split_whitespace()
            .map(|pair| pair.split_once('=').unwrap())
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect()
    }

    fn found(text: &str) -> String {
        match discover(&Flags::default(), &environment(text), 77) {
            Ok(found) => {
                let place = match &found {
                    Discovered::Alone => None,
                    Discovered::Rank(rank) => rank.place.clone(),
                    Discovered::Host(host) => host.place.clone(),
                };
                let place = place.map_or("nowhere".to_string(), |place| place.to_string());
                format!("{}; meets at {place}", found.describe())
            }
            Err(error) => format!("{}: {error}", error.code()),
        }
    }

    #[test]
    fn each_launcher_is_known_by_its_variables() {
        let cases = [
            ("", "no launcher: one process; meets at nowhere"),
            (
                "DSPC_RANK=1 DSPC_WORLD=4",
                "rank 1 of 4, 1 of 4 on this host, by dspc (DSPC_RANK); meets at the socket of job dspc-77",
            ),
            (
                "DSPC_RANK=5 DSPC_WORLD=8 DSPC_LOCAL_RANK=1 DSPC_LOCAL_WORLD=4 MASTER_ADDR=n1",
                "rank 5 of 8, 1 of 4 on this host, by dspc (DSPC_RANK); meets at tcp://n1:29400",
            ),
            (
                "RANK=3 WORLD_SIZE=4 LOCAL_RANK=3 LOCAL_WORLD_SIZE=4 MASTER_ADDR=n1 MASTER_PORT=29500 TORCHELASTIC_RUN_ID=none",
                "rank 3 of 4, 3 of 4 on this host, by torchrun (RANK); meets at the socket of job torchrun-none-29500",
            ),
            (
                // The agent itself listens at MASTER_PORT.
                "RANK=9 WORLD_SIZE=16 LOCAL_RANK=1 LOCAL_WORLD_SIZE=8 MASTER_ADDR=n1 MASTER_PORT=29500",
                "rank 9 of 16, 1 of 8 on this host, by torchrun (RANK); meets at tcp://n1:29501",
            ),
            (
                "RANK=9 WORLD_SIZE=16 LOCAL_RANK=1 LOCAL_SIZE=8 MASTER_ADDR=n1 MASTER_PORT=29500 DSPC_PORT=4000",
                "rank 9 of 16, 1 of 8 on this host, by torchrun (RANK); meets at tcp://n1:4000",
            ),
            (
                "OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=2 PMIX_NAMESPACE=123.1",
                "rank 1 of 2, 1 of 2 on this host, by Open MPI (OMPI_COMM_WORLD_SIZE); meets at the socket of job openmpi-123.1",
            ),
            (
                "OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_LOCAL_RANK=0 OMPI_COMM_WORLD_LOCAL_SIZE=1",
                "rank 1 of 2, 0 of 1 on this host, by Open MPI (OMPI_COMM_WORLD_SIZE); meets at nowhere",
            ),
            (
                "PMI_RANK=2 PMI_SIZE=4 MPI_LOCALRANKID=0 MPI_LOCALNRANKS=2 MASTER_ADDR=fe80::1",
                "rank 2 of 4, 0 of 2 on this host, by MPICH's Hydra (PMI_RANK); meets at tcp://[fe80::1]:29400",
            ),
            (
                "PMI_RANK=2 PMI_SIZE=4 MPI_LOCALRANKID=2 MPI_LOCALNRANKS=4",
                "rank 2 of 4, 2 of 4 on this host, by MPICH's Hydra (PMI_RANK); meets at the socket of job hydra-77",
            ),
            (
                "SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=4 SLURM_LOCALID=1 SLURM_NODEID=1 SLURM_STEP_TASKS_PER_NODE=2(x2) SLURM_STEP_NODELIST=gpu[07-08] SLURM_JOB_ID=100 SLURM_STEP_ID=2",
                "rank 3 of 4, 1 of 2 on this host, by srun (SLURM_PROCID); meets at tcp://gpu07:23102",
            ),
            (
                // srun --mpi=pmi2 sets the variables of Hydra too.
                "PMI_RANK=1 PMI_SIZE=2 SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=1 SLURM_JOB_ID=7 SLURM_STEP_ID=0",
                "rank 1 of 2, 1 of 2 on this host, by srun (SLURM_PROCID); meets at the socket of job slurm-7.0",
            ),
            // A bare call in a batch script.
            ("SLURM_PROCID=0 SLURM_NTASKS=4 SLURM_LOCALID=0", "no launcher: one process; meets at nowhere"),
            (
                "PET_NNODES=2 PET_NODE_RANK=1 PET_NPROC_PER_NODE=auto PET_MASTER_ADDR=job-0.svc PET_MASTER_PORT=29500",
                "host 1 of 2, by Kubeflow (PET_NODE_RANK); meets at tcp://job-0.svc:29500",
            ),
            (
                "JOB_COMPLETION_INDEX=2 DSPC_NNODES=3 HOSTNAME=train-2 DSPC_SERVICE=ring",
                "host 2 of 3, by an Indexed Job (JOB_COMPLETION_INDEX); meets at tcp://train-0.ring:29400",
            ),
            ("JOB_COMPLETION_INDEX=2", "no launcher: one process; meets at nowhere"),
            (
                "VC_TASK_INDEX=1 VC_MASTER_HOSTS=m-0.job VC_WORKER_HOSTS=w-0.job,w-1.job HOSTNAME=w-1",
                "host 1 of 2, by Volcano (VC_TASK_INDEX); meets at tcp://w-0.job:29400",
            ),
            (
                "RANK=1 WORLD_SIZE=2 MASTER_ADDR=job-master-0 MASTER_PORT=23456",
                "host 1 of 2, by a PyTorchJob (RANK); meets at tcp://job-master-0:23456",
            ),
            (
                "DSPC_NODE_RANK=1 DSPC_NNODES=2 MASTER_ADDR=10.0.0.1",
                "host 1 of 2, by dspc (DSPC_NODE_RANK); meets at tcp://10.0.0.1:29400",
            ),
        ];
        for (given, expected) in cases {
            assert_eq!(found(given), expected, "{given}");
        }
    }

    #[test]
    fn the_first_match_wins() {
        let mpi = "OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=2";
        let slurm = "SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1 SLURM_LOCALID=0";
        let torchrun = "RANK=0 WORLD_SIZE=1 LOCAL_RANK=0";
        let by =
            |text: &str| found(text).split(" by ").nth(1).unwrap().split(" (").next().unwrap().to_string();
        assert_eq!(by(&format!("{slurm} {mpi} {torchrun} DSPC_RANK=0 DSPC_WORLD=1")), "dspc");
        assert_eq!(by(&format!("{slurm} {mpi} {torchrun}")), "torchrun");
        assert_eq!(by(&format!("{slurm} {mpi}")), "Open MPI");
        assert_eq!(by(slurm), "srun");
    }

    #[test]
    fn flags_come_before_the_environment() {
        let flags = Flags { rank: Some(2), world: Some(4) };
        let found = discover(&flags, &environment("DSPC_RANK=0 DSPC_WORLD=2"), 77).unwrap();
        assert_eq!(found.describe(), "rank 2 of 4, 2 of 4 on this host, by dspc (--rank)");
    }

    #[test]
    fn a_variable_says_where_ranks_meet() {
        for place in ["tcp://[::1]:80", "tcp://n1:29500", "unix:/run/a", "file:///shared/run"] {
            let at = found(&format!("DSPC_RANK=0 DSPC_WORLD=1 DSPC_RENDEZVOUS={place}"));
            assert!(at.ends_with(&format!("meets at {place}")), "{at}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let cases = [
            ("DSPC_RANK=one DSPC_WORLD=2", "DSPC_RANK is \"one\", which is no number from 0 to 1048576"),
            ("DSPC_RANK=1", "DSPC_WORLD is \"\", and DSPC_RANK is set without it"),
            ("DSPC_RANK=2 DSPC_WORLD=2", "DSPC_RANK is \"2\", which is not below DSPC_WORLD=2"),
            ("RANK=0 WORLD_SIZE=0 LOCAL_RANK=0", "WORLD_SIZE is \"0\", and a world has at least one rank"),
            (
                "RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=4",
                "LOCAL_WORLD_SIZE is \"4\", which is more than WORLD_SIZE=2",
            ),
            (
                "OMPI_COMM_WORLD_SIZE=2",
                "OMPI_COMM_WORLD_RANK is \"\", and OMPI_COMM_WORLD_SIZE is set without it",
            ),
            ("PET_NODE_RANK=2 PET_NNODES=2", "PET_NODE_RANK is \"2\", which is not below PET_NNODES=2"),
            (
                "DSPC_RANK=0 DSPC_WORLD=1 DSPC_RENDEZVOUS=n1:29500",
                "DSPC_RENDEZVOUS is \"n1:29500\", which is none of tcp://HOST:PORT, unix:/PATH, file:///DIR",
            ),
            (
                "DSPC_RANK=0 DSPC_WORLD=1 MASTER_ADDR=n1 MASTER_PORT=99999",
                "MASTER_PORT is \"99999\", which is no port",
            ),
        ];
        for (given, expected) in cases {
            assert_eq!(found(given), format!("R0820: {expected}"), "{given}");
        }
    }
}
