//! Gradient descent with momentum (Sutskever et al. 2013), as PyTorch's `SGD` computes it with dampening 0.
//!
//! g' ← g' + decay · p,   b ← μ b + g',   d = g' + μ b with Nesterov's look-ahead, else b,   p ← p − lr · d. Without momentum d = g', and nothing is kept.

use dspc_graph::rowfn::RowFn;

use super::Pace;
use super::element::{Copies, Elements};

/// Operands and results of [`super::element`] with b, where there is momentum; no tables.
pub fn update(rows: u64, cols: u64, (momentum, nesterov): (f64, bool), pace: Pace, copies: Copies) -> RowFn {
    let kept = usize::from(momentum != 0.0);
    let mut e = Elements::new(rows, cols, kept, 0, pace);
    let g = e.gradient_with_decay();
    let buffer = e.moments.first().copied().map(|buffer| {
        let kept = e.b.times(buffer, momentum);
        e.b.add(kept, g)
    });
    let direction = match buffer {
        Some(buffer) if nesterov => {
            let ahead = e.b.times(buffer, momentum);
            e.b.add(g, ahead)
        }
        Some(buffer) => buffer,
        None => g,
    };
    let change = e.b.multiply(e.lr, direction);
    let p = e.b.subtract(e.p, change);
    e.finish(p, buffer.as_slice(), copies)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::reference::assert_follows;

    #[test]
    fn it_is_the_scalar_rule_over_many_steps() {
        for (momentum, nesterov) in [(0.0, false), (0.9, false), (0.9, true)] {
            let pace = Pace { lr: 0.5, weight_decay: 0.1 };
            assert_follows(
                usize::from(momentum > 0.0),
                |cols, copies| update(1, cols, (momentum, nesterov), pace, copies),
                |_| vec![],
                |case, state, g| {
                    let g = g + 0.1 * state[0];
                    let b = momentum * state.get(1).copied().unwrap_or(0.0) + g;
                    let d = if nesterov { g + momentum * b } else { b };
                    [vec![state[0] - 0.5 * case.lr * d], vec![b; usize::from(momentum > 0.0)]].concat()
                },
            );
        }
    }
}
