//! What all rules have in common that change each element by itself.
//!
//! Operands: p, g, the moments `[rows, cols]`; scalars factor, learning rate, the rule's tables, finite. Results: p, the moments, and p once more
//! where ops read a copy. g' = factor · g. Nothing changes where the norm was not finite.
//!
//! The factor clips and takes the loss scale away, so that unscaling, clipping, decay, moments, masters and the copy that ops read are one pass over memory.

use dspc_graph::row_builder::RowBuilder;
use dspc_graph::rowfn::{BinaryFn, NodeId, RowFn};

use super::Pace;

/// The parameters that ops read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Copies {
    /// They are the masters themselves.
    No,
    /// A copy in another type, written beside the masters.
    Yes,
}

/// A rule in the making.
pub(super) struct Elements {
    pub b: RowBuilder,
    /// The parameter before the step.
    pub p: NodeId,
    /// The gradient, clipped and without a loss scale.
    pub g: NodeId,
    /// The moments before the step.
    pub moments: Vec<NodeId>,
    /// The learning rate, the group's factor in it.
    pub lr: NodeId,
    pub tables: Vec<NodeId>,
    pace: Pace,
    apply: NodeId,
}

impl Elements {
    /// Declares the operands.
    pub fn new(rows: u64, cols: u64, moments: usize, tables: usize, pace: Pace) -> Self {
        let mut b = RowBuilder::new(rows, cols);
        let (p, g) = (b.element(), b.element());
        let moments: Vec<NodeId> = (0..moments).map(|_| b.element()).collect();
        let (factor, lr) = (b.scalar(), b.scalar());
        let tables: Vec<NodeId> = (0..tables).map(|_| b.scalar()).collect();
        let apply = applies(&mut b);
        let g = b.multiply(g, factor);
        let lr = paced(&mut b, lr, pace);
        Self { b, p, g, moments, lr, tables, pace, apply }
    }

    /// `kept` · moment + `new` · x
    pub fn decayed(&mut self, moment: NodeId, x: NodeId, (kept, new): (f64, f64)) -> NodeId {
        let (kept, new) = (self.b.times(moment, kept), self.b.times(x, new));
        self.b.add(kept, new)
    }

    /// Decoupled decay: p · (1 − lr · decay).
    pub fn decayed_parameter(&mut self) -> NodeId {
        decayed_parameter(&mut self.b, self.p, self.lr, self.pace.weight_decay)
    }

    /// Decay as a term of the loss: g + decay · p.
    pub fn gradient_with_decay(&mut self) -> NodeId {
        if self.pace.weight_decay == 0.0 {
            return self.g;
        }
        let term = self.b.times(self.p, self.pace.weight_decay);
        self.b.add(self.g, term)
    }

    /// Declares the results.
    pub fn finish(mut self, p: NodeId, moments: &[NodeId], copies: Copies) -> RowFn {
        let copy = (copies == Copies::Yes).then_some((p, self.p));
        let moments = moments.iter().copied().zip(self.moments.iter().copied());
        let results: Vec<_> = [(p, self.p)].into_iter().chain(moments).chain(copy).collect();
        for (new, old) in results {
            let gated = self.b.select(self.apply, new, old);
            self.b.yield_element(gated);
        }
        self.b.finish()
    }
}

/// Operands: u `[rows, cols]`; a scalar. Result: their product.
pub fn scaled(rows: u64, cols: u64) -> RowFn {
    let mut b = RowBuilder::new(rows, cols);
    let (u, by) = (b.element(), b.scalar());
    let u = b.multiply(u, by);
    b.yield_element(u);
    b.finish()
}

/// Declares the operand `finite`; whether the step is applied.
pub(super) fn applies(b: &mut RowBuilder) -> NodeId {
    let finite = b.scalar();
    let half = b.number(0.5);
    b.binary(BinaryFn::Less, half, finite)
}

/// The learning rate with the group's factor.
pub(super) fn paced(b: &mut RowBuilder, lr: NodeId, pace: Pace) -> NodeId {
    if pace.lr == 1.0 { lr } else { b.times(lr, pace.lr) }
}

/// p · (1 − lr · decay)
pub(super) fn decayed_parameter(b: &mut RowBuilder, p: NodeId, lr: NodeId, weight_decay: f64) -> NodeId {
    if weight_decay == 0.0 {
        return p;
    }
    let rate = b.times(lr, -weight_decay);
    let keep = b.plus(rate, 1.0);
    b.multiply(p, keep)
}

/// The copy alone, after the masters were set from outside. Operand p; result p.
pub fn copy(rows: u64, cols: u64) -> RowFn {
    let mut b = RowBuilder::new(rows, cols);
    let p = b.element();
    b.yield_element(p);
    b.finish()
}
