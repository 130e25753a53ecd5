//! Embedding: `y[n, :] = table[ids[n], :]`, and its gradient, a scatter-add.

use std::sync::Arc;

use super::function::{Emit, Misuse};
use super::{emit_one, gradient_name, streaming};
use crate::form::Form;
use crate::interpret::Tensor;
use crate::ir::{Cost, DType, Dim, GradientBuilder, Op, ShapeError, TensorType, ValueId};
use crate::row_builder::RowBuilder;
use crate::rowfn::{Access, InputId, RowMap};

/// Operands `table [V, D]`, `ids [..]`; result `[.., D]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Embedding;

/// Operands `ids [..]`, `dy [.., D]`; result `[V, D]`.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct EmbeddingBackward {
    /// The table's first dim.
    pub vocab: Dim,
}

/// `table[ids]`
pub(crate) fn embedding(e: &mut dyn Emit, table: ValueId, ids: ValueId) -> Result<ValueId, Misuse> {
    emit_one(e, Embedding, &[table, ids])
}

impl Op for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let (table, ids) = (inputs[0], inputs[1]);
        if table.dims.len() != 2 {
            let message = format!("only a matrix can be indexed by ids, and this is {}", super::shown(table));
            return Err(ShapeError::new(0, 0, message));
        }
        if ids.dtype != DType::I32 {
            return Err(ShapeError::new(1, 1, "the index must be ids, and is a float tensor"));
        }
        let mut dims = ids.dims.clone();
        dims.push(table.dims[1].clone());
        Ok(vec![table.with_dims(dims)])
    }

    fn gradient(
        &self,
        g: &mut dyn GradientBuilder,
        inputs: &[ValueId],
        _outputs: &[ValueId],
        grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        let Some(dy) = grads[0] else { return vec![None, None] };
        let op = EmbeddingBackward { vocab: g.ty(inputs[0]).dims[0].clone() };
        let name = gradient_name(&g.name(inputs[0]));
        vec![Some(g.emit(Arc::new(op), &[inputs[1], dy], &name)[0]), None]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let (table, ids) = (inputs[0], inputs[1]);
        let cols = table.cols();
        let mut dims = ids.dims.clone();
        dims.push(cols);
        vec![Tensor::from_fn(&dims, |i| table.data[ids.data[i / cols] as usize * cols + i % cols])]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        let bytes = inputs[1].bytes() as f64 + 2.0 * outputs[0].bytes() as f64;
        Cost { flops: 0.0, bytes }
    }

    fn form(&self, _inputs: &[&TensorType], outputs: &[&TensorType]) -> Form {
        let mut b = RowBuilder::new(outputs[0].rows(), outputs[0].cols());
        let row = b.load(Access::Element(RowMap::Gather(InputId(1))));
        b.input(Access::Row(RowMap::EACH));
        b.yield_element(row);
        Form::Row(b.finish())
    }
}

impl Op for EmbeddingBackward {
    fn name(&self) -> &'static str {
        "embedding_backward"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let (ids, dy) = (inputs[0], inputs[1]);
        let Some((cols, leading)) = dy.dims.split_last() else {
            return Err(ShapeError::new(1, 1, "a scalar has no rows"));
        };
        if leading != ids.dims.as_slice() {
            return Err(ShapeError::new(0, 1, "each id needs a row"));
        }
        Ok(vec![dy.with_dims(vec![self.vocab.clone(), cols.clone()])])
    }

    fn gradient(
        &self,
        _g: &mut dyn GradientBuilder,
        _inputs: &[ValueId],
        _outputs: &[ValueId],
        _grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        vec![None, None]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let (ids, dy) = (inputs[0], inputs[1]);
        let cols = dy.cols();
        let mut out = Tensor::zeros(&[self.vocab.size as usize, cols]);
        for (n, id) in ids.data.iter().enumerate() {
            for c in 0..cols {
                out.data[*id as usize * cols + c] += dy.data[n * cols + c];
            }
        }
        vec![out]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        streaming(inputs[1].elements() as f64, inputs, outputs)
    }

    fn form(&self, _inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        Form::ScatterAdd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_picked_and_their_gradients_added() {
        let table = Tensor { dims: vec![3, 2], data: vec![0.0, 1.0, 10.0, 11.0, 20.0, 21.0] };
        let ids = Tensor { dims: vec![3], data: vec![2.0, 0.0, 2.0] };
        let y = Embedding.evaluate(&[&table, &ids]).remove(0);
        assert_eq!(y, Tensor { dims: vec![3, 2], data: vec![20.0, 21.0, 0.0, 1.0, 20.0, 21.0] });
        let dtable = EmbeddingBackward { vocab: Dim::of(3) }.evaluate(&[&ids, &y]).remove(0);
        assert_eq!(dtable, Tensor { dims: vec![3, 2], data: vec![0.0, 1.0, 0.0, 0.0, 40.0, 42.0] });
    }
}
