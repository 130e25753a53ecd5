//! The last two dims exchanged: a view.

use std::sync::Arc;

use dspc_spec::body::Builtin;

use super::function::{Build, Expects, Function, Parameter};
use super::gradient_name;
use crate::form::{Form, View};
use crate::interpret::Tensor;
use crate::ir::{Cost, GradientBuilder, Op, ShapeError, TensorType, ValueId};

pub(crate) const TRANSPOSE: Function = Function {
    builtin: Builtin {
        name: "transpose",
        signature: "transpose(x)",
        doc: "Exchanges the last two dims; on the right of `@` it costs nothing.",
    },
    params: &[Parameter::required("x", Expects::Tensor)],
    build: Build::Ops(|e, args| Ok(vec![super::emit_one(e, Transpose, &[args.tensor(0)])?])),
};

/// `[.., M, N] → [.., N, M]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Transpose;

impl Op for Transpose {
    fn name(&self) -> &'static str {
        "transpose"
    }

    fn keeps_constants(&self) -> bool {
        true
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let mut dims = inputs[0].dims.clone();
        let n = dims.len();
        if n < 2 {
            return Err(ShapeError::new(
                0,
                0,
                format!("two dims are needed, and there is {}", super::shown(inputs[0])),
            ));
        }
        dims.swap(n - 2, n - 1);
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
        vec![grads[0].map(|dy| g.emit(Arc::new(Transpose), &[dy], &name)[0])]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let x = inputs[0];
        let mut dims = x.dims.clone();
        let n = dims.len();
        dims.swap(n - 2, n - 1);
        let (rows, cols) = (dims[n - 2], dims[n - 1]);
        vec![Tensor::from_fn(&dims, |i| {
            let (matrix, row, col) = (i / (rows * cols), i / cols % rows, i % cols);
            x.data[matrix * rows * cols + col * rows + row]
        })]
    }

    fn cost(&self, _inputs: &[&TensorType], _outputs: &[&TensorType]) -> Cost {
        Cost::default()
    }

    fn form(&self, inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        let n = inputs[0].dims.len();
        Form::View(vec![View::Transpose { a: n - 2, b: n - 1 }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_is_not_at_all() {
        let x = Tensor::from_fn(&[2, 3, 4], |i| i as f64);
        let y = Transpose.evaluate(&[&x]).remove(0);
        assert_eq!((y.dims.as_slice(), y.data[1]), ([2, 4, 3].as_slice(), 4.0));
        assert_eq!(Transpose.evaluate(&[&y]), [x]);
    }
}
