//! Element-wise functions of one tensor: a row of this file's table each.

use std::fmt;
use std::sync::Arc;

use dspc_spec::body::Builtin;

use super::function::{Build, Emit, Expects, Function, Misuse, Parameter};
use super::{gradient_name, streaming};
use crate::form::Form;
use crate::interpret::Tensor;
use crate::ir::{Cost, GradientBuilder, Op, ShapeError, TensorType, ValueId};
use crate::row_builder::RowBuilder;
use crate::rowfn::{BinaryFn, NodeId, UnaryFn};

/// An element-wise function and its derivative, each as nodes and, independently, in f64.
pub(crate) struct Elementwise {
    name: &'static str,
    backward: &'static str,
    flops: f64,
    value: fn(f64) -> f64,
    slope: fn(f64) -> f64,
    value_nodes: fn(&mut RowBuilder, NodeId) -> NodeId,
    slope_nodes: fn(&mut RowBuilder, NodeId) -> NodeId,
}

impl fmt::Debug for Elementwise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

const X: &[Parameter] = &[Parameter::required("x", Expects::Tensor)];

macro_rules! function {
    ($name:ident, $table:ident, $word:literal, $doc:literal) => {
        pub(crate) const $name: Function = Function {
            builtin: Builtin { name: $word, signature: concat!($word, "(x)"), doc: $doc },
            params: X,
            build: Build::Ops(|e, args| apply(e, &$table, args.tensor(0))),
        };
    };
    ($name:ident, $table:ident, $word:literal, $doc:literal, $number:expr) => {
        pub(crate) const $name: Function = Function {
            builtin: Builtin { name: $word, signature: concat!($word, "(x)"), doc: $doc },
            params: X,
            build: Build::OpsOrNumber(|e, args| apply(e, &$table, args.tensor(0)), $number),
        };
    };
}

function!(GELU, GELU_TANH_FN, "gelu", "x · Φ(x), Φ by the tanh approximation (Hendrycks, Gimpel 2016).");
function!(GELU_ERF, GELU_ERF_FN, "gelu_erf", "x · Φ(x), Φ being the normal distribution itself.");
function!(SILU, SILU_FN, "silu", "x · sigmoid(x), also called swish.");
function!(SIGMOID, SIGMOID_FN, "sigmoid", "1 / (1 + e⁻ˣ).");
function!(RELU, RELU_FN, "relu", "x where it is positive, else 0.");
function!(EXP, EXP_FN, "exp", "eˣ, of a tensor or a number.", libm::exp);
function!(LOG, LOG_FN, "log", "Natural logarithm, of a tensor or a number.", libm::log);
function!(TANH, TANH_FN, "tanh", "Hyperbolic tangent.");
function!(ABS, ABS_FN, "abs", "x without its sign, of a tensor or a number.", f64::abs);
function!(SQRT, SQRT_FN, "sqrt", "Square root, of a tensor or a number.", f64::sqrt);

/// √(2/π)
const GELU_SCALE: f64 = 0.797_884_560_802_865_4;
const GELU_CUBE: f64 = 0.044715;
/// 1/√2
const HALF_ROOT: f64 = std::f64::consts::FRAC_1_SQRT_2;
/// 1/√(2π)
const DENSITY: f64 = 0.398_942_280_401_432_7;

static GELU_TANH_FN: Elementwise = Elementwise {
    name: "gelu",
    backward: "gelu_backward",
    flops: 10.0,
    value: |x| 0.5 * x * (1.0 + libm::tanh(GELU_SCALE * (x + GELU_CUBE * x * x * x))),
    slope: |x| {
        let t = libm::tanh(GELU_SCALE * (x + GELU_CUBE * x * x * x));
        0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * GELU_SCALE * (1.0 + 3.0 * GELU_CUBE * x * x)
    },
    value_nodes: |b, x| {
        let t = gelu_tanh(b, x);
        let one_more = b.plus(t, 1.0);
        let half = b.times(x, 0.5);
        b.multiply(half, one_more)
    },
    slope_nodes: |b, x| {
        let t = gelu_tanh(b, x);
        let one_more = b.plus(t, 1.0);
        let first = b.times(one_more, 0.5);
        let square = b.multiply(t, t);
        let one = b.number(1.0);
        let bend = b.subtract(one, square);
        let xx = b.multiply(x, x);
        let inner = b.times(xx, 3.0 * GELU_CUBE);
        let inner = b.plus(inner, 1.0);
        let inner = b.times(inner, 0.5 * GELU_SCALE);
        let second = b.multiply(x, bend);
        let second = b.multiply(second, inner);
        b.add(first, second)
    },
};

fn gelu_tanh(b: &mut RowBuilder, x: NodeId) -> NodeId {
    let xx = b.multiply(x, x);
    let cube = b.times(xx, GELU_CUBE);
    let cube = b.plus(cube, 1.0);
    let inner = b.multiply(x, cube);
    let inner = b.times(inner, GELU_SCALE);
    b.unary(UnaryFn::Tanh, inner)
}

