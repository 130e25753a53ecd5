//! Calls: what is called, with which arguments, under which name.

use std::collections::BTreeMap;

use dspc_grammar::ast;
use dspc_source::Span;

use super::body::Context;
use super::modules::Found;
use super::{Resolver, is_function, path_name};
use crate::body::*;
use crate::errors::*;

impl<'a> Resolver<'a, '_> {
    pub(super) fn call(
        &mut self,
        cx: &mut Context<'a>,
        path: &'a ast::Path,
        args: &'a [ast::Arg],
        alias: Option<&Name>,
        span: Span,
    ) -> Expr {
        let name = path_name(path, span);
        let resolved =
            args.iter().map(|arg| Arg { name: arg.name.clone(), value: self.expr(cx, &arg.value) }).collect();
        let Some(found) = self.find(cx.place, path, &name) else {
            return Expr { kind: ExprKind::Number(0.0), span };
        };
        match found {
            Found::Definition(_, Kind::Model, definition) => {
                let defined = definition.name.span;
                self.mistakes.add(WrongKind { callee: name.clone(), is_model: true, defined });
            }
            Found::Definition(_, Kind::Layer, definition) => self.check_arguments(&name, definition, args),
            Found::Builtin(index) => self.check_builtin(index, &name, args, alias),
        }
        let callee = self.callee(found);
        Expr { kind: ExprKind::Call(Call { callee, name, args: resolved, alias: alias.cloned() }), span }
    }

    pub(super) fn named_call(
        &mut self,
        cx: &mut Context<'a>,
        value: &'a ast::Expr,
        alias: &Name,
        span: Span,
    ) -> Expr {
        match &value.kind {
            ast::ExprKind::Call { callee, args } => self.call(cx, callee, args, Some(alias), span),
            ast::ExprKind::Paren(inner) => self.named_call(cx, inner, alias, span),
            _ => {
                self.mistakes.add(NothingToName { alias: alias.clone(), value: value.span, function: None });
                self.expr(cx, value)
            }
        }
    }

    /// `model medium(context: C = 1024) = gpt2(layers: 24, …)`
    pub(super) fn model_alias(&mut self, cx: &mut Context<'a>, value: &'a ast::Expr) -> Expr {
        let nothing = Expr { kind: ExprKind::Number(0.0), span: value.span };
        let ast::ExprKind::Call { callee: path, args } = &value.kind else {
            if !matches!(value.kind, ast::ExprKind::Bad) {
                let name = cx.definition.name.clone();
                self.mistakes.add(WrongResult { name, place: value.span, is_model: true });
            }
            return nothing;
        };
        let name = path_name(path, value.span);
        let resolved =
            args.iter().map(|arg| Arg { name: arg.name.clone(), value: self.expr(cx, &arg.value) }).collect();
        let Some(found) = self.find(cx.place, path, &name) else { return nothing };
        match found {
            Found::Definition(_, Kind::Model, definition) => {
                self.model_arguments(&name, definition, args);
            }
            Found::Definition(_, Kind::Layer, definition) => {
                let defined = definition.name.span;
                self.mistakes.add(WrongKind { callee: name.clone(), is_model: false, defined });
            }
            Found::Builtin(_) => {
                let name = cx.definition.name.clone();
                self.mistakes.add(WrongResult { name, place: value.span, is_model: true });
            }
        }
        let callee = self.callee(found);
        Expr { kind: ExprKind::Call(Call { callee, name, args: resolved, alias: None }), span: value.span }
    }

    /// Checks a model's arguments, all of them sizes by name, and pairs each with its value.
    pub(super) fn model_arguments<'e>(
        &mut self,
        callee: &Name,
        definition: &ast::Definition,
        args: &'e [ast::Arg],
    ) -> Vec<(Name, &'e ast::Expr)> {
        let sizes = || definition.params.iter().filter(|param| matches!(param.ty, ast::ParamType::Value(_)));
        let known: Vec<String> = sizes().map(|param| param.name.value.clone()).collect();
        let defined = definition.name.span;
        let mut given: Vec<(Name, &ast::Expr)> = vec![];
        for arg in args {
            let Some(name) = &arg.name else {
                let (arg, callee, known) = (arg.value.span, callee.value.clone(), known.clone());
                self.mistakes.add(ModelArgument { arg, callee, known, defined });
                continue;
            };
            if let Some((first, _)) = given.iter().find(|(first, _)| first.value == name.value) {
                let (name, first, second) = (name.value.clone(), first.span, name.span);
                self.mistakes.add(ArgumentTwice { name, second, first });
            } else if known.contains(&name.value) {
                given.push((name.clone(), &arg.value));
            } else {
                let (name, callee, known) = (name.clone(), callee.value.clone(), known.clone());
                self.mistakes.add(UnknownArgument { name, callee, known, defined: Some(defined) });
            }
        }
        let lacks = |param: &&ast::DefParam| {
            param.default.is_none() && !given.iter().any(|(n, _)| n.value == param.name.value)
        };
        let names: Vec<String> = sizes().filter(lacks).map(|param| param.name.value.clone()).collect();
        self.report_missing(names, callee, definition);
        given
    }

    /// Checks a layer's arguments: in their places first, then by name.
    fn check_arguments(&mut self, callee: &Name, definition: &ast::Definition, args: &[ast::Arg]) {
        let defined = Some(definition.name.span);
        let mut given: BTreeMap<&str, Span> = BTreeMap::new();
        for (i, arg) in args.iter().enumerate() {
            let (param, place) = match &arg.name {
                Some(name) => {
                    (definition.params.iter().find(|param| param.name.value == name.value), name.span)
                }
                None => (definition.params.get(i), arg.value.span),
            };
            let callee = callee.value.clone();
            match (param, &arg.name) {
                (Some(param), _) => {
                    if let Some(first) = given.insert(&param.name.value, place) {
                        let name = param.name.value.clone();
                        self.mistakes.add(ArgumentTwice { name, second: place, first });
                    }
                }
                (None, Some(name)) => {
                    let known = definition.params.iter().map(|param| param.name.value.clone()).collect();
                    self.mistakes.add(UnknownArgument { name: name.clone(), callee, known, defined });
                }
                (None, None) => {
                    let (takes, usage) = (definition.params.len(), usage(&callee, definition));
                    self.mistakes.add(TooManyArguments { extra: place, callee, takes, usage, defined });
                }
            }
        }
        let lacks = |param: &&ast::DefParam| {
            param.default.is_none() && !given.contains_key(param.name.value.as_str())
        };
        let names = definition.params.iter().filter(lacks).map(|param| param.name.value.clone()).collect();
        self.report_missing(names, callee, definition);
    }

    fn report_missing(&mut self, names: Vec<String>, callee: &Name, definition: &ast::Definition) {
        if !names.is_empty() {
            let usage = usage(&callee.value, definition);
            let defined = Some(definition.name.span);
            self.mistakes.add(ArgumentMissing { names, callee: callee.clone(), usage, defined });
        }
    }

    fn check_builtin(&mut self, index: u32, name: &Name, args: &[ast::Arg], alias: Option<&Name>) {
        let Some(builtin) = self.builtins.get(index as usize) else { return };
        if let Some(alias) = alias {
            let function = Some(name.value.clone());
            self.mistakes.add(NothingToName { alias: alias.clone(), value: name.span, function });
        }
        if !is_function(builtin) {
            if let Some(first) = args.first() {
                let (extra, callee) = (first.value.span, name.value.clone());
                let usage = builtin.signature.to_string();
                self.mistakes.add(TooManyArguments { extra, callee, takes: 0, usage, defined: None });
            }
            return;
        }
        let known = parameters(builtin.signature);
        let mut given: BTreeMap<&str, Span> = BTreeMap::new();
        for arg in args.iter().filter_map(|arg| arg.name.as_ref()) {
            if let Some(first) = given.insert(&arg.value, arg.span) {
                self.mistakes.add(ArgumentTwice { name: arg.value.clone(), second: arg.span, first });
            }
            if !known.iter().any(|known| *known == arg.value) {
                let known = known.iter().map(|known| known.to_string()).collect();
                self.mistakes.add(UnknownArgument {
                    name: arg.clone(),
                    callee: name.value.clone(),
                    known,
                    defined: None,
                });
            }
        }
    }
}

