//! Definitions: callees by full name, parentheses only where the grouping needs them.

use super::quoted;
use crate::body::*;
use crate::numbers::number;

/// `std::gpt2::block`, or the bare name of one of the user's.
pub(super) fn full_name(definition: &Definition) -> String {
    match definition.module.as_str() {
        "" => definition.name.value.clone(),
        module => format!("{module}::{}", definition.name.value),
    }
}

/// Appends one definition.
pub(super) fn push(text: &mut String, definition: &Definition, all: &[Definition]) {
    let printer = Printer { all };
    let kind = match definition.kind {
        Kind::Layer => "layer",
        Kind::Model => "model",
    };
    let params: Vec<_> = definition.params.iter().map(|param| printer.param(param)).collect();
    text.push_str(&format!("{kind} {}({})", full_name(definition), params.join(", ")));
    if let Some(result) = &definition.result {
        text.push_str(&format!(" -> {}", printer.result(result)));
    }
    match &definition.body {
        Body::Alias(value) => text.push_str(&format!(" = {}\n", printer.expr(value, 0))),
        Body::Block(statements) => {
            text.push_str(" {\n");
            printer.statements(text, statements, 1);
            text.push_str("}\n");
        }
    }
}

/// How tightly things bind, as in the grammar.
const OPERAND: u8 = 6;
const POSTFIX: u8 = 7;

fn strength(op: BinaryOp) -> u8 {
    match op {
        BinaryOp::Or => 1,
        BinaryOp::And => 2,
        BinaryOp::Less
        | BinaryOp::LessEqual
        | BinaryOp::Greater
        | BinaryOp::GreaterEqual
        | BinaryOp::Equal
        | BinaryOp::NotEqual => 3,
        BinaryOp::Add | BinaryOp::Subtract => 4,
        BinaryOp::Multiply | BinaryOp::Divide | BinaryOp::Remainder | BinaryOp::Matmul => 5,
    }
}

struct Printer<'a> {
    all: &'a [Definition],
}

impl Printer<'_> {
    fn param(&self, param: &DefParam) -> String {
        let name = &param.name.value;
        let ty = match &param.ty {
            ParamType::Tensor(dims) => format!("{name}: {}", self.dims(dims)),
            ParamType::Ids(dims) => format!("{name}: ids{}", self.dims(dims)),
            ParamType::Value(local) if local.value == *name => name.clone(),
            ParamType::Value(local) => format!("{name}: {}", local.value),
        };
        match &param.default {
            Some(default) => format!("{ty} = {}", self.expr(default, 0)),
            None => ty,
        }
    }

    fn dims(&self, dims: &Dims) -> String {
        let leading = dims.leading.map(|_| "..".to_string());
        let all: Vec<_> = leading.into_iter().chain(dims.dims.iter().map(|dim| self.expr(dim, 0))).collect();
        format!("[{}]", all.join(", "))
    }

    fn result(&self, result: &ResultType) -> String {
        match result {
            ResultType::Tensor(dims) => self.dims(dims),
            ResultType::Tuple(all) => {
                format!("({})", all.iter().map(|dims| self.dims(dims)).collect::<Vec<_>>().join(", "))
            }
            ResultType::Loss(_) => "loss".into(),
        }
    }

    fn statements(&self, text: &mut String, statements: &[Statement], depth: usize) {
        let indent = "  ".repeat(depth);
        for statement in statements {
            text.push_str(&indent);
            match statement {
                Statement::Param { name, dims, init } => {
                    text.push_str(&format!(
                        "param {}: {} ~ {}\n",
                        name.value,
                        self.dims(dims),
                        self.expr(init, 0)
                    ));
                }
                Statement::Bind { names, value } => {
                    let names: Vec<_> = names.iter().map(|name| name.value.as_str()).collect();
                    text.push_str(&format!("{} = {}\n", names.join(", "), self.expr(value, 0)));
                }
                Statement::Repeat { count, name, body, .. } => {
                    text.push_str(&format!("repeat {} as {} {{\n", self.expr(count, 0), name.value));
                    self.statements(text, body, depth + 1);
                    text.push_str(&format!("{indent}}}\n"));
                }
                Statement::Result(value) => text.push_str(&format!("{}\n", self.expr(value, 0))),
            }
        }
    }

    /// An expression where something of strength `outer` binds it.
    fn expr(&self, expr: &Expr, outer: u8) -> String {
        let list =
            |items: &[Expr]| items.iter().map(|item| self.expr(item, 0)).collect::<Vec<_>>().join(", ");
        match &expr.kind {
            ExprKind::Number(x) => number(*x),
            ExprKind::String(text) => quoted(text),
            ExprKind::Bool(flag) => flag.to_string(),
            ExprKind::Local(name) => name.clone(),
            ExprKind::Call(call) => self.call(call, outer),
            ExprKind::Unary(op, value) => {
                let symbol = match op {
                    UnaryOp::Negate => "-",
                    UnaryOp::Not => "!",
                };
                grouped(format!("{symbol}{}", self.expr(value, OPERAND)), outer > OPERAND)
            }
            ExprKind::Binary { op, left, right } => {
                let own = strength(op.value);
                // Left-associative: an equal on the right needs parentheses.
                let (left, right) = (self.expr(left, own), self.expr(right, own + 1));
                grouped(format!("{left} {} {right}", op.value.symbol()), outer > own)
            }
            ExprKind::Index { value, indices } => format!("{}[{}]", self.expr(value, POSTFIX), list(indices)),
            ExprKind::Range(start, end) => {
                let bound =
                    |bound: &Option<Box<Expr>>| bound.as_ref().map(|b| self.expr(b, 4)).unwrap_or_default();
                format!("{}..{}", bound(start), bound(end))
            }
            ExprKind::List(items) => format!("[{}]", list(items)),
            ExprKind::Tuple(items) => format!("({})", list(items)),
            ExprKind::Lambda(params, body) => {
                let params: Vec<_> = params.iter().map(|name| name.value.as_str()).collect();
                grouped(format!("({}) => {}", params.join(", "), self.expr(body, 0)), outer > 0)
            }
        }
    }

    fn call(&self, call: &Call, outer: u8) -> String {
        let callee = match call.callee {
            Callee::Definition(id) => self.all.get(id.0 as usize).map(full_name),
            Callee::Builtin(_) => None,
        };
        let args: Vec<_> = call
            .args
            .iter()
            .map(|arg| match &arg.name {
                Some(name) => format!("{}: {}", name.value, self.expr(&arg.value, 0)),
                None => self.expr(&arg.value, 0),
            })
            .collect();
        let text = format!("{}({})", callee.unwrap_or_else(|| call.name.value.clone()), args.join(", "));
        match &call.alias {
            Some(alias) => grouped(format!("{text} as {}", alias.value), outer > 0),
            None => text,
        }
    }
}

fn grouped(text: String, group: bool) -> String {
    if group { format!("({text})") } else { text }
}
