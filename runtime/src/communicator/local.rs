//! The ranks of one process, each on a thread of its own with arenas of its own; they read one another's memory.
//!
//! A collective is two gates with the copying between them: at the first all ranks have what they give, at the second all have read it. A gate
//! opens when all have come or when one has failed. Memory that peers may read is kept until the last rank has left.

mod gate;

use super::{Cause, Communicator, Exchange, Range, Solo, Team, guarded, plane};
use crate::error::Error;
use gate::{Failure, Gate};
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A rank's door.
pub struct Local {
    rank: u64,
    shared: Arc<Shared>,
    attached: OnceLock<Attached>,
}

/// What all ranks see.
struct Shared {
    failure: Arc<Failure>,
    all: Arc<Gate>,
    /// What each rank gives on the host's plane.
    given: Vec<Mutex<Vec<u8>>>,
    /// Each rank's arenas.
    arenas: Vec<OnceLock<Memory>>,
    /// A gate a team, by its members.
    gates: Mutex<BTreeMap<Vec<u64>, Arc<Gate>>>,
}

struct Memory {
    arenas: Vec<Range>,
    _keep: Arc<dyn Any + Send + Sync>,
}

struct Attached {
    teams: Vec<(Team, Arc<Gate>)>,
}

/// The doors of `world` ranks, in order.
pub fn ranks(world: u64) -> Vec<Local> {
    let failure = Arc::new(Failure::default());
    let shared = Arc::new(Shared {
        all: Gate::new(world as usize, &failure),
        failure,
        given: (0..world).map(|_| Mutex::default()).collect(),
        arenas: (0..world).map(|_| OnceLock::new()).collect(),
        gates: Mutex::default(),
    });
    (0..world).map(|rank| Local { rank, shared: Arc::clone(&shared), attached: OnceLock::new() }).collect()
}

/// Runs every rank of a world: `first` is rank 0's work, on this thread, `other` that of each other rank, on a thread of its own. If
/// one fails, all end, and its error is what is returned.
///
/// # Errors
/// That of the rank that failed first.
pub fn run<T: Send>(
    world: u64,
    first: impl FnOnce(Arc<dyn Communicator>) -> Result<T, Error>,
    other: impl Fn(Arc<dyn Communicator>) -> Result<T, Error> + Sync,
) -> Result<T, Error> {
    if world <= 1 {
        return first(Arc::new(Solo::default()));
    }
    let mut doors = ranks(world).into_iter().map(|door| Arc::new(door) as Arc<dyn Communicator>);
    let Some(own) = doors.next() else { return first(Arc::new(Solo::default())) };
    std::thread::scope(|scope| {
        let other = &other;
        let start = |door: Arc<dyn Communicator>| {
            let builder = std::thread::Builder::new().name(format!("rank-{}", door.rank()));
            let failed = Arc::clone(&door);
            let work = move || guarded(&*door, || other(Arc::clone(&door)));
            builder.spawn_scoped(scope, work).inspect_err(|error| {
                let what = format!("it could not be started: {error}");
                failed.abort(&Cause { rank: failed.rank(), what });
            })
        };
        let threads: Vec<_> = doors.map(start).collect();
        let result = guarded(&*own, || first(Arc::clone(&own)));
        let mut errors: Vec<Error> = Vec::new();
        for thread in threads.into_iter().flatten() {
            // A panic was caught and is an error.
            if let Ok(Err(error)) = thread.join() {
                errors.push(error);
            }
        }
        match result {
            Err(error @ Error::RankFailed { .. }) => {
                let own = errors.into_iter().find(|error| !matches!(error, Error::RankFailed { .. }));
                Err(own.unwrap_or(error))
            }
            Err(error) => Err(error),
            Ok(value) => errors.into_iter().next().map_or(Ok(value), Err),
        }
    })
}

impl Local {
    fn malformed(reason: &str) -> Error {
        Error::ArtifactMalformed { path: crate::artifact::PROGRAM_FILE.into(), reason: reason.into() }
    }

    /// The address of a member's byte.
    fn peer(&self, rank: u64, arena: u32, offset: usize, bytes: usize) -> Result<*mut u8, Error> {
        let memory = self.shared.arenas.get(rank as usize).and_then(OnceLock::get);
        let range = memory.and_then(|memory| memory.arenas.get(arena as usize));
        let inside = range.filter(|range| offset.checked_add(bytes).is_some_and(|end| end <= range.bytes));
        let range = inside.ok_or_else(|| Self::malformed("a collective reaches outside a rank's memory"))?;
        Ok(std::ptr::with_exposed_provenance_mut(range.address + offset))
    }
}

impl Communicator for Local {
    fn rank(&self) -> u64 {
        self.rank
    }

    fn world(&self) -> u64 {
        self.shared.given.len() as u64
    }

    fn describe(&self) -> String {
        format!("{} ranks, threads of one process", self.world())
    }

    fn barrier(&self) -> Result<(), Error> {
        self.shared.all.pass()
    }

    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let lock =
            |slot: &Mutex<Vec<u8>>| std::mem::take(&mut *slot.lock().unwrap_or_else(PoisonError::into_inner));
        drop(lock(&self.shared.given[self.rank as usize]));
        *self.shared.given[self.rank as usize].lock().unwrap_or_else(PoisonError::into_inner) =
            bytes.to_vec();
        self.barrier()?;
        let all = self.shared.given.iter();
        let all = all.map(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner).clone()).collect();
        self.barrier()?;
        Ok(all)
    }

    fn attach(
        &self,
        teams: &[Team],
        arenas: &[Range],
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Result<(), Error> {
        let memory = Memory { arenas: arenas.to_vec(), _keep: keep };
        let mut gates = self.shared.gates.lock().unwrap_or_else(PoisonError::into_inner);
        let gate = |team: &Team| {
            let new = || Gate::new(team.members.len(), &self.shared.failure);
            (team.clone(), Arc::clone(gates.entry(team.members.clone()).or_insert_with(new)))
        };
        let attached = Attached { teams: teams.iter().map(gate).collect() };
        let twice = self.attached.set(attached).is_err()
            || self.shared.arenas[self.rank as usize].set(memory).is_err();
        if twice {
            return Err(Self::malformed("two devices on one rank"));
        }
        Ok(())
    }

    fn exchange(&self, exchange: &Exchange<'_>, sum: &mut dyn FnMut(&[*mut u8])) -> Result<(), Error> {
        let team = self.attached.get().and_then(|attached| attached.teams.get(exchange.group as usize));
        let (team, gate) = team.ok_or_else(|| Self::malformed("a collective of no group"))?;
        gate.pass()?;
        let peer = |rank, arena, offset, bytes| self.peer(rank, arena, offset, bytes);
        plane::exchange(team, exchange, sum, &peer)?;
        gate.pass()
    }

    fn abort(&self, cause: &Cause) {
        self.shared.failure.set(cause);
        self.shared.all.wake();
        let gates = self.shared.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.values().for_each(|gate| gate.wake());
    }

    fn failed(&self) -> Option<Cause> {
        self.shared.failure.cause()
    }
}
