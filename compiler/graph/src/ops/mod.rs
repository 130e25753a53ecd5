//! The ops, one file each, and the table of functions that a spec's bodies may call.
//!
//! To add an op: a file here (type rule, gradient, f64 meaning, cost, form, tests), and its [`Function`]s in [`FUNCTIONS`].

mod attend;
mod binary;
mod cast;
mod concat;
mod cross_entropy;
mod dropout;
mod embedding;
mod fill;
mod function;
mod initializers;
mod layer_norm;
mod masks;
mod matmul;
mod numbers;
mod pad;
mod reshape;
mod rms_norm;
mod rope;
mod scale;
mod slice;
mod split;
mod spread;
mod sum;
mod sum_leading;
mod transpose;
mod unary;

pub(crate) use binary::{add, divide, multiply, subtract};
pub use cast::Cast;
pub(crate) use embedding::embedding;
pub use fill::Fill;
pub(crate) use function::{Argument, Arguments, Build, Emit, Expects, Function, Misuse, emit_one};
pub(crate) use matmul::matmul;
pub use pad::Pad;
pub(crate) use scale::{reverse_subtract, scale as scale_by, shift};
pub(crate) use slice::slice;
pub(crate) use unary::reciprocal;

pub use binary::Binary;

use std::sync::Arc;

use dspc_spec::body::Builtin;

use crate::ir::{Cost, Op, TensorType};

/// Every function a body may call; `Callee::Builtin` counts in here.
pub(crate) const FUNCTIONS: &[Function] = &[
    attend::ATTEND,
    concat::CONCAT,
    cross_entropy::CROSS_ENTROPY,
    dropout::DROPOUT,
    layer_norm::LAYER_NORM,
    rms_norm::RMS_NORM,
    rope::ROPE,
    split::SPLIT,
    reshape::RESHAPE,
    transpose::TRANSPOSE,
    sum::SUM,
    sum::MEAN,
    unary::GELU,
    unary::GELU_ERF,
    unary::SILU,
    unary::SIGMOID,
    unary::RELU,
    unary::EXP,
    unary::LOG,
    unary::TANH,
    unary::ABS,
    unary::SQRT,
    numbers::MIN,
    numbers::MAX,
    initializers::ZEROS,
    initializers::ONES,
    initializers::NORMAL,
    initializers::UNIFORM,
    masks::CAUSAL,
    masks::FULL,
    masks::WINDOW,
];

/// The functions for the checker, by the place that `Callee::Builtin` counts.
pub fn builtins() -> Vec<Builtin> {
    FUNCTIONS.iter().map(|f| f.builtin).collect()
}

/// The op that adds two values of one type: gradients of a value used twice.
pub fn sum_of_gradients() -> Arc<dyn Op> {
    Arc::new(Binary::ADD)
}

/// `x` → `dx`, `h.attn.q` → `h.attn.dq`: the gradient's name.
pub fn gradient_name(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((path, last)) => format!("{path}.d{last}"),
        None => format!("d{name}"),
    }
}

/// A cost of so many operations, each operand read and each result written once.
fn streaming(flops: f64, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
    let bytes = inputs.iter().chain(outputs).map(|t| t.bytes() as f64).sum();
    Cost { flops, bytes }
}

/// The dims as names, for reports: `[B, T, D]`.
fn shown(ty: &TensorType) -> String {
    let dims: Vec<String> =
        ty.dims
            .iter()
            .map(|d| {
                if d.name == d.size.to_string() { d.name.clone() } else { format!("{} = {}", d.name, d.size) }
            })
            .collect();
    format!("[{}]", dims.join(", "))
}
