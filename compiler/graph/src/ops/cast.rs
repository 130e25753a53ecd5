//! The same numbers stored in another type; the precision pass writes it where a kernel needs all its operands in one type.

use std::sync::Arc;

use super::{gradient_name, streaming};
use crate::form::Form;
use crate::interpret::Tensor;
use crate::ir::{Cost, DType, GradientBuilder, Op, ShapeError, TensorType, ValueId};
use crate::row_builder::RowBuilder;

/// Rounds to nearest, ties to even.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cast {
    /// The result's.
    pub to: DType,
}

impl Op for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn attributes(&self) -> String {
        format!("to {}", self.to)
    }

    fn keeps_constants(&self) -> bool {
        true
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        if inputs[0].dtype == DType::I32 || self.to == DType::I32 {
            return Err(ShapeError::new(0, 0, "ids have no other type"));
        }
        Ok(vec![TensorType { dtype: self.to, dims: inputs[0].dims.clone() }])
    }

    fn gradient(
        &self,
        g: &mut dyn GradientBuilder,
        inputs: &[ValueId],
        _outputs: &[ValueId],
        grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        let (name, to) = (gradient_name(&g.name(inputs[0])), g.ty(inputs[0]).dtype);
        vec![grads[0].map(|dy| g.emit(Arc::new(Cast { to }), &[dy], &name)[0])]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        vec![inputs[0].clone()]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        streaming(0.0, inputs, outputs)
    }

    fn form(&self, inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        let mut b = RowBuilder::new(inputs[0].rows(), inputs[0].cols());
        let x = b.element();
        b.yield_element(x);
        Form::Row(b.finish())
    }
}
