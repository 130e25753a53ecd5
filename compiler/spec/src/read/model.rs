//! The compile-time arguments of the model's call, and the sizes that settings must agree with.

use std::collections::BTreeMap;

use dspc_grammar::ast::{Expr, ExprKind};
use dspc_source::Span;

use super::Reader;
use crate::body::{self, BinaryOp, Body, Callee, Definition, ModelCall, Name, UnaryOp, Value};
use crate::errors::WrongUnit;
use crate::units::Dimension;

/// Reads the arguments' values; one that is wrong is reported, and then the whole is `None`.
pub(crate) fn read_model_arguments(
    reader: &mut Reader<'_>,
    args: &[(Name, &Expr)],
) -> Option<Vec<(Name, Value)>> {
    let values: Vec<_> = args
        .iter()
        .map(|(name, expr)| Some((name.clone(), reader.model_value(&name.value, expr)?)))
        .collect();
    values.into_iter().collect()
}

impl Reader<'_> {
    fn model_value(&mut self, place: &str, expr: &Expr) -> Option<Value> {
        match &expr.kind {
            ExprKind::Paren(inner) => self.model_value(place, inner),
            ExprKind::Bool(flag) => Some(Value::Bool(*flag)),
            ExprKind::String(text) => Some(Value::String(text.clone())),
            _ => {
                let q = self.quantity(expr)?;
                if matches!(q.dimension, Dimension::Bytes | Dimension::Time) {
                    let expected = "a number".to_string();
                    let place = place.to_string();
                    self.mistakes.add(WrongUnit {
                        value: expr.span,
                        found: q.dimension,
                        place,
                        expected,
                        meant: None,
                    });
                    return None;
                }
                Some(Value::Number(q.value))
            }
        }
    }
}

/// A size of the model that settings must agree with, and where it was said.
#[derive(Clone, Copy)]
pub(crate) struct ModelSizes {
    /// Positions that the model has.
    pub context: Option<(f64, Span)>,
    /// Ids that the model has embeddings for.
    pub vocab: Option<(f64, Span)>,
}

impl ModelSizes {
    /// Looks up `context` and `vocab` through the models that only fix another's sizes.
    pub fn of(model: &ModelCall, definitions: &[Definition], arg_spans: &BTreeMap<String, Span>) -> Self {
        let find = |name: &str| {
            let value = size(name, model, definitions)?;
            Some((value, arg_spans.get(name).copied().unwrap_or(model.span)))
        };
        ModelSizes { context: find("context"), vocab: find("vocab") }
    }
}

/// The value of a compile-time parameter of the model called or of the one that it stands for.
fn size(name: &str, model: &ModelCall, definitions: &[Definition]) -> Option<f64> {
    let mut definition = definitions.get(model.definition.0 as usize)?;
    let numbers = model.args.iter().filter_map(|(name, value)| match value {
        Value::Number(x) => Some((name.value.clone(), *x)),
        Value::Bool(_) | Value::String(_) => None,
    });
    let mut args: BTreeMap<String, f64> = numbers.collect();
    // Recursion is refused elsewhere; the bound keeps a circle of aliases finite here.
    for _ in 0..=definitions.len() {
        let bound = bind(definition, &args);
        if let Some(param) = definition.params.iter().find(|param| param.name.value == name) {
            return bound.get(local_name(param)?).copied();
        }
        let Body::Alias(body::Expr { kind: body::ExprKind::Call(call), .. }) = &definition.body else {
            return None;
        };
        let Callee::Definition(next) = call.callee else { return None };
        definition = definitions.get(next.0 as usize)?;
        args = call
            .args
            .iter()
            .filter_map(|arg| Some((arg.name.as_ref()?.value.clone(), evaluate(&arg.value, &bound)?)))
            .collect();
    }
    None
}

fn local_name(param: &body::DefParam) -> Option<&str> {
    match &param.ty {
        body::ParamType::Value(local) => Some(&local.value),
        body::ParamType::Tensor(_) | body::ParamType::Ids(_) => None,
    }
}

/// The compile-time values of a definition's body, by the names that it knows them by.
fn bind(definition: &Definition, args: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let mut bound = BTreeMap::new();
    for param in &definition.params {
        let Some(local) = local_name(param) else { continue };
        let default = || evaluate(param.default.as_ref()?, &bound);
        if let Some(value) = args.get(&param.name.value).copied().or_else(default) {
            bound.insert(local.to_string(), value);
        }
    }
    bound
}

/// The value of arithmetic on known sizes, if it is that.
fn evaluate(expr: &body::Expr, known: &BTreeMap<String, f64>) -> Option<f64> {
    match &expr.kind {
        body::ExprKind::Number(x) => Some(*x),
        body::ExprKind::Local(name) => known.get(name).copied(),
        body::ExprKind::Unary(UnaryOp::Negate, value) => Some(-evaluate(value, known)?),
        body::ExprKind::Binary { op, left, right } => {
            let (l, r) = (evaluate(left, known)?, evaluate(right, known)?);
            match op.value {
                BinaryOp::Add => Some(l + r),
                BinaryOp::Subtract => Some(l - r),
                BinaryOp::Multiply => Some(l * r),
                BinaryOp::Divide => Some(l / r),
                BinaryOp::Remainder => Some(l.rem_euclid(r)),
                BinaryOp::Or
                | BinaryOp::And
                | BinaryOp::Less
                | BinaryOp::LessEqual
                | BinaryOp::Greater
                | BinaryOp::GreaterEqual
                | BinaryOp::Equal
                | BinaryOp::NotEqual
                | BinaryOp::Matmul => None,
            }
        }
        body::ExprKind::String(_)
        | body::ExprKind::Bool(_)
        | body::ExprKind::Call(_)
        | body::ExprKind::Unary(..)
        | body::ExprKind::Index { .. }
        | body::ExprKind::Range(..)
        | body::ExprKind::List(_)
        | body::ExprKind::Tuple(_)
        | body::ExprKind::Lambda(..) => None,
    }
}
