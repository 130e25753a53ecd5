//! Whether ranks belong together, and which is the odd one if not. Pure.

use super::Hello;
use crate::launch::error::{LaunchError, Odd};
use std::collections::BTreeMap;

/// A rank that came, against those that are there: the world is rank 0's, and no rank comes twice.
pub(super) fn admits(first: &Hello, there: &BTreeMap<u64, Hello>, came: &Hello) -> Result<(), LaunchError> {
    let (rank, world) = (came.rank, first.world);
    if came.world != world || rank >= world {
        return Err(LaunchError::WorldDiffers { rank, found: came.world, world });
    }
    match there.get(&rank).or((rank == first.rank).then_some(first)) {
        Some(other) => Err(LaunchError::RankTwice { rank, first: other.who(), second: came.who() }),
        None => Ok(()),
    }
}

/// All ranks, by rank: what most have is right, rank 0's where no one has more; the first that differs is named.
pub(super) fn agree(ranks: &[Hello]) -> Result<(), LaunchError> {
    for what in [Odd::Version, Odd::Program, Odd::Lock, Odd::Data] {
        let mut counts = BTreeMap::<&str, usize>::new();
        for rank in ranks {
            *counts.entry(fact(what, rank)).or_default() += 1;
        }
        let mut right = ranks.first().map_or("", |rank| fact(what, rank));
        for (value, count) in &counts {
            if *count > counts.get(right).copied().unwrap_or(0) {
                right = value;
            }
        }
        let Some(odd) = ranks.iter().find(|rank| fact(what, rank) != right) else { continue };
        let shown = |text: &str| match text {
            "" => "none".to_string(),
            text => text.chars().take(16).collect(),
        };
        return Err(LaunchError::OddRank {
            rank: odd.rank,
            process: odd.who(),
            what,
            of: (counts[right] as u64, ranks.len() as u64),
            found: shown(fact(what, odd)),
            expected: shown(right),
        });
    }
    Ok(())
}

fn fact(what: Odd, rank: &Hello) -> &str {
    match what {
        Odd::Version => &rank.version,
        Odd::Program => &rank.program,
        Odd::Lock => &rank.lock,
        Odd::Data => &rank.data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(programs: &[&str]) -> Vec<Hello> {
        let of = |(rank, program): (usize, &&str)| Hello {
            rank: rank as u64,
            program: program.to_string(),
            host: "n".into(),
            ..Hello::default()
        };
        programs.iter().enumerate().map(of).collect()
    }

    #[test]
    fn the_rank_that_differs_from_most_is_the_odd_one() {
        let odd = |programs: &[&str]| agree(&ranks(programs)).err().map(|e| e.to_string());
        assert_eq!(odd(&["a", "a", "a"]), None);
        let words = |text: Option<String>| text.unwrap();
        assert!(
            words(odd(&["b", "a", "a"]))
                .starts_with("rank 0 (process 0 on n) has another program than all others")
        );
        assert!(words(odd(&["a", "a", "a", "b"])).starts_with("rank 3 "));
        assert!(
            words(odd(&["a", "b"]))
                .starts_with("rank 1 (process 0 on n) has another program than the other rank")
        );
        assert!(words(odd(&["a", "b", "a", "c"])).contains("than 2 of 4 ranks: b, and not a"));
    }

    #[test]
    fn a_lock_that_is_missing_is_odd_too() {
        let mut ranks = ranks(&["a", "a", "a"]);
        ranks[0].lock = "1".into();
        ranks[1].lock = "1".into();
        assert!(
            agree(&ranks)
                .unwrap_err()
                .to_string()
                .ends_with("another dspc.lock than all others: none, and not 1")
        );
    }
}