static GELU_ERF_FN: Elementwise = Elementwise {
    name: "gelu_erf",
    backward: "gelu_erf_backward",
    flops: 8.0,
    value: |x| 0.5 * x * (1.0 + libm::erf(x * HALF_ROOT)),
    slope: |x| 0.5 * (1.0 + libm::erf(x * HALF_ROOT)) + x * DENSITY * libm::exp(-0.5 * x * x),
    value_nodes: |b, x| {
        let phi = normal_distribution(b, x);
        b.multiply(x, phi)
    },
    slope_nodes: |b, x| {
        let phi = normal_distribution(b, x);
        let xx = b.multiply(x, x);
        let exponent = b.times(xx, -0.5);
        let density = b.unary(UnaryFn::Exp, exponent);
        let density = b.times(density, DENSITY);
        let second = b.multiply(x, density);
        b.add(phi, second)
    },
};

fn normal_distribution(b: &mut RowBuilder, x: NodeId) -> NodeId {
    let scaled = b.times(x, HALF_ROOT);
    let erf = b.unary(UnaryFn::Erf, scaled);
    let one_more = b.plus(erf, 1.0);
    b.times(one_more, 0.5)
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

fn sigmoid_nodes(b: &mut RowBuilder, x: NodeId) -> NodeId {
    let minus = b.negate(x);
    let e = b.unary(UnaryFn::Exp, minus);
    let one_more = b.plus(e, 1.0);
    b.unary(UnaryFn::Reciprocal, one_more)
}

static SILU_FN: Elementwise = Elementwise {
    name: "silu",
    backward: "silu_backward",
    flops: 5.0,
    value: |x| x * sigmoid(x),
    slope: |x| sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x))),
    value_nodes: |b, x| {
        let s = sigmoid_nodes(b, x);
        b.multiply(x, s)
    },
    slope_nodes: |b, x| {
        let s = sigmoid_nodes(b, x);
        let one = b.number(1.0);
        let rest = b.subtract(one, s);
        let inner = b.multiply(x, rest);
        let inner = b.plus(inner, 1.0);
        b.multiply(s, inner)
    },
};

static SIGMOID_FN: Elementwise = Elementwise {
    name: "sigmoid",
    backward: "sigmoid_backward",
    flops: 4.0,
    value: sigmoid,
    slope: |x| sigmoid(x) * (1.0 - sigmoid(x)),
    value_nodes: sigmoid_nodes,
    slope_nodes: |b, x| {
        let s = sigmoid_nodes(b, x);
        let one = b.number(1.0);
        let rest = b.subtract(one, s);
        b.multiply(s, rest)
    },
};

static RELU_FN: Elementwise = Elementwise {
    name: "relu",
    backward: "relu_backward",
    flops: 1.0,
    value: |x| x.max(0.0),
    slope: |x| f64::from(u8::from(x > 0.0)),
    value_nodes: |b, x| {
        let zero = b.number(0.0);
        b.binary(BinaryFn::Max, x, zero)
    },
    slope_nodes: |b, x| {
        let (zero, one) = (b.number(0.0), b.number(1.0));
        let positive = b.binary(BinaryFn::Less, zero, x);
        b.select(positive, one, zero)
    },
};

static EXP_FN: Elementwise = Elementwise {
    name: "exp",
    backward: "exp_backward",
    flops: 1.0,
    value: libm::exp,
    slope: libm::exp,
    value_nodes: |b, x| b.unary(UnaryFn::Exp, x),
    slope_nodes: |b, x| b.unary(UnaryFn::Exp, x),
};

static LOG_FN: Elementwise = Elementwise {
    name: "log",
    backward: "log_backward",
    flops: 1.0,
    value: libm::log,
    slope: |x| 1.0 / x,
    value_nodes: |b, x| b.unary(UnaryFn::Log, x),
    slope_nodes: |b, x| b.unary(UnaryFn::Reciprocal, x),
};

static TANH_FN: Elementwise = Elementwise {
    name: "tanh",
    backward: "tanh_backward",
    flops: 1.0,
    value: libm::tanh,
    slope: |x| 1.0 - libm::tanh(x) * libm::tanh(x),
    value_nodes: |b, x| b.unary(UnaryFn::Tanh, x),
    slope_nodes: |b, x| {
        let t = b.unary(UnaryFn::Tanh, x);
        let square = b.multiply(t, t);
        let one = b.number(1.0);
        b.subtract(one, square)
    },
};

static ABS_FN: Elementwise = Elementwise {
    name: "abs",
    backward: "abs_backward",
    flops: 1.0,
    value: f64::abs,
    slope: |x| f64::from(u8::from(x > 0.0)) - f64::from(u8::from(x < 0.0)),
    value_nodes: |b, x| b.unary(UnaryFn::Abs, x),
    slope_nodes: |b, x| {
        let (zero, one, minus) = (b.number(0.0), b.number(1.0), b.number(-1.0));
        let positive = b.binary(BinaryFn::Less, zero, x);
        let negative = b.binary(BinaryFn::Less, x, zero);
        let below = b.select(negative, minus, zero);
        b.select(positive, one, below)
    },
};

