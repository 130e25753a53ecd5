//! What a rank does, in order. The schedule layer writes it; the runtime walks it; `audit` proves it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Index in [`crate::Program::buffers`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BufferId(pub u32);

/// Index in [`crate::Program::kernels`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KernelId(pub u32);

/// A stream; 0 computes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StreamId(pub u32);

/// A point in a stream that another can wait for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(pub u32);

/// A sequence of instructions and the memory it needs.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Entry {
    /// In order.
    pub body: Vec<Instruction>,
    /// Highest byte of the activations arena that it uses.
    pub peak_bytes: u64,
}

/// One instruction on its stream.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Instruction {
    /// What is done.
    pub action: Action,
    /// Where.
    pub stream: StreamId,
    /// Events to wait for first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits: Vec<EventId>,
    /// Event to record after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<EventId>,
    /// Only at some turns of a loop around it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<When>,
    /// The layer call it came from, for people: `h.*.attn.c_attn`.
    pub origin: String,
}

/// What an instruction does.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "a program has hundreds of instructions")]
pub enum Action {
    /// A kernel of ours; operands in the kernel's order.
    Launch {
        /// Which.
        kernel: KernelId,
        /// Its operands.
        args: Vec<Arg>,
    },
    /// A library matrix product.
    Gemm(Gemm),
    /// Zeroes one slot of a buffer.
    Zero {
        /// Which.
        at: Place,
    },
    /// Ranks exchange data.
    Collective(Collective),
    /// A block, again and again.
    Loop {
        /// What the loop variable counts.
        over: Over,
        /// How often.
        count: u64,
        /// From the last to the first.
        reverse: bool,
        /// The block.
        body: Vec<Instruction>,
    },
}

/// Turns of a loop at which an instruction is done: those from `from` to below `below` whose number n has `n % every == at`, or has not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct When {
    /// Which loop's turns are counted.
    pub over: Over,
    /// At least 1.
    pub every: u64,
    /// Below `every`.
    pub at: u64,
    /// `n % every` is anything but `at`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub except: bool,
    /// The first turn that counts.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub from: u64,
    /// The first turn that no longer does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<u64>,
}

impl When {
    /// At the turns whose number n has `n % every == at`.
    pub fn each(over: Over, every: u64, at: u64) -> Self {
        Self { over, every, at, except: false, from: 0, below: None }
    }

    /// Whether it is done at this turn of the repeat and this micro-batch, of which it counts one.
    pub fn holds(self, turn: u64, micro: u64) -> bool {
        let n = match self.over {
            Over::Turns => turn,
            Over::MicroBatches => micro,
        };
        let counts = n >= self.from && self.below.is_none_or(|below| n < below);
        counts && (n % self.every == self.at) != self.except
    }
}

/// `if turn % 4 is 3`
impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.over {
            Over::MicroBatches => "if micro-batch",
            Over::Turns => "if turn",
        })?;
        if self.every > 1 {
            write!(f, " % {} is {}{}", self.every, if self.except { "not " } else { "" }, self.at)?;
        }
        if self.from > 0 {
            write!(f, " from {}", self.from)?;
        }
        self.below.map_or(Ok(()), |below| write!(f, " below {below}"))
    }
}

/// What the ranks of a group tell one another, all of them the same instruction.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Collective {
    /// What.
    pub kind: CollectiveKind,
    /// Index in [`crate::Program::groups`].
    pub group: u32,
    /// Ranges that travel together.
    pub parts: Vec<Part>,
}

/// Kinds of collectives; an all-reduce is a reduce-scatter and an all-gather.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CollectiveKind {
    /// `from` is whole, and `to` the rank's shard of the sum over ranks.
    ReduceScatter {
        /// Adds a shard of every rank, in the group's order: one operand a rank, then the result. A binary tree over neighbours.
        sum: KernelId,
        /// The order of `sum` is meant; without it a communicator may add in an order of its own that is the same each time.
        tree: bool,
    },
    /// `from` is the rank's shard, and `to` whole: all shards in the group's order.
    AllGather,
}

/// A range of a collective. Where `from` lies in `to`, or `to` in `from`, it is exactly the rank's own shard of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Part {
    /// Read.
    pub from: Place,
    /// Written.
    pub to: Place,
    /// Elements of one shard; the whole is that times the group's size.
    pub elements: u64,
}

