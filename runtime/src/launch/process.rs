//! A process a rank on this machine, and one that waits for them: it starts them, hears them, and ends all when one is lost.
//!
//! No rank outlives it: each is killed by the system when its parent goes. What ranks say comes out as one stream, the first cause first.

use super::board::Board;
use super::discover::Place;
use super::error::LaunchError;
use super::rendezvous::Token;
use crate::communicator::Cause;
use crate::error::Error;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

/// The variable that says a rank has a supervisor: its process.
pub(crate) const SUPERVISOR: &str = "DSPC_SUPERVISOR";
/// The variable that names the ranks' [`Board`].
pub(crate) const BOARD: &str = "DSPC_BOARD";
/// The variable with the launch's secret.
pub(crate) const TOKEN: &str = "DSPC_TOKEN";
/// How long ranks have to end by themselves once one is lost.
const GRACE: Duration = Duration::from_millis(3500);
/// From one look at the processes to the next.
const LOOK: Duration = Duration::from_millis(20);

/// The ranks to start here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Crew {
    /// The first of them.
    pub first: u64,
    /// How many.
    pub local: u64,
    /// Ranks in all.
    pub world: u64,
    /// Where ranks of several hosts meet.
    pub place: Option<Place>,
}

/// How ranks ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// What this process should end with.
    pub code: i32,
    /// Why, where a rank was lost or failed.
    pub cause: Option<Cause>,
}

/// Whether a process of ours waits for this one, and passes on what it says.
pub fn is_supervised() -> bool {
    std::env::var_os(SUPERVISOR).is_some()
}

/// What a rank does first: it dies with the process that supervises it.
///
/// # Errors
/// R0829 where that process is gone already.
pub fn bind_to_supervisor() -> Result<(), Error> {
    let Some(supervisor) = std::env::var(SUPERVISOR).ok().and_then(|text| text.parse::<i32>().ok()) else {
        return Ok(());
    };
    let rank = std::env::var("DSPC_RANK").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let failed = |reason: String| Error::launch(LaunchError::NotStarted { rank, reason });
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|e| failed(e.to_string()))?;
    match rustix::process::getppid() {
        Some(parent) if parent.as_raw_nonzero().get() == supervisor => Ok(()),
        _ => Err(failed("the process that started it is gone".into())),
    }
}

