//! Kernels as data: what the emitters turn into code.
//!
//! # Calling convention (CPU)
//! `void name(void *const *args, int64_t begin, int64_t end)`: `args[i]` points at operand i's first element, reads first, then
//! writes, both in the order of the description; where [`RowKernel::uses_turn`] holds one more argument follows whose *value* is the turn. `begin..end` are
//! items of the kernel, [`Kernel::items`] in all: any split of them over threads gives the same bits.

use dspc_graph::ir::DType;
use dspc_graph::mask::Mask;
use dspc_graph::rowfn::{Access, Node, NodeId};

/// A kernel that an emitter writes.
#[derive(Clone, PartialEq, Debug)]
pub enum Kernel {
    /// Element-wise chains and row reductions.
    Row(RowKernel),
    /// Tiled attention with online softmax. Reads q, k, v; writes y, log-sum-exp `[batch, heads, queries]` f32.
    Attention(AttentionKernel),
    /// Its gradient. Reads q, k, v, y, log-sum-exp, dy; writes dq, dk, dv, and on a GPU a workspace.
    AttentionBackward(AttentionKernel),
    /// Adds rows by id. Reads ids (i32), x; reads and writes out.
    ScatterAdd(ScatterAddKernel),
    /// A matrix product; on a GPU only.
    Product(ProductKernel),
}

/// A fused row function with its operands bound.
#[derive(Clone, PartialEq, Debug)]
pub struct RowKernel {
    /// Rows of the iteration space.
    pub rows: u64,
    /// Columns of it.
    pub cols: u64,
    /// Operands that are read; [`dspc_graph::rowfn::InputId`] counts in here.
    pub reads: Vec<Read>,
    /// The expression DAG.
    pub nodes: Vec<Node>,
    /// What is written.
    pub writes: Vec<Write>,
    /// How the work divides.
    pub split: Split,
}

/// How a row kernel's work divides into items.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Split {
    /// An item is an element: purely element-wise, every operand [`Access::Element`] of the row itself without gaps, or a [`Access::Scalar`].
    Elements,
    /// An item is a row.
    Rows,
    /// An item is a run of this many rows (the last may be shorter): there are column sums, one partial row an item.
    Chunks(u64),
}

/// An operand that is read.
#[derive(Clone, PartialEq, Debug)]
pub struct Read {
    /// For people.
    pub name: String,
    /// Of its elements in memory.
    pub dtype: DType,
    /// How it is addressed.
    pub access: Access,
    /// Elements from one of its rows to the next (1 for [`Access::Row`] without gaps).
    pub stride: u64,
}

/// An operand that is written.
#[derive(Clone, PartialEq, Debug)]
pub struct Write {
    /// For people.
    pub name: String,
    /// Of its elements in memory.
    pub dtype: DType,
    /// The value and where it goes.
    pub what: Target,
    /// Elements from one of its rows to the next.
    pub stride: u64,
    /// Add to what is there.
    pub accumulate: bool,
}

/// Where a node's value goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Target {
    /// `out[row * stride + col]`
    Element(NodeId),
    /// `out[row * stride]`
    Row(NodeId),
    /// `out[item * stride + col] = Σ of the node over the item's rows`, in row order.
    ColumnSum(NodeId),
}

impl RowKernel {
    /// Whether a [`Node::Uniform`] asks for the turn.
    pub fn uses_turn(&self) -> bool {
        self.nodes.iter().any(|n| matches!(n, Node::Uniform { .. }))
    }
}

/// Attention over packed or separate operands.
#[derive(Clone, PartialEq, Debug)]
pub struct AttentionKernel {
    /// Sequences.
    pub batch: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Width of a head.
    pub head_dim: u64,
    /// Query positions.
    pub queries: u64,
    /// Key positions.
    pub keys: u64,
    /// Of q, k, v, y and their gradients in memory. Statistics are f32.
    pub dtype: DType,
    /// Factors that are f32 may be rounded to TF32.
    pub tf32: bool,
    /// Scores are multiplied by this.
    pub scale: f64,
    /// Which pairs may look.
    pub mask: Mask,
    /// Elements from one position to the next, per operand in the kernel's order, log-sum-exp left out (it has no gaps); batch b of an operand begins at b × positions × stride.
    pub strides: Vec<u64>,
}

