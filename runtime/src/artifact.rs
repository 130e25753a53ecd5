//! A `.dspx` folder: a program for each family of devices, `program.json` for CPUs and `program.cuda.json` for GPUs, and one kernel file a target.
//!
//! The version is read before anything else is believed; a kernel file is used only if it has the hash that the program states.

mod cpu_features;
mod embedded;

pub use cpu_features::cpu_level;
pub use embedded::Embedded;

use crate::communicator::{Communicator, Solo};
use crate::device::cpu::Cpu;
use crate::device::cuda::{Card, Cuda};
use crate::device::{Device, DeviceOptions, Wanted};
use crate::durable;
use crate::error::Error;
use dspc_program::{FORMAT_VERSION, Family, Program, Target};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// More ranks than any program is for.
const WORLD_MAX: u64 = 1 << 20;

/// The file of the CPU's program.
pub(crate) const PROGRAM_FILE: &str = "program.json";

/// A family's file in an artifact.
pub fn program_file(family: Family) -> &'static str {
    match family {
        Family::Cpu => PROGRAM_FILE,
        Family::Cuda => "program.cuda.json",
    }
}

/// An artifact that was read.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// Its folder.
    pub directory: PathBuf,
    /// Its program.
    pub program: Program,
}

/// A kernel file to write.
#[derive(Clone, Copy, Debug)]
pub struct KernelFile<'a> {
    /// [`Target::file`] of the target that it is for.
    pub name: &'a str,
    /// Its contents.
    pub bytes: &'a [u8],
}

/// Reads an artifact's program for a family of devices. Kernel files are read when a device is made.
///
/// # Errors
/// R0201, R0202, R0203.
pub fn read(directory: &Path, family: Family) -> Result<Artifact, Error> {
    let path = directory.join(program_file(family));
    let bytes =
        std::fs::read(&path).map_err(|source| Error::ArtifactUnreadable { path: path.clone(), source })?;
    Ok(Artifact { directory: directory.into(), program: parse(&bytes, path)? })
}

/// The families that an artifact has a program for.
pub fn families(directory: &Path) -> Vec<Family> {
    let there = |family: &Family| directory.join(program_file(*family)).is_file();
    [Family::Cpu, Family::Cuda].into_iter().filter(there).collect()
}

/// Reads the program for the device that is wanted. `auto` takes the GPU where there is one that the artifact has kernels for, else the CPU;
/// an artifact for one family runs on that one or not at all.
///
/// # Errors
/// Those of [`read`]; R0205 for a device that the artifact has no program for, R0606 to R0609 for a GPU that cannot be used.
pub fn open(directory: &Path, wanted: Wanted) -> Result<Artifact, Error> {
    let present = families(directory);
    let family = match (wanted, &present[..]) {
        // Nothing there: the error of reading says it best.
        (_, []) => Family::Cpu,
        (Wanted::Cpu, _) => Family::Cpu,
        (Wanted::Cuda, _) => Family::Cuda,
        (Wanted::Auto, [only]) => *only,
        (Wanted::Auto, _) => match read(directory, Family::Cuda)?.gpu_target() {
            Ok(_) => Family::Cuda,
            Err(_) => Family::Cpu,
        },
    };
    if family == Family::Cuda {
        Card::find()?.targets()?;
    }
    if !present.is_empty() && !present.contains(&family) {
        let wanted = match family {
            Family::Cpu => "cpu",
            Family::Cuda => Card::find()?.targets()?[0],
        };
        let programs =
            present.iter().map(|&family| read(directory, family)).collect::<Result<Vec<_>, _>>()?;
        let names = programs.iter().flat_map(|a| &a.program.targets).map(|t| t.name.as_str());
        let present = names.collect::<Vec<_>>().join(", ");
        return Err(Error::TargetMissing { wanted: wanted.into(), present });
    }
    read(directory, family)
}

