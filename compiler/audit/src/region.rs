//! Sets of bytes of an arena: runs of equal length, equally far apart.

/// `rows` runs of `len` bytes, `stride` apart. One run has stride 0; runs that touch are one run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Region {
    start: u64,
    rows: u64,
    len: u64,
    stride: u64,
}

impl Region {
    /// One run.
    pub(crate) fn run(start: u64, len: u64) -> Self {
        Self { start, rows: u64::from(len > 0), len, stride: 0 }
    }

    /// Runs; where they touch or overlap, the one run that they make. `None` if it does not fit 64 bits.
    pub(crate) fn rows(start: u64, rows: u64, len: u64, stride: u64) -> Option<Self> {
        if rows == 0 || len == 0 {
            return Some(Self::run(start, 0));
        }
        let whole = (rows - 1).checked_mul(stride)?.checked_add(len)?;
        start.checked_add(whole)?;
        let apart = rows > 1 && stride > len;
        Some(if apart { Self { start, rows, len, stride } } else { Self::run(start, whole) })
    }

    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// One past the last byte.
    pub(crate) fn end(&self) -> u64 {
        self.start + if self.rows == 0 { 0 } else { (self.rows - 1) * self.stride + self.len }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    fn is_run(&self) -> bool {
        self.rows == 1
    }

    /// Whether both hold one byte. Exact but for two sets of runs of different strides, which count as meeting if their hulls do.
    pub(crate) fn meets(&self, other: &Self) -> bool {
        if self.is_empty() || other.is_empty() || self.end() <= other.start || other.end() <= self.start {
            return false;
        }
        match (self.is_run(), other.is_run()) {
            (true, true) => true,
            (true, false) => other.meets_run(self),
            (false, true) => self.meets_run(other),
            (false, false) if self.stride == other.stride => self.meets_in_phase(other),
            (false, false) => true,
        }
    }

    fn meets_run(&self, run: &Self) -> bool {
        let first = run.start.saturating_sub(self.start) / self.stride;
        let one = |row: u64| {
            let begin = self.start + row * self.stride;
            row < self.rows && begin < run.end() && run.start < begin + self.len
        };
        one(first) || one(first + 1)
    }

    fn meets_in_phase(&self, other: &Self) -> bool {
        let phase = (other.start % self.stride + self.stride - self.start % self.stride) % self.stride;
        phase < self.len || phase + other.len > self.stride
    }

    /// Whether every byte of `inner` is in this set.
    pub(crate) fn covers(&self, inner: &Self) -> bool {
        if inner.is_empty() {
            return true;
        }
        if self.is_empty() || inner.start < self.start || inner.end() > self.end() {
            return false;
        }
        if self.is_run() {
            return true;
        }
        let from = inner.start - self.start;
        let fits = from % self.stride + inner.len <= self.len;
        fits && (inner.is_run()
            || (inner.stride == self.stride && from / self.stride + inner.rows <= self.rows))
    }

    /// The set of both, if that is runs of one length again.
    fn joined(&self, other: &Self) -> Option<Self> {
        let (low, high) = if self.start <= other.start { (self, other) } else { (other, self) };
        let beside = low.start + low.len >= high.start;
        if low.is_run() && high.is_run() {
            return beside.then(|| Self::run(low.start, low.end().max(high.end()) - low.start));
        }
        let alike = low.rows == high.rows && low.stride == high.stride;
        let len = (high.start + high.len).max(low.start + low.len) - low.start;
        if alike && beside && len <= low.stride {
            Self::rows(low.start, low.rows, len, low.stride)
        } else {
            None
        }
    }
}

/// A union of regions, kept short by joining neighbours.
#[derive(Clone, Default, Debug)]
pub(crate) struct Regions(Vec<Region>);

impl Regions {
    pub(crate) fn add(&mut self, mut new: Region) {
        if new.is_empty() || self.covers(&new) {
            return;
        }
        while let Some((at, joined)) =
            self.0.iter().enumerate().find_map(|(at, old)| Some((at, old.joined(&new)?)))
        {
            self.0.swap_remove(at);
            new = joined;
        }
        self.0.retain(|old| !new.covers(old));
        self.0.push(new);
    }

