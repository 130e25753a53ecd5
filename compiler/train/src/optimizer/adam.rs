//! Adam (Kingma, Ba 2015, algorithm 1) and AdamW (Loshchilov, Hutter 2019, algorithm 2), as PyTorch computes them.
//!
//! m ← β₁ m + (1 − β₁) g',   v ← β₂ v + (1 − β₂) g'²,   p ← p − lr · (m / (1 − β₁ᵗ)) / (√v / √(1 − β₂ᵗ) + ε).
//! AdamW has p ← p · (1 − lr · decay) before; Adam has g' ← g' + decay · p.

use dspc_graph::row_builder::RowBuilder;
use dspc_graph::rowfn::{NodeId, RowFn, UnaryFn};
use dspc_spec::settings::Adam;

use super::Pace;
use super::element::{Copies, Elements};

/// Where the decay acts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decay {
    /// On the parameter: AdamW.
    Decoupled,
    /// In the gradient: Adam.
    InGradient,
}

/// Operands and results of [`super::element`] with m, v; tables 1 − β₁ᵗ, 1 − β₂ᵗ.
pub fn update(rows: u64, cols: u64, rule: Adam, decay: Decay, pace: Pace, copies: Copies) -> RowFn {
    let mut e = Elements::new(rows, cols, 2, 2, pace);
    let g = match decay {
        Decay::Decoupled => e.g,
        Decay::InGradient => e.gradient_with_decay(),
    };
    let (m, v) = (e.moments[0], e.moments[1]);
    let (beta1, beta2) = rule.betas;
    let m = e.decayed(m, g, (beta1, 1.0 - beta1));
    let square = e.b.multiply(g, g);
    let v = e.decayed(v, square, (beta2, 1.0 - beta2));
    let p = match decay {
        Decay::Decoupled => e.decayed_parameter(),
        Decay::InGradient => e.p,
    };
    let bias = (e.tables[0], e.tables[1]);
    let denominator = denominator(&mut e.b, v, bias.1, rule.eps);
    let step_size = e.b.divide(e.lr, bias.0);
    let direction = e.b.divide(m, denominator);
    let change = e.b.multiply(step_size, direction);
    let p = e.b.subtract(p, change);
    e.finish(p, &[m, v], copies)
}

/// √v / √(1 − β₂ᵗ) + ε
pub(super) fn denominator(b: &mut RowBuilder, v: NodeId, bias: NodeId, eps: f64) -> NodeId {
    let (root, root_bias) = (b.unary(UnaryFn::Sqrt, v), b.unary(UnaryFn::Sqrt, bias));
    let corrected = b.divide(root, root_bias);
    b.plus(corrected, eps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::reference::{Case, assert_follows};

    fn bias(rule: Adam, t: i32) -> Vec<f64> {
        vec![1.0 - rule.betas.0.powi(t), 1.0 - rule.betas.1.powi(t)]
    }

    /// p, m, v after applied step t with the gradient g.
    fn reference(rule: Adam, decay: Decay, pace: Pace, case: &Case, state: &[f64], g: f64) -> Vec<f64> {
        let (p, m, v) = (state[0], state[1], state[2]);
        let (lr, (beta1, beta2)) = (case.lr * pace.lr, rule.betas);
        let (g, p) = match decay {
            Decay::Decoupled => (g, p - lr * pace.weight_decay * p),
            Decay::InGradient => (g + pace.weight_decay * p, p),
        };
        let m = beta1 * m + (1.0 - beta1) * g;
        let v = beta2 * v + (1.0 - beta2) * g * g;
        let (m_hat, v_hat) = (m / (1.0 - beta1.powi(case.t)), v / (1.0 - beta2.powi(case.t)));
        vec![p - lr * m_hat / (v_hat.sqrt() + rule.eps), m, v]
    }

    #[test]
    fn both_are_the_scalar_rule_over_many_steps() {
        let rule = Adam { betas: (0.9, 0.95), eps: 1e-8 };
        for decay in [Decay::Decoupled, Decay::InGradient] {
            for pace in [Pace { lr: 1.0, weight_decay: 0.1 }, Pace { lr: 0.3, weight_decay: 0.0 }] {
                assert_follows(
                    2,
                    |cols, copies| update(1, cols, rule, decay, pace, copies),
                    |t| bias(rule, t),
                    |case, state, g| reference(rule, decay, pace, case, state, g),
                );
            }
        }
    }
}
