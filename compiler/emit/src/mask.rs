//! Attention masks: which pairs of tiles can be skipped, and the predicate on the others. Of no target: the CPU's and the GPU's kernels ask it.

use crate::mlir::{Element, Function, Order, Value};
use dspc_graph::mask::{Mask, MaskExpr, MaskOp};

/// What a mask says of a tile of queries and a tile of keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// No pair may look.
    Skip = 0,
    /// Some may, or the tile reaches past the last key.
    Partial = 1,
    /// All may.
    Full = 2,
}

/// Positions from `from` to below `to`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    from: u64,
    to: u64,
}

/// Classes of all pairs of tiles, query tiles outermost.
pub(crate) fn classify(mask: &Mask, queries: u64, keys: u64, query_tile: u64, key_tile: u64) -> Vec<Class> {
    let mut classes = vec![];
    for q in (0..queries).step_by(query_tile as usize) {
        for k in (0..keys).step_by(key_tile as usize) {
            let queries = Span { from: q, to: (q + query_tile).min(queries) };
            let padded = k + key_tile > keys;
            let keys = Span { from: k, to: (k + key_tile).min(keys) };
            classes.push(match class(mask, queries, keys) {
                Class::Full if padded => Class::Partial,
                class => class,
            });
        }
    }
    classes
}

fn class(mask: &Mask, queries: Span, keys: Span) -> Class {
    let Mask::Where(expr) = mask else {
        return Class::Full;
    };
    match range(expr, queries, keys) {
        Some((0, 0)) => return Class::Skip,
        Some((low, high)) if low > 0 || high < 0 => return Class::Full,
        _ => {}
    }
    // Intervals could not tell: ask every pair.
    let pairs = || (queries.from..queries.to).flat_map(|q| (keys.from..keys.to).map(move |k| (q, k)));
    let allowed = |(q, k): (u64, u64)| mask.allows(q, k);
    match (pairs().any(allowed), pairs().all(allowed)) {
        (false, _) => Class::Skip,
        (true, true) => Class::Full,
        (true, false) => Class::Partial,
    }
}

/// Whether every value on the way to an expression's fits 32 bits, for positions below these.
pub(crate) fn is_narrow(expr: &MaskExpr, queries: u64, keys: u64) -> bool {
    let (q, k) = (Span { from: 0, to: queries }, Span { from: 0, to: keys });
    let fits = |x: i64| i32::try_from(x).is_ok();
    let own = range(expr, q, k).is_some_and(|(low, high)| fits(low) && fits(high));
    own && match expr {
        MaskExpr::Query | MaskExpr::Key | MaskExpr::Const(_) => true,
        MaskExpr::Not(x) => is_narrow(x, queries, keys),
        MaskExpr::Binary(_, a, b) => is_narrow(a, queries, keys) && is_narrow(b, queries, keys),
    }
}

