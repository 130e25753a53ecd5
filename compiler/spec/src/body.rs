//! Layers and models: callees resolved, literals' units applied, everything else as written, with spans.

use dspc_source::{Span, Spanned};

pub use dspc_grammar::ast::{BinaryOp, UnaryOp};

/// A name and its place.
pub type Name = Spanned<String>;

/// Index in [`crate::settings::Spec::definitions`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct DefinitionId(pub u32);

/// The model the job trains: a call of a model definition with compile-time arguments.
#[derive(Clone, PartialEq, Debug)]
pub struct ModelCall {
    /// Which.
    pub definition: DefinitionId,
    /// Its arguments, by parameter name, in the order written.
    pub args: Vec<(Name, Value)>,
    /// The call.
    pub span: Span,
}

/// A compile-time value.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// A number; sizes are whole.
    Number(f64),
    /// A flag.
    Bool(bool),
    /// A text.
    String(String),
}

/// Layer or model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// From tensors to tensors.
    Layer,
    /// From ids to a loss.
    Model,
}

/// A layer or a model.
#[derive(Clone, PartialEq, Debug)]
pub struct Definition {
    /// Its name.
    pub name: Name,
    /// `std::gpt2`, or empty for the user's own file.
    pub module: String,
    /// Layer or model.
    pub kind: Kind,
    /// Its parameters.
    pub params: Vec<DefParam>,
    /// What it says it yields.
    pub result: Option<ResultType>,
    /// Its body.
    pub body: Body,
}

/// A parameter of a definition.
#[derive(Clone, PartialEq, Debug)]
pub struct DefParam {
    /// What a caller says.
    pub name: Name,
    /// Its type.
    pub ty: ParamType,
    /// Its default.
    pub default: Option<Expr>,
}

/// The type of a parameter.
#[derive(Clone, PartialEq, Debug)]
pub enum ParamType {
    /// Float tensor.
    Tensor(Dims),
    /// Ids.
    Ids(Dims),
    /// A compile-time value, known in the body by this name.
    Value(Name),
}

/// Dims of a tensor type.
#[derive(Clone, PartialEq, Debug)]
pub struct Dims {
    /// `..` came first: any leading dims.
    pub leading: Option<Span>,
    /// A lone name binds where it is not bound yet; anything else must be known.
    pub dims: Vec<Expr>,
    /// The whole.
    pub span: Span,
}

/// What a definition yields.
#[derive(Clone, PartialEq, Debug)]
pub enum ResultType {
    /// One tensor.
    Tensor(Dims),
    /// Several.
    Tuple(Vec<Dims>),
    /// A scalar loss.
    Loss(Span),
}

/// The two forms of a body.
#[derive(Clone, PartialEq, Debug)]
pub enum Body {
    /// Statements; the last, an expression, is the result.
    Block(Vec<Statement>),
    /// Another definition's call.
    Alias(Expr),
}

/// A statement.
#[derive(Clone, PartialEq, Debug)]
pub enum Statement {
    /// `param wte: [V, D] ~ normal(0.02)`
    Param {
        /// Its name in its scope.
        name: Name,
        /// Its dims.
        dims: Dims,
        /// How it starts.
        init: Expr,
    },
    /// `q, k, v = split(…)`
    Bind {
        /// One or more.
        names: Vec<Name>,
        /// The value.
        value: Expr,
    },
    /// `repeat L as h { … }`
    Repeat {
        /// How often.
        count: Expr,
        /// Its name; `repeat` if none was given.
        name: Name,
        /// One turn.
        body: Vec<Statement>,
        /// The whole.
        span: Span,
    },
    /// The result.
    Result(Expr),
}

/// An expression.
#[derive(Clone, PartialEq, Debug)]
pub struct Expr {
    /// What it is.
    pub kind: ExprKind,
    /// Where it stands.
    pub span: Span,
}

/// The kinds of expressions.
#[derive(Clone, PartialEq, Debug)]
pub enum ExprKind {
    /// A number, its unit applied (`200M` is 2e8, `2%` is 0.02).
    Number(f64),
    /// A text.
    String(String),
    /// A flag.
    Bool(bool),
    /// A name of the body: tensor, param or compile-time value; or a predeclared word (`causal`).
    Local(String),
    /// A call.
    Call(Call),
    /// `-x`, `!x`
    Unary(UnaryOp, Box<Expr>),
    /// `a + b`
    Binary {
        /// The operator.
        op: Spanned<BinaryOp>,
        /// Left.
        left: Box<Expr>,
        /// Right.
        right: Box<Expr>,
    },
    /// `wte[tokens]`, `wpe[0..T]`
    Index {
        /// What is indexed.
        value: Box<Expr>,
        /// By what.
        indices: Vec<Expr>,
    },
    /// `0..T`
    Range(Option<Box<Expr>>, Option<Box<Expr>>),
    /// `[a, b]`
    List(Vec<Expr>),
    /// `(a, b)`
    Tuple(Vec<Expr>),
    /// `(q, k) => k <= q`
    Lambda(Vec<Name>, Box<Expr>),
}

/// A call.
#[derive(Clone, PartialEq, Debug)]
pub struct Call {
    /// What is called.
    pub callee: Callee,
    /// As written.
    pub name: Name,
    /// Its arguments.
    pub args: Vec<Arg>,
    /// `as attn`
    pub alias: Option<Name>,
}

/// What a call calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Callee {
    /// A layer or model.
    Definition(DefinitionId),
    /// One of the [`Builtin`]s, by its place in the list handed to the checker.
    Builtin(u32),
}

/// An argument.
#[derive(Clone, PartialEq, Debug)]
pub struct Arg {
    /// Its name, if given.
    pub name: Option<Name>,
    /// Its value.
    pub value: Expr,
}

/// A function that the graph layer brings: an op (`gelu`), an initialiser (`normal`), a mask (`window`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Builtin {
    /// Its name.
    pub name: &'static str,
    /// Its parameters, for messages and completion: `attend(q, k, v, heads: H, kv_heads: heads, mask: full)`.
    pub signature: &'static str,
    /// What it does, in a sentence.
    pub doc: &'static str,
}
