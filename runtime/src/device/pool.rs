//! Threads that wait for short work: fork and join in about a microsecond.
//!
//! An instruction lasts 20 to 200 µs, so a waiting thread spins for [`SPIN`] before it sleeps; rayon's queues cost several times
//! more. Work is split by index, never stolen: which thread does what is fixed, and each thread meets its own rows in its own cache.

use crate::error::Error;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// Longer than most instructions, shorter than a time slice.
const SPIN: Duration = Duration::from_micros(50);
const THREADS_MAX: usize = 1024;

/// Threads to use: the value of `DSPC_THREADS` if set, else one a core.
///
/// # Errors
/// R0602 for a value that is no number from 1 to 1024.
pub fn threads_wanted(variable: Option<&str>) -> Result<usize, Error> {
    match variable {
        None => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
        Some(value) => match value.trim().parse() {
            Ok(n) if (1..=THREADS_MAX).contains(&n) => Ok(n),
            _ => Err(Error::Threads { value: value.into(), max: THREADS_MAX }),
        },
    }
}

/// Threads of one of several ranks of a host.
pub(crate) fn share(threads: usize, ranks: u64) -> usize {
    (threads / usize::try_from(ranks).unwrap_or(usize::MAX).max(1)).max(1)
}

type Task<'a> = &'a (dyn Fn(usize) + Sync);

struct Shared {
    /// Count of jobs · 2¹⁶ + parts of the newest job.
    job: AtomicU64,
    /// The newest job's task; written only while `remaining` is 0.
    task: UnsafeCell<Option<Task<'static>>>,
    remaining: AtomicUsize,
    stop: AtomicBool,
    failed: AtomicBool,
    asleep: Vec<AtomicBool>,
    owner_asleep: AtomicBool,
    owner: UnsafeCell<Option<Thread>>,
}

// SAFETY: `task` and `owner` are written by the owner while no worker takes part in a job (`remaining` is 0) and read by workers
// that take part, after they saw the job's number with acquire ordering.
unsafe impl Sync for Shared {}
// SAFETY: as above; the task itself is `Sync`.
unsafe impl Send for Shared {}

/// A team of threads, the caller being one of them.
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    jobs: u64,
}

impl Pool {
    /// With this many threads; fewer where the system gives fewer.
    pub(super) fn new(threads: usize) -> Self {
        let threads = threads.clamp(1, THREADS_MAX);
        let shared = Arc::new(Shared {
            job: AtomicU64::new(0),
            task: UnsafeCell::new(None),
            remaining: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            asleep: (0..threads).map(|_| AtomicBool::new(false)).collect(),
            owner_asleep: AtomicBool::new(false),
            owner: UnsafeCell::new(None),
        });
        let mut workers = Vec::new();
        for index in 1..threads {
            let shared = Arc::clone(&shared);
            let builder = std::thread::Builder::new().name(format!("dspc-{index}"));
            match builder.spawn(move || work(&shared, index)) {
                Ok(handle) => workers.push(handle),
                Err(_) => break,
            }
        }
        Self { shared, workers, jobs: 0 }
    }