/// What a loop counts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Over {
    /// Micro-batches of a step.
    MicroBatches,
    /// Turns of a repeat.
    Turns,
}

/// An operand of a launch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arg {
    /// A pointer.
    At(Place),
    /// The turn itself, as a number; 0 outside a repeat.
    Turn,
}

/// An address: `arena + buffer.offset + slot · buffer.stride + (elements + shard) · size`, slot = (add + turn + micro) mod buffer.slots.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Place {
    /// The buffer.
    pub buffer: BufferId,
    /// Added to the slot.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub add: u64,
    /// The slot follows the turn.
    #[serde(default, skip_serializing_if = "is_false")]
    pub turn: bool,
    /// The slot follows the micro-batch.
    #[serde(default, skip_serializing_if = "is_false")]
    pub micro: bool,
    /// Elements into the slot.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub elements: u64,
    /// The rank's own shard of what lies there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
}

/// A rank's share of a range that is cut into equal shards, in the order of the ranks of a group.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Shard {
    /// Index in [`crate::Program::groups`].
    pub group: u32,
    /// Elements of a shard: that of the group's rank r begins `r · elements` further.
    pub elements: u64,
}

fn is_zero(x: &u64) -> bool {
    *x == 0
}

fn is_false(x: &bool) -> bool {
    !x
}

impl Place {
    /// The first slot's first element.
    pub fn of(buffer: BufferId) -> Self {
        Self { buffer, add: 0, turn: false, micro: false, elements: 0, shard: None }
    }
}

/// `c = alpha · op(a) · op(b) [+ c]`, row-major, f32 accumulation; then the epilogue.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Gemm {
    /// Rows of c.
    pub m: u64,
    /// Columns of c.
    pub n: u64,
    /// The summed dim.
    pub k: u64,
    /// Left operand, `[m, k]`, or `[k, m]` if transposed.
    pub a: Matrix,
    /// Right operand, `[k, n]`, or `[n, k]` if transposed.
    pub b: Matrix,
    /// Result.
    pub c: Matrix,
    /// Add to what c holds.
    pub accumulate: bool,
    /// Factors that are f32 may be rounded to TF32.
    #[serde(default, skip_serializing_if = "is_false")]
    pub tf32: bool,
    /// What the product's own kernel does besides, before it stores; on a GPU only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fused: Option<Fused>,
    /// A kernel of ours that does the same, for hosts without the library and where it is faster; on a GPU only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<OwnProduct>,
    /// Run on each block of c's rows while it is in cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epilogue: Option<Epilogue>,
}

/// What a matrix product's kernel does before it stores, in f32. cuBLASLt's training epilogues.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fused {
    /// `c = a · b + bias`, bias `[n]`.
    Bias {
        /// `[n]`
        bias: Place,
    },
    /// `pre = a · b + bias; c = gelu(pre)`, the tanh form.
    BiasGelu {
        /// `[n]`
        bias: Place,
        /// Written, as c is laid out.
        pre: Matrix,
    },
    /// `c = (a · b) ∘ gelu′(pre)`, the tanh form.
    GeluGradient {
        /// Read, as c is laid out.
        pre: Matrix,
    },
    /// `sum[j] = Σ over the summed dim of b[·, j]`: a bias gradient beside its weight's.
    BiasGradient {
        /// `[n]`, written.
        sum: Place,
    },
}

/// Our own kernel for a matrix product. Its operands: a, b, c, those of [`Gemm::fused`] in their order, then its workspace.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct OwnProduct {
    /// Which.
    pub kernel: KernelId,
    /// f32 partial products, where the summed dim is split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<Place>,
}

/// A row kernel over the m rows of a matrix product's result.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Epilogue {
    /// Which.
    pub kernel: KernelId,
    /// Its operands.
    pub args: Vec<Arg>,
    /// Rows of c that one item of the kernel covers (the last item may cover fewer): 1, or a chunk where there are column sums. A block of rows
    /// begins at a multiple of it.
    pub rows_per_item: u64,
}

/// An operand of a matrix product.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Matrix {
    /// First element.
    pub at: Place,
    /// Elements from one stored row to the next.
    pub stride: u64,
    /// Stored the other way round.
    #[serde(default, skip_serializing_if = "is_false")]
    pub transposed: bool,
}
