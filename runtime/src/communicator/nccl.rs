//! Ranks that are GPUs: the data plane is NVIDIA's NCCL, queued on the device's stream and recorded with it; the host's plane is another communicator's.
//!
//! A sum in the order of a tree is an exchange of shards and the program's own kernel, so its bits are those of every other communicator. Where any
//! order will do it is NCCL's reduce-scatter, which has one order for a world and a size. A thread looks after the communicators: what NCCL
//! finds wrong, or a rank that the host's plane has lost, breaks off what is under way, so that nobody waits on the card for ever.

use super::{Cause, Communicator, Exchange, Kind, Piece, Range, Team};
use crate::artifact::PROGRAM_FILE;
use crate::error::Error;
use crate::launch::nccl::{Comm, Nccl, Type, UniqueId, library};
use dspc_program::ElementType;
use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// From one look at the communicators to the next.
const LOOK: Duration = Duration::from_millis(200);

/// A rank's door.
pub struct OverNccl {
    host: Arc<dyn Communicator>,
    nccl: &'static Nccl,
    id: UniqueId,
    /// Which of the cards that this process sees.
    card: u64,
    attached: OnceLock<Vec<(Team, Comm)>>,
    watch: Mutex<Option<Watch>>,
}

struct Watch {
    stop: Arc<AtomicBool>,
    /// The communicators were broken off, and are not to be left in good order.
    aborted: Arc<AtomicBool>,
    /// Each once.
    comms: Vec<Comm>,
    thread: JoinHandle<()>,
}

impl OverNccl {
    /// A rank of the world that `host` connects, on the card of this number; `id` was made by one rank and given to all.
    ///
    /// # Errors
    /// R0831.
    pub fn new(host: Arc<dyn Communicator>, id: UniqueId, card: u64) -> Result<Self, Error> {
        let nccl = library().map_err(Error::launch)?;
        Ok(Self { host, nccl, id, card, attached: OnceLock::new(), watch: Mutex::default() })
    }

