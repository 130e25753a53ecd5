//! Matrix product: `y = op(a) · op(b)`, each operand seen as a matrix `[product of leading dims, last dim]`.

use std::sync::Arc;

use super::function::{Emit, Misuse};
use super::gradient_name;
use crate::form::Form;
use crate::interpret::Tensor;
use crate::ir::{Cost, GradientBuilder, Op, ShapeError, TensorType, ValueId};

/// `[.., K] · [K, N] → [.., N]`, and the transposed products that its gradient needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Matmul {
    /// Use a's transpose; then a's leading dims are summed over.
    pub transpose_a: bool,
    /// Use b's transpose, `[N, K]`.
    pub transpose_b: bool,
}

/// `a @ b`; a transposed matrix on the right is read in place.
pub(crate) fn matmul(e: &mut dyn Emit, a: ValueId, b: ValueId) -> Result<ValueId, Misuse> {
    let (b, transpose_b) = match e.transposed(b) {
        Some(source) => (source, true),
        None => (b, false),
    };
    super::emit_one(e, Matmul { transpose_a: false, transpose_b }, &[a, b])
}

impl Matmul {
    /// Rows, inner and columns of the product.
    fn sizes(self, a: &TensorType, b: &TensorType) -> (u64, u64, u64) {
        let (rows, inner) = if self.transpose_a { (a.cols(), a.rows()) } else { (a.rows(), a.cols()) };
        (rows, inner, if self.transpose_b { b.rows() } else { b.cols() })
    }
}

impl Op for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn attributes(&self) -> String {
        match (self.transpose_a, self.transpose_b) {
            (false, false) => "",
            (true, false) => "a.T",
            (false, true) => "b.T",
            (true, true) => "a.T b.T",
        }
        .to_owned()
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let (a, b) = (inputs[0], inputs[1]);
        if a.dims.is_empty() || b.dims.is_empty() {
            return Err(ShapeError::new(0, 1, "a scalar is no operand of `@`; use `*`"));
        }
        if !self.transpose_a && b.dims.len() != 2 {
            let b = super::shown(b);
            return Err(ShapeError::new(
                0,
                1,
                format!("the right operand of `@` must have two dims, and has {b}"),
            ));
        }
        let a_at = if self.transpose_a { 0 } else { a.dims.len() - 1 };
        let b_at = if self.transpose_b { b.dims.len() - 1 } else { 0 };
        let inner = self.sizes(a, b).1;
        let other = if self.transpose_b { b.cols() } else { b.rows() };
        if inner != other {
            let message = format!(
                "`@` sums over the last dim of the left operand, {}, and the first of the right one, {}",
                a.dims[a_at].size, b.dims[b_at].size
            );
            return Err(ShapeError::dims((0, a_at), (1, b_at), message));
        }
        let mut dims =
            if self.transpose_a { vec![a.dims[a.dims.len() - 1].clone()] } else { a.dims[..a_at].to_vec() };
        dims.push(if self.transpose_b { b.dims[0].clone() } else { b.dims[b.dims.len() - 1].clone() });
        Ok(vec![a.with_dims(dims)])
    }

    fn gradient(
        &self,
        g: &mut dyn GradientBuilder,
        inputs: &[ValueId],
        _outputs: &[ValueId],
        grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        let (a, b) = (inputs[0], inputs[1]);
        let (Some(dy), false) = (grads[0], self.transpose_a) else { return vec![None, None] };
        let mut product = |of: ValueId, transpose_a, transpose_b, left, right| {
            g.needs_gradient(of).then(|| {
                let name = gradient_name(&g.name(of));
                g.emit(Arc::new(Matmul { transpose_a, transpose_b }), &[left, right], &name)[0]
            })
        };
        let da = product(a, false, !self.transpose_b, dy, b);
        let db =
            if self.transpose_b { product(b, true, false, dy, a) } else { product(b, true, false, a, dy) };
        vec![da, db]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let (a, b) = (inputs[0], inputs[1]);
        let (ac, bc) = (a.cols(), b.cols());
        let (rows, inner) = if self.transpose_a { (ac, a.rows()) } else { (a.rows(), ac) };
        let cols = if self.transpose_b { b.rows() } else { bc };
        let at_a = |i: usize, k: usize| a.data[if self.transpose_a { k * ac + i } else { i * ac + k }];
        let at_b = |k: usize, j: usize| b.data[if self.transpose_b { j * bc + k } else { k * bc + j }];
        let mut dims = if self.transpose_a { vec![rows] } else { a.dims[..a.dims.len() - 1].to_vec() };
        dims.push(cols);
        vec![Tensor::from_fn(&dims, |i| {
            let (row, col) = (i / cols, i % cols);
            (0..inner).map(|k| at_a(row, k) * at_b(k, col)).sum()
        })]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        let (rows, inner, cols) = self.sizes(inputs[0], inputs[1]);
        super::streaming(2.0 * rows as f64 * inner as f64 * cols as f64, inputs, outputs)
    }

    fn form(&self, _inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        Form::Contract { transpose_a: self.transpose_a, transpose_b: self.transpose_b }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Dim;

    fn matrix(rows: usize, cols: usize) -> Tensor {
        Tensor::from_fn(&[rows, cols], |i| (i * i % 7) as f64 - 2.0)
    }

    fn product(transpose_a: bool, transpose_b: bool, a: &Tensor, b: &Tensor) -> Tensor {
        Matmul { transpose_a, transpose_b }.evaluate(&[a, b]).remove(0)
    }

    fn transposed(x: &Tensor) -> Tensor {
        Tensor::from_fn(&[x.dims[1], x.dims[0]], |i| x.data[i % x.dims[0] * x.dims[1] + i / x.dims[0]])
    }

    #[test]
    fn a_small_product() {
        let a = Tensor { dims: vec![2, 2], data: vec![1.0, 2.0, 3.0, 4.0] };
        let b = Tensor { dims: vec![2, 1], data: vec![5.0, 6.0] };
        assert_eq!(product(false, false, &a, &b), Tensor { dims: vec![2, 1], data: vec![17.0, 39.0] });
    }

    #[test]
    fn transposed_operands_are_read_in_place() {
        let (a, b) = (matrix(3, 5), matrix(5, 4));
        let plain = product(false, false, &a, &b);
        assert_eq!(product(true, false, &transposed(&a), &b), plain);
        assert_eq!(product(false, true, &a, &transposed(&b)), plain);
        assert_eq!(product(true, true, &transposed(&a), &transposed(&b)), plain);
    }

    #[test]
    fn inner_sizes_that_differ_are_named() {
        let ty = |sizes: &[u64]| TensorType::f32(sizes.iter().map(|s| Dim::of(*s)).collect());
        let op = Matmul { transpose_a: false, transpose_b: false };
        let error = op.infer(&[&ty(&[2, 3, 8]), &ty(&[9, 4])]).unwrap_err();
        assert_eq!((error.operands, error.dims), ((0, 1), Some((2, 0))));
        assert_eq!(op.infer(&[&ty(&[2, 3, 9]), &ty(&[9, 4])]), Ok(vec![ty(&[2, 3, 4])]));
        assert!(op.infer(&[&ty(&[2, 3]), &ty(&[2, 3, 4])]).is_err());
    }

    #[test]
    fn a_product_of_n_cubed_costs_two_n_cubed() {
        let ty = TensorType::f32(vec![Dim::of(16), Dim::of(16)]);
        let cost = Matmul { transpose_a: true, transpose_b: false }.cost(&[&ty, &ty], &[&ty]);
        assert_eq!((cost.flops, cost.bytes), (8192.0, 3072.0));
    }
}
