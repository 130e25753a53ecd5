//! AdamW: Adam with decoupled weight decay (Loshchilov, Hutter 2019, algorithm 2), as PyTorch computes it.
//!
//! g' = factor · g,   p ← p · (1 − lr · decay),   m ← β₁ m + (1 − β₁) g',   v ← β₂ v + (1 − β₂) g'²,
//! p ← p − lr · (m / (1 − β₁ᵗ)) / (√v / √(1 − β₂ᵗ) + ε).   Nothing changes where the norm was not finite.
//!
//! The factor clips and takes the loss scale away, so that unscaling, clipping, decay, moments, masters and the copy that ops read are one pass over memory.

use dspc_graph::row_builder::RowBuilder;
use dspc_graph::rowfn::{BinaryFn, RowFn, UnaryFn};

/// The rule's constants.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct AdamW {
    /// β₁, β₂
    pub betas: (f64, f64),
    /// ε
    pub eps: f64,
    /// Decoupled decay; 0 for parameters it does not act on.
    pub weight_decay: f64,
}

/// The parameters that ops read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Copies {
    /// They are the masters themselves.
    No,
    /// A copy in another type, written beside the masters.
    Yes,
}

/// Operands: p, g, m, v `[rows, cols]`; scalars factor, learning rate, 1 − β₁ᵗ, 1 − β₂ᵗ, finite. Results: p, m, v, and p once more where there is a copy.
pub fn update(rows: u64, cols: u64, rule: AdamW, copies: Copies) -> RowFn {
    let mut b = RowBuilder::new(rows, cols);
    let (p, g, m, v) = (b.element(), b.element(), b.element(), b.element());
    let (factor, lr, bias1, bias2, finite) = (b.scalar(), b.scalar(), b.scalar(), b.scalar(), b.scalar());
    let half = b.number(0.5);
    let apply = b.binary(BinaryFn::Less, half, finite);
    let g = b.multiply(g, factor);
    let (beta1, beta2) = rule.betas;
    let (kept, new) = (b.times(m, beta1), b.times(g, 1.0 - beta1));
    let m_new = b.add(kept, new);
    let square = b.multiply(g, g);
    let (kept, new) = (b.times(v, beta2), b.times(square, 1.0 - beta2));
    let v_new = b.add(kept, new);
    let decayed = if rule.weight_decay == 0.0 {
        p
    } else {
        let rate = b.times(lr, -rule.weight_decay);
        let keep = b.plus(rate, 1.0);
        b.multiply(p, keep)
    };
    let (root, root_bias) = (b.unary(UnaryFn::Sqrt, v_new), b.unary(UnaryFn::Sqrt, bias2));
    let corrected = b.divide(root, root_bias);
    let denominator = b.plus(corrected, rule.eps);
    let step_size = b.divide(lr, bias1);
    let direction = b.divide(m_new, denominator);
    let change = b.multiply(step_size, direction);
    let p_new = b.subtract(decayed, change);
    let results = [(p_new, p), (m_new, m), (v_new, v)];
    let copy = (copies == Copies::Yes).then_some((p_new, p));
    for (new, old) in results.into_iter().chain(copy) {
        let gated = b.select(apply, new, old);
        b.yield_element(gated);
    }
    b.finish()
}

/// The copy alone, after the masters were set from outside. Operand p; result p.
pub fn copy(rows: u64, cols: u64) -> RowFn {
    let mut b = RowBuilder::new(rows, cols);
    let p = b.element();
    b.yield_element(p);
    b.finish()
}
