//! Expressions: literals, names, calls, indices; operators are a file of their own.

use std::sync::Arc;

use dspc_source::Span;
use dspc_spec::body::{Call, Callee, Expr, ExprKind};

use super::operators::Operator;
use super::values::{Number, Value};
use super::{Elaborator, Frame, Outcome, Reported};
use crate::errors::WrongKind;
use crate::ir::Dim;
use crate::ops::{self, FUNCTIONS};

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
                let at = Operator { op: op.value, left: left.span, right: right.span, whole: expr.span };
                self.binary(at, a, b, frame)
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
}
