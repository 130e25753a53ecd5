//! What the host gives a step: two pinned copies of all input buffers, so that one is filled while the card reads the other.

use super::context::Gpu;
use super::fault;
use super::memory::{Event, Pinned};
use crate::device::element_bytes;
use crate::error::Error;
use cudarc::driver::result;
use dspc_program::{Buffer, BufferId, Program, Role};

/// A range of device memory and where its copy begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Range {
    device: u64,
    bytes: usize,
    start: usize,
}

/// Where the inputs lie.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Layout {
    ranges: Vec<Range>,
    /// For each buffer of the program, where its copy begins.
    starts: Vec<Option<usize>>,
    bytes: usize,
}

/// Buffers are this far apart at most when nothing else can lie between them.
const PADDING: u64 = 64;

impl Layout {
    /// Of all buffers that the host fills before a step.
    pub(super) fn new(program: &Program, address: impl Fn(&Buffer) -> u64) -> Self {
        let is_input =
            |b: &Buffer| matches!(b.role, Role::Tokens | Role::Targets | Role::InvTargets | Role::Rng);
        let mut inputs: Vec<(u64, u64, usize)> = (program.buffers.iter().enumerate())
            .filter(|(_, buffer)| is_input(buffer))
            .map(|(id, buffer)| {
                let slot = buffer.elements * element_bytes(buffer.dtype);
                (address(buffer), (buffer.slots - 1) * buffer.stride + slot, id)
            })
            .collect();
        inputs.sort_unstable();
        let mut layout = Self { starts: vec![None; program.buffers.len()], ..Self::default() };
        for (device, bytes, id) in inputs {
            let follows = |last: &&mut Range| {
                device.checked_sub(last.device + last.bytes as u64).is_some_and(|gap| gap < PADDING)
            };
            let range = match layout.ranges.last_mut().filter(follows) {
                Some(last) => {
                    last.bytes = (device + bytes - last.device) as usize;
                    *last
                }
                None => {
                    let range = Range { device, bytes: bytes as usize, start: layout.bytes };
                    layout.ranges.push(range);
                    range
                }
            };
            layout.starts[id] = Some(range.start + (device - range.device) as usize);
            layout.bytes = (range.start + range.bytes).next_multiple_of(64);
        }
        layout
    }
}

/// Two copies of the inputs.
pub(super) struct Inputs {
    layout: Layout,
    copies: [Pinned; 2],
    /// Passed when the card has read the copy.
    read: [Event; 2],
    filling: usize,
    changed: bool,
}

impl Inputs {
    pub(super) fn new(layout: Layout) -> Result<Self, Error> {
        let copies = [Pinned::new(layout.bytes)?, Pinned::new(layout.bytes)?];
        Ok(Self {
            layout,
            copies,
            read: [Event::new(false)?, Event::new(false)?],
            filling: 0,
            changed: false,
        })
    }

    /// Puts bytes where a slot's copy is; says whether the buffer is an input. The slot was checked.
    pub(super) fn write(
        &mut self,
        id: BufferId,
        buffer: &Buffer,
        slot: u64,
        bytes: &[u8],
    ) -> Result<bool, Error> {
        let Some(start) = self.layout.starts[id.0 as usize] else { return Ok(false) };
        if !self.changed {
            self.read[self.filling].wait()?;
            self.changed = true;
        }
        let at = start + (slot * buffer.stride) as usize;
        self.copies[self.filling].bytes()[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(true)
    }

    /// Starts the copy to the card, if anything was written.
    pub(super) fn send(&mut self, gpu: &Gpu) -> Result<(), Error> {
        if !std::mem::take(&mut self.changed) {
            return Ok(());
        }
        let copy = &mut self.copies[self.filling];
        for range in &self.layout.ranges {
            let bytes = &copy.bytes()[range.start..range.start + range.bytes];
            // SAFETY: the range is the program's inputs; the copy stays untouched until its event has passed.
            unsafe { result::memcpy_htod_async(range.device, bytes, gpu.stream) }
                .map_err(fault::driver("copying a step's inputs"))?;
        }
        self.read[self.filling].record(gpu)?;
        self.filling = 1 - self.filling;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Builder;
    use dspc_program::ElementType::{F32, I32};

    #[test]
    fn neighbours_are_copied_at_once_and_others_alone() {
        let mut b = Builder::new();
        b.buffer("tokens", I32, 10, 2, Role::Tokens);
        b.buffer("targets", I32, 10, 2, Role::Targets);
        b.buffer("weights", F32, 100, 1, Role::Param);
        b.buffer("rng", I32, 4, 2, Role::Rng);
        let layout = Layout::new(&b.program, |buffer| 4096 + buffer.offset);
        // Two slots of 40 bytes at a stride of 64; 400 bytes of weights between.
        assert_eq!(
            layout.ranges,
            [
                Range { device: 4096, bytes: 232, start: 0 },
                Range { device: 4096 + 256 + 448, bytes: 80, start: 256 }
            ]
        );
        assert_eq!(layout.starts, [Some(0), Some(128), None, Some(256)]);
        assert_eq!(layout.bytes, 384);
    }
}
