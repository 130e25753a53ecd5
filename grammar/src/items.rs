//! From pest's pairs to the tree: items, fields, definitions, statements.

use dspc_source::{FileId, Span, Spanned};
use pest::iterators::{Pair, Pairs};

use crate::ast::*;
use crate::layout::HOLE;
use crate::mistakes::{self, Mistakes};
use crate::rules::Rule;

/// One reading of one text.
pub(crate) struct Reader<'t> {
    pub file: FileId,
    /// As written.
    pub text: &'t str,
    /// As laid out; the pairs point into it.
    pub shadow: &'t str,
    pub mistakes: Mistakes,
}

/// What may follow, for the report of what did instead.
pub(crate) const A_NEW_LINE: &str = "a new line";
const AN_ITEM: &str = "an item: `use …`, `name = …`, `name { … }`, `layer …` or `model …`";
const A_FIELD: &str = "a field `name: value`";
const AFTER_A_FIELD: &str = "a new line, the next field or `}`";
const A_STATEMENT: &str = "a statement: `name = …`, `param …`, `repeat …` or a value";
pub(crate) const A_COMMA: &str = "`,` or the closing bracket";
const A_PARAMETER: &str = "a parameter: `name`, `name: type` or `name: type = default`";

impl<'t> Reader<'t> {
    /// Top level.
    pub(crate) fn items(&mut self, pairs: Pairs<'_, Rule>) -> Vec<Item> {
        pairs.filter(|pair| pair.as_rule() != Rule::EOI).map(|pair| self.item(pair)).collect()
    }

    fn item(&mut self, pair: Pair<'_, Rule>) -> Item {
        let span = self.span(&pair);
        let kind = match pair.as_rule() {
            Rule::use_item => self.use_item(pair),
            Rule::setting => self.setting(pair),
            Rule::block => self.block(pair),
            Rule::layer => ItemKind::Layer(self.definition(pair)),
            Rule::model => ItemKind::Model(self.definition(pair)),
            _ => {
                self.unreadable_word(&pair, AN_ITEM, &["use", "layer", "model"]);
                ItemKind::Bad
            }
        };
        Item { kind, span }
    }

    fn use_item(&mut self, pair: Pair<'_, Rule>) -> ItemKind {
        let mut names = vec![];
        for part in pair.into_inner() {
            match part.as_rule() {
                Rule::path => {
                    names = part
                        .into_inner()
                        .filter(|p| p.as_rule() == Rule::name)
                        .map(|p| self.name(&p))
                        .collect();
                }
                Rule::line_tail => self.unreadable(&part, A_NEW_LINE),
                _ => {}
            }
        }
        ItemKind::Use(names)
    }

    fn setting(&mut self, pair: Pair<'_, Rule>) -> ItemKind {
        match self.bind(pair) {
            StatementKind::Bind { mut names, value } if names.len() == 1 => {
                ItemKind::Setting { name: names.remove(0), value }
            }
            _ => ItemKind::Bad,
        }
    }

    fn block(&mut self, pair: Pair<'_, Rule>) -> ItemKind {
        let mut parts = pair.into_inner();
        let Some(name) = parts.next().map(|p| self.name(&p)) else { return ItemKind::Bad };
        let mut fields = vec![];
        for part in parts {
            match part.as_rule() {
                Rule::field => fields.extend(self.field(part)),
                Rule::junk_field => self.unreadable(&part, A_FIELD),
                _ => self.unreadable(&part, A_NEW_LINE),
            }
        }
        ItemKind::Block { name, fields }
    }

    fn field(&mut self, pair: Pair<'_, Rule>) -> Option<Field> {
        let mut name = None;
        let mut after = None;
        let mut value = None;
        for part in pair.into_inner() {
            match part.as_rule() {
                Rule::name => name = Some(self.name(&part)),
                Rule::field_op => after = Some(self.field_op(&part, name.as_ref(), "in a block")),
                Rule::value => value = Some(self.value(part)),
                _ => value = Some(self.leftover(value, &part, AFTER_A_FIELD)),
            }
        }
        let name = name?;
        let value = match (value, after) {
            (Some(value), _) => value,
            (None, after) => {
                self.missing(after.unwrap_or(name.span), "a value", &format!("`{}:`", name.value))
            }
        };
        Some(Field { name, value })
    }

