//! A constant tensor: the seed of the backward pass, and sums that start at zero.

use super::streaming;
use crate::form::Form;
use crate::interpret::Tensor;
use crate::ir::{Cost, GradientBuilder, Op, ShapeError, TensorType, ValueId};
use crate::row_builder::RowBuilder;

/// No operands; every element is `value`.
#[derive(Clone, PartialEq, Debug)]
pub struct Fill {
    /// Of each element.
    pub value: f64,
    /// The result's type.
    pub ty: TensorType,
}

impl Op for Fill {
    fn name(&self) -> &'static str {
        "fill"
    }

    fn attributes(&self) -> String {
        format!("{}", self.value)
    }

    fn infer(&self, _inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        Ok(vec![self.ty.clone()])
    }

    fn gradient(
        &self,
        _g: &mut dyn GradientBuilder,
        _inputs: &[ValueId],
        _outputs: &[ValueId],
        _grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        vec![]
    }

    fn evaluate(&self, _inputs: &[&Tensor]) -> Vec<Tensor> {
        let dims: Vec<usize> = self.ty.dims.iter().map(|d| d.size as usize).collect();
        vec![Tensor::from_fn(&dims, |_| self.value)]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        streaming(0.0, inputs, outputs)
    }

    fn form(&self, _inputs: &[&TensorType], outputs: &[&TensorType]) -> Form {
        let mut b = RowBuilder::new(outputs[0].rows(), outputs[0].cols());
        let value = b.number(self.value);
        b.yield_element(value);
        Form::Row(b.finish())
    }
}
