//! Tensors of the training state, wherever ranks hold them: a rank's own elements, and the whole.

use super::{Session, malformed};
use crate::device::element_bytes;
use crate::error::Error;
use dspc_program::{BufferId, ElementType, Moment, Param, ParamShard, Program};
use std::borrow::Cow;
use std::ops::Range;

/// A tensor in memory: in a slot of a buffer, or in the shards of all ranks' slots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    pub(crate) buffer: BufferId,
    pub(crate) slot: u64,
    pub(crate) shard: Option<ParamShard>,
    pub(crate) elements: u64,
    pub(crate) dtype: ElementType,
}

impl Stored {
    /// A parameter's value.
    pub(crate) fn of_param(program: &Program, param: &Param) -> Self {
        Self::new(program, param.buffer, param.slot, param.shard, &param.dims)
    }

    /// What the optimizer keeps for one.
    pub(crate) fn of_moment(program: &Program, moment: &Moment) -> Self {
        Self::new(program, moment.buffer, moment.slot, moment.shard, &moment.dims)
    }

    fn new(program: &Program, buffer: BufferId, slot: u64, shard: Option<ParamShard>, dims: &[u64]) -> Self {
        let dtype = program.buffers.get(buffer.0 as usize).map_or(ElementType::F32, |b| b.dtype);
        let elements = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).unwrap_or(u64::MAX);
        Self { buffer, slot, shard, elements, dtype }
    }

    /// Bytes of the whole.
    pub(crate) fn bytes(&self) -> usize {
        (self.elements * element_bytes(self.dtype)) as usize
    }

    /// Whether the slot has room for what a rank holds.
    pub(super) fn fits(&self, program: &Program) -> bool {
        let Some(buffer) = program.buffers.get(self.buffer.0 as usize) else { return false };
        let inside = match self.shard {
            None => buffer.elements == self.elements,
            Some(shard) => {
                let group = program.groups.get(shard.of.group as usize);
                let range = group.and_then(|group| shard.of.elements.checked_mul(group.size));
                let end = shard.start.checked_add(self.elements);
                buffer.elements >= shard.of.elements
                    && range.zip(end).is_some_and(|(range, end)| end <= range)
            }
        };
        inside && self.slot < buffer.slots
    }
}

impl Session {
    /// The elements of a tensor that this rank holds, and where in its slot they begin.
    pub(crate) fn held(&self, stored: &Stored) -> (Range<u64>, u64) {
        match stored.shard {
            None => (0..stored.elements, 0),
            Some(shard) => {
                let index = self.teams.get(shard.of.group as usize).map_or(0, |team| team.index);
                shard.held(index as u64, stored.elements)
            }
        }
    }

    /// The elements that this rank holds, from where they lie if the host can see them.
    pub(crate) fn held_bytes(&self, stored: &Stored) -> Result<Cow<'_, [u8]>, Error> {
        let (range, at) = self.held(stored);
        let size = element_bytes(stored.dtype);
        let (start, end) = ((at * size) as usize, ((at + range.end - range.start) * size) as usize);
        match self.device.lent(stored.buffer, stored.slot, end) {
            Some(bytes) => Ok(Cow::Borrowed(&bytes[start..])),
            None => self.read_held(stored).map(Cow::Owned),
        }
    }

    /// A copy of the elements that this rank holds.
    pub(crate) fn read_held(&self, stored: &Stored) -> Result<Vec<u8>, Error> {
        let (range, at) = self.held(stored);
        let size = element_bytes(stored.dtype);
        let mut bytes = vec![0; ((range.end - range.start) * size) as usize];
        if !bytes.is_empty() {
            self.device.read(stored.buffer, stored.slot, at * size, &mut bytes)?;
        }
        Ok(bytes)
    }

    /// Sets the elements that this rank holds; `bytes` are those.
    pub(crate) fn write_held(&mut self, stored: &Stored, bytes: &[u8]) -> Result<(), Error> {
        let (range, at) = self.held(stored);
        let size = element_bytes(stored.dtype);
        if bytes.len() as u64 != (range.end - range.start) * size {
            return Err(malformed("a tensor has another number of elements than its shards".into()));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        self.stale = true;
        self.device.write_at(stored.buffer, stored.slot, at * size, bytes)
    }

    /// The whole tensor, on every rank; all ranks call it.
    pub(crate) fn whole(&self, stored: &Stored) -> Result<Vec<u8>, Error> {
        let own = self.read_held(stored)?;
        match stored.shard {
            None => Ok(own),
            Some(shard) => self.joined(shard, self.communicator.all_gather(&own)?),
        }
    }

    /// The whole tensor on rank 0, nothing on the others; all ranks call it.
    pub(crate) fn whole_on_first(&self, stored: &Stored) -> Result<Vec<u8>, Error> {
        let first = self.communicator.rank() == 0;
        match stored.shard {
            None if first => self.read_held(stored),
            None => Ok(Vec::new()),
            Some(shard) => {
                let parts = self.communicator.gather(0, &self.read_held(stored)?)?;
                if first { self.joined(shard, parts) } else { Ok(Vec::new()) }
            }
        }
    }

    /// What the team's members hold, in their order, of what all ranks gave.
    fn joined(&self, shard: ParamShard, parts: Vec<Vec<u8>>) -> Result<Vec<u8>, Error> {
        let team = self.teams.get(shard.of.group as usize);
        let team = team.ok_or_else(|| malformed("a shard of no group".into()))?;
        Ok(team.members.iter().flat_map(|&member| parts[member as usize].iter().copied()).collect())
    }
}
