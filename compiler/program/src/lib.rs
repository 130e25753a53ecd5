//! The artifact as plain serde types, versioned. No behaviour beyond look-ups.
//!
//! A `x.dspx/` directory holds `program.json` (this type), one kernel file a target, and nothing else. Knows no other crate of ours.

#![forbid(unsafe_code)]

mod instruction;

pub use instruction::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Elements of a row of the grid on which the gradient norm is summed.
pub const GRADIENT_GRID: u64 = 1024;

/// Version of this format; a reader refuses another.
pub const FORMAT_VERSION: u32 = 1;

/// A compiled training job.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Program {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The compiler's version.
    pub dspc: String,
    /// The spec's file stem.
    pub name: String,
    /// BLAKE3 of the canonical spec text (`--emit spec`), hex.
    pub spec_hash: String,
    /// What it is scheduled for.
    #[serde(default)]
    pub family: Family,
    /// Mesh axes and sizes, `[("data", 1)]`.
    pub mesh: Vec<(String, u64)>,
    /// Ranks that talk to one another.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<RankGroup>,
    /// The ZeRO stage, for people.
    #[serde(default)]
    pub zero_stage: u64,
    /// The same bits for every layout.
    #[serde(default)]
    pub deterministic: bool,
    /// The model, for `config.json` and generation.
    pub model: Model,
    /// What to train on.
    pub data: Data,
    /// How long and how often.
    pub training: Training,
    /// Learned tensors in checkpoint order, one entry a turn.
    pub params: Vec<Param>,
    /// Memory.
    pub arenas: Vec<Arena>,
    /// Named ranges of the arenas.
    pub buffers: Vec<Buffer>,
    /// Contents computed once at start.
    pub tables: Vec<Table>,
    /// The kernels that instructions name, in order: symbol in every kernel file.
    pub kernels: Vec<KernelEntry>,
    /// Kernel files, one a target.
    pub targets: Vec<Target>,
    /// One optimizer step: all micro-batches, clipping, update.
    pub train: Entry,
    /// The loss of one micro-batch, nothing kept.
    pub evaluate: Entry,
    /// The logits of one sequence.
    pub logits: Option<Entry>,
    /// To be run after parameters were set from outside, where ops read a copy of them in another type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh: Option<Entry>,
}

/// The ranks that differ in some axes of the mesh alone. Ranks are numbered by the mesh, its last axis fastest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RankGroup {
    /// Names of the axes, outermost first.
    pub axes: Vec<String>,
    /// Ranks of a group: the product of the axes' sizes.
    pub size: u64,
}

impl Program {
    /// All ranks.
    pub fn world(&self) -> u64 {
        self.mesh.iter().map(|(_, size)| size).product()
    }

    /// A rank's place in its group, from 0.
    pub fn index_in(&self, group: &RankGroup, rank: u64) -> u64 {
        let mut below = self.world();
        let mut index = 0;
        for (axis, size) in &self.mesh {
            below /= size;
            if group.axes.contains(axis) {
                index = index * size + rank / below % size;
            }
        }
        index
    }
}

/// A kind of device: programs differ in how work is grouped, not in what is computed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Cores of the host.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// The model in words that other tools know.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Model {
    /// `gpt2`, `llama`, or the user's own name.
    pub architecture: String,
    /// The model call's compile-time values, `layers → 4`.
    pub values: BTreeMap<String, f64>,
    /// Trained elements.
    pub parameters: u64,
    /// Model FLOPs of one trained token, forward and backward.
    pub flops_per_token: f64,
}

/// Where text comes from.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Data {
    /// File patterns, relative to the spec's folder.
    pub text: Vec<String>,
    /// How text becomes ids.
    pub tokenizer: Tokenizer,
    /// Ids a sequence.
    pub sequence: u64,
    /// Share kept for evaluation, 0 to below 1; the end of the text.
    pub holdout: f64,
    /// Ids the model knows; every id is below it.
    pub vocab: u64,
}

/// How text becomes ids.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tokenizer {
    /// Ids are places in the sorted characters of the training text, which are compiled in.
    Chars(String),
    /// Ids are bytes.
    Bytes,
    /// GPT-2's byte-pair encoding, built in.
    Gpt2,
}

/// The training loop's numbers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Training {
    /// Sequences a step.
    pub batch: u64,
    /// Sequences a rank holds at once.
    pub micro_batch: u64,
    /// Micro-batches a step and rank.
    pub accumulation: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Seed of initial weights, dropout and shuffling.
    pub seed: u64,
    /// Steps from one evaluation to the next; 0 is never but at the end.
    pub eval_every: u64,
    /// Micro-batches an evaluation reads; 0 is the whole holdout.
    pub eval_batches: u64,
    /// Steps from one checkpoint to the next; 0 is only at the end.
    pub checkpoint_every: u64,
    /// Checkpoints kept; 0 keeps all.
    pub checkpoint_keep: u64,
    /// Steps from one line of the log to the next.
    pub log_every: u64,
    /// What to write when training ends: prompt and new tokens; empty for none.
    pub sample: Option<Sample>,
    /// Learning rate by applied step.
    pub schedule: LrSchedule,
}

