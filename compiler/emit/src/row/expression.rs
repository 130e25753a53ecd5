//! One node of a row function as operations, for as many lanes as its operands have.

use super::analysis::{Analysis, Kind};
use super::math::{self, Target};
use crate::cpu::memory::{narrow, widen};
use crate::mlir::{Element, Function, Order, Type, Value};
use dspc_graph::ir::DType;
use dspc_graph::rowfn::{BinaryFn, Node, NodeId, UnaryFn};

/// Emits a node that touches neither memory nor position: constants and functions. `operand` gives the value of each node it uses.
pub(crate) fn emit_pure(
    f: &mut Function,
    target: Target,
    analysis: &Analysis,
    node: &Node,
    lanes: u32,
    operand: impl Fn(NodeId) -> Result<Value, String>,
) -> Result<Value, String> {
    Ok(match node {
        Node::Const(x) => f.float(lanes, *x as f32),
        Node::ConstInt(x) => f.int(Type::vector(Element::I32, lanes), (*x).into()),
        Node::Unary(function, x) => {
            let kind = analysis.kind_of(*x);
            unary(f, target, *function, kind, operand(*x)?)
        }
        Node::Binary(function, a, b) => {
            let kind = analysis.kind_of(*a);
            binary(f, *function, kind, operand(*a)?, operand(*b)?)
        }
        Node::Select(condition, a, b) => {
            let (condition, a, b) = (operand(*condition)?, operand(*a)?, operand(*b)?);
            f.select(condition, a, b)
        }
        Node::Load(_) | Node::LoadAt(..) | Node::Column | Node::Reduce(..) | Node::Uniform { .. } => {
            return Err(format!("{node:?} is no function of values alone"));
        }
    })
}

fn unary(f: &mut Function, target: Target, function: UnaryFn, kind: Kind, x: Value) -> Value {
    match function {
        UnaryFn::Negate if kind == Kind::Int => {
            let zero = f.int(x.ty, 0);
            f.subi(zero, x)
        }
        UnaryFn::Negate => f.neg(x),
        UnaryFn::Exp => math::exp(f, target, x),
        UnaryFn::Log => math::log(f, target, x),
        UnaryFn::Sqrt => math::sqrt(f, target, x),
        UnaryFn::Rsqrt => math::rsqrt(f, target, x),
        UnaryFn::Reciprocal => {
            let one = f.float(x.lanes(), 1.0);
            f.div(one, x)
        }
        UnaryFn::Tanh => math::tanh(f, x),
        UnaryFn::Erf => math::erf(f, x),
        UnaryFn::Abs => f.abs(x),
        UnaryFn::IsFinite => {
            let size = f.abs(x);
            let infinity = f.float(x.lanes(), f32::INFINITY);
            f.compare("olt", size, infinity)
        }
        UnaryFn::ToFloat => f.float_of_int(x),
        UnaryFn::RoundBf16 => {
            let bits = narrow(f, DType::Bf16, x);
            widen(f, DType::Bf16, bits)
        }
        UnaryFn::Not => {
            let truth = f.int(x.ty, 1);
            f.xor(x, truth)
        }
    }
}

fn binary(f: &mut Function, function: BinaryFn, kind: Kind, a: Value, b: Value) -> Value {
    let ints = kind == Kind::Int;
    match function {
        BinaryFn::Add if ints => f.addi(a, b),
        BinaryFn::Subtract if ints => f.subi(a, b),
        BinaryFn::Multiply if ints => f.muli(a, b),
        BinaryFn::Less if ints => f.order(Order::Less, a, b),
        BinaryFn::LessEqual if ints => f.order(Order::LessEqual, a, b),
        BinaryFn::Equal if ints => f.order(Order::Equal, a, b),
        BinaryFn::Add => f.add(a, b),
        BinaryFn::Subtract => f.sub(a, b),
        BinaryFn::Multiply => f.mul(a, b),
        BinaryFn::Divide => f.div(a, b),
        BinaryFn::Min => f.min(a, b),
        BinaryFn::Max => f.max(a, b),
        BinaryFn::Less => f.compare("olt", a, b),
        BinaryFn::LessEqual => f.compare("ole", a, b),
        BinaryFn::Equal => f.compare("oeq", a, b),
        BinaryFn::And => f.and(a, b),
        BinaryFn::Or => f.or(a, b),
    }
}

/// A node's value as its result holds it in registers: floats as they are, conditions as 1 and 0, ints as floats if need be.
pub(crate) fn for_result(f: &mut Function, kind: Kind, float: bool, x: Value) -> Value {
    match (kind, float) {
        (Kind::Float, _) | (Kind::Int, false) => x,
        (Kind::Int, true) => f.float_of_int(x),
        (Kind::Bool, true) => {
            let (one, zero) = (f.float(x.lanes(), 1.0), f.float(x.lanes(), 0.0));
            f.select(x, one, zero)
        }
        (Kind::Bool, false) => f.zero_extend(x, Element::I32),
    }
}