/// The least and the greatest value an expression can have; none if it could leave 64 bits, or divides by what may not be positive.
fn range(expr: &MaskExpr, q: Span, k: Span) -> Option<(i64, i64)> {
    Some(match expr {
        MaskExpr::Query => (q.from as i64, q.to as i64 - 1),
        MaskExpr::Key => (k.from as i64, k.to as i64 - 1),
        MaskExpr::Const(c) => (*c, *c),
        MaskExpr::Not(x) => match range(x, q, k)? {
            (0, 0) => (1, 1),
            (low, high) if low > 0 || high < 0 => (0, 0),
            _ => (0, 1),
        },
        MaskExpr::Binary(op, a, b) => {
            let ((a0, a1), (b0, b1)) = (range(a, q, k)?, range(b, q, k)?);
            let (no_a, no_b) = ((a0, a1) == (0, 0), (b0, b1) == (0, 0));
            let (is_a, is_b) = (a0 > 0 || a1 < 0, b0 > 0 || b1 < 0);
            let truth = |yes: bool, no: bool| {
                if yes {
                    (1, 1)
                } else if no {
                    (0, 0)
                } else {
                    (0, 1)
                }
            };
            let apart = a1 < b0 || b1 < a0;
            let one = a0 == a1 && b0 == b1 && a0 == b0;
            match op {
                MaskOp::Add => (a0.checked_add(b0)?, a1.checked_add(b1)?),
                MaskOp::Subtract => (a0.checked_sub(b1)?, a1.checked_sub(b0)?),
                MaskOp::Multiply => {
                    let corner = |x: i64, y: i64| x.checked_mul(y);
                    let all = [corner(a0, b0)?, corner(a0, b1)?, corner(a1, b0)?, corner(a1, b1)?];
                    (all.into_iter().min()?, all.into_iter().max()?)
                }
                MaskOp::Divide if b0 > 0 => {
                    let all = [a0.div_euclid(b0), a0.div_euclid(b1), a1.div_euclid(b0), a1.div_euclid(b1)];
                    (all.into_iter().min()?, all.into_iter().max()?)
                }
                MaskOp::Remainder if b0 > 0 => {
                    let one_turn = b0 == b1 && a0.div_euclid(b0) == a1.div_euclid(b0);
                    if one_turn { (a0.rem_euclid(b0), a1.rem_euclid(b0)) } else { (0, b1 - 1) }
                }
                MaskOp::Divide | MaskOp::Remainder => return None,
                MaskOp::Less => truth(a1 < b0, a0 >= b1),
                MaskOp::LessEqual => truth(a1 <= b0, a0 > b1),
                MaskOp::Equal => truth(one, apart),
                MaskOp::NotEqual => truth(apart, one),
                MaskOp::And => truth(is_a && is_b, no_a || no_b),
                MaskOp::Or => truth(is_a || is_b, no_a && no_b),
            }
        }
    })
}

/// A value of a mask's expression: a number or, of comparisons and logic, a condition.
#[derive(Clone, Copy)]
enum Term {
    Number(Value),
    Condition(Value),
}

/// The predicate for lanes of positions: of 64 bits, as masks are defined, or of 32 where the expression [`is_narrow`].
pub(crate) fn predicate(f: &mut Function, expr: &MaskExpr, q: Value, k: Value) -> Value {
    let term = term(f, expr, q, k);
    condition(f, term)
}

fn condition(f: &mut Function, term: Term) -> Value {
    match term {
        Term::Condition(x) => x,
        Term::Number(x) => {
            let zero = f.int(x.ty, 0);
            f.order(Order::NotEqual, x, zero)
        }
    }
}

fn number(f: &mut Function, term: Term, element: Element) -> Value {
    match term {
        Term::Number(x) => x,
        Term::Condition(x) => f.zero_extend(x, element),
    }
}

fn term(f: &mut Function, expr: &MaskExpr, q: Value, k: Value) -> Term {
    match expr {
        MaskExpr::Query => Term::Number(q),
        MaskExpr::Key => Term::Number(k),
        MaskExpr::Const(c) => Term::Number(f.int(q.ty, *c)),
        MaskExpr::Not(x) => {
            let x = predicate(f, x, q, k);
            let yes = f.int(x.ty, 1);
            Term::Condition(f.xor(x, yes))
        }
        MaskExpr::Binary(op, a, b) => {
            let (a, b) = (term(f, a, q, k), term(f, b, q, k));
            if let MaskOp::And | MaskOp::Or = op {
                let (a, b) = (condition(f, a), condition(f, b));
                return Term::Condition(if *op == MaskOp::And { f.and(a, b) } else { f.or(a, b) });
            }
            let (a, b) = (number(f, a, q.ty.element), number(f, b, q.ty.element));
            match op {
                MaskOp::Add => Term::Number(f.addi(a, b)),
                MaskOp::Subtract => Term::Number(f.subi(a, b)),
                MaskOp::Multiply => Term::Number(f.muli(a, b)),
                MaskOp::Divide => Term::Number(divide(f, a, b).0),
                MaskOp::Remainder => Term::Number(divide(f, a, b).1),
                MaskOp::Less => Term::Condition(f.order(Order::Less, a, b)),
                MaskOp::LessEqual => Term::Condition(f.order(Order::LessEqual, a, b)),
                MaskOp::Equal => Term::Condition(f.order(Order::Equal, a, b)),
                MaskOp::NotEqual | MaskOp::And | MaskOp::Or => {
                    Term::Condition(f.order(Order::NotEqual, a, b))
                }
            }
        }
    }
}

