//! What a CPU must be able to do.

use crate::error::EmitError;
use crate::mlir::host_cpu;

/// A CPU to compile for: its name and features as LLVM spells them, and how many floats a vector holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpuLevel {
    /// `x86-64-v3`, or a CPU's own name.
    pub name: String,
    /// `+avx2,-sse4a,…`; empty for a named level, whose name says it all.
    pub features: String,
    /// Floats of a vector: 4, 8 or 16.
    pub lanes: u32,
}

/// Named levels and their vectors.
const LEVELS: [(&str, u32); 3] = [("x86-64-v2", 4), ("x86-64-v3", 8), ("x86-64-v4", 16)];

impl CpuLevel {
    /// This machine's.
    pub fn host() -> Self {
        let (name, features) = host_cpu();
        let has = |feature: &str| features.split(',').any(|f| f.strip_prefix('+') == Some(feature));
        let lanes =
            match (has("avx512f") && has("avx512vl") && has("avx512bw") && has("avx512dq"), has("avx2")) {
                (true, _) => 16,
                (false, true) => 8,
                (false, false) => 4,
            };
        CpuLevel { name, features, lanes }
    }

    /// `host`, or one of the portable levels.
    pub fn named(name: &str) -> Result<Self, EmitError> {
        if name == "host" {
            return Ok(Self::host());
        }
        let level = LEVELS.iter().find(|(level, _)| *level == name);
        let &(name, lanes) = level.ok_or_else(|| EmitError::Target {
            name: name.to_string(),
            known: "`host`, `x86-64-v2`, `x86-64-v3`, `x86-64-v4`",
        })?;
        Ok(CpuLevel { name: name.to_string(), features: String::new(), lanes })
    }
}