/// Starts the ranks and waits for all. `command` makes the process of a rank; `stop` asks all to save and end; `say` takes lines.
///
/// Call it from a thread that stays until it returns: the ranks die with that thread.
///
/// # Errors
/// R0829, R0833.
pub fn supervise(
    crew: &Crew,
    command: &mut dyn FnMut(u64) -> Command,
    stop: &AtomicBool,
    say: &mut dyn FnMut(&str),
) -> Result<Ended, Error> {
    let board = match crew.local == crew.world {
        true => Some(Board::new(crew.world).map_err(Error::launch)?),
        false => None,
    };
    if let Some(board) = &board {
        board.set_supervisor();
    }
    let (lines, heard) = mpsc::channel();
    let variables = variables(crew, board.as_deref())?;
    let mut ranks = Vec::new();
    for local in 0..crew.local {
        let rank = crew.first + local;
        let mut command = command(rank);
        command.envs(variables.iter().map(|(name, value)| (*name, value.as_str())));
        command.env("DSPC_RANK", rank.to_string()).env("DSPC_LOCAL_RANK", local.to_string());
        command.stdin(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        if local > 0 {
            command.stdout(Stdio::null());
        }
        match command.spawn() {
            Ok(child) => ranks.push(Rank::new(rank, child, lines.clone())),
            Err(e) => {
                ranks.iter_mut().for_each(Rank::kill);
                return Err(Error::launch(LaunchError::NotStarted { rank, reason: e.to_string() }));
            }
        }
    }
    drop(lines);
    let mut crew = Watched { ranks, board, heard, stopping: None, first: None };
    crew.wait(stop, say);
    Ok(crew.end(say))
}

/// What all ranks of this host are told.
fn variables(crew: &Crew, board: Option<&Board>) -> Result<Vec<(&'static str, String)>, Error> {
    let failed = |e: std::io::Error| {
        Error::launch(LaunchError::NotStarted { rank: crew.first, reason: e.to_string() })
    };
    let process = std::process::id();
    let mut variables = vec![
        (SUPERVISOR, process.to_string()),
        ("DSPC_WORLD", crew.world.to_string()),
        ("DSPC_LOCAL_WORLD", crew.local.to_string()),
    ];
    if let Some(board) = board {
        let (_, secret) = Token::fresh().map_err(failed)?;
        variables.extend([
            (BOARD, board.name()),
            (TOKEN, secret),
            ("DSPC_JOB", format!("process-{process}")),
        ]);
    } else if let Some(place) = &crew.place {
        variables.push(("DSPC_RENDEZVOUS", place.to_string()));
    }
    Ok(variables)
}

/// A rank's process.
struct Rank {
    rank: u64,
    child: Child,
    status: Option<ExitStatus>,
    /// Lines of the report that it ended with.
    report: Vec<String>,
}

impl Rank {
    fn new(rank: u64, mut child: Child, lines: Sender<(u64, String)>) -> Self {
        if let Some(stream) = child.stderr.take() {
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                let mut bytes = Vec::new();
                while reader.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
                    let line = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_string();
                    bytes.clear();
                    if lines.send((rank, line)).is_err() {
                        break;
                    }
                }
            });
        }
        Self { rank, child, status: None, report: Vec::new() }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let (None, Some(pid)) = (self.status, pid) {
            // Not waited for yet, so the number is still its own.
            _ = kill_process(pid, signal);
        }
    }

    fn kill(&mut self) {
        self.signal(Signal::KILL);
        if self.status.is_none() {
            self.status = self.child.wait().ok();
        }
    }

    /// How it ended, if that is no way to end: a clause.
    fn failure(&self) -> Option<String> {
        let status = self.status?;
        match (status.signal(), status.code()) {
            (Some(signal), _) => Some(format!("it was killed by signal {signal}{}", name(signal))),
            (None, Some(0 | 75)) => None,
            (None, Some(code)) => Some(format!("it ended with exit code {code}")),
            (None, None) => Some("it ended without a word".into()),
        }
    }
}

fn name(signal: i32) -> &'static str {
    match signal {
        4 => " (SIGILL)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        8 => " (SIGFPE)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV)",
        15 => " (SIGTERM)",
        _ => "",
    }
}

struct Watched {
    ranks: Vec<Rank>,
    board: Option<Arc<Board>>,
    heard: Receiver<(u64, String)>,
    /// Since when all were asked to end.
    stopping: Option<Instant>,
    /// The first that failed, where no board says it.
    first: Option<Cause>,
}

impl Watched {
    fn wait(&mut self, stop: &AtomicBool, say: &mut dyn FnMut(&str)) {
        let mut asked = false;
        let mut failed: Option<Instant> = None;
        while self.ranks.iter().any(|rank| rank.status.is_none()) {
            self.hear(LOOK, say);
            if stop.load(Ordering::SeqCst) && !asked {
                asked = true;
                self.ranks.iter().for_each(|rank| rank.signal(Signal::TERM));
            }
            self.look();
            let Some(cause) = self.cause() else { continue };
            let rest: Vec<u64> = self.ranks.iter().filter(|r| r.status.is_none()).map(|r| r.rank).collect();
            // A rank that was stopped never ends by itself; once it is the only one left, little is waited for.
            let grace = if rest == [cause.rank] { GRACE / 3 } else { GRACE };
            if failed.get_or_insert_with(Instant::now).elapsed() > grace {
                self.ranks.iter_mut().for_each(Rank::kill);
            }
        }
        // The streams end with their processes, unless a rank's own child keeps one open.
        let until = Instant::now() + Duration::from_millis(500);
        while Instant::now() < until && self.hear(LOOK, say) {}
    }

