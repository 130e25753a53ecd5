//! How the kernel layer computes an op: six forms, whatever the number of ops.

use crate::mask::Mask;
use crate::rowfn::RowFn;

/// The form of one op.
#[derive(Clone, PartialEq, Debug)]
pub enum Form {
    /// Element-wise work and reductions along rows; fuses with its neighbours.
    Row(RowFn),
    /// `out = op(a) · op(b)`; each operand is seen as a matrix `[product of leading dims, last dim]`.
    Contract {
        /// Use a's transpose.
        transpose_a: bool,
        /// Use b's transpose.
        transpose_b: bool,
    },
    /// Softmax attention; operands q, k, v; results y and the rows' log-sum-exp.
    Attention(Attention),
    /// Its gradient; operands q, k, v, y, log-sum-exp, dy; results dq, dk, dv.
    AttentionBackward(Attention),
    /// Each result is a view of operand 0: no work.
    View(Vec<View>),
    /// Operands side by side along `dim`: they are written in place where that is possible.
    Concat {
        /// The dim that grows.
        dim: usize,
    },
    /// Zeros with operand 0 at `start` along `dim`: the gradient of a slice.
    Pad {
        /// The dim.
        dim: usize,
        /// Where operand 0 begins.
        start: u64,
    },
    /// `out[ids[n], :] += x[n, :]` on zeros, rows added in order of n: the gradient of a gather. Operands ids, x.
    ScatterAdd,
}

/// Softmax attention over `[B, T, heads × head_dim]`.
#[derive(Clone, PartialEq, Debug)]
pub struct Attention {
    /// Query heads.
    pub heads: u64,
    /// Key and value heads; divides `heads`.
    pub kv_heads: u64,
    /// Width of a head.
    pub head_dim: u64,
    /// Scores are multiplied by this, 1/√head_dim by default.
    pub scale: f64,
    /// Which pairs may look.
    pub mask: Mask,
}

/// A way to see a value without moving it.
#[derive(Clone, PartialEq, Debug)]
pub enum View {
    /// The same elements under the result's dims.
    Reshape,
    /// `start..start + size` along `dim`.
    Slice {
        /// The dim.
        dim: usize,
        /// First index.
        start: u64,
    },
    /// Two dims exchanged.
    Transpose {
        /// One.
        a: usize,
        /// The other.
        b: usize,
    },
}
