//! What expressions are worth while a body is elaborated, and arithmetic on numbers.

use std::sync::Arc;

use dspc_source::Span;
use dspc_spec::body::{BinaryOp, Expr, Name};

use crate::ir::{Dim, Init, ValueId};
use crate::mask::Mask;

/// What an expression is worth.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Value {
    /// A tensor.
    Tensor(ValueId),
    /// A compile-time number.
    Number(Number),
    /// A flag.
    Bool(bool),
    /// A text.
    Text(String),
    /// A mask.
    Mask(Mask),
    /// How a parameter starts.
    Init(Init),
    /// Sizes.
    List(Vec<(Value, Span)>),
    /// Several values.
    Tuple(Vec<Value>),
    /// A predicate that is yet to become a mask.
    Lambda(Arc<(Vec<Name>, Expr)>),
    /// Unknown because of a mistake that was reported.
    Bad,
}

/// A number, what a reader calls it, and where it was said.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Number {
    pub amount: Amount,
    /// `4*D`; `None` for a plain literal.
    pub name: Option<String>,
    pub place: Option<Span>,
    /// Operands of a division that has a rest, for the report.
    pub division: Option<Box<(Number, Number)>>,
}

/// Exact where it can be.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Amount {
    /// A whole number.
    Whole(i64),
    /// Any other.
    Real(f64),
}

impl Amount {
    /// A literal's or setting's amount.
    pub fn of(x: f64) -> Self {
        if x.fract() == 0.0 && x.abs() <= 9_007_199_254_740_992.0 {
            Amount::Whole(x as i64)
        } else {
            Amount::Real(x)
        }
    }

    /// As a float.
    pub fn float(self) -> f64 {
        match self {
            Amount::Whole(n) => n as f64,
            Amount::Real(x) => x,
        }
    }
}

impl Number {
    /// A literal.
    pub fn literal(x: f64, place: Span) -> Self {
        Self { amount: Amount::of(x), name: None, place: Some(place), division: None }
    }

    /// A dim's size.
    pub fn of_dim(dim: &Dim) -> Self {
        let amount = i64::try_from(dim.size).map_or(Amount::Real(dim.size as f64), Amount::Whole);
        Self { amount, name: Some(dim.name.clone()), place: dim.place, division: None }
    }

    /// As text.
    pub fn text(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.amount.float().to_string())
    }

    /// The dim of this size, if it is whole and at least 1.
    pub fn dim(&self) -> Option<Dim> {
        let size = match self.amount {
            Amount::Whole(n) => u64::try_from(n).ok()?,
            Amount::Real(x) => match Amount::of(x) {
                Amount::Whole(n) => u64::try_from(n).ok()?,
                Amount::Real(_) => return None,
            },
        };
        (size > 0).then(|| Dim { name: self.text(), size, place: self.place })
    }

    /// −x
    pub fn negated(&self) -> Self {
        let amount = match self.amount {
            Amount::Whole(n) => n.checked_neg().map_or(Amount::Real(-(n as f64)), Amount::Whole),
            Amount::Real(x) => Amount::Real(-x),
        };
        let name = self.name.as_ref().map(|n| format!("-{}", closed(n)));
        Self { amount, name, place: self.place, division: None }
    }
}

/// In parentheses where it is a sum.
fn closed(name: &str) -> String {
    if name.contains(['+', '-']) { format!("({name})") } else { name.to_owned() }
}

/// What came of an operator on two numbers.
pub(super) enum Outcome {
    /// A number.
    Number(Number),
    /// A flag.
    Bool(bool),
    /// Past the range of whole numbers.
    Overflow,
    /// Numbers have no such operator.
    Undefined,
}

/// `a op b`, exact where both are whole.
pub(super) fn combine(op: BinaryOp, a: &Number, b: &Number, place: Span) -> Outcome {
    let (x, y) = (a.amount.float(), b.amount.float());
    let amount = match op {
        BinaryOp::Less => return Outcome::Bool(x < y),
        BinaryOp::LessEqual => return Outcome::Bool(x <= y),
        BinaryOp::Greater => return Outcome::Bool(x > y),
        BinaryOp::GreaterEqual => return Outcome::Bool(x >= y),
        BinaryOp::Equal => return Outcome::Bool(a.amount == b.amount),
        BinaryOp::NotEqual => return Outcome::Bool(a.amount != b.amount),
        BinaryOp::Or | BinaryOp::And | BinaryOp::Matmul => return Outcome::Undefined,
        BinaryOp::Add | BinaryOp::Subtract | BinaryOp::Multiply | BinaryOp::Divide | BinaryOp::Remainder => {
            match arithmetic(op, a.amount, b.amount) {
                Some(amount) => amount,
                None => return Outcome::Overflow,
            }
        }
    };
    let rest = op == BinaryOp::Divide && matches!(amount, Amount::Real(_));
    let real = matches!(amount, Amount::Real(_));
    let inherited = || a.division.clone().or_else(|| b.division.clone()).filter(|_| real);
    let division = if rest { Some(Box::new((a.clone(), b.clone()))) } else { inherited() };
    let place = if a.name.is_none() && b.name.is_none() { Some(place) } else { a.place.or(b.place) };
    Outcome::Number(Number { amount, name: name_of(op, a, b), place, division })
}