impl AttentionKernel {
    /// f32 elements of the workspace that the gradient's GPU kernels take as their last operand: Σ y · dy a query (queries rounded up to 128),
    /// then dq before it is rounded.
    pub fn workspace_elements(&self) -> u64 {
        let rows = self.batch * self.heads;
        rows * self.queries.next_multiple_of(128) + rows * self.queries * self.head_dim
    }
}

/// `out[ids[n], c] += x[n, c]`, n in order.
#[derive(Clone, PartialEq, Debug)]
pub struct ScatterAddKernel {
    /// Rows of x.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
    /// Rows of out.
    pub out_rows: u64,
    /// Of x in memory; out is f32.
    pub dtype: DType,
    /// Elements from one row of x to the next.
    pub stride: u64,
}

/// `c = op(a) · op(b) [+ c]` with sums in f32, and what is done besides before c is rounded.
///
/// Operands: a, b, c, those of [`ProductKernel::fused`], then a workspace of f32 where [`ProductKernel::workspace_elements`] is not 0.
#[derive(Clone, PartialEq, Debug)]
pub struct ProductKernel {
    /// Rows of c.
    pub m: u64,
    /// Columns of c.
    pub n: u64,
    /// Summed.
    pub k: u64,
    /// Left, `[m, k]`, or `[k, m]` if transposed.
    pub a: ProductMatrix,
    /// Right, `[k, n]`, or `[n, k]` if transposed.
    pub b: ProductMatrix,
    /// Result.
    pub c: ProductMatrix,
    /// Add to what c holds.
    pub accumulate: bool,
    /// Factors that are f32 may be rounded to TF32.
    pub tf32: bool,
    /// What is done besides.
    pub fused: Option<ProductFused>,
    /// Parts of the summed dim, whose products are kept apart and added in order: the result does not depend on which ends first.
    pub splits: u64,
    /// Every operand begins at a multiple of 16 bytes.
    pub aligned: bool,
}

/// An operand of a product in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ProductMatrix {
    /// Of its elements.
    pub dtype: DType,
    /// Elements from one stored row to the next.
    pub stride: u64,
    /// Stored the other way round.
    pub transposed: bool,
}

/// What a product's kernel does before it stores; GELU in its tanh form. Types are of the operand in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ProductFused {
    /// `c = a · b + bias`, bias `[n]`.
    Bias(DType),
    /// `pre = a · b + bias; c = gelu(pre)`. Operands bias, pre.
    BiasGelu {
        /// Of the bias.
        bias: DType,
        /// Written, `[m, n]`.
        pre: ProductMatrix,
    },
    /// `c = (a · b) ∘ gelu′(pre)`
    GeluGradient {
        /// Read, `[m, n]`.
        pre: ProductMatrix,
    },
    /// `sum[j] = Σ of b[·, j]` over the summed dim.
    BiasGradient(DType),
}

impl ProductKernel {
    /// Parts into which [`ProductFused::BiasGradient`]'s sums are cut.
    pub const SUM_PARTS: u64 = 128;

    /// f32 elements of the workspace: a part's products `[m, n]` after another's, then a bias gradient's partial sums.
    pub fn workspace_elements(&self) -> u64 {
        let parts = if self.splits > 1 { self.splits * self.m * self.n } else { 0 };
        let sums = matches!(self.fused, Some(ProductFused::BiasGradient(_)));
        parts + if sums { Self::SUM_PARTS * self.n } else { 0 }
    }
}

impl Kernel {
    /// Items that the work divides into.
    pub fn items(&self) -> u64 {
        match self {
            Kernel::Row(k) => match k.split {
                Split::Elements => k.rows * k.cols,
                Split::Rows => k.rows,
                Split::Chunks(rows) => k.rows.div_ceil(rows),
            },
            Kernel::Attention(k) => k.batch * k.heads,
            Kernel::AttentionBackward(k) => k.batch * k.kv_heads,
            Kernel::ScatterAdd(k) => k.cols,
            Kernel::Product(k) => k.m,
        }
    }
}
