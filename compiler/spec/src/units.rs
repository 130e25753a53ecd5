//! Units of literals.

use crate::errors::{Mistakes, UnknownUnit};
use dspc_source::Span;

/// What a number measures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dimension {
    /// A count or a bare number.
    Plain,
    /// A part of a whole.
    Share,
    /// Bytes.
    Bytes,
    /// Seconds.
    Time,
}

impl Dimension {
    /// For messages.
    pub fn noun(self) -> &'static str {
        match self {
            Dimension::Plain => "plain numbers",
            Dimension::Share => "percent",
            Dimension::Bytes => "bytes",
            Dimension::Time => "time",
        }
    }
}

/// A unit.
pub(crate) struct Unit {
    /// As written after a number.
    pub name: &'static str,
    /// What it measures.
    pub dimension: Dimension,
    /// How many of the dimension's base it is.
    pub factor: f64,
}

const fn unit(name: &'static str, dimension: Dimension, factor: f64) -> Unit {
    Unit { name, dimension, factor }
}

/// All units.
pub(crate) const UNITS: &[Unit] = &[
    unit("K", Dimension::Plain, 1e3),
    unit("M", Dimension::Plain, 1e6),
    unit("B", Dimension::Plain, 1e9),
    unit("%", Dimension::Share, 0.01),
    unit("kB", Dimension::Bytes, 1e3),
    unit("MB", Dimension::Bytes, 1e6),
    unit("GB", Dimension::Bytes, 1e9),
    unit("TB", Dimension::Bytes, 1e12),
    unit("KiB", Dimension::Bytes, 1024.0),
    unit("MiB", Dimension::Bytes, 1048576.0),
    unit("GiB", Dimension::Bytes, 1073741824.0),
    unit("TiB", Dimension::Bytes, 1099511627776.0),
    unit("ms", Dimension::Time, 1e-3),
    unit("s", Dimension::Time, 1.0),
    unit("min", Dimension::Time, 60.0),
    unit("h", Dimension::Time, 3600.0),
];

/// The number with its unit applied; `None` if there is no such unit, which is reported.
pub(crate) fn apply(value: f64, unit: &str, span: Span, mistakes: &mut Mistakes) -> Option<(f64, Dimension)> {
    if unit.is_empty() {
        return Some((value, Dimension::Plain));
    }
    match UNITS.iter().find(|known| known.name == unit) {
        // Dividing keeps 7% the double nearest to 0.07.
        Some(known) if known.dimension == Dimension::Share => Some((value / 100.0, known.dimension)),
        Some(known) => Some((value * known.factor, known.dimension)),
        None => {
            let meant = meant(unit).map(|name| format!("{value}{name}"));
            mistakes.add(UnknownUnit { unit: unit.to_string(), number: span, meant });
            None
        }
    }
}

/// The unit that was meant: another case, another word, or a letter off.
fn meant(unit: &str) -> Option<&'static str> {
    let words = [
        ("G", "B"),
        ("T", "TB"),
        ("sec", "s"),
        ("seconds", "s"),
        ("minutes", "min"),
        ("m", "min"),
        ("hours", "h"),
        ("percent", "%"),
    ];
    let names = || UNITS.iter().map(|known| known.name);
    names()
        .find(|name| name.eq_ignore_ascii_case(unit))
        .or_else(|| words.into_iter().find(|(word, _)| *word == unit).map(|(_, name)| name))
        .or_else(|| if unit.len() > 1 { dspc_source::nearest(unit, names()) } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dspc_source::FileId;

    #[test]
    fn counts_are_decimal_and_bytes_both() {
        let mut mistakes = Mistakes::default();
        let mut read = |value, unit| apply(value, unit, Span::new(FileId(0), 0, 0), &mut mistakes);
        assert_eq!(read(200.0, "M"), Some((2e8, Dimension::Plain)));
        assert_eq!(read(1.0, "GB"), Some((1e9, Dimension::Bytes)));
        assert_eq!(read(1.0, "GiB"), Some((1073741824.0, Dimension::Bytes)));
        assert_eq!(read(7.0, "%"), Some((0.07, Dimension::Share)));
        assert_eq!(read(10.0, "min"), Some((600.0, Dimension::Time)));
        assert_eq!(read(10.0, "parsec"), None);
        assert!(mistakes.has_errors());
    }

    #[test]
    fn another_case_is_what_was_meant() {
        assert_eq!(meant("gb"), Some("GB"));
        assert_eq!(meant("k"), Some("K"));
        assert_eq!(meant("Gib"), Some("GiB"));
        assert_eq!(meant("q"), None);
    }
}
