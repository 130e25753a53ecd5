//! The ranks of one host, each a process; they read one another's memory, as threads of one process do.
//!
//! Arenas are memory without a name that every process maps. Gates, heartbeats and the first failure stand on a [`Board`]. A rank that is
//! killed or stopped is seen by the others' watchers, and ends all of them.

use super::{Cause, Communicator, Exchange, Range, Team, plane};
use crate::artifact::PROGRAM_FILE;
use crate::error::Error;
use crate::launch::LaunchError;
use crate::launch::board::{Board, Gate, POST, Watch, nameless, of_process, watch};
use memmap2::{MmapMut, MmapOptions, MmapRaw};
use std::any::Any;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A rank's door.
pub struct Processes {
    rank: u64,
    board: Arc<Board>,
    all: Gate,
    /// Memory that peers are still to open: arena, file, bytes.
    offered: Mutex<Vec<(u32, File, usize)>>,
    attached: OnceLock<Attached>,
    _watch: Watch,
}

struct Attached {
    teams: Vec<(Team, Gate)>,
    /// By rank and arena; a rank's own are where its device has them.
    arenas: Vec<Vec<Range>>,
    _peers: Vec<MmapRaw>,
    _own: Arc<dyn Any + Send + Sync>,
}

impl Processes {
    /// This process is `rank`. `give_up` ends the process: it is called from another thread when a peer was lost and this rank does not end by itself.
    ///
    /// # Errors
    /// R0833.
    pub(crate) fn enter(
        board: Arc<Board>,
        rank: u64,
        give_up: impl Fn(&Cause) + Send + 'static,
    ) -> Result<Self, Error> {
        let ranks = board.world();
        board.enter(rank);
        let watch = watch(&board, rank, give_up)
            .map_err(|e| Error::launch(LaunchError::SharedMemory { ranks, reason: e.to_string() }))?;
        let all = board.gate_of_all();
        Ok(Self { rank, board, all, offered: Mutex::default(), attached: OnceLock::new(), _watch: watch })
    }

    fn failed_memory(&self, reason: impl ToString) -> Error {
        Error::launch(LaunchError::SharedMemory { ranks: self.world(), reason: reason.to_string() })
    }
}

fn malformed(reason: &str) -> Error {
    Error::ArtifactMalformed { path: PROGRAM_FILE.into(), reason: reason.into() }
}

impl Attached {
    /// The address of a member's bytes.
    fn peer(&self, rank: u64, arena: u32, offset: usize, bytes: usize) -> Result<*mut u8, Error> {
        let range = self.arenas.get(rank as usize).and_then(|arenas| arenas.get(arena as usize));
        let inside = range.filter(|range| offset.checked_add(bytes).is_some_and(|end| end <= range.bytes));
        let range = inside.ok_or_else(|| malformed("a collective reaches outside a rank's memory"))?;
        Ok(std::ptr::with_exposed_provenance_mut(range.address + offset))
    }
}

impl Communicator for Processes {
    fn rank(&self) -> u64 {
        self.rank
    }

    fn world(&self) -> u64 {
        self.board.world()
    }

    fn describe(&self) -> String {
        format!("{} ranks, processes of one host", self.world())
    }

    fn at_step(&self, step: u64) {
        self.board.step(self.rank, step);
    }

