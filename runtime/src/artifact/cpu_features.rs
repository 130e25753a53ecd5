//! What a kernel file needs of the CPU, and whether this one has it.
//!
//! Names are LLVM's. Features that change no instruction a kernel can hold (`clzero`, tuning) are not in the table and are not asked for.

/// Features of the portable levels, each on top of the one before (x86-64 psABI).
const LEVELS: [(&str, &[&str]); 3] = [
    ("x86-64-v2", &["cx16", "popcnt", "sse3", "sse4.1", "sse4.2", "ssse3"]),
    ("x86-64-v3", &["avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"]),
    ("x86-64-v4", &["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"]),
];

/// Features that are asked for and not there.
pub(super) fn missing(level: &str, features: &[String]) -> Vec<String> {
    let of_level = LEVELS.iter().position(|(name, _)| *name == level).map_or(0, |i| i + 1);
    let implied = LEVELS[..of_level].iter().flat_map(|(_, features)| features.iter().copied());
    let named = features.iter().map(|f| f.trim_start_matches('+'));
    let mut missing: Vec<String> =
        implied.chain(named).filter(|f| present(f) == Some(false)).map(String::from).collect();
    missing.sort();
    missing.dedup();
    missing
}

/// The highest portable level of this CPU; none on another architecture.
pub fn cpu_level() -> Option<&'static str> {
    let levels = LEVELS.iter().rev().map(|(name, _)| *name);
    let lowest = present("sse2").filter(|&there| there).map(|_| "x86-64");
    lowest.map(|lowest| levels.into_iter().find(|level| missing(level, &[]).is_empty()).unwrap_or(lowest))
}

#[cfg(target_arch = "x86_64")]
fn present(feature: &str) -> Option<bool> {
    macro_rules! table {
        ($($llvm:literal => $rust:tt),* $(,)?) => {
            match feature {
                $($llvm => Some(std::arch::is_x86_feature_detected!($rust)),)*
                _ => None,
            }
        };
    }
    table! {
        "adx" => "adx",
        "aes" => "aes",
        "avx" => "avx",
        "avx2" => "avx2",
        "avx512bf16" => "avx512bf16",
        "avx512bitalg" => "avx512bitalg",
        "avx512bw" => "avx512bw",
        "avx512cd" => "avx512cd",
        "avx512dq" => "avx512dq",
        "avx512f" => "avx512f",
        "avx512fp16" => "avx512fp16",
        "avx512ifma" => "avx512ifma",
        "avx512vbmi" => "avx512vbmi",
        "avx512vbmi2" => "avx512vbmi2",
        "avx512vl" => "avx512vl",
        "avx512vnni" => "avx512vnni",
        "avx512vp2intersect" => "avx512vp2intersect",
        "avx512vpopcntdq" => "avx512vpopcntdq",
        "avxifma" => "avxifma",
        "avxneconvert" => "avxneconvert",
        "avxvnni" => "avxvnni",
        "avxvnniint16" => "avxvnniint16",
        "avxvnniint8" => "avxvnniint8",
        "bmi" => "bmi1",
        "bmi2" => "bmi2",
        "cx16" => "cmpxchg16b",
        "f16c" => "f16c",
        "fma" => "fma",
        "fxsr" => "fxsr",
        "gfni" => "gfni",
        "lzcnt" => "lzcnt",
        "movbe" => "movbe",
        "pclmul" => "pclmulqdq",
        "popcnt" => "popcnt",
        "rdrnd" => "rdrand",
        "rdseed" => "rdseed",
        "sha" => "sha",
        "sha512" => "sha512",
        "sm3" => "sm3",
        "sm4" => "sm4",
        "sse" => "sse",
        "sse2" => "sse2",
        "sse3" => "sse3",
        "sse4.1" => "sse4.1",
        "sse4.2" => "sse4.2",
        "sse4a" => "sse4a",
        "ssse3" => "ssse3",
        "tbm" => "tbm",
        "vaes" => "vaes",
        "vpclmulqdq" => "vpclmulqdq",
        "xsave" => "xsave",
        "xsavec" => "xsavec",
        "xsaveopt" => "xsaveopt",
        "xsaves" => "xsaves",
    }
}

/// No table for this architecture: the kernel file itself does not load elsewhere.
#[cfg(not(target_arch = "x86_64"))]
fn present(_feature: &str) -> Option<bool> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn every_x86_64_has_the_first_features_and_none_has_an_abandoned_one() {
        assert!(missing("x86-64", &["sse2".into(), "+fxsr".into(), "fast-something".into()]).is_empty());
        // Trailing bit manipulation: four AMD generations before AVX2 had it, none since.
        if !std::arch::is_x86_feature_detected!("tbm") {
            assert_eq!(missing("a-cpu", &["tbm".into(), "sse2".into(), "tbm".into()]), ["tbm"]);
        }
    }

    #[test]
    fn a_level_asks_for_all_below_it() {
        let has = |level| missing(level, &[]).is_empty();
        assert!(!has("x86-64-v4") || has("x86-64-v3"));
        assert!(!has("x86-64-v3") || has("x86-64-v2"));
        assert_eq!(has("x86-64-v3"), std::arch::is_x86_feature_detected!("avx2"));
    }
}
