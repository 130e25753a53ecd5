//! Files that are there whole or not at all: written under another name, synced, then renamed.

use crate::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Writes a file and waits until the disk has it.
pub(crate) fn write_synced(path: &Path, parts: &[&[u8]]) -> Result<(), Error> {
    let write = || {
        let mut file = File::create(path)?;
        for part in parts {
            file.write_all(part)?;
        }
        file.sync_all()
    };
    write().map_err(|e| Error::write(path, e))
}

/// Writes a file that replaces another in one moment.
pub(crate) fn replace(path: &Path, parts: &[&[u8]]) -> Result<(), Error> {
    let temporary = beside(path, "tmp");
    let result = write_synced(&temporary, parts).and_then(|()| rename(&temporary, path));
    if result.is_err() {
        _ = std::fs::remove_file(&temporary);
    }
    result
}

/// Renames within a folder, and waits until the disk has it.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::rename(from, to).map_err(|e| Error::write(to, e))?;
    to.parent().map_or(Ok(()), sync_folder)
}

/// Waits until the disk has a folder's names.
pub(crate) fn sync_folder(path: &Path) -> Result<(), Error> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| Error::write(path, e))
}

/// Makes a folder and those above it.
pub(crate) fn make_folder(path: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(path).map_err(|e| Error::write(path, e))
}

/// A name beside another: this process's own, so that two processes never share it.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.{suffix}", std::process::id()));
    path.with_file_name(name)
}

/// Fills a folder under another name, then puts it in the place of `path`. On an error, nothing of it stays.
pub(crate) fn replace_folder(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<(), Error> {
    let temporary = beside(path, "tmp");
    let result = remove_folder(&temporary)
        .and_then(|()| make_folder(&temporary))
        .and_then(|()| fill(&temporary))
        .and_then(|()| sync_folder(&temporary))
        .and_then(|()| exchange(&temporary, path));
    if result.is_err() {
        _ = std::fs::remove_dir_all(&temporary);
    }
    result
}

/// A folder cannot be renamed over one with contents: the old one steps aside first.
fn exchange(temporary: &Path, path: &Path) -> Result<(), Error> {
    if !path.exists() {
        return rename(temporary, path);
    }
    let old = beside(path, "old");
    remove_folder(&old)?;
    rename(path, &old)?;
    if let Err(error) = rename(temporary, path) {
        _ = std::fs::rename(&old, path);
        return Err(error);
    }
    remove_folder(&old)
}

/// Removes a folder if it is there.
pub(crate) fn remove_folder(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::write(path, e)),
        _ => Ok(()),
    }
}