/// How a definition is called: `block(x, heads: …)`; arguments that have a default are left out.
fn usage(callee: &str, definition: &ast::Definition) -> String {
    let is_layer = |param: &ast::DefParam| !matches!(param.ty, ast::ParamType::Value(_));
    let needed = definition.params.iter().filter(|param| param.default.is_none());
    let shown: Vec<String> =
        needed
            .filter(|param| !["tokens", "targets"].contains(&param.name.value.as_str()))
            .map(|param| {
                if is_layer(param) { param.name.value.clone() } else { format!("{}: …", param.name.value) }
            })
            .collect();
    format!("{callee}({})", shown.join(", "))
}

/// The names in a signature such as `attend(q, k, v, heads: H, mask: full)`.
fn parameters(signature: &'static str) -> Vec<&'static str> {
    let inside = signature.split_once('(').map_or("", |(_, rest)| rest);
    let (mut names, mut depth, mut start) = (vec![], 0usize, 0);
    for (i, c) in inside.char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' if depth > 0 => depth -= 1,
            ',' | ')' if depth == 0 => {
                names.push(name_of(&inside[start..i]));
                start = i + 1;
                if c == ')' {
                    break;
                }
            }
            _ => {}
        }
    }
    names
}

fn name_of(part: &str) -> &str {
    part.split([':', '=']).next().unwrap_or(part).trim().trim_end_matches(['…', '.', '?'])
}

#[cfg(test)]
mod tests {
    use super::parameters;

    #[test]
    fn names_of_a_signature() {
        assert_eq!(
            parameters("attend(q, k, v, heads: H, mask: full) -> [B, T, D]"),
            ["q", "k", "v", "heads", "mask"]
        );
        assert_eq!(parameters("fixed(block: 16, at: (1, 2))"), ["block", "at"]);
        assert_eq!(parameters("causal"), [""; 0]);
    }
}