    fn look_after(&self, comms: Vec<Comm>) -> std::io::Result<Watch> {
        let (stop, aborted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (host, nccl, looked_at) = (Arc::clone(&self.host), self.nccl, comms.clone());
        let (stopped, broken) = (Arc::clone(&stop), Arc::clone(&aborted));
        let body = move || {
            while !stopped.load(Ordering::SeqCst) {
                std::thread::sleep(LOOK);
                if let Some(error) = looked_at.iter().find_map(|comm| nccl.health(*comm).err()) {
                    host.abort(&Cause {
                        rank: host.rank(),
                        what: format!("error[{}]: {error}", error.code()),
                    });
                }
                if host.failed().is_some() && !broken.swap(true, Ordering::SeqCst) {
                    looked_at.iter().for_each(|comm| nccl.abort(*comm));
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("dspc-nccl".into()).spawn(body)?;
        Ok(Watch { stop, aborted, comms, thread })
    }

    fn all_gather_pieces(&self, comm: Comm, exchange: &Exchange<'_>) -> Result<(), Error> {
        let stream = std::ptr::with_exposed_provenance_mut(exchange.stream);
        let queue = || {
            exchange.pieces.iter().try_for_each(|piece| {
                let ends = (piece.from.address, piece.to.address);
                // SAFETY: the device checked that both ranges lie in its arenas, which outlive the stream's work.
                unsafe { self.nccl.all_gather(ends, piece.bytes, comm, stream) }
            })
        };
        self.nccl.group(queue).map_err(Error::launch)
    }

    fn reduce_scatter_pieces(&self, comm: Comm, exchange: &Exchange<'_>) -> Result<(), Error> {
        let stream = std::ptr::with_exposed_provenance_mut(exchange.stream);
        let queue = || {
            exchange.pieces.iter().try_for_each(|piece| {
                let ends = (piece.from.address, piece.to.address);
                // SAFETY: as above.
                unsafe { self.nccl.reduce_scatter(ends, piece.elements, type_of(piece.dtype), comm, stream) }
            })
        };
        self.nccl.group(queue).map_err(Error::launch)
    }

    /// Everybody's shard of what this rank owns comes here, and is added up in the program's order.
    fn tree_piece(
        &self,
        (team, comm): (&Team, Comm),
        piece: &Piece,
        (stream, scratch): (usize, usize),
        sum: &mut dyn FnMut(&[*mut u8]),
    ) -> Result<(), Error> {
        let stride = piece.bytes.next_multiple_of(256);
        let stream = std::ptr::with_exposed_provenance_mut(stream);
        let own = team.index;
        let queue = || {
            for member in (0..team.members.len()).filter(|&member| member != own) {
                let given = piece.from.address + member * piece.bytes;
                // SAFETY: as above; the scratch memory has room for a shard of every member.
                unsafe {
                    self.nccl.send(given, piece.bytes, member as u64, comm, stream)?;
                    self.nccl.recv(scratch + member * stride, piece.bytes, member as u64, comm, stream)?;
                }
            }
            Ok(())
        };
        self.nccl.group(queue).map_err(Error::launch)?;
        let address = |member: usize| match member == own {
            true => piece.from.address + own * piece.bytes,
            false => scratch + member * stride,
        };
        let shards = (0..team.members.len()).map(address).chain([piece.to.address]);
        let operands: Vec<*mut u8> = shards.map(std::ptr::with_exposed_provenance_mut).collect();
        sum(&operands);
        Ok(())
    }
}

fn type_of(dtype: ElementType) -> Type {
    match dtype {
        ElementType::F32 => Type::F32,
        ElementType::Bf16 => Type::Bf16,
        ElementType::F16 => Type::F16,
        ElementType::I32 => Type::I32,
    }
}

fn malformed(reason: &str) -> Error {
    Error::ArtifactMalformed { path: PROGRAM_FILE.into(), reason: reason.into() }
}

impl Communicator for OverNccl {
    fn rank(&self) -> u64 {
        self.host.rank()
    }

    fn world(&self) -> u64 {
        self.host.world()
    }

    fn ranks_on_host(&self) -> u64 {
        self.host.ranks_on_host()
    }

    fn describe(&self) -> String {
        format!("{} ranks over NCCL {}", self.world(), self.nccl.version())
    }

    fn at_step(&self, step: u64) {
        self.host.at_step(step);
    }

    fn barrier(&self) -> Result<(), Error> {
        self.host.barrier()
    }

    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        self.host.all_gather(bytes)
    }

    fn needs_scratch(&self) -> bool {
        true
    }

    fn card(&self) -> u64 {
        self.card
    }

    fn attach(
        &self,
        teams: &[Team],
        _arenas: &[Range],
        _keep: Arc<dyn Any + Send + Sync>,
    ) -> Result<(), Error> {
        let (rank, world) = (self.rank(), self.world());
        let all = self.nccl.join(&self.id, rank, world).map_err(Error::launch)?;
        let mut comms = vec![all];
        let mut attached = Vec::with_capacity(teams.len());
        for team in teams {
            let comm = if team.members.len() as u64 == world {
                all
            } else {
                let colour = team.members.iter().min().copied().unwrap_or(0);
                self.nccl.split(all, colour, team.index as u64).map_err(Error::launch)?
            };
            if !comms.contains(&comm) {
                comms.push(comm);
            }
            attached.push((team.clone(), comm));
        }
        self.attached.set(attached).map_err(|_| malformed("two devices on one rank"))?;
        let watch = self.look_after(comms).map_err(|e| malformed(&e.to_string()))?;
        *self.watch.lock().unwrap_or_else(PoisonError::into_inner) = Some(watch);
        Ok(())
    }

    fn exchange(&self, exchange: &Exchange<'_>, sum: &mut dyn FnMut(&[*mut u8])) -> Result<(), Error> {
        let found = self.attached.get().and_then(|teams| teams.get(exchange.group as usize));
        let (team, comm) = found.ok_or_else(|| malformed("a collective of no group"))?;
        match exchange.kind {
            Kind::AllGather => self.all_gather_pieces(*comm, exchange),
            Kind::ReduceScatter { tree: false } => self.reduce_scatter_pieces(*comm, exchange),
            Kind::ReduceScatter { tree: true } => exchange.pieces.iter().try_for_each(|piece| {
                self.tree_piece((team, *comm), piece, (exchange.stream, exchange.scratch), sum)
            }),
        }
    }

    fn detach(&self) {
        let Some(watch) = self.watch.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        watch.stop.store(true, Ordering::SeqCst);
        _ = watch.thread.join();
        let failed = watch.aborted.load(Ordering::SeqCst);
        for comm in watch.comms {
            match (failed, self.host.failed()) {
                (true, _) => {}
                // A peer may be gone, and leaving in good order would wait for it.
                (false, Some(_)) => self.nccl.abort(comm),
                (false, None) => self.nccl.leave(comm),
            }
        }
    }

    fn abort(&self, cause: &Cause) {
        self.host.abort(cause);
    }

    fn failed(&self) -> Option<Cause> {
        self.host.failed()
    }
}
