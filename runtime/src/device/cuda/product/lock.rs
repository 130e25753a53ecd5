//! `dspc.lock`: which algorithm a product takes on which card, measured once.
//!
//! A key says all that the choice follows from: the card, the library's version, the product. A choice is `own` for our kernel, or the
//! library's own description of an algorithm, 64 bytes in hex.

use super::Key;
use super::plan::Algorithm;
use crate::error::Error;
use crate::{artifact, durable};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

const FORMAT: u32 = 1;

/// What runs a product.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in super::super) enum Choice {
    /// Our kernel.
    Own,
    /// An algorithm of the library.
    Library(Algorithm),
}

/// The file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(in super::super) struct Lock {
    format: u32,
    algorithms: BTreeMap<String, Entry>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct Entry {
    choice: String,
    /// Microseconds when it was measured.
    us: f64,
}

impl Lock {
    /// The file's contents; empty where there is none.
    ///
    /// # Errors
    /// R0705.
    pub(in super::super) fn read(path: &Path) -> Result<Self, Error> {
        let malformed = |reason: String| Error::LockMalformed { path: path.into(), reason };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self { format: FORMAT, algorithms: BTreeMap::new() });
            }
            Err(error) => return Err(malformed(error.to_string())),
        };
        let lock: Self = serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
        if lock.format != FORMAT {
            return Err(malformed(format!("it has format {}, and this version reads {FORMAT}", lock.format)));
        }
        match lock.algorithms.iter().find(|(_, entry)| choice(&entry.choice).is_none()) {
            Some((key, _)) => Err(malformed(format!("no algorithm is written so: `{key}`"))),
            None => Ok(lock),
        }
    }

    /// Writes it, sorted by key.
    ///
    /// # Errors
    /// R0301, R0302.
    pub(in super::super) fn write(&self, path: &Path) -> Result<(), Error> {
        durable::replace(path, &[&artifact::to_json(self, path)?])
    }

    pub(in super::super) fn get(&self, host: &str, key: &Key) -> Option<Choice> {
        choice(&self.algorithms.get(&full(host, key))?.choice)
    }

    pub(in super::super) fn set(&mut self, host: &str, key: &Key, choice: Choice, us: f64) {
        let choice = match choice {
            Choice::Own => "own".to_string(),
            Choice::Library(algorithm) => algorithm.data.iter().map(|word| format!("{word:016x}")).collect(),
        };
        let us = (us * 100.0).round() / 100.0;
        self.algorithms.insert(full(host, key), Entry { choice, us });
    }
}

fn full(host: &str, key: &Key) -> String {
    format!("{host}: {key}")
}

fn choice(text: &str) -> Option<Choice> {
    if text == "own" {
        return Some(Choice::Own);
    }
    let words: Vec<u64> = (0..8)
        .map(|i| text.get(16 * i..16 * (i + 1)).and_then(|word| u64::from_str_radix(word, 16).ok()))
        .collect::<Option<_>>()?;
    let data = words.try_into().ok()?;
    (text.len() == 128).then_some(Choice::Library(Algorithm { data }))
}

#[cfg(test)]
mod tests {
    use super::super::{ElementTypeKey, ExtraKey, SideKey};
    use super::*;

    fn key(m: u64) -> Key {
        let side = SideKey { dtype: ElementTypeKey::Bf16, stride: 64, transposed: false, align: 256 };
        Key {
            m,
            n: 64,
            k: 64,
            tf32: false,
            accumulate: false,
            a: side,
            b: side,
            c: side,
            extra: ExtraKey::Nothing,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dspc.lock");
        let mut lock = Lock::read(&path).unwrap();
        let algorithm = Choice::Library(Algorithm { data: [u64::MAX, 1, 2, 3, 4, 5, 6, 1 << 63] });
        lock.set("a card", &key(1), algorithm, 12.3456);
        lock.set("a card", &key(2), Choice::Own, 1.0);
        lock.write(&path).unwrap();
        let read = Lock::read(&path).unwrap();
        assert_eq!(read.get("a card", &key(1)), Some(algorithm));
        assert_eq!(read.get("a card", &key(2)), Some(Choice::Own));
        assert_eq!(read.get("a card", &key(3)), None);
        assert_eq!(read.get("another", &key(1)), None);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("a card: 1×64×64 bf16/64@256"), "{text}");
        read.write(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn a_file_that_is_no_lock_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dspc.lock");
        for text in [
            "",
            "[]",
            r#"{"format": 9, "algorithms": {}}"#,
            r#"{"format": 1, "algorithms": {"k": {"choice": "fast", "us": 1}}}"#,
            r#"{"format": 1, "algorithms": {"k": {"choice": "ééééééééééééé", "us": 1}}}"#,
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(Lock::read(&path).unwrap_err().code(), "R0705", "{text}");
        }
    }
}
