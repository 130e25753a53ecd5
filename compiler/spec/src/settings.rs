//! The settings, resolved. Their names, units, defaults and words are defined once, in `keys`.

mod optimizer;

pub use optimizer::*;

use dspc_source::{Span, Spanned};

use crate::body::{Definition, ModelCall};

/// A checked spec.
#[derive(Clone, PartialEq, Debug)]
pub struct Spec {
    /// The file's stem.
    pub name: String,
    /// All settings.
    pub settings: Settings,
    /// Which model, with which values.
    pub model: ModelCall,
    /// Every layer and model that can be reached: the user's and the library's. [`crate::body::DefinitionId`] counts in here.
    pub definitions: Vec<Definition>,
}

/// What the checker must know of the world; the driver finds it out.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct DataFacts {
    /// Ids of the tokenizer, for `data.vocab`; `None` if the text could not be read (that is reported elsewhere).
    pub vocab: Option<u64>,
    /// Number of ranks asked for on the command line, for `mesh(data: auto)`.
    pub ranks: Option<u64>,
}

/// Where a value comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The user wrote it here.
    Written(Span),
    /// It follows from others (the batch equation).
    Derived,
    /// Nobody said anything.
    Default,
}

/// A setting's value and where it comes from.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Set<T> {
    /// The value.
    pub value: T,
    /// Its origin.
    pub origin: Origin,
}

impl<T> Set<T> {
    /// The place it was written, if it was.
    pub fn span(&self) -> Option<Span> {
        match self.origin {
            Origin::Written(span) => Some(span),
            Origin::Derived | Origin::Default => None,
        }
    }
}

/// All settings of a job.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// Seed of initial weights, dropout and shuffling.
    pub seed: Set<u64>,
    /// Layout-independent bits.
    pub deterministic: Set<bool>,
    /// Directory of weights to start from; a later version reads it.
    pub init: Option<Spanned<String>>,
    /// Where text comes from.
    pub data: Data,
    /// How weights change.
    pub optimizer: Set<Optimizer>,
    /// Numbers' precision.
    pub precision: Set<Precision>,
    /// How ranks are arranged.
    pub parallel: Set<Mesh>,
    /// What ranks share out.
    pub zero: Set<Zero>,
    /// What is recomputed in the backward pass.
    pub recompute: Set<Recompute>,
    /// Bytes a device may use; `None` is all it has.
    pub memory: Set<Option<u64>>,
    /// The training loop.
    pub train: Train,
}

/// `data { … }`
#[derive(Clone, PartialEq, Debug)]
pub struct Data {
    /// File patterns, relative to the spec's folder.
    pub text: Set<Vec<Spanned<String>>>,
    /// How text becomes ids.
    pub tokenizer: Set<Tokenizer>,
    /// Ids a sequence.
    pub sequence: Set<u64>,
    /// Share kept for evaluation.
    pub holdout: Set<f64>,
}

/// How text becomes ids.
#[derive(Clone, PartialEq, Debug)]
pub enum Tokenizer {
    /// One id a character of the text.
    Chars,
    /// One id a byte.
    Bytes,
    /// GPT-2's byte-pair encoding.
    Gpt2,
}

/// `precision = …`
#[derive(Clone, PartialEq, Debug)]
pub enum Precision {
    /// Everything in single.
    Fp32,
    /// Products in TF32 where the device has it.
    Tf32,
    /// bfloat16 compute and storage, fp32 masters and moments.
    Bf16 {
        /// Type of the gradients and of their sums over micro-batches.
        accumulate: Accumulate,
    },
    /// Half compute and storage, fp32 masters and moments.
    Fp16 {
        /// How the loss is scaled.
        loss_scale: LossScale,
    },
}

/// `accumulate: …`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accumulate {
    /// Single precision.
    F32,
    /// bfloat16.
    Bf16,
}

/// `loss_scale: …`
#[derive(Clone, PartialEq, Debug)]
pub enum LossScale {
    /// Always this.
    Static(f64),
    /// DeepSpeed's dynamic scaler.
    Dynamic {
        /// First value.
        start: f64,
        /// Clean steps before it doubles.
        window: u64,
        /// Overflows before it halves.
        hysteresis: u64,
        /// Clean steps refill the hysteresis.
        consecutive_hysteresis: bool,
        /// Lowest; an overflow there ends the run.
        min: f64,
    },
}

/// `parallel = mesh(data: 4)`: sizes of the mesh's axes; the world is their product.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mesh {
    /// Ranks that share the batch.
    pub data: u64,
    /// Ranks that share each matrix.
    pub tensor: u64,
    /// Ranks that share the layers.
    pub pipeline: u64,
    /// Ranks that share each sequence.
    pub sequence: u64,
    /// Ranks that share the experts.
    pub expert: u64,
}

/// `zero = stage(2, …)`
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Zero {
    /// 0 to 3.
    pub stage: u64,
    /// Elements of a gradient bucket.
    pub reduce_bucket: u64,
    /// Elements of a gather bucket.
    pub gather_bucket: u64,
    /// Communicate while computing.
    pub overlap: bool,
    /// Parameters below this many elements stay whole in ZeRO stage 3.
    pub keep_below: u64,
}

/// `recompute = …`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recompute {
    /// Keep every activation.
    None,
    /// Outputs of norms, activation functions and dropout again.
    Norms,
    /// Each block again from its input.
    Block,
    /// The cheapest set that fits.
    Auto,
}

/// `train { … }`
#[derive(Clone, PartialEq, Debug)]
pub struct Train {
    /// Sequences a step, over all ranks.
    pub batch: Set<u64>,
    /// Sequences a rank holds at once.
    pub micro_batch: Set<u64>,
    /// Micro-batches a step and rank.
    pub accumulation: Set<u64>,
    /// Optimizer steps.
    pub steps: Set<u64>,
    /// Global-norm limit; `None` is no clipping.
    pub clip: Set<Option<f64>>,
    /// Steps between evaluations; 0 is only at the end.
    pub eval_every: Set<u64>,
    /// Micro-batches an evaluation reads; 0 is the whole holdout.
    pub eval_batches: Set<u64>,
    /// Steps between checkpoints; 0 is only at the end.
    pub checkpoint_every: Set<u64>,
    /// Checkpoints kept; 0 keeps all.
    pub checkpoint_keep: Set<u64>,
    /// Steps between log lines.
    pub log_every: Set<u64>,
    /// A text to go on from when training ends.
    pub sample: Set<Option<Sample>>,
}

/// `sample: text("ROMEO:", tokens: 200)`
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    /// The text.
    pub prompt: String,
    /// New tokens.
    pub tokens: u64,
}
