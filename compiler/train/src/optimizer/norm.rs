//! The global gradient norm, and the scalars of the step that follow from it.
//!
//! Two stages with fixed orders: the squares of each row of a flat gradient, then one row of those sums.

use dspc_graph::row_builder::RowBuilder;
use dspc_graph::rowfn::{Access, BinaryFn, Node, NodeId, RowFn, RowMap, UnaryFn};

use super::scaler::Scaling;

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
/// Operands: the sums `[1, cols]`, applied steps t `[1]` i32, tables by t: learning rate, and `tables` more that the optimizer's rules read; in half precision
/// the loss scale, and if that is dynamic the clean steps and the hysteresis left, both `[1]` i32.
///
/// Results, scalars: norm, finite (1 or 0), the gradients' factor min(1, clip / (norm + 1e-6)) / scale (the clip as PyTorch's `clip_grad_norm_` has it), learning
/// rate, the other tables' numbers, the applied steps afterwards (t + 1 if the norm is finite, else t), the first sum that is not finite (its column, or −1);
/// with a dynamic scale those of [`super::scaler`] as well. The norm is that of the gradients without the scale.
pub fn step_scalars(cols: u64, clip: Option<f64>, scaling: &Scaling, tables: usize) -> RowFn {
    let mut b = RowBuilder::new(1, cols);
    let squares = b.element();
    let sum = b.sum(squares);
    let root = b.unary(UnaryFn::Sqrt, sum);
    let applied = b.input(Access::Row(RowMap::EACH));
    let t = b.node(Node::Load(applied));
    let by_t = || Access::Row(RowMap::Gather(applied));
    let by_step: Vec<NodeId> = (0..=tables).map(|_| b.load(by_t())).collect();
    let scale = scaling.is_scaled().then(|| b.scalar());
    let norm = scale.map_or(root, |scale| b.divide(root, scale));
    let is_finite = b.unary(UnaryFn::IsFinite, norm);
    let (one, zero) = (b.number(1.0), b.number(0.0));
    let finite = b.select(is_finite, one, zero);
    let clipped = clip.map_or(one, |clip| {
        let clip = b.number(clip);
        let guarded = b.plus(norm, 1e-6);
        let ratio = b.divide(clip, guarded);
        b.binary(BinaryFn::Min, one, ratio)
    });
    let factor = scale.map_or(clipped, |scale| b.divide(clipped, scale));
    let one_step = b.node(Node::ConstInt(1));
    let next = b.add(t, one_step);
    let next = b.select(is_finite, next, t);
    let first_bad = first_not_finite(&mut b, squares, cols);
    for node in [norm, finite, factor].into_iter().chain(by_step).chain([next, first_bad]) {
        b.yield_row(node);
    }
    if let (Scaling::Dynamic(scaler), Some(scale)) = (scaling, scale) {
        scaler.adapt(&mut b, scale, is_finite);
    }
    b.finish()
}

/// The first column whose element is infinite or no number; −1 if there is none. Exact to 2²⁴ columns.
fn first_not_finite(b: &mut RowBuilder, x: NodeId, cols: u64) -> NodeId {
    let column = b.node(Node::Column);
    let column = b.unary(UnaryFn::ToFloat, column);
    let from_end = b.negate(column);
    let beyond = b.number(-(cols as f64));
    let good = b.unary(UnaryFn::IsFinite, x);
    let found = b.select(good, beyond, from_end);
    let found = b.max(found);
    let none = b.binary(BinaryFn::Equal, found, beyond);
    let (minus_one, first) = (b.number(-1.0), b.negate(found));
    b.select(none, minus_one, first)
}
