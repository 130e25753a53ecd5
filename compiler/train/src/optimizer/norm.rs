//! The global gradient norm, and the scalars of the step that follow from it.
//!
//! Two stages with fixed orders: the squares of each row of a flat gradient, then one row of those sums.

use dspc_graph::row_builder::RowBuilder;
use dspc_graph::rowfn::{Access, BinaryFn, Node, RowFn, RowMap, UnaryFn};

/// Operand g `[rows, cols]`; result `[rows]`: Σ g² along each row.
pub fn sum_of_squares(rows: u64, cols: u64) -> RowFn {
    let mut b = RowBuilder::new(rows, cols);
    let g = b.element();
    let square = b.multiply(g, g);
    let sum = b.sum(square);
    b.yield_row(sum);
    b.finish()
}

/// The scalars of a step, from the sums of squares.
///
/// Operands: the sums `[1, cols]`, applied steps t `[1]` i32, and tables by t: learning rate, 1 − β₁ᵗ⁺¹, 1 − β₂ᵗ⁺¹.
/// Results, scalars: norm, finite (1 or 0), clip factor min(1, clip / (norm + 1e-6)) (PyTorch's `clip_grad_norm_`), learning rate, both bias
/// corrections, and the applied steps afterwards: t + 1 if the norm is finite, else t.
pub fn step_scalars(cols: u64, clip: Option<f64>) -> RowFn {
    let mut b = RowBuilder::new(1, cols);
    let squares = b.element();
    let sum = b.sum(squares);
    let norm = b.unary(UnaryFn::Sqrt, sum);
    let is_finite = b.unary(UnaryFn::IsFinite, norm);
    let (one, zero) = (b.number(1.0), b.number(0.0));
    let finite = b.select(is_finite, one, zero);
    let applied = b.input(Access::Row(RowMap::EACH));
    let t = b.node(Node::Load(applied));
    let by_t = || Access::Row(RowMap::Gather(applied));
    let (lr, bias1, bias2) = (b.load(by_t()), b.load(by_t()), b.load(by_t()));
    let factor = match clip {
        None => one,
        Some(clip) => {
            let clip = b.number(clip);
            let guarded = b.plus(norm, 1e-6);
            let ratio = b.divide(clip, guarded);
            b.binary(BinaryFn::Min, one, ratio)
        }
    };
    let one_step = b.node(Node::ConstInt(1));
    let next = b.add(t, one_step);
    let next = b.select(is_finite, next, t);
    for node in [norm, finite, factor, lr, bias1, bias2, next] {
        b.yield_row(node);
    }
    b.finish()
}
