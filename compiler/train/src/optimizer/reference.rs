//! The optimizer in f64, as scalar arithmetic: what the row functions are tested against.

use super::adamw::AdamW;

/// One parameter element's state.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Element {
    /// The parameter.
    pub p: f64,
    /// First moment.
    pub m: f64,
    /// Second moment.
    pub v: f64,
}

/// The factor that brings a gradient of this norm below `clip`, as PyTorch's `clip_grad_norm_` has it.
pub fn clip_factor(norm: f64, clip: Option<f64>) -> f64 {
    clip.map_or(1.0, |clip| (clip / (norm + 1e-6)).min(1.0))
}

/// The state after applied step `t` (from 1) with gradient `g`, already clipped.
pub fn step(rule: AdamW, lr: f64, t: i32, state: Element, g: f64) -> Element {
    let (beta1, beta2) = rule.betas;
    let p = state.p - lr * rule.weight_decay * state.p;
    let m = beta1 * state.m + (1.0 - beta1) * g;
    let v = beta2 * state.v + (1.0 - beta2) * g * g;
    let m_hat = m / (1.0 - beta1.powi(t));
    let v_hat = v / (1.0 - beta2.powi(t));
    Element { p: p - lr * m_hat / (v_hat.sqrt() + rule.eps), m, v }
}

#[cfg(test)]
mod tests {
    use dspc_graph::evaluate_row_fn;
    use dspc_graph::interpret::Tensor;

    use super::*;
    use crate::optimizer::scaler::Scaling;
    use crate::optimizer::{adamw, norm};

    const RULE: AdamW = AdamW { betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.1 };

    fn flat(xs: &[f64]) -> Tensor {
        Tensor { dims: vec![1, xs.len()], data: xs.to_vec() }
    }

    fn run(state: &[Element], g: &[f64], factor: f64, lr: f64, t: i32, finite: f64) -> Vec<Element> {
        let f = adamw::update(1, state.len() as u64, RULE, adamw::Copies::Yes);
        let of = |pick: fn(&Element) -> f64| flat(&state.iter().map(pick).collect::<Vec<_>>());
        let bias = |beta: f64| Tensor::scalar(1.0 - beta.powi(t));
        let (p, m, v, g) = (of(|e| e.p), of(|e| e.m), of(|e| e.v), flat(g));
        let scalars =
            [Tensor::scalar(factor), Tensor::scalar(lr), bias(0.9), bias(0.95), Tensor::scalar(finite)];
        let operands: Vec<&Tensor> = [&p, &g, &m, &v].into_iter().chain(&scalars).collect();
        let out = evaluate_row_fn(&f, &operands);
        assert_eq!(out[0], out[3], "the copy is the master, before it is rounded");
        let element = |i: usize| Element { p: out[0].data[i], m: out[1].data[i], v: out[2].data[i] };
        (0..state.len()).map(element).collect()
    }

    #[test]
    fn adamw_is_the_scalar_rule_over_many_steps() {
        let mut state = [Element { p: 0.3, m: 0.0, v: 0.0 }, Element { p: -1.2, m: 0.0, v: 0.0 }];
        for t in 1..40 {
            let g = [wave(f64::from(t)), 1e-3 * f64::from(t)];
            let lr = 1e-2 / f64::from(t);
            let found = run(&state, &g, 0.5, lr, t, 1.0);
            for (e, g) in state.iter_mut().zip(g) {
                *e = step(RULE, lr, t, *e, 0.5 * g);
            }
            for (e, f) in state.iter().zip(&found) {
                assert!((e.p - f.p).abs() < 1e-14 && (e.m - f.m).abs() < 1e-15 && (e.v - f.v).abs() < 1e-15);
            }
        }
    }

    /// Some number in ±1.
    fn wave(x: f64) -> f64 {
        x.rem_euclid(2.0) - 1.0 + 0.1 * x.rem_euclid(0.3)
    }

    #[test]
    fn nothing_changes_where_the_norm_is_not_finite() {
        let state = [Element { p: 0.3, m: 0.1, v: 0.2 }];
        assert_eq!(run(&state, &[f64::NAN], f64::NAN, 1e-3, 3, 0.0), state);
    }

    fn scalars(squares: &[f64], applied: f64, clip: Option<f64>) -> Vec<f64> {
        let f = norm::step_scalars(squares.len() as u64, clip, &Scaling::None);
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
}
