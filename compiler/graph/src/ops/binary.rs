//! `+ - * /` of two tensors; an operand without the leading dims of the other is repeated over them.

use std::sync::Arc;

use super::function::{Emit, Misuse};
use super::sum_leading::reduce_to;
use super::{emit_one, gradient_name, scale, streaming};
use crate::form::Form;
use crate::interpret::Tensor;
use crate::ir::{Cost, GradientBuilder, Op, ShapeError, TensorType, ValueId};
use crate::row_builder::RowBuilder;
use crate::rowfn::{Access, BinaryFn, RowMap};

/// Element-wise arithmetic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Binary(Kind);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Add,
    Subtract,
    Multiply,
    Divide,
}

impl Binary {
    /// a + b
    pub const ADD: Binary = Binary(Kind::Add);
    /// a − b
    pub const SUBTRACT: Binary = Binary(Kind::Subtract);
    /// a · b
    pub const MULTIPLY: Binary = Binary(Kind::Multiply);
    /// a / b
    pub const DIVIDE: Binary = Binary(Kind::Divide);
}

/// `a + b`
pub(crate) fn add(e: &mut dyn Emit, a: ValueId, b: ValueId) -> Result<ValueId, Misuse> {
    emit_one(e, Binary::ADD, &[a, b])
}

/// `a - b`
pub(crate) fn subtract(e: &mut dyn Emit, a: ValueId, b: ValueId) -> Result<ValueId, Misuse> {
    emit_one(e, Binary::SUBTRACT, &[a, b])
}

/// `a * b`
pub(crate) fn multiply(e: &mut dyn Emit, a: ValueId, b: ValueId) -> Result<ValueId, Misuse> {
    emit_one(e, Binary::MULTIPLY, &[a, b])
}

/// `a / b`
pub(crate) fn divide(e: &mut dyn Emit, a: ValueId, b: ValueId) -> Result<ValueId, Misuse> {
    emit_one(e, Binary::DIVIDE, &[a, b])
}

/// How an operand meets an iteration space of the larger one's dims.
fn access(operand: &TensorType, whole: &TensorType) -> Access {
    if operand.dims.len() == whole.dims.len() {
        Access::Element(RowMap::EACH)
    } else if operand.dims.is_empty() {
        Access::Scalar
    } else {
        Access::Element(RowMap::modulo(operand.rows()))
    }
}

impl Op for Binary {
    fn name(&self) -> &'static str {
        match self.0 {
            Kind::Add => "add",
            Kind::Subtract => "subtract",
            Kind::Multiply => "multiply",
            Kind::Divide => "divide",
        }
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let (a, b) = (inputs[0], inputs[1]);
        let (large, small, large_at, small_at) =
            if a.dims.len() >= b.dims.len() { (a, b, 0, 1) } else { (b, a, 1, 0) };
        let skip = large.dims.len() - small.dims.len();
        for (i, (l, s)) in large.dims[skip..].iter().zip(&small.dims).enumerate() {
            if l != s {
                let message = format!(
                    "{} and {} do not fit element by element; only missing leading dims are repeated",
                    super::shown(a),
                    super::shown(b)
                );
                return Err(ShapeError::dims((large_at, skip + i), (small_at, i), message));
            }
        }
        Ok(vec![large.clone()])
    }

    fn gradient(
        &self,
        g: &mut dyn GradientBuilder,
        inputs: &[ValueId],
        outputs: &[ValueId],
        grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        let Some(dy) = grads[0] else { return vec![None, None] };
        let (a, b) = (inputs[0], inputs[1]);
        let (da_name, db_name) = (gradient_name(&g.name(a)), gradient_name(&g.name(b)));
        let mut da = None;
        let mut db = None;
        if g.needs_gradient(a) {
            let whole = match self.0 {
                Kind::Add | Kind::Subtract => dy,
                Kind::Multiply => g.emit(Arc::new(Self::MULTIPLY), &[dy, b], &da_name)[0],
                Kind::Divide => g.emit(Arc::new(Self::DIVIDE), &[dy, b], &da_name)[0],
            };
            let ty = g.ty(a);
            da = Some(reduce_to(g, whole, &ty, &da_name));
        }
        if g.needs_gradient(b) {
            let minus = Arc::new(scale::Scale { factor: -1.0, offset: 0.0 });
            let whole = match self.0 {
                Kind::Add => dy,
                Kind::Subtract => g.emit(minus, &[dy], &db_name)[0],
                Kind::Multiply => g.emit(Arc::new(Self::MULTIPLY), &[dy, a], &db_name)[0],
                Kind::Divide => {
                    let product = g.emit(Arc::new(Self::MULTIPLY), &[dy, outputs[0]], &db_name)[0];
                    let product = g.emit(minus, &[product], &db_name)[0];
                    g.emit(Arc::new(Self::DIVIDE), &[product, b], &db_name)[0]
                }
            };
            let ty = g.ty(b);
            db = Some(reduce_to(g, whole, &ty, &db_name));
        }
        vec![da, db]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let (a, b) = (inputs[0], inputs[1]);
        let large = if a.dims.len() >= b.dims.len() { a } else { b };
        let f = match self.0 {
            Kind::Add => |x: f64, y: f64| x + y,
            Kind::Subtract => |x, y| x - y,
            Kind::Multiply => |x, y| x * y,
            Kind::Divide => |x, y| x / y,
        };
        vec![Tensor::from_fn(&large.dims, |i| f(a.data[i % a.data.len()], b.data[i % b.data.len()]))]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        streaming(outputs[0].elements() as f64, inputs, outputs)
    }

    fn form(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Form {
        let mut b = RowBuilder::new(outputs[0].rows(), outputs[0].cols());
        let left = b.load(access(inputs[0], outputs[0]));
        let right = b.load(access(inputs[1], outputs[0]));
        let f = match self.0 {
            Kind::Add => BinaryFn::Add,
            Kind::Subtract => BinaryFn::Subtract,
            Kind::Multiply => BinaryFn::Multiply,
            Kind::Divide => BinaryFn::Divide,
        };
        let y = b.binary(f, left, right);
        b.yield_element(y);
        Form::Row(b.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Dim;

    #[test]
    fn only_missing_leading_dims_are_repeated() {
        let ty = |sizes: &[u64]| TensorType::f32(sizes.iter().map(|s| Dim::of(*s)).collect());
        assert_eq!(Binary::ADD.infer(&[&ty(&[4]), &ty(&[2, 3, 4])]), Ok(vec![ty(&[2, 3, 4])]));
        assert_eq!(Binary::ADD.infer(&[&ty(&[2, 3, 4]), &ty(&[])]), Ok(vec![ty(&[2, 3, 4])]));
        let error = Binary::ADD.infer(&[&ty(&[2, 1, 4]), &ty(&[2, 3, 4])]).unwrap_err();
        assert_eq!((error.operands, error.dims), ((0, 1), Some((1, 1))));
    }

    #[test]
    fn a_row_meets_every_row() {
        let x = Tensor::from_fn(&[2, 2], |i| i as f64);
        let row = Tensor { dims: vec![2], data: vec![10.0, 20.0] };
        assert_eq!(Binary::SUBTRACT.evaluate(&[&x, &row])[0].data, [-10.0, -19.0, -8.0, -17.0]);
        assert_eq!(Binary::SUBTRACT.evaluate(&[&row, &x])[0].data, [10.0, 19.0, 8.0, 17.0]);
    }
}