    /// `layer` and `model`, less the word itself.
    fn definition(&mut self, pair: Pair<'_, Rule>) -> Definition {
        let span = self.span(&pair);
        let mut name = None;
        let mut params = vec![];
        let mut result = None;
        let mut body = None;
        let mut reported = false;
        for part in pair.into_inner() {
            match part.as_rule() {
                Rule::name => name = Some(self.name(&part)),
                Rule::params => params = self.params(part),
                Rule::result => result = self.result(part),
                Rule::body => body = Some(Body::Block(self.body(part))),
                Rule::alias => body = part.into_inner().next().map(|value| Body::Alias(self.value(value))),
                Rule::line_tail => {
                    let expected = match body {
                        Some(_) => A_NEW_LINE,
                        None => "`(parameters)`, `-> what it yields` and `{ a body }`, or `= a call`",
                    };
                    self.unreadable(&part, expected);
                    reported = true;
                }
                _ => {}
            }
        }
        let name = name.unwrap_or_else(|| Spanned::new(String::new(), span));
        let body = body.unwrap_or_else(|| {
            let after = format!("`{}`: `{{ … }}`, or `= a call`", name.value);
            Body::Alias(match reported {
                true => Expr { kind: ExprKind::Bad, span: name.span },
                false => self.missing(name.span, "a body", &after),
            })
        });
        Definition { name, params, result, body }
    }

    fn params(&mut self, pair: Pair<'_, Rule>) -> Vec<DefParam> {
        let parts = self.elements(pair);
        parts.into_iter().filter_map(|part| self.param(part)).collect()
    }

    fn param(&mut self, pair: Pair<'_, Rule>) -> Option<DefParam> {
        let mut name: Option<Name> = None;
        let mut ty = None;
        let mut default = None;
        for part in pair.into_inner() {
            match part.as_rule() {
                Rule::name => name = Some(self.name(&part)),
                Rule::param_type => ty = self.param_type(part),
                Rule::value => default = Some(self.value(part)),
                _ => {
                    let expected = if name.is_some() { A_COMMA } else { A_PARAMETER };
                    self.unreadable(&part, expected);
                }
            }
        }
        let name = name?;
        let ty = ty.unwrap_or_else(|| ParamType::Value(name.clone()));
        Some(DefParam { name, ty, default })
    }

    fn param_type(&mut self, pair: Pair<'_, Rule>) -> Option<ParamType> {
        let mut parts = pair.into_inner();
        let first = parts.next()?;
        if first.as_rule() == Rule::list {
            return Some(ParamType::Tensor(self.dims(first)));
        }
        let name = self.name(&first);
        let Some(list) = parts.next() else { return Some(ParamType::Value(name)) };
        if name.value != "ids" {
            self.mistakes
                .add(|| mistakes::unreadable(name.span, &name.value, "`ids[…]`, `[…]` or a name", &["ids"]));
        }
        Some(ParamType::Ids(self.dims(list)))
    }

    fn result(&mut self, pair: Pair<'_, Rule>) -> Option<ResultType> {
        let span = self.span(&pair);
        let Some(part) = pair.into_inner().next() else {
            self.missing(span, "what it yields", "`->`");
            return None;
        };
        Some(match part.as_rule() {
            Rule::list => ResultType::Tensor(self.dims(part)),
            Rule::group => self.tuple_of_dims(part),
            _ => ResultType::Named(self.name(&part)),
        })
    }

    fn tuple_of_dims(&mut self, pair: Pair<'_, Rule>) -> ResultType {
        let span = self.span(&pair);
        let mut all = vec![];
        for arg in self.arguments(pair) {
            match arg.value.kind {
                ExprKind::List(dims) => all.push(into_dims(dims, arg.value.span)),
                ExprKind::Bad => {}
                _ => {
                    let found = self.written(arg.value.span);
                    self.mistakes
                        .add(|| mistakes::unreadable(arg.value.span, found, "dims: `[B, T, D]`", &[]));
                }
            }
        }
        ResultType::Tuple(all, span)
    }

