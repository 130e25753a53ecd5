//! Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011): random numbers as a function of their place.

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Four random words for one counter.
pub fn philox4x32(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let (mut key, mut c) = (key, counter);
    for _ in 0..10 {
        let (high0, low0) = wide(MULTIPLIER[0], c[0]);
        let (high1, low1) = wide(MULTIPLIER[1], c[2]);
        c = [high1 ^ c[1] ^ key[0], low1, high0 ^ c[3] ^ key[1], low0];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    c
}

fn wide(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    ((product >> 32) as u32, product as u32)
}

/// A stream of uniform numbers: who asks (seed, step, site) is fixed, the element varies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UniformStream {
    /// The seed, low word first.
    pub key: [u32; 2],
    /// Step attempted.
    pub step: u32,
    /// Site id, the turn added.
    pub site: u32,
}

impl UniformStream {
    /// Element `element`, in [0, 1): the upper 24 bits of lane `element % 4` of counter `(step, site, element / 4)`.
    pub fn at(self, element: u64) -> f64 {
        let block = element / 4;
        let words = philox4x32(self.key, [self.step, self.site, block as u32, (block >> 32) as u32]);
        f64::from(words[(element % 4) as usize] >> 8) / f64::from(1u32 << 24)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_the_reference_implementation() {
        assert_eq!(philox4x32([0, 0], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([!0, !0], [!0; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0xa409_3822, 0x299f_31d0], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniform_numbers_lie_in_their_range_and_average_a_half() {
        let stream = UniformStream { key: [7, 0], step: 1, site: 3 };
        let xs: Vec<f64> = (0..4096).map(|i| stream.at(i)).collect();
        assert!(xs.iter().all(|x| (0.0..1.0).contains(x)));
        let mean = xs.iter().sum::<f64>() / 4096.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }
}
