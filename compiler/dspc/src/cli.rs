//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Compiles and trains language models from one declarative file.
#[derive(Parser, Debug)]
#[command(name = "dspc", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Colours in reports.
    #[arg(long, global = true, value_enum, default_value_t = When::Auto)]
    pub color: When,
}

/// When to use colours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum When {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How a command prints what it found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum DeviceName {
    /// A GPU if there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// What a rank is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum RankMode {
    /// A thread of this process.
    Thread,
    /// A process of its own, which can end alone.
    Process,
}

/// How ranks talk to one another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Comm {
    /// As suits the device and the hosts.
    Auto,
    /// MPI, by its plug-in; start it with mpirun.
    Mpi,
    /// NCCL, for one GPU too.
    Nccl,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Find every mistake in specs; nothing is built or run
    Check {
        /// Specs.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// How reports are printed.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Say what a setting or an error code means
    Explain {
        /// `train.batch`, `E0312`, …; without it, all settings are listed.
        key: Option<String>,
    },
    /// Format specs in place
    Fmt {
        /// Specs; `-` reads standard input and writes standard output.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Change nothing; exit 3 if a file is not formatted.
        #[arg(long)]
        check: bool,
    },
    /// Say what a job will cost: memory, FLOPs, the batch
    Plan {
        /// The spec.
        file: PathBuf,
        /// What the program is for; a GPU's differs from a CPU's.
        #[arg(long, default_value = "cpu")]
        target: String,
        /// Ranks to build for, where the spec says `mesh(data: auto)`.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=4096))]
        ranks: Option<u64>,
        /// How it is printed.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Compile a spec to an artifact, or print one of its layers
    Build {
        /// The spec.
        file: PathBuf,
        /// Where the artifact goes; NAME.dspx beside the spec by default.
        #[arg(short, long)]
        output: Option<PathBuf>,
        /// Print a layer to standard output instead; `rust` writes a crate.
        #[arg(long, value_enum)]
        emit: Option<Layer>,
        /// Where `--emit rust` writes its crate; NAME-bindings beside the spec by default.
        #[arg(long, value_name = "DIR")]
        crate_dir: Option<PathBuf>,
        /// The folder of the crate `dspc-runtime`, for `--emit rust`; in the source that this `dspc` was built from by default.
        #[arg(long, value_name = "DIR")]
        runtime_path: Option<PathBuf>,
        /// What to compile for.
        #[arg(long, value_delimiter = ',', default_value = "cpu")]
        target: Vec<String>,
        /// Ranks to build for, where the spec says `mesh(data: auto)`.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=4096))]
        ranks: Option<u64>,
    },
    /// Train: a spec is built first (into a cache), an artifact runs as it is
    Run {
        /// A spec or a `.dspx` artifact.
        file: PathBuf,
        /// Where the run's files go; runs/NAME by default, with a number if that is taken.
        #[arg(long)]
        out: Option<PathBuf>,
        /// Go on from the newest whole checkpoint of the run.
        #[arg(long)]
        resume: bool,
        /// Stop after this many steps.
        #[arg(long)]
        max_steps: Option<u64>,
        /// Write no checkpoint: to try something, or to measure.
        #[arg(long, conflicts_with = "resume")]
        no_save: bool,
        /// The folder that the data patterns are relative to; the spec's by default.
        #[arg(long)]
        data: Option<PathBuf>,
        /// Where it runs; `auto` takes a GPU where there is one.
        #[arg(long, value_enum, default_value_t = DeviceName::Auto)]
        device: DeviceName,
        /// Take the algorithms of matrix products from `dspc.lock` alone; do not measure any.
        #[arg(long)]
        locked: bool,
        /// Ranks to start on this machine; a spec that says `mesh(data: auto)` is built for them.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=4096))]
        ranks: Option<u64>,
        /// What a rank is that is started here.
        #[arg(long, value_enum, default_value_t = RankMode::Thread)]
        rank_mode: RankMode,
        /// How ranks talk; `auto` takes the host's memory, or NCCL on GPUs.
        #[arg(long, value_enum, default_value_t = Comm::Auto)]
        comm: Comm,
    },
    /// Measure the algorithms of a job's matrix products on this GPU, and write `dspc.lock`
    Tune {
        /// A spec or a `.dspx` artifact.
        file: PathBuf,
    },
    /// Say what `dspc` finds on this host: GPU, driver, libraries, CPU, cache
    Doctor {
        /// How it is printed.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Go on with a text
    Generate {
        /// A `checkpoint-N` folder, or a run's folder for its newest one.
        checkpoint: PathBuf,
        /// The text to go on with.
        #[arg(short, long)]
        prompt: String,
        /// Tokens to add.
        #[arg(long, default_value_t = 200)]
        max_new_tokens: u64,
        /// 0 takes the likeliest token, 1 samples as trained.
        #[arg(long, default_value_t = 1.0)]
        temperature: f64,
        /// Sample from this many likeliest tokens; 0 from all.
        #[arg(long, default_value_t = 0)]
        top_k: u64,
        /// Of the random numbers.
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Where it runs; `auto` takes a GPU where there is one and the checkpoint has a program for it.
        #[arg(long, value_enum, default_value_t = DeviceName::Auto)]
        device: DeviceName,
    },
}

/// What `--emit` prints.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Layer {
    /// The syntax tree.
    Ast,
    /// Settings and definitions, every default explicit.
    Spec,
    /// The tensor program.
    Graph,
    /// With its gradient and update.
    Train,
    /// Spread over the mesh.
    Plan,
    /// Fused kernels and library calls.
    Kernels,
    /// Instructions and memory.
    Schedule,
    /// The kernels as MLIR.
    Mlir,
    /// The kernels as PTX, for the GPU targets given.
    Ptx,
    /// The kernels as assembly of the CPU.
    Asm,
    /// A crate that embeds the program, with typed bindings.
    Rust,
}
