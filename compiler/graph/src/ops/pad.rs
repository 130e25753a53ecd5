//! Zeros with the operand at a place along one dim: the gradient of a slice.

use std::sync::Arc;

use super::slice::Slice;
use super::{gradient_name, streaming};
use crate::form::Form;
use crate::interpret::Tensor;
use crate::ir::{Cost, Dim, GradientBuilder, Op, ShapeError, TensorType, ValueId};

/// The operand begins at `start`; the dim grows to `size`.
#[derive(Clone, PartialEq, Debug)]
pub struct Pad {
    /// Which dim.
    pub dim: usize,
    /// Where the operand begins.
    pub start: u64,
    /// The dim of the result.
    pub size: Dim,
}

impl Op for Pad {
    fn name(&self) -> &'static str {
        "pad"
    }

    fn attributes(&self) -> String {
        format!("dim {} at {} of {}", self.dim, self.start, self.size.name)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let mut dims = inputs[0].dims.clone();
        match dims.get_mut(self.dim) {
            Some(dim) if self.start + dim.size <= self.size.size => *dim = self.size.clone(),
            _ => return Err(ShapeError::new(0, 0, "the operand does not fit the padded dim")),
        }
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
        let op = Slice { dim: self.dim, start: self.start, size };
        let name = gradient_name(&g.name(inputs[0]));
        vec![grads[0].map(|dy| g.emit(Arc::new(op), &[dy], &name)[0])]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let x = inputs[0];
        let (small, start) = (x.dims[self.dim], self.start as usize);
        let mut dims = x.dims.clone();
        dims[self.dim] = self.size.size as usize;
        let inner: usize = dims[self.dim + 1..].iter().product();
        let large = dims[self.dim];
        vec![Tensor::from_fn(&dims, |i| {
            let (outer, at, rest) = (i / (large * inner), i / inner % large, i % inner);
            let inside = (start..start + small).contains(&at);
            if inside { x.data[(outer * small + at - start) * inner + rest] } else { 0.0 }
        })]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        streaming(0.0, inputs, outputs)
    }

    fn form(&self, _inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        Form::Pad { dim: self.dim, start: self.start }
    }
}
