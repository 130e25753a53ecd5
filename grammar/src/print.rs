//! The syntax tree as text: `--emit ast`.
//!
//! An item, field, parameter or statement is a line, indented below what holds it. A value is written fully
//! parenthesised, operator first, so that precedence can be seen: `a + b * c` is `(+ a (* b c))`. A line ends with
//! where it begins, `@line:column`. What could not be read is `<bad>`. Comments stand at the end.

use std::fmt::Write;

use crate::ast::*;

/// A file's tree, one line a node; `text` is what it was read from.
pub fn print_tree(file: &File, text: &str) -> String {
    let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let mut printer = Printer { text, line_starts, last: (0, 1), out: String::new() };
    for item in &file.items {
        printer.item(item);
    }
    for comment in &file.comments {
        printer.line(0, &format!("comment {}", comment.value), comment.span);
    }
    printer.out
}

struct Printer<'t> {
    text: &'t str,
    line_starts: Vec<usize>,
    /// The last place asked for and its column: on a long line the next is counted from there.
    last: (usize, usize),
    out: String,
}

impl Printer<'_> {
    fn line(&mut self, depth: usize, text: &str, span: Span) {
        let start = (span.start as usize).min(self.text.len());
        let line = self.line_starts.partition_point(|begin| *begin <= start);
        let begin = self.line_starts[line - 1];
        let (from, counted) = if (begin..=start).contains(&self.last.0) { self.last } else { (begin, 1) };
        let column = counted + self.text[from..start].chars().count();
        self.last = (start, column);
        let _ = writeln!(self.out, "{:indent$}{text}  @{line}:{column}", "", indent = 2 * depth);
    }

    fn item(&mut self, item: &Item) {
        match &item.kind {
            ItemKind::Use(names) => {
                let names: Vec<_> = names.iter().map(|name| name.value.as_str()).collect();
                self.line(0, &format!("use {}", names.join("::")), item.span);
            }
            ItemKind::Setting { name, value } => {
                self.line(0, &format!("setting {} = {}", name.value, expr(value)), item.span);
            }
            ItemKind::Block { name, fields } => {
                self.line(0, &format!("block {}", name.value), item.span);
                for field in fields {
                    self.line(1, &format!("{}: {}", field.name.value, expr(&field.value)), field.name.span);
                }
            }
            ItemKind::Layer(definition) => self.definition("layer", definition, item.span),
            ItemKind::Model(definition) => self.definition("model", definition, item.span),
            ItemKind::Bad => self.line(0, "<bad>", item.span),
        }
    }

    fn definition(&mut self, word: &str, definition: &Definition, span: Span) {
        let result = match &definition.result {
            None => String::new(),
            Some(ResultType::Tensor(shape)) => format!(" -> {}", dims(shape)),
            Some(ResultType::Tuple(shapes, _)) => {
                format!(" -> ({})", shapes.iter().map(dims).collect::<Vec<_>>().join(", "))
            }
            Some(ResultType::Named(name)) => format!(" -> {}", name.value),
        };
        self.line(0, &format!("{word} {}{result}", definition.name.value), span);
        for param in &definition.params {
            let ty = match &param.ty {
                ParamType::Tensor(shape) => dims(shape),
                ParamType::Ids(shape) => format!("ids{}", dims(shape)),
                ParamType::Value(name) => name.value.clone(),
            };
            let default =
                param.default.as_ref().map(|value| format!(" = {}", expr(value))).unwrap_or_default();
            self.line(1, &format!("takes {}: {ty}{default}", param.name.value), param.name.span);
        }
        match &definition.body {
            Body::Alias(value) => self.line(1, &format!("= {}", expr(value)), value.span),
            Body::Block(statements) => self.statements(1, statements),
        }
    }

    fn statements(&mut self, depth: usize, statements: &[Statement]) {
        for statement in statements {
            match &statement.kind {
                StatementKind::Param { name, dims: shape, init } => {
                    let text = format!("param {}: {} ~ {}", name.value, dims(shape), expr(init));
                    self.line(depth, &text, statement.span);
                }
                StatementKind::Bind { names, value } => {
                    let names: Vec<_> = names.iter().map(|name| name.value.as_str()).collect();
                    self.line(depth, &format!("{} = {}", names.join(", "), expr(value)), statement.span);
                }
                StatementKind::Repeat { count, name, body } => {
                    let name = name.as_ref().map(|name| format!(" as {}", name.value)).unwrap_or_default();
                    self.line(depth, &format!("repeat {}{name}", expr(count)), statement.span);
                    self.statements(depth + 1, body);
                }
                StatementKind::Expr(value) => self.line(depth, &expr(value), statement.span),
                StatementKind::Bad => self.line(depth, "<bad>", statement.span),
            }
        }
    }
}

/// A value on one line, operators first.
fn expr(value: &Expr) -> String {
    match &value.kind {
        ExprKind::Number { value, unit } => format!("{value}{unit}"),
        ExprKind::String(text) => format!("{text:?}"),
        ExprKind::Bool(truth) => truth.to_string(),
        ExprKind::Path(names) => path(names),
        ExprKind::Call { callee, args } => {
            let args: Vec<_> = args.iter().map(arg).collect();
            format!("{}({})", path(callee), args.join(", "))
        }
        ExprKind::As { value, name } => format!("(as {} {})", name.value, expr(value)),
        ExprKind::Unary { op, value } => {
            let symbol = match op.value {
                UnaryOp::Negate => "-",
                UnaryOp::Not => "!",
            };
            format!("({symbol} {})", expr(value))
        }
        ExprKind::Binary { op, left, right } => {
            format!("({} {} {})", op.value.symbol(), expr(left), expr(right))
        }
        ExprKind::Index { value, indices } => format!("{}[{}]", expr(value), list(indices)),
        ExprKind::Range { start, end } => {
            let side = |side: &Option<Box<Expr>>| side.as_ref().map(|side| expr(side)).unwrap_or_default();
            format!("{}..{}", side(start), side(end))
        }
        ExprKind::List(values) => format!("[{}]", list(values)),
        ExprKind::Tuple(values) => format!("(tuple {})", list(values)),
        ExprKind::Paren(value) => format!("(paren {})", expr(value)),
        ExprKind::Lambda { params, body } => {
            let params: Vec<_> = params.iter().map(|name| name.value.as_str()).collect();
            format!("(=> ({}) {})", params.join(", "), expr(body))
        }
        ExprKind::Bad => "<bad>".into(),
    }
}

fn arg(arg: &Arg) -> String {
    match &arg.name {
        Some(name) => format!("{}: {}", name.value, expr(&arg.value)),
        None => expr(&arg.value),
    }
}

fn list(values: &[Expr]) -> String {
    values.iter().map(expr).collect::<Vec<_>>().join(", ")
}

fn dims(dims: &Dims) -> String {
    match (dims.leading, dims.dims.is_empty()) {
        (Some(_), true) => "[..]".into(),
        (Some(_), false) => format!("[.., {}]", list(&dims.dims)),
        (None, _) => format!("[{}]", list(&dims.dims)),
    }
}

fn path(path: &Path) -> String {
    let mut text = String::new();
    for (index, segment) in path.segments.iter().enumerate() {
        if index > 0 {
            text.push_str(if path.scoped.get(index - 1) == Some(&true) { "::" } else { "." });
        }
        text.push_str(&segment.value);
    }
    text
}
