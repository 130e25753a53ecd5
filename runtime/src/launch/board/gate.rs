//! A gate of some ranks: it opens when all have come, or when one of them will never come.

use super::Board;
use crate::communicator::{Cause, spin_while};
use crate::error::Error;
use rustix::event::Timespec;
use rustix::thread::futex;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// From one look at whether a rank has left to the next.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A door to it, for one process.
pub(crate) struct Gate {
    board: Arc<Board>,
    number: u64,
    members: Vec<u64>,
    spins: bool,
}

impl Gate {
    pub(super) fn new(board: &Arc<Board>, number: u64, members: Vec<u64>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let spins = board.world() as usize <= cores;
        Self { board: Arc::clone(board), number, members, spins }
    }

    fn check(&self) -> Result<(), Error> {
        self.board.failure().map_or(Ok(()), |cause| Err(cause.error()))
    }

    /// Returns when all its ranks have called it.
    ///
    /// # Errors
    /// R0801, the cause of the rank that failed.
    pub(crate) fn pass(&self) -> Result<(), Error> {
        self.check()?;
        let (waiting, opened) = self.board.gate_words(self.number);
        let before = opened.load(Ordering::SeqCst);
        if waiting.fetch_add(1, Ordering::SeqCst) + 1 == self.members.len() as u32 {
            waiting.store(0, Ordering::SeqCst);
            opened.fetch_add(1, Ordering::SeqCst);
            self.board.wake(self.number);
            return Ok(());
        }
        let closed = || opened.load(Ordering::SeqCst) == before;
        if self.spins {
            spin_while(closed);
        }
        while closed() {
            self.check()?;
            _ = futex::wait(opened, futex::Flags::empty(), before, Some(&LOOK));
            if closed()
                && let Some(cause) = self.deserted()
            {
                // Whoever left may have opened the gate on its way out.
                if closed() {
                    self.board.fail(&cause);
                }
            }
        }
        Ok(())
    }

    /// A member that left in good order, and so will not come: it ran something else.
    fn deserted(&self) -> Option<Cause> {
        let rank = *self.members.iter().find(|&&member| self.board.whereabouts(member).left)?;
        let what = format!("it ended while others go on ({})", self.board.describe(rank));
        Some(Cause { rank, what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::time::Duration;

    #[test]
    fn nobody_passes_before_all_have_come() {
        let board = Board::new(5).unwrap();
        let come = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..5 {
                // Each its own mapping, as processes have.
                let gate = Board::open(&board.name(), 5).unwrap().gate_of_all();
                let come = &come;
                scope.spawn(move || {
                    for round in 0..500 {
                        come.fetch_add(1, Ordering::SeqCst);
                        gate.pass().unwrap();
                        assert!(come.load(Ordering::SeqCst) >= 5 * (round + 1));
                    }
                });
            }
        });
    }

    #[test]
    fn teams_do_not_wait_for_one_another() {
        let board = Board::new(4).unwrap();
        std::thread::scope(|scope| {
            for rank in [0, 2] {
                let gate = board.gate_of(1, &[0, 2]).unwrap();
                scope.spawn(move || (0..100).for_each(|_| gate.pass().unwrap_or_else(|_| panic!("{rank}"))));
            }
        });
        assert!(board.gate_of(8, &[0]).is_none());
    }

    #[test]
    fn a_failure_and_a_deserter_end_every_wait() {
        for leaves in [true, false] {
            let board = Board::new(3).unwrap();
            std::thread::scope(|scope| {
                let waiting: Vec<_> = (0..2)
                    .map(|_| {
                        let gate = Board::open(&board.name(), 3).unwrap().gate_of_all();
                        scope.spawn(move || gate.pass())
                    })
                    .collect();
                std::thread::sleep(Duration::from_millis(20));
                match leaves {
                    true => board.leave(2),
                    false => board.fail(&Cause { rank: 2, what: "gone".into() }),
                }
                for thread in waiting {
                    let text = thread.join().unwrap().unwrap_err().to_string();
                    let words = if leaves {
                        "rank 2 failed: it ended while others go on"
                    } else {
                        "rank 2 failed: gone"
                    };
                    assert!(text.starts_with(words), "{text}");
                }
            });
            assert!(board.gate_of_all().pass().is_err());
        }
    }
}
