//! Cross entropy of logits and target ids; a negative target does not count.
//!
//! The mean is over the targets of the whole batch, over all micro-batches and ranks, so that each part is a plain sum: every row's loss is
//! multiplied by 1 / (targets in the batch), which the runtime hands in.

use std::sync::Arc;

use dspc_spec::body::Builtin;

use super::function::{Build, Expects, Function, Parameter};
use super::reshape::{Reshape, joined};
use super::sum::Sum;
use super::{emit_one, gradient_name, streaming};
use crate::form::Form;
use crate::interpret::Tensor;
use crate::ir::{Cost, DType, GradientBuilder, Input, Op, ShapeError, TensorType, ValueId};
use crate::row_builder::RowBuilder;
use crate::rowfn::{BinaryFn, Node, NodeId, UnaryFn};

pub(crate) const CROSS_ENTROPY: Function = Function {
    builtin: Builtin {
        name: "cross_entropy",
        signature: "cross_entropy(logits, targets)",
        doc: "The mean of −ln softmax(logits)[target] over all targets that are not negative.",
    },
    params: &[Parameter::required("logits", Expects::Tensor), Parameter::required("targets", Expects::Ids)],
    build: Build::Ops(|e, args| {
        let (logits, targets) = (args.tensor(0), args.tensor(1));
        let inverse = e.input(Input::InvTargets);
        let rows = e.emit(Arc::new(CrossEntropy), &[logits, targets, inverse])?[0];
        e.mark_logits(logits);
        let dims = e.ty(rows).dims;
        let flat =
            if dims.len() == 1 { rows } else { emit_one(e, Reshape { dims: vec![joined(&dims)] }, &[rows])? };
        Ok(vec![emit_one(e, Sum, &[flat])?])
    }),
};

/// Operands `logits [.., V]`, `targets [..]`, scalar 1/targets; results f32: each row's share of the loss, and its log-sum-exp.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CrossEntropy;

/// Operands logits, targets, 1/targets, log-sum-exp, gradient of the rows' losses; result dlogits, which may take the place of the logits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CrossEntropyBackward;

/// The column is the target: boolean.
fn is_target(b: &mut RowBuilder, target: NodeId) -> NodeId {
    let column = b.node(Node::Column);
    b.binary(BinaryFn::Equal, column, target)
}

/// The row counts: boolean.
fn counts(b: &mut RowBuilder, target: NodeId) -> NodeId {
    let zero = b.node(Node::ConstInt(0));
    b.binary(BinaryFn::LessEqual, zero, target)
}

impl Op for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn result_suffixes(&self) -> &'static [&'static str] {
        &["lse"]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let (logits, targets) = (inputs[0], inputs[1]);
        let Some((_, leading)) = logits.dims.split_last() else {
            return Err(ShapeError::new(0, 0, "logits need a last dim, the vocabulary"));
        };
        if targets.dtype != DType::I32 {
            return Err(ShapeError::new(1, 1, "targets must be ids, and this is a float tensor"));
        }
        if leading.len() != targets.dims.len() || leading.is_empty() {
            let (l, t) = (super::shown(logits), super::shown(targets));
            return Err(ShapeError::new(
                0,
                1,
                format!("each target needs a row of logits: {l} does not fit {t}"),
            ));
        }
        if let Some(d) = (0..leading.len()).find(|d| leading[*d] != targets.dims[*d]) {
            return Err(ShapeError::dims((0, d), (1, d), "each target needs a row of logits"));
        }
        let rows = TensorType { dtype: DType::F32, dims: leading.to_vec() };
        Ok(vec![rows.clone(), rows])
    }

    fn gradient(
        &self,
        g: &mut dyn GradientBuilder,
        inputs: &[ValueId],
        outputs: &[ValueId],
        grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        let name = gradient_name(&g.name(inputs[0]));
        let dlogits = grads[0].map(|d| {
            let operands = [inputs[0], inputs[1], inputs[2], outputs[1], d];
            g.emit(Arc::new(CrossEntropyBackward), &operands, &name)[0]
        });
        vec![dlogits, None, None]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let (logits, targets, inverse) = (inputs[0], inputs[1], inputs[2].data[0]);
        let (mut loss, mut lse) = (Tensor::zeros(&targets.dims), Tensor::zeros(&targets.dims));
        for (n, row) in logits.data.chunks(logits.cols()).enumerate() {
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            lse.data[n] = max + libm::log(row.iter().map(|x| libm::exp(x - max)).sum());
            let target = targets.data[n];
            if target >= 0.0 {
                loss.data[n] = (lse.data[n] - row[target as usize]) * inverse;
            }
        }
        vec![loss, lse]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        streaming(4.0 * inputs[0].elements() as f64, inputs, outputs)
    }

    fn form(&self, inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        let mut b = RowBuilder::new(inputs[0].rows(), inputs[0].cols());
        let (x, target, inverse) = (b.element(), b.row(), b.scalar());
        let max = b.max(x);
        let shifted = b.subtract(x, max);
        let e = b.unary(UnaryFn::Exp, shifted);
        let sum = b.sum(e);
        let log = b.unary(UnaryFn::Log, sum);
        let lse = b.add(max, log);
        let zero = b.number(0.0);
        let hit = is_target(&mut b, target);
        let picked = b.select(hit, x, zero);
        let picked = b.sum(picked);
        let loss = b.subtract(lse, picked);
        let loss = b.multiply(loss, inverse);
        let counts = counts(&mut b, target);
        let loss = b.select(counts, loss, zero);
        b.yield_row(loss);
        b.yield_row(lse);
        Form::Row(b.finish())
    }
}

