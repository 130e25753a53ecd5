//! Text files: which they are, and what is in them. Ids are the business of `tokens`.

mod pattern;

use crate::error::Error;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A text file that was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Text {
    /// Where it was.
    pub path: PathBuf,
    /// What it holds.
    pub bytes: Vec<u8>,
}

impl Text {
    /// As characters.
    ///
    /// # Errors
    /// R0103.
    pub fn as_str(&self) -> Result<&str, Error> {
        std::str::from_utf8(&self.bytes)
            .map_err(|e| Error::DataNotUtf8 { path: self.path.clone(), offset: e.valid_up_to() })
    }
}

/// Files that the patterns name, relative to `root`: pattern by pattern, each pattern's files sorted, no file twice.
///
/// `*` stands for any run of characters of one name and `?` for one; names that begin with a dot only match a pattern that does.
///
/// # Errors
/// R0101 for a pattern that names nothing.
pub fn files(root: &Path, patterns: &[String]) -> Result<Vec<PathBuf>, Error> {
    let mut seen = BTreeSet::new();
    let mut files = Vec::new();
    for text in patterns {
        let found = pattern::expand(root, text);
        if found.is_empty() {
            return Err(Error::DataMissing { pattern: text.clone(), root: root.into() });
        }
        files.extend(found.into_iter().filter(|path| seen.insert(path.clone())));
    }
    Ok(files)
}

/// Reads the files that the patterns name.
///
/// # Errors
/// R0101, R0102, and R0104 where all of them are empty.
pub fn read(root: &Path, patterns: &[String]) -> Result<Vec<Text>, Error> {
    let texts = files(root, patterns)?
        .into_iter()
        .map(|path| match std::fs::read(&path) {
            Ok(bytes) => Ok(Text { path, bytes }),
            Err(source) => Err(Error::DataUnreadable { path, source }),
        })
        .collect::<Result<Vec<_>, _>>()?;
    if texts.iter().all(|text| text.bytes.is_empty()) {
        return Err(Error::DataEmpty { files: texts.len() });
    }
    Ok(texts)
}

/// The characters of the files that the patterns name, each once, sorted: the alphabet of `tokenizer: "chars"`.
///
/// # Errors
/// Those of [`read`]; R0103.
pub fn characters(patterns: &[String], root: &Path) -> Result<String, Error> {
    alphabet(&read(root, patterns)?)
}

fn alphabet(texts: &[Text]) -> Result<String, Error> {
    let mut ascii = [false; 128];
    let mut others = BTreeSet::new();
    for text in texts {
        for c in text.as_str()?.chars() {
            match ascii.get_mut(c as usize) {
                Some(seen) => *seen = true,
                None => _ = others.insert(c),
            }
        }
    }
    let plain = (0u8..128).filter(|&b| ascii[usize::from(b)]).map(char::from);
    Ok(plain.chain(others).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        dir
    }

    fn patterns(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| s.to_string()).collect()
    }

    #[test]
    fn files_are_sorted_and_none_comes_twice() {
        let dir = folder(&[
            ("t/b.txt", b"b"),
            ("t/a.txt", b"a"),
            ("t/.c.txt", b"c"),
            ("t/d.md", b"d"),
            ("u/a.txt", b"x"),
        ]);
        let names = |list: &[&str]| -> Vec<String> {
            files(dir.path(), &patterns(list))
                .unwrap()
                .iter()
                .map(|p| p.strip_prefix(dir.path()).unwrap().to_str().unwrap().into())
                .collect()
        };
        assert_eq!(names(&["t/*.txt"]), ["t/a.txt", "t/b.txt"]);
        assert_eq!(names(&["t/b.txt", "*/?.txt"]), ["t/b.txt", "t/a.txt", "u/a.txt"]);
        assert_eq!(names(&["./t/d.*"]), ["t/d.md"]);
    }

    #[test]
    fn a_pattern_that_names_nothing_is_an_error() {
        let dir = folder(&[("a.txt", b"a")]);
        let error = read(dir.path(), &patterns(&["a.txt", "wiki/*.txt"])).unwrap_err();
        assert_eq!(error.code(), "R0101");
        assert!(error.to_string().starts_with("no file matches `wiki/*.txt` in "));
        assert_eq!(error.exit_code(), 5);
    }

    #[test]
    fn a_folder_is_no_text() {
        let dir = folder(&[("t/a.txt", b"a")]);
        assert_eq!(read(dir.path(), &patterns(&["t"])).unwrap_err().code(), "R0101");
    }

    #[test]
    fn empty_text_is_an_error() {
        let dir = folder(&[("a.txt", b""), ("b.txt", b"")]);
        let error = read(dir.path(), &patterns(&["*.txt"])).unwrap_err();
        assert_eq!(error.to_string(), "the text is empty: 2 file(s), no character");
    }

    #[test]
    fn the_alphabet_is_sorted() {
        let dir = folder(&[("a.txt", "zaß\n".as_bytes()), ("b.txt", "éa".as_bytes())]);
        let texts = read(dir.path(), &patterns(&["*.txt"])).unwrap();
        assert_eq!(alphabet(&texts).unwrap(), "\nazßé");
    }

    #[test]
    fn bytes_that_are_no_text_are_found() {
        let dir = folder(&[("a.txt", b"ok \xff")]);
        let texts = read(dir.path(), &patterns(&["*.txt"])).unwrap();
        let error = alphabet(&texts).unwrap_err();
        assert_eq!(error.code(), "R0103");
        assert!(error.to_string().ends_with("a.txt` is not UTF-8 text: byte 3 begins no character"));
    }
}
