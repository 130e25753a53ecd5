//! Masks from expressions: predicates of two positions, and their combinations.

use std::sync::Arc;

use dspc_source::Span;
use dspc_spec::body::{BinaryOp, Expr, ExprKind, Name, UnaryOp};

use super::values::Value;
use super::{Elaborator, Frame, Outcome, Reported};
use crate::mask::{Mask, MaskExpr, MaskOp};

impl Elaborator<'_> {
    /// A mask, or a predicate that becomes one.
    pub(super) fn as_mask(&mut self, value: Value, span: Span, frame: &Frame) -> Outcome<Mask> {
        match value {
            Value::Mask(mask) => Ok(mask),
            Value::Lambda(lambda) => self.predicate(&lambda, frame),
            Value::Bad => Err(Reported),
            other => {
                let found = self.describe(&other);
                self.wrong("a mask", &found, span)
            }
        }
    }

    pub(super) fn predicate(&mut self, lambda: &(Vec<Name>, Expr), frame: &Frame) -> Outcome<Mask> {
        let (names, body) = lambda;
        let [query, key] = names.as_slice() else {
            let found = format!("one of {} names", names.len());
            return self.wrong("a predicate of query and key, `(q, k) => k <= q`", &found, body.span);
        };
        let expr = self.mask_expr(body, (&query.value, &key.value), frame)?;
        Ok(Mask::Where(Arc::new(expr)))
    }

    fn mask_expr(&mut self, expr: &Expr, names: (&str, &str), frame: &Frame) -> Outcome<MaskExpr> {
        let number = |x: f64| (x.fract() == 0.0 && x.abs() < 9e15).then_some(MaskExpr::Const(x as i64));
        let leaf = match &expr.kind {
            ExprKind::Local(name) if name == names.0 => Some(MaskExpr::Query),
            ExprKind::Local(name) if name == names.1 => Some(MaskExpr::Key),
            ExprKind::Local(name) => match frame.names.get(name).map(|b| &b.value) {
                Some(Value::Number(n)) => number(n.amount.float()),
                Some(_) | None => None,
            },
            ExprKind::Number(x) => number(*x),
            ExprKind::Unary(op, x) => {
                let x = Arc::new(self.mask_expr(x, names, frame)?);
                Some(match op {
                    UnaryOp::Not => MaskExpr::Not(x),
                    UnaryOp::Negate => MaskExpr::Binary(MaskOp::Subtract, Arc::new(MaskExpr::Const(0)), x),
                })
            }
            ExprKind::Binary { op, left, right } => {
                let left = Arc::new(self.mask_expr(left, names, frame)?);
                let right = Arc::new(self.mask_expr(right, names, frame)?);
                mask_binary(op.value, left, right)
            }
            _ => None,
        };
        match leaf {
            Some(leaf) => Ok(leaf),
            None => self.wrong("a whole number or a comparison of positions", "something else", expr.span),
        }
    }
}

fn mask_binary(op: BinaryOp, a: Arc<MaskExpr>, b: Arc<MaskExpr>) -> Option<MaskExpr> {
    let (op, a, b) = match op {
        BinaryOp::Or => (MaskOp::Or, a, b),
        BinaryOp::And => (MaskOp::And, a, b),
        BinaryOp::Less => (MaskOp::Less, a, b),
        BinaryOp::LessEqual => (MaskOp::LessEqual, a, b),
        BinaryOp::Greater => (MaskOp::Less, b, a),
        BinaryOp::GreaterEqual => (MaskOp::LessEqual, b, a),
        BinaryOp::Equal => (MaskOp::Equal, a, b),
        BinaryOp::NotEqual => (MaskOp::NotEqual, a, b),
        BinaryOp::Add => (MaskOp::Add, a, b),
        BinaryOp::Subtract => (MaskOp::Subtract, a, b),
        BinaryOp::Multiply => (MaskOp::Multiply, a, b),
        BinaryOp::Divide => (MaskOp::Divide, a, b),
        BinaryOp::Remainder => (MaskOp::Remainder, a, b),
        BinaryOp::Matmul => return None,
    };
    Some(match (&*a, &*b) {
        (MaskExpr::Const(x), MaskExpr::Const(y)) => MaskExpr::Const(op.apply(*x, *y)),
        _ => MaskExpr::Binary(op, a, b),
    })
}

pub(super) fn not(mask: Mask) -> Mask {
    let expr = match mask {
        Mask::Full => Arc::new(MaskExpr::Const(1)),
        Mask::Where(expr) => expr,
    };
    Mask::Where(Arc::new(MaskExpr::Not(expr)))
}

pub(super) fn both(a: Mask, b: Mask) -> Mask {
    match (a, b) {
        (Mask::Full, other) | (other, Mask::Full) => other,
        (Mask::Where(a), Mask::Where(b)) => Mask::Where(Arc::new(MaskExpr::Binary(MaskOp::And, a, b))),
    }
}

pub(super) fn either(a: Mask, b: Mask) -> Mask {
    match (a, b) {
        (Mask::Full, _) | (_, Mask::Full) => Mask::Full,
        (Mask::Where(a), Mask::Where(b)) => Mask::Where(Arc::new(MaskExpr::Binary(MaskOp::Or, a, b))),
    }
}
