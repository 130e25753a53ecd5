//! The syntax tree: what was written, with spans, nothing resolved.

pub use dspc_source::{Span, Spanned};

/// A name and its place.
pub type Name = Spanned<String>;

/// One `.dsp` file.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct File {
    /// Its items in order.
    pub items: Vec<Item>,
    /// Every comment in order, `#` included; the formatter puts them back by position.
    pub comments: Vec<Spanned<String>>,
}

/// A top-level item.
#[derive(Clone, PartialEq, Debug)]
pub struct Item {
    /// What it is.
    pub kind: ItemKind,
    /// The whole item.
    pub span: Span,
}

/// The kinds of top-level items.
#[derive(Clone, PartialEq, Debug)]
pub enum ItemKind {
    /// `use std::gpt2`
    Use(Vec<Name>),
    /// `zero = stage(2, overlap: true)`
    Setting {
        /// `zero`
        name: Name,
        /// Its value.
        value: Expr,
    },
    /// `train { batch: 8 … }`
    Block {
        /// `train`
        name: Name,
        /// Its fields in order.
        fields: Vec<Field>,
    },
    /// `layer block(x: [B, T, D], heads: H) -> [B, T, D] { … }`
    Layer(Definition),
    /// `model gpt2(…) -> loss { … }` or `model medium(context: C = 1024) = gpt2(…)`
    Model(Definition),
    /// Text that is no item; it was reported.
    Bad,
}

/// `name: value` in a block.
#[derive(Clone, PartialEq, Debug)]
pub struct Field {
    /// The field's name.
    pub name: Name,
    /// Its value; [`ExprKind::Bad`] where it was unreadable and reported.
    pub value: Expr,
}

/// A layer or model.
#[derive(Clone, PartialEq, Debug)]
pub struct Definition {
    /// Its name.
    pub name: Name,
    /// Its parameters in order.
    pub params: Vec<DefParam>,
    /// What it yields, after `->`; absent in the `= expr` form.
    pub result: Option<ResultType>,
    /// Its body.
    pub body: Body,
}

/// The two forms of a definition.
#[derive(Clone, PartialEq, Debug)]
pub enum Body {
    /// `{ statements }`; the last one, an expression, is the result.
    Block(Vec<Statement>),
    /// `= expr`
    Alias(Expr),
}

/// `x: [B, T, D]`, `tokens: ids[B, T]`, `heads: H`, `context: C = 1024`, `init: I = normal(0.02)`
#[derive(Clone, PartialEq, Debug)]
pub struct DefParam {
    /// The name a caller uses.
    pub name: Name,
    /// Its type.
    pub ty: ParamType,
    /// Its default.
    pub default: Option<Expr>,
}

/// The type of a definition's parameter.
#[derive(Clone, PartialEq, Debug)]
pub enum ParamType {
    /// `[B, T, D]`: a float tensor; each dim is a name (bound at the first use) or a size expression.
    Tensor(Dims),
    /// `ids[B, T]`: integer ids.
    Ids(Dims),
    /// `H`: a compile-time value (size, number, init, mask, flag) known in the body by this name. Where the type is left out (`heads` or `heads = 4`), the parameter's own name.
    Value(Name),
}

/// `[B, T, 4*D]` or `[.., D]`
#[derive(Clone, PartialEq, Debug)]
pub struct Dims {
    /// `..` came first: any leading dims.
    pub leading: Option<Span>,
    /// The dims in order.
    pub dims: Vec<Expr>,
    /// From `[` to `]`.
    pub span: Span,
}

/// What a definition yields.
#[derive(Clone, PartialEq, Debug)]
pub enum ResultType {
    /// `[B, T, D]`
    Tensor(Dims),
    /// `([B, T, D], [B, T])`
    Tuple(Vec<Dims>, Span),
    /// `loss`, or another word that the checker reports.
    Named(Name),
}

/// A statement of a body.
#[derive(Clone, PartialEq, Debug)]
pub struct Statement {
    /// What it is.
    pub kind: StatementKind,
    /// The whole statement.
    pub span: Span,
}

/// The kinds of statements.
#[derive(Clone, PartialEq, Debug)]
pub enum StatementKind {
    /// `param wte: [V, D] ~ normal(0.02)`
    Param {
        /// `wte`
        name: Name,
        /// `[V, D]`
        dims: Dims,
        /// `normal(0.02)`
        init: Expr,
    },
    /// `q, k, v = split(…)`
    Bind {
        /// One or more names.
        names: Vec<Name>,
        /// The value.
        value: Expr,
    },
    /// `repeat L as h { … }`
    Repeat {
        /// `L`
        count: Expr,
        /// `h`
        name: Option<Name>,
        /// The body.
        body: Vec<Statement>,
    },
    /// An expression; the last statement of a body is its result.
    Expr(Expr),
    /// Unreadable, and reported.
    Bad,
}