fn arithmetic(op: BinaryOp, a: Amount, b: Amount) -> Option<Amount> {
    let (x, y) = (a.float(), b.float());
    if let (Amount::Whole(a), Amount::Whole(b)) = (a, b) {
        return match op {
            BinaryOp::Add => a.checked_add(b).map(Amount::Whole),
            BinaryOp::Subtract => a.checked_sub(b).map(Amount::Whole),
            BinaryOp::Multiply => a.checked_mul(b).map(Amount::Whole),
            BinaryOp::Remainder => a.checked_rem_euclid(b).map(Amount::Whole),
            _ if b != 0 && a.checked_rem(b) == Some(0) => a.checked_div(b).map(Amount::Whole),
            _ => (b != 0).then_some(Amount::Real(x / y)),
        };
    }
    let result = match op {
        BinaryOp::Add => x + y,
        BinaryOp::Subtract => x - y,
        BinaryOp::Multiply => x * y,
        BinaryOp::Remainder => x.rem_euclid(y),
        _ => x / y,
    };
    result.is_finite().then_some(Amount::Real(result))
}

fn name_of(op: BinaryOp, a: &Number, b: &Number) -> Option<String> {
    if a.name.is_none() && b.name.is_none() {
        return None;
    }
    let (a, b) = (a.text(), b.text());
    Some(match op {
        BinaryOp::Add | BinaryOp::Subtract => format!("{a}{}{b}", op.symbol()),
        BinaryOp::Divide => {
            let b = if b.contains(['*', '/', '+', '-']) { format!("({b})") } else { b };
            format!("{}/{b}", closed(&a))
        }
        _ => format!("{}{}{}", closed(&a), op.symbol(), closed(&b)),
    })
}

#[cfg(test)]
mod tests {
    use dspc_source::FileId;

    use super::*;

    fn number(x: f64, name: Option<&str>) -> Number {
        Number { amount: Amount::of(x), name: name.map(str::to_owned), place: None, division: None }
    }

    fn result(op: BinaryOp, a: &Number, b: &Number) -> Option<Number> {
        match combine(op, a, b, Span::new(FileId(0), 0, 0)) {
            Outcome::Number(n) => Some(n),
            Outcome::Bool(_) | Outcome::Overflow | Outcome::Undefined => None,
        }
    }

    #[test]
    fn names_keep_their_precedence() {
        let (d, h, two) = (number(12.0, Some("D")), number(4.0, Some("H")), number(2.0, None));
        let sum = result(BinaryOp::Add, &d, &two).unwrap();
        assert_eq!(sum.text(), "D+2");
        assert_eq!(result(BinaryOp::Multiply, &two, &sum).unwrap().text(), "2*(D+2)");
        let quotient = result(BinaryOp::Divide, &d, &h).unwrap();
        assert_eq!((quotient.text(), quotient.amount), ("D/H".to_owned(), Amount::Whole(3)));
        assert_eq!(
            result(BinaryOp::Divide, &d, &result(BinaryOp::Multiply, &h, &two).unwrap()).unwrap().text(),
            "D/(H*2)"
        );
        assert_eq!(result(BinaryOp::Multiply, &two, &two).unwrap().name, None);
    }

    #[test]
    fn whole_numbers_are_exact_or_refused() {
        let large = number(9_007_199_254_740_991.0, None);
        let sum = result(BinaryOp::Add, &large, &large).unwrap();
        assert_eq!(sum.amount, Amount::Whole(18_014_398_509_481_982));
        assert!(result(BinaryOp::Multiply, &sum, &sum).is_none());
        assert!(result(BinaryOp::Divide, &large, &number(0.0, None)).is_none());
        assert!(result(BinaryOp::Remainder, &large, &number(0.0, None)).is_none());
    }

    #[test]
    fn a_rest_is_remembered_through_further_steps() {
        let third = result(BinaryOp::Divide, &number(10.0, Some("D")), &number(3.0, None)).unwrap();
        assert_eq!(third.dim(), None);
        let more = result(BinaryOp::Multiply, &third, &number(2.0, None)).unwrap();
        assert_eq!(more.division.unwrap().0.text(), "D");
    }

    #[test]
    fn a_size_is_whole_and_at_least_1() {
        assert_eq!(number(3.0, None).dim().unwrap().size, 3);
        assert!([0.0, -1.0, 2.5, 1e300].iter().all(|x| number(*x, None).dim().is_none()));
    }
}
