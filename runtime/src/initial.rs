//! Initial values of parameters: element e of a parameter is lane e % 4 of Philox counter (0, site, e / 4), so it depends on the
//! seed, the parameter and e alone.

use crate::philox::Stream;
use dspc_program::Init;
use rayon::prelude::*;
use std::ops::Range;

/// Counters of one task.
const BLOCKS: usize = 1 << 12;

/// Some of a parameter's elements, in place of what `out` held.
pub(crate) fn values(init: Init, seed: u64, site: u32, range: Range<u64>, out: &mut Vec<f32>) {
    out.clear();
    out.resize((range.end - range.start) as usize, 0.0);
    let stream = Stream { seed, step: 0, site };
    match init {
        Init::Zeros => {}
        Init::Ones => out.fill(1.0),
        Init::Normal(deviation) => {
            fill(out, range.start, |block| stream.normals(block).map(|x| (x * deviation) as f32))
        }
        Init::Uniform(limit) => {
            fill(out, range.start, |block| stream.uniforms(block).map(|x| ((2.0 * x - 1.0) * limit) as f32))
        }
    }
}

/// Four elements a counter; the first one's may begin before `start`.
fn fill(out: &mut [f32], start: u64, four: impl Fn(u64) -> [f32; 4] + Sync) {
    let whole = (start.next_multiple_of(4) - start).min(out.len() as u64) as usize;
    let (first, rest) = out.split_at_mut(whole);
    let lane = (start % 4) as usize;
    if !first.is_empty() {
        first.copy_from_slice(&four(start / 4)[lane..lane + first.len()]);
    }
    let block = start.div_ceil(4);
    rest.par_chunks_mut(4 * BLOCKS).enumerate().for_each(|(task, chunk)| {
        for (i, lanes) in chunk.chunks_mut(4).enumerate() {
            let values = four(block + (task * BLOCKS + i) as u64);
            lanes.copy_from_slice(&values[..lanes.len()]);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(init: Init, seed: u64, site: u32, range: Range<u64>) -> Vec<f32> {
        let mut out = vec![7.0; 3];
        super::values(init, seed, site, range, &mut out);
        out
    }

    #[test]
    fn an_element_depends_on_its_place_and_not_on_the_length() {
        let long = values(Init::Normal(0.02), 7, 3, 0..50_001);
        assert_eq!(values(Init::Normal(0.02), 7, 3, 0..40_003)[..], long[..40_003]);
        for (start, end) in [(0, 0), (1, 2), (1, 3), (3, 5), (6, 16_390), (8, 20_001), (16_385, 50_001)] {
            let part = values(Init::Normal(0.02), 7, 3, start..end);
            assert_eq!(part[..], long[start as usize..end as usize], "{start}..{end}");
        }
        assert_ne!(values(Init::Normal(0.02), 7, 4, 0..4), long[..4]);
        assert_ne!(values(Init::Normal(0.02), 8, 3, 0..4), long[..4]);
    }

    /// The numbers of every run with this seed: a change here changes all results.
    #[test]
    fn the_first_values_are_fixed() {
        let bits: Vec<u32> = values(Init::Normal(1.0), 42, 0, 0..5).iter().map(|x| x.to_bits()).collect();
        assert_eq!(bits, FIRST_NORMALS);
    }

    const FIRST_NORMALS: [u32; 5] =
        [3_212_336_732, 1_044_819_176, 3_214_813_394, 1_073_103_675, 1_074_277_399];

    #[test]
    fn the_other_kinds() {
        assert_eq!(values(Init::Zeros, 1, 1, 0..3), [0.0; 3]);
        assert_eq!(values(Init::Ones, 1, 1, 0..3), [1.0; 3]);
        let uniform = values(Init::Uniform(0.5), 1, 1, 0..10_000);
        assert!(uniform.iter().all(|x| x.abs() <= 0.5));
        let (low, high) = uniform.iter().fold((0f32, 0f32), |(l, h), &x| (l.min(x), h.max(x)));
        assert!(low < -0.499 && high > 0.499);
    }
}
