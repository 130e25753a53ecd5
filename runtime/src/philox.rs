//! Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011): random numbers as a function of their place, with no state.
//!
//! Key = the seed (low word, high word). Counter = (step, site, block low, block high) where block = element / 4 and the
//! element's word is lane element % 4. Initial values use step 0 and the parameter's own site. Streams of the runtime itself
//! use the sites above [`RESERVED_SITES`], which no parameter has.

/// First of the sites that the runtime keeps for itself.
pub const RESERVED_SITES: u32 = 0xFFFF_FF00;
/// Site of the order of sequences; step = epoch.
pub const SITE_SHUFFLE: u32 = RESERVED_SITES;
/// Site of the windows' offset; step = epoch.
pub const SITE_OFFSET: u32 = RESERVED_SITES + 1;
/// Site of the choice of a generated token; element = place in the text.
pub const SITE_SAMPLE: u32 = RESERVED_SITES + 2;

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Four random words for one counter.
#[inline]
pub fn philox4x32(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let (mut key, mut c) = (key, counter);
    for _ in 0..10 {
        let p0 = u64::from(MULTIPLIER[0]) * u64::from(c[0]);
        let p1 = u64::from(MULTIPLIER[1]) * u64::from(c[2]);
        c = [(p1 >> 32) as u32 ^ c[1] ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ key[1], p0 as u32];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    c
}

/// Who asks: seed, step and site are fixed, the element varies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stream {
    /// The seed.
    pub seed: u64,
    /// Step, or epoch.
    pub step: u32,
    /// Site id.
    pub site: u32,
}

impl Stream {
    /// The words of elements `4·block .. 4·block + 4`.
    #[inline]
    pub fn words(self, block: u64) -> [u32; 4] {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        philox4x32(key, [self.step, self.site, block as u32, (block >> 32) as u32])
    }

    /// Four normal variates, mean 0 and deviation 1, for the elements of a block: Box-Muller in f64 on word pairs (0, 1) and (2, 3).
    #[inline]
    pub fn normals(self, block: u64) -> [f64; 4] {
        let w = self.words(block);
        let (a, b) = box_muller(w[0], w[1]);
        let (c, d) = box_muller(w[2], w[3]);
        [a, b, c, d]
    }

    /// Four uniform variates in (0, 1).
    #[inline]
    pub fn uniforms(self, block: u64) -> [f64; 4] {
        self.words(block).map(|w| (f64::from(w) + 0.5) / 4_294_967_296.0)
    }

    /// One uniform variate in [0, 1) with 53 bits.
    pub fn uniform(self, element: u64) -> f64 {
        let w = self.words(element);
        let bits = (u64::from(w[0]) << 32 | u64::from(w[1])) >> 11;
        bits as f64 / (1u64 << 53) as f64
    }

    /// A whole number below `bound`, which is not 0; bias below 2⁻⁶⁴ · bound.
    pub fn below(self, bound: u64) -> u64 {
        let w = self.words(0);
        let word = u64::from(w[0]) << 32 | u64::from(w[1]);
        ((u128::from(word) * u128::from(bound)) >> 64) as u64
    }
}

/// Two independent normal variates from two words. The first is never 0, so the logarithm is finite.
fn box_muller(w0: u32, w1: u32) -> (f64, f64) {
    let u = (f64::from(w0) + 1.0) / 4_294_967_296.0;
    let turn = f64::from(w1) / 4_294_967_296.0 * std::f64::consts::TAU;
    let radius = libm::sqrt(-2.0 * libm::log(u));
    let (sin, cos) = libm::sincos(turn);
    (radius * cos, radius * sin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_random123() {
        let cases = [
            ([0; 2], [0; 4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([!0; 2], [!0; 4], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0xa409_3822, 0x299f_31d0],
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (key, counter, answer) in cases {
            assert_eq!(philox4x32(key, counter), answer);
        }
    }

    #[test]
    fn normals_have_the_moments_of_a_normal() {
        let stream = Stream { seed: 42, step: 0, site: 3 };
        let xs: Vec<f64> = (0..50_000).flat_map(|b| stream.normals(b)).collect();
        let n = xs.len() as f64;
        let mean = xs.iter().sum::<f64>() / n;
        let variance = xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let kurtosis = xs.iter().map(|x| (x - mean).powi(4)).sum::<f64>() / n / variance.powi(2);
        // Standard errors at 200 000 draws: 0.0022, 0.0032, 0.011; five of each.
        assert!(mean.abs() < 0.011, "{mean}");
        assert!((variance - 1.0).abs() < 0.016, "{variance}");
        assert!((kurtosis - 3.0).abs() < 0.055, "{kurtosis}");
        let lag: f64 = xs.windows(2).map(|w| w[0] * w[1]).sum::<f64>() / n;
        assert!(lag.abs() < 0.011, "{lag}");
    }

    #[test]
    fn extreme_words_stay_finite() {
        for w0 in [0, 1, u32::MAX] {
            for w1 in [0, 1 << 30, u32::MAX] {
                let (a, b) = box_muller(w0, w1);
                assert!(a.is_finite() && b.is_finite());
            }
        }
    }

    #[test]
    fn another_seed_step_or_site_is_another_stream() {
        let base = Stream { seed: 1, step: 2, site: 3 };
        for other in [
            Stream { seed: 1 << 32 | 1, ..base },
            Stream { seed: 2, ..base },
            Stream { step: 3, ..base },
            Stream { site: 4, ..base },
        ] {
            assert_ne!(base.words(0), other.words(0));
        }
    }
}
