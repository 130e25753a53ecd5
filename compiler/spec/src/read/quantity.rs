//! Constant arithmetic: numbers with units, `+ - * / %`, and other settings by their path.

use dspc_grammar::ast::{BinaryOp, Expr, ExprKind, Path, UnaryOp};
use dspc_source::{Span, Spanned};

use super::Reader;
use crate::body::Name;
use crate::errors::{Arithmetic, BadArithmetic, Circle, MixedUnits, NoSuchNumber, NotConstant};
use crate::keys::{Fallback, KEYS, Key, Plain};
use crate::units::{self, Dimension};

/// Whole numbers up to here are exact in an `f64`.
const EXACT: f64 = 9_007_199_254_740_991.0;

/// A number and what it measures.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Quantity {
    /// In base units.
    pub value: f64,
    /// What it measures.
    pub dimension: Dimension,
}

impl Reader<'_> {
    /// The value of a constant expression; `None` if it has none, which is reported, or if it depends on data that could not be read.
    pub fn quantity(&mut self, expr: &Expr) -> Option<Quantity> {
        match &expr.kind {
            ExprKind::Number { value, unit } => {
                let (value, dimension) = units::apply(*value, unit, expr.span, self.mistakes)?;
                self.finite(Quantity { value, dimension }, expr.span)
            }
            ExprKind::Paren(inner) => self.quantity(inner),
            ExprKind::Path(path) => self.number_at(path, expr.span),
            ExprKind::Unary { op, value } if op.value == UnaryOp::Negate => {
                let q = self.quantity(value)?;
                Some(Quantity { value: -q.value, ..q })
            }
            ExprKind::Binary { op, left, right } => {
                let sides = (self.quantity(left), self.quantity(right));
                let (l, r) = (sides.0?, sides.1?);
                let dimension = self.combined(op, (l, left.span), (r, right.span))?;
                let value = self.arithmetic(op, l.value, r.value, expr.span)?;
                self.finite(Quantity { value, dimension }, expr.span)
            }
            ExprKind::Bad => None,
            other => {
                self.mistakes.add(NotConstant { value: expr.span, what: describe(other) });
                None
            }
        }
    }

    fn finite(&mut self, q: Quantity, span: Span) -> Option<Quantity> {
        if q.value.is_finite()
            && (q.value.fract() != 0.0 || q.value.abs() <= EXACT || q.dimension != Dimension::Plain)
        {
            return Some(q);
        }
        self.mistakes.add(BadArithmetic { value: span, what: Arithmetic::TooLarge });
        None
    }

    fn arithmetic(&mut self, op: &Spanned<BinaryOp>, left: f64, right: f64, span: Span) -> Option<f64> {
        let divides = matches!(op.value, BinaryOp::Divide | BinaryOp::Remainder);
        if divides && right == 0.0 {
            self.mistakes.add(BadArithmetic { value: span, what: Arithmetic::DividesByZero });
            return None;
        }
        match op.value {
            BinaryOp::Add => Some(left + right),
            BinaryOp::Subtract => Some(left - right),
            BinaryOp::Multiply => Some(left * right),
            BinaryOp::Divide => Some(left / right),
            BinaryOp::Remainder => Some(left.rem_euclid(right)),
            BinaryOp::Or
            | BinaryOp::And
            | BinaryOp::Less
            | BinaryOp::LessEqual
            | BinaryOp::Greater
            | BinaryOp::GreaterEqual
            | BinaryOp::Equal
            | BinaryOp::NotEqual
            | BinaryOp::Matmul => {
                self.mistakes.add(NotConstant { value: op.span, what: operator_noun(op.value) });
                None
            }
        }
    }

    fn combined(
        &mut self,
        op: &Spanned<BinaryOp>,
        left: (Quantity, Span),
        right: (Quantity, Span),
    ) -> Option<Dimension> {
        let bare = |d: Dimension| matches!(d, Dimension::Plain | Dimension::Share);
        let (l, r) = (left.0.dimension, right.0.dimension);
        let dimension = match op.value {
            _ if l == r && op.value != BinaryOp::Multiply && op.value != BinaryOp::Divide => Some(l),
            _ if bare(l) && bare(r) => Some(Dimension::Plain),
            BinaryOp::Multiply if bare(l) => Some(r),
            BinaryOp::Multiply | BinaryOp::Divide if bare(r) => Some(l),
            BinaryOp::Divide if l == r => Some(Dimension::Plain),
            _ => None,
        };
        if dimension.is_none() {
            let (left, right) = (Spanned::new(l, left.1), Spanned::new(r, right.1));
            self.mistakes.add(MixedUnits { left, right, operator: op.span });
        }
        dimension
    }

    fn number_at(&mut self, path: &Path, span: Span) -> Option<Quantity> {
        let name = Name { value: written(path), span };
        let plain = |value| Some(Quantity { value, dimension: Dimension::Plain });
        if name.value == "data.vocab" {
            return self.vocab().and_then(|ids| plain(ids as f64));
        }
        let Some(key) = Key::find(&name.value) else {
            self.mistakes.add(NoSuchNumber { path: name, known: numeric_paths(), why: None });
            return None;
        };
        if let Some(known) = self.numbers.get(key.path) {
            return known.and_then(plain);
        }
        if self.open.contains(&key.path) {
            let mut circle = self.open.clone();
            circle.push(key.path);
            self.mistakes.add(Circle { path: name, circle: circle.join(" → ") });
            return None;
        }
        let value = self.number_of(key, name);
        self.numbers.insert(key.path, value);
        value.and_then(plain)
    }

    fn number_of(&mut self, key: &'static Key, name: Name) -> Option<f64> {
        let why = match (self.written.get(key.path), key.fallback) {
            _ if !is_number(key) => Some("is not a number"),
            (None, Fallback::Derived(_)) => Some("follows from other settings"),
            (Some(_), _) | (None, Fallback::Required | Fallback::Text(_)) => None,
        };
        if why.is_some() {
            self.mistakes.add(NoSuchNumber { path: name, known: vec![], why });
            return None;
        }
        self.held(key)?.0.number()
    }

    /// Ids of the tokenizer: measured, or known by its name.
    pub fn vocab(&mut self) -> Option<u64> {
        let named = || match &self.written.get("data.tokenizer")?.value.kind {
            ExprKind::String(name) if name == "bytes" => Some(256),
            ExprKind::String(name) if name == "gpt2" => Some(50257),
            _ => None,
        };
        self.facts.vocab.or_else(named)
    }
}

