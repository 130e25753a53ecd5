//! Who owns parameters, and that no two in one scope give them the same names.
//!
//! A parameter's full name is made of the names of the calls and repeats around it; two owners of one name in one scope would make
//! two parameters of one name.

use std::collections::BTreeMap;

use dspc_source::Span;

use crate::body::*;
use crate::errors::{Mistakes, SameParameterNames};

/// Every call of a definition in a definition's body, in the order of the text.
pub(super) fn calls_of(definition: &Definition) -> Vec<(DefinitionId, Span)> {
    let mut calls = vec![];
    let mut note = |call: &Call, span: Span| {
        if let Callee::Definition(id) = call.callee {
            calls.push((id, span));
        }
    };
    match &definition.body {
        Body::Block(statements) => visit_statements(statements, &mut note),
        Body::Alias(value) => visit(value, &mut note),
    }
    calls
}

/// Reports owners of one name in one scope.
pub(super) fn report(definitions: &[Definition], mistakes: &mut Mistakes) {
    let owners = owners(definitions);
    for definition in definitions {
        if let Body::Block(statements) = &definition.body {
            check_scope(statements, definitions, &owners, mistakes);
        }
    }
}

/// For each definition: does it have parameters, its own or those of what it calls?
fn owners(definitions: &[Definition]) -> Vec<bool> {
    let mut callers: Vec<Vec<usize>> = vec![vec![]; definitions.len()];
    for (caller, definition) in definitions.iter().enumerate() {
        for (callee, _) in calls_of(definition) {
            if let Some(callers) = callers.get_mut(callee.0 as usize) {
                callers.push(caller);
            }
        }
    }
    let mut owners: Vec<bool> =
        definitions.iter().map(|d| matches!(&d.body, Body::Block(s) if has_param(s))).collect();
    let mut open: Vec<usize> = (0..owners.len()).filter(|i| owners[*i]).collect();
    while let Some(owner) = open.pop() {
        for &caller in &callers[owner] {
            if !owners[caller] {
                owners[caller] = true;
                open.push(caller);
            }
        }
    }
    owners
}

fn has_param(statements: &[Statement]) -> bool {
    statements.iter().any(|statement| match statement {
        Statement::Param { .. } => true,
        Statement::Repeat { body, .. } => has_param(body),
        Statement::Bind { .. } | Statement::Result(_) => false,
    })
}

fn check_scope(
    statements: &[Statement],
    definitions: &[Definition],
    owners: &[bool],
    mistakes: &mut Mistakes,
) {
    let mut scope = OwnersOfScope { first: BTreeMap::new(), mistakes };
    let owns = |id: DefinitionId| owners.get(id.0 as usize) == Some(&true);
    for statement in statements {
        match statement {
            Statement::Param { name, .. } => scope.add(&name.value, name.span, false),
            Statement::Bind { value, .. } | Statement::Result(value) => visit(value, &mut |call, _| {
                let Callee::Definition(id) = call.callee else { return };
                if owns(id) {
                    match (&call.alias, definitions.get(id.0 as usize)) {
                        (Some(alias), _) => scope.add(&alias.value, alias.span, false),
                        (None, Some(definition)) => scope.add(&definition.name.value, call.name.span, true),
                        (None, None) => {}
                    }
                }
            }),
            Statement::Repeat { name, body, .. } => {
                let mut inside = has_param(body);
                visit_statements(body, &mut |call, _| {
                    inside |= matches!(call.callee, Callee::Definition(id) if owns(id))
                });
                if inside {
                    scope.add(&name.value, name.span, name.value == "repeat");
                }
            }
        }
    }
    for statement in statements {
        if let Statement::Repeat { body, .. } = statement {
            check_scope(body, definitions, owners, mistakes);
        }
    }
}

struct OwnersOfScope<'m> {
    first: BTreeMap<String, Span>,
    mistakes: &'m mut Mistakes,
}

impl OwnersOfScope<'_> {
    fn add(&mut self, name: &str, span: Span, unnamed: bool) {
        match self.first.get(name) {
            Some(&first) => {
                let free = (2..).map(|n| format!("{name}_{n}")).find(|free| !self.first.contains_key(free));
                let (path, free) = (name.to_string(), free.unwrap_or_default());
                self.mistakes.add(SameParameterNames { path, second: span, first, unnamed, free });
            }
            None => {
                self.first.insert(name.to_string(), span);
            }
        }
    }
}

fn visit_statements(statements: &[Statement], note: &mut impl FnMut(&Call, Span)) {
    for statement in statements {
        match statement {
            Statement::Param { init, .. } => visit(init, note),
            Statement::Bind { value, .. } | Statement::Result(value) => visit(value, note),
            Statement::Repeat { count, body, .. } => {
                visit(count, note);
                visit_statements(body, note);
            }
        }
    }
}

/// Every call in an expression, arguments before the call that takes them.
fn visit(expr: &Expr, note: &mut impl FnMut(&Call, Span)) {
    match &expr.kind {
        ExprKind::Number(_) | ExprKind::String(_) | ExprKind::Bool(_) | ExprKind::Local(_) => {}
        ExprKind::Call(call) => {
            call.args.iter().for_each(|arg| visit(&arg.value, note));
            note(call, expr.span);
        }
        ExprKind::Unary(_, value) | ExprKind::Lambda(_, value) => visit(value, note),
        ExprKind::Binary { left, right, .. } => {
            visit(left, note);
            visit(right, note);
        }
        ExprKind::Index { value, indices } => {
            visit(value, note);
            indices.iter().for_each(|index| visit(index, note));
        }
        ExprKind::Range(start, end) => {
            start.iter().chain(end).for_each(|bound| visit(bound, note));
        }
        ExprKind::List(items) | ExprKind::Tuple(items) => items.iter().for_each(|item| visit(item, note)),
    }
}
