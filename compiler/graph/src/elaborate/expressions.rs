//! Expressions: names, arithmetic, indices, masks written as predicates.

use std::sync::Arc;

use dspc_source::Span;
use dspc_spec::body::{BinaryOp, Call, Callee, Expr, ExprKind, Name, UnaryOp};

use super::functions::Called;
use super::values::{Number, Outcome as NumberOutcome, Value, combine};
use super::{Elaborator, Frame, Outcome, Reported, emission};
use crate::errors::{TooLarge, WrongKind};
use crate::ir::{DType, Dim, ValueId};
use crate::mask::{Mask, MaskExpr, MaskOp};
use crate::ops::{self, FUNCTIONS, Misuse};

impl Elaborator<'_> {
    /// What an expression is worth.
    pub(super) fn eval(&mut self, expr: &Expr, frame: &mut Frame) -> Outcome<Value> {
        match &expr.kind {
            ExprKind::Number(x) => Ok(Value::Number(Number::literal(*x, expr.span))),
            ExprKind::String(text) => Ok(Value::Text(text.clone())),
            ExprKind::Bool(b) => Ok(Value::Bool(*b)),
            ExprKind::Local(name) => self.local(name, frame),
            ExprKind::Call(call) => self.call(call, frame, expr.span),
            ExprKind::Unary(op, x) => {
                let value = self.eval(x, frame)?;
                self.unary(*op, value, expr.span, frame)
            }
            ExprKind::Binary { op, left, right } => {
                let (a, b) = (self.eval(left, frame), self.eval(right, frame));
                let (a, b) = (a?, b?);
                self.binary(op.value, (a, left.span), (b, right.span), expr.span, frame)
            }
            ExprKind::Index { value, indices } => self.index(value, indices, expr.span, frame),
            ExprKind::Range(..) => self.wrong("a value", "a range", expr.span),
            ExprKind::List(items) => {
                let mut values = vec![];
                for item in items {
                    values.push((self.eval(item, frame)?, item.span));
                }
                Ok(Value::List(values))
            }
            ExprKind::Tuple(items) => {
                let mut values = vec![];
                for item in items {
                    values.push(self.eval(item, frame)?);
                }
                Ok(Value::Tuple(values))
            }
            ExprKind::Lambda(names, body) => Ok(Value::Lambda(Arc::new((names.clone(), (**body).clone())))),
        }
    }

    /// Says that another kind of value is needed.
    pub(super) fn wrong<T>(&mut self, expected: &str, found: &str, span: Span) -> Outcome<T> {
        let (expected, found) = (expected.to_owned(), found.to_owned());
        self.report(WrongKind { expected, found, span, places: vec![], help: None })
    }

    fn local(&mut self, name: &str, frame: &Frame) -> Outcome<Value> {
        if let Some(bound) = frame.names.get(name) {
            return if bound.value == Value::Bad { Err(Reported) } else { Ok(bound.value.clone()) };
        }
        if let Some(at) = FUNCTIONS.iter().position(|f| f.builtin.name == name && f.params.is_empty()) {
            return self.constant(at);
        }
        // The checker has reported names that nothing has.
        Err(Reported)
    }

    fn call(&mut self, call: &Call, frame: &mut Frame, span: Span) -> Outcome<Value> {
        match call.callee {
            Callee::Definition(id) => self.call_layer(id, call, frame, span),
            Callee::Builtin(at) => self.call_function(at as usize, call, frame, span),
        }
    }

    /// Emits by `build`; a misuse is reported with these operands' places.
    fn emit_with(
        &mut self,
        word: &'static str,
        frame: &Frame,
        span: Span,
        operands: &[(ValueId, Span)],
        build: impl FnOnce(&mut Self) -> Result<ValueId, Misuse>,
    ) -> Outcome<Value> {
        let place = emission::Place { path: frame.value_path.clone(), origin: frame.path.clone(), span };
        self.emission = place;
        match build(self) {
            Ok(value) => Ok(Value::Tensor(value)),
            Err(misuse) => self.report_misuse(Called::Operator(word), misuse, operands, span),
        }
    }

    fn unary(&mut self, op: UnaryOp, value: Value, span: Span, frame: &Frame) -> Outcome<Value> {
        match (op, value) {
            (UnaryOp::Negate, Value::Number(n)) => Ok(Value::Number(n.negated())),
            (UnaryOp::Negate, Value::Tensor(x)) if self.graph.ty(x).dtype != DType::I32 => {
                self.emit_with("-", frame, span, &[(x, span)], |e| ops::scale_by(e, x, -1.0))
            }
            (UnaryOp::Not, Value::Bool(b)) => Ok(Value::Bool(!b)),
            (UnaryOp::Not, Value::Mask(mask)) => Ok(Value::Mask(not(mask))),
            (UnaryOp::Not, Value::Lambda(lambda)) => Ok(Value::Mask(not(self.predicate(&lambda, frame)?))),
            (op, other) => {
                let found = self.describe(&other);
                let expected = match op {
                    UnaryOp::Negate => "a number or a float tensor",
                    UnaryOp::Not => "a flag or a mask",
                };
                self.wrong(expected, &found, span)
            }
        }
    }

    fn binary(
        &mut self,
        op: BinaryOp,
        a: (Value, Span),
        b: (Value, Span),
        span: Span,
        frame: &Frame,
    ) -> Outcome<Value> {
        let (a_span, b_span) = (a.1, b.1);
        match (a.0, b.0) {
            (Value::Number(x), Value::Number(y)) => match combine(op, &x, &y, span) {
                NumberOutcome::Number(n) => Ok(Value::Number(n)),
                NumberOutcome::Bool(b) => Ok(Value::Bool(b)),
                NumberOutcome::Overflow => {
                    let what = format!("`{} {} {}`", x.text(), op.symbol(), y.text());
                    self.report(TooLarge {
                        what,
                        limit: "2^63, and nothing is divided by 0".into(),
                        span,
                        places: vec![],
                    })
                }
                NumberOutcome::Undefined => self.wrong("tensors or masks", "two numbers", span),
            },
            (Value::Tensor(x), Value::Tensor(y)) => {
                self.floats(&[(x, a_span), (y, b_span)])?;
                let operands = [(x, a_span), (y, b_span)];
                match op {
                    BinaryOp::Add => {
                        self.emit_with(op.symbol(), frame, span, &operands, |e| ops::add(e, x, y))
                    }
                    BinaryOp::Subtract => {
                        self.emit_with(op.symbol(), frame, span, &operands, |e| ops::subtract(e, x, y))
                    }
                    BinaryOp::Multiply => {
                        self.emit_with(op.symbol(), frame, span, &operands, |e| ops::multiply(e, x, y))
                    }
                    BinaryOp::Divide => {
                        self.emit_with(op.symbol(), frame, span, &operands, |e| ops::divide(e, x, y))
                    }
                    BinaryOp::Matmul => {
                        self.emit_with(op.symbol(), frame, span, &operands, |e| ops::matmul(e, x, y))
                    }
                    _ => self.wrong("numbers or masks", &format!("`{}` of two tensors", op.symbol()), span),
                }
            }
            (Value::Tensor(x), Value::Number(n)) => {
                self.floats(&[(x, a_span)])?;
                let c = n.amount.float();
                let operands = [(x, a_span)];
                match op {
                    BinaryOp::Add => {
                        self.emit_with(op.symbol(), frame, span, &operands, |e| ops::shift(e, x, c))
                    }
                    BinaryOp::Subtract => {
                        self.emit_with(op.symbol(), frame, span, &operands, |e| ops::shift(e, x, -c))
                    }
                    BinaryOp::Multiply => {
                        self.emit_with(op.symbol(), frame, span, &operands, |e| ops::scale_by(e, x, c))
                    }
                    BinaryOp::Divide => {
                        self.emit_with(op.symbol(), frame, span, &operands, |e| ops::scale_by(e, x, 1.0 / c))
                    }
                    _ => self.wrong("a tensor", "a number", b_span),
                }
            }
            (Value::Number(n), Value::Tensor(x)) => {
                self.floats(&[(x, b_span)])?;
                let c = n.amount.float();
                let operands = [(x, b_span)];
                match op {
                    BinaryOp::Add => {
                        self.emit_with(op.symbol(), frame, span, &operands, |e| ops::shift(e, x, c))
                    }
                    BinaryOp::Subtract => self
                        .emit_with(op.symbol(), frame, span, &operands, |e| ops::reverse_subtract(e, c, x)),
                    BinaryOp::Multiply => {
                        self.emit_with(op.symbol(), frame, span, &operands, |e| ops::scale_by(e, x, c))
                    }
                    BinaryOp::Divide => self.emit_with(op.symbol(), frame, span, &operands, |e| {
                        let inverse = ops::reciprocal(e, x)?;
                        ops::scale_by(e, inverse, c)
                    }),
                    _ => self.wrong("a tensor", "a number", a_span),
                }
            }
            (Value::Bool(x), Value::Bool(y)) => match op {
                BinaryOp::And => Ok(Value::Bool(x && y)),
                BinaryOp::Or => Ok(Value::Bool(x || y)),
                BinaryOp::Equal => Ok(Value::Bool(x == y)),
                BinaryOp::NotEqual => Ok(Value::Bool(x != y)),
                _ => self.wrong("numbers or tensors", "two flags", span),
            },
            (x @ (Value::Mask(_) | Value::Lambda(_)), y @ (Value::Mask(_) | Value::Lambda(_))) => {
                let (x, y) = (self.as_mask(x, a_span, frame)?, self.as_mask(y, b_span, frame)?);
                match op {
                    BinaryOp::And => Ok(Value::Mask(both(x, y))),
                    BinaryOp::Or => Ok(Value::Mask(either(x, y))),
                    _ => self.wrong("numbers or tensors", "two masks", span),
                }
            }
            (x, y) => {
                let found = format!("`{}` of {} and {}", op.symbol(), self.describe(&x), self.describe(&y));
                self.wrong("operands of one kind", &found, span)
            }
        }
    }

    /// Ids take part in no arithmetic.
    fn floats(&mut self, operands: &[(ValueId, Span)]) -> Outcome<()> {
        match operands.iter().find(|(v, _)| self.graph.ty(*v).dtype == DType::I32) {
            Some((_, span)) => self.wrong("a float tensor", "ids", *span),
            None => Ok(()),
        }
    }

    fn index(&mut self, value: &Expr, indices: &[Expr], span: Span, frame: &mut Frame) -> Outcome<Value> {
        let base = self.eval(value, frame)?;
        let Value::Tensor(x) = base else {
            let found = self.describe(&base);
            return self.wrong("a tensor", &found, value.span);
        };
        if let [one] = indices
            && !matches!(one.kind, ExprKind::Range(..))
        {
            let index = self.eval(one, frame)?;
            let Value::Tensor(ids) = index else {
                let found = self.describe(&index);
                return self.wrong("ids or a range like `0..T`", &found, one.span);
            };
            return self.emit_with("[]", frame, span, &[(x, value.span), (ids, one.span)], |e| {
                ops::embedding(e, x, ids)
            });
        }
        let mut result = x;
        for (dim, index) in indices.iter().enumerate() {
            let ExprKind::Range(start, end) = &index.kind else {
                return self.wrong("a range like `0..T`", "something else", index.span);
            };
            let Some(whole) = self.graph.ty(x).dims.get(dim).cloned() else {
                let found = format!("one with {} dims", self.graph.ty(x).dims.len());
                return self.wrong("a tensor with more dims", &found, value.span);
            };
            let (start, part) = self.range(start.as_deref(), end.as_deref(), &whole, index.span, frame)?;
            let sliced = self.emit_with("[]", frame, span, &[(result, value.span)], |e| {
                ops::slice(e, result, dim, start, part)
            })?;
            if let Value::Tensor(value) = sliced {
                result = value;
            }
        }
        Ok(Value::Tensor(result))
    }

    /// First index and the dim that a range leaves.
    fn range(
        &mut self,
        start: Option<&Expr>,
        end: Option<&Expr>,
        whole: &Dim,
        span: Span,
        frame: &mut Frame,
    ) -> Outcome<(u64, Dim)> {
        let first = match start {
            Some(expr) => match self.eval(expr, frame)? {
                Value::Number(n) if n.amount.float() == 0.0 => None,
                Value::Number(n) => Some(self.number_as_size(&n, expr.span)?),
                other => {
                    let found = self.describe(&other);
                    return self.wrong("a size", &found, expr.span);
                }
            },
            None => None,
        };
        let last = match end {
            Some(expr) => self.size(expr, frame)?,
            None => whole.clone(),
        };
        let Some(first) = first else { return Ok((0, last)) };
        let size = last.size.saturating_sub(first.size);
        if size == 0 {
            let found = format!("{}..{}", first.size, last.size);
            return self.wrong("a range that is not empty", &found, span);
        }
        let name = format!("{}-{}", last.name, first.name);
        Ok((first.size, Dim { name, size, place: Some(span) }))
    }

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

    fn predicate(&mut self, lambda: &(Vec<Name>, Expr), frame: &Frame) -> Outcome<Mask> {
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
                Some(_) => None,
                None => return self.local(name, frame).and(Err(Reported)),
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

fn not(mask: Mask) -> Mask {
    let expr = match mask {
        Mask::Full => Arc::new(MaskExpr::Const(1)),
        Mask::Where(expr) => expr,
    };
    Mask::Where(Arc::new(MaskExpr::Not(expr)))
}

fn both(a: Mask, b: Mask) -> Mask {
    match (a, b) {
        (Mask::Full, other) | (other, Mask::Full) => other,
        (Mask::Where(a), Mask::Where(b)) => Mask::Where(Arc::new(MaskExpr::Binary(MaskOp::And, a, b))),
    }
}

fn either(a: Mask, b: Mask) -> Mask {
    match (a, b) {
        (Mask::Full, _) | (_, Mask::Full) => Mask::Full,
        (Mask::Where(a), Mask::Where(b)) => Mask::Where(Arc::new(MaskExpr::Binary(MaskOp::Or, a, b))),
    }
}
