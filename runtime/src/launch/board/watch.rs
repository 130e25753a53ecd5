//! A thread in each rank that shows it lives, and sees when another does not.
//!
//! A process that ends is seen at once, one that is stopped by its heartbeat. Whoever sees it first writes the cause; where somebody waits for the
//! processes and knows how they end, it is given a moment to say so. A rank that cannot be woken from what it does ends a little later all the same.

use super::Board;
use crate::communicator::Cause;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open, test_kill_process};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// From one beat to the next.
const BEAT: Duration = Duration::from_millis(100);
/// A rank without a beat for so long is lost.
pub(crate) const SILENCE: Duration = Duration::from_secs(6);
/// If this thread itself was away for so long, all were: nobody's silence counts.
const AWAY: Duration = Duration::from_secs(2);
/// How long the supervisor has to say how a process ended.
const VERDICT: Duration = Duration::from_millis(400);
/// How long a rank may still work after another was lost.
const GRACE: Duration = Duration::from_secs(3);

/// Ends the thread when it goes.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

/// Watches the others for a rank. `give_up` is called when this rank has not ended by itself long after another was lost: it ends the process.
pub(crate) fn watch(
    board: &Arc<Board>,
    rank: u64,
    give_up: impl Fn(&Cause) + Send + 'static,
) -> std::io::Result<Watch> {
    let stop = Arc::new(AtomicBool::new(false));
    let (board, stopped) = (Arc::clone(board), Arc::clone(&stop));
    let body = move || look_on(&board, rank, &stopped, &give_up);
    let thread = std::thread::Builder::new().name("dspc-watch".into()).spawn(body)?;
    Ok(Watch { stop, thread: Some(thread) })
}

/// Another rank, as this one sees it.
struct Peer {
    rank: u64,
    process: u32,
    handle: Option<OwnedFd>,
    beat: u64,
    seen: Instant,
}

impl Peer {
    fn new(rank: u64) -> Self {
        Self { rank, process: 0, handle: None, beat: 0, seen: Instant::now() }
    }

    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.process).ok()?)
    }

    /// Looks at its line; how it was lost, if it was.
    fn look(&mut self, board: &Board, ended: bool) -> Option<String> {
        let at = board.whereabouts(self.rank);
        if at.left || at.process == 0 {
            self.seen = Instant::now();
            return None;
        }
        if self.process == 0 {
            self.process = at.process;
            self.handle = self.pid().and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        }
        let gone = || self.pid().is_some_and(|pid| test_kill_process(pid) == Err(rustix::io::Errno::SRCH));
        if ended || (self.handle.is_none() && gone()) {
            // It may have left between the two looks.
            return (!board.whereabouts(self.rank).left).then(|| "it ended without a word".into());
        }
        if at.beat != self.beat {
            (self.beat, self.seen) = (at.beat, Instant::now());
        }
        (self.seen.elapsed() >= SILENCE).then(|| format!("it stopped answering for {} s", SILENCE.as_secs()))
    }
}

fn look_on(board: &Board, rank: u64, stopped: &AtomicBool, give_up: &dyn Fn(&Cause)) {
    let mut peers: Vec<Peer> = (0..board.world()).filter(|&peer| peer != rank).map(Peer::new).collect();
    let mut failed: Option<Instant> = None;
    let mut last = Instant::now();
    while !stopped.load(Ordering::SeqCst) {
        board.beat(rank);
        if last.elapsed() > AWAY {
            peers.iter_mut().for_each(|peer| peer.seen = Instant::now());
        }
        last = Instant::now();
        if let Some(cause) = board.failure() {
            if failed.get_or_insert_with(Instant::now).elapsed() > GRACE {
                give_up(&cause);
                return;
            }
            std::thread::sleep(BEAT);
            continue;
        }
        let ended = wait(&peers);
        for (peer, ended) in peers.iter_mut().zip(ended) {
            let Some(how) = peer.look(board, ended) else { continue };
            if ended && board.supervisor().is_some() {
                let until = Instant::now() + VERDICT;
                while board.failure().is_none() && Instant::now() < until {
                    std::thread::sleep(BEAT / 10);
                }
            }
            board.fail(&Cause { rank: peer.rank, what: format!("{how} ({})", board.describe(peer.rank)) });
            break;
        }
    }
}

/// Waits for a beat's time, or until some peers have ended: which.
fn wait(peers: &[Peer]) -> Vec<bool> {
    let handles = peers.iter().enumerate().filter_map(|(i, peer)| Some((i, peer.handle.as_ref()?)));
    let (indices, mut fds): (Vec<usize>, Vec<PollFd>) =
        handles.map(|(i, handle)| (i, PollFd::new(handle, PollFlags::IN))).unzip();
    let begun = Instant::now();
    let time = Timespec { tv_sec: 0, tv_nsec: BEAT.as_nanos() as _ };
    let some = poll(&mut fds, Some(&time)).unwrap_or(0) > 0;
    let mut ended = vec![false; peers.len()];
    for (index, fd) in indices.iter().zip(&fds) {
        ended[*index] = some && !fd.revents().is_empty();
    }
    // A peer that ended as it should stays readable; looking again at once would keep a core busy.
    if some {
        std::thread::sleep(BEAT.saturating_sub(begun.elapsed()) / 4);
    }
    ended
}
