//! How long a matrix product takes on an H100, by the tiles and the parts that it is cut into: what kernels are chosen by.
//!
//! Measured with the kernels of `dspc-emit`; other cards get the same choice.

/// Multiprocessors of an H100 or H200.
pub const PROCESSORS: u64 = 132;
/// Rows of a tile.
pub const ROWS: u64 = 128;
/// Terms of a piece, the unit in which parts are cut.
pub const DEPTH: u64 = 64;
/// Columns of a tile, and the microseconds that a piece takes.
const WIDTHS: [(u64, f64); 4] = [(256, 0.715), (192, 0.593), (160, 0.528), (128, 0.44)];
/// Microseconds of a tile's begin and end, and for each column of it.
const TILE_US: (f64, f64) = (0.3, 0.0035);
/// What the second kernel of a product in parts takes: microseconds, and bytes in one of them.
const COMBINE_US: f64 = 3.0;
const COMBINE_BYTES_PER_US: f64 = 4e6;

/// A product's sizes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Rows of the result.
    pub m: u64,
    /// Columns of it.
    pub n: u64,
    /// Terms of each sum.
    pub k: u64,
}

impl Shape {
    /// The width of tiles that is done first with so many parts, of those that are allowed, and its microseconds.
    pub fn best_width(self, parts: u64, allowed: impl Fn(u64) -> bool) -> (u64, f64) {
        let pieces = self.k.div_ceil(DEPTH).div_ceil(parts) as f64;
        let microseconds = |&(width, piece_us): &(u64, f64)| {
            let tiles = self.m.div_ceil(ROWS) * self.n.div_ceil(width) * parts;
            let rounds = tiles.div_ceil(PROCESSORS) as f64;
            (width, rounds * (pieces * piece_us + TILE_US.0 + TILE_US.1 * width as f64))
        };
        let all = WIDTHS.iter().filter(|(width, _)| allowed(*width)).map(microseconds);
        all.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((WIDTHS[0].0, f64::INFINITY))
    }

    /// Microseconds in so many parts.
    pub fn microseconds(self, parts: u64) -> f64 {
        // What a width of 160 needs is not known here.
        let products = self.best_width(parts, |width| width != 160).1;
        match parts {
            1 => products,
            _ => products + COMBINE_US + (parts * self.m * self.n * 8) as f64 / COMBINE_BYTES_PER_US,
        }
    }

    /// Into how many parts the summed dim is cut, so that few tiles fill the card; none is empty.
    pub fn best_parts(self, parts_max: u64, terms_min: u64) -> u64 {
        let pieces = self.k.div_ceil(DEPTH);
        let whole = |&parts: &u64| {
            let share = pieces.div_ceil(parts);
            parts == 1 || (share * DEPTH >= terms_min && share * (parts - 1) < pieces)
        };
        let candidates = (1..=parts_max).filter(whole);
        candidates.min_by(|&a, &b| self.microseconds(a).total_cmp(&self.microseconds(b))).unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::Shape;

    fn parts(m: u64, n: u64, k: u64) -> u64 {
        Shape { m, n, k }.best_parts(16, 512)
    }

    #[test]
    fn few_tiles_are_cut_into_parts() {
        // Weight gradients of GPT-2: 768 to 768 and 1024 to 1024 have few tiles, 1024 to 4096 fills the card.
        assert!(parts(768, 768, 32_768) >= 4);
        assert!(parts(1024, 1024, 16_384) >= 2);
        assert_eq!(parts(1024, 4096, 16_384), 1);
    }

    #[test]
    fn many_tiles_or_few_terms_stay_whole() {
        assert_eq!(parts(16_384, 3072, 1024), 1);
        assert_eq!(parts(50_304, 1024, 16_384), 1);
        assert_eq!(parts(64, 64, 64), 1);
        assert_eq!(parts(1, 1, 1), 1);
    }

    #[test]
    fn a_width_leaves_few_processors_without_a_tile() {
        // 8 × 16 tiles of 192 columns are 128 of 132; 8 × 12 of 256 would be 96.
        assert_eq!(Shape { m: 1024, n: 3072, k: 16_384 }.best_width(1, |_| true).0, 192);
        assert_eq!(Shape { m: 1024, n: 4096, k: 16_384 }.best_width(1, |_| true).0, 256);
    }
}
