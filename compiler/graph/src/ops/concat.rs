//! Operands side by side along a dim.

use std::sync::Arc;

use dspc_spec::body::Builtin;

use super::function::{Build, Expects, Function, Parameter};
use super::slice::Slice;
use super::{emit_one, gradient_name, streaming};
use crate::form::Form;
use crate::interpret::Tensor;
use crate::ir::{Cost, Dim, GradientBuilder, Op, ShapeError, TensorType, ValueId};

pub(crate) const CONCAT: Function = Function {
    builtin: Builtin {
        name: "concat",
        signature: "concat(.., dim: last)",
        doc: "Tensors side by side along a dim, counted from 0: `concat(a, b, dim: 1)`.",
    },
    params: &[Parameter::required("tensors", Expects::Tensors), Parameter::optional("dim", Expects::Index)],
    build: Build::Ops(|e, args| {
        let tensors = args.tensors(0);
        let types: Vec<TensorType> = tensors.iter().map(|t| e.ty(*t)).collect();
        let last = types[0].dims.len().saturating_sub(1);
        let dim = args.number(1).map_or(last, |d| d as usize);
        let size =
            types.iter().filter_map(|t| t.dims.get(dim)).fold(0u64, |sum, d| sum.saturating_add(d.size));
        Ok(vec![emit_one(e, Concat { dim, whole: Dim::of(size) }, tensors)?])
    }),
};

/// The dim grows to the operands' sum; the others agree.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Concat {
    /// Which dim.
    pub dim: usize,
    /// The result's.
    pub whole: Dim,
}

impl Op for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn attributes(&self) -> String {
        format!("dim {}", self.dim)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let first = inputs[0];
        if self.dim >= first.dims.len() {
            return Err(ShapeError::new(
                0,
                0,
                format!("there is no dim {} in {}", self.dim, super::shown(first)),
            ));
        }
        for (i, ty) in inputs.iter().enumerate().skip(1) {
            if ty.dims.len() != first.dims.len() {
                return Err(ShapeError::new(0, i, "the operands must have the same number of dims"));
            }
            let differs = |d: &usize| *d != self.dim && ty.dims[*d] != first.dims[*d];
            if let Some(d) = (0..ty.dims.len()).find(differs) {
                let message = format!("the operands must agree in every dim but {}", self.dim);
                return Err(ShapeError::dims((0, d), (i, d), message));
            }
        }
        let sum: u64 = inputs.iter().map(|t| t.dims[self.dim].size).sum();
        if sum != self.whole.size {
            return Err(ShapeError::new(
                0,
                inputs.len() - 1,
                format!("{sum} elements side by side, not {}", self.whole.size),
            ));
        }
        let mut dims = first.dims.clone();
        dims[self.dim] = self.whole.clone();
        Ok(vec![first.with_dims(dims)])
    }

    fn gradient(
        &self,
        g: &mut dyn GradientBuilder,
        inputs: &[ValueId],
        _outputs: &[ValueId],
        grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        let Some(dy) = grads[0] else { return vec![None; inputs.len()] };
        let mut start = 0;
        let mut part = |x: &ValueId| {
            let size = g.ty(*x).dims[self.dim].clone();
            let op = Slice { dim: self.dim, start, size: size.clone() };
            start += size.size;
            let name = gradient_name(&g.name(*x));
            g.needs_gradient(*x).then(|| g.emit(Arc::new(op), &[dy], &name)[0])
        };
        inputs.iter().map(&mut part).collect()
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let mut dims = inputs[0].dims.clone();
        dims[self.dim] = self.whole.size as usize;
        let inner: usize = dims[self.dim + 1..].iter().product();
        let outer: usize = dims[..self.dim].iter().product();
        let mut data = Vec::with_capacity(dims.iter().product());
        for o in 0..outer {
            for x in inputs {
                let run = x.dims[self.dim] * inner;
                data.extend_from_slice(&x.data[o * run..(o + 1) * run]);
            }
        }
        vec![Tensor { dims, data }]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        streaming(0.0, inputs, outputs)
    }

    fn form(&self, _inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        Form::Concat { dim: self.dim }
    }
}
