//! What is to be laid out: the tree as text with the places where a line may break.

use dspc_source::{Span, Spanned};

use crate::ast::*;

/// A piece of text and how it may break.
pub(super) struct Doc {
    pub kind: DocKind,
    /// Columns on one line.
    pub width: usize,
    /// It cannot stand on one line: it holds a comment or a body of several lines.
    pub forced: bool,
}

/// The kinds of pieces.
pub(super) enum DocKind {
    /// As it is.
    Text(String),
    /// One after the other.
    Seq(Vec<Doc>),
    /// Elements in brackets, or the rows of a body.
    Bracket(Bracket),
    /// What follows an infix operator: after a blank, or on the next line.
    Operand(Box<Doc>),
}

/// Rows between two brackets.
pub(super) struct Bracket {
    pub style: Style,
    /// Byte of the opening bracket in the source.
    pub open: usize,
    /// Byte of the closing one.
    pub close: usize,
    pub rows: Vec<Row>,
}

/// How a bracket looks.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Style {
    /// `(a, b)`: breaks when too long.
    Round,
    /// `(a,)`
    OneTuple,
    /// `(a)`: no comma after it, or it would be a tuple.
    Paren,
    /// `["a", "b"]`: breaks when too long.
    List,
    /// `[B, T, D]` after a value or a colon: breaks for a comment alone.
    Dims,
    /// `{ … }`
    Body,
}

impl Style {
    pub(super) fn brackets(self) -> (&'static str, &'static str) {
        match self {
            Style::Round | Style::Paren => ("(", ")"),
            Style::OneTuple => ("(", ",)"),
            Style::List | Style::Dims => ("[", "]"),
            Style::Body => ("{ ", " }"),
        }
    }
}

/// What gets a line of its own when its bracket breaks.
pub(super) struct Row {
    /// Its first byte in the source.
    pub start: usize,
    /// One past its last.
    pub end: usize,
    pub doc: Doc,
}

fn text(text: impl Into<String>) -> Doc {
    let text = text.into();
    Doc { width: text.chars().count(), forced: false, kind: DocKind::Text(text) }
}

fn seq(parts: Vec<Doc>) -> Doc {
    let width = parts.iter().map(|part| part.width).sum();
    let forced = parts.iter().any(|part| part.forced);
    Doc { width, forced, kind: DocKind::Seq(parts) }
}

/// The text that the tree was read from.
pub(super) struct Source<'t> {
    pub text: &'t str,
    pub comments: &'t [Spanned<String>],
}

