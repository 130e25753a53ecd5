//! `y = Σ over the leading dims of x`: the gradient of an operand that was repeated over leading dims.

use std::sync::Arc;

use super::reshape::{Reshape, joined};
use super::streaming;
use super::sum::Sum;
use crate::form::Form;
use crate::interpret::Tensor;
use crate::ir::{Cost, Dim, GradientBuilder, Op, ShapeError, TensorType, ValueId};
use crate::row_builder::RowBuilder;

/// `[.., C] → [C]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SumLeading;

/// Sums `x` over the leading dims that `ty` lacks; `x` itself if it lacks none.
pub(super) fn reduce_to(g: &mut dyn GradientBuilder, x: ValueId, ty: &TensorType, name: &str) -> ValueId {
    let whole = g.ty(x);
    if whole.dims.len() == ty.dims.len() {
        return x;
    }
    let mut reshape = |x, dims: Vec<Dim>| {
        if g.ty(x).dims == dims { x } else { g.emit(Arc::new(Reshape { dims }), &[x], name)[0] }
    };
    if ty.dims.is_empty() {
        let rows = reshape(
            x,
            vec![joined(&whole.dims[..whole.dims.len() - 1]), joined(&whole.dims[whole.dims.len() - 1..])],
        );
        let sums = g.emit(Arc::new(Sum), &[rows], name)[0];
        return g.emit(Arc::new(Sum), &[sums], name)[0];
    }
    if ty.dims.len() == 1 {
        return g.emit(Arc::new(SumLeading), &[x], name)[0];
    }
    let (leading, own) = whole.dims.split_at(whole.dims.len() - ty.dims.len());
    // A single sequence has nothing to sum over.
    if joined(leading).size == 1 {
        return reshape(x, ty.dims.clone());
    }
    let flat = reshape(x, vec![joined(leading), joined(own)]);
    let sum = g.emit(Arc::new(SumLeading), &[flat], name)[0];
    g.emit(Arc::new(Reshape { dims: ty.dims.clone() }), &[sum], name)[0]
}

impl Op for SumLeading {
    fn name(&self) -> &'static str {
        "sum_leading"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        match inputs[0].dims.last() {
            Some(cols) => Ok(vec![inputs[0].with_dims(vec![cols.clone()])]),
            None => Err(ShapeError::new(0, 0, "a scalar has no leading dims")),
        }
    }

    fn gradient(
        &self,
        _g: &mut dyn GradientBuilder,
        _inputs: &[ValueId],
        _outputs: &[ValueId],
        _grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        vec![None]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let cols = inputs[0].cols();
        let mut y = Tensor::zeros(&[cols]);
        for (i, x) in inputs[0].data.iter().enumerate() {
            y.data[i % cols] += x;
        }
        vec![y]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        streaming(inputs[0].elements() as f64, inputs, outputs)
    }

    fn form(&self, inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        let mut b = RowBuilder::new(inputs[0].rows(), inputs[0].cols());
        let x = b.element();
        b.yield_column_sum(x);
        Form::Row(b.finish())
    }
}
