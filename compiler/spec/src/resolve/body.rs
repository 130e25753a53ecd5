//! One definition: its parameters, its result and its body.

use std::collections::BTreeMap;

use dspc_grammar::ast;
use dspc_source::{Span, Spanned};

use super::modules::Place;
use super::scope::Scope;
use super::{Pending, Resolver, is_function};
use crate::body::*;
use crate::errors::*;
use crate::units::{self, Dimension};

/// What a repeat without a name is called.
const UNNAMED_REPEAT: &str = "repeat";

/// The definition being resolved.
pub(super) struct Context<'a> {
    pub place: Place,
    pub definition: &'a ast::Definition,
    pub scope: Scope,
}

impl<'a> Resolver<'a, '_> {
    pub(super) fn definition(&mut self, pending: Pending<'a>) -> Definition {
        let ast = pending.definition;
        let before = self.mistakes.count();
        let mut cx = Context { place: pending.place, definition: ast, scope: Scope::default() };
        cx.scope.open();
        if let ast::Body::Block(statements) = &ast.body {
            collect_bound(statements, &mut cx.scope.later);
        }
        let params = self.params(&mut cx);
        if pending.kind == Kind::Model {
            self.check_inputs(ast);
        }
        let result = self.result(&mut cx, pending.kind);
        let body = match &ast.body {
            ast::Body::Block(statements) => {
                self.check_result(ast, statements);
                Body::Block(self.statements(&mut cx, statements, false))
            }
            ast::Body::Alias(value) if pending.kind == Kind::Model => {
                Body::Alias(self.model_alias(&mut cx, value))
            }
            ast::Body::Alias(value) => Body::Alias(self.expr(&mut cx, value)),
        };
        // With a mistake in the body, what reads the value may be the very thing that could not be read.
        if pending.place == Place::Own && self.mistakes.count() == before {
            for name in cx.scope.unread() {
                self.mistakes.add(ValueUnused { name });
            }
        }
        let module = self.modules.path(pending.place);
        Definition { name: ast.name.clone(), module, kind: pending.kind, params, result, body }
    }

    fn params(&mut self, cx: &mut Context<'a>) -> Vec<DefParam> {
        let mut firsts: BTreeMap<&str, Span> = BTreeMap::new();
        let mut locals: BTreeMap<&str, Span> = BTreeMap::new();
        let mut params = vec![];
        for param in &cx.definition.params {
            if let Some(first) = firsts.get(param.name.value.as_str()) {
                self.mistakes.add(ParameterTwice { name: param.name.clone(), first: *first });
            }
            firsts.entry(&param.name.value).or_insert(param.name.span);
            let default = param.default.as_ref().map(|default| self.expr(cx, default));
            let ty = match &param.ty {
                ast::ParamType::Tensor(dims) => ParamType::Tensor(self.binding_dims(cx, dims)),
                ast::ParamType::Ids(dims) => ParamType::Ids(self.binding_dims(cx, dims)),
                ast::ParamType::Value(local) => {
                    if let Some(first) = locals.insert(&local.value, local.span)
                        && local.span != param.name.span
                    {
                        self.mistakes.add(ParameterTwice { name: local.clone(), first });
                    }
                    cx.scope.declare(local);
                    if local.value != param.name.value {
                        cx.scope.known_as.insert(param.name.value.clone(), local.clone());
                    }
                    ParamType::Value(local.clone())
                }
            };
            if !matches!(ty, ParamType::Value(_)) {
                cx.scope.declare(&param.name);
            }
            params.push(DefParam { name: param.name.clone(), ty, default });
        }
        params
    }

    /// Dims of a parameter: a lone name that is not bound yet is bound.
    fn binding_dims(&mut self, cx: &mut Context<'a>, dims: &'a ast::Dims) -> Dims {
        for dim in &dims.dims {
            if let ast::ExprKind::Path(path) = &dim.kind
                && let [name] = path.segments.as_slice()
                && cx.scope.find(&name.value).is_none()
            {
                cx.scope.declare(name);
            }
        }
        self.dims(cx, dims)
    }

    fn dims(&mut self, cx: &mut Context<'a>, dims: &'a ast::Dims) -> Dims {
        let resolved = dims.dims.iter().map(|dim| self.expr(cx, dim)).collect();
        Dims { leading: dims.leading, dims: resolved, span: dims.span }
    }

    fn result(&mut self, cx: &mut Context<'a>, kind: Kind) -> Option<ResultType> {
        let (ast, is_model) = (cx.definition, kind == Kind::Model);
        let wrong = |place| WrongResult { name: ast.name.clone(), place, is_model };
        match &ast.result {
            Some(ast::ResultType::Named(name)) if name.value == "loss" => Some(ResultType::Loss(name.span)),
            Some(ast::ResultType::Named(name)) => {
                self.mistakes.add(wrong(name.span));
                None
            }
            Some(ast::ResultType::Tensor(dims)) => {
                if is_model {
                    self.mistakes.add(wrong(dims.span));
                }
                Some(ResultType::Tensor(self.dims(cx, dims)))
            }
            Some(ast::ResultType::Tuple(all, span)) => {
                if is_model {
                    self.mistakes.add(wrong(*span));
                }
                Some(ResultType::Tuple(all.iter().map(|dims| self.dims(cx, dims)).collect()))
            }
            None => {
                if is_model && matches!(ast.body, ast::Body::Block(_)) {
                    self.mistakes.add(wrong(ast.name.span));
                }
                None
            }
        }
    }

    /// A model with a body gets `tokens` and `targets`, and no other tensor; one that stands for another gets neither.
    fn check_inputs(&mut self, ast: &ast::Definition) {
        let has_body = matches!(ast.body, ast::Body::Block(_));
        let mut found = vec![];
        for param in &ast.params {
            let is_input = matches!(param.ty, ast::ParamType::Ids(_))
                && ["tokens", "targets"].contains(&param.name.value.as_str());
            match param.ty {
                ast::ParamType::Value(_) => {}
                _ if is_input && has_body => found.push(param.name.value.as_str()),
                _ => self.mistakes.add(ModelInput {
                    model: ast.name.clone(),
                    place: param.name.span,
                    missing: None,
                }),
            }
        }
        for input in ["tokens", "targets"] {
            if has_body && !found.contains(&input) {
                self.mistakes.add(ModelInput {
                    model: ast.name.clone(),
                    place: ast.name.span,
                    missing: Some(input),
                });
            }
        }
    }

    fn check_result(&mut self, ast: &ast::Definition, statements: &[ast::Statement]) {
        let (last, bound) = match statements.last() {
            None => (ast.name.span, None),
            Some(statement) => match &statement.kind {
                ast::StatementKind::Expr(_) | ast::StatementKind::Bad => return,
                ast::StatementKind::Bind { names, .. } => {
                    (statement.span, names.first().map(|n| n.value.clone()))
                }
                ast::StatementKind::Param { .. } | ast::StatementKind::Repeat { .. } => {
                    (statement.span, None)
                }
            },
        };
        self.mistakes.add(NoResult { name: ast.name.clone(), last, bound });
    }

    fn statements(
        &mut self,
        cx: &mut Context<'a>,
        statements: &'a [ast::Statement],
        in_repeat: bool,
    ) -> Vec<Statement> {
        let last = statements.len().saturating_sub(1);
        let mut resolved = vec![];
        for (i, statement) in statements.iter().enumerate() {
            match &statement.kind {
                ast::StatementKind::Param { name, dims, init } => {
                    let (dims, init) = (self.dims(cx, dims), self.expr(cx, init));
                    cx.scope.bind(name);
                    resolved.push(Statement::Param { name: name.clone(), dims, init });
                }
                ast::StatementKind::Bind { names, value } => {
                    let value = self.expr(cx, value);
                    self.bind(cx, names);
                    resolved.push(Statement::Bind { names: names.clone(), value });
                }
                ast::StatementKind::Repeat { count, name, body } => {
                    resolved.push(self.repeat(cx, count, name.as_ref(), body, statement.span));
                }
                ast::StatementKind::Expr(value) => {
                    let resolved_value = self.expr(cx, value);
                    if in_repeat || i != last {
                        self.mistakes.add(ValueLost { value: value.span, in_repeat });
                    }
                    resolved.push(Statement::Result(resolved_value));
                }
                ast::StatementKind::Bad => {}
            }
        }
        resolved
    }

    fn bind(&mut self, cx: &mut Context<'a>, names: &[Name]) {
        for (i, name) in names.iter().enumerate() {
            if let Some(first) = names[..i].iter().find(|first| first.value == name.value) {
                self.mistakes.add(BoundTwice { name: name.clone(), first: first.span });
            }
            cx.scope.bind(name);
        }
    }

    fn repeat(
        &mut self,
        cx: &mut Context<'a>,
        count: &'a ast::Expr,
        name: Option<&Name>,
        body: &'a [ast::Statement],
        span: Span,
    ) -> Statement {
        let count = self.expr(cx, count);
        cx.scope.open();
        let body = self.statements(cx, body, true);
        cx.scope.close();
        // The word itself is where an unnamed one is pointed at.
        let word = Span { end: (span.start + UNNAMED_REPEAT.len() as u32).min(span.end), ..span };
        let name = name.cloned().unwrap_or_else(|| Spanned::new(UNNAMED_REPEAT.to_string(), word));
        Statement::Repeat { count, name, body, span }
    }

    pub(super) fn expr(&mut self, cx: &mut Context<'a>, expr: &'a ast::Expr) -> Expr {
        let kind = match &expr.kind {
            ast::ExprKind::Number { value, unit } => ExprKind::Number(self.number(*value, unit, expr.span)),
            ast::ExprKind::String(text) => ExprKind::String(text.clone()),
            ast::ExprKind::Bool(flag) => ExprKind::Bool(*flag),
            ast::ExprKind::Path(path) => ExprKind::Local(self.local(cx, path, expr.span)),
            ast::ExprKind::Call { callee, args } => return self.call(cx, callee, args, None, expr.span),
            ast::ExprKind::As { value, name } => return self.named_call(cx, value, name, expr.span),
            ast::ExprKind::Unary { op, value } => ExprKind::Unary(op.value, Box::new(self.expr(cx, value))),
            ast::ExprKind::Binary { op, left, right } => {
                let (left, right) = (Box::new(self.expr(cx, left)), Box::new(self.expr(cx, right)));
                ExprKind::Binary { op: *op, left, right }
            }
            ast::ExprKind::Index { value, indices } => {
                let value = Box::new(self.expr(cx, value));
                ExprKind::Index { value, indices: indices.iter().map(|index| self.expr(cx, index)).collect() }
            }
            ast::ExprKind::Range { start, end } => {
                let mut bound =
                    |bound: &'a Option<Box<ast::Expr>>| bound.as_ref().map(|b| Box::new(self.expr(cx, b)));
                let start = bound(start);
                ExprKind::Range(start, bound(end))
            }
            ast::ExprKind::List(items) => {
                ExprKind::List(items.iter().map(|item| self.expr(cx, item)).collect())
            }
            ast::ExprKind::Tuple(items) => {
                ExprKind::Tuple(items.iter().map(|item| self.expr(cx, item)).collect())
            }
            ast::ExprKind::Paren(inner) => return Expr { span: expr.span, ..self.expr(cx, inner) },
            ast::ExprKind::Lambda { params, body } => self.lambda(cx, params, body),
            ast::ExprKind::Bad => ExprKind::Number(0.0),
        };
        Expr { kind, span: expr.span }
    }

    fn lambda(&mut self, cx: &mut Context<'a>, params: &[Name], body: &'a ast::Expr) -> ExprKind {
        cx.scope.open();
        for (i, name) in params.iter().enumerate() {
            if let Some(first) = params[..i].iter().find(|first| first.value == name.value) {
                self.mistakes.add(BoundTwice { name: name.clone(), first: first.span });
            }
            cx.scope.declare(name);
        }
        let body = Box::new(self.expr(cx, body));
        cx.scope.close();
        ExprKind::Lambda(params.to_vec(), body)
    }

    fn number(&mut self, value: f64, unit: &str, span: Span) -> f64 {
        match units::apply(value, unit, span, self.mistakes) {
            Some((_, found @ (Dimension::Bytes | Dimension::Time))) => {
                let (place, expected) = ("a layer's number".to_string(), "a count or a share".to_string());
                self.mistakes.add(WrongUnit { value: span, found, place, expected, meant: None });
                0.0
            }
            Some((value, Dimension::Plain | Dimension::Share)) => value,
            None => 0.0,
        }
    }

    fn local(&mut self, cx: &mut Context<'a>, path: &ast::Path, span: Span) -> String {
        let name = super::path_name(path, span);
        if path.segments.len() > 1 {
            self.mistakes.add(NotAName { place: span, written: name.value.clone() });
            return name.value;
        }
        let is_word =
            || self.builtins.iter().any(|builtin| builtin.name == name.value && !is_function(builtin));
        if cx.scope.find(&name.value).is_some() || is_word() {
            cx.scope.read(&name.value);
            return name.value;
        }
        let known = self.suggestions(|it| {
            let words = it.builtins.iter().filter(|builtin| !is_function(builtin));
            cx.scope.known().into_iter().chain(words.map(|builtin| builtin.name.to_string())).collect()
        });
        let bound_elsewhere = cx.scope.elsewhere(&name.value);
        let known_as = cx.scope.known_as.get(&name.value).cloned();
        self.mistakes.add(UnknownName { name: name.clone(), known, bound_elsewhere, known_as });
        name.value
    }
}

/// Every name that a statement binds, at any depth.
fn collect_bound(statements: &[ast::Statement], bound: &mut BTreeMap<String, Span>) {
    for statement in statements {
        match &statement.kind {
            ast::StatementKind::Param { name, .. } => {
                bound.entry(name.value.clone()).or_insert(name.span);
            }
            ast::StatementKind::Bind { names, .. } => {
                for name in names {
                    bound.entry(name.value.clone()).or_insert(name.span);
                }
            }
            ast::StatementKind::Repeat { body, .. } => collect_bound(body, bound),
            ast::StatementKind::Expr(_) | ast::StatementKind::Bad => {}
        }
    }
}
