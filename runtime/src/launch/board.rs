//! What ranks of one host see of one another when each is a process: one block of memory with gates, a line a rank, and the first failure.
//!
//! The block is a file without a name: it goes when its last process goes, however that ends. Others open it through the process that made it.
//! Everything in it is an atomic word or bytes that a gate or a flag guards; a process that is killed anywhere leaves nothing locked.

mod gate;
mod watch;

use super::error::LaunchError;
use crate::communicator::Cause;
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

pub(crate) use gate::Gate;
pub(crate) use watch::{Watch, watch};

const MARK: u32 = u32::from_le_bytes(*b"dspB");
/// Bytes of a page of the header, of a rank's line, of a gate.
const PAGE: usize = 4096;
const LINE: usize = 128;
const GATE: usize = 64;
/// A rank's part of one round of the host's plane.
pub(crate) const POST: usize = 1 << 20;
/// Groups of ranks that a program may have, each with its own gates.
const GROUPS: u64 = 8;
const CAUSE: usize = 64;
const CAUSE_MAX: usize = PAGE - CAUSE;

/// Words of the header.
#[derive(Clone, Copy)]
enum Word {
    Mark,
    World,
    /// 0: nobody failed. 1: somebody is writing the cause. 2: it is there.
    Failed,
    FailedRank,
    CauseBytes,
    Supervisor,
}

/// Words of a rank's line; each is 8 bytes.
#[derive(Clone, Copy)]
enum Mark {
    /// 0 before it is there.
    Process,
    /// One more each time its watcher looks.
    Beat,
    Step,
    /// Collectives of the step.
    Collective,
    /// 1: it has left as it should.
    Left,
    /// Bytes that it gives in this round of the host's plane.
    Given,
}

/// The block, mapped into this process.
pub(crate) struct Board {
    map: MmapRaw,
    world: u64,
    /// Keeps the memory findable for those who come later.
    file: File,
}

/// Where a rank is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Whereabouts {
    pub process: u32,
    pub beat: u64,
    /// From 1; 0 before the first.
    pub step: u64,
    /// Collectives of the step so far.
    pub collective: u64,
    pub left: bool,
}

fn bytes(world: u64) -> usize {
    posts(world) + world as usize * POST
}

fn lines(world: u64) -> usize {
    (PAGE + (1 + GROUPS * world) as usize * GATE).next_multiple_of(PAGE)
}

fn posts(world: u64) -> usize {
    (lines(world) + world as usize * LINE).next_multiple_of(PAGE)
}

/// Memory without a name.
pub(crate) fn nameless(bytes: usize) -> io::Result<File> {
    let file = File::from(rustix::fs::memfd_create("dspc", MemfdFlags::CLOEXEC)?);
    file.set_len(bytes as u64)?;
    Ok(file)
}

/// A file of another process of this user.
pub(crate) fn of_process(process: u32, descriptor: i32) -> io::Result<File> {
    File::options().read(true).write(true).open(format!("/proc/{process}/fd/{descriptor}"))
}

impl Board {
    /// A new one.
    ///
    /// # Errors
    /// R0833.
    pub(crate) fn new(world: u64) -> Result<Arc<Self>, LaunchError> {
        let failed = |e: io::Error| LaunchError::SharedMemory { ranks: world, reason: e.to_string() };
        let file = nameless(bytes(world)).map_err(failed)?;
        let map = MmapOptions::new().map_raw(&file).map_err(failed)?;
        let board = Self { map, world, file };
        board.word(Word::World).store(world as u32, Ordering::SeqCst);
        board.word(Word::Mark).store(MARK, Ordering::SeqCst);
        Ok(Arc::new(board))
    }

