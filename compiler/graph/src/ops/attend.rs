//! Softmax attention (Vaswani et al. 2017) over heads that lie side by side in the last dim.

use std::sync::Arc;

use dspc_spec::body::Builtin;

use super::function::{Build, Expects, Function, Misuse, Parameter};
use super::{gradient_name, streaming};
use crate::form::{Attention, Form};
use crate::interpret::Tensor;
use crate::ir::{Cost, DType, Dim, GradientBuilder, Op, ShapeError, TensorType, ValueId};
use crate::mask::Mask;

pub(crate) const ATTEND: Function = Function {
    builtin: Builtin {
        name: "attend",
        signature: "attend(q, k, v, heads: H, kv_heads: H, mask: full, scale: 1 / sqrt(D / H))",
        doc: "Softmax attention of queries `[B, T, D]` over keys and values `[B, S, D / heads * kv_heads]`.",
    },
    params: &[
        Parameter::required("q", Expects::Tensor),
        Parameter::required("k", Expects::Tensor),
        Parameter::required("v", Expects::Tensor),
        Parameter::required("heads", Expects::Size),
        Parameter::optional("kv_heads", Expects::Size),
        Parameter::optional("mask", Expects::Mask),
        Parameter::optional("scale", Expects::Number),
    ],
    build: Build::Ops(|e, args| {
        let (q, k, v) = (args.tensor(0), args.tensor(1), args.tensor(2));
        let heads = args.size(3).cloned().unwrap_or_else(|| Dim::of(1));
        let kv = args.size(4).cloned().unwrap_or_else(|| heads.clone());
        let kv_param = if args.size(4).is_some() { 4 } else { 3 };
        let divides = |width: u64, heads: &Dim| heads.size > 0 && width.is_multiple_of(heads.size);
        if !divides(e.ty(q).cols(), &heads) {
            return Err(Misuse::Heads { param: 3, heads, tensor: q });
        }
        if !divides(e.ty(k).cols(), &kv) {
            return Err(Misuse::Heads { param: kv_param, heads: kv, tensor: k });
        }
        if !heads.size.is_multiple_of(kv.size) {
            let message = format!("{} does not divide the {} query heads", kv.size, heads.size);
            return Err(Misuse::Range { param: kv_param, message });
        }
        let head_dim = e.ty(q).cols() / heads.size;
        let attention = Attention {
            heads: heads.size,
            kv_heads: kv.size,
            head_dim,
            scale: args.number(6).unwrap_or(1.0 / (head_dim as f64).sqrt()),
            mask: args.mask(5).cloned().unwrap_or(Mask::Full),
        };
        Ok(vec![super::emit_one(e, Attend { attention, heads }, &[q, k, v])?])
    }),
};

/// Operands `q [B, T, H·d]`, `k, v [B, S, K·d]`; results `y [B, T, H·d]` and the rows' log-sum-exp, f32 `[B, H, T]`.
///
/// A query that may look at nothing yields zeros.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Attend {
    attention: Attention,
    heads: Dim,
}

/// Operands q, k, v, y, log-sum-exp, dy; results dq, dk, dv.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct AttendBackward {
    attention: Attention,
}

/// Sizes of one call, and where things lie.
struct Geometry<'a> {
    a: &'a Attention,
    batch: usize,
    queries: usize,
    keys: usize,
}

impl<'a> Geometry<'a> {
    fn new(a: &'a Attention, q: &Tensor, k: &Tensor) -> Self {
        Self { a, batch: q.dims[0], queries: q.dims[1], keys: k.dims[1] }
    }

    /// Index of the first element of a query's head.
    fn q(&self, b: usize, h: usize, t: usize) -> usize {
        ((b * self.queries + t) * self.a.heads as usize + h) * self.a.head_dim as usize
    }

    /// Index of the first element of a key's head, that query head `h` looks at.
    fn k(&self, b: usize, h: usize, s: usize) -> usize {
        let group = (self.a.heads / self.a.kv_heads) as usize;
        ((b * self.keys + s) * self.a.kv_heads as usize + h / group) * self.a.head_dim as usize
    }

    /// Index of a row's log-sum-exp.
    fn lse(&self, b: usize, h: usize, t: usize) -> usize {
        (b * self.a.heads as usize + h) * self.queries + t
    }

    fn rows(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let (heads, queries) = (self.a.heads as usize, self.queries);
        (0..self.batch).flat_map(move |b| (0..heads).flat_map(move |h| (0..queries).map(move |t| (b, h, t))))
    }

    fn visible(&self, t: usize) -> Vec<usize> {
        (0..self.keys).filter(|s| self.a.mask.allows(t as u64, *s as u64)).collect()
    }

    fn score(&self, q: &Tensor, k: &Tensor, qi: usize, ki: usize) -> f64 {
        self.a.scale * (0..self.a.head_dim as usize).map(|c| q.data[qi + c] * k.data[ki + c]).sum::<f64>()
    }
}

