//! LAMB (You et al. 2020, algorithm 2), the trust ratio held between bounds as DeepSpeed's does.
//!
//! m, v as Adam's;   u = (m / (1 − β₁ᵗ)) / (√v / √(1 − β₂ᵗ) + ε) + decay · p;   r = ‖p‖ / ‖u‖ of the tensor, held in [min, max], and 1 where either is 0;
//! p ← p − lr · r · u.
//!
//! A tensor begins at a row of the grid, so every row's sums are of one tensor: `sums` over the rows that a rank has, `ratios` a tensor, `update` over the rows again.
//! u is not stored: it follows from p, m and v.

use dspc_graph::row_builder::RowBuilder;
use dspc_graph::rowfn::{BinaryFn, NodeId, RowFn, UnaryFn};
use dspc_spec::settings::Adam;

use super::Pace;
use super::adam::denominator;
use super::element::{Copies, applies, paced};

/// Operands: p, g, m, v `[rows, cols]`; scalars factor, 1 − β₁ᵗ, 1 − β₂ᵗ, finite. Results: m, v; Σ p² and Σ u² a row.
pub fn sums(rows: u64, cols: u64, rule: Adam, pace: Pace) -> RowFn {
    let mut b = RowBuilder::new(rows, cols);
    let [p, g, m, v] = [(); 4].map(|()| b.element());
    let [factor, bias1, bias2] = [(); 3].map(|()| b.scalar());
    let apply = applies(&mut b);
    let g = b.multiply(g, factor);
    let square = b.multiply(g, g);
    let (beta1, beta2) = rule.betas;
    let m_new = decayed(&mut b, (m, beta1), (g, 1.0 - beta1));
    let v_new = decayed(&mut b, (v, beta2), (square, 1.0 - beta2));
    let u = direction(&mut b, (p, m_new, v_new), (bias1, bias2), rule.eps, pace);
    for (new, old) in [(m_new, m), (v_new, v)] {
        let gated = b.select(apply, new, old);
        b.yield_element(gated);
    }
    for x in [p, u] {
        let square = b.multiply(x, x);
        let sum = b.sum(square);
        b.yield_row(sum);
    }
    b.finish()
}

/// Operands: Σ p², Σ u² of a tensor's rows, a turn a row `[turns, cols]`. Result: the turn's ratio, once for each of its rows.
pub fn ratios(turns: u64, cols: u64, (min, max): (f64, f64)) -> RowFn {
    let mut b = RowBuilder::new(turns, cols);
    let (p, u) = (b.element(), b.element());
    let [p, u] = [p, u].map(|squares| {
        let sum = b.sum(squares);
        b.unary(UnaryFn::Sqrt, sum)
    });
    let (zero, one, min, max) = (b.number(0.0), b.number(1.0), b.number(min), b.number(max));
    let ratio = b.divide(p, u);
    let at_least = b.binary(BinaryFn::Max, ratio, min);
    let held = b.binary(BinaryFn::Min, at_least, max);
    let (has_p, has_u) = (b.binary(BinaryFn::Less, zero, p), b.binary(BinaryFn::Less, zero, u));
    let both = b.binary(BinaryFn::And, has_p, has_u);
    let ratio = b.select(both, held, one);
    b.yield_element(ratio);
    b.finish()
}

/// Operands: p, m, v `[rows, cols]`, the ratios `[rows]`; scalars learning rate, 1 − β₁ᵗ, 1 − β₂ᵗ, finite. Results: p, and p once more where there is a copy.
pub fn update(rows: u64, cols: u64, rule: Adam, pace: Pace, copies: Copies) -> RowFn {
    let mut b = RowBuilder::new(rows, cols);
    let [p, m, v] = [(); 3].map(|()| b.element());
    let ratio = b.row();
    let [lr, bias1, bias2] = [(); 3].map(|()| b.scalar());
    let apply = applies(&mut b);
    let lr = paced(&mut b, lr, pace);
    let u = direction(&mut b, (p, m, v), (bias1, bias2), rule.eps, pace);
    let rate = b.multiply(lr, ratio);
    let change = b.multiply(rate, u);
    let new = b.subtract(p, change);
    let gated = b.select(apply, new, p);
    b.yield_element(gated);
    if copies == Copies::Yes {
        b.yield_element(gated);
    }
    b.finish()
}

fn decayed(b: &mut RowBuilder, (moment, kept): (NodeId, f64), (x, new): (NodeId, f64)) -> NodeId {
    let (kept, new) = (b.times(moment, kept), b.times(x, new));
    b.add(kept, new)
}

fn direction(
    b: &mut RowBuilder,
    (p, m, v): (NodeId, NodeId, NodeId),
    (bias1, bias2): (NodeId, NodeId),
    eps: f64,
    pace: Pace,
) -> NodeId {
    let m = b.divide(m, bias1);
    let denominator = denominator(b, v, bias2, eps);
    let adam = b.divide(m, denominator);
    if pace.weight_decay == 0.0 {
        return adam;
    }
    let decay = b.times(p, pace.weight_decay);
    b.add(adam, decay)
}

