//! Root-mean-square normalisation (Zhang, Sennrich 2019): `y = x · rstd · w`, `rstd = 1/√(mean(x²) + eps)`.

use std::sync::Arc;

use dspc_spec::body::Builtin;

use super::function::{Build, Expects, Function, Parameter};
use super::layer_norm::{check_gain, of_rows};
use super::{gradient_name, streaming};
use crate::form::Form;
use crate::interpret::Tensor;
use crate::ir::{Cost, GradientBuilder, Op, ShapeError, TensorType, ValueId};
use crate::row_builder::RowBuilder;
use crate::rowfn::UnaryFn;

pub(crate) const RMS_NORM: Function = Function {
    builtin: Builtin {
        name: "rms_norm",
        signature: "rms_norm(x, weight, eps: 1e-5)",
        doc: "Divides the last dim by its root mean square, then scales it.",
    },
    params: &[
        Parameter::required("x", Expects::Tensor),
        Parameter::required("weight", Expects::Tensor),
        Parameter::optional("eps", Expects::Number),
    ],
    build: Build::Ops(|e, args| {
        let op = RmsNorm { eps: args.number(2).unwrap_or(1e-5) };
        Ok(vec![super::emit_one(e, op, &[args.tensor(0), args.tensor(1)])?])
    }),
};

/// Operands `x [.., D]`, `weight [D]`; results y, and f32 rstd of each row.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct RmsNorm {
    /// Added to the mean square.
    pub eps: f64,
}

/// Operands x, weight, rstd, dy; results dx, dweight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RmsNormBackward;

impl Op for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn attributes(&self) -> String {
        format!("eps {:e}", self.eps)
    }

    fn result_suffixes(&self) -> &'static [&'static str] {
        &["rstd"]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        check_gain(inputs[0], inputs[1], 1)?;
        Ok(vec![inputs[0].clone(), of_rows(inputs[0])])
    }

    fn gradient(
        &self,
        g: &mut dyn GradientBuilder,
        inputs: &[ValueId],
        outputs: &[ValueId],
        grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        let Some(dy) = grads[0] else { return vec![None; 2] };
        let operands = [inputs[0], inputs[1], outputs[1], dy];
        let name = gradient_name(&g.name(inputs[0]));
        g.emit(Arc::new(RmsNormBackward), &operands, &name).into_iter().map(Some).collect()
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let (x, w) = (inputs[0], inputs[1]);
        let cols = x.cols();
        let mut y = Tensor::zeros(&x.dims);
        let mut rstds = Tensor::zeros(&x.dims[..x.dims.len() - 1]);
        for (n, row) in x.data.chunks(cols).enumerate() {
            let square = row.iter().map(|v| v * v).sum::<f64>() / cols as f64;
            rstds.data[n] = 1.0 / (square + self.eps).sqrt();
            for (c, x) in row.iter().enumerate() {
                y.data[n * cols + c] = x * rstds.data[n] * w.data[c];
            }
        }
        vec![y, rstds]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        streaming(4.0 * inputs[0].elements() as f64, inputs, outputs)
    }

    fn form(&self, inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        let mut b = RowBuilder::new(inputs[0].rows(), inputs[0].cols());
        let (x, weight) = (b.element(), b.bias());
        let square = b.multiply(x, x);
        let mean = b.mean(square);
        let mean = b.plus(mean, self.eps);
        let rstd = b.unary(UnaryFn::Rsqrt, mean);
        let normal = b.multiply(x, rstd);
        let y = b.multiply(normal, weight);
        b.yield_element(y);
        b.yield_row(rstd);
        Form::Row(b.finish())
    }
}

impl Op for RmsNormBackward {
    fn name(&self) -> &'static str {
        "rms_norm_backward"
    }

    fn result_suffixes(&self) -> &'static [&'static str] {
        &["weight"]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        if inputs[0].dims != inputs[3].dims {
            return Err(ShapeError::new(0, 3, "the gradient has other dims than the result"));
        }
        Ok(vec![inputs[0].clone(), inputs[1].clone()])
    }

    fn gradient(
        &self,
        _g: &mut dyn GradientBuilder,
        _inputs: &[ValueId],
        _outputs: &[ValueId],
        _grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        vec![None; 4]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let [x, w, rstd, dy] = [inputs[0], inputs[1], inputs[2], inputs[3]];
        let cols = x.cols();
        let (mut dx, mut dw) = (Tensor::zeros(&x.dims), Tensor::zeros(&w.dims));
        for n in 0..x.rows() {
            let at = |c: usize| n * cols + c;
            let normal = |c: usize| x.data[at(c)] * rstd.data[n];
            let mean = (0..cols).map(|c| dy.data[at(c)] * w.data[c] * normal(c)).sum::<f64>() / cols as f64;
            for c in 0..cols {
                dx.data[at(c)] = rstd.data[n] * (dy.data[at(c)] * w.data[c] - normal(c) * mean);
                dw.data[c] += dy.data[at(c)] * normal(c);
            }
        }
        vec![dx, dw]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        streaming(9.0 * inputs[0].elements() as f64, inputs, outputs)
    }

    fn form(&self, inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        let mut b = RowBuilder::new(inputs[0].rows(), inputs[0].cols());
        let (x, weight, rstd, dy) = (b.element(), b.bias(), b.row(), b.element());
        let normal = b.multiply(x, rstd);
        let g = b.multiply(dy, weight);
        let gx = b.multiply(g, normal);
        let mean = b.mean(gx);
        let along = b.multiply(normal, mean);
        let rest = b.subtract(g, along);
        let dx = b.multiply(rest, rstd);
        let dweight = b.multiply(dy, normal);
        b.yield_element(dx);
        b.yield_column_sum(dweight);
        Form::Row(b.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_mean_square_one() {
        let x = Tensor { dims: vec![1, 2], data: vec![3.0, 4.0] };
        let w = Tensor { dims: vec![2], data: vec![1.0, 2.0] };
        let [y, rstd] = RmsNorm { eps: 0.0 }.evaluate(&[&x, &w]).try_into().unwrap();
        assert!((rstd.data[0] - 1.0 / 12.5f64.sqrt()).abs() < 1e-15);
        assert!((y.data[1] / y.data[0] - 8.0 / 3.0).abs() < 1e-14);
    }
}