    /// `[B, T, D]`
    pub(crate) fn dims(&mut self, list: Pair<'_, Rule>) -> Dims {
        let span = self.span(&list);
        let values = self.arguments(list).into_iter().map(|arg| arg.value).collect();
        into_dims(values, span)
    }

    fn body(&mut self, pair: Pair<'_, Rule>) -> Vec<Statement> {
        pair.into_inner().map(|part| self.statement(part)).collect()
    }

    fn statement(&mut self, pair: Pair<'_, Rule>) -> Statement {
        let span = self.span(&pair);
        let kind = match pair.as_rule() {
            Rule::param_statement => self.param_statement(pair),
            Rule::repeat => self.repeat(pair),
            Rule::bind => self.bind(pair),
            Rule::result_statement => self.result_statement(pair),
            _ => {
                self.unreadable(&pair, A_STATEMENT);
                StatementKind::Bad
            }
        };
        Statement { kind, span }
    }

    fn param_statement(&mut self, pair: Pair<'_, Rule>) -> StatementKind {
        let (mut name, mut dims, mut init, mut reported) = (None, None, None, false);
        for part in pair.into_inner() {
            match part.as_rule() {
                Rule::name => name = Some(self.name(&part)),
                Rule::list => dims = Some(self.dims(part)),
                Rule::value => init = Some(self.value(part)),
                Rule::line_tail => {
                    let expected = match (&dims, &init) {
                        (None, _) => "dims: `param name: [V, D] ~ normal(0.02)`",
                        (_, None) => "how it begins: `~ normal(0.02)`, `~ zeros`, `~ ones`",
                        _ => A_NEW_LINE,
                    };
                    self.unreadable(&part, expected);
                    reported = true;
                }
                _ => {}
            }
        }
        match (name, dims, init) {
            (Some(name), Some(dims), Some(init)) => {
                let init = if reported { Expr { kind: ExprKind::Bad, span: init.span } } else { init };
                StatementKind::Param { name, dims, init }
            }
            (Some(name), dims, init) => {
                if !reported && dims.is_none() {
                    self.missing(name.span, "the shape", &format!("`{}`: `[V, D]`", name.value));
                } else if !reported && init.is_none() {
                    self.missing(name.span, "how it begins", "the shape: `~ normal(0.02)`");
                }
                StatementKind::Bad
            }
            (None, ..) => StatementKind::Bad,
        }
    }

    fn repeat(&mut self, pair: Pair<'_, Rule>) -> StatementKind {
        let span = self.span(&pair);
        let (mut count, mut name, mut body, mut reported) = (None, None, None, false);
        for part in pair.into_inner() {
            match part.as_rule() {
                Rule::count => count = Some(self.flat(part).expr),
                Rule::as_name => name = self.as_name(part),
                Rule::body => body = Some(self.body(part)),
                Rule::line_tail => {
                    self.unreadable(&part, if body.is_some() { A_NEW_LINE } else { "`{ statements }`" });
                    reported = true;
                }
                _ => {}
            }
        }
        match (count, body) {
            (Some(count), Some(body)) => StatementKind::Repeat { count, name, body },
            _ if reported => StatementKind::Bad,
            _ => {
                self.missing(span, "a body", "`repeat count as name`: `{ statements }`");
                StatementKind::Bad
            }
        }
    }

    /// `a, b = value`
    fn bind(&mut self, pair: Pair<'_, Rule>) -> StatementKind {
        let mut names: Vec<Name> = vec![];
        let mut op = None;
        let mut value = None;
        for part in pair.into_inner() {
            match part.as_rule() {
                Rule::name => names.push(self.name(&part)),
                Rule::bind_op => {
                    let span = self.span(&part);
                    if let (":", Some(name)) = (part.as_str(), names.last()) {
                        self.mistakes.add(|| mistakes::equals_expected(span, &name.value));
                    }
                    op = Some(span);
                }
                Rule::value => value = Some(self.value(part)),
                _ => value = Some(self.leftover(value, &part, A_NEW_LINE)),
            }
        }
        let value = match (value, op) {
            (Some(value), _) => value,
            (None, Some(op)) => self.missing(op, "a value", "`=`"),
            (None, None) => return StatementKind::Bad,
        };
        StatementKind::Bind { names, value }
    }

