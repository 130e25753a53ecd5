//! A range of one dim: `x[0..T]`, a view.

use std::sync::Arc;

use super::function::{Emit, Misuse};
use super::pad::Pad;
use super::{emit_one, gradient_name};
use crate::form::{Form, View};
use crate::interpret::Tensor;
use crate::ir::{Cost, Dim, GradientBuilder, Op, ShapeError, TensorType, ValueId};

/// `start..start + size` along a dim.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Slice {
    /// Which dim.
    pub dim: usize,
    /// First index.
    pub start: u64,
    /// The dim that is left.
    pub size: Dim,
}

/// A slice of `x`; `x` itself where it is the whole.
pub(crate) fn slice(
    e: &mut dyn Emit,
    x: ValueId,
    dim: usize,
    start: u64,
    size: Dim,
) -> Result<ValueId, Misuse> {
    if start == 0 && e.ty(x).dims.get(dim).is_some_and(|d| *d == size) {
        return Ok(x);
    }
    emit_one(e, Slice { dim, start, size }, &[x])
}

impl Op for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }

    fn attributes(&self) -> String {
        format!("dim {} from {}", self.dim, self.start)
    }

    fn keeps_constants(&self) -> bool {
        true
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let mut dims = inputs[0].dims.clone();
        let Some(dim) = dims.get_mut(self.dim) else {
            return Err(ShapeError::new(
                0,
                0,
                format!("there is no dim {} in {}", self.dim, super::shown(inputs[0])),
            ));
        };
        let end = self.start.checked_add(self.size.size);
        if end.is_none_or(|end| end > dim.size) {
            let message = format!(
                "the range {}..{} leaves the dim `{}`, which has {}",
                self.start,
                self.start.saturating_add(self.size.size),
                dim.name,
                dim.size
            );
            return Err(ShapeError::dims((0, self.dim), (0, self.dim), message));
        }
        *dim = self.size.clone();
        Ok(vec![inputs[0].with_dims(dims)])
    }

    fn gradient(
        &self,
        g: &mut dyn GradientBuilder,
        inputs: &[ValueId],
        _outputs: &[ValueId],
        grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        let size = g.ty(inputs[0]).dims[self.dim].clone();
        let op = Pad { dim: self.dim, start: self.start, size };
        let name = gradient_name(&g.name(inputs[0]));
        vec![grads[0].map(|dy| g.emit(Arc::new(op), &[dy], &name)[0])]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let x = inputs[0];
        let mut dims = x.dims.clone();
        dims[self.dim] = self.size.size as usize;
        let inner: usize = dims[self.dim + 1..].iter().product();
        let (old, new) = (x.dims[self.dim], dims[self.dim]);
        vec![Tensor::from_fn(&dims, |i| {
            let (outer, at, rest) = (i / (new * inner), i / inner % new, i % inner);
            x.data[(outer * old + at + self.start as usize) * inner + rest]
        })]
    }

    fn cost(&self, _inputs: &[&TensorType], _outputs: &[&TensorType]) -> Cost {
        Cost::default()
    }

    fn form(&self, _inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        Form::View(vec![View::Slice { dim: self.dim, start: self.start }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_padded_slice_has_zeros_around_it() {
        let x = Tensor::from_fn(&[2, 4, 2], |i| i as f64 + 1.0);
        let y = Slice { dim: 1, start: 1, size: Dim::of(2) }.evaluate(&[&x]).remove(0);
        assert_eq!(y.data, [3.0, 4.0, 5.0, 6.0, 11.0, 12.0, 13.0, 14.0]);
        let z = Pad { dim: 1, start: 1, size: Dim::of(4) }.evaluate(&[&y]).remove(0);
        assert_eq!(z.data[..8], [0.0, 0.0, 3.0, 4.0, 5.0, 6.0, 0.0, 0.0]);
    }

    #[test]
    fn a_range_past_the_end_is_refused() {
        let ty = TensorType::f32(vec![Dim::of(4)]);
        let slice = |start, size| Slice { dim: 0, start, size: Dim::of(size) }.infer(&[&ty]);
        assert!(slice(1, 3).is_ok());
        assert!(slice(2, 3).is_err());
        assert!(slice(u64::MAX, 3).is_err());
    }
}
