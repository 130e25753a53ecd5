//! What a function of the language is to the graph: parameters, and how a call becomes ops.

use std::sync::Arc;

use dspc_source::Span;
use dspc_spec::body::Builtin;

use crate::ir::{Dim, Init, Input, Op, ShapeError, Table, TensorType, ValueId};
use crate::mask::Mask;

/// A function that bodies may call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    /// Name, signature and sentence, for the checker and the book.
    pub builtin: Builtin,
    /// Its parameters in order.
    pub params: &'static [Parameter],
    /// What a call does.
    pub build: Build,
}

/// A parameter of a function.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parameter {
    /// What a caller may say.
    pub name: &'static str,
    /// What fits.
    pub expects: Expects,
    /// Whether a call may leave it out.
    pub optional: bool,
}

impl Parameter {
    /// One that every call gives.
    pub const fn required(name: &'static str, expects: Expects) -> Self {
        Self { name, expects, optional: false }
    }

    /// One with a default.
    pub const fn optional(name: &'static str, expects: Expects) -> Self {
        Self { name, expects, optional: true }
    }
}

/// What fits a parameter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Expects {
    /// A float tensor.
    Tensor,
    /// Ids.
    Ids,
    /// One or more tensors, given without a name.
    Tensors,
    /// Any number.
    Number,
    /// A whole number, at least 1.
    Size,
    /// A whole number, at least 0: the place of a dim.
    Index,
    /// A list of sizes.
    Sizes,
    /// `true` or `false`.
    Flag,
    /// A mask.
    Mask,
}

impl Expects {
    /// As reports say it.
    pub fn words(self) -> &'static str {
        match self {
            Expects::Tensor => "a tensor",
            Expects::Ids => "ids",
            Expects::Tensors => "tensors",
            Expects::Number => "a number",
            Expects::Size => "a whole number of at least 1",
            Expects::Index => "the place of a dim, counted from 0",
            Expects::Sizes => "a list of sizes",
            Expects::Flag => "`true` or `false`",
            Expects::Mask => "a mask",
        }
    }
}

/// How a call becomes something.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Build {
    /// Ops.
    Ops(fn(&mut dyn Emit, &Arguments) -> Result<Vec<ValueId>, Misuse>),
    /// A function of a tensor or of a number, as the argument is: `sqrt`.
    OpsOrNumber(fn(&mut dyn Emit, &Arguments) -> Result<Vec<ValueId>, Misuse>, fn(f64) -> f64),
    /// A number from numbers.
    Number(fn(f64, f64) -> f64),
    /// A way to start a parameter.
    Init(fn(&Arguments) -> Init),
    /// A mask.
    Mask(fn(&Arguments) -> Mask),
}

/// A checked argument.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Argument {
    /// A tensor.
    Tensor(ValueId),
    /// Several.
    Tensors(Vec<ValueId>),
    /// A number.
    Number(f64),
    /// A size and what it is called.
    Size(Dim),
    /// Several.
    Sizes(Vec<Dim>),
    /// A flag.
    Flag(bool),
    /// A mask.
    Mask(Mask),
}

/// A call's checked arguments, one a parameter; `None` where an optional one was left out.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Arguments {
    /// By parameter.
    pub values: Vec<Option<Argument>>,
    /// Where each was written.
    pub places: Vec<Option<Span>>,
    /// Where a number's value was said.
    pub origins: Vec<Option<Span>>,
}

/// The accessors' kinds were checked against [`Parameter::expects`] before.
impl Arguments {
    /// The tensor of parameter `i`.
    pub fn tensor(&self, i: usize) -> ValueId {
        match &self.values[i] {
            Some(Argument::Tensor(v)) => *v,
            other => unreachable!("parameter {i} was checked to be a tensor, and is {other:?}"),
        }
    }

    /// The tensors of parameter `i`.
    pub fn tensors(&self, i: usize) -> &[ValueId] {
        match &self.values[i] {
            Some(Argument::Tensors(vs)) => vs,
            other => unreachable!("parameter {i} was checked to be tensors, and is {other:?}"),
        }
    }

    /// The number of parameter `i`.
    pub fn number(&self, i: usize) -> Option<f64> {
        match &self.values[i] {
            Some(Argument::Number(x)) => Some(*x),
            _ => None,
        }
    }

    /// The size of parameter `i`.
    pub fn size(&self, i: usize) -> Option<&Dim> {
        match &self.values[i] {
            Some(Argument::Size(dim)) => Some(dim),
            _ => None,
        }
    }

    /// The sizes of parameter `i`.
    pub fn sizes(&self, i: usize) -> &[Dim] {
        match &self.values[i] {
            Some(Argument::Sizes(dims)) => dims,
            _ => &[],
        }
    }

    /// The flag of parameter `i`; false where it was left out.
    pub fn flag(&self, i: usize) -> bool {
        matches!(self.values[i], Some(Argument::Flag(true)))
    }

    /// The mask of parameter `i`.
    pub fn mask(&self, i: usize) -> Option<&Mask> {
        match &self.values[i] {
            Some(Argument::Mask(mask)) => Some(mask),
            _ => None,
        }
    }
}

/// Why a call cannot become ops.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Misuse {
    /// An op does not accept its operands.
    Shape {
        /// Its operands.
        inputs: Vec<ValueId>,
        /// What is wrong.
        error: ShapeError,
    },
    /// A width is no multiple of the number of heads.
    Heads {
        /// The parameter that says how many.
        param: usize,
        /// How many.
        heads: Dim,
        /// The tensor whose last dim is the width.
        tensor: ValueId,
    },
    /// A limit of the compiler.
    Limit {
        /// What passes it.
        what: String,
        /// The limit.
        limit: String,
    },
    /// A parameter's value is out of range.
    Range {
        /// The parameter.
        param: usize,
        /// `must be at least 0 and less than 1`
        message: String,
    },
}

/// What a function may do.
pub(crate) trait Emit {
    /// Emits an op.
    fn emit(&mut self, op: Arc<dyn Op>, inputs: &[ValueId]) -> Result<Vec<ValueId>, Misuse>;
    /// The type of a value.
    fn ty(&self, value: ValueId) -> TensorType;
    /// An input of the runtime.
    fn input(&mut self, input: Input) -> ValueId;
    /// A table.
    fn table(&mut self, table: Table, ty: TensorType) -> ValueId;
    /// A free random site; in a repeat, the first of one a turn.
    fn site(&mut self) -> u32;
    /// Whether dropout acts.
    fn training(&self) -> bool;
    /// What `value` is the transpose of, if it is one of a matrix.
    fn transposed(&self, value: ValueId) -> Option<ValueId>;
    /// Notes what the loss compares with the targets.
    fn mark_logits(&mut self, value: ValueId);
}

/// Emits an op of one result.
pub(crate) fn emit_one(
    e: &mut dyn Emit,
    op: impl Op + 'static,
    inputs: &[ValueId],
) -> Result<ValueId, Misuse> {
    let results = e.emit(Arc::new(op), inputs)?;
    match results.first() {
        Some(value) => Ok(*value),
        None => unreachable!("an op has a result"),
    }
}