/// Quotient and remainder, the remainder never negative; both 0 where there is none.
fn divide(f: &mut Function, a: Value, b: Value) -> (Value, Value) {
    let constant = |f: &mut Function, c: i64| f.int(a.ty, c);
    let (zero, one, minus_one) = (constant(f, 0), constant(f, 1), constant(f, -1));
    let least = constant(f, if a.ty.element == Element::I32 { i32::MIN.into() } else { i64::MIN });
    let by_zero = f.order(Order::Equal, b, zero);
    let is_least = f.order(Order::Equal, a, least);
    let is_minus_one = f.order(Order::Equal, b, minus_one);
    let overflows = f.and(is_least, is_minus_one);
    let none = f.or(by_zero, overflows);
    let divisor = f.select(none, one, b);
    let quotient = f.divs(a, divisor);
    let rest = f.rems(a, divisor);
    let is_negative = f.order(Order::Less, rest, zero);
    let below = f.order(Order::Less, divisor, zero);
    let sign = f.select(below, minus_one, one);
    let size = f.muli(divisor, sign);
    let lifted = f.addi(rest, size);
    let lowered = f.subi(quotient, sign);
    let rest = f.select(is_negative, lifted, rest);
    let quotient = f.select(is_negative, lowered, quotient);
    (f.select(none, zero, quotient), f.select(none, zero, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn binary(op: MaskOp, a: MaskExpr, b: MaskExpr) -> MaskExpr {
        MaskExpr::Binary(op, Arc::new(a), Arc::new(b))
    }

    #[test]
    fn intervals_agree_with_every_pair() {
        use MaskExpr::{Const, Key, Query};
        let window = binary(MaskOp::Less, binary(MaskOp::Subtract, Query, Key), Const(20));
        let causal = binary(MaskOp::LessEqual, Key, Query);
        let strided = binary(MaskOp::Equal, binary(MaskOp::Remainder, Key, Const(32)), Const(0));
        let masks = [
            causal.clone(),
            binary(MaskOp::And, causal.clone(), window.clone()),
            binary(MaskOp::Or, strided.clone(), MaskExpr::Not(Arc::new(window))),
            binary(
                MaskOp::Equal,
                binary(MaskOp::Divide, Key, Const(16)),
                binary(MaskOp::Divide, Query, Const(32)),
            ),
        ];
        assert!(masks.iter().all(|mask| is_narrow(mask, 100, 90)));
        assert!(!is_narrow(&binary(MaskOp::Multiply, Query, Const(1 << 30)), 100, 90));
        assert!(!is_narrow(&binary(MaskOp::Divide, Const(7), Query), 100, 90));
        for mask in masks.map(|m| Mask::Where(Arc::new(m))) {
            let got = classify(&mask, 100, 90, 16, 16);
            for (i, class) in got.iter().enumerate() {
                let (q0, k0) = ((i / 6 * 16) as u64, (i % 6 * 16) as u64);
                let pairs: Vec<bool> = (q0..(q0 + 16).min(100))
                    .flat_map(|q| (k0..k0 + 16).map(move |k| (q, k)))
                    .map(|(q, k)| k < 90 && mask.allows(q, k))
                    .collect();
                let want = match (pairs.contains(&true), pairs.contains(&false)) {
                    (false, _) => Class::Skip,
                    (true, false) => Class::Full,
                    (true, true) => Class::Partial,
                };
                assert_eq!(*class, want, "{mask} at {q0}, {k0}");
            }
        }
    }
}