    fn result_statement(&mut self, pair: Pair<'_, Rule>) -> StatementKind {
        let line = pair.clone();
        let mut value = None;
        for part in pair.into_inner() {
            match part.as_rule() {
                Rule::value => value = Some(self.value(part)),
                // `parm w: [D]` begins like a value: what was meant is told by its first word.
                _ if begins_like_a_keyword(value.as_ref(), part.as_str()) => {
                    self.unreadable_word(&line, A_STATEMENT, &["param", "repeat"]);
                    value = None;
                }
                _ => value = Some(self.leftover(value, &part, A_NEW_LINE)),
            }
        }
        match value {
            Some(Expr { kind: ExprKind::Bad, .. }) | None => StatementKind::Bad,
            Some(value) => StatementKind::Expr(value),
        }
    }

    // ---- What all of them use ----

    /// The `:` of a field or argument; returns its place.
    pub(crate) fn field_op(&mut self, pair: &Pair<'_, Rule>, name: Option<&Name>, place: &str) -> Span {
        let span = self.span(pair);
        if let ("=", Some(name)) = (pair.as_str(), name) {
            self.mistakes.add(|| mistakes::colon_expected(span, &name.value, place));
        }
        span
    }

    /// Reports what was left over; the value it follows cannot be trusted, so nothing more is said of it.
    pub(crate) fn leftover(&mut self, value: Option<Expr>, tail: &Pair<'_, Rule>, expected: &str) -> Expr {
        let span = self.span(tail);
        match &value {
            // It was reported already, and what follows is most likely its other half.
            Some(Expr { kind: ExprKind::Bad, .. }) => {}
            Some(_) => self.unreadable(tail, expected),
            None => self.unreadable(tail, "a value"),
        }
        Expr { kind: ExprKind::Bad, span: value.map_or(span, |value| value.span.to(span)) }
    }

    /// Reports the pair's text, unless something in it was reported already.
    pub(crate) fn unreadable(&mut self, pair: &Pair<'_, Rule>, expected: &str) {
        self.unreadable_word(pair, expected, &[]);
    }

    /// The same where the first word may be a slip for one of a few.
    fn unreadable_word(&mut self, pair: &Pair<'_, Rule>, expected: &str, words: &[&'static str]) {
        let span = self.span(pair);
        if pair.as_str().bytes().any(|byte| byte == HOLE) {
            return;
        }
        let found = self.written(span);
        // The line it begins on is enough to show.
        let end =
            found.find('\n').map_or(span.end, |length| span.start + found[..length].trim_end().len() as u32);
        self.mistakes.add(|| mistakes::unreadable(Span { end, ..span }, found, expected, words));
    }

    /// Reports that something is not there; stands for it.
    pub(crate) fn missing(&mut self, after_span: Span, what: &str, after: &str) -> Expr {
        self.mistakes.add(|| mistakes::missing(after_span, what, after));
        Expr { kind: ExprKind::Bad, span: after_span }
    }

    pub(crate) fn name(&self, pair: &Pair<'_, Rule>) -> Name {
        Spanned::new(pair.as_str().to_owned(), self.span(pair))
    }

    /// A pair's place, less the blanks that pest took along at its end.
    pub(crate) fn span(&self, pair: &Pair<'_, Rule>) -> Span {
        let span = pair.as_span();
        let trimmed = self.shadow[span.start()..span.end()].trim_end();
        Span::new(self.file, span.start(), span.start() + trimmed.len())
    }

    /// The text of a span, as written.
    pub(crate) fn written(&self, span: Span) -> &'t str {
        &self.text[span.start as usize..span.end as usize]
    }
}

/// A list read as dims: a leading `..` stands for any dims.
fn into_dims(mut dims: Vec<Expr>, span: Span) -> Dims {
    let leading = match dims.first() {
        Some(Expr { kind: ExprKind::Range { start: None, end: None }, span }) => Some(*span),
        _ => None,
    };
    if leading.is_some() {
        dims.remove(0);
    }
    Dims { leading, dims, span }
}

/// A lone name with another word after it.
fn begins_like_a_keyword(value: Option<&Expr>, rest: &str) -> bool {
    let is_name = matches!(value, Some(Expr { kind: ExprKind::Path(path), .. }) if path.segments.len() == 1);
    is_name && rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}