    /// Takes bytes away. A set of separate runs that is hit goes as a whole: that errs towards a finding.
    pub(crate) fn remove(&mut self, gone: &Region) {
        let hit: Vec<Region> = self.0.extract_if(.., |old| old.meets(gone)).collect();
        for old in hit.into_iter().filter(Region::is_run) {
            if old.start < gone.start {
                self.0.push(Region::run(old.start, gone.start - old.start));
            }
            if gone.end() < old.end() {
                self.0.push(Region::run(gone.end(), old.end() - gone.end()));
            }
        }
    }

    pub(crate) fn covers(&self, inner: &Region) -> bool {
        inner.is_empty() || self.0.iter().any(|one| one.covers(inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(start: u64, rows: u64, len: u64, stride: u64) -> Region {
        Region::rows(start, rows, len, stride).unwrap()
    }

    /// Every byte, the slow way.
    fn bytes(r: &Region) -> Vec<u64> {
        (0..r.rows).flat_map(|row| (0..r.len).map(move |b| r.start + row * r.stride + b)).collect()
    }

    fn some_regions() -> Vec<Region> {
        let mut all = vec![Region::run(3, 0), Region::run(0, 40)];
        for start in 0..9 {
            all.extend([Region::run(start, 1), Region::run(start, 5), Region::run(start * 3, 4)]);
            all.extend([
                rows(start, 3, 2, 6),
                rows(start, 2, 3, 6),
                rows(start, 4, 1, 6),
                rows(start, 2, 6, 6),
            ]);
        }
        all
    }

    #[test]
    fn meeting_agrees_with_a_list_of_bytes() {
        for a in some_regions() {
            for b in some_regions() {
                let truth = bytes(&a).iter().any(|byte| bytes(&b).contains(byte));
                assert!(!truth || a.meets(&b), "{a:?} {b:?} share a byte");
                let hulls_only = a.rows > 1 && b.rows > 1;
                assert!(truth || !a.meets(&b) || hulls_only, "{a:?} {b:?} share no byte");
            }
        }
    }

    #[test]
    fn covering_never_claims_a_byte_too_many() {
        for a in some_regions() {
            for b in some_regions() {
                let truth = bytes(&b).iter().all(|byte| bytes(&a).contains(byte));
                assert!(truth || !a.covers(&b), "{a:?} does not cover {b:?}");
            }
        }
    }

    #[test]
    fn three_column_bands_make_one_run() {
        let mut all = Regions::default();
        for band in [2, 0, 1] {
            all.add(rows(100 + band * 8, 5, 8, 24));
        }
        assert_eq!(all.0, [Region::run(100, 120)]);
    }

    #[test]
    fn two_bands_do_not_cover_the_third() {
        let mut all = Regions::default();
        all.add(rows(100, 5, 8, 24));
        all.add(rows(108, 5, 8, 24));
        assert!(all.covers(&rows(104, 5, 12, 24)));
        assert!(!all.covers(&Region::run(100, 120)));
    }

    #[test]
    fn taking_the_middle_leaves_both_ends() {
        let mut all = Regions::default();
        all.add(Region::run(0, 30));
        all.remove(&Region::run(10, 5));
        assert!(all.covers(&Region::run(0, 10)) && all.covers(&Region::run(15, 15)));
        assert!(!all.covers(&Region::run(9, 2)));
    }

    #[test]
    fn sizes_beyond_64_bits_are_refused() {
        assert_eq!(Region::rows(0, u64::MAX, 8, 16), None);
        assert_eq!(Region::rows(u64::MAX, 1, 8, 8), None);
    }
}
