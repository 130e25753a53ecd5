//! Sums and means, over the last dim or over all.

use std::sync::Arc;

use dspc_spec::body::Builtin;

use super::function::{Build, Emit, Expects, Function, Misuse, Parameter};
use super::reshape::{Reshape, joined};
use super::spread::Spread;
use super::{emit_one, gradient_name, streaming};
use crate::form::Form;
use crate::interpret::Tensor;
use crate::ir::{Cost, GradientBuilder, Op, ShapeError, TensorType, ValueId};
use crate::row_builder::RowBuilder;

pub(crate) const SUM: Function = Function {
    builtin: Builtin {
        name: "sum",
        signature: "sum(x, last: false)",
        doc: "The sum of all elements; with `last: true`, that of each row, which takes the last dim away.",
    },
    params: &[Parameter::required("x", Expects::Tensor), Parameter::optional("last", Expects::Flag)],
    build: Build::Ops(|e, args| Ok(vec![sum(e, args.tensor(0), args.flag(1))?])),
};

pub(crate) const MEAN: Function = Function {
    builtin: Builtin {
        name: "mean",
        signature: "mean(x, last: false)",
        doc: "The mean of all elements; with `last: true`, that of each row, which takes the last dim away.",
    },
    params: &[Parameter::required("x", Expects::Tensor), Parameter::optional("last", Expects::Flag)],
    build: Build::Ops(|e, args| {
        let last = args.flag(1);
        let ty = e.ty(args.tensor(0));
        let count = if last { ty.cols() } else { ty.elements() };
        let sum = sum(e, args.tensor(0), last)?;
        Ok(vec![super::scale_by(e, sum, 1.0 / count.max(1) as f64)?])
    }),
};

fn sum(e: &mut dyn Emit, x: ValueId, last: bool) -> Result<ValueId, Misuse> {
    if last { emit_one(e, Sum, &[x]) } else { sum_all(e, x) }
}

/// The sum of all elements, in two stages: rows first, then the rows' sums.
pub(super) fn sum_all(e: &mut dyn Emit, x: ValueId) -> Result<ValueId, Misuse> {
    let ty = e.ty(x);
    if ty.dims.len() <= 1 {
        return emit_one(e, Sum, &[x]);
    }
    let rows = emit_one(e, Sum, &[x])?;
    let flat = if ty.dims.len() == 2 {
        rows
    } else {
        emit_one(e, Reshape { dims: vec![joined(&ty.dims[..ty.dims.len() - 1])] }, &[rows])?
    };
    emit_one(e, Sum, &[flat])
}

/// Over the last dim: `[.., D] → [..]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sum;

impl Op for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        match inputs[0].dims.split_last() {
            Some((_, leading)) => Ok(vec![inputs[0].with_dims(leading.to_vec())]),
            None => Err(ShapeError::new(0, 0, "a scalar has no dim to sum over")),
        }
    }

    fn gradient(
        &self,
        g: &mut dyn GradientBuilder,
        inputs: &[ValueId],
        _outputs: &[ValueId],
        grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        let (Some(dy), Some(last)) = (grads[0], g.ty(inputs[0]).dims.last().cloned()) else {
            return vec![None];
        };
        let name = gradient_name(&g.name(inputs[0]));
        vec![Some(g.emit(Arc::new(Spread { last }), &[dy], &name)[0])]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let x = inputs[0];
        let data = x.data.chunks(x.cols()).map(|row| row.iter().sum()).collect();
        vec![Tensor { dims: x.dims[..x.dims.len() - 1].to_vec(), data }]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        streaming(inputs[0].elements() as f64, inputs, outputs)
    }

    fn form(&self, inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        let mut b = RowBuilder::new(inputs[0].rows(), inputs[0].cols());
        let x = b.element();
        let sum = b.sum(x);
        b.yield_row(sum);
        Form::Row(b.finish())
    }
}