static SQRT_FN: Elementwise = Elementwise {
    name: "sqrt",
    backward: "sqrt_backward",
    flops: 1.0,
    value: f64::sqrt,
    slope: |x| 0.5 / x.sqrt(),
    value_nodes: |b, x| b.unary(UnaryFn::Sqrt, x),
    slope_nodes: |b, x| {
        let r = b.unary(UnaryFn::Rsqrt, x);
        b.times(r, 0.5)
    },
};

static RECIPROCAL_FN: Elementwise = Elementwise {
    name: "reciprocal",
    backward: "reciprocal_backward",
    flops: 1.0,
    value: |x| 1.0 / x,
    slope: |x| -1.0 / (x * x),
    value_nodes: |b, x| b.unary(UnaryFn::Reciprocal, x),
    slope_nodes: |b, x| {
        let r = b.unary(UnaryFn::Reciprocal, x);
        let square = b.multiply(r, r);
        b.negate(square)
    },
};

fn apply(e: &mut dyn Emit, f: &'static Elementwise, x: ValueId) -> Result<Vec<ValueId>, Misuse> {
    Ok(vec![super::emit_one(e, Unary(f), &[x])?])
}

/// `1 / x`, for a number over a tensor.
pub(crate) fn reciprocal(e: &mut dyn Emit, x: ValueId) -> Result<ValueId, Misuse> {
    super::emit_one(e, Unary(&RECIPROCAL_FN), &[x])
}

/// `y = f(x)`
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unary(&'static Elementwise);

/// Operands x, dy; result `dx = dy · f'(x)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UnaryBackward(&'static Elementwise);

impl Op for Unary {
    fn name(&self) -> &'static str {
        self.0.name
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        Ok(vec![inputs[0].clone()])
    }

    fn gradient(
        &self,
        g: &mut dyn GradientBuilder,
        inputs: &[ValueId],
        _outputs: &[ValueId],
        grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        let Some(dy) = grads[0] else { return vec![None] };
        let name = gradient_name(&g.name(inputs[0]));
        vec![Some(g.emit(Arc::new(UnaryBackward(self.0)), &[inputs[0], dy], &name)[0])]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        vec![inputs[0].map(self.0.value)]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        streaming(self.0.flops * inputs[0].elements() as f64, inputs, outputs)
    }

    fn form(&self, inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        let mut b = RowBuilder::new(inputs[0].rows(), inputs[0].cols());
        let x = b.element();
        let y = (self.0.value_nodes)(&mut b, x);
        b.yield_element(y);
        Form::Row(b.finish())
    }
}

impl Op for UnaryBackward {
    #[expect(clippy::misnamed_getters, reason = "the table's `name` is the forward op's")]
    fn name(&self) -> &'static str {
        self.0.backward
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        if inputs[0].dims != inputs[1].dims {
            return Err(ShapeError::new(0, 1, "the gradient has other dims than the result"));
        }
        Ok(vec![inputs[0].clone()])
    }

    fn gradient(
        &self,
        _g: &mut dyn GradientBuilder,
        _inputs: &[ValueId],
        _outputs: &[ValueId],
        _grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        vec![None, None]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let (x, dy) = (inputs[0], inputs[1]);
        vec![Tensor::from_fn(&x.dims, |i| dy.data[i] * (self.0.slope)(x.data[i]))]
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        streaming((self.0.flops + 4.0) * inputs[0].elements() as f64, inputs, outputs)
    }

    fn form(&self, inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        let mut b = RowBuilder::new(inputs[0].rows(), inputs[0].cols());
        let (x, dy) = (b.element(), b.element());
        let slope = (self.0.slope_nodes)(&mut b, x);
        let dx = b.multiply(dy, slope);
        b.yield_element(dx);
        Form::Row(b.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[&Elementwise] = &[
        &GELU_TANH_FN,
        &GELU_ERF_FN,
        &SILU_FN,
        &SIGMOID_FN,
        &RELU_FN,
        &EXP_FN,
        &LOG_FN,
        &TANH_FN,
        &ABS_FN,
        &SQRT_FN,
        &RECIPROCAL_FN,
    ];

    #[test]
    fn slopes_are_slopes() {
        for f in TABLE {
            for x in [0.3, 1.1, 2.7] {
                let h = 1e-5;
                let slope = ((f.value)(x + h) - (f.value)(x - h)) / (2.0 * h);
                assert!((slope - (f.slope)(x)).abs() < 1e-7, "{f:?} at {x}");
            }
        }
    }

    #[test]
    fn known_values() {
        assert!(((GELU_TANH_FN.value)(1.0) - 0.841_191_990_608_3).abs() < 1e-12);
        assert!(((GELU_ERF_FN.value)(1.0) - 0.841_344_746_068_5).abs() < 1e-12);
        assert!(((SILU_FN.value)(1.0) - 0.731_058_578_630_0).abs() < 1e-12);
    }
}