/// A text to go on from.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// The text.
    pub prompt: String,
    /// New tokens.
    pub tokens: u64,
}

/// Learning rate as a function of the applied step t, from 0.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedule {
    /// The same for all.
    Constant {
        /// It.
        lr: f64,
        /// Steps of linear warm-up: lr · (t + 1) / (warmup + 1) below it.
        warmup: u64,
    },
    /// Linear to `floor` at `steps`.
    Linear {
        /// Highest.
        peak: f64,
        /// Steps of linear warm-up.
        warmup: u64,
        /// Lowest.
        floor: f64,
        /// Steps in all.
        steps: u64,
    },
    /// floor + (peak − floor) · (1 + cos π x) / 2, x from 0 at the end of warm-up to 1 at `steps`.
    Cosine {
        /// Highest.
        peak: f64,
        /// Steps of linear warm-up.
        warmup: u64,
        /// Lowest.
        floor: f64,
        /// Steps in all.
        steps: u64,
    },
    /// Warm-up, constant, then linear to `floor` over the last `decay` steps.
    WarmupStableDecay {
        /// Highest.
        peak: f64,
        /// Steps of linear warm-up.
        warmup: u64,
        /// Steps of decay.
        decay: u64,
        /// Lowest.
        floor: f64,
        /// Steps in all.
        steps: u64,
    },
}

/// A learned tensor: one turn of one parameter.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Param {
    /// `h.0.attn.c_attn.weight`
    pub name: String,
    /// Sizes, outermost first.
    pub dims: Vec<u64>,
    /// How it starts.
    pub init: Init,
    /// Philox site of its initial values.
    pub site: u32,
    /// The value that training changes.
    pub buffer: BufferId,
    /// Which slot of the buffer.
    pub slot: u64,
    /// Where ranks share it out: the buffer's slot holds the rank's shard of a range that begins `start` elements before this tensor does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<ParamShard>,
    /// The rows of the grid of gradients that it lies on begin here; see [`Role::FirstBad`].
    #[serde(default)]
    pub grid_row: u64,
    /// What the optimizer keeps for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moments: Vec<Moment>,
}

/// What an optimizer keeps for a tensor.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Moment {
    /// `m`, `v`
    pub name: String,
    /// Sizes, outermost first.
    pub dims: Vec<u64>,
    /// Where it lies.
    pub buffer: BufferId,
    /// Which slot.
    pub slot: u64,
    /// As [`Param::shard`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<ParamShard>,
}

/// A tensor inside a range that ranks share out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ParamShard {
    /// Index in [`Program::groups`], and elements of a shard.
    pub of: Shard,
    /// Elements of the range before the tensor's first.
    pub start: u64,
}

impl ParamShard {
    /// The tensor's elements, of `elements`, that the group's rank `index` holds, and where in its shard they begin.
    pub fn held(&self, index: u64, elements: u64) -> (std::ops::Range<u64>, u64) {
        let (first, last) = (index * self.of.elements, (index + 1) * self.of.elements);
        let begin = first.max(self.start).min(last);
        let end = last.min(self.start + elements).max(begin);
        if begin < self.start || begin == end {
            return (0..0, 0);
        }
        (begin - self.start..end - self.start, begin - first)
    }
}

/// How a parameter starts.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Mean 0 and this standard deviation.
    Normal(f64),
    /// Uniform in ± this.
    Uniform(f64),
}

/// Memory of one kind, taken once.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Arena {
    /// `parameters`, `gradients`, `optimizer`, `activations`, `inputs`, `state`
    pub name: String,
    /// Size; begins zeroed.
    pub bytes: u64,
}

/// The type of an element in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ElementType {
    /// IEEE single.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
    /// 32-bit signed.
    I32,
}

/// A named range of an arena: `slots` equal pieces, `stride` bytes apart.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Buffer {
    /// For people; unique.
    pub name: String,
    /// Index in [`Program::arenas`].
    pub arena: u32,
    /// First byte, a multiple of 64.
    pub offset: u64,
    /// Of its elements.
    pub dtype: ElementType,
    /// Elements of one slot.
    pub elements: u64,
    /// Slots: turns of a repeat, or micro-batches.
    pub slots: u64,
    /// Bytes from one slot to the next.
    pub stride: u64,
    /// What the runtime does with it.
    pub role: Role,
    /// The buffer that it is a view of: one parameter of a flat range. Views of one buffer are apart; a view has no views.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<BufferId>,
}