/// A path as written.
pub(crate) fn written(path: &Path) -> String {
    let mut text = String::new();
    for (i, segment) in path.segments.iter().enumerate() {
        if i > 0 {
            text.push_str(if path.scoped.get(i - 1) == Some(&true) { "::" } else { "." });
        }
        text.push_str(&segment.value);
    }
    text
}

fn is_number(key: &Key) -> bool {
    matches!(key.ty.plain, Some(Plain::Whole { .. } | Plain::Real { .. } | Plain::Share | Plain::Bytes))
}

fn numeric_paths() -> Vec<&'static str> {
    std::iter::once("data.vocab")
        .chain(KEYS.iter().filter(|key| is_number(key)).map(|key| key.path))
        .collect()
}

/// What an expression is, for messages.
pub(crate) fn describe(kind: &ExprKind) -> &'static str {
    match kind {
        ExprKind::Number { .. } => "a number",
        ExprKind::String(_) => "a text",
        ExprKind::Bool(_) => "a flag",
        ExprKind::Path(_) => "a name",
        ExprKind::Call { .. } => "a call",
        ExprKind::As { .. } => "a named call",
        ExprKind::Unary { op, .. } => match op.value {
            UnaryOp::Negate => "a number",
            UnaryOp::Not => "a negation",
        },
        ExprKind::Binary { op, .. } => operator_noun(op.value),
        ExprKind::Index { .. } => "an index",
        ExprKind::Range { .. } => "a range",
        ExprKind::List(_) => "a list",
        ExprKind::Tuple(_) => "a tuple",
        ExprKind::Paren(inner) => describe(&inner.kind),
        ExprKind::Lambda { .. } => "a function",
        ExprKind::Bad => "this",
    }
}

fn operator_noun(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Or | BinaryOp::And => "a condition",
        BinaryOp::Less
        | BinaryOp::LessEqual
        | BinaryOp::Greater
        | BinaryOp::GreaterEqual
        | BinaryOp::Equal
        | BinaryOp::NotEqual => "a comparison",
        BinaryOp::Matmul => "a matrix product",
        BinaryOp::Add | BinaryOp::Subtract | BinaryOp::Multiply | BinaryOp::Divide | BinaryOp::Remainder => {
            "a number"
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::fixture::train;

    fn steps(value: &str) -> Result<u64, Vec<&'static str>> {
        let (train, found) = train(&format!("train {{ batch: 8, steps: {value} }}"));
        train.map(|train| train.steps.value).ok_or(found)
    }

    #[test]
    fn arithmetic_and_paths_are_worked_out() {
        assert_eq!(steps("2 + 3 * 4"), Ok(14));
        assert_eq!(steps("(2 + 3) * 4 - 6 / 2"), Ok(17));
        assert_eq!(steps("17 % 5"), Ok(2));
        assert_eq!(steps("1.5K"), Ok(1500));
        assert_eq!(steps("data.sequence * data.vocab"), Ok(64 * 65));
        assert_eq!(steps("train.batch"), Ok(8));
        assert_eq!(steps("8GiB / 1MiB"), Ok(8192));
        assert_eq!(steps("200 * 10%"), Ok(20));
    }

    #[test]
    fn what_has_no_exact_value_is_refused() {
        assert_eq!(steps("10 / 3"), Err(vec!["E0204"]));
        assert_eq!(steps("1 / 0"), Err(vec!["E0207"]));
        assert_eq!(steps("1e300"), Err(vec!["E0207"]));
        assert_eq!(steps("9007199254740991 + 1 - 9007199254740990"), Err(vec!["E0207"]));
        assert_eq!(steps("train.steps"), Err(vec!["E0209"]));
        assert_eq!(steps("train.micro_batch"), Err(vec!["E0208"]));
        assert_eq!(steps("1GB + 1"), Err(vec!["E0212"]));
        assert_eq!(steps("1GB"), Err(vec!["E0202"]));
        assert_eq!(steps("-x"), Err(vec!["E0208"]));
    }

    #[test]
    fn settings_that_name_each_other_are_read_once_each() {
        let sum = |path: &str| vec![path; 100].join(" + ");
        let chain = [("seed", "data.sequence"), ("train.batch", "seed"), ("train.steps", "train.batch")];
        let [seed, batch, steps] = chain.map(|(_, on)| sum(on));
        let (train, found) = train(&format!("seed = {seed}\ntrain {{ batch: {batch}, steps: {steps} }}\n"));
        assert_eq!(found, [""; 0]);
        assert_eq!(train.map(|train| train.steps.value), Some(64 * 100 * 100 * 100));
    }
}
