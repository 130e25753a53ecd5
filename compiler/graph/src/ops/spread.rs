//! `y[.., d] = x[..]`: a new last dim, the same along it; the gradient of a sum.

use std::sync::Arc;

use super::sum::Sum;
use super::{gradient_name, streaming};
use crate::form::Form;
use crate::interpret::Tensor;
use crate::ir::{Cost, Dim, GradientBuilder, Op, ShapeError, TensorType, ValueId};
use crate::row_builder::RowBuilder;

/// `[..] → [.., D]`
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Spread {
    /// The new dim.
    pub last: Dim,
}

impl Op for Spread {
    fn name(&self) -> &'static str {
        "spread"
    }

    fn attributes(&self) -> String {
        format!("to {}", self.last.name)
    }

    fn keeps_constants(&self) -> bool {
        true
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let mut dims = inputs[0].dims.clone();
        dims.push(self.last.clone());
        Ok(vec![inputs[0].with_dims(dims)])
    }

    fn gradient(
        &self,
        g: &mut dyn GradientBuilder,
        inputs: &[ValueId],
        _outputs: &[ValueId],
        grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        let name = gradient_name(&g.name(inputs[0]));
        vec![grads[0].map(|dy| g.emit(Arc::new(Sum), &[dy], &name)[0])]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let cols = self.last.size as usize;
        let mut dims = inputs[0].dims.clone();
        dims.push(cols);
        vec![Tensor::from_fn(&dims, |i| inputs[0].data[i / cols])]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        streaming(0.0, inputs, outputs)
    }

    fn form(&self, _inputs: &[&TensorType], outputs: &[&TensorType]) -> Form {
        let mut b = RowBuilder::new(outputs[0].rows(), outputs[0].cols());
        let x = b.row();
        b.yield_element(x);
        Form::Row(b.finish())
    }
}