/// Shares of pairs that may look, for the cost.
fn pairs(a: &Attention, q: &TensorType, k: &TensorType) -> f64 {
    let (t, s) = (q.dims[1].size, k.dims[1].size);
    let sample = |n: u64| (0..n.min(64)).map(move |i| i * n / n.min(64));
    let seen =
        sample(t).flat_map(|q| sample(s).map(move |k| (q, k))).filter(|(q, k)| a.mask.allows(*q, *k)).count();
    let asked = t.min(64) * s.min(64);
    q.dims[0].size as f64 * a.heads as f64 * t as f64 * s as f64 * seen as f64 / asked.max(1) as f64
}

impl Op for Attend {
    fn name(&self) -> &'static str {
        "attend"
    }

    fn attributes(&self) -> String {
        let a = &self.attention;
        let kv = if a.kv_heads == a.heads { String::new() } else { format!(" kv_heads {}", a.kv_heads) };
        format!("heads {}{kv} mask {}", a.heads, a.mask)
    }

    fn result_suffixes(&self) -> &'static [&'static str] {
        &["lse"]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        let (q, k) = (inputs[0], inputs[1]);
        for (i, ty) in inputs.iter().enumerate() {
            if ty.dims.len() != 3 {
                let message = format!("attention takes [batch, position, width], not {}", super::shown(ty));
                return Err(ShapeError::new(i, i, message));
            }
        }
        let differ = |a: (usize, usize), b: (usize, usize), message: &str| {
            (inputs[a.0].dims[a.1] != inputs[b.0].dims[b.1]).then(|| ShapeError::dims(a, b, message))
        };
        let group = self.attention.heads / self.attention.kv_heads;
        if let Some(error) = differ((0, 0), (1, 0), "queries and keys have different batches")
            .or_else(|| differ((1, 0), (2, 0), "keys and values have different batches"))
            .or_else(|| differ((1, 1), (2, 1), "each key needs a value"))
            .or_else(|| differ((1, 2), (2, 2), "keys and values have different widths"))
        {
            return Err(error);
        }
        if q.cols() != k.cols().saturating_mul(group)
            || q.cols() != self.attention.heads.saturating_mul(self.attention.head_dim)
        {
            let message = format!(
                "{} query heads of {} need keys of width {} for {} kv_heads, and they have {}",
                self.attention.heads,
                self.attention.head_dim,
                self.attention.kv_heads.saturating_mul(self.attention.head_dim),
                self.attention.kv_heads,
                k.cols()
            );
            return Err(ShapeError::dims((0, 2), (1, 2), message));
        }
        let lse = vec![q.dims[0].clone(), self.heads.clone(), q.dims[1].clone()];
        Ok(vec![q.clone(), TensorType { dtype: DType::F32, dims: lse }])
    }

    fn gradient(
        &self,
        g: &mut dyn GradientBuilder,
        inputs: &[ValueId],
        outputs: &[ValueId],
        grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        let Some(dy) = grads[0] else { return vec![None; 3] };
        let op = AttendBackward { attention: self.attention.clone() };
        let operands = [inputs[0], inputs[1], inputs[2], outputs[0], outputs[1], dy];
        let name = gradient_name(&g.name(inputs[0]));
        g.emit(Arc::new(op), &operands, &name).into_iter().map(Some).collect()
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let (q, k, v) = (inputs[0], inputs[1], inputs[2]);
        let at = Geometry::new(&self.attention, q, k);
        let mut y = Tensor::zeros(&q.dims);
        let mut lse = Tensor::zeros(&[at.batch, self.attention.heads as usize, at.queries]);
        for (b, h, t) in at.rows() {
            let qi = at.q(b, h, t);
            let seen = at.visible(t);
            let scores: Vec<f64> = seen.iter().map(|s| at.score(q, k, qi, at.k(b, h, *s))).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|x| libm::exp(x - max)).sum();
            lse.data[at.lse(b, h, t)] = if seen.is_empty() { 0.0 } else { max + libm::log(sum) };
            for (s, score) in seen.iter().zip(scores) {
                let vi = at.k(b, h, *s);
                for c in 0..self.attention.head_dim as usize {
                    y.data[qi + c] += libm::exp(score - max) / sum * v.data[vi + c];
                }
            }
        }
        vec![y, lse]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        let products = pairs(&self.attention, inputs[0], inputs[1]) * self.attention.head_dim as f64;
        streaming(4.0 * products, inputs, outputs)
    }

    fn form(&self, _inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        Form::Attention(self.attention.clone())
    }
}

