//! Elements of a matrix as they lie in memory, and as the product reads them: f32.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// The type of an element in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::device) enum Stored {
    F32,
    Bf16,
    F16,
}

impl Stored {
    /// Bytes of an element.
    pub(super) fn bytes(self) -> usize {
        match self {
            Stored::F32 => 4,
            Stored::Bf16 | Stored::F16 => 2,
        }
    }

    /// Reads a run of elements.
    ///
    /// # Safety
    /// As many elements as `to` has lie at `from`, aligned, and nobody writes them.
    pub(super) unsafe fn widen(self, from: *const u8, to: &mut [f32]) {
        let count = to.len();
        // SAFETY: the caller's contract.
        unsafe {
            match self {
                Stored::F32 => to.copy_from_slice(std::slice::from_raw_parts(from.cast(), count)),
                Stored::Bf16 => {
                    let from = std::slice::from_raw_parts(from.cast::<u16>(), count);
                    to.iter_mut().zip(from).for_each(|(x, &bits)| *x = f32::from_bits(u32::from(bits) << 16));
                }
                Stored::F16 => {
                    std::slice::from_raw_parts(from.cast::<f16>(), count).convert_to_f32_slice(to);
                }
            }
        }
    }

    /// Writes a run of elements, rounded to nearest, ties to even.
    ///
    /// # Safety
    /// As many elements as `from` has lie at `to`, aligned, and nobody else touches them.
    pub(super) unsafe fn narrow(self, from: &[f32], to: *mut u8) {
        let count = from.len();
        // SAFETY: the caller's contract.
        unsafe {
            match self {
                Stored::F32 => std::slice::from_raw_parts_mut(to.cast(), count).copy_from_slice(from),
                Stored::Bf16 => {
                    std::slice::from_raw_parts_mut(to.cast::<bf16>(), count).convert_from_f32_slice(from)
                }
                Stored::F16 => {
                    std::slice::from_raw_parts_mut(to.cast::<f16>(), count).convert_from_f32_slice(from)
                }
            }
        }
    }
}