impl Op for CrossEntropyBackward {
    fn name(&self) -> &'static str {
        "cross_entropy_backward"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        if inputs[3].dims != inputs[4].dims || inputs[1].dims != inputs[3].dims {
            return Err(ShapeError::new(3, 4, "one number a row is expected"));
        }
        Ok(vec![inputs[0].clone()])
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
        let [logits, targets, inverse, lse, d] = [inputs[0], inputs[1], inputs[2], inputs[3], inputs[4]];
        let cols = logits.cols();
        vec![Tensor::from_fn(&logits.dims, |i| {
            let (n, col) = (i / cols, i % cols);
            let target = targets.data[n];
            if target < 0.0 {
                return 0.0;
            }
            let p = libm::exp(logits.data[i] - lse.data[n]);
            d.data[n] * inverse.data[0] * (p - f64::from(u8::from(col == target as usize)))
        })]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        streaming(4.0 * inputs[0].elements() as f64, inputs, outputs)
    }

    fn form(&self, inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        let mut b = RowBuilder::new(inputs[0].rows(), inputs[0].cols());
        let (x, target, inverse, lse, d) = (b.element(), b.row(), b.scalar(), b.row(), b.row());
        let shifted = b.subtract(x, lse);
        let p = b.unary(UnaryFn::Exp, shifted);
        let (zero, one) = (b.number(0.0), b.number(1.0));
        let hit = is_target(&mut b, target);
        let onehot = b.select(hit, one, zero);
        let difference = b.subtract(p, onehot);
        let scale = b.multiply(d, inverse);
        let counts = counts(&mut b, target);
        let scale = b.select(counts, scale, zero);
        let dx = b.multiply(difference, scale);
        b.yield_element(dx);
        Form::Row(b.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_cost_the_log_of_the_vocabulary_and_absent_targets_nothing() {
        let logits = Tensor::from_fn(&[3, 5], |_| 2.5);
        let targets = Tensor { dims: vec![3], data: vec![0.0, -100.0, 4.0] };
        let half = Tensor::scalar(0.5);
        let [loss, lse] = CrossEntropy.evaluate(&[&logits, &targets, &half]).try_into().unwrap();
        let expected = 0.5 * libm::log(5.0);
        assert!(
            (loss.data[0] - expected).abs() < 1e-15
                && loss.data[1] == 0.0
                && (loss.data[2] - expected).abs() < 1e-15
        );
        assert!((lse.data[1] - 2.5 - libm::log(5.0)).abs() < 1e-15);
        let ones = Tensor::from_fn(&[3], |_| 1.0);
        let d = CrossEntropyBackward.evaluate(&[&logits, &targets, &half, &lse, &ones]).remove(0);
        assert!((d.data[0] + 0.4).abs() < 1e-15 && (d.data[1] - 0.1).abs() < 1e-15);
        assert!(d.data[5..10].iter().all(|d| *d == 0.0));
    }

    #[test]
    fn large_logits_stay_finite() {
        let logits = Tensor { dims: vec![1, 2], data: vec![1e4, -1e4] };
        let target = Tensor { dims: vec![1], data: vec![1.0] };
        let loss = CrossEntropy.evaluate(&[&logits, &target, &Tensor::scalar(1.0)]).remove(0);
        assert_eq!(loss.data, [2e4]);
    }
}
