//! "did you mean": the nearest of some names.

/// The known name nearest to `word`, if near enough to be what was meant.
///
/// Damerau-Levenshtein distance at most a third of the word's length (at least one); ties go to the first.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(word, name), name))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    const KNOWN: [&str; 5] = ["batch", "micro_batch", "steps", "clip", "eval"];

    #[test]
    fn a_slip_of_the_finger_is_found() {
        for (word, meant) in
            [("bacth", "batch"), ("step", "steps"), ("micro_bach", "micro_batch"), ("clop", "clip")]
        {
            assert_eq!(nearest(word, KNOWN), Some(meant), "{word}");
        }
    }

    #[test]
    fn another_word_is_not() {
        for word in ["optimizer", "x", "", "precision"] {
            assert_eq!(nearest(word, KNOWN), None, "{word}");
        }
    }

    #[test]
    fn a_tie_goes_to_the_first() {
        assert_eq!(nearest("ab", ["aa", "bb", "ab_"]), Some("aa"));
        assert_eq!(nearest("aa", ["ab", "aa"]), Some("aa"));
    }
}
