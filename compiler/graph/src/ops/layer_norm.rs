//! Layer normalisation (Ba, Kiros, Hinton 2016): `y = (x − mean) · rstd · w + b` over the last dim.

use std::sync::Arc;

use dspc_spec::body::Builtin;

use super::function::{Build, Expects, Function, Parameter};
use super::{gradient_name, streaming};
use crate::form::Form;
use crate::interpret::Tensor;
use crate::ir::{Cost, DType, GradientBuilder, Op, ShapeError, TensorType, ValueId};
use crate::row_builder::RowBuilder;
use crate::rowfn::UnaryFn;

pub(crate) const LAYER_NORM: Function = Function {
    builtin: Builtin {
        name: "layer_norm",
        signature: "layer_norm(x, weight, bias, eps: 1e-5)",
        doc: "Normalises the last dim to mean 0 and variance 1, then scales and shifts it.",
    },
    params: &[
        Parameter::required("x", Expects::Tensor),
        Parameter::required("weight", Expects::Tensor),
        Parameter::required("bias", Expects::Tensor),
        Parameter::optional("eps", Expects::Number),
    ],
    build: Build::Ops(|e, args| {
        let op = LayerNorm { eps: args.number(3).unwrap_or(1e-5) };
        Ok(vec![super::emit_one(e, op, &[args.tensor(0), args.tensor(1), args.tensor(2)])?])
    }),
};

/// Operands `x [.., D]`, `weight [D]`, `bias [D]`; results y, and f32 mean and rstd of each row.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct LayerNorm {
    /// Added to the variance.
    pub eps: f64,
}

/// Operands x, weight, mean, rstd, dy; results dx, dweight, dbias.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LayerNormBackward;

/// The gain and bias must be `[D]`.
pub(super) fn check_gain(x: &TensorType, gain: &TensorType, at: usize) -> Result<(), ShapeError> {
    let Some(last) = x.dims.last() else {
        return Err(ShapeError::new(0, 0, "a scalar cannot be normalised"));
    };
    match gain.dims.as_slice() {
        [dim] if dim == last => Ok(()),
        [dim] => {
            let message = format!("the last dim of `x` is {}, and this has {} elements", last.size, dim.size);
            Err(ShapeError::dims((0, x.dims.len() - 1), (at, 0), message))
        }
        _ => Err(ShapeError::new(0, at, format!("one dim is expected, not {}", super::shown(gain)))),
    }
}

/// f32, one a row.
pub(super) fn of_rows(x: &TensorType) -> TensorType {
    TensorType { dtype: DType::F32, dims: x.dims[..x.dims.len() - 1].to_vec() }
}

impl Op for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn attributes(&self) -> String {
        format!("eps {:e}", self.eps)
    }

    fn result_suffixes(&self) -> &'static [&'static str] {
        &["mean", "rstd"]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let x = inputs[0];
        check_gain(x, inputs[1], 1)?;
        check_gain(x, inputs[2], 2)?;
        Ok(vec![x.clone(), of_rows(x), of_rows(x)])
    }

    fn gradient(
        &self,
        g: &mut dyn GradientBuilder,
        inputs: &[ValueId],
        outputs: &[ValueId],
        grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        let Some(dy) = grads[0] else { return vec![None; 3] };
        let operands = [inputs[0], inputs[1], outputs[1], outputs[2], dy];
        let name = gradient_name(&g.name(inputs[0]));
        g.emit(Arc::new(LayerNormBackward), &operands, &name).into_iter().map(Some).collect()
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let (x, w, b) = (inputs[0], inputs[1], inputs[2]);
        let (cols, leading) = (x.cols(), &x.dims[..x.dims.len() - 1]);
        let mut y = Tensor::zeros(&x.dims);
        let (mut means, mut rstds) = (Tensor::zeros(leading), Tensor::zeros(leading));
        for (n, row) in x.data.chunks(cols).enumerate() {
            let mean = row.iter().sum::<f64>() / cols as f64;
            let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / cols as f64;
            let rstd = 1.0 / (variance + self.eps).sqrt();
            (means.data[n], rstds.data[n]) = (mean, rstd);
            for (c, x) in row.iter().enumerate() {
                y.data[n * cols + c] = (x - mean) * rstd * w.data[c] + b.data[c];
            }
        }
        vec![y, means, rstds]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        streaming(8.0 * inputs[0].elements() as f64, inputs, outputs)
    }

    fn form(&self, inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        let mut b = RowBuilder::new(inputs[0].rows(), inputs[0].cols());
        let (x, weight, bias) = (b.element(), b.bias(), b.bias());
        let mean = b.mean(x);
        let centred = b.subtract(x, mean);
        let square = b.multiply(centred, centred);
        let variance = b.mean(square);
        let variance = b.plus(variance, self.eps);
        let rstd = b.unary(UnaryFn::Rsqrt, variance);
        let normal = b.multiply(centred, rstd);
        let scaled = b.multiply(normal, weight);
        let y = b.add(scaled, bias);
        b.yield_element(y);
        b.yield_row(mean);
        b.yield_row(rstd);
        Form::Row(b.finish())
    }
}