    /// What another process made, by the name that [`Self::name`] gave there.
    ///
    /// # Errors
    /// R0833.
    pub(crate) fn open(name: &str, world: u64) -> Result<Arc<Self>, LaunchError> {
        let failed = |reason: String| LaunchError::SharedMemory { ranks: world, reason };
        let numbers = name.split_once(':').and_then(|(p, d)| Some((p.parse().ok()?, d.parse().ok()?)));
        let (process, descriptor) = numbers.ok_or_else(|| failed(format!("{name:?} names none")))?;
        let open = || -> io::Result<(File, u64)> {
            let file = of_process(process, descriptor)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        let (file, length) = open().map_err(|e| failed(format!("process {process}: {e}")))?;
        if length != bytes(world) as u64 {
            return Err(failed("it is for another number of ranks".into()));
        }
        let map = MmapOptions::new().map_raw(&file).map_err(|e| failed(e.to_string()))?;
        let board = Self { map, world, file };
        let fits = board.word(Word::Mark).load(Ordering::SeqCst) == MARK
            && u64::from(board.word(Word::World).load(Ordering::SeqCst)) == world;
        if fits { Ok(Arc::new(board)) } else { Err(failed("it is no block of this version's".into())) }
    }

    /// Its name, for [`Self::open`] in another process, as long as this one lives.
    pub(crate) fn name(&self) -> String {
        use std::os::fd::AsRawFd;
        format!("{}:{}", std::process::id(), self.file.as_raw_fd())
    }

    pub(crate) fn world(&self) -> u64 {
        self.world
    }

    fn at(&self, offset: usize) -> *mut u8 {
        self.map.as_mut_ptr().wrapping_add(offset)
    }

    fn word(&self, word: Word) -> &AtomicU32 {
        // SAFETY: the header is a page of the map, its words are aligned, and only atomics touch them.
        unsafe { AtomicU32::from_ptr(self.at(word as usize * 4).cast()) }
    }

    fn mark(&self, rank: u64, mark: Mark) -> &AtomicU64 {
        let rank = rank.min(self.world - 1) as usize;
        // SAFETY: the line of an existing rank lies in the map, its words are aligned, and only atomics touch them.
        unsafe { AtomicU64::from_ptr(self.at(lines(self.world) + rank * LINE + mark as usize * 8).cast()) }
    }

    /// The two words of a gate: ranks that wait, and how often it was opened.
    fn gate_words(&self, gate: u64) -> (&AtomicU32, &AtomicU32) {
        let gate = gate.min(GROUPS * self.world) as usize;
        let at = self.at(PAGE + gate * GATE);
        // SAFETY: the gate lies in the map, its words are aligned, and only atomics touch them.
        unsafe { (AtomicU32::from_ptr(at.cast()), AtomicU32::from_ptr(at.wrapping_add(4).cast())) }
    }

    /// The gate of all ranks.
    pub(crate) fn gate_of_all(self: &Arc<Self>) -> Gate {
        Gate::new(self, 0, (0..self.world).collect())
    }

    /// The gate of a team of a program's group; nothing for a group beyond those that have one.
    pub(crate) fn gate_of(self: &Arc<Self>, group: u32, members: &[u64]) -> Option<Gate> {
        let first = *members.iter().min()?;
        let number = 1 + u64::from(group) * self.world + first;
        (u64::from(group) < GROUPS && first < self.world).then(|| Gate::new(self, number, members.to_vec()))
    }

    /// This process is that rank.
    pub(crate) fn enter(&self, rank: u64) {
        self.mark(rank, Mark::Process).store(std::process::id().into(), Ordering::SeqCst);
    }

    /// The rank needs nobody any more.
    pub(crate) fn leave(&self, rank: u64) {
        self.mark(rank, Mark::Left).store(1, Ordering::SeqCst);
    }

    pub(crate) fn step(&self, rank: u64, step: u64) {
        self.mark(rank, Mark::Collective).store(0, Ordering::Relaxed);
        self.mark(rank, Mark::Step).store(step, Ordering::Relaxed);
    }

    pub(crate) fn collective(&self, rank: u64) {
        self.mark(rank, Mark::Collective).fetch_add(1, Ordering::Relaxed);
    }

    fn beat(&self, rank: u64) {
        self.mark(rank, Mark::Beat).fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn whereabouts(&self, rank: u64) -> Whereabouts {
        let word = |mark| self.mark(rank, mark).load(Ordering::SeqCst);
        Whereabouts {
            process: word(Mark::Process) as u32,
            beat: word(Mark::Beat),
            step: word(Mark::Step),
            collective: word(Mark::Collective),
            left: word(Mark::Left) != 0,
        }
    }

    /// `process 4711, in step 417 after 12 of its collectives`
    pub(crate) fn describe(&self, rank: u64) -> String {
        let at = self.whereabouts(rank);
        match (at.step, at.collective) {
            _ if at.process == 0 => "before it met the others".into(),
            (0, _) => format!("process {}, before the first step", at.process),
            (step, 0) => format!("process {}, in step {step}", at.process),
            (step, n) => format!("process {}, in step {step} after {n} of its collectives", at.process),
        }
    }

    /// Notes the process that waits for all ranks and knows how they end.
    pub(crate) fn set_supervisor(&self) {
        self.word(Word::Supervisor).store(std::process::id(), Ordering::SeqCst);
    }

    fn supervisor(&self) -> Option<u32> {
        Some(self.word(Word::Supervisor).load(Ordering::SeqCst)).filter(|&process| process != 0)
    }

    /// A rank failed. The first cause stays; all who wait are woken.
    pub(crate) fn fail(&self, cause: &Cause) {
        let failed = self.word(Word::Failed);
        if failed.compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            let mut length = cause.what.len().min(CAUSE_MAX);
            while !cause.what.is_char_boundary(length) {
                length -= 1;
            }
            // SAFETY: the bytes lie in the header's page; whoever turned the flag from 0 to 1 alone writes them, and none reads before it is 2.
            unsafe { std::ptr::copy_nonoverlapping(cause.what.as_ptr(), self.at(CAUSE), length) };
            self.word(Word::CauseBytes).store(length as u32, Ordering::SeqCst);
            self.word(Word::FailedRank).store(cause.rank as u32, Ordering::SeqCst);
            failed.store(2, Ordering::SeqCst);
        }
        (0..=GROUPS * self.world).for_each(|gate| self.wake(gate));
    }

    fn wake(&self, gate: u64) {
        let (_, opened) = self.gate_words(gate);
        _ = rustix::thread::futex::wake(opened, rustix::thread::futex::Flags::empty(), i32::MAX as u32);
    }

    /// The first failure.
    pub(crate) fn failure(&self) -> Option<Cause> {
        if self.word(Word::Failed).load(Ordering::SeqCst) != 2 {
            return None;
        }
        let length = (self.word(Word::CauseBytes).load(Ordering::SeqCst) as usize).min(CAUSE_MAX);
        let mut what = vec![0; length];
        // SAFETY: the bytes lie in the header's page, and nobody writes them once the flag is 2.
        unsafe { std::ptr::copy_nonoverlapping(self.at(CAUSE), what.as_mut_ptr(), length) };
        let rank = self.word(Word::FailedRank).load(Ordering::SeqCst).into();
        Some(Cause { rank, what: String::from_utf8_lossy(&what).into_owned() })
    }

    /// Puts bytes where others read them after a gate; `whole` is the length of all rounds together.
    pub(crate) fn post(&self, rank: u64, whole: u64, part: &[u8]) {
        let length = part.len().min(POST);
        let to = self.at(posts(self.world) + rank.min(self.world - 1) as usize * POST);
        // SAFETY: a rank's part lies in the map and is at least as long; between two gates only its own rank writes it.
        unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), to, length) };
        self.mark(rank, Mark::Given).store(whole, Ordering::SeqCst);
    }

    /// The length of all that a rank gives.
    pub(crate) fn posted(&self, rank: u64) -> u64 {
        self.mark(rank, Mark::Given).load(Ordering::SeqCst)
    }

    /// Reads what a rank put there.
    pub(crate) fn read_post(&self, rank: u64, into: &mut [u8]) {
        let length = into.len().min(POST);
        let from = self.at(posts(self.world) + rank.min(self.world - 1) as usize * POST);
        // SAFETY: as in `post`; a gate stands between the writing and this.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_mapping_sees_the_same_and_nothing_else_opens_it() {
        let board = Board::new(3).unwrap();
        let other = Board::open(&board.name(), 3).unwrap();
        board.step(1, 7);
        board.collective(1);
        board.post(2, 9, b"nine byte");
        assert_eq!(other.whereabouts(1), Whereabouts { step: 7, collective: 1, ..Whereabouts::default() });
        assert_eq!(other.describe(1), "before it met the others");
        board.enter(1);
        let process = std::process::id();
        assert_eq!(other.describe(1), format!("process {process}, in step 7 after 1 of its collectives"));
        let mut bytes = [0; 9];
        other.read_post(2, &mut bytes);
        assert_eq!((&bytes, other.posted(2)), (b"nine byte", 9));
        for name in [board.name(), "1".into(), "x:y".into(), format!("{}:999", std::process::id())] {
            assert_eq!(Board::open(&name, 4).err().map(|e| e.code()), Some("R0833"), "{name}");
        }
    }

    #[test]
    fn the_first_failure_stays() {
        let board = Board::new(2).unwrap();
        assert_eq!(board.failure(), None);
        let long = Cause { rank: 1, what: "ü".repeat(CAUSE_MAX) };
        board.fail(&long);
        board.fail(&Cause { rank: 0, what: "later".into() });
        let seen = Board::open(&board.name(), 2).unwrap().failure().unwrap();
        assert_eq!((seen.rank, seen.what), (1, "ü".repeat(CAUSE_MAX / 2)));
    }
}
