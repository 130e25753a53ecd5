//! Device memory taken once: an arena each of the program's, the library's workspace; and host memory that the card copies to and from.

use super::context::Gpu;
use super::fault;
use crate::communicator::Range;
use crate::error::Error;
use cudarc::driver::{result, sys};
use dspc_program::{Buffer, Program};

/// Besides its arenas a program needs its kernels' image, the graphs, and what the driver keeps for itself.
const RESERVE: u64 = 256 << 20;

/// A block of device memory, zeroed.
pub(super) struct Block {
    pub(super) at: sys::CUdeviceptr,
    pub(super) bytes: usize,
}

impl Block {
    pub(super) fn new(bytes: usize) -> Result<Self, Error> {
        let call = || format!("taking {} of device memory", crate::error::bytes(bytes as u64));
        // SAFETY: a context is bound, by contract of this folder.
        let at = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(fault::driver(call()))?;
        let block = Self { at, bytes };
        block.zero()?;
        Ok(block)
    }

    pub(super) fn zero(&self) -> Result<(), Error> {
        // SAFETY: the whole block is ours.
        unsafe { result::memset_d8_sync(self.at, 0, self.bytes) }.map_err(fault::driver("zeroing memory"))
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: taken by `new`, given back once.
        _ = unsafe { result::free_sync(self.at) };
    }
}

/// All arenas of a program, on the card.
pub(super) struct DeviceArenas {
    blocks: Vec<Block>,
}

impl DeviceArenas {
    /// Takes the memory, if the card has as much.
    ///
    /// # Errors
    /// R0610, before anything is taken.
    pub(super) fn new(program: &Program, gpu: &Gpu) -> Result<Self, Error> {
        let arenas = program.arenas.iter().fold(0u64, |sum, arena| sum.saturating_add(arena.bytes));
        let needed = arenas.saturating_add(RESERVE);
        let free = gpu.free_bytes()?;
        if needed > free {
            let card = gpu.card.name.clone();
            return Err(Error::DeviceMemory { needed, free, total: gpu.card.bytes, card });
        }
        let blocks = program.arenas.iter().map(|a| Block::new(a.bytes as usize)).collect::<Result<_, _>>()?;
        Ok(Self { blocks })
    }

    /// First byte of a buffer's slot 0. The buffer was checked to lie in its arena.
    pub(super) fn address(&self, buffer: &Buffer) -> sys::CUdeviceptr {
        self.blocks[buffer.arena as usize].at + buffer.offset
    }

    /// Where each arena lies.
    pub(super) fn ranges(&self) -> Vec<Range> {
        self.blocks.iter().map(|block| Range { address: block.at as usize, bytes: block.bytes }).collect()
    }

    pub(super) fn zero(&self) -> Result<(), Error> {
        self.blocks.iter().try_for_each(Block::zero)
    }
}

/// Host memory that stays where it is, so that the card can copy while the host goes on.
pub(super) struct Pinned {
    at: *mut u8,
    bytes: usize,
}

impl Pinned {
    pub(super) fn new(bytes: usize) -> Result<Self, Error> {
        // SAFETY: a context is bound; the memory is zeroed before it is read.
        unsafe {
            let at = result::malloc_host(bytes.max(1), 0).map_err(fault::driver("taking pinned memory"))?;
            let at = at.cast::<u8>();
            at.write_bytes(0, bytes);
            Ok(Self { at, bytes })
        }
    }

    /// The bytes. The caller waited for copies from or to them.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: ours, initialised by `new`.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: taken by `new`, given back once.
        _ = unsafe { result::free_host(self.at.cast()) };
    }
}

/// A point in the stream that the host can wait for.
pub(super) struct Event {
    event: sys::CUevent,
}

impl Event {
    pub(super) fn new(timing: bool) -> Result<Self, Error> {
        let flags = if timing {
            sys::CUevent_flags::CU_EVENT_DEFAULT
        } else {
            sys::CUevent_flags::CU_EVENT_DISABLE_TIMING
        };
        let event = result::event::create(flags).map_err(fault::driver("making an event"))?;
        Ok(Self { event })
    }

    pub(super) fn record(&self, gpu: &Gpu) -> Result<(), Error> {
        // SAFETY: event and stream are alive.
        unsafe { result::event::record(self.event, gpu.stream) }.map_err(fault::driver("recording an event"))
    }

    /// Waits; at once for an event that was never recorded.
    pub(super) fn wait(&self) -> Result<(), Error> {
        // SAFETY: the event is alive.
        unsafe { result::event::synchronize(self.event) }.map_err(fault::waiting("waiting for the GPU"))
    }

    /// Microseconds from another event to this one; both have passed.
    pub(super) fn since(&self, earlier: &Event) -> Result<f64, Error> {
        type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;
        let failed =
            |reason: String| Error::CudaFailed { call: "reading a time".into(), reason, located: true };
        let mut ms = 0f32;
        // Looked up here: the bindings name the second version, which drivers before 12.8 lack.
        // SAFETY: the driver was found, and the function has this type in every version; both events are alive and were recorded with timing.
        let result = unsafe {
            let elapsed = sys::culib().get::<Elapsed>(b"cuEventElapsedTime\0");
            elapsed.map_err(|e| failed(e.to_string()))?(&mut ms, earlier.event, self.event)
        };
        result.result().map_err(fault::driver("reading a time"))?;
        Ok(f64::from(ms) * 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        _ = unsafe { result::event::destroy(self.event) };
    }
}
