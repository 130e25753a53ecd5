//! Functions of compile-time numbers.

use dspc_spec::body::Builtin;

use super::function::{Build, Expects, Function, Parameter};

const TWO: &[Parameter] =
    &[Parameter::required("a", Expects::Number), Parameter::required("b", Expects::Number)];

pub(crate) const MIN: Function = Function {
    builtin: Builtin { name: "min", signature: "min(a, b)", doc: "The smaller of two numbers." },
    params: TWO,
    build: Build::Number(f64::min),
};

pub(crate) const MAX: Function = Function {
    builtin: Builtin { name: "max", signature: "max(a, b)", doc: "The larger of two numbers." },
    params: TWO,
    build: Build::Number(f64::max),
};