#[cfg(test)]
mod tests {
    use dspc_graph::evaluate_row_fn;
    use dspc_graph::interpret::Tensor;

    use super::*;
    use crate::fixture::Numbers;

    const RULE: Adam = Adam { betas: (0.9, 0.99), eps: 1e-6 };
    const PACE: Pace = Pace { lr: 0.5, weight_decay: 0.1 };
    const RATIO: (f64, f64) = (0.01, 10.0);

    /// The whole tensor in one vector.
    fn reference(p: &mut [f64], m: &mut [f64], v: &mut [f64], g: &[f64], lr: f64, t: i32) {
        let (beta1, beta2) = RULE.betas;
        let mut u = vec![0.0; p.len()];
        for i in 0..p.len() {
            m[i] = beta1 * m[i] + (1.0 - beta1) * g[i];
            v[i] = beta2 * v[i] + (1.0 - beta2) * g[i] * g[i];
            let (m_hat, v_hat) = (m[i] / (1.0 - beta1.powi(t)), v[i] / (1.0 - beta2.powi(t)));
            u[i] = m_hat / (v_hat.sqrt() + RULE.eps) + PACE.weight_decay * p[i];
        }
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let (length, way) = (norm(p), norm(&u));
        let ratio = if length > 0.0 && way > 0.0 { (length / way).clamp(RATIO.0, RATIO.1) } else { 1.0 };
        p.iter_mut().zip(&u).for_each(|(p, u)| *p -= lr * PACE.lr * ratio * u);
    }

    /// Two turns of a tensor of two rows, zeros at its end; the second turn begins as zero.
    #[test]
    fn it_is_the_vector_rule_over_many_steps() {
        let (turns, rows, cols) = (2, 2, 3);
        let own = 5;
        let size = turns * rows * cols;
        let mut numbers = Numbers(3);
        let mut random = |scale: f64| -> Vec<f64> {
            (0..size).map(|i| if i % 6 < own { scale * numbers.next() } else { 0.0 }).collect()
        };
        let mut p = random(1.0);
        p[6..].fill(0.0);
        let (mut m, mut v) = (vec![0.0; size], vec![0.0; size]);
        let (mut wp, mut wm, mut wv) = (p.clone(), m.clone(), v.clone());
        let matrix = |xs: &[f64]| Tensor { dims: vec![turns * rows, cols], data: xs.to_vec() };
        let by_turn = |t: &Tensor| Tensor { dims: vec![turns, rows], data: t.data.clone() };
        let mut applied = 0;
        for step in 0..30 {
            let g = random(if step < 10 { 1.0 } else { 1e-3 });
            let bad = step % 5 == 2;
            let finite = Tensor::scalar(if bad { 0.0 } else { 1.0 });
            let factor = if bad { f64::NAN } else { 1.0 / 512.0 };
            let scaled: Vec<f64> = g.iter().map(|g| g / factor).collect();
            let (t, lr) = (applied + 1, 0.02);
            let bias = [RULE.betas.0, RULE.betas.1].map(|beta| Tensor::scalar(1.0 - beta.powi(t)));
            let f = sums(4, 3, RULE, PACE);
            let out = evaluate_row_fn(
                &f,
                &[
                    &matrix(&p),
                    &matrix(&scaled),
                    &matrix(&m),
                    &matrix(&v),
                    &Tensor::scalar(factor),
                    &bias[0],
                    &bias[1],
                    &finite,
                ],
            );
            (m, v) = (out[0].data.clone(), out[1].data.clone());
            let found = evaluate_row_fn(&ratios(2, 2, RATIO), &[&by_turn(&out[2]), &by_turn(&out[3])]);
            let ratio = Tensor { dims: vec![4], data: found[0].data.clone() };
            let f = update(4, 3, RULE, PACE, Copies::Yes);
            let out = evaluate_row_fn(
                &f,
                &[
                    &matrix(&p),
                    &matrix(&m),
                    &matrix(&v),
                    &ratio,
                    &Tensor::scalar(lr),
                    &bias[0],
                    &bias[1],
                    &finite,
                ],
            );
            assert_eq!(out[0], out[1]);
            p = out[0].data.clone();
            if !bad {
                for turn in 0..2 {
                    let of = 6 * turn..6 * turn + 6;
                    reference(&mut wp[of.clone()], &mut wm[of.clone()], &mut wv[of.clone()], &g[of], lr, t);
                }
                applied += 1;
            }
            for (found, wanted) in
                [&p, &m, &v].into_iter().flatten().zip([&wp, &wm, &wv].into_iter().flatten())
            {
                assert!((found - wanted).abs() <= 1e-13, "step {step}: {found} for {wanted}");
            }
        }
        assert!(p[5] == 0.0 && p[6] != 0.0);
    }
}
