//! Slurm's short ways to write many hosts and many counts: `gpu[01-04,07],login` and `8(x3),4`.

/// The first host of a list.
pub(super) fn first(list: &str) -> Option<String> {
    let list = list.trim();
    let Some(open) = list.find('[') else {
        return list.split(',').next().map(str::to_string).filter(|host| !host.is_empty());
    };
    if let Some(comma) = list.find(',').filter(|&comma| comma < open) {
        return Some(list[..comma].to_string()).filter(|host| !host.is_empty());
    }
    // What may follow the brackets belongs to the name, up to the next comma; it may have brackets of its own.
    let close = open + list[open..].find(']')?;
    let inner = list[open + 1..close].split([',', '-']).next().filter(|number| !number.is_empty())?;
    let rest = &list[close + 1..];
    let tail = if rest.is_empty() || rest.starts_with(',') { String::new() } else { first(rest)? };
    Some(format!("{}{inner}{tail}", &list[..open]))
}

/// The count of the node `index` in `8(x3),4`.
pub(super) fn count_at(list: &str, index: u64) -> Option<u64> {
    let mut before = 0u64;
    for part in list.split(',') {
        let (count, times) = match part.trim().split_once("(x") {
            Some((count, times)) => (count, times.strip_suffix(')')?.parse().ok()?),
            None => (part.trim(), 1u64),
        };
        let count: u64 = count.parse().ok()?;
        before = before.checked_add(times)?;
        if index < before {
            return Some(count);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_host_of_a_list() {
        let cases = [
            ("n1", Some("n1")),
            ("n1,n2", Some("n1")),
            ("gpu[07-08]", Some("gpu07")),
            ("n[1-2,05-07],m3", Some("n1")),
            ("m3,n[1-2]", Some("m3")),
            ("rack[2-3]n[11-12]", Some("rack2n11")),
            ("n[3]-ib,x", Some("n3-ib")),
            ("", None),
            ("n[", None),
            ("n[]", None),
        ];
        for (list, host) in cases {
            assert_eq!(first(list).as_deref(), host, "{list}");
        }
    }

    #[test]
    fn counts_that_repeat() {
        assert_eq!(
            [0, 1, 2, 3, 4].map(|i| count_at("8(x3),4", i)),
            [Some(8), Some(8), Some(8), Some(4), None]
        );
        assert_eq!(count_at("2", 0), Some(2));
        for wrong in ["", "a", "2(x", "2(xb)", "2(x18446744073709551615),2(x2)"] {
            assert_eq!(count_at(wrong, u64::MAX), None, "{wrong}");
        }
    }
}