/// What the runtime itself does with a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Nothing: instructions alone use it.
    Inner,
    /// Learned: initialised, saved.
    Param,
    /// Optimizer state: starts as zero, saved later.
    Moment,
    /// i32 ids, a slot a micro-batch: filled before a step.
    Tokens,
    /// i32 ids that follow, -100 for none.
    Targets,
    /// f32: 1 / targets of the whole batch.
    InvTargets,
    /// 4 × i32 a micro-batch: seed low, seed high, step, first sample.
    Rng,
    /// i32: steps applied so far.
    AppliedSteps,
    /// f32: what the loss's gradient begins with in half precision; its first value is a [`Table`], saved.
    LossScale,
    /// i32: clean steps since the last overflow or doubling of the scale; starts as zero, saved.
    CleanSteps,
    /// i32: overflows left before the scale halves; its first value is a [`Table`], saved.
    Hysteresis,
    /// f32: 1 after an overflow at the lowest scale, which ends the run; read after a step.
    ScaleExhausted,
    /// f32: the first row of [`GRADIENT_GRID`] gradient elements whose squares have no finite sum, counted over the flat gradients one behind the other; −1 for none.
    FirstBad,
    /// f32: the loss, one slot a micro-batch; read after a step.
    Loss,
    /// f32: gradient norm before clipping; read after a step.
    GradNorm,
    /// f32: 1 where all gradients were finite and the step was applied.
    Finite,
    /// f32 `[T, V]`: read by generation.
    Logits,
    /// A [`Table`].
    Table,
}

/// Contents that are a formula, computed in f64 and rounded once.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Table {
    /// Where it goes.
    pub buffer: BufferId,
    /// What it holds.
    pub formula: Formula,
}

/// Formulas of tables.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Formula {
    /// Element t: the learning rate at applied step t ([`Training::schedule`]).
    LearningRate,
    /// Element t: 1 − βᵗ⁺¹.
    BiasCorrection {
        /// β
        beta: f64,
    },
    /// Element t: 1 − (t + 1)^−power.
    Decay {
        /// The power.
        power: f64,
    },
    /// `[rows, cols]`: cos(r · base^(−2i/cols)), i = column modulo cols/2.
    RopeCos {
        /// θ
        base: f64,
        /// Columns.
        cols: u64,
    },
    /// sin of the same, negated in the first half of the columns.
    RopeSin {
        /// θ
        base: f64,
        /// Columns.
        cols: u64,
    },
    /// Always this.
    Constant(f64),
}

/// A kernel.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct KernelEntry {
    /// Its symbol: a readable stem and the description's hash.
    pub symbol: String,
    /// Items that its work divides into.
    pub items: u64,
    /// Items that are worth a thread of their own, at least.
    pub grain: u64,
    /// What it touches through each pointer, in the order of the arguments.
    pub operands: Vec<Operand>,
    /// One more argument follows the pointers: the turn, as a number.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uses_turn: bool,
}

/// What a kernel does through one pointer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Operand {
    /// Read, written or both.
    pub access: OperandAccess,
    /// Of its elements; the buffer's own.
    pub dtype: ElementType,
    /// Which elements, counted from the pointer.
    pub extent: Extent,
}

/// How an operand is used.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperandAccess {
    /// Read.
    Read,
    /// Written in full, whatever was there.
    Write,
    /// Read and written: the kernel adds to what is there.
    Update,
}

/// The elements that an operand touches.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extent {
    /// `rows` runs of `cols` elements, `stride` apart.
    Rows {
        /// Runs.
        rows: u64,
        /// Elements of a run.
        cols: u64,
        /// From one run's first element to the next one's.
        stride: u64,
    },
    /// The data decides: any element of the slot, as ids look up the rows of a table.
    Slot,
}

/// A file of kernels.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Target {
    /// `cpu`, `sm_80`, `sm_90a`, `sm_120`
    pub name: String,
    /// In the artifact's folder.
    pub file: String,
    /// BLAKE3 of the file, hex.
    pub hash: String,
    /// The CPU level it needs, `x86-64-v3` or a CPU's own name; empty on a GPU.
    pub level: String,
    /// CPU features it needs, sorted; empty on a GPU.
    pub features: Vec<String>,
    /// How each of [`Program::kernels`] is launched on a GPU, one after the other; empty on a CPU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub launches: Vec<Vec<GpuLaunch>>,
}

/// How a function is launched on a GPU.
///
/// Its parameters: a pointer for each operand of the kernel, the turn (i64) where the kernel has one, then a 128-byte tensor map for each of
/// [`GpuLaunch::maps`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GpuLaunch {
    /// The function.
    pub symbol: String,
    /// Blocks, x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Tensor maps, over operands.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub maps: Vec<TensorMap>,
}

/// A tiled view of an operand for Hopper's copy engine (`cuTensorMapEncodeTiled`); dims innermost first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TensorMap {
    /// Which operand of the kernel.
    pub operand: u32,
    /// Elements of each dim.
    pub dims: Vec<u64>,
    /// Bytes from one index to the next, of every dim but the innermost; multiples of 16.
    pub strides: Vec<u64>,
    /// Elements of a tile, by dim.
    pub tile: Vec<u32>,
    /// Bytes of the shared-memory swizzle: 0, 32, 64 or 128.
    pub swizzle: u32,
}
