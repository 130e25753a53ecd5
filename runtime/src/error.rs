//! Faults of the world, one variant each: what happened, a stable code, what to do, and the exit code.
//!
//! Not mistakes in a spec: those are diagnostics of the compiler. Each code has a page under `docs/errors/`.

use crate::launch::LaunchError;
use std::path::{Path, PathBuf};

/// A fault that stopped the runtime.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// R0101. A file pattern of `data.text` names no file.
    #[error("no file matches `{pattern}` in `{}`", root.display())]
    DataMissing {
        /// As the spec has it.
        pattern: String,
        /// Where it was looked for.
        root: PathBuf,
    },
    /// R0102. A text file cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    DataUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// R0103. A text file is not UTF-8.
    #[error("`{}` is not UTF-8 text: byte {offset} begins no character", path.display())]
    DataNotUtf8 {
        /// The file.
        path: PathBuf,
        /// First byte that is wrong, from 0.
        offset: usize,
    },
    /// R0104. All text files are empty.
    #[error("the text is empty: {files} file(s), no character")]
    DataEmpty {
        /// Files that were read.
        files: usize,
    },
    /// R0105. The text is shorter than one sequence, or the holdout is empty.
    #[error("the {part} text has {tokens} tokens and needs at least {needed}")]
    DataShort {
        /// `training` or `holdout`.
        part: &'static str,
        /// Ids there are.
        tokens: u64,
        /// Ids it needs: a sequence and its last target; one for a holdout.
        needed: u64,
    },
    /// R0106. A character that the training text did not have.
    #[error("character {character:?} at position {position} of {place} was not in the training text")]
    CharacterUnknown {
        /// It.
        character: char,
        /// In characters, from 0.
        position: usize,
        /// A file or `the prompt`.
        place: String,
    },
    /// R0107. An id that the model does not know.
    #[error("token id {id} is not below the model's vocabulary of {vocab}")]
    IdOutOfRange {
        /// It.
        id: u64,
        /// Ids the model knows.
        vocab: u64,
    },
    /// R0201. A file of the artifact is not there.
    #[error("cannot read the artifact's `{}`: {source}", path.display())]
    ArtifactUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// R0202. The artifact's program is not one.
    #[error("`{}` is not a compiled program: {reason}", path.display())]
    ArtifactMalformed {
        /// The file.
        path: PathBuf,
        /// What the parser or the checker says.
        reason: String,
    },
    /// R0203. The artifact has another format.
    #[error("`{}` has format version {found}, and this runtime reads version {expected}", path.display())]
    ArtifactVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// Ours.
        expected: u32,
    },
    /// R0204. A kernel file is not the one that was compiled.
    #[error("`{}` is damaged: BLAKE3 {found}, expected {expected}", path.display())]
    ArtifactHash {
        /// The file.
        path: PathBuf,
        /// Hex.
        found: String,
        /// Hex.
        expected: String,
    },
    /// R0205. The artifact has no kernels for the device.
    #[error("the artifact has no kernels for `{wanted}`; it has {present}")]
    TargetMissing {
        /// `cpu`
        wanted: String,
        /// Names, with commas.
        present: String,
    },
    /// R0206. The kernels need instructions that this CPU lacks.
    #[error("the kernels were compiled for {level}, and this CPU lacks {missing}")]
    CpuFeatures {
        /// `x86-64-v4`
        level: String,
        /// Names, with commas.
        missing: String,
    },
    /// R0207. The kernel library cannot be loaded.
    #[error("cannot load kernels from `{}`: {reason}", path.display())]
    KernelsUnloadable {
        /// The file.
        path: PathBuf,
        /// The loader's words.
        reason: String,
    },
    /// R0301. The disk is full.
    #[error("no space left while writing `{}`", path.display())]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// R0302. A file cannot be written.
    #[error("cannot write `{}`: {source}", path.display())]
    WriteFailed {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// R0401. There is no checkpoint.
    #[error("no checkpoint in `{}`", path.display())]
    CheckpointMissing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// R0402. A checkpoint is damaged.
    #[error("checkpoint `{}` is damaged: {reason}", path.display())]
    CheckpointDamaged {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// R0403. A checkpoint of another model.
    #[error("checkpoint `{}` is of another model: {reason}", path.display())]
    CheckpointMismatch {
        /// The checkpoint's folder.
        path: PathBuf,
        /// The first difference.
        reason: String,
    },
    /// R0404. The text changed since the checkpoint.
    #[error("the training text is not the one that checkpoint `{}` was trained on", path.display())]
    DataChanged {
        /// The checkpoint's folder.
        path: PathBuf,
    },
    /// R0405. The run folder holds another run.
    #[error("`{}` already holds the checkpoints of a run", path.display())]
    RunExists {
        /// The run folder.
        path: PathBuf,
    },
    /// R0501. The loss, a gradient or a weight is not finite.
    #[error("the {what} of step {step} is not finite{}", tensor.as_ref().map_or(String::new(), |t| format!(", first in the gradient of {t}")))]
    NotFinite {
        /// `loss`, `gradient` or a weight's name.
        what: String,
        /// Where the first gradient that is not finite lies: names of parameters, in words.
        tensor: Option<String>,
        /// The step, from 1.
        step: u64,
        /// Newest whole checkpoint, if there is one.
        checkpoint: Option<PathBuf>,
    },
    /// R0503. A gradient overflowed in half precision although the loss is scaled as little as it may be.
    #[error("a gradient of step {step} overflows at the lowest loss scale, {scale}{}", tensor.as_ref().map_or(String::new(), |t| format!(", first in that of {t}")))]
    ScaleExhausted {
        /// The step, from 1.
        step: u64,
        /// The loss scale.
        scale: f32,
        /// Where the first such gradient lies: names of parameters, in words.
        tensor: Option<String>,
        /// Newest whole checkpoint, if there is one.
        checkpoint: Option<PathBuf>,
    },
    /// R0502. Generation met logits that are not finite.
    #[error("the model's logits are not finite")]
    LogitsNotFinite,
    /// R0601. More memory than there is.
    #[error("the program needs {} and this machine has {}", bytes(*needed), bytes(*available))]
    Memory {
        /// Bytes of all arenas.
        needed: u64,
        /// Bytes of the machine.
        available: u64,
    },
    /// R0602. `DSPC_THREADS` is no number of threads.
    #[error("DSPC_THREADS is {value:?}, which is no number from 1 to {max}")]
    Threads {
        /// As set.
        value: String,
        /// Largest accepted.
        max: usize,
    },
    /// R0603. The program has no entry for generation.
    #[error("this program cannot generate: it was compiled without a logits entry")]
    NoLogits,
    /// R0604. Ids handed to a session have the wrong length.
    #[error("a step takes {expected} ids, and {found} were given")]
    WrongLength {
        /// Ids a step takes.
        expected: usize,
        /// Ids given.
        found: usize,
    },
    /// R0605. The prompt has no token.
    #[error("the prompt is empty")]
    PromptEmpty,
    /// R0606. No NVIDIA GPU can be used.
    #[error("no NVIDIA GPU can be used: {reason}")]
    GpuMissing {
        /// What is not there.
        reason: String,
    },
    /// R0607. The driver is too old.
    #[error("the NVIDIA driver supports CUDA {found}, and {needed} is needed")]
    DriverOld {
        /// `12.4`
        found: String,
        /// `13.0`, or `PTX 8.8`
        needed: String,
    },
    /// R0608. A library of NVIDIA's is not there.
    #[error("{name} was not found in {}", searched.join(", "))]
    LibraryMissing {
        /// `cuBLASLt`
        name: String,
        /// Folders, in order.
        searched: Vec<String>,
    },
    /// R0609. A card that is too old.
    #[error("{card} has compute capability {capability}, and 8.0 is needed")]
    CardOld {
        /// Its name.
        card: String,
        /// `7.5`
        capability: String,
    },
    /// R0610. The program does not fit the card.
    #[error("the program needs {} of device memory, and {card} has {} free of {}", bytes(*needed), bytes(*free), bytes(*total))]
    DeviceMemory {
        /// Bytes of all arenas, and of what comes with them.
        needed: u64,
        /// Bytes that nobody holds.
        free: u64,
        /// Bytes of the card.
        total: u64,
        /// Its name.
        card: String,
    },
    /// R0701. A call of CUDA failed.
    #[error("CUDA failed at {call}: {reason}")]
    CudaFailed {
        /// What was called, and for which layer call.
        call: String,
        /// The driver's words.
        reason: String,
        /// The fault lies there, and not in something started before.
        located: bool,
    },
    /// R0702. The driver does not take the kernels.
    #[error("the driver cannot load the kernels: {reason}")]
    ImageFailed {
        /// Its words.
        reason: String,
    },
    /// R0703. Nothing can run a matrix product.
    #[error("neither cuBLASLt nor a kernel of the program can run the product {product}")]
    NoAlgorithm {
        /// Its sizes, types and strides.
        product: String,
    },
    /// R0704. The lock file lacks algorithms, and may not be changed.
    #[error("`{}` has no algorithm for {missing} product(s) of this program on this card", path.display())]
    LockIncomplete {
        /// The file.
        path: PathBuf,
        /// How many.
        missing: usize,
    },
    /// R0705. The lock file is not one.
    #[error("`{}` is not a lock file: {reason}", path.display())]
    LockMalformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// R0801. A rank of the run failed, and the others cannot go on without it.
    #[error("rank {rank} failed: {cause}")]
    RankFailed {
        /// Which.
        rank: u64,
        /// What happened to it, one line.
        cause: String,
    },
    /// R0802. The program is for another number of ranks.
    #[error("the program is built for {built} rank(s), and the run has {found}")]
    WorldMismatch {
        /// Ranks of its mesh.
        built: u64,
        /// Ranks that were started.
        found: u64,
        /// The program's name, which is the spec's.
        name: String,
    },
    /// R0820 to R0849. Ranks: starting them, finding one another, losing one.
    #[error(transparent)]
    Launch(Box<LaunchError>),
}

impl Error {
    /// The stable code, `R0101`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::DataMissing { .. } => "R0101",
            Self::DataUnreadable { .. } => "R0102",
            Self::DataNotUtf8 { .. } => "R0103",
            Self::DataEmpty { .. } => "R0104",
            Self::DataShort { .. } => "R0105",
            Self::CharacterUnknown { .. } => "R0106",
            Self::IdOutOfRange { .. } => "R0107",
            Self::ArtifactUnreadable { .. } => "R0201",
            Self::ArtifactMalformed { .. } => "R0202",
            Self::ArtifactVersion { .. } => "R0203",
            Self::ArtifactHash { .. } => "R0204",
            Self::TargetMissing { .. } => "R0205",
            Self::CpuFeatures { .. } => "R0206",
            Self::KernelsUnloadable { .. } => "R0207",
            Self::DiskFull { .. } => "R0301",
            Self::WriteFailed { .. } => "R0302",
            Self::CheckpointMissing { .. } => "R0401",
            Self::CheckpointDamaged { .. } => "R0402",
            Self::CheckpointMismatch { .. } => "R0403",
            Self::DataChanged { .. } => "R0404",
            Self::RunExists { .. } => "R0405",
            Self::NotFinite { .. } => "R0501",
            Self::LogitsNotFinite => "R0502",
            Self::ScaleExhausted { .. } => "R0503",
            Self::Memory { .. } => "R0601",
            Self::Threads { .. } => "R0602",
            Self::NoLogits => "R0603",
            Self::WrongLength { .. } => "R0604",
            Self::PromptEmpty => "R0605",
            Self::GpuMissing { .. } => "R0606",
            Self::DriverOld { .. } => "R0607",
            Self::LibraryMissing { .. } => "R0608",
            Self::CardOld { .. } => "R0609",
            Self::DeviceMemory { .. } => "R0610",
            Self::CudaFailed { .. } => "R0701",
            Self::ImageFailed { .. } => "R0702",
            Self::NoAlgorithm { .. } => "R0703",
            Self::LockIncomplete { .. } => "R0704",
            Self::LockMalformed { .. } => "R0705",
            Self::RankFailed { .. } => "R0801",
            Self::WorldMismatch { .. } => "R0802",
            Self::Launch(error) => error.code(),
        }
    }

    /// What to do about it, one line.
    pub fn remedy(&self) -> String {
        match self {
            Self::DataMissing { .. } => {
                "patterns are relative to the spec's folder; check `data { text: [..] }`".into()
            }
            Self::DataUnreadable { .. } => "check the file's name and permissions".into(),
            Self::DataNotUtf8 { .. } => {
                "convert it, as in `iconv -f latin1 -t utf-8`, or use `tokenizer: \"bytes\"`".into()
            }
            Self::DataEmpty { .. } => "name files that hold text in `data { text: [..] }`".into(),
            Self::DataShort { part: "holdout", .. } => {
                "raise `holdout`, or leave it out to train on all text".into()
            }
            Self::DataShort { .. } => "add text, or lower `sequence` or `holdout`".into(),
            Self::CharacterUnknown { .. } => {
                "leave the character out, or build again with text that has it, or use `tokenizer: \"bytes\"`"
                    .into()
            }
            Self::IdOutOfRange { .. } => "use the tokenizer that the model was compiled with".into(),
            Self::ArtifactUnreadable { .. } => {
                "check the path, or build the artifact with `dspc build`".into()
            }
            Self::ArtifactMalformed { .. } | Self::ArtifactHash { .. } | Self::ArtifactVersion { .. } => {
                "build the artifact again with this version: `dspc build`".into()
            }
            Self::TargetMissing { wanted, .. } => {
                format!("build it with kernels for it: `dspc build --target {wanted}`")
            }
            Self::CpuFeatures { .. } => "build the artifact on this machine with `dspc build`".into(),
            Self::KernelsUnloadable { .. } => {
                "build the artifact again on this machine with `dspc build`".into()
            }
            Self::DiskFull { .. } => {
                "free space or lower `checkpoint: every(.., keep: ..)`; older checkpoints are whole".into()
            }
            Self::WriteFailed { .. } => "check the folder's permissions and the disk".into(),
            Self::CheckpointMissing { .. } => {
                "leave out `--resume` to begin a new run, or name the run's folder".into()
            }
            Self::CheckpointDamaged { .. } => {
                "use an older checkpoint of the run, or restore this one from a copy".into()
            }
            Self::CheckpointMismatch { .. } => {
                "resume with the spec it was made from, or begin a new run in another folder".into()
            }
            Self::DataChanged { .. } => "restore the text, or begin a new run in another folder".into(),
            Self::RunExists { .. } => "go on with `--resume`, or name another folder".into(),
            Self::NotFinite { checkpoint: Some(path), .. } => {
                format!(
                    "lower the learning rate or set `clip`, then go on from `{}` with `--resume`",
                    path.display()
                )
            }
            Self::NotFinite { .. } => "lower the learning rate, lengthen the warm-up or set `clip`".into(),
            Self::ScaleExhausted { checkpoint: Some(path), .. } => format!(
                "write `precision = bf16`, or lower the learning rate or `min`, then go on from `{}` with `--resume`",
                path.display()
            ),
            Self::ScaleExhausted { .. } => {
                "write `precision = bf16`, or lower the learning rate or the loss scale's `min`".into()
            }
            Self::LogitsNotFinite => "use an older checkpoint of the run".into(),
            Self::Memory { .. } => {
                "lower `micro_batch`, `sequence` or the model's size; `dspc plan` shows what each costs"
                    .into()
            }
            Self::Threads { .. } => "unset DSPC_THREADS to use every core".into(),
            Self::NoLogits => "build it again with this version: `dspc build`".into(),
            Self::WrongLength { .. } => "give `batch · sequence` tokens and as many targets".into(),
            Self::PromptEmpty => "give at least one character".into(),
            Self::GpuMissing { .. } => {
                "run on the CPU with `--device cpu`, or see what is found with `dspc doctor`".into()
            }
            Self::DriverOld { .. } => "install a newer NVIDIA driver, or run with `--device cpu`".into(),
            Self::LibraryMissing { .. } => {
                "install it (`pip install nvidia-cublas`), or name its folder in DSPC_CUDA_LIBS".into()
            }
            Self::CardOld { .. } => "use a newer card, or run with `--device cpu`".into(),
            Self::DeviceMemory { .. } => {
                "lower `micro_batch` and raise the accumulation, ask for `recompute: auto`, or free the card; \
                 `dspc plan` shows what each costs"
                    .into()
            }
            Self::CudaFailed { located: true, .. } => {
                "please report this with the spec that shows it; the last checkpoint is whole, and `--resume` goes on from it".into()
            }
            Self::CudaFailed { located: false, .. } => {
                "run again with `DSPC_CUDA_SYNC=1`, which starts kernels one by one and names the one at fault; `--resume` goes on from the last checkpoint".into()
            }
            Self::ImageFailed { .. } => {
                "build the artifact again with this version: `dspc build`; if it stays, please report it".into()
            }
            Self::NoAlgorithm { .. } => {
                "build the artifact again with this version: `dspc build`; if it stays, please report it".into()
            }
            Self::LockIncomplete { .. } => "measure them once with `dspc tune`, or leave out `--locked`".into(),
            Self::LockMalformed { .. } => "delete it; the next run measures again".into(),
            Self::RankFailed { .. } => {
                "the last checkpoint is whole: see to the cause, then go on with `--resume`".into()
            }
            Self::WorldMismatch { built, found, name } => format!(
                "start it with `--ranks {built}`, or write `parallel = mesh(data: auto)` and build it again: \
                 `dspc build --ranks {found} {name}.dsp`"
            ),
            Self::Launch(error) => error.remedy(),
        }
    }

    /// What the process should end with: 1 input, 5 environment, 6 numerics, 7 incompatible or corrupt files, 8 another rank.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::DataMissing { .. } | Self::DataUnreadable { .. } => 5,
            Self::DataNotUtf8 { .. } | Self::DataEmpty { .. } | Self::DataShort { .. } => 1,
            Self::CharacterUnknown { .. } | Self::IdOutOfRange { .. } => 1,
            Self::ArtifactUnreadable { .. } | Self::CpuFeatures { .. } => 5,
            Self::ArtifactMalformed { .. } | Self::ArtifactVersion { .. } | Self::ArtifactHash { .. } => 7,
            Self::TargetMissing { .. } | Self::KernelsUnloadable { .. } => 7,
            Self::DiskFull { .. } | Self::WriteFailed { .. } => 5,
            Self::CheckpointMissing { .. } => 5,
            Self::CheckpointDamaged { .. } | Self::CheckpointMismatch { .. } | Self::DataChanged { .. } => 7,
            Self::RunExists { .. } => 1,
            Self::NotFinite { .. } | Self::LogitsNotFinite | Self::ScaleExhausted { .. } => 6,
            Self::Memory { .. } | Self::Threads { .. } => 5,
            Self::NoLogits => 7,
            Self::WrongLength { .. } | Self::PromptEmpty => 1,
            Self::GpuMissing { .. } | Self::DriverOld { .. } | Self::LibraryMissing { .. } => 5,
            Self::CardOld { .. } | Self::DeviceMemory { .. } | Self::CudaFailed { .. } => 5,
            Self::ImageFailed { .. } | Self::NoAlgorithm { .. } => 7,
            Self::LockIncomplete { .. } | Self::LockMalformed { .. } => 7,
            Self::RankFailed { .. } => 8,
            Self::WorldMismatch { .. } => 7,
            Self::Launch(error) => error.exit_code(),
        }
    }

    /// A fault of ranks. No `From`: a second one would leave `?` without its type in many places.
    pub(crate) fn launch(error: LaunchError) -> Self {
        Self::Launch(Box::new(error))
    }

    /// A failed write: disk full, or anything else.
    pub(crate) fn write(path: &Path, source: std::io::Error) -> Self {
        match source.kind() {
            std::io::ErrorKind::StorageFull
            | std::io::ErrorKind::QuotaExceeded
            | std::io::ErrorKind::FileTooLarge => Self::DiskFull { path: path.into() },
            _ => Self::WriteFailed { path: path.into(), source },
        }
    }
}

