//! The memory of a program: one mapping an arena, zeroed, and backed by pages only where it is touched.

use crate::communicator::{Communicator, Range};
use crate::error::Error;
use dspc_program::{Buffer, ElementType, Program};
use memmap2::MmapMut;
use std::sync::Arc;

/// Bytes of an element.
pub(crate) fn element_bytes(dtype: ElementType) -> u64 {
    match dtype {
        ElementType::F32 | ElementType::I32 => 4,
        ElementType::Bf16 | ElementType::F16 => 2,
    }
}

/// All arenas of a program. Page-aligned, so every offset that is a multiple of 64 is an address that is one.
pub(super) struct Arenas {
    ranges: Vec<Range>,
    /// What the ranges lie in; peers may keep it longer than this rank.
    maps: Arc<Vec<MmapMut>>,
}

impl Arenas {
    /// Takes the memory, which peers of this host take as well.
    pub(super) fn new(program: &Program, communicator: &dyn Communicator) -> Result<Self, Error> {
        let one = program.arenas.iter().fold(0u64, |sum, arena| sum.saturating_add(arena.bytes));
        let needed = one.saturating_mul(communicator.ranks_on_host());
        let available = machine_bytes().unwrap_or(u64::MAX);
        if needed > available {
            return Err(Error::Memory { needed, available });
        }
        let map = |(arena, bytes): (u32, u64)| {
            let map = communicator
                .memory(arena, bytes as usize)
                .map_err(|_| Error::Memory { needed, available })?;
            // Fewer page faults and TLB misses; a kernel that does not know it changes nothing.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            Ok(map)
        };
        let arenas = (0..).zip(program.arenas.iter().map(|arena| arena.bytes));
        let mut maps = arenas.map(map).collect::<Result<Vec<MmapMut>, _>>()?;
        let range =
            |map: &mut MmapMut| Range { address: map.as_mut_ptr().expose_provenance(), bytes: map.len() };
        Ok(Self { ranges: maps.iter_mut().map(range).collect(), maps: Arc::new(maps) })
    }

    /// Where each arena lies.
    pub(super) fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Holds the memory.
    pub(super) fn keep(&self) -> Arc<Vec<MmapMut>> {
        Arc::clone(&self.maps)
    }

    /// First byte of a buffer's slot 0. The buffer was checked to lie in its arena.
    pub(super) fn address(&self, buffer: &Buffer) -> *mut u8 {
        let range = self.ranges[buffer.arena as usize];
        std::ptr::with_exposed_provenance_mut(range.address + buffer.offset as usize)
    }

    /// The bytes of a slot.
    pub(super) fn slot(&self, buffer: &Buffer, slot: u64, bytes: usize) -> Option<&[u8]> {
        let start = self.slot_start(buffer, slot, bytes)?;
        // SAFETY: inside the arena; while this is borrowed no entry runs, and peers write a rank's memory never.
        Some(unsafe { std::slice::from_raw_parts(start, bytes) })
    }

    /// The bytes of a slot, to write.
    pub(super) fn slot_mut(&mut self, buffer: &Buffer, slot: u64, bytes: usize) -> Option<&mut [u8]> {
        let start = self.slot_start(buffer, slot, bytes)?;
        // SAFETY: as above; peers read a rank's memory only while it runs a collective itself.
        Some(unsafe { std::slice::from_raw_parts_mut(start, bytes) })
    }

    fn slot_start(&self, buffer: &Buffer, slot: u64, bytes: usize) -> Option<*mut u8> {
        let start = slot_start(buffer, slot, bytes)?;
        let range = self.ranges.get(buffer.arena as usize)?;
        let inside = start.checked_add(bytes).is_some_and(|end| end <= range.bytes);
        inside.then(|| std::ptr::with_exposed_provenance_mut(range.address + start))
    }
}

fn slot_start(buffer: &Buffer, slot: u64, bytes: usize) -> Option<usize> {
    let inside = slot < buffer.slots && bytes as u64 <= buffer.elements * element_bytes(buffer.dtype);
    inside.then(|| (buffer.offset + slot * buffer.stride) as usize)
}

/// Memory of this machine, where the system says.
pub(crate) fn machine_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}
