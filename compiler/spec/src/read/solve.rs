//! The batch equation, `batch = micro_batch × accumulation × data ranks`, solved for what is missing.
//!
//! Given all three: they must agree. Given two: the third follows. Given `batch` alone: one micro-batch a rank. Given
//! `micro_batch` alone: one micro-batch a rank, and `batch` follows.

use dspc_source::Spanned;

use super::Reader;
use crate::errors::{BatchDisagrees, BatchIndivisible, BatchTooLarge, BatchUnreachable, DataRanks};
use crate::keys::Key;
use crate::settings::{Mesh, Origin, Set};

/// A solution.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Batch {
    pub batch: Set<u64>,
    pub micro_batch: Set<u64>,
    pub accumulation: Set<u64>,
}

/// Most sequences a step.
const BATCH_MAX: u128 = 1_000_000_000;

/// Reads the three terms and solves for the missing ones; `None` if that cannot be, which is reported.
pub(crate) fn solve_batch(reader: &mut Reader<'_>, parallel: Option<&Set<Mesh>>) -> Option<Batch> {
    let written = |reader: &Reader<'_>, path| reader.written.get(path).is_some();
    let paths = ["train.batch", "train.micro_batch", "train.accumulation"];
    let given: Vec<bool> = paths.iter().map(|path| written(reader, path)).collect();
    let terms: Vec<Option<Spanned<u64>>> = paths.iter().map(|path| term(reader, path)).collect();
    if given.iter().zip(&terms).any(|(given, term)| *given && term.is_none()) {
        return None;
    }
    let ranks = data_ranks(reader, parallel?);
    let (batch, micro_batch, accumulation) = (terms[0], terms[1], terms[2]);
    let derived = |value| Set { value, origin: Origin::Derived };
    let one = Set { value: 1, origin: Origin::Default };
    let n = ranks.count.max(1);
    match (batch, micro_batch, accumulation) {
        (Some(b), Some(m), Some(a)) => {
            if u128::from(m.value) * u128::from(a.value) * u128::from(n) != u128::from(b.value) {
                reader.mistakes.add(BatchDisagrees {
                    batch: b,
                    micro_batch: m,
                    accumulation: a,
                    data_ranks: ranks,
                });
                return None;
            }
            Some(Batch { batch: said(b), micro_batch: said(m), accumulation: said(a) })
        }
        (Some(b), Some(m), None) => {
            let at_once = m.value.saturating_mul(n);
            if b.value < at_once || !b.value.is_multiple_of(at_once) {
                reader.mistakes.add(BatchUnreachable { batch: b, micro_batch: m, data_ranks: ranks });
                return None;
            }
            Some(Batch { batch: said(b), micro_batch: said(m), accumulation: derived(b.value / at_once) })
        }
        (Some(b), None, a) => {
            let pieces = a.map_or(1, |a| a.value).saturating_mul(n);
            if b.value < pieces || !b.value.is_multiple_of(pieces) {
                reader.mistakes.add(BatchIndivisible { batch: b, accumulation: a, data_ranks: ranks });
                return None;
            }
            Some(Batch {
                batch: said(b),
                micro_batch: derived(b.value / pieces),
                accumulation: a.map_or(one, said),
            })
        }
        (None, Some(m), a) => {
            let product = u128::from(m.value) * u128::from(a.map_or(1, |a| a.value)) * u128::from(n);
            if product > BATCH_MAX {
                reader.mistakes.add(BatchTooLarge { micro_batch: m, product });
                return None;
            }
            Some(Batch {
                batch: derived(product as u64),
                micro_batch: said(m),
                accumulation: a.map_or(one, said),
            })
        }
        // Reported as missing.
        (None, None, _) => None,
    }
}

fn term(reader: &mut Reader<'_>, path: &str) -> Option<Spanned<u64>> {
    let set = reader.whole(path)?;
    Some(Spanned::new(set.value, set.span()?))
}

/// The ranks of the data axis; the place is the number itself where it is written.
fn data_ranks(reader: &mut Reader<'_>, parallel: &Set<Mesh>) -> DataRanks {
    let mesh = Key::find("parallel").and_then(|key| reader.held(key));
    let axis = mesh.and_then(|(held, _)| held.call()?.arg("data")?.span);
    DataRanks { count: parallel.value.data, span: parallel.span().map(|whole| axis.unwrap_or(whole)) }
}

fn said(term: Spanned<u64>) -> Set<u64> {
    Set { value: term.value, origin: Origin::Written(term.span) }
}

#[cfg(test)]
mod tests {
    use crate::fixture::train;

    /// `(batch, micro_batch, accumulation)` or the codes of the mistakes, for what is written.
    fn solve(written: &str, ranks: u64) -> Result<(u64, u64, u64), Vec<&'static str>> {
        let (train, found) =
            train(&format!("parallel = mesh(data: {ranks})\ntrain {{ {written}, steps: 1000 }}\n"));
        train.map(|t| (t.batch.value, t.micro_batch.value, t.accumulation.value)).ok_or(found)
    }

    #[test]
    fn what_is_missing_follows() {
        assert_eq!(solve("batch: 12", 1), Ok((12, 12, 1)));
        assert_eq!(solve("batch: 12", 3), Ok((12, 4, 1)));
        assert_eq!(solve("batch: 12, micro_batch: 2", 1), Ok((12, 2, 6)));
        assert_eq!(solve("batch: 12, micro_batch: 2", 3), Ok((12, 2, 2)));
        assert_eq!(solve("batch: 12, accumulation: 2", 3), Ok((12, 2, 2)));
        assert_eq!(solve("micro_batch: 2", 3), Ok((6, 2, 1)));
        assert_eq!(solve("micro_batch: 2, accumulation: 5", 3), Ok((30, 2, 5)));
        assert_eq!(solve("batch: 12, micro_batch: 2, accumulation: 2", 3), Ok((12, 2, 2)));
    }

    #[test]
    fn what_does_not_come_out_is_a_mistake() {
        assert_eq!(solve("batch: 8, micro_batch: 2", 3), Err(vec!["E0312"]));
        assert_eq!(solve("batch: 2, micro_batch: 4", 1), Err(vec!["E0312"]));
        assert_eq!(solve("batch: 8, micro_batch: 2, accumulation: 3", 1), Err(vec!["E0313"]));
        assert_eq!(solve("batch: 8, accumulation: 3", 1), Err(vec!["E0314"]));
        assert_eq!(solve("batch: 8", 3), Err(vec!["E0314"]));
        assert_eq!(solve("micro_batch: 1B, accumulation: 2", 1), Err(vec!["E0315"]));
        assert_eq!(solve("micro_batch: 1B, accumulation: 1B", 1_000_000), Err(vec!["E0315"]));
        assert_eq!(solve("accumulation: 2", 1), Err(vec!["E0104"]));
        assert_eq!(solve("batch: 0, micro_batch: 2", 1), Err(vec!["E0205"]));
    }
}
