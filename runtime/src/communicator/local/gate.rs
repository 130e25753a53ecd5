//! A gate that opens when all have come, or when one of them will never come.

use crate::communicator::{Cause, spin_while};
use crate::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// The first failure of a run.
#[derive(Default)]
pub(super) struct Failure {
    failed: AtomicBool,
    cause: OnceLock<Cause>,
}

impl Failure {
    pub(super) fn set(&self, cause: &Cause) {
        _ = self.cause.set(cause.clone());
        self.failed.store(true, Ordering::SeqCst);
    }

    pub(super) fn cause(&self) -> Option<Cause> {
        self.cause.get().cloned()
    }

    fn check(&self) -> Result<(), Error> {
        match self.cause.get() {
            Some(cause) if self.failed.load(Ordering::SeqCst) => Err(cause.error()),
            _ => Ok(()),
        }
    }
}

/// Opened again and again for the same number of threads.
pub(super) struct Gate {
    size: usize,
    /// Threads that wait.
    waiting: Mutex<usize>,
    /// How often it was opened; written under the lock.
    opened: AtomicU64,
    open: Condvar,
    spins: bool,
    failure: Arc<Failure>,
}

impl Gate {
    pub(super) fn new(size: usize, failure: &Arc<Failure>) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Self {
            size,
            waiting: Mutex::new(0),
            opened: AtomicU64::new(0),
            open: Condvar::new(),
            spins: size <= cores,
            failure: Arc::clone(failure),
        })
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when all have called it.
    ///
    /// # Errors
    /// The cause of the rank that failed.
    pub(super) fn pass(&self) -> Result<(), Error> {
        self.failure.check()?;
        let mut waiting = self.lock();
        let before = self.opened.load(Ordering::SeqCst);
        *waiting += 1;
        if *waiting == self.size {
            *waiting = 0;
            self.opened.store(before + 1, Ordering::SeqCst);
            drop(waiting);
            self.open.notify_all();
            return Ok(());
        }
        drop(waiting);
        let closed = || self.opened.load(Ordering::SeqCst) == before;
        if self.spins {
            spin_while(|| closed() && !self.failure.failed.load(Ordering::Relaxed));
        }
        let mut waiting = self.lock();
        while closed() {
            self.failure.check()?;
            waiting = self.open.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Lets those who wait see that a rank failed.
    pub(super) fn wake(&self) {
        // With the lock, so that nobody is between looking and waiting.
        drop(self.lock());
        self.open.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn nobody_passes_before_all_have_come() {
        let gate = Gate::new(5, &Arc::default());
        let come = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..5 {
                scope.spawn(|| {
                    for round in 0..2000 {
                        come.fetch_add(1, Ordering::SeqCst);
                        gate.pass().unwrap();
                        assert!(come.load(Ordering::SeqCst) >= 5 * (round + 1));
                    }
                });
            }
        });
    }

    #[test]
    fn a_failure_ends_every_wait_and_every_later_one() {
        for wait in [0, 5] {
            let failure = Arc::new(Failure::default());
            let gate = Gate::new(3, &failure);
            std::thread::scope(|scope| {
                let waiting: Vec<_> = (0..2).map(|_| scope.spawn(|| gate.pass())).collect();
                std::thread::sleep(Duration::from_millis(wait));
                failure.set(&Cause { rank: 2, what: "gone".into() });
                failure.set(&Cause { rank: 0, what: "gone because of 2".into() });
                gate.wake();
                for thread in waiting {
                    assert_eq!(thread.join().unwrap().unwrap_err().to_string(), "rank 2 failed: gone");
                }
            });
            assert!(gate.pass().is_err());
        }
    }
}