    fn barrier(&self) -> Result<(), Error> {
        self.all.pass()
    }

    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let mut all: Vec<Vec<u8>> = Vec::new();
        let mut round = 0;
        loop {
            let begin = (round * POST).min(bytes.len());
            let part = &bytes[begin..(begin + POST).min(bytes.len())];
            self.board.post(self.rank, bytes.len() as u64, part);
            self.all.pass()?;
            if all.is_empty() {
                let whole = |rank| vec![0; self.board.posted(rank) as usize];
                all = (0..self.world()).map(whole).collect();
            }
            for (rank, whole) in (0..).zip(&mut all) {
                let begin = (round * POST).min(whole.len());
                let end = (begin + POST).min(whole.len());
                self.board.read_post(rank, &mut whole[begin..end]);
            }
            self.all.pass()?;
            round += 1;
            if all.iter().all(|whole| whole.len() <= round * POST) {
                return Ok(all);
            }
        }
    }

    fn memory(&self, arena: u32, bytes: usize) -> std::io::Result<MmapMut> {
        let bytes = bytes.max(1);
        let file = nameless(bytes)?;
        // SAFETY: the file has no name; only ranks of this run open it, and they write where the program's collectives let them.
        let map = unsafe { MmapOptions::new().len(bytes).map_mut(&file) }?;
        self.offered.lock().unwrap_or_else(PoisonError::into_inner).push((arena, file, bytes));
        Ok(map)
    }

    fn attach(
        &self,
        teams: &[Team],
        arenas: &[Range],
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Result<(), Error> {
        let offered = std::mem::take(&mut *self.offered.lock().unwrap_or_else(PoisonError::into_inner));
        // (process, [(arena, descriptor, bytes)])
        let mine: Vec<(u32, i32, usize)> =
            offered.iter().map(|(arena, file, bytes)| (*arena, file.as_raw_fd(), *bytes)).collect();
        let mine = serde_json::to_vec(&(std::process::id(), mine)).map_err(|e| self.failed_memory(e))?;
        let all = self.all_gather(&mine)?;
        let mut peers = Vec::new();
        let mut ranges = Vec::new();
        for (rank, given) in (0..).zip(all) {
            if rank == self.rank {
                ranges.push(arenas.to_vec());
                continue;
            }
            let (process, given): (u32, Vec<(u32, i32, usize)>) =
                serde_json::from_slice(&given).map_err(|e| self.failed_memory(e))?;
            let none = Range { address: 0, bytes: 0 };
            let mut theirs = vec![none; given.len()];
            for (arena, descriptor, bytes) in given {
                let map = of_process(process, descriptor)
                    .and_then(|file| MmapOptions::new().len(bytes).map_raw(&file))
                    .map_err(|e| self.failed_memory(format!("rank {rank}: {e}")))?;
                let place =
                    theirs.get_mut(arena as usize).ok_or_else(|| self.failed_memory("no such arena"))?;
                *place = Range { address: map.as_mut_ptr().expose_provenance(), bytes };
                peers.push(map);
            }
            ranges.push(theirs);
        }
        let gate = |(group, team): (u32, &Team)| {
            let gate = self.board.gate_of(group, &team.members);
            gate.map(|gate| (team.clone(), gate))
                .ok_or_else(|| malformed("more groups of ranks than there are gates"))
        };
        let teams = (0..).zip(teams).map(gate).collect::<Result<_, Error>>()?;
        let attached = Attached { teams, arenas: ranges, _peers: peers, _own: keep };
        self.attached.set(attached).map_err(|_| malformed("two devices on one rank"))?;
        // Nobody's files go before all have opened them.
        self.barrier()
    }

    fn exchange(&self, exchange: &Exchange<'_>, sum: &mut dyn FnMut(&[*mut u8])) -> Result<(), Error> {
        let attached = self.attached.get();
        let found = attached.and_then(|a| Some((a, a.teams.get(exchange.group as usize)?)));
        let (attached, (team, gate)) = found.ok_or_else(|| malformed("a collective of no group"))?;
        self.board.collective(self.rank);
        gate.pass()?;
        let peer = |rank, arena, offset, bytes| attached.peer(rank, arena, offset, bytes);
        plane::exchange(team, exchange, sum, &peer)?;
        gate.pass()
    }

    fn abort(&self, cause: &Cause) {
        self.board.fail(cause);
    }

    fn failed(&self) -> Option<Cause> {
        self.board.failure()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.board.leave(self.rank);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranks on threads, each with a mapping of its own: what they share goes through the memory alone.
    fn each<T: Send>(world: u64, work: impl Fn(&Processes) -> T + Sync) -> Vec<T> {
        let board = Board::new(world).unwrap();
        std::thread::scope(|scope| {
            let rank = |rank| {
                let (name, work) = (board.name(), &work);
                scope.spawn(move || {
                    let board = Board::open(&name, world).unwrap();
                    work(&Processes::enter(board, rank, |_| ()).unwrap())
                })
            };
            let threads: Vec<_> = (0..world).map(rank).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn bytes_of_any_length_reach_all() {
        for lengths in [[0, 0, 0], [1, 0, 5], [POST, POST + 1, 0], [3 * POST + 7, 2, POST]] {
            let give = |rank: u64| -> Vec<u8> {
                (0..lengths[rank as usize]).map(|i| (i as u64 * 7 + rank) as u8).collect()
            };
            let expected: Vec<_> = (0..3).map(give).collect();
            for all in each(3, |c| c.all_gather(&give(c.rank())).unwrap()) {
                assert!(all == expected, "{lengths:?}");
            }
        }
    }

    #[test]
    fn peers_read_memory_between_the_gates() {
        use super::super::{Kind, Piece, Spot};
        use dspc_program::ElementType;
        let all = each(3, |c| {
            let team = Team { members: vec![0, 1, 2], index: c.rank() as usize };
            let mut map = c.memory(0, 12).unwrap();
            let address = map.as_mut_ptr().expose_provenance();
            let ranges = [Range { address, bytes: 12 }];
            let map = Arc::new(map);
            c.attach(&[team], &ranges, Arc::clone(&map) as _).unwrap();
            let own = address + c.rank() as usize * 4;
            // SAFETY: the rank's own shard, before the first gate.
            unsafe { std::ptr::with_exposed_provenance_mut::<u32>(own).write(10 + c.rank() as u32) };
            let piece = Piece {
                from: Spot { address: own, arena: 0, origin: 0, step: 4 },
                to: Spot { address, arena: 0, origin: 0, step: 0 },
                elements: 1,
                dtype: ElementType::I32,
                bytes: 4,
            };
            let gather =
                Exchange { kind: Kind::AllGather, group: 0, pieces: &[piece], stream: 0, scratch: 0 };
            c.exchange(&gather, &mut |_| ()).unwrap();
            map[..].to_vec()
        });
        assert!(all.iter().all(|bytes| bytes == &[10, 0, 0, 0, 11, 0, 0, 0, 12, 0, 0, 0]), "{all:?}");
    }

    #[test]
    fn a_rank_that_fails_ends_all_with_its_cause() {
        let seen = each(4, |c| match c.rank() {
            2 => {
                c.abort(&Cause { rank: 2, what: "no space left".into() });
                c.failed().map_or(String::new(), |cause| cause.error().to_string())
            }
            _ => loop {
                if let Err(error) = c.barrier() {
                    break error.to_string();
                }
            },
        });
        assert_eq!(seen, ["rank 2 failed: no space left"; 4]);
    }
}
