//! What a rank does, in order. The schedule layer writes it; the runtime walks it; `audit` proves it.

use serde::{Deserialize, Serialize};

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

/// An address: `arena + buffer.offset + slot · buffer.stride + elements · size`, slot = (add + turn + micro) mod buffer.slots.
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
        Self { buffer, add: 0, turn: false, micro: false, elements: 0 }
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
