//! Lion (Chen et al. 2023, algorithm 2).
//!
//! c = β₁ m + (1 − β₁) g',   p ← p · (1 − lr · decay) − lr · sign c,   m ← β₂ m + (1 − β₂) g'. The sign of 0 is 0.

use dspc_graph::row_builder::RowBuilder;
use dspc_graph::rowfn::{BinaryFn, NodeId, RowFn};

use super::Pace;
use super::element::{Copies, Elements};

/// Operands and results of [`super::element`] with m; no tables.
pub fn update(rows: u64, cols: u64, (beta1, beta2): (f64, f64), pace: Pace, copies: Copies) -> RowFn {
    let mut e = Elements::new(rows, cols, 1, 0, pace);
    let (m, g) = (e.moments[0], e.g);
    let mixed = e.decayed(m, g, (beta1, 1.0 - beta1));
    let direction = sign(&mut e.b, mixed);
    let p = e.decayed_parameter();
    let change = e.b.multiply(e.lr, direction);
    let p = e.b.subtract(p, change);
    let m = e.decayed(m, g, (beta2, 1.0 - beta2));
    e.finish(p, &[m], copies)
}

/// −1, 0 or 1.
fn sign(b: &mut RowBuilder, x: NodeId) -> NodeId {
    let (zero, one, minus_one) = (b.number(0.0), b.number(1.0), b.number(-1.0));
    let below = b.binary(BinaryFn::Less, x, zero);
    let above = b.binary(BinaryFn::Less, zero, x);
    let otherwise = b.select(below, minus_one, zero);
    b.select(above, one, otherwise)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::reference::assert_follows;

    #[test]
    fn it_is_the_scalar_rule_over_many_steps() {
        let pace = Pace { lr: 2.0, weight_decay: 0.1 };
        assert_follows(
            1,
            |cols, copies| update(1, cols, (0.9, 0.99), pace, copies),
            |_| vec![],
            |case, state, g| {
                let (p, m, lr) = (state[0], state[1], 2.0 * case.lr);
                let c: f64 = 0.9 * m + (1.0 - 0.9) * g;
                let sign = if c == 0.0 { 0.0 } else { c.signum() };
                vec![p * (1.0 - lr * 0.1) - lr * sign, 0.99 * m + (1.0 - 0.99) * g]
            },
        );
    }
}