/// An expression.
#[derive(Clone, PartialEq, Debug)]
pub struct Expr {
    /// What it is.
    pub kind: ExprKind,
    /// Where it stands, trimmed of blanks and comments.
    pub span: Span,
}

/// The kinds of expressions.
#[derive(Clone, PartialEq, Debug)]
pub enum ExprKind {
    /// `200M`, `3e-4`, `2%`, `31GB`, `10min`: the number as written and its unit.
    Number {
        /// Value of the digits, before the unit.
        value: f64,
        /// `K`, `GiB`, `%`, `min`, …, or empty. Any letters are taken; the checker knows the units.
        unit: String,
    },
    /// `"text"`, unescaped (`\"`, `\\`, `\n`, `\t`).
    String(String),
    /// `true`, `false`
    Bool(bool),
    /// `x`, `gpt2::medium`, `data.vocab`: segments and the separators between them (`::` or `.`).
    Path(Path),
    /// `f(x, heads: H)`
    Call {
        /// What is called.
        callee: Path,
        /// Its arguments in order.
        args: Vec<Arg>,
    },
    /// `call as name.of.it`
    As {
        /// The call.
        value: Box<Expr>,
        /// `mlp.c_fc`, in one name with its dots.
        name: Name,
    },
    /// `-x`, `!x`
    Unary {
        /// The operator.
        op: Spanned<UnaryOp>,
        /// Its operand.
        value: Box<Expr>,
    },
    /// `a + b`
    Binary {
        /// The operator.
        op: Spanned<BinaryOp>,
        /// Left.
        left: Box<Expr>,
        /// Right.
        right: Box<Expr>,
    },
    /// `wte[tokens]`, `wpe[0..T]`, `x[0..T, 1]`
    Index {
        /// What is indexed.
        value: Box<Expr>,
        /// One or more indices.
        indices: Vec<Expr>,
    },
    /// `0..T`, `..T`, `2..`
    Range {
        /// First, 0 if absent.
        start: Option<Box<Expr>>,
        /// One past the last, the dim's size if absent.
        end: Option<Box<Expr>>,
    },
    /// `["a", "b"]`
    List(Vec<Expr>),
    /// `(0.9, 0.95)`; one element in parentheses is the element itself, in [`ExprKind::Paren`].
    Tuple(Vec<Expr>),
    /// `(a + b)`: kept for the formatter.
    Paren(Box<Expr>),
    /// `(q, k) => k <= q`
    Lambda {
        /// `q`, `k`
        params: Vec<Name>,
        /// The value.
        body: Box<Expr>,
    },
    /// Unreadable, and reported.
    Bad,
}

/// Names joined by `::` and `.`.
#[derive(Clone, PartialEq, Debug)]
pub struct Path {
    /// The names.
    pub segments: Vec<Name>,
    /// Between `segments[i]` and `segments[i + 1]`: true for `::`, false for `.`.
    pub scoped: Vec<bool>,
}

/// `value` or `name: value` in a call.
#[derive(Clone, PartialEq, Debug)]
pub struct Arg {
    /// The name, if given.
    pub name: Option<Name>,
    /// The value.
    pub value: Expr,
}

/// Prefix operators, tightest binding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnaryOp {
    /// `-`
    Negate,
    /// `!`
    Not,
}

/// Infix operators; from loosest to tightest: `|`, `&`, comparisons, `+ -`, `* / % @`. `as` binds looser than a call or
/// index and tighter than every infix operator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BinaryOp {
    /// `|`
    Or,
    /// `&`
    And,
    /// `<`
    Less,
    /// `<=`
    LessEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterEqual,
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`
    Divide,
    /// `%`
    Remainder,
    /// `@`
    Matmul,
}

/// How an expression binds: the printer puts parentheses by it.
impl BinaryOp {
    /// The operator as written.
    pub fn symbol(self) -> &'static str {
        use BinaryOp::*;
        match self {
            Or => "|",
            And => "&",
            Less => "<",
            LessEqual => "<=",
            Greater => ">",
            GreaterEqual => ">=",
            Equal => "==",
            NotEqual => "!=",
            Add => "+",
            Subtract => "-",
            Multiply => "*",
            Divide => "/",
            Remainder => "%",
            Matmul => "@",
        }
    }
}
