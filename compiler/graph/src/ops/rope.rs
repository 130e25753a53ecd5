//! Rotary positions (Su et al. 2021): each head's halves are the coordinates of points that turn with the position.

use std::sync::Arc;

use dspc_spec::body::Builtin;

use super::function::{Build, Expects, Function, Misuse, Parameter};
use super::reshape::Reshape;
use super::{emit_one, gradient_name, streaming};
use crate::form::Form;
use crate::interpret::Tensor;
use crate::ir::{Cost, Dim, GradientBuilder, Op, ShapeError, Table, TensorType, ValueId};
use crate::row_builder::RowBuilder;
use crate::rowfn::{Access, RowMap};

pub(crate) const ROPE: Function = Function {
    builtin: Builtin {
        name: "rope",
        signature: "rope(x, heads: H, base: 10000)",
        doc: "Turns the halves of each head of `[B, T, D]` by the position: rotary embedding.",
    },
    params: &[
        Parameter::required("x", Expects::Tensor),
        Parameter::required("heads", Expects::Size),
        Parameter::optional("base", Expects::Number),
    ],
    build: Build::Ops(|e, args| {
        let x = args.tensor(0);
        let heads = args.size(1).cloned().unwrap_or_else(|| Dim::of(1));
        let base = args.number(2).unwrap_or(10000.0);
        if !base.is_finite() || base <= 0.0 {
            return Err(Misuse::Range { param: 2, message: "must be above 0".into() });
        }
        let ty = e.ty(x);
        let [batch, positions, width] = ty.dims.as_slice() else {
            let message = format!("[batch, position, width] is expected, not {}", super::shown(&ty));
            let error = ShapeError::new(0, 0, message);
            return Err(Misuse::Shape { inputs: vec![x], error });
        };
        if heads.size == 0 || !width.size.is_multiple_of(heads.size.saturating_mul(2)) {
            return Err(Misuse::Heads { param: 1, heads, tensor: x });
        }
        let name = match width.name.strip_suffix(&format!("*{}", heads.name)) {
            Some(rest) => rest.to_owned(),
            None => format!("{}/{}", width.name, heads.name),
        };
        let head = Dim::new(name, width.size / heads.size);
        let table = ty.with_dims(vec![positions.clone(), head.clone()]);
        let cos = e.table(Table::RopeCos { base }, table.clone());
        let sin = e.table(Table::RopeSin { base }, table);
        let dims = vec![batch.clone(), positions.clone(), heads, head];
        let split = emit_one(e, Reshape { dims }, &[x])?;
        let turned = emit_one(e, Rope { back: false }, &[split, split, cos, sin])?;
        Ok(vec![emit_one(e, Reshape { dims: ty.dims.clone() }, &[turned])?])
    }),
};

/// Operands `x [B, T, H, d]` twice (as it is, and with its halves exchanged), the tables cos and sin `[T, d]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rope {
    /// Turn the other way: the gradient.
    pub back: bool,
}

impl Op for Rope {
    fn name(&self) -> &'static str {
        if self.back { "rope_backward" } else { "rope" }
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let x = inputs[0];
        let [_, positions, _, head] = x.dims.as_slice() else {
            return Err(ShapeError::new(0, 0, "[batch, position, head, width] is expected"));
        };
        for (i, table) in inputs.iter().enumerate().skip(2) {
            if table.dims != [positions.clone(), head.clone()] {
                return Err(ShapeError::new(0, i, "the table has other dims than the positions"));
            }
        }
        Ok(vec![x.clone()])
    }

    fn gradient(
        &self,
        g: &mut dyn GradientBuilder,
        inputs: &[ValueId],
        _outputs: &[ValueId],
        grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        let name = gradient_name(&g.name(inputs[0]));
        let op = Rope { back: !self.back };
        let dx = grads[0].map(|dy| g.emit(Arc::new(op), &[dy, dy, inputs[2], inputs[3]], &name)[0]);
        vec![dx, None, None, None]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let (x, cos, sin) = (inputs[0], inputs[2], inputs[3]);
        let (positions, heads, width) = (x.dims[1], x.dims[2], x.dims[3]);
        let sign = if self.back { -1.0 } else { 1.0 };
        vec![Tensor::from_fn(&x.dims, |i| {
            let (row, col) = (i / width, i % width);
            let at = row / heads % positions * width + col;
            let partner = x.data[row * width + (col + width / 2) % width];
            x.data[i] * cos.data[at] + sign * partner * sin.data[at]
        })]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        streaming(3.0 * inputs[0].elements() as f64, &inputs[1..], outputs)
    }

    fn form(&self, inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        let dims = &inputs[0].dims;
        let mut b = RowBuilder::new(inputs[0].rows(), inputs[0].cols());
        let position = RowMap::Affine { divide: dims[2].size, modulo: Some(dims[1].size) };
        let x = b.element();
        let partner = b.load(Access::HalfRotated(RowMap::EACH));
        let cos = b.load(Access::Element(position.clone()));
        let sin = b.load(Access::Element(position));
        let straight = b.multiply(x, cos);
        let across = b.multiply(partner, sin);
        let y = if self.back { b.subtract(straight, across) } else { b.add(straight, across) };
        b.yield_element(y);
        Form::Row(b.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interpret::evaluate_table;

    fn turned(x: &Tensor, back: bool) -> Tensor {
        let table = [x.dims[1], x.dims[3]];
        let cos = evaluate_table(&Table::RopeCos { base: 100.0 }, &table);
        let sin = evaluate_table(&Table::RopeSin { base: 100.0 }, &table);
        Rope { back }.evaluate(&[x, x, &cos, &sin]).remove(0)
    }

    #[test]
    fn position_0_stays_and_lengths_stay() {
        let x = Tensor::from_fn(&[1, 3, 2, 4], |i| (i % 5) as f64);
        let y = turned(&x, false);
        assert_eq!(y.data[..8], x.data[..8]);
        let length = |t: &Tensor| t.data.iter().map(|v| v * v).sum::<f64>();
        assert!((length(&x) - length(&y)).abs() < 1e-12);
    }

    #[test]
    fn back_undoes_it() {
        let x = Tensor::from_fn(&[2, 5, 3, 6], |i| (i * 3 % 7) as f64);
        let y = turned(&turned(&x, false), true);
        assert!(x.data.iter().zip(&y.data).all(|(a, b)| (a - b).abs() < 1e-14));
    }

    #[test]
    fn one_pair_turns_by_its_position() {
        let x = Tensor { dims: vec![1, 2, 1, 2], data: vec![1.0, 0.0, 1.0, 0.0] };
        let y = turned(&x, false);
        assert!((y.data[2] - 1f64.cos()).abs() < 1e-15 && (y.data[3] - 1f64.sin()).abs() < 1e-15);
    }
}
