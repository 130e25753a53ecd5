//! Muon (Jordan et al. 2024): the momentum of a matrix, made nearly orthogonal.
//!
//! b ← μ b + (1 − μ) g',   u = (1 − μ) g' + μ b with Nesterov's look-ahead, else b,   X = u / (‖u‖ + 1e-7); then, k times, with A = X Xᵀ (or Xᵀ X where that is smaller),
//! X ← 3.4445 X + (−4.775 A + 2.0315 A²) X;   p ← p · (1 − lr · decay) − lr · scale · X.
//!
//! The scale is √max(1, outputs / inputs), or 0.2 · √max(outputs, inputs) as in Liu et al. 2025. Weights are stored inputs × outputs, so the
//! outputs are the columns. The products between these row functions are the kernel layer's.

use dspc_graph::row_builder::RowBuilder;
use dspc_graph::rowfn::{RowFn, UnaryFn};
use dspc_spec::settings::{Muon, MuonScale};

use super::Pace;
use super::element::{Copies, applies, decayed_parameter, paced};

/// The polynomial's coefficients: of X, A X, A² X.
pub const COEFFICIENTS: [f64; 3] = [3.4445, -4.775, 2.0315];

/// Added to the norm.
const EPS: f64 = 1e-7;

/// Operands: g, b `[rows, cols]`; scalars factor, finite. Results: b, u.
pub fn momentum(rows: u64, cols: u64, rule: &Muon) -> RowFn {
    let mut b = RowBuilder::new(rows, cols);
    let (g, old) = (b.element(), b.element());
    let factor = b.scalar();
    let apply = applies(&mut b);
    let g = b.multiply(g, factor);
    let (kept, share) = (b.times(old, rule.momentum), b.times(g, 1.0 - rule.momentum));
    let new = b.add(kept, share);
    let u = if rule.nesterov {
        let ahead = b.times(new, rule.momentum);
        b.add(share, ahead)
    } else {
        new
    };
    let gated = b.select(apply, new, old);
    b.yield_element(gated);
    b.yield_element(u);
    b.finish()
}

/// Operand: Σ u² of a matrix's rows `[1, rows]`. Result: 1 / (‖u‖ + 1e-7), a scalar.
pub fn inverse_length(rows: u64) -> RowFn {
    let mut b = RowBuilder::new(1, rows);
    let squares = b.element();
    let sum = b.sum(squares);
    let length = b.unary(UnaryFn::Sqrt, sum);
    let length = b.plus(length, EPS);
    let inverse = b.unary(UnaryFn::Reciprocal, length);
    b.yield_row(inverse);
    b.finish()
}

/// Operands: A, A² `[size, size]`. Result: −4.775 A + 2.0315 A².
pub fn polynomial(size: u64) -> RowFn {
    let mut b = RowBuilder::new(size, size);
    let (a, square) = (b.element(), b.element());
    let (a, square) = (b.times(a, COEFFICIENTS[1]), b.times(square, COEFFICIENTS[2]));
    let sum = b.add(a, square);
    b.yield_element(sum);
    b.finish()
}

/// Operands: X, that polynomial times X `[rows, cols]`. Result: X of the next step, times `scale`.
pub fn next(rows: u64, cols: u64, scale: f64) -> RowFn {
    let mut b = RowBuilder::new(rows, cols);
    let (x, product) = (b.element(), b.element());
    let x = b.times(x, COEFFICIENTS[0]);
    let sum = b.add(x, product);
    let sum = if scale == 1.0 { sum } else { b.times(sum, scale) };
    b.yield_element(sum);
    b.finish()
}

/// Operands: p, scale · X `[rows, cols]`; scalars learning rate, finite. Results: p, and once more for a copy.
pub fn update(rows: u64, cols: u64, pace: Pace, copies: Copies) -> RowFn {
    let mut b = RowBuilder::new(rows, cols);
    let (p, x) = (b.element(), b.element());
    let lr = b.scalar();
    let apply = applies(&mut b);
    let lr = paced(&mut b, lr, pace);
    let decayed = decayed_parameter(&mut b, p, lr, pace.weight_decay);
    let change = b.multiply(lr, x);
    let new = b.subtract(decayed, change);
    let gated = b.select(apply, new, p);
    b.yield_element(gated);
    if copies == Copies::Yes {
        b.yield_element(gated);
    }
    b.finish()
}

/// The factor on an orthogonal matrix.
pub fn scale(inputs: u64, outputs: u64, scale: MuonScale) -> f64 {
    let (inputs, outputs) = (inputs as f64, outputs as f64);
    match scale {
        MuonScale::Original => (outputs / inputs).max(1.0).sqrt(),
        MuonScale::MatchAdamW => 0.2 * outputs.max(inputs).sqrt(),
    }
}

#[cfg(test)]
mod tests {
    use dspc_graph::evaluate_row_fn;
    use dspc_graph::interpret::Tensor;
    use dspc_spec::settings::Adam;

    use super::*;
    use crate::fixture::Numbers;
    use crate::optimizer::element::scaled;
    use crate::optimizer::norm::sum_of_squares;

    const PACE: Pace = Pace { lr: 0.5, weight_decay: 0.1 };

    fn rule(nesterov: bool, scale: MuonScale) -> Muon {
        let adam = Adam { betas: (0.9, 0.95), eps: 1e-10 };
        Muon { momentum: 0.95, nesterov, steps: 5, scale, adam_lr: 1e-3, adam }
    }

