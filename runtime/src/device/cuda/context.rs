//! The card, and this process's context and stream on it.

use super::{fault, libraries};
use crate::error::Error;
use cudarc::driver::result::{self, stream::StreamKind};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};

/// A card.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Card {
    /// `NVIDIA H100 80GB HBM3`
    pub name: String,
    /// Compute capability, `(9, 0)`.
    pub capability: (u32, u32),
    /// Bytes of its memory.
    pub bytes: u64,
    /// The driver's version, `13000` for 13.0.
    pub driver: u64,
}

impl Card {
    /// The first card that this process may see.
    ///
    /// # Errors
    /// R0606, R0607.
    pub fn find() -> Result<Self, Error> {
        let driver = libraries::driver()?.version;
        Ok(Self { driver, ..nth(0)?.1 })
    }

    /// Targets whose kernels it runs, the best first.
    ///
    /// # Errors
    /// R0609 for a card older than any of them.
    pub fn targets(&self) -> Result<&'static [&'static str], Error> {
        match self.capability {
            (9, 0) => Ok(&["sm_90a", "sm_80"]),
            (12.., _) => Ok(&["sm_120", "sm_80"]),
            (8.., _) => Ok(&["sm_80"]),
            (major, minor) => {
                Err(Error::CardOld { card: self.name.clone(), capability: format!("{major}.{minor}") })
            }
        }
    }
}

/// A card by its number; numbers go round, so that ranks of one card may have numbers of their own.
fn nth(index: u64) -> Result<(sys::CUdevice, Card), Error> {
    let missing = |error: result::DriverError| Error::GpuMissing { reason: format!("{:?}", error.0) };
    result::init().map_err(missing)?;
    let count = result::device::get_count().map_err(missing)?;
    if count <= 0 {
        return Err(Error::GpuMissing { reason: "the driver shows no card to this process".into() });
    }
    let device = result::device::get((index % count as u64) as i32).map_err(missing)?;
    // SAFETY: the device was just given out by the driver.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) }.map_err(missing);
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let card = Card {
        name: result::device::get_name(device).map_err(missing)?,
        capability: (major as u32, minor as u32),
        // SAFETY: as above.
        bytes: unsafe { result::device::total_mem(device) }.map_err(missing)? as u64,
        driver: 0,
    };
    Ok((device, card))
}

/// This process's context on a card, and the one stream on which everything runs.
pub(super) struct Gpu {
    pub(super) card: Card,
    device: sys::CUdevice,
    context: sys::CUcontext,
    pub(super) stream: sys::CUstream,
}

impl Gpu {
    /// On a card by its number.
    ///
    /// # Errors
    /// R0606, R0607, R0609.
    pub(super) fn open(index: u64) -> Result<Self, Error> {
        let driver = libraries::driver()?.version;
        let (device, card) = nth(index)?;
        let card = Card { driver, ..card };
        card.targets()?;
        // SAFETY: the device was given out by the driver.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(fault::driver("the context"))?;
        let mut gpu = Self { card, device, context, stream: std::ptr::null_mut() };
        gpu.bind()?;
        gpu.stream =
            result::stream::create(StreamKind::NonBlocking).map_err(fault::driver("making a stream"))?;
        Ok(gpu)
    }

    /// Makes the context this thread's own. Everything else here needs it.
    pub(super) fn bind(&self) -> Result<(), Error> {
        // SAFETY: the context lives as long as `self`.
        unsafe { result::ctx::set_current(self.context) }.map_err(fault::driver("binding the context"))
    }

    /// Waits for all that was started.
    pub(super) fn wait(&self) -> Result<(), Error> {
        // SAFETY: the stream is ours and alive.
        unsafe { result::stream::synchronize(self.stream) }.map_err(fault::waiting("waiting for the GPU"))
    }

    /// Bytes of device memory that nobody holds.
    pub(super) fn free_bytes(&self) -> Result<u64, Error> {
        let (free, _) = result::mem_get_info().map_err(fault::driver("asking for free memory"))?;
        Ok(free as u64)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: nothing that was made in the context is used after this: `Gpu` is the last field of its owner to go.
        unsafe {
            if !self.stream.is_null() {
                _ = result::stream::destroy(self.stream);
            }
            _ = result::primary_ctx::release(self.device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_runs_kernels_of_its_own_generation_or_an_older_one() {
        let card = |capability| Card { name: "a card".into(), capability, bytes: 0, driver: 0 };
        assert_eq!(card((9, 0)).targets().unwrap(), ["sm_90a", "sm_80"]);
        assert_eq!(card((8, 9)).targets().unwrap(), ["sm_80"]);
        assert_eq!(card((10, 0)).targets().unwrap(), ["sm_80"]);
        assert_eq!(card((12, 1)).targets().unwrap(), ["sm_120", "sm_80"]);
        assert_eq!(card((7, 5)).targets().unwrap_err().code(), "R0609");
    }
}
