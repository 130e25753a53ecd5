//! How parameters start.

use dspc_spec::body::Builtin;

use super::function::{Build, Expects, Function, Parameter};
use crate::ir::Init;

pub(crate) const ZEROS: Function = Function {
    builtin: Builtin { name: "zeros", signature: "zeros", doc: "A parameter that starts at 0." },
    params: &[],
    build: Build::Init(|_| Init::Zeros),
};

pub(crate) const ONES: Function = Function {
    builtin: Builtin { name: "ones", signature: "ones", doc: "A parameter that starts at 1." },
    params: &[],
    build: Build::Init(|_| Init::Ones),
};

pub(crate) const NORMAL: Function = Function {
    builtin: Builtin {
        name: "normal",
        signature: "normal(deviation)",
        doc: "A parameter that starts at random: normal, mean 0, this standard deviation.",
    },
    params: &[Parameter::required("deviation", Expects::Number)],
    build: Build::Init(|args| Init::Normal(args.number(0).unwrap_or(0.0))),
};

pub(crate) const UNIFORM: Function = Function {
    builtin: Builtin {
        name: "uniform",
        signature: "uniform(limit)",
        doc: "A parameter that starts at random: uniform between minus and plus this limit.",
    },
    params: &[Parameter::required("limit", Expects::Number)],
    build: Build::Init(|args| Init::Uniform(args.number(0).unwrap_or(0.0))),
};
