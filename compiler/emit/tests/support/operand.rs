//! Operands: f64 numbers that a type in memory holds exactly.

use dspc_graph::ir::DType;
use half::{bf16, f16};

/// Numbers and how they lie in memory.
#[derive(Clone, Debug)]
pub struct Operand {
    /// Of each element.
    pub dtype: DType,
    /// What memory holds.
    pub values: Vec<f64>,
}

impl Operand {
    /// Rounds numbers to the type.
    pub fn new(dtype: DType, values: impl IntoIterator<Item = f64>) -> Self {
        let round = |x: f64| match dtype {
            DType::F32 => f64::from(x as f32),
            DType::Bf16 => bf16::from_f32(x as f32).to_f64(),
            DType::F16 => f16::from_f32(x as f32).to_f64(),
            DType::I32 => x.round(),
        };
        Operand { dtype, values: values.into_iter().map(round).collect() }
    }

    /// As bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![];
        for &x in &self.values {
            match self.dtype {
                DType::F32 => bytes.extend((x as f32).to_ne_bytes()),
                DType::Bf16 => bytes.extend(bf16::from_f64(x).to_ne_bytes()),
                DType::F16 => bytes.extend(f16::from_f64(x).to_ne_bytes()),
                DType::I32 => bytes.extend((x as i32).to_ne_bytes()),
            }
        }
        bytes
    }

    /// From bytes.
    pub fn read(dtype: DType, bytes: &[u8]) -> Self {
        let values = bytes
            .chunks_exact(dtype.bytes() as usize)
            .map(|b| match dtype {
                DType::F32 => f64::from(f32::from_ne_bytes([b[0], b[1], b[2], b[3]])),
                DType::Bf16 => bf16::from_ne_bytes([b[0], b[1]]).to_f64(),
                DType::F16 => f16::from_ne_bytes([b[0], b[1]]).to_f64(),
                DType::I32 => f64::from(i32::from_ne_bytes([b[0], b[1], b[2], b[3]])),
            })
            .collect();
        Operand { dtype, values }
    }
}

/// Relative rounding error of a type.
pub fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2f64.powi(-24),
        DType::Bf16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
        DType::I32 => 0.0,
    }
}

/// The smallest step of a type near 0.
pub fn smallest(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2f64.powi(-149),
        DType::Bf16 => 2f64.powi(-133),
        DType::F16 => 2f64.powi(-24),
        DType::I32 => 0.0,
    }
}

/// A small generator of test numbers (SplitMix64).
pub struct Numbers(pub u64);

impl Numbers {
    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// About normal: a sum of four uniforms, variance 1.
    pub fn normal(&mut self) -> f64 {
        ((0..4).map(|_| self.unit()).sum::<f64>() - 2.0) * 3f64.sqrt()
    }

    /// Below n.
    pub fn below(&mut self, n: u64) -> u64 {
        self.bits() % n
    }
}
