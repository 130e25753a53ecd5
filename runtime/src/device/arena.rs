//! The memory of a program: one mapping an arena, zeroed, and backed by pages only where it is touched.

use crate::error::Error;
use dspc_program::{Buffer, ElementType, Program};
use memmap2::MmapMut;

/// Bytes of an element.
pub(crate) fn element_bytes(dtype: ElementType) -> u64 {
    match dtype {
        ElementType::F32 | ElementType::I32 => 4,
        ElementType::Bf16 | ElementType::F16 => 2,
    }
}

/// All arenas of a program. Page-aligned, so every offset that is a multiple of 64 is an address that is one.
pub(super) struct Arenas {
    maps: Vec<MmapMut>,
}

impl Arenas {
    /// Takes the memory.
    pub(super) fn new(program: &Program) -> Result<Self, Error> {
        let needed = program.arenas.iter().fold(0u64, |sum, arena| sum.saturating_add(arena.bytes));
        let available = machine_bytes().unwrap_or(u64::MAX);
        if needed > available {
            return Err(Error::Memory { needed, available });
        }
        let map = |bytes: u64| {
            let map = MmapMut::map_anon((bytes as usize).max(1))
                .map_err(|_| Error::Memory { needed, available })?;
            // Fewer page faults and TLB misses; a kernel that does not know it changes nothing.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            Ok(map)
        };
        let maps = program.arenas.iter().map(|arena| map(arena.bytes)).collect::<Result<_, _>>()?;
        Ok(Self { maps })
    }

    /// First byte of a buffer's slot 0. The buffer was checked to lie in its arena.
    pub(super) fn address(&mut self, buffer: &Buffer) -> *mut u8 {
        self.maps[buffer.arena as usize].as_mut_ptr().wrapping_add(buffer.offset as usize)
    }

    /// The bytes of a slot.
    pub(super) fn slot(&self, buffer: &Buffer, slot: u64, bytes: usize) -> Option<&[u8]> {
        let start = slot_start(buffer, slot, bytes)?;
        self.maps.get(buffer.arena as usize)?.get(start..start + bytes)
    }

    /// The bytes of a slot, to write.
    pub(super) fn slot_mut(&mut self, buffer: &Buffer, slot: u64, bytes: usize) -> Option<&mut [u8]> {
        let start = slot_start(buffer, slot, bytes)?;
        self.maps.get_mut(buffer.arena as usize)?.get_mut(start..start + bytes)
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
