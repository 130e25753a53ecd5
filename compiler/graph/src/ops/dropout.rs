//! Dropout (Srivastava et al. 2014): an element is zero with probability p, else divided by 1 − p.
//!
//! The mask is never stored: the gradient draws the same numbers again.

use std::sync::Arc;

use dspc_spec::body::Builtin;

use super::function::{Build, Expects, Function, Misuse, Parameter};
use super::{emit_one, gradient_name, streaming};
use crate::form::Form;
use crate::interpret::Tensor;
use crate::ir::{Cost, GradientBuilder, Input, Op, ShapeError, TensorType, ValueId};
use crate::row_builder::RowBuilder;
use crate::row_evaluate::uniform_stream;
use crate::rowfn::{Access, BinaryFn, Node};

pub(crate) const DROPOUT: Function = Function {
    builtin: Builtin {
        name: "dropout",
        signature: "dropout(x, p)",
        doc: "While training, each element is zero with probability p, else divided by 1 − p.",
    },
    params: &[Parameter::required("x", Expects::Tensor), Parameter::required("p", Expects::Number)],
    build: Build::Ops(|e, args| {
        let p = args.number(1).unwrap_or(0.0);
        if !(0.0..1.0).contains(&p) {
            return Err(Misuse::Range { param: 1, message: "must be at least 0 and less than 1".into() });
        }
        if p == 0.0 || !e.training() {
            return Ok(vec![args.tensor(0)]);
        }
        let op = Dropout { p, site: e.site() };
        let rng = e.input(Input::Rng);
        Ok(vec![emit_one(e, op, &[args.tensor(0), rng])?])
    }),
};

/// Operands x, rng. The first dim counts samples.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Dropout {
    /// Probability of zero.
    pub p: f64,
    /// Random site; in a repeat each turn adds one.
    pub site: u32,
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn attributes(&self) -> String {
        format!("p {} site {}", self.p, self.site)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        Ok(vec![inputs[0].clone()])
    }

    /// The same op on dy: it draws the same mask.
    fn gradient(
        &self,
        g: &mut dyn GradientBuilder,
        inputs: &[ValueId],
        _outputs: &[ValueId],
        grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        let name = gradient_name(&g.name(inputs[0]));
        vec![grads[0].map(|dy| g.emit(Arc::new(*self), &[dy, inputs[1]], &name)[0]), None]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let x = inputs[0];
        let sample = x.data.len() / x.dims.first().copied().unwrap_or(1).max(1);
        let (stream, first) = uniform_stream(inputs[1], self.site);
        vec![Tensor::from_fn(&x.dims, |i| {
            let kept = stream.at(first * sample as u64 + i as u64) >= self.p;
            if kept { x.data[i] / (1.0 - self.p) } else { 0.0 }
        })]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        streaming(2.0 * inputs[0].elements() as f64, &inputs[..1], outputs)
    }

    fn form(&self, inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        let ty = inputs[0];
        let samples = ty.dims.first().map_or(1, |d| d.size).max(1);
        let mut b = RowBuilder::new(ty.rows(), ty.cols());
        let x = b.element();
        let rng = b.input(Access::Scalar);
        let u = b.node(Node::Uniform { rng, site: self.site, sample_elements: ty.elements() / samples });
        let (p, zero) = (b.number(self.p), b.number(0.0));
        let kept = b.binary(BinaryFn::LessEqual, p, u);
        let scaled = b.times(x, 1.0 / (1.0 - self.p));
        let y = b.select(kept, scaled, zero);
        b.yield_element(y);
        Form::Row(b.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropped(rng: &[f64], site: u32) -> Tensor {
        let x = Tensor::from_fn(&[4, 500], |_| 1.0);
        Dropout { p: 0.25, site }
            .evaluate(&[&x, &Tensor { dims: vec![rng.len()], data: rng.to_vec() }])
            .remove(0)
    }

    #[test]
    fn a_share_is_zero_and_the_mean_stays() {
        let y = dropped(&[1.0, 0.0, 1.0, 0.0], 0);
        assert!(y.data.iter().all(|y| *y == 0.0 || (*y - 4.0 / 3.0).abs() < 1e-15));
        let mean = y.data.iter().sum::<f64>() / 2000.0;
        assert!((mean - 1.0).abs() < 0.05, "{mean}");
    }

    #[test]
    fn a_turn_is_a_site_of_its_own() {
        assert_eq!(dropped(&[1.0, 0.0, 1.0, 0.0, 2.0], 3), dropped(&[1.0, 0.0, 1.0, 0.0], 5));
        assert_ne!(dropped(&[1.0, 0.0, 1.0, 0.0], 3), dropped(&[1.0, 0.0, 1.0, 0.0], 5));
    }

    #[test]
    fn a_sample_has_its_numbers_wherever_it_stands() {
        let (first, later) = (dropped(&[9.0, 0.0, 7.0, 0.0], 1), dropped(&[9.0, 0.0, 7.0, 1.0], 1));
        assert_eq!(first.data[500..], later.data[..1500]);
    }
}
