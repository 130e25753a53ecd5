//! Adafactor (Shazeer, Stern 2018, algorithms 4 and 5) without a first moment, as Hugging Face's computes it with a given learning rate.
//!
//! β = 1 − t^−power,   s = g'² + ε. Of a matrix: R ← β R + (1 − β) · mean of s over each row,   C ← β C + (1 − β) · mean of s over each column,
//! u = g' / √(R / mean R) / √C. Of all else: v ← β v + (1 − β) s,   u = g' / √v.   ρ = lr, or lr · max(ε₂, rms p);
//! p ← p · (1 − ρ · decay) − ρ / max(1, rms u / clip) · u.
//!
//! R, C, v and what follows from them is made tensor by tensor, a turn of a repeat at a time, from whole gradients; p is changed wherever its elements lie.

use dspc_graph::row_builder::RowBuilder;
use dspc_graph::rowfn::{BinaryFn, NodeId, RowFn, UnaryFn};
use dspc_spec::settings::Adafactor;

use super::Pace;
use super::element::{Copies, applies, decayed_parameter, paced};

/// Operands: g `[rows, cols]`; scalar factor. Result: g' in single precision.
pub fn gradient(rows: u64, cols: u64) -> RowFn {
    let mut b = RowBuilder::new(rows, cols);
    let (g, factor) = (b.element(), b.scalar());
    let g = b.multiply(g, factor);
    b.yield_element(g);
    b.finish()
}

/// Operands: g' `[rows, cols]`, R `[rows]`; scalars β, finite. Results: R; Σ s a column.
pub fn rows(rows: u64, cols: u64, rule: &Adafactor) -> RowFn {
    let mut b = RowBuilder::new(rows, cols);
    let (g, r, beta) = (b.element(), b.row(), b.scalar());
    let apply = applies(&mut b);
    let s = squares(&mut b, g, rule);
    let mean = b.mean(s);
    let new = mixed(&mut b, r, mean, beta);
    let gated = b.select(apply, new, r);
    b.yield_row(gated);
    b.yield_column_sum(s);
    b.finish()
}

/// Operand: Σ s a column, in parts `[parts, cols]`. Result: their sum a column.
pub fn column_sums(parts: u64, cols: u64) -> RowFn {
    let mut b = RowBuilder::new(parts, cols);
    let s = b.element();
    b.yield_column_sum(s);
    b.finish()
}

/// Operands: C, Σ s over `rows` rows `[1, cols]`; scalars β, finite. Result: C.
pub fn columns(rows: u64, cols: u64) -> RowFn {
    let mut b = RowBuilder::new(1, cols);
    let (c, sum, beta) = (b.element(), b.element(), b.scalar());
    let apply = applies(&mut b);
    let mean = b.times(sum, 1.0 / rows as f64);
    let new = mixed(&mut b, c, mean, beta);
    let gated = b.select(apply, new, c);
    b.yield_element(gated);
    b.finish()
}

/// Operand: R `[1, rows]`. Result: its mean, a scalar.
pub fn mean_of_rows(rows: u64) -> RowFn {
    let mut b = RowBuilder::new(1, rows);
    let r = b.element();
    let mean = b.mean(r);
    b.yield_row(mean);
    b.finish()
}

/// A matrix's. Operands: g' `[rows, cols]`, R `[rows]`, C `[cols]`; scalar mean R. Results: u; Σ u² a row.
pub fn direction(rows: u64, cols: u64) -> RowFn {
    let mut b = RowBuilder::new(rows, cols);
    let (g, r, c, mean) = (b.element(), b.row(), b.bias(), b.scalar());
    let share = b.divide(r, mean);
    let (by_row, by_column) = (b.unary(UnaryFn::Rsqrt, share), b.unary(UnaryFn::Rsqrt, c));
    let u = b.multiply(g, by_row);
    let u = b.multiply(u, by_column);
    yield_direction(&mut b, u);
    b.finish()
}

/// All else. Operands: g', v `[rows, cols]`; scalars β, finite. Results: v, u; Σ u² a row.
pub fn whole(rows: u64, cols: u64, rule: &Adafactor) -> RowFn {
    let mut b = RowBuilder::new(rows, cols);
    let (g, v, beta) = (b.element(), b.element(), b.scalar());
    let apply = applies(&mut b);
    let s = squares(&mut b, g, rule);
    let new = mixed(&mut b, v, s, beta);
    let gated = b.select(apply, new, v);
    b.yield_element(gated);
    let root = b.unary(UnaryFn::Rsqrt, new);
    let u = b.multiply(g, root);
    yield_direction(&mut b, u);
    b.finish()
}

/// Operand: Σ p² of the rows of the grid that a tensor of `elements` elements lies on, a turn a row `[turns, rows]`. Result: max(ε₂, rms p) of the turn, once for
/// each row.
pub fn lengths(turns: u64, rows: u64, elements: u64, rule: &Adafactor) -> RowFn {
    let mut b = RowBuilder::new(turns, rows);
    let squares = b.element();
    let length = root_mean(&mut b, squares, elements);
    let least = b.number(rule.eps_parameter);
    let length = b.binary(BinaryFn::Max, length, least);
    b.yield_element(length);
    b.finish()
}

