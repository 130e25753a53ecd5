//! How a rule's row function is held against its scalar arithmetic: many steps, random numbers, a factor, steps that are not applied.

use dspc_graph::evaluate_row_fn;
use dspc_graph::interpret::Tensor;
use dspc_graph::rowfn::RowFn;

use super::element::Copies;
use super::norm;
use super::scaler::Scaling;
use crate::fixture::Numbers;

/// The factor that brings a gradient of this norm below `clip`, as PyTorch's `clip_grad_norm_` has it.
fn clip_factor(norm: f64, clip: Option<f64>) -> f64 {
    clip.map_or(1.0, |clip| (clip / (norm + 1e-6)).min(1.0))
}

/// A step's scalars.
pub(super) struct Case {
    /// Applied step, from 1.
    pub t: i32,
    pub lr: f64,
}

/// Elements of a test.
const COLS: usize = 5;
const STEPS: i32 = 60;

/// Steps that are not applied, because the norm is not finite.
fn is_bad(step: i32) -> bool {
    step % 7 == 3
}

/// Asserts that `f` does to each element what `rule` does to its state (p, then the moments), with loss-scaled gradients, and nothing in a bad step.
pub(super) fn assert_follows(
    moments: usize,
    f: impl Fn(u64, Copies) -> RowFn,
    tables: impl Fn(i32) -> Vec<f64>,
    rule: impl Fn(&Case, &[f64], f64) -> Vec<f64>,
) {
    let f = f(COLS as u64, Copies::Yes);
    let mut numbers = Numbers(5);
    let zeros = || vec![0.0; COLS];
    let mut state: Vec<Vec<f64>> = [(0..COLS).map(|_| numbers.next()).collect()]
        .into_iter()
        .chain((0..moments).map(|_| zeros()))
        .collect();
    let mut wanted = state.clone();
    let mut applied = 0;
    for step in 0..STEPS {
        let bad = is_bad(step);
        let mut g: Vec<f64> = (0..COLS).map(|_| numbers.next()).collect();
        g[1] = 0.0;
        let scale = if bad { f64::NAN } else { 1024.0 };
        let case = Case { t: applied + 1, lr: 1e-2 / f64::from(step + 1) };
        let flat = |xs: &[f64]| Tensor { dims: vec![1, COLS], data: xs.to_vec() };
        let scaled: Vec<f64> = g.iter().map(|g| g * scale).collect();
        let mut operands = vec![flat(&state[0]), flat(&scaled)];
        operands.extend(state[1..].iter().map(|m| flat(m)));
        let finite = if bad { 0.0 } else { 1.0 };
        let scalars = [1.0 / scale, case.lr].into_iter().chain(tables(case.t)).chain([finite]);
        operands.extend(scalars.map(Tensor::scalar));
        let out = evaluate_row_fn(&f, &operands.iter().collect::<Vec<_>>());
        assert_eq!(out.len(), moments + 2);
        assert_eq!(out[0], out[moments + 1], "the copy is the master, before it is rounded");
        state = out[..=moments].iter().map(|t| t.data.clone()).collect();
        if !bad {
            for i in 0..COLS {
                let before: Vec<f64> = wanted.iter().map(|x| x[i]).collect();
                for (w, x) in wanted.iter_mut().zip(rule(&case, &before, g[i])) {
                    w[i] = x;
                }
            }
            applied += 1;
        }
        for (s, w) in state.iter().flatten().zip(wanted.iter().flatten()) {
            assert!((s - w).abs() <= 1e-13 * (1.0 + w.abs()), "step {step}: {s} for {w}");
        }
    }
    assert!(wanted[0].iter().any(|p| p.abs() > 0.01), "it moved");
}

fn flat(xs: &[f64]) -> Tensor {
    Tensor { dims: vec![1, xs.len()], data: xs.to_vec() }
}

fn scalars(squares: &[f64], applied: f64, clip: Option<f64>) -> Vec<f64> {
    let f = norm::step_scalars(squares.len() as u64, clip, &Scaling::None, 2);
    let table = |xs: &[f64]| Tensor { dims: vec![xs.len()], data: xs.to_vec() };
    let (lr, b1, b2) =
        (table(&[1e-3, 2e-3, 3e-3]), table(&[0.1, 0.19, 0.271]), table(&[0.05, 0.0975, 0.142625]));
    let applied = Tensor { dims: vec![1], data: vec![applied] };
    let out = evaluate_row_fn(&f, &[&flat(squares), &applied, &lr, &b1, &b2]);
    out.iter().map(|t| t.data[0]).collect()
}

#[test]
fn the_scalars_of_a_step_follow_from_the_squares() {
    let found = scalars(&[9.0, 16.0], 1.0, Some(1.0));
    assert_eq!(found, [5.0, 1.0, clip_factor(5.0, Some(1.0)), 2e-3, 0.19, 0.0975, 2.0, -1.0]);
    assert_eq!(scalars(&[0.01], 0.0, Some(1.0))[2], 1.0);
    assert_eq!(scalars(&[9.0, 16.0], 0.0, None)[2], 1.0);
}

#[test]
fn a_step_whose_norm_is_not_finite_does_not_count() {
    let found = scalars(&[f64::INFINITY], 2.0, Some(1.0));
    assert_eq!((found[1], found[6]), (0.0, 2.0));
}
