//! `commit-N.json`: the proof that a checkpoint is whole.

use crate::artifact::to_json;
use crate::durable;
use crate::error::Error;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const FORMAT: u32 = 1;

/// Every file of a checkpoint.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Commit {
    format: u32,
    step: u64,
    files: Vec<FileEntry>,
    /// BLAKE3 of the lines above, so that a changed bit here shows too.
    hash: String,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEntry {
    /// Relative to the checkpoint's folder, with `/`.
    path: String,
    bytes: u64,
    blake3: String,
}

/// N of `commit-N.json`, written as we write it.
pub(super) fn step_of(file_name: &str) -> Option<u64> {
    let digits = file_name.strip_prefix("commit-")?.strip_suffix(".json")?;
    let step: u64 = digits.parse().ok()?;
    (step.to_string() == digits).then_some(step)
}

fn path(run_dir: &Path, step: u64) -> PathBuf {
    run_dir.join(format!("commit-{step}.json"))
}

impl Commit {
    /// Of the files in a folder, sorted by path.
    pub(super) fn of(dir: &Path, step: u64) -> Result<Self, Error> {
        let mut files = Vec::new();
        list(dir, "", &mut files).map_err(|e| Error::write(dir, e))?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let mut commit = Self { format: FORMAT, step, files, hash: String::new() };
        commit.hash = commit.own_hash();
        Ok(commit)
    }

    pub(super) fn write(&self, run_dir: &Path) -> Result<(), Error> {
        let path = path(run_dir, self.step);
        durable::replace(&path, &[&to_json(self, &path)?])
    }

    pub(super) fn remove(run_dir: &Path, step: u64) -> Result<(), Error> {
        let path = path(run_dir, step);
        match std::fs::remove_file(&path) {
            Ok(()) => durable::sync_folder(run_dir),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::write(&path, e)),
        }
    }

    /// Reads a commit; the error says what is wrong with it.
    pub(super) fn read(run_dir: &Path, step: u64) -> Result<Self, String> {
        let name = format!("commit-{step}.json");
        let bytes = std::fs::read(path(run_dir, step))
            .map_err(|e| format!("{name} beside it cannot be read: {e}"))?;
        let commit: Self = serde_json::from_slice(&bytes).map_err(|e| format!("{name}: {e}"))?;
        if commit.format != FORMAT {
            return Err(format!("{name} has format {}, and this runtime reads {FORMAT}", commit.format));
        }
        if commit.step != step || commit.hash != commit.own_hash() {
            return Err(format!("{name} was changed"));
        }
        Ok(commit)
    }

    /// Checks the files; the error names the first that differs.
    pub(super) fn verify(&self, dir: &Path) -> Result<(), String> {
        for entry in &self.files {
            let path = dir.join(&entry.path);
            let size = std::fs::metadata(&path).map_err(|e| format!("{}: {e}", entry.path))?.len();
            if size != entry.bytes {
                return Err(format!("{} has {size} bytes, not {}", entry.path, entry.bytes));
            }
            let hash = hash_file(&path).map_err(|e| format!("{}: {e}", entry.path))?;
            if hash != entry.blake3 {
                return Err(format!("{} was changed", entry.path));
            }
        }
        Ok(())
    }

    fn own_hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.step.to_le_bytes());
        for file in &self.files {
            hasher.update(format!("{} {} {}\n", file.blake3, file.bytes, file.path).as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

fn hash_file(path: &Path) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(std::fs::File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

fn list(dir: &Path, prefix: &str, files: &mut Vec<FileEntry>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            list(&entry.path(), &format!("{path}/"), files)?;
        } else {
            files.push(FileEntry { path, bytes: entry.metadata()?.len(), blake3: hash_file(&entry.path())? });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_commits() {
        assert_eq!(step_of("commit-120.json"), Some(120));
        for name in
            ["commit-0120.json", "commit-.json", "commit-1.json.tmp", "commit--1.json", "commit-+1.json"]
        {
            assert_eq!(step_of(name), None, "{name}");
        }
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("checkpoint-7");
        std::fs::create_dir_all(inner.join("dspc")).unwrap();
        std::fs::write(inner.join("a"), b"abc").unwrap();
        std::fs::write(inner.join("dspc/b"), b"").unwrap();
        Commit::of(&inner, 7).unwrap().write(dir.path()).unwrap();
        let verify = || Commit::read(dir.path(), 7).and_then(|c| c.verify(&inner));
        assert_eq!(verify(), Ok(()));

        let file = dir.path().join("commit-7.json");
        let whole = std::fs::read(&file).unwrap();
        let mut accepted = Vec::new();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&file, &bytes).unwrap();
            if verify().is_ok() {
                accepted.push(whole[bit / 8]);
            }
        }
        // White space may become other white space; nothing else may change.
        assert!(accepted.iter().all(u8::is_ascii_whitespace), "{accepted:?}");
        std::fs::write(&file, &whole).unwrap();

        std::fs::write(inner.join("a"), b"abd").unwrap();
        assert_eq!(verify(), Err("a was changed".into()));
        std::fs::write(inner.join("a"), b"ab").unwrap();
        assert_eq!(verify(), Err("a has 2 bytes, not 3".into()));
        std::fs::remove_file(inner.join("a")).unwrap();
        assert!(verify().unwrap_err().starts_with("a: "));
        assert!(
            Commit::read(dir.path(), 8).unwrap_err().starts_with("commit-8.json beside it cannot be read")
        );
    }
}