/// Operand: Σ u² of a tensor's rows `[1, rows]`. Result: 1 / max(1, rms u / clip), a scalar.
pub fn shortening(rows: u64, elements: u64, rule: &Adafactor) -> RowFn {
    let mut b = RowBuilder::new(1, rows);
    let squares = b.element();
    let length = root_mean(&mut b, squares, elements);
    let over = b.times(length, 1.0 / rule.clip);
    let one = b.number(1.0);
    let over = b.binary(BinaryFn::Max, one, over);
    let shortening = b.unary(UnaryFn::Reciprocal, over);
    b.yield_row(shortening);
    b.finish()
}

/// Operands: p, shortened u `[rows, cols]`; the lengths `[rows]` if the rule scales by them; scalars learning rate, finite. Results: p, and once more for a copy.
pub fn update(rows: u64, cols: u64, rule: &Adafactor, pace: Pace, copies: Copies) -> RowFn {
    let mut b = RowBuilder::new(rows, cols);
    let (p, u) = (b.element(), b.element());
    let length = rule.scale_parameter.then(|| b.row());
    let lr = b.scalar();
    let apply = applies(&mut b);
    let lr = paced(&mut b, lr, pace);
    let rate = length.map_or(lr, |length| b.multiply(lr, length));
    let decayed = decayed_parameter(&mut b, p, rate, pace.weight_decay);
    let change = b.multiply(rate, u);
    let new = b.subtract(decayed, change);
    let gated = b.select(apply, new, p);
    b.yield_element(gated);
    if copies == Copies::Yes {
        b.yield_element(gated);
    }
    b.finish()
}

fn squares(b: &mut RowBuilder, g: NodeId, rule: &Adafactor) -> NodeId {
    let square = b.multiply(g, g);
    b.plus(square, rule.eps)
}

/// β · old + (1 − β) · new
fn mixed(b: &mut RowBuilder, old: NodeId, new: NodeId, beta: NodeId) -> NodeId {
    let one = b.number(1.0);
    let share = b.subtract(one, beta);
    let (old, new) = (b.multiply(old, beta), b.multiply(new, share));
    b.add(old, new)
}

fn yield_direction(b: &mut RowBuilder, u: NodeId) {
    b.yield_element(u);
    let square = b.multiply(u, u);
    let sum = b.sum(square);
    b.yield_row(sum);
}

/// √(Σ squares / elements)
fn root_mean(b: &mut RowBuilder, squares: NodeId, elements: u64) -> NodeId {
    let sum = b.sum(squares);
    let mean = b.times(sum, 1.0 / elements as f64);
    b.unary(UnaryFn::Sqrt, mean)
}

#[cfg(test)]
mod tests {
    use dspc_graph::evaluate_row_fn;
    use dspc_graph::interpret::Tensor;

    use super::*;
    use crate::fixture::Numbers;
    use crate::optimizer::element::scaled;

    const PACE: Pace = Pace { lr: 0.5, weight_decay: 0.1 };
    const ROWS: usize = 4;
    const COLS: usize = 3;

    fn tensor(dims: &[usize], xs: &[f64]) -> Tensor {
        Tensor { dims: dims.to_vec(), data: xs.to_vec() }
    }

    fn matrix(xs: &[f64]) -> Tensor {
        tensor(&[ROWS, COLS], xs)
    }

    #[derive(Clone)]
    struct State {
        p: Vec<f64>,
        r: Vec<f64>,
        c: Vec<f64>,
        v: Vec<f64>,
    }

    /// The rule on whole matrices, as the paper has it: V = R Cᵀ / mean R.
    fn reference(s: &mut State, g: &[f64], lr: f64, t: i32, rule: &Adafactor, factored: bool) {
        let beta = 1.0 - f64::from(t).powf(-rule.decay_power);
        let squares: Vec<f64> = g.iter().map(|g| g * g + rule.eps).collect();
        let rms = |xs: &[f64]| (xs.iter().map(|x| x * x).sum::<f64>() / xs.len() as f64).sqrt();
        let v: Vec<f64> = if factored {
            for i in 0..ROWS {
                let mean = squares[i * COLS..(i + 1) * COLS].iter().sum::<f64>() / COLS as f64;
                s.r[i] = beta * s.r[i] + (1.0 - beta) * mean;
            }
            for j in 0..COLS {
                let mean = (0..ROWS).map(|i| squares[i * COLS + j]).sum::<f64>() / ROWS as f64;
                s.c[j] = beta * s.c[j] + (1.0 - beta) * mean;
            }
            let mean = s.r.iter().sum::<f64>() / ROWS as f64;
            (0..ROWS * COLS).map(|i| s.r[i / COLS] * s.c[i % COLS] / mean).collect()
        } else {
            s.v.iter_mut().zip(&squares).for_each(|(v, s)| *v = beta * *v + (1.0 - beta) * s);
            s.v.clone()
        };
        let u: Vec<f64> = g.iter().zip(&v).map(|(g, v)| g / v.sqrt()).collect();
        let scale = if rule.scale_parameter { rms(&s.p).max(rule.eps_parameter) } else { 1.0 };
        let rate = lr * PACE.lr * scale;
        let clip = (rms(&u) / rule.clip).max(1.0);
        s.p.iter_mut().zip(&u).for_each(|(p, u)| *p -= rate * PACE.weight_decay * *p + rate / clip * u);
    }