    fn cause(&self) -> Option<Cause> {
        self.board.as_ref().and_then(|board| board.failure()).or_else(|| self.first.clone())
    }

    /// Sees who ended; the first that failed is the cause of all, if it wrote none itself.
    fn look(&mut self) {
        for rank in &mut self.ranks {
            if rank.status.is_some() {
                continue;
            }
            rank.status = rank.child.try_wait().ok().flatten();
            let Some(how) = rank.failure() else { continue };
            let where_ =
                self.board.as_ref().map_or(String::new(), |b| format!(" ({})", b.describe(rank.rank)));
            let cause = Cause { rank: rank.rank, what: format!("{how}{where_}") };
            if let Some(board) = &self.board {
                board.fail(&cause);
            } else if self.stopping.is_none() {
                self.stopping = Some(Instant::now());
            }
            self.first.get_or_insert(cause);
        }
        if self.board.is_none() && self.stopping.take().is_some() {
            self.ranks.iter().for_each(|rank| rank.signal(Signal::TERM));
        }
    }

    /// Passes on what was said; whether there may be more.
    fn hear(&mut self, wait: Duration, say: &mut dyn FnMut(&str)) -> bool {
        let until = Instant::now() + wait;
        loop {
            match self.heard.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok((rank, line)) => self.line(rank, line, say),
                Err(mpsc::RecvTimeoutError::Timeout) => return true,
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    std::thread::sleep(until.saturating_duration_since(Instant::now()));
                    return false;
                }
            }
        }
    }

    /// A report is kept until all have ended: the first cause comes first.
    fn line(&mut self, number: u64, line: String, say: &mut dyn FnMut(&str)) {
        let leads = self.ranks.first().is_some_and(|rank| rank.rank == number);
        let Some(rank) = self.ranks.iter_mut().find(|rank| rank.rank == number) else { return };
        if !rank.report.is_empty() || line.starts_with("error[") {
            rank.report.push(line);
        } else if leads {
            say(&line);
        } else {
            say(&format!("rank {number}: {line}"));
        }
    }

    /// The reports, the first cause's first; those that only repeat it are counted.
    fn end(mut self, say: &mut dyn FnMut(&str)) -> Ended {
        let Some(cause) = self.cause() else {
            let code = self.ranks.first().and_then(|rank| rank.status).and_then(|status| status.code());
            return Ended { code: code.unwrap_or(8), cause: None };
        };
        self.ranks.sort_by_key(|rank| rank.rank != cause.rank);
        let because = cause.error().to_string();
        let mut said: Vec<&[String]> = Vec::new();
        let mut followed = Vec::new();
        for rank in &self.ranks {
            let follows = rank.rank != cause.rank && rank.report.iter().any(|line| line.contains(&because));
            if follows || said.contains(&rank.report.as_slice()) {
                followed.push(rank.rank);
            } else if rank.report.is_empty() && rank.rank == cause.rank {
                // It could not say it itself.
                let error = cause.error();
                say(&format!("error[{}]: {error}\n  = help: {}", error.code(), error.remedy()));
            } else if !rank.report.is_empty() {
                rank.report.iter().for_each(|line| say(&format!("rank {}: {line}", rank.rank)));
                said.push(&rank.report);
            }
        }
        followed.sort_unstable();
        if !followed.is_empty() {
            say(&format!("rank {} ended because {because}", super::error::ranks(&followed)));
        }
        let own = self.ranks.iter().find(|rank| rank.rank == cause.rank).and_then(|rank| rank.status);
        let code = own.and_then(|status| status.code()).filter(|&code| code != 0).unwrap_or(8);
        Ended { code, cause: Some(cause) }
    }
}

#[cfg(test)]
mod tests;
