//! `y = x · factor + offset` with compile-time numbers: negation, `x * 0.5`, `1 - x`.

use std::sync::Arc;

use super::function::{Emit, Misuse};
use super::{emit_one, gradient_name, streaming};
use crate::form::Form;
use crate::interpret::Tensor;
use crate::ir::{Cost, GradientBuilder, Op, ShapeError, TensorType, ValueId};
use crate::row_builder::RowBuilder;

/// `y = x · factor + offset`
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Scale {
    /// Multiplies.
    pub factor: f64,
    /// Is added.
    pub offset: f64,
}

/// `x · factor`; x itself where the factor is 1.
pub(crate) fn scale(e: &mut dyn Emit, x: ValueId, factor: f64) -> Result<ValueId, Misuse> {
    if factor == 1.0 {
        return Ok(x);
    }
    emit_one(e, Scale { factor, offset: 0.0 }, &[x])
}

/// `x + offset`
pub(crate) fn shift(e: &mut dyn Emit, x: ValueId, offset: f64) -> Result<ValueId, Misuse> {
    emit_one(e, Scale { factor: 1.0, offset }, &[x])
}

/// `c - x`
pub(crate) fn reverse_subtract(e: &mut dyn Emit, c: f64, x: ValueId) -> Result<ValueId, Misuse> {
    emit_one(e, Scale { factor: -1.0, offset: c }, &[x])
}

impl Op for Scale {
    fn name(&self) -> &'static str {
        if self.factor == 1.0 { "shift" } else { "scale" }
    }

    fn attributes(&self) -> String {
        match (self.factor == 1.0, self.offset == 0.0) {
            (true, _) => format!("by {}", self.offset),
            (false, true) => format!("by {}", self.factor),
            (false, false) => format!("by {} plus {}", self.factor, self.offset),
        }
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        Ok(vec![inputs[0].clone()])
    }

    fn gradient(
        &self,
        g: &mut dyn GradientBuilder,
        inputs: &[ValueId],
        _outputs: &[ValueId],
        grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        let Some(dy) = grads[0] else { return vec![None] };
        if self.factor == 1.0 {
            return vec![Some(dy)];
        }
        let name = gradient_name(&g.name(inputs[0]));
        vec![Some(g.emit(Arc::new(Scale { factor: self.factor, offset: 0.0 }), &[dy], &name)[0])]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        vec![inputs[0].map(|x| x * self.factor + self.offset)]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        streaming(inputs[0].elements() as f64, inputs, outputs)
    }

    fn form(&self, inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        let mut b = RowBuilder::new(inputs[0].rows(), inputs[0].cols());
        let x = b.element();
        let scaled = if self.factor == 1.0 { x } else { b.times(x, self.factor) };
        let y = if self.offset == 0.0 { scaled } else { b.plus(scaled, self.offset) };
        b.yield_element(y);
        Form::Row(b.finish())
    }
}