    fn product(a: &Tensor, b: &Tensor) -> Tensor {
        let (n, k, m) = (a.dims[0], a.dims[1], b.dims[1]);
        let at = |i: usize| (0..k).map(|j| a.data[i / m * k + j] * b.data[j * m + i % m]).sum();
        Tensor::from_fn(&[n, m], at)
    }

    fn transposed(a: &Tensor) -> Tensor {
        let (n, m) = (a.dims[0], a.dims[1]);
        Tensor::from_fn(&[m, n], |i| a.data[i % n * m + i / n])
    }

    /// Newton–Schulz of the paper's listing: on the transpose where that is wider.
    fn orthogonal(u: &Tensor, steps: u64) -> Tensor {
        let tall = u.dims[0] > u.dims[1];
        let mut x = if tall { transposed(u) } else { u.clone() };
        let length = x.data.iter().map(|x| x * x).sum::<f64>().sqrt() + 1e-7;
        x.data.iter_mut().for_each(|x| *x /= length);
        let [a, b, c] = COEFFICIENTS;
        for _ in 0..steps {
            let square = product(&x, &transposed(&x));
            let fourth = product(&square, &square);
            let sum = Tensor::from_fn(&square.dims, |i| b * square.data[i] + c * fourth.data[i]);
            let next = product(&sum, &x);
            x = Tensor::from_fn(&x.dims, |i| a * x.data[i] + next.data[i]);
        }
        if tall { transposed(&x) } else { x }
    }

    /// The same by the row functions, without a transpose.
    fn device(u: &Tensor, rule: &Muon) -> Tensor {
        let (n, m) = (u.dims[0] as u64, u.dims[1] as u64);
        let squares = evaluate_row_fn(&sum_of_squares(n, m), &[u]).remove(0);
        let squares = Tensor { dims: vec![1, squares.data.len()], data: squares.data };
        let inverse = &evaluate_row_fn(&inverse_length(n), &[&squares])[0];
        let mut x = evaluate_row_fn(&scaled(n, m), &[u, inverse]).remove(0);
        for step in 1..=rule.steps {
            let a = if n > m { product(&transposed(&x), &x) } else { product(&x, &transposed(&x)) };
            let sum = &evaluate_row_fn(&polynomial(n.min(m)), &[&a, &product(&a, &a)])[0];
            let y = if n > m { product(&x, sum) } else { product(sum, &x) };
            let scale = if step == rule.steps { scale(n, m, rule.scale) } else { 1.0 };
            x = evaluate_row_fn(&next(n, m, scale), &[&x, &y]).remove(0);
        }
        x
    }

    #[test]
    fn it_is_the_matrix_rule_over_many_steps() {
        for (dims, nesterov, kind, factor) in [
            ([3, 6], true, MuonScale::Original, 2f64.sqrt()),
            ([6, 3], false, MuonScale::Original, 1.0),
            ([4, 4], true, MuonScale::MatchAdamW, 0.2 * 2.0),
        ] {
            let rule = rule(nesterov, kind);
            let (n, m) = (dims[0] as u64, dims[1] as u64);
            let mut numbers = Numbers(21);
            let mut p = numbers.tensor(&dims);
            let mut b = Tensor::zeros(&dims);
            let (mut wp, mut wb) = (p.clone(), b.clone());
            for step in 0..12 {
                let g = numbers.tensor(&dims);
                let bad = step % 5 == 3;
                let by = if bad { f64::NAN } else { 1.0 / 64.0 };
                let scaled = Tensor::from_fn(&dims, |i| g.data[i] / by);
                let finite = Tensor::scalar(if bad { 0.0 } else { 1.0 });
                let f = momentum(n, m, &rule);
                let out = evaluate_row_fn(&f, &[&scaled, &b, &Tensor::scalar(by), &finite]);
                b = out[0].clone();
                let x = device(&out[1], &rule);
                let f = update(n, m, PACE, Copies::Yes);
                let out = evaluate_row_fn(&f, &[&p, &x, &Tensor::scalar(0.02), &finite]);
                assert_eq!(out[0], out[1]);
                p = out[0].clone();
                if !bad {
                    wb = Tensor::from_fn(&dims, |i| 0.95 * wb.data[i] + (1.0 - 0.95) * g.data[i]);
                    let ahead = |i: usize| (1.0 - 0.95) * g.data[i] + 0.95 * wb.data[i];
                    let u = if nesterov { Tensor::from_fn(&dims, ahead) } else { wb.clone() };
                    let x = orthogonal(&u, 5);
                    let lr = 0.02 * PACE.lr;
                    wp = Tensor::from_fn(&dims, |i| wp.data[i] * (1.0 - lr * 0.1) - lr * factor * x.data[i]);
                }
                for (f, w) in p.data.iter().chain(&b.data).zip(wp.data.iter().chain(&wb.data)) {
                    assert!((f - w).abs() <= 1e-12, "step {step}: {f} for {w}");
                }
            }
        }
    }

    #[test]
    fn the_singular_values_come_near_one() {
        let u = Numbers(4).tensor(&[5, 5]);
        let x = orthogonal(&u, 10);
        let square = product(&x, &transposed(&x));
        for i in 0..5 {
            assert!((square.data[i * 6] - 1.0).abs() < 0.6, "{}", square.data[i * 6]);
        }
    }
}