    /// Threads, the caller counted.
    pub(super) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(0)` to `task(parts - 1)`, each on its own thread, and returns when all have; `parts` is at most the threads.
    pub(super) fn run(&mut self, parts: usize, task: Task<'_>) {
        let parts = parts.min(self.threads());
        if parts <= 1 {
            task(0);
            return;
        }
        self.jobs += 1;
        let shared = &*self.shared;
        // SAFETY: no job runs, so no worker reads either cell; the borrow of `task` outlives the wait below, after which no
        // worker touches it. `Finish` waits even if `task(0)` unwinds.
        unsafe {
            *shared.task.get() = Some(std::mem::transmute::<Task<'_>, Task<'static>>(task));
            *shared.owner.get() = Some(std::thread::current());
        }
        shared.remaining.store(parts - 1, Ordering::Relaxed);
        shared.job.store(self.jobs << 16 | parts as u64, Ordering::SeqCst);
        for (worker, asleep) in self.workers.iter().zip(&shared.asleep[1..]).take(parts - 1) {
            if asleep.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        let finish = Finish { shared };
        task(0);
        drop(finish);
        assert!(!shared.failed.load(Ordering::Relaxed), "a worker thread of the pool panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.job.fetch_add(1 << 16, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            _ = worker.join();
        }
    }
}

/// Waits for the workers of a job.
struct Finish<'a> {
    shared: &'a Shared,
}

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        let done = || self.shared.remaining.load(Ordering::SeqCst) == 0;
        wait(&self.shared.owner_asleep, done);
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        wait(&shared.asleep[index], || shared.job.load(Ordering::SeqCst) != seen);
        seen = shared.job.load(Ordering::SeqCst);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        if index < (seen & 0xffff) as usize {
            let part = Part { shared };
            // SAFETY: this worker takes part in the job, so the owner waits for it and does not write the cell.
            if let Some(task) = unsafe { *shared.task.get() } {
                task(index);
            }
            drop(part);
        }
    }
}

/// A worker's share of a job; when dropped, the share is done, or it panicked.
struct Part<'a> {
    shared: &'a Shared,
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.failed.store(true, Ordering::Relaxed);
        }
        // Cloned before the count falls: the owner may begin the next job right after.
        // SAFETY: this worker takes part in the job, so the owner does not write the cell.
        let owner = unsafe { (*self.shared.owner.get()).clone() };
        if self.shared.remaining.fetch_sub(1, Ordering::SeqCst) == 1
            && self.shared.owner_asleep.load(Ordering::SeqCst)
            && let Some(owner) = owner
        {
            owner.unpark();
        }
    }
}

/// Spins, then sleeps, until `done`; `asleep` tells those who could end the wait that they must wake this thread.
fn wait(asleep: &AtomicBool, done: impl Fn() -> bool) {
    let mut since = None;
    loop {
        for _ in 0..64 {
            if done() {
                return;
            }
            spin_loop();
        }
        if since.get_or_insert_with(Instant::now).elapsed() > SPIN {
            break;
        }
    }
    asleep.store(true, Ordering::SeqCst);
    while !done() {
        std::thread::park();
    }
    asleep.store(false, Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_runs_once() {
        let mut pool = Pool::new(5);
        for round in 0..20_000u64 {
            let parts = 1 + (round % 5) as usize;
            let hits: [AtomicUsize; 5] = Default::default();
            pool.run(parts, &|i| _ = hits[i].fetch_add(1, Ordering::Relaxed));
            let counts: Vec<usize> = hits.iter().map(|h| h.load(Ordering::Relaxed)).collect();
            assert_eq!(counts, (0..5).map(|i| usize::from(i < parts)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn sleepers_wake() {
        let mut pool = Pool::new(3);
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(2));
            let hits = AtomicUsize::new(0);
            pool.run(3, &|i| {
                if i == 2 {
                    std::thread::sleep(Duration::from_millis(1));
                }
                hits.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(hits.into_inner(), 3);
        }
    }

    #[test]
    fn the_pool_can_move_to_another_thread() {
        let mut pool = Pool::new(2);
        std::thread::spawn(move || {
            let hits = AtomicUsize::new(0);
            pool.run(2, &|_| _ = hits.fetch_add(1, Ordering::Relaxed));
            assert_eq!(hits.into_inner(), 2);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_panic_in_a_part_reaches_the_caller() {
        let result = std::panic::catch_unwind(|| {
            Pool::new(2).run(2, &|i| assert!(i == 0, "on purpose"));
        });
        assert!(result.is_err());
    }

    #[test]
    fn the_number_of_threads_is_checked() {
        assert_eq!(threads_wanted(Some(" 3 ")).unwrap(), 3);
        assert!(threads_wanted(None).unwrap() >= 1);
        for bad in ["0", "", "two", "-1", "1025"] {
            assert_eq!(threads_wanted(Some(bad)).unwrap_err().code(), "R0602");
        }
    }
}
