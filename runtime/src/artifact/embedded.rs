//! An artifact that lies in a binary: its files are bytes of the program that runs them.
//!
//! A system loads machine code from files alone, so the kernels lie in a private temporary folder (`$TMPDIR`) while they are loaded, and no longer.

use super::{Artifact, KernelFile, PROGRAM_FILE, file_name, parse};
use crate::error::Error;
use crate::session::Session;
use std::path::{Path, PathBuf};

/// The files of an artifact, in memory: what `include_bytes!` gives.
#[derive(Clone, Copy, Debug)]
pub struct Embedded<'a> {
    /// `program.json`
    pub program: &'a [u8],
    /// The kernel files that the program names.
    pub kernels: &'a [KernelFile<'a>],
}

impl Embedded<'_> {
    /// A session on this machine's CPU, with initial weights.
    ///
    /// # Errors
    /// R0202, R0203, and those of [`Artifact::cpu`]; R0301, R0302 if the temporary folder cannot be written.
    pub fn session(&self, threads: usize) -> Result<Session, Error> {
        let program = parse(self.program, PathBuf::from(PROGRAM_FILE))?;
        let folder = tempfile::Builder::new()
            .prefix("dspc-")
            .tempdir()
            .map_err(|source| Error::write(&std::env::temp_dir(), source))?;
        self.unpack(folder.path())?;
        let artifact = Artifact { directory: folder.path().into(), program };
        // What is loaded stays loaded when its file goes.
        let cpu = artifact.cpu(threads)?;
        Session::new(&artifact.program, cpu)
    }

    fn unpack(&self, folder: &Path) -> Result<(), Error> {
        for kernels in self.kernels {
            let name = file_name(kernels.name).ok_or_else(|| Error::ArtifactMalformed {
                path: PROGRAM_FILE.into(),
                reason: format!("{:?} is no file name", kernels.name),
            })?;
            let path = folder.join(name);
            std::fs::write(&path, kernels.bytes).map_err(|source| Error::write(&path, source))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::bigram;

    struct Files {
        program: Vec<u8>,
        name: String,
        kernels: Vec<u8>,
    }

    fn files() -> (Files, Artifact) {
        let dir = tempfile::tempdir().unwrap();
        let artifact = bigram(dir.path());
        let name = artifact.program.targets[0].file.clone();
        let file = |name: &str| std::fs::read(artifact.directory.join(name)).unwrap();
        (Files { program: file(PROGRAM_FILE), kernels: file(&name), name }, artifact)
    }

    fn session(files: &Files) -> Result<Session, Error> {
        let kernels = [KernelFile { name: &files.name, bytes: &files.kernels }];
        Embedded { program: &files.program, kernels: &kernels }.session(1)
    }

    /// The folder that the artifact was written to is gone by then, and so is the one that it was unpacked to.
    #[test]
    fn an_artifact_in_memory_is_the_artifact() {
        let (files, artifact) = files();
        assert!(!artifact.directory.exists());
        let mut session = session(&files).unwrap();
        assert_eq!(session.program(), &artifact.program);
        let ids = vec![1; (artifact.program.training.batch * artifact.program.data.sequence) as usize];
        assert!(session.step(&ids, &ids).unwrap().finite);
    }

    #[test]
    fn what_is_damaged_or_missing_is_refused() {
        let code = |change: &dyn Fn(&mut Files)| {
            let (mut files, _) = files();
            change(&mut files);
            session(&files).err().map(|error| error.code())
        };
        assert_eq!(code(&|f| f.kernels[100] ^= 1), Some("R0204"));
        assert_eq!(code(&|f| f.name = "other.so".into()), Some("R0201"));
        assert_eq!(code(&|f| f.name = "../other.so".into()), Some("R0202"));
        assert_eq!(code(&|f| f.program.truncate(50)), Some("R0202"));
        assert_eq!(code(&|f| f.program = br#"{"format_version": 99}"#.to_vec()), Some("R0203"));
    }
}