/// A program from the contents of its file; `path` is what an error calls it.
fn parse(bytes: &[u8], path: PathBuf) -> Result<Program, Error> {
    let malformed = |reason: String| Error::ArtifactMalformed { path: path.clone(), reason };
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| malformed(e.to_string()))?;
    let version = value.get("format_version").and_then(serde_json::Value::as_u64);
    match version {
        Some(version) if version == u64::from(FORMAT_VERSION) => {}
        Some(found) => return Err(Error::ArtifactVersion { path, found, expected: FORMAT_VERSION }),
        None => return Err(malformed("it states no format version".into())),
    }
    let program: Program = serde_json::from_value(value).map_err(|e| malformed(e.to_string()))?;
    check_numbers(&program).map_err(malformed)?;
    Ok(program)
}

/// The numbers that the training loop divides by or multiplies.
fn check_numbers(program: &Program) -> Result<(), String> {
    let (data, training) = (&program.data, &program.training);
    let positive = [
        ("sequence", data.sequence),
        ("batch", training.batch),
        ("micro_batch", training.micro_batch),
        ("accumulation", training.accumulation),
    ];
    for (name, value) in positive {
        if value == 0 || value > u64::from(u32::MAX) {
            return Err(format!("`{name}` is {value}"));
        }
    }
    let ranks = program.mesh.iter().find(|(axis, _)| axis == "data").map_or(1, |&(_, size)| size);
    let batch = training.micro_batch.checked_mul(training.accumulation).and_then(|n| n.checked_mul(ranks));
    if batch != Some(training.batch) {
        return Err("`batch` is not `micro_batch` times `accumulation` times ranks".into());
    }
    let world = program.mesh.iter().try_fold(1u64, |n, &(_, size)| n.checked_mul(size));
    if world.is_none_or(|world| world == 0 || world > WORLD_MAX) {
        return Err("`mesh` has no number of ranks".into());
    }
    if !(0.0..1.0).contains(&data.holdout) {
        return Err(format!("`holdout` is {}", data.holdout));
    }
    Ok(())
}

impl Artifact {
    /// The kernel file of a target, its hash checked.
    ///
    /// # Errors
    /// R0201, R0202, R0204, R0205.
    pub fn kernels(&self, target: &str) -> Result<(&Target, PathBuf), Error> {
        let targets = &self.program.targets;
        let Some(target) = targets.iter().find(|t| t.name == target) else {
            let names: Vec<&str> = targets.iter().map(|t| t.name.as_str()).collect();
            let present = if names.is_empty() { "none".into() } else { names.join(", ") };
            return Err(Error::TargetMissing { wanted: target.into(), present });
        };
        let path = self.directory.join(file_name(&target.file).ok_or_else(|| Error::ArtifactMalformed {
            path: self.directory.join(PROGRAM_FILE),
            reason: format!("{:?} is no file name", target.file),
        })?);
        let bytes = std::fs::read(&path)
            .map_err(|source| Error::ArtifactUnreadable { path: path.clone(), source })?;
        let found = hash(&bytes);
        if found != target.hash {
            return Err(Error::ArtifactHash { path, found, expected: target.hash.clone() });
        }
        Ok((target, path))
    }

    /// The program on this machine's CPU.
    ///
    /// # Errors
    /// Those of [`Self::kernels`] and [`Cpu::new`]; R0206.
    pub fn cpu(&self, threads: usize) -> Result<Cpu, Error> {
        self.cpu_of_rank(threads, Arc::new(Solo::default()))
    }

    /// One rank of the program on this machine's CPU.
    ///
    /// # Errors
    /// Those of [`Self::cpu`]; R0801, R0802.
    pub fn cpu_of_rank(&self, threads: usize, communicator: Arc<dyn Communicator>) -> Result<Cpu, Error> {
        let (target, path) = self.kernels("cpu")?;
        let missing = cpu_features::missing(&target.level, &target.features);
        if !missing.is_empty() {
            return Err(Error::CpuFeatures { level: target.level.clone(), missing: missing.join(", ") });
        }
        Cpu::of_rank(&self.program, &path, threads, communicator)
    }