/// Bytes for people, `1.5 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// The page of a code.
pub fn explain(code: &str) -> Option<&'static str> {
    PAGES.iter().find(|(known, _)| *known == code).map(|(_, page)| *page)
}

macro_rules! pages {
    ($($code:literal),* $(,)?) => {
        [$(($code, include_str!(concat!("../../docs/errors/", $code, ".md")))),*]
    };
}

const PAGES: [(&str, &str); 56] = pages![
    "R0101", "R0102", "R0103", "R0104", "R0105", "R0106", "R0107", "R0201", "R0202", "R0203", "R0204",
    "R0205", "R0206", "R0207", "R0301", "R0302", "R0401", "R0402", "R0403", "R0404", "R0405", "R0501",
    "R0502", "R0503", "R0601", "R0602", "R0603", "R0604", "R0605", "R0606", "R0607", "R0608", "R0609",
    "R0610", "R0701", "R0702", "R0703", "R0704", "R0705", "R0801", "R0802", "R0820", "R0821", "R0822",
    "R0823", "R0824", "R0825", "R0826", "R0827", "R0829", "R0830", "R0831", "R0832", "R0833", "R0834",
    "R0836",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn gone() -> std::io::Error {
        std::io::Error::from_raw_os_error(2)
    }

    fn examples() -> Vec<Error> {
        vec![
            Error::DataMissing { pattern: "wiki/*.txt".into(), root: "specs".into() },
            Error::DataUnreadable {
                path: "specs/a.txt".into(),
                source: std::io::Error::from_raw_os_error(13),
            },
            Error::DataNotUtf8 { path: "specs/a.txt".into(), offset: 1042 },
            Error::DataEmpty { files: 2 },
            Error::DataShort { part: "training", tokens: 60, needed: 65 },
            Error::CharacterUnknown { character: 'é', position: 3, place: "the prompt".into() },
            Error::IdOutOfRange { id: 50256, vocab: 256 },
            Error::ArtifactUnreadable { path: "train.dspx/program.json".into(), source: gone() },
            Error::ArtifactMalformed {
                path: "train.dspx/program.json".into(),
                reason: "EOF while parsing a value at line 1 column 0".into(),
            },
            Error::ArtifactVersion { path: "train.dspx/program.json".into(), found: 2, expected: 1 },
            Error::ArtifactHash {
                path: "train.dspx/cpu.so".into(),
                found: "4ae1…".into(),
                expected: "09c7…".into(),
            },
            Error::TargetMissing { wanted: "cpu".into(), present: "sm_90a".into() },
            Error::CpuFeatures { level: "x86-64-v4".into(), missing: "avx512bw, avx512f".into() },
            Error::KernelsUnloadable {
                path: "train.dspx/cpu.so".into(),
                reason: "undefined symbol: row_1f2e".into(),
            },
            Error::DiskFull { path: "runs/train/checkpoint-400.tmp/model.safetensors".into() },
            Error::WriteFailed { path: "runs/train".into(), source: std::io::Error::from_raw_os_error(13) },
            Error::CheckpointMissing { path: "runs/train".into() },
            Error::CheckpointDamaged {
                path: "runs/train/checkpoint-400".into(),
                reason: "model.safetensors was changed".into(),
            },
            Error::CheckpointMismatch {
                path: "runs/train/checkpoint-400".into(),
                reason: "its `batch` is 8, and the program's is 12".into(),
            },
            Error::DataChanged { path: "runs/train/checkpoint-400".into() },
            Error::RunExists { path: "runs/train".into() },
            Error::NotFinite {
                what: "loss".into(),
                tensor: Some("`h.3.attn.c_attn.weight`".into()),
                step: 417,
                checkpoint: Some("runs/train/checkpoint-400".into()),
            },
            Error::LogitsNotFinite,
            Error::ScaleExhausted {
                step: 417,
                scale: 1.0,
                tensor: Some("`h.3.attn.c_attn.weight`".into()),
                checkpoint: Some("runs/train/checkpoint-400".into()),
            },
            Error::Memory { needed: 40 << 30, available: 16 << 30 },
            Error::Threads { value: "two".into(), max: 1024 },
            Error::NoLogits,
            Error::WrongLength { expected: 768, found: 767 },
            Error::PromptEmpty,
            Error::GpuMissing { reason: "there is no NVIDIA driver (libcuda.so.1)".into() },
            Error::DriverOld { found: "12.4".into(), needed: "PTX 8.8".into() },
            Error::LibraryMissing {
                name: "cuBLASLt".into(),
                searched: vec!["/usr/local/cuda/lib64".into(), "the loader's path".into()],
            },
            Error::CardOld { card: "Tesla T4".into(), capability: "7.5".into() },
            Error::DeviceMemory {
                needed: 31 << 30,
                free: 23 << 30,
                total: 24 << 30,
                card: "NVIDIA L4".into(),
            },
            Error::CudaFailed {
                call: "waiting for the GPU".into(),
                reason: "an illegal memory access was encountered (CUDA_ERROR_ILLEGAL_ADDRESS)".into(),
                located: false,
            },
            Error::ImageFailed {
                reason: "CUDA_ERROR_INVALID_PTX: ptxas application ptx input, line 12; fatal : Parsing error"
                    .into(),
            },
            Error::NoAlgorithm {
                product: "64×50257×768 bf16/768@256 · bf16.T/768@2 → f32/50257@4".into()
            },
            Error::LockIncomplete { path: "specs/dspc.lock".into(), missing: 3 },
            Error::LockMalformed {
                path: "specs/dspc.lock".into(),
                reason: "EOF while parsing a value at line 1 column 0".into(),
            },
            Error::RankFailed { rank: 3, cause: "it panicked: index out of bounds".into() },
            Error::WorldMismatch { built: 4, found: 2, name: "train".into() },
        ]
    }

    /// Each page opens with its code, shows the message and the remedy of its example, and names its exit code.
    #[test]
    fn every_code_has_a_page_that_shows_what_users_see() {
        let mut examples = examples();
        examples.extend(crate::launch::examples().into_iter().map(Error::launch));
        assert_eq!(examples.iter().map(Error::code).collect::<Vec<_>>(), PAGES.map(|(code, _)| code));
        for error in examples {
            let page = explain(error.code()).unwrap();
            let seen = format!("error[{}]: {error}\n  = help: {}\n", error.code(), error.remedy());
            assert!(page.starts_with(&format!("# {}: ", error.code())), "{page}");
            assert!(page.contains(&seen), "the page of {} lacks:\n{seen}", error.code());
            assert!(page.contains(&format!("Exit code {}.", error.exit_code())), "{page}");
        }
        assert_eq!(explain("R9999"), None);
    }

    #[test]
    fn a_full_disk_has_its_own_code() {
        use std::io::ErrorKind::{FileTooLarge, PermissionDenied, QuotaExceeded, StorageFull};
        for (kind, code) in [
            (StorageFull, "R0301"),
            (QuotaExceeded, "R0301"),
            (FileTooLarge, "R0301"),
            (PermissionDenied, "R0302"),
        ] {
            assert_eq!(Error::write(Path::new("x"), kind.into()).code(), code);
        }
    }

    #[test]
    fn bytes_for_people() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (40 << 30, "40.0 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
    }
}