    /// The same by the row functions; the column sums in two parts.
    fn device(s: &mut State, g: &[f64], scalars: [f64; 4], rule: &Adafactor, factored: bool) {
        let [factor, lr, beta, finite] = scalars.map(Tensor::scalar);
        let (n, m) = (ROWS as u64, COLS as u64);
        let p = matrix(&s.p);
        let g = evaluate_row_fn(&gradient(n, m), &[&matrix(g), &factor]).remove(0);
        let row = |xs: &[f64]| tensor(&[1, xs.len()], xs);
        let out = if factored {
            let out = evaluate_row_fn(&rows(n, m, rule), &[&g, &tensor(&[ROWS], &s.r), &beta, &finite]);
            s.r = out[0].data.clone();
            let zeros = [out[1].data.clone(), vec![0.0; COLS]].concat();
            let sums = evaluate_row_fn(&column_sums(2, m), &[&tensor(&[2, COLS], &zeros)]);
            let c = evaluate_row_fn(&columns(n, m), &[&row(&s.c), &row(&sums[0].data), &beta, &finite]);
            s.c = c[0].data.clone();
            let mean = &evaluate_row_fn(&mean_of_rows(n), &[&row(&s.r)])[0];
            let (r, c) = (tensor(&[ROWS], &s.r), tensor(&[COLS], &s.c));
            evaluate_row_fn(&direction(n, m), &[&g, &r, &c, mean])
        } else {
            let mut out = evaluate_row_fn(&whole(n, m, rule), &[&g, &matrix(&s.v), &beta, &finite]);
            s.v = out.remove(0).data;
            out
        };
        let by = evaluate_row_fn(&shortening(n, n * m, rule), &[&row(&out[1].data)]);
        let u = &evaluate_row_fn(&scaled(n, m), &[&out[0], &by[0]])[0];
        let squares = evaluate_row_fn(&crate::optimizer::norm::sum_of_squares(n, m), &[&p]);
        let lengths = evaluate_row_fn(&lengths(1, n, n * m, rule), &[&row(&squares[0].data)]);
        let lengths = tensor(&[ROWS], &lengths[0].data);
        let f = update(n, m, rule, PACE, Copies::Yes);
        let scaled = rule.scale_parameter.then_some(&lengths);
        let operands: Vec<&Tensor> = [&p, u].into_iter().chain(scaled).chain([&lr, &finite]).collect();
        let out = evaluate_row_fn(&f, &operands);
        assert_eq!(out[0], out[1]);
        s.p = out[0].data.clone();
    }

    #[test]
    fn it_is_the_matrix_rule_over_many_steps() {
        for (factored, scale_parameter, clip) in
            [(true, false, 1.0), (true, true, 0.5), (false, false, 1.0), (false, true, 0.8)]
        {
            let rule = Adafactor { decay_power: 0.8, eps: 1e-30, clip, scale_parameter, eps_parameter: 1e-3 };
            let mut numbers = Numbers(9);
            let mut random = || (0..ROWS * COLS).map(|_| numbers.next()).collect::<Vec<f64>>();
            let (r, c, v) = (vec![0.0; ROWS], vec![0.0; COLS], vec![0.0; ROWS * COLS]);
            let mut found = State { p: random(), r, c, v };
            let mut wanted = found.clone();
            let mut applied = 0;
            for step in 0..30 {
                let g = random();
                let bad = step % 6 == 1;
                let factor = if bad { f64::NAN } else { 1.0 / 256.0 };
                let scaled: Vec<f64> = g.iter().map(|g| g / factor).collect();
                let (t, lr) = (applied + 1, 0.05);
                let beta = 1.0 - f64::from(t).powf(-0.8);
                let finite = if bad { 0.0 } else { 1.0 };
                device(&mut found, &scaled, [factor, lr, beta, finite], &rule, factored);
                if !bad {
                    reference(&mut wanted, &g, lr, t, &rule, factored);
                    applied += 1;
                }
                let all = |s: &State| [s.p.clone(), s.r.clone(), s.c.clone(), s.v.clone()].concat();
                for (f, w) in all(&found).iter().zip(all(&wanted)) {
                    assert!((f - w).abs() <= 1e-12 * (1.0 + w.abs()), "step {step}: {f} for {w}");
                }
            }
        }
    }
}
