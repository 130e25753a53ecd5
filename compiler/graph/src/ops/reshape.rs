//! The same elements under other dims: a view.

use std::sync::Arc;

use dspc_spec::body::Builtin;

use super::function::{Build, Expects, Function, Parameter};
use super::{gradient_name, shown};
use crate::form::{Form, View};
use crate::interpret::Tensor;
use crate::ir::{Cost, Dim, GradientBuilder, Op, ShapeError, TensorType, ValueId};

pub(crate) const RESHAPE: Function = Function {
    builtin: Builtin {
        name: "reshape",
        signature: "reshape(x, dims)",
        doc: "The same elements in the same order under other dims: `reshape(x, [B, T, H, D / H])`.",
    },
    params: &[Parameter::required("x", Expects::Tensor), Parameter::required("dims", Expects::Sizes)],
    build: Build::Ops(|e, args| {
        let op = Reshape { dims: args.sizes(1).to_vec() };
        Ok(vec![super::emit_one(e, op, &[args.tensor(0)])?])
    }),
};

/// Row-major order stays.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Reshape {
    /// The new dims.
    pub dims: Vec<Dim>,
}

/// Several dims as one: `B*T`.
pub(super) fn joined(dims: &[Dim]) -> Dim {
    let size = dims.iter().fold(1u64, |product, d| product.saturating_mul(d.size));
    let plain = dims.is_empty()
        || dims.iter().any(|d| d.name == d.size.to_string() || d.name.contains(['+', '-', '/']));
    let names: Vec<&str> = dims.iter().map(|d| d.name.as_str()).collect();
    if plain && dims.len() != 1 { Dim::of(size) } else { Dim::new(names.join("*"), size) }
}

impl Op for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn keeps_constants(&self) -> bool {
        true
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let ty = inputs[0].with_dims(self.dims.clone());
        let (before, after) = (inputs[0].elements(), ty.elements());
        if before != after {
            let message =
                format!("{} has {before} elements, and {} would have {after}", shown(inputs[0]), shown(&ty));
            return Err(ShapeError::new(0, 0, message));
        }
        Ok(vec![ty])
    }

    fn gradient(
        &self,
        g: &mut dyn GradientBuilder,
        inputs: &[ValueId],
        _outputs: &[ValueId],
        grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        let dims = g.ty(inputs[0]).dims;
        let name = gradient_name(&g.name(inputs[0]));
        vec![grads[0].map(|dy| g.emit(Arc::new(Reshape { dims }), &[dy], &name)[0])]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let dims = self.dims.iter().map(|d| d.size as usize).collect();
        vec![Tensor { dims, data: inputs[0].data.clone() }]
    }

    fn cost(&self, _inputs: &[&TensorType], _outputs: &[&TensorType]) -> Cost {
        Cost::default()
    }

    fn form(&self, _inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        Form::View(vec![View::Reshape])
    }
}
