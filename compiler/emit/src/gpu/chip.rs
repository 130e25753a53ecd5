//! GPU generations that PTX is written for.

use crate::error::EmitError;

/// A generation. MLIR takes any name, so the list is ours.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum GpuChip {
    /// A100 and later.
    Sm80,
    /// H100, H200.
    Sm90a,
    /// RTX 50 and RTX PRO.
    Sm120,
}

impl GpuChip {
    /// All, oldest first.
    pub const ALL: [GpuChip; 3] = [GpuChip::Sm80, GpuChip::Sm90a, GpuChip::Sm120];

    /// As NVIDIA writes it.
    pub fn name(self) -> &'static str {
        match self {
            GpuChip::Sm80 => "sm_80",
            GpuChip::Sm90a => "sm_90a",
            GpuChip::Sm120 => "sm_120",
        }
    }

    /// The lowest PTX version that has its instructions: an older driver then takes the text too.
    pub(crate) fn features(self) -> &'static str {
        match self {
            GpuChip::Sm80 => "+ptx70",
            GpuChip::Sm90a => "+ptx80",
            GpuChip::Sm120 => "+ptx87",
        }
    }

    /// Bytes of shared memory that a block may have on every card that runs its kernels: `sm_80` is of A100 and of smaller ones.
    pub(crate) fn shared_bytes_max(self) -> u64 {
        match self {
            GpuChip::Sm90a => 227 << 10,
            GpuChip::Sm80 | GpuChip::Sm120 => 99 << 10,
        }
    }

    /// By name.
    pub fn named(name: &str) -> Result<Self, EmitError> {
        Self::ALL
            .into_iter()
            .find(|chip| chip.name() == name)
            .ok_or_else(|| EmitError::Target { name: name.to_string(), known: "`sm_80`, `sm_90a`, `sm_120`" })
    }
}