impl Source<'_> {
    /// A whole file.
    pub(super) fn items(&self, items: &[Item]) -> Vec<Row> {
        items.iter().map(|item| row(item.span, self.item(item))).collect()
    }

    fn item(&self, item: &Item) -> Doc {
        match &item.kind {
            ItemKind::Use(names) => text(format!("use {}", join(names, "::"))),
            ItemKind::Setting { name, value } => {
                seq(vec![text(format!("{} = ", name.value)), self.expr(value)])
            }
            ItemKind::Block { name, fields } => {
                let rows = fields.iter().map(|field| {
                    let doc = seq(vec![text(format!("{}: ", field.name.value)), self.expr(&field.value)]);
                    row(field.name.span.to(field.value.span), doc)
                });
                let body = self.body(name.span.end as usize, item.span, rows.collect());
                seq(vec![text(format!("{} ", name.value)), body])
            }
            ItemKind::Layer(definition) => self.definition("layer", definition, item.span),
            ItemKind::Model(definition) => self.definition("model", definition, item.span),
            ItemKind::Bad => text(self.written(item.span)),
        }
    }

    fn definition(&self, word: &str, definition: &Definition, span: Span) -> Doc {
        let mut parts = vec![text(format!("{word} {}", definition.name.value))];
        let mut end = definition.name.span.end as usize;
        if let Some(open) = self.params_open(definition) {
            let rows: Vec<Row> = definition.params.iter().map(|param| self.param(param)).collect();
            let last = rows.last().map_or(open + 1, |row| row.end);
            let close = self.find(last, b')');
            end = close + 1;
            parts.push(self.bracket(Style::Round, open, close, rows));
        }
        if let Some(result) = &definition.result {
            parts.push(text(" -> "));
            let (doc, span) = match result {
                ResultType::Tensor(dims) => (self.dims(dims), dims.span),
                ResultType::Tuple(all, span) => {
                    let rows = all.iter().map(|dims| row(dims.span, self.dims(dims))).collect();
                    (self.spanned(Style::Round, *span, rows), *span)
                }
                ResultType::Named(name) => (text(&name.value), name.span),
            };
            parts.push(doc);
            end = span.end as usize;
        }
        match &definition.body {
            Body::Block(statements) => {
                parts.push(text(" "));
                parts.push(self.body(end, span, self.statements(statements)));
            }
            Body::Alias(value) => {
                parts.push(text(" = "));
                parts.push(self.expr(value));
            }
        }
        seq(parts)
    }

    /// Where the parameters begin, if there are brackets at all.
    fn params_open(&self, definition: &Definition) -> Option<usize> {
        let after = definition.name.span.end as usize;
        let rest = self.text[after..].trim_start_matches([' ', '\t', '\r']);
        rest.starts_with('(').then(|| self.text.len() - rest.len())
    }

    fn param(&self, param: &DefParam) -> Row {
        let name = &param.name.value;
        let mut end = param.name.span.end;
        let mut parts = vec![text(name)];
        match &param.ty {
            ParamType::Tensor(dims) => {
                parts.extend([text(": "), self.dims(dims)]);
                end = dims.span.end;
            }
            ParamType::Ids(dims) => {
                parts.extend([text(": ids"), self.dims(dims)]);
                end = dims.span.end;
            }
            // A type left out is the name itself, at the name's place.
            ParamType::Value(ty) if ty.span == param.name.span => {}
            ParamType::Value(ty) => {
                parts.push(text(format!(": {}", ty.value)));
                end = ty.span.end;
            }
        }
        if let Some(value) = &param.default {
            parts.extend([text(" = "), self.expr(value)]);
            end = value.span.end;
        }
        Row { start: param.name.span.start as usize, end: end as usize, doc: seq(parts) }
    }

    fn statements(&self, statements: &[Statement]) -> Vec<Row> {
        statements.iter().map(|statement| row(statement.span, self.statement(statement))).collect()
    }

    fn statement(&self, statement: &Statement) -> Doc {
        match &statement.kind {
            StatementKind::Param { name, dims, init } => seq(vec![
                text(format!("param {}: ", name.value)),
                self.dims(dims),
                text(" ~ "),
                self.expr(init),
            ]),
            StatementKind::Bind { names, value } => {
                seq(vec![text(format!("{} = ", join(names, ", "))), self.expr(value)])
            }
            StatementKind::Repeat { count, name, body } => {
                let after = name.as_ref().map_or(count.span.end, |name| name.span.end) as usize;
                let name = name.as_ref().map(|name| format!(" as {}", name.value)).unwrap_or_default();
                let rows = self.statements(body);
                seq(vec![
                    text("repeat "),
                    self.expr(count),
                    text(name + " "),
                    self.body(after, statement.span, rows),
                ])
            }
            StatementKind::Expr(value) => self.expr(value),
            StatementKind::Bad => text(self.written(statement.span)),
        }
    }

    fn expr(&self, expr: &Expr) -> Doc {
        let span = expr.span;
        match &expr.kind {
            ExprKind::Number { .. } | ExprKind::String(_) | ExprKind::Bad => text(self.written(span)),
            ExprKind::Bool(truth) => text(truth.to_string()),
            ExprKind::Path(path) => text(path_text(path)),
            ExprKind::Call { callee, args } => {
                let after = callee.segments.last().map_or(span.start, |name| name.span.end) as usize;
                let rows = args.iter().map(|arg| self.arg(arg)).collect();
                let open = self.find(after, b'(');
                seq(vec![text(path_text(callee)), self.bracket(Style::Round, open, last_byte(span), rows)])
            }
            ExprKind::As { value, name } => seq(vec![self.expr(value), text(format!(" as {}", name.value))]),
            ExprKind::Unary { op, value } => {
                let symbol = match op.value {
                    UnaryOp::Negate => "-",
                    UnaryOp::Not => "!",
                };
                seq(vec![text(symbol), self.expr(value)])
            }
            ExprKind::Binary { op, left, right } if is_coefficient(op.value, left, right) => {
                seq(vec![self.expr(left), text("*"), self.expr(right)])
            }
            ExprKind::Binary { op, left, right } => {
                seq(vec![self.expr(left), text(format!(" {}", op.value.symbol())), operand(self.expr(right))])
            }
            ExprKind::Index { value, indices } => {
                let open = self.find(value.span.end as usize, b'[');
                let rows = self.rows(indices);
                seq(vec![self.expr(value), self.bracket(Style::Dims, open, last_byte(span), rows)])
            }
            ExprKind::Range { start, end } => {
                let mut parts = vec![];
                parts.extend(start.as_ref().map(|start| self.expr(start)));
                parts.push(text(".."));
                parts.extend(end.as_ref().map(|end| self.expr(end)));
                seq(parts)
            }
            ExprKind::List(values) => self.spanned(Style::List, span, self.rows(values)),
            ExprKind::Tuple(values) => {
                let style = if values.len() == 1 { Style::OneTuple } else { Style::Round };
                self.spanned(style, span, self.rows(values))
            }
            ExprKind::Paren(value) => {
                self.spanned(Style::Paren, span, vec![row(value.span, self.expr(value))])
            }
            ExprKind::Lambda { params, body } => {
                seq(vec![text(format!("({}) =>", join(params, ", "))), operand(self.expr(body))])
            }
        }
    }

    fn arg(&self, arg: &Arg) -> Row {
        let value = self.expr(&arg.value);
        match &arg.name {
            Some(name) => {
                row(name.span.to(arg.value.span), seq(vec![text(format!("{}: ", name.value)), value]))
            }
            None => row(arg.value.span, value),
        }
    }

    fn rows(&self, values: &[Expr]) -> Vec<Row> {
        values.iter().map(|value| row(value.span, self.expr(value))).collect()
    }

    fn dims(&self, dims: &Dims) -> Doc {
        let leading = dims.leading.map(|span| row(span, text("..")));
        let rows = leading.into_iter().chain(self.rows(&dims.dims)).collect();
        self.spanned(Style::Dims, dims.span, rows)
    }

    /// A body whose `{` is the first after `after` and whose `}` ends `span`.
    fn body(&self, after: usize, span: Span, rows: Vec<Row>) -> Doc {
        let (open, close) = (self.find(after, b'{'), last_byte(span));
        let one_line = rows.len() == 1 && !self.text[open..close].contains('\n');
        let mut doc = self.bracket(Style::Body, open, close, rows);
        let is_empty = matches!(&doc.kind, DocKind::Bracket(bracket) if bracket.rows.is_empty());
        if is_empty && !doc.forced {
            return text("{}");
        }
        doc.forced |= !one_line;
        doc
    }

    fn spanned(&self, style: Style, span: Span, rows: Vec<Row>) -> Doc {
        self.bracket(style, span.start as usize, last_byte(span), rows)
    }

    fn bracket(&self, style: Style, open: usize, close: usize, rows: Vec<Row>) -> Doc {
        let (before, after) = style.brackets();
        let commas = 2 * rows.len().saturating_sub(1);
        let width = before.len() + after.len() + commas + rows.iter().map(|row| row.doc.width).sum::<usize>();
        let forced = rows.iter().any(|row| row.doc.forced) || self.has_comment(open, close);
        Doc { width, forced, kind: DocKind::Bracket(Bracket { style, open, close, rows }) }
    }

    fn has_comment(&self, start: usize, end: usize) -> bool {
        let first = self.comments.partition_point(|comment| (comment.span.start as usize) < start);
        self.comments.get(first).is_some_and(|comment| (comment.span.start as usize) < end)
    }

    /// The first `byte` from `from` on that stands in no comment; only blanks and commas may come before it.
    fn find(&self, from: usize, byte: u8) -> usize {
        let mut at = from;
        let mut comment = self.comments.partition_point(|comment| (comment.span.start as usize) < from);
        while at < self.text.len() && self.text.as_bytes()[at] != byte {
            match self.comments.get(comment) {
                Some(found) if found.span.start as usize == at => {
                    at = found.span.end as usize;
                    comment += 1;
                }
                _ => at += 1,
            }
        }
        at
    }

    fn written(&self, span: Span) -> &str {
        &self.text[span.start as usize..span.end as usize]
    }
}

fn row(span: Span, doc: Doc) -> Row {
    Row { start: span.start as usize, end: span.end as usize, doc }
}

fn operand(value: Doc) -> Doc {
    Doc { width: value.width + 1, forced: value.forced, kind: DocKind::Operand(Box::new(value)) }
}

fn last_byte(span: Span) -> usize {
    (span.end as usize).saturating_sub(1)
}

/// `3*D`: a number before a name reads as one thing.
fn is_coefficient(op: BinaryOp, left: &Expr, right: &Expr) -> bool {
    let number = matches!(&left.kind, ExprKind::Number { unit, .. } if unit.is_empty());
    let name = matches!(&right.kind, ExprKind::Path(path) if path.segments.len() == 1);
    op == BinaryOp::Multiply && number && name
}

fn join(names: &[Name], separator: &str) -> String {
    names.iter().map(|name| name.value.as_str()).collect::<Vec<_>>().join(separator)
}

fn path_text(path: &Path) -> String {
    let mut text = String::new();
    for (index, segment) in path.segments.iter().enumerate() {
        if index > 0 {
            text.push_str(if path.scoped.get(index - 1) == Some(&true) { "::" } else { "." });
        }
        text.push_str(&segment.value);
    }
    text
}
