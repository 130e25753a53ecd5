//! Which of a thread's scores count: the mask's predicate, and whether there is such a key.

use super::fragment::Lane;
use super::stage::wide;
use crate::mask::{is_narrow, predicate};
use crate::mlir::{Function, INT, Order, Value};
use dspc_graph::mask::{Mask, MaskExpr};
use dspc_kernel::describe::AttentionKernel;

/// Which direction of scores is a thread's rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rows {
    Queries,
    Keys,
}

/// Scores that count, of a tile.
pub(super) struct Allowed<'k> {
    kernel: &'k AttentionKernel,
    rows: Rows,
    /// Positions of the thread's first score.
    row: Value,
    column: Value,
    /// A bit a score, where predicates are long: they are known before the scores are and hold few registers.
    bits: Option<Vec<Value>>,
}

/// Operations of a predicate that are no more than keeping its bit.
const SHORT: u32 = 1;
/// Positions past the last that tiles may reach.
const BEYOND: u64 = 512;

impl<'k> Allowed<'k> {
    /// Of `count` scores a thread; `row` is a position, `column` where the tile begins. To be called before the scores are awaited.
    pub fn new(
        f: &mut Function,
        kernel: &'k AttentionKernel,
        (rows, row, column): (Rows, Value, Value),
        lane: Lane,
        count: u32,
    ) -> Self {
        let column = f.addi(column, lane.column);
        let mut this = Allowed { kernel, rows, row, column, bits: None };
        if is_long(&kernel.mask) {
            let words = (0..count / 32).map(|word| this.word(f, word)).collect::<Vec<_>>();
            // Not to be computed any later.
            this.bits = Some(f.assembly("", &words, &[], &[]));
        }
        this
    }

    /// Puts −∞ where scores do not count.
    pub fn apply(&self, f: &mut Function, scores: &mut [Value]) {
        let nothing = f.float(1, f32::NEG_INFINITY);
        for (i, score) in scores.iter_mut().enumerate() {
            let allowed = match &self.bits {
                None => self.allows(f, i as u64),
                Some(words) => {
                    let (mask, zero) = (f.int(INT, 1 << (i % 32)), f.int32(0));
                    let bit = f.and(words[i / 32], mask);
                    f.order(Order::NotEqual, bit, zero)
                }
            };
            *score = f.select(allowed, *score, nothing);
        }
    }

    fn word(&self, f: &mut Function, word: u32) -> Value {
        let mut bits = f.int32(0);
        for i in 0..32 {
            let allowed = self.allows(f, u64::from(32 * word + i));
            let (bit, zero) = (f.int(INT, 1 << i), f.int32(0));
            let bit = f.select(allowed, bit, zero);
            bits = f.or(bits, bit);
        }
        bits
    }

    /// Whether the thread's i-th score counts.
    fn allows(&self, f: &mut Function, i: u64) -> Value {
        let (h, column) = (i / 2 % 2, i / 4 * 8 + i % 2);
        let (row, column) = (f.plus(self.row, 8 * h), f.plus(self.column, column));
        let (q, k) = if self.rows == Rows::Queries { (row, column) } else { (column, row) };
        let end = f.int32(self.kernel.keys);
        let Mask::Where(expr) = &self.kernel.mask else {
            return f.order(Order::Less, k, end);
        };
        let is_narrow = is_narrow(expr, self.kernel.queries + BEYOND, self.kernel.keys + BEYOND);
        let (wide_q, wide_k) = if is_narrow { (q, k) } else { (wide(f, q), wide(f, k)) };
        let allowed = predicate(f, expr, wide_q, wide_k);
        // A causal mask keeps queries that there are from keys that there are not.
        if self.kernel.mask == Mask::causal() && self.kernel.queries <= self.kernel.keys {
            return allowed;
        }
        let is_there = f.order(Order::Less, k, end);
        f.and(allowed, is_there)
    }
}

/// Whether the predicate is so long that bits of it are kept.
pub(super) fn is_long(mask: &Mask) -> bool {
    match mask {
        Mask::Full => false,
        Mask::Where(expr) => operations(expr) > SHORT,
    }
}

fn operations(expr: &MaskExpr) -> u32 {
    match expr {
        MaskExpr::Query | MaskExpr::Key | MaskExpr::Const(_) => 0,
        MaskExpr::Not(x) => 1 + operations(x),
        MaskExpr::Binary(_, a, b) => 1 + operations(a) + operations(b),
    }
}
