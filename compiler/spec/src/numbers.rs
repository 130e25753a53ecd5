//! Numbers as a user would write them.

/// The shortest text that reads back as the same number: `0.1`, `1e-8`, `500M`.
pub(crate) fn number(value: f64) -> String {
    // 1000 and 2000 stay as they are: a thousand is said in full.
    for (name, factor, from) in [("B", 1e9, 1e9), ("M", 1e6, 1e6), ("K", 1e3, 1e4)] {
        if value.abs() >= from && value % factor == 0.0 {
            return format!("{}{name}", value / factor);
        }
    }
    let plain = format!("{value}");
    let scientific = format!("{value:e}");
    if value.fract() != 0.0 && scientific.len() < plain.len() { scientific } else { plain }
}

/// `10%`.
pub(crate) fn share(value: f64) -> String {
    // Nine digits after the point: 0.07 × 100 is 7.000000000000001.
    let percent = (value * 1e11).round() / 1e9;
    match percent / 100.0 == value {
        true => format!("{percent}%"),
        false => number(value),
    }
}

/// `8GiB`, `1.5GB`.
pub(crate) fn bytes(value: u64) -> String {
    const NAMES: [(&str, u64); 8] = [
        ("TiB", 1 << 40),
        ("TB", 1_000_000_000_000),
        ("GiB", 1 << 30),
        ("GB", 1_000_000_000),
        ("MiB", 1 << 20),
        ("MB", 1_000_000),
        ("KiB", 1 << 10),
        ("kB", 1000),
    ];
    match NAMES.iter().find(|(_, factor)| value > 0 && value.is_multiple_of(*factor)) {
        Some((name, factor)) => format!("{}{name}", value / factor),
        None => format!("{}kB", value as f64 / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_exact() {
        let cases = [
            (0.1, "0.1"),
            (1e-8, "1e-8"),
            (3e-4, "3e-4"),
            (1e-3, "1e-3"),
            (5e8, "500M"),
            (1000.0, "1000"),
            (65536.0, "65536"),
            (0.0, "0"),
            (100_000.0, "100K"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn shares_show_their_percent() {
        assert_eq!(share(0.07), "7%");
        assert_eq!(share(0.025), "2.5%");
        assert_eq!(share(1.0 / 3.0), "0.3333333333333333");
    }

    #[test]
    fn bytes_take_the_largest_unit_that_divides() {
        assert_eq!(bytes(8 << 30), "8GiB");
        assert_eq!(bytes(31_000_000_000), "31GB");
        assert_eq!(bytes(1536), "1.536kB");
    }
}