impl Op for AttendBackward {
    fn name(&self) -> &'static str {
        "attend_backward"
    }

    fn attributes(&self) -> String {
        format!("heads {} mask {}", self.attention.heads, self.attention.mask)
    }

    fn result_suffixes(&self) -> &'static [&'static str] {
        &["k", "v"]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        if inputs[3].dims != inputs[5].dims {
            return Err(ShapeError::new(3, 5, "the gradient has other dims than the result"));
        }
        Ok(inputs[..3].iter().map(|t| (*t).clone()).collect())
    }

    fn gradient(
        &self,
        _g: &mut dyn GradientBuilder,
        _inputs: &[ValueId],
        _outputs: &[ValueId],
        _grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        vec![None; 6]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let [q, k, v, y, lse, dy] = [inputs[0], inputs[1], inputs[2], inputs[3], inputs[4], inputs[5]];
        let at = Geometry::new(&self.attention, q, k);
        let width = self.attention.head_dim as usize;
        let (mut dq, mut dk, mut dv) =
            (Tensor::zeros(&q.dims), Tensor::zeros(&k.dims), Tensor::zeros(&v.dims));
        for (b, h, t) in at.rows() {
            let qi = at.q(b, h, t);
            let delta: f64 = (0..width).map(|c| dy.data[qi + c] * y.data[qi + c]).sum();
            for s in at.visible(t) {
                let ki = at.k(b, h, s);
                let p = libm::exp(at.score(q, k, qi, ki) - lse.data[at.lse(b, h, t)]);
                let dp: f64 = (0..width).map(|c| dy.data[qi + c] * v.data[ki + c]).sum();
                let ds = self.attention.scale * p * (dp - delta);
                for c in 0..width {
                    dq.data[qi + c] += ds * k.data[ki + c];
                    dk.data[ki + c] += ds * q.data[qi + c];
                    dv.data[ki + c] += p * dy.data[qi + c];
                }
            }
        }
        vec![dq, dk, dv]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        let products = pairs(&self.attention, inputs[0], inputs[1]) * self.attention.head_dim as f64;
        streaming(10.0 * products, inputs, outputs)
    }

    fn form(&self, _inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        Form::AttentionBackward(self.attention.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attention(heads: u64, kv_heads: u64, mask: Mask) -> Attend {
        let attention = Attention { heads, kv_heads, head_dim: 2, scale: 0.5, mask };
        Attend { attention, heads: Dim::of(heads) }
    }

    fn some(dims: &[usize]) -> Tensor {
        Tensor::from_fn(dims, |i| (i * i * 7 % 11) as f64 / 5.0 - 1.0)
    }

    #[test]
    fn the_first_query_of_a_causal_mask_sees_the_first_value() {
        let (q, k, v) =
            (some(&[1, 3, 4]), some(&[1, 3, 4]).map(|x| x * x), some(&[1, 3, 4]).map(|x| x + 1.0));
        let y = attention(2, 2, Mask::causal()).evaluate(&[&q, &k, &v]).remove(0);
        assert_eq!(y.data[..4], v.data[..4]);
    }

    #[test]
    fn equal_scores_give_the_mean_of_the_values() {
        let (q, v) = (Tensor::zeros(&[1, 2, 2]), some(&[1, 2, 2]));
        let [y, lse] = attention(1, 1, Mask::Full).evaluate(&[&q, &q, &v]).try_into().unwrap();
        for c in 0..2 {
            assert!((y.data[c] - (v.data[c] + v.data[2 + c]) / 2.0).abs() < 1e-15);
        }
        assert!((lse.data[0] - std::f64::consts::LN_2).abs() < 1e-15);
    }

    #[test]
    fn grouped_heads_are_heads_that_share_keys() {
        let (q, kv) = (some(&[2, 3, 4]), some(&[2, 3, 2]));
        let twice = Tensor::from_fn(&[2, 3, 4], |i| kv.data[i / 4 * 2 + i % 2]);
        let grouped = attention(2, 1, Mask::causal()).evaluate(&[&q, &kv, &kv]);
        assert_eq!(grouped, attention(2, 2, Mask::causal()).evaluate(&[&q, &twice, &twice]));
    }

    #[test]
    fn a_query_that_sees_nothing_yields_zeros() {
        let x = some(&[1, 3, 2]);
        let never = Mask::Where(Arc::new(crate::mask::MaskExpr::Const(0)));
        let op = attention(1, 1, never);
        let [y, lse] = op.evaluate(&[&x, &x, &x]).try_into().unwrap();
        assert!(y.data.iter().chain(&lse.data).all(|y| *y == 0.0));
    }

    #[test]
    fn a_causal_mask_costs_half() {
        let ty = TensorType::f32(vec![Dim::of(2), Dim::of(64), Dim::of(4)]);
        let flops = |mask| attention(2, 2, mask).cost(&[&ty, &ty, &ty], &[&ty]).flops;
        assert_eq!(flops(Mask::Full), 4.0 * 2.0 * 2.0 * 64.0 * 64.0 * 2.0);
        assert!((flops(Mask::causal()) / flops(Mask::Full) - 0.5).abs() < 0.01);
    }
}
