//! Attention masks as declarations: a predicate over (query, key) positions.

use std::fmt;
use std::sync::Arc;

/// Whether query q may look at key k. Positions start at 0.
#[derive(Clone, PartialEq, Debug)]
pub enum Mask {
    /// Every pair.
    Full,
    /// The predicate, not 0 where the pair may look.
    Where(Arc<MaskExpr>),
}

/// An integer expression over q and k; comparisons and logic yield 0 or 1.
#[derive(Clone, PartialEq, Debug)]
pub enum MaskExpr {
    /// The query's position.
    Query,
    /// The key's position.
    Key,
    /// A number.
    Const(i64),
    /// An infix operator.
    Binary(MaskOp, Arc<MaskExpr>, Arc<MaskExpr>),
    /// 1 where the operand is 0.
    Not(Arc<MaskExpr>),
}

/// Operators of masks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MaskOp {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`, floor; 0 if the divisor is 0
    Divide,
    /// `%`, floor; 0 if the divisor is 0
    Remainder,
    /// `<`
    Less,
    /// `<=`
    LessEqual,
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `&`
    And,
    /// `|`
    Or,
}

impl Mask {
    /// `k <= q`
    pub fn causal() -> Self {
        use MaskExpr::{Key, Query};
        Mask::Where(Arc::new(MaskExpr::Binary(MaskOp::LessEqual, Arc::new(Key), Arc::new(Query))))
    }

    /// Whether the pair may look.
    pub fn allows(&self, q: u64, k: u64) -> bool {
        match self {
            Mask::Full => true,
            Mask::Where(expr) => expr.evaluate(q as i64, k as i64) != 0,
        }
    }
}

impl MaskExpr {
    /// Its value for one pair.
    pub fn evaluate(&self, q: i64, k: i64) -> i64 {
        match self {
            MaskExpr::Query => q,
            MaskExpr::Key => k,
            MaskExpr::Const(c) => *c,
            MaskExpr::Not(x) => i64::from(x.evaluate(q, k) == 0),
            MaskExpr::Binary(op, a, b) => op.apply(a.evaluate(q, k), b.evaluate(q, k)),
        }
    }
}

impl MaskOp {
    /// Its value for two operands; wraps on overflow.
    pub fn apply(self, a: i64, b: i64) -> i64 {
        match self {
            MaskOp::Add => a.wrapping_add(b),
            MaskOp::Subtract => a.wrapping_sub(b),
            MaskOp::Multiply => a.wrapping_mul(b),
            MaskOp::Divide => a.checked_div_euclid(b).unwrap_or(0),
            MaskOp::Remainder => a.checked_rem_euclid(b).unwrap_or(0),
            MaskOp::Less => i64::from(a < b),
            MaskOp::LessEqual => i64::from(a <= b),
            MaskOp::Equal => i64::from(a == b),
            MaskOp::NotEqual => i64::from(a != b),
            MaskOp::And => i64::from(a != 0 && b != 0),
            MaskOp::Or => i64::from(a != 0 || b != 0),
        }
    }

    /// As written.
    pub fn symbol(self) -> &'static str {
        match self {
            MaskOp::Add => "+",
            MaskOp::Subtract => "-",
            MaskOp::Multiply => "*",
            MaskOp::Divide => "/",
            MaskOp::Remainder => "%",
            MaskOp::Less => "<",
            MaskOp::LessEqual => "<=",
            MaskOp::Equal => "==",
            MaskOp::NotEqual => "!=",
            MaskOp::And => "&",
            MaskOp::Or => "|",
        }
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mask::Full => f.write_str("full"),
            Mask::Where(expr) => write!(f, "{expr}"),
        }
    }
}

impl fmt::Display for MaskExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MaskExpr::Query => f.write_str("q"),
            MaskExpr::Key => f.write_str("k"),
            MaskExpr::Const(c) => write!(f, "{c}"),
            MaskExpr::Not(x) => write!(f, "!({x})"),
            MaskExpr::Binary(op, a, b) => {
                let side = |x: &MaskExpr| match x {
                    MaskExpr::Binary(..) => format!("({x})"),
                    _ => x.to_string(),
                };
                write!(f, "{} {} {}", side(a), op.symbol(), side(b))
            }
        }
    }
}
