//! Operators: what `+` means is decided by what stands left and right of it.

use dspc_source::Span;
use dspc_spec::body::{BinaryOp, UnaryOp};

use super::functions::Called;
use super::predicates::{both, either, not};
use super::values::{Number, Outcome as NumberOutcome, Value, combine};
use super::{Elaborator, Frame, Outcome, emission};
use crate::errors::TooLarge;
use crate::ir::{DType, ValueId};
use crate::ops::{self, Emit, Misuse};

/// An operator and where it and its operands stand.
#[derive(Clone, Copy)]
pub(super) struct Operator {
    pub op: BinaryOp,
    pub left: Span,
    pub right: Span,
    pub whole: Span,
}

impl Elaborator<'_> {
    /// Emits by `build`; a misuse is reported with these operands' places.
    pub(super) fn emit_with(
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

    pub(super) fn unary(&mut self, op: UnaryOp, value: Value, span: Span, frame: &Frame) -> Outcome<Value> {
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

    /// `a op b`
    pub(super) fn binary(&mut self, at: Operator, a: Value, b: Value, frame: &Frame) -> Outcome<Value> {
        match (a, b) {
            (Value::Number(x), Value::Number(y)) => self.two_numbers(at, &x, &y),
            (Value::Tensor(x), Value::Tensor(y)) => self.two_tensors(at, x, y, frame),
            (Value::Tensor(x), Value::Number(n)) => self.tensor_and_number(at, x, n.amount.float(), frame),
            (Value::Number(n), Value::Tensor(x)) => self.number_and_tensor(at, n.amount.float(), x, frame),
            (Value::Bool(x), Value::Bool(y)) => match at.op {
                BinaryOp::And => Ok(Value::Bool(x && y)),
                BinaryOp::Or => Ok(Value::Bool(x || y)),
                BinaryOp::Equal => Ok(Value::Bool(x == y)),
                BinaryOp::NotEqual => Ok(Value::Bool(x != y)),
                _ => self.wrong("numbers or tensors", "two flags", at.whole),
            },
            (x @ (Value::Mask(_) | Value::Lambda(_)), y @ (Value::Mask(_) | Value::Lambda(_))) => {
                let (x, y) = (self.as_mask(x, at.left, frame)?, self.as_mask(y, at.right, frame)?);
                match at.op {
                    BinaryOp::And => Ok(Value::Mask(both(x, y))),
                    BinaryOp::Or => Ok(Value::Mask(either(x, y))),
                    _ => self.wrong("numbers or tensors", "two masks", at.whole),
                }
            }
            (x, y) => {
                let found =
                    format!("`{}` of {} and {}", at.op.symbol(), self.describe(&x), self.describe(&y));
                self.wrong("operands of one kind", &found, at.whole)
            }
        }
    }

    fn two_numbers(&mut self, at: Operator, x: &Number, y: &Number) -> Outcome<Value> {
        match combine(at.op, x, y, at.whole) {
            NumberOutcome::Number(n) => Ok(Value::Number(n)),
            NumberOutcome::Bool(b) => Ok(Value::Bool(b)),
            NumberOutcome::Overflow => {
                let what = format!("`{} {} {}`", x.text(), at.op.symbol(), y.text());
                let limit = "2^63, and nothing is divided by 0".to_owned();
                self.report(TooLarge { what, limit, span: at.whole, places: vec![] })
            }
            NumberOutcome::Undefined => self.wrong("tensors or masks", "two numbers", at.whole),
        }
    }

    fn two_tensors(&mut self, at: Operator, x: ValueId, y: ValueId, frame: &Frame) -> Outcome<Value> {
        let operands = [(x, at.left), (y, at.right)];
        self.floats(&operands)?;
        let build: fn(&mut dyn Emit, ValueId, ValueId) -> Result<ValueId, Misuse> = match at.op {
            BinaryOp::Add => ops::add,
            BinaryOp::Subtract => ops::subtract,
            BinaryOp::Multiply => ops::multiply,
            BinaryOp::Divide => ops::divide,
            BinaryOp::Matmul => ops::matmul,
            _ => {
                return self.wrong(
                    "numbers or masks",
                    &format!("`{}` of two tensors", at.op.symbol()),
                    at.whole,
                );
            }
        };
        self.emit_with(at.op.symbol(), frame, at.whole, &operands, |e| build(e, x, y))
    }

    fn tensor_and_number(&mut self, at: Operator, x: ValueId, c: f64, frame: &Frame) -> Outcome<Value> {
        let operands = [(x, at.left)];
        self.floats(&operands)?;
        let build: fn(&mut dyn Emit, ValueId, f64) -> Result<ValueId, Misuse> = match at.op {
            BinaryOp::Add => ops::shift,
            BinaryOp::Subtract => |e, x, c| ops::shift(e, x, -c),
            BinaryOp::Multiply => ops::scale_by,
            BinaryOp::Divide => |e, x, c| ops::scale_by(e, x, 1.0 / c),
            _ => return self.wrong("a tensor", "a number", at.right),
        };
        self.emit_with(at.op.symbol(), frame, at.whole, &operands, |e| build(e, x, c))
    }

    fn number_and_tensor(&mut self, at: Operator, c: f64, x: ValueId, frame: &Frame) -> Outcome<Value> {
        let operands = [(x, at.right)];
        self.floats(&operands)?;
        let build: fn(&mut dyn Emit, ValueId, f64) -> Result<ValueId, Misuse> = match at.op {
            BinaryOp::Add => ops::shift,
            BinaryOp::Subtract => |e, x, c| ops::reverse_subtract(e, c, x),
            BinaryOp::Multiply => ops::scale_by,
            BinaryOp::Divide => |e, x, c| {
                let inverse = ops::reciprocal(e, x)?;
                ops::scale_by(e, inverse, c)
            },
            _ => return self.wrong("a tensor", "a number", at.left),
        };
        self.emit_with(at.op.symbol(), frame, at.whole, &operands, |e| build(e, x, c))
    }

    /// Ids take part in no arithmetic.
    fn floats(&mut self, operands: &[(ValueId, Span)]) -> Outcome<()> {
        match operands.iter().find(|(v, _)| self.graph.ty(*v).dtype == DType::I32) {
            Some((_, span)) => self.wrong("a float tensor", "ids", *span),
            None => Ok(()),
        }
    }
}
