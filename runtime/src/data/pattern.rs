//! File patterns: `*` and `?` within one name. No `**`, no braces, no escapes.

use std::path::{Component, Path, PathBuf};

/// Regular files that the pattern names, sorted.
pub(super) fn expand(root: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![root.to_path_buf()];
    for component in Path::new(pattern).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => {
                let name = name.to_string_lossy();
                found = found.iter().flat_map(|dir| step(dir, &name)).collect();
            }
            Component::Prefix(_) | Component::RootDir | Component::ParentDir => {
                for dir in &mut found {
                    dir.push(component);
                }
            }
        }
    }
    found.retain(|path| path.is_file());
    found.sort();
    found
}

fn step(dir: &Path, name: &str) -> Vec<PathBuf> {
    if !name.contains(['*', '?']) {
        return vec![dir.join(name)];
    }
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| {
            let file = entry.file_name();
            let file = file.to_string_lossy();
            (name.starts_with('.') || !file.starts_with('.')) && matches(name, &file)
        })
        .map(|entry| entry.path())
        .collect()
}

/// Whether a name fits. Only the last `*` is ever tried again, so the time is at most the product of the lengths.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, taken)) = star else {
                    return false;
                };
                star = Some((at, taken + 1));
                p = at + 1;
                n = taken + 1;
            }
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_patterns() {
        let cases = [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("*.txt", "a.txt", true),
            ("*.txt", "a.txt.gz", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbY", false),
            ("??", "é1", true),
            ("?", "", false),
            ("**a", "ba", true),
        ];
        for (pattern, name, fits) in cases {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_recursive_definition(pattern in "[ab*?]{0,7}", name in "[ab]{0,9}") {
            fn plain(p: &[u8], n: &[u8]) -> bool {
                match (p.first(), n.first()) {
                    (None, None) => true,
                    (Some(b'*'), _) => plain(&p[1..], n) || (!n.is_empty() && plain(p, &n[1..])),
                    (Some(b'?'), Some(_)) => plain(&p[1..], &n[1..]),
                    (Some(a), Some(b)) if a == b => plain(&p[1..], &n[1..]),
                    _ => false,
                }
            }
            prop_assert_eq!(matches(&pattern, &name), plain(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