impl Op for LayerNormBackward {
    fn name(&self) -> &'static str {
        "layer_norm_backward"
    }

    fn result_suffixes(&self) -> &'static [&'static str] {
        &["weight", "bias"]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        if inputs[0].dims != inputs[4].dims {
            return Err(ShapeError::new(0, 4, "the gradient has other dims than the result"));
        }
        Ok(vec![inputs[0].clone(), inputs[1].clone(), inputs[1].clone()])
    }

    fn gradient(
        &self,
        _g: &mut dyn GradientBuilder,
        _inputs: &[ValueId],
        _outputs: &[ValueId],
        _grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        vec![None; 5]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let [x, w, mean, rstd, dy] = [inputs[0], inputs[1], inputs[2], inputs[3], inputs[4]];
        let cols = x.cols();
        let (mut dx, mut dw, mut db) =
            (Tensor::zeros(&x.dims), Tensor::zeros(&w.dims), Tensor::zeros(&w.dims));
        for n in 0..x.rows() {
            let normal = |c: usize| (x.data[n * cols + c] - mean.data[n]) * rstd.data[n];
            let g = |c: usize| dy.data[n * cols + c] * w.data[c];
            let g_mean = (0..cols).map(g).sum::<f64>() / cols as f64;
            let gx_mean = (0..cols).map(|c| g(c) * normal(c)).sum::<f64>() / cols as f64;
            for c in 0..cols {
                dx.data[n * cols + c] = rstd.data[n] * (g(c) - g_mean - normal(c) * gx_mean);
                dw.data[c] += dy.data[n * cols + c] * normal(c);
                db.data[c] += dy.data[n * cols + c];
            }
        }
        vec![dx, dw, db]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        streaming(14.0 * inputs[0].elements() as f64, inputs, outputs)
    }

    fn form(&self, inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        let mut b = RowBuilder::new(inputs[0].rows(), inputs[0].cols());
        let (x, weight, mean, rstd, dy) = (b.element(), b.bias(), b.row(), b.row(), b.element());
        let centred = b.subtract(x, mean);
        let normal = b.multiply(centred, rstd);
        let g = b.multiply(dy, weight);
        let g_mean = b.mean(g);
        let gx = b.multiply(g, normal);
        let gx_mean = b.mean(gx);
        let along = b.multiply(normal, gx_mean);
        let rest = b.subtract(g, g_mean);
        let rest = b.subtract(rest, along);
        let dx = b.multiply(rest, rstd);
        let dweight = b.multiply(dy, normal);
        b.yield_element(dx);
        b.yield_column_sum(dweight);
        b.yield_column_sum(dy);
        Form::Row(b.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Dim;

    #[test]
    fn a_row_has_mean_zero_and_variance_one() {
        let x = Tensor { dims: vec![1, 3], data: vec![1.0, 2.0, 6.0] };
        let (w, b) = (Tensor::from_fn(&[3], |_| 1.0), Tensor::zeros(&[3]));
        let [y, mean, rstd] = LayerNorm { eps: 0.0 }.evaluate(&[&x, &w, &b]).try_into().unwrap();
        assert_eq!(mean.data, [3.0]);
        assert!((rstd.data[0] - (3.0f64 / 14.0).sqrt()).abs() < 1e-15);
        assert!(y.data.iter().sum::<f64>().abs() < 1e-15);
        assert!((y.data.iter().map(|y| y * y).sum::<f64>() - 3.0).abs() < 1e-14);
    }

    #[test]
    fn a_gain_of_another_size_is_named() {
        let ty = |sizes: &[u64]| TensorType::f32(sizes.iter().map(|s| Dim::of(*s)).collect());
        let error = LayerNorm { eps: 1e-5 }.infer(&[&ty(&[2, 8]), &ty(&[7]), &ty(&[8])]).unwrap_err();
        assert_eq!((error.operands, error.dims), ((0, 1), Some((1, 0))));
    }
}