    /// The program on the first GPU.
    ///
    /// # Errors
    /// Those of [`Self::kernels`] and [`Cuda::new`].
    pub fn cuda(&self, options: &DeviceOptions) -> Result<Cuda, Error> {
        self.cuda_of_rank(options, Arc::new(Solo::default()))
    }

    fn cuda_of_rank(
        &self,
        options: &DeviceOptions,
        communicator: Arc<dyn Communicator>,
    ) -> Result<Cuda, Error> {
        let (target, path) = self.kernels(self.gpu_target()?)?;
        let ptx = std::fs::read(&path)
            .map_err(|source| Error::ArtifactUnreadable { path: path.clone(), source })?;
        Cuda::of_rank(&self.program, target, &ptx, options, communicator)
    }

    /// The best target of the artifact for the GPU at hand.
    fn gpu_target(&self) -> Result<&'static str, Error> {
        let wanted = Card::find()?.targets()?;
        let there = |name: &&&str| self.program.targets.iter().any(|target| target.name == **name);
        Ok(wanted.iter().find(there).unwrap_or(&wanted[0]))
    }

    /// A rank of the program on the device that it was compiled for.
    ///
    /// # Errors
    /// Those of [`Self::cpu`] and [`Self::cuda`].
    pub fn device(
        &self,
        options: &DeviceOptions,
        communicator: Arc<dyn Communicator>,
    ) -> Result<Box<dyn Device + Send>, Error> {
        Ok(match self.program.family {
            Family::Cpu => Box::new(self.cpu_of_rank(options.threads, communicator)?),
            Family::Cuda => Box::new(self.cuda_of_rank(options, communicator)?),
        })
    }

    /// Every file of the artifact, those for other families too.
    ///
    /// # Errors
    /// Those of [`read`].
    pub(crate) fn files(&self) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        for family in families(&self.directory) {
            names.push(program_file(family).to_string());
            names.extend(read(&self.directory, family)?.program.targets.into_iter().map(|t| t.file));
        }
        Ok(names)
    }
}

/// A name of one file in the artifact's own folder, or nothing.
fn file_name(name: &str) -> Option<&str> {
    let mut components = Path::new(name).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    plain.then_some(name)
}

/// BLAKE3 of a file's contents, hex, as [`Target::hash`] has it.
pub fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Writes an artifact, a program a family and the files of all their targets: whole under its name, or not at all. One that is there is
/// replaced.
///
/// # Errors
/// R0301, R0302.
pub fn write(directory: &Path, programs: &[&Program], files: &[KernelFile<'_>]) -> Result<(), Error> {
    let json = |program: &&Program| Ok((program_file(program.family), to_json(*program, directory)?));
    let programs = programs.iter().map(json).collect::<Result<Vec<_>, Error>>()?;
    durable::replace_folder(directory, |temporary| {
        for (name, json) in &programs {
            durable::write_synced(&temporary.join(name), &[json])?;
        }
        for file in files {
            let name = file_name(file.name).ok_or_else(|| Error::WriteFailed {
                path: file.name.into(),
                source: std::io::Error::from(std::io::ErrorKind::InvalidFilename),
            })?;
            durable::write_synced(&temporary.join(name), &[file.bytes])?;
        }
        Ok(())
    })
}

/// Readable, and the same bytes for the same program.
pub(crate) fn to_json<T: serde::Serialize>(value: &T, path: &Path) -> Result<Vec<u8>, Error> {
    let mut json = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::WriteFailed { path: path.into(), source: e.into() })?;
    json.push(b'\n');
    Ok(json)
}

/// Replaces a file's contents in one moment.
///
/// # Errors
/// R0301, R0302.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    durable::replace(path, &[bytes])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Builder;

    fn target(file: &str, bytes: &[u8]) -> Target {
        Target {
            name: "cpu".into(),
            file: file.into(),
            hash: hash(bytes),
            level: "x86-64".into(),
            features: vec![],
            launches: vec![],
        }
    }

    fn written(dir: &Path) -> PathBuf {
        let mut builder = Builder::new();
        builder.program.targets.push(target("cpu.so", b"kernels"));
        let directory = dir.join("x.dspx");
        write(&directory, &[&builder.program], &[KernelFile { name: "cpu.so", bytes: b"kernels" }]).unwrap();
        directory
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let directory = written(dir.path());
        let first = std::fs::read(directory.join(PROGRAM_FILE)).unwrap();
        let artifact = read(&directory, Family::Cpu).unwrap();
        assert_eq!(artifact.program.name, "tiny");
        assert_eq!(artifact.kernels("cpu").unwrap().1, directory.join("cpu.so"));
        written(dir.path());
        assert_eq!(std::fs::read(directory.join(PROGRAM_FILE)).unwrap(), first, "replaced by the same bytes");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_flipped_bit_in_a_kernel_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let directory = written(dir.path());
        let artifact = read(&directory, Family::Cpu).unwrap();
        for bit in 0..7 * 8 {
            let mut bytes = *b"kernels";
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(directory.join("cpu.so"), bytes).unwrap();
            let error = artifact.kernels("cpu").unwrap_err();
            assert_eq!((error.code(), error.exit_code()), ("R0204", 7));
        }
        std::fs::remove_file(directory.join("cpu.so")).unwrap();
        assert_eq!(artifact.kernels("cpu").unwrap_err().code(), "R0201");
        let error = artifact.kernels("sm_90a").unwrap_err();
        assert_eq!(error.to_string(), "the artifact has no kernels for `sm_90a`; it has cpu");
    }

    #[test]
    fn another_version_is_refused_before_the_rest_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let cases = [
            (r#"{"format_version": 99}"#, "R0203"),
            (r#"{"format_version": "1"}"#, "R0202"),
            (r#"{"format_version": 1}"#, "R0202"),
            ("[1, 2", "R0202"),
            ("", "R0202"),
        ];
        for (text, code) in cases {
            std::fs::write(dir.path().join(PROGRAM_FILE), text).unwrap();
            assert_eq!(read(dir.path(), Family::Cpu).unwrap_err().code(), code, "{text}");
        }
        assert_eq!(read(&dir.path().join("none"), Family::Cpu).unwrap_err().code(), "R0201");
    }

    #[test]
    fn a_cut_program_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let directory = written(dir.path());
        let whole = std::fs::read(directory.join(PROGRAM_FILE)).unwrap();
        for end in 0..whole.len() - 2 {
            std::fs::write(directory.join(PROGRAM_FILE), &whole[..end]).unwrap();
            assert_eq!(read(&directory, Family::Cpu).unwrap_err().code(), "R0202", "cut at {end}");
        }
    }

    #[test]
    fn numbers_that_cannot_be_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let directory = written(dir.path());
        let refused = |change: &dyn Fn(&mut Program)| {
            let mut program = read(&written(dir.path()), Family::Cpu).unwrap().program;
            change(&mut program);
            std::fs::write(directory.join(PROGRAM_FILE), serde_json::to_vec(&program).unwrap()).unwrap();
            assert_eq!(read(&directory, Family::Cpu).unwrap_err().code(), "R0202");
        };
        refused(&|p| p.data.sequence = 0);
        refused(&|p| p.training.batch = 3);
        refused(&|p| p.data.holdout = 1.0);
        refused(&|p| p.training.micro_batch = u64::MAX);
    }

    #[test]
    fn a_kernel_file_outside_the_folder_is_refused() {
        for name in ["../cpu.so", "/lib/x.so", "a/b.so", "..", "", "."] {
            assert_eq!(file_name(name), None, "{name}");
        }
        let dir = tempfile::tempdir().unwrap();
        let directory = written(dir.path());
        let mut artifact = read(&directory, Family::Cpu).unwrap();
        artifact.program.targets[0].file = "../x".into();
        assert_eq!(artifact.kernels("cpu").unwrap_err().code(), "R0202");
    }
}
