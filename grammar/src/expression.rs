//! From pest's pairs to the tree: values. Precedence stands here, in one table.

use std::sync::LazyLock;

use dspc_source::{Span, Spanned};
use pest::iterators::Pair;
use pest::pratt_parser::{Assoc, Op, PrattParser};

use crate::ast::*;
use crate::items::{A_COMMA, Reader};
use crate::mistakes::{self, EXPRESSION_DEPTH_MAX};
use crate::rules::Rule;

/// From loosest to tightest.
static PRECEDENCE: LazyLock<PrattParser<Rule>> = LazyLock::new(|| {
    let left = |rule| Op::infix(rule, Assoc::Left);
    PrattParser::new()
        .op(Op::infix(Rule::arrow, Assoc::Right))
        .op(left(Rule::or))
        .op(left(Rule::and))
        .op(left(Rule::less)
            | left(Rule::less_equal)
            | left(Rule::greater)
            | left(Rule::greater_equal)
            | left(Rule::equal)
            | left(Rule::not_equal))
        .op(left(Rule::add) | left(Rule::subtract))
        .op(left(Rule::multiply) | left(Rule::divide) | left(Rule::remainder) | left(Rule::matmul))
        .op(Op::prefix(Rule::negate) | Op::prefix(Rule::not))
});

/// An expression and how many nodes lie on the longest way down.
pub(crate) struct Deep {
    pub expr: Expr,
    depth: u32,
}

impl Deep {
    fn leaf(kind: ExprKind, span: Span) -> Self {
        Self { expr: Expr { kind, span }, depth: 1 }
    }
}

impl Reader<'_> {
    /// Any value: an expression or a range.
    pub(crate) fn value(&mut self, pair: Pair<'_, Rule>) -> Expr {
        self.deep_value(pair).expr
    }

    fn deep_value(&mut self, pair: Pair<'_, Rule>) -> Deep {
        let span = self.span(&pair);
        let (mut start, mut end, mut is_range) = (None, None, false);
        for part in pair.into_inner() {
            match part.as_rule() {
                Rule::dots => is_range = true,
                _ if is_range => end = Some(self.flat(part)),
                _ => start = Some(self.flat(part)),
            }
        }
        if !is_range {
            return start.unwrap_or_else(|| Deep::leaf(ExprKind::Bad, span));
        }
        let depth = 1 + start.iter().chain(&end).map(|side| side.depth).max().unwrap_or(0);
        let boxed = |side: Option<Deep>| side.map(|side| Box::new(side.expr));
        let kind = ExprKind::Range { start: boxed(start), end: boxed(end) };
        self.limit(Deep { expr: Expr { kind, span }, depth })
    }

    /// Operands and operators in a row.
    pub(crate) fn flat(&mut self, pair: Pair<'_, Rule>) -> Deep {
        let span = self.span(&pair);
        let parts = pair.into_inner();
        // Each operand but one has an operator before it; pest's table recurses over some of them.
        if parts.len() > 2 * EXPRESSION_DEPTH_MAX as usize {
            self.mistakes.add(|| mistakes::expression_too_deep(span));
            return Deep::leaf(ExprKind::Bad, span);
        }
        let mut operands = vec![];
        let mut row = vec![];
        for part in parts {
            row.push(part.clone());
            if matches!(part.as_rule(), Rule::postfix | Rule::plain_postfix) {
                operands.push(Some(self.postfix(part)));
            }
        }
        let mut next = operands.into_iter();
        let this = std::cell::RefCell::new(self);
        PRECEDENCE
            .map_primary(|_| next.next().flatten().unwrap_or_else(|| Deep::leaf(ExprKind::Bad, span)))
            .map_prefix(|op, value| this.borrow_mut().prefix(&op, value))
            .map_infix(|left, op, right| this.borrow_mut().infix(left, &op, right))
            .parse(row.into_iter())
    }

    fn prefix(&mut self, op: &Pair<'_, Rule>, value: Deep) -> Deep {
        let op_span = self.span(op);
        let symbol = if op.as_rule() == Rule::not { UnaryOp::Not } else { UnaryOp::Negate };
        let span = op_span.to(value.expr.span);
        let kind = ExprKind::Unary { op: Spanned::new(symbol, op_span), value: Box::new(value.expr) };
        self.limit(Deep { expr: Expr { kind, span }, depth: value.depth + 1 })
    }

    fn infix(&mut self, left: Deep, op: &Pair<'_, Rule>, right: Deep) -> Deep {
        let span = left.expr.span.to(right.expr.span);
        let depth = left.depth.max(right.depth) + 1;
        let kind = match binary_op(op.as_rule()) {
            Some(symbol) => ExprKind::Binary {
                op: Spanned::new(symbol, self.span(op)),
                left: Box::new(left.expr),
                right: Box::new(right.expr),
            },
            None => match lambda_params(left.expr) {
                Ok(params) => ExprKind::Lambda { params, body: Box::new(right.expr) },
                Err(place) => {
                    if let Some(place) = place {
                        self.mistakes.add(|| mistakes::lambda_needs_names(place));
                    }
                    ExprKind::Bad
                }
            },
        };
        self.limit(Deep { expr: Expr { kind, span }, depth })
    }

    /// `primary[…] as name`
    fn postfix(&mut self, pair: Pair<'_, Rule>) -> Deep {
        let whole = self.span(&pair);
        let mut parts = pair.into_inner();
        let mut deep = match parts.next() {
            Some(primary) => self.primary(primary),
            None => Deep::leaf(ExprKind::Bad, whole),
        };
        for part in parts {
            let span = deep.expr.span.to(self.span(&part));
            let value = Box::new(deep.expr);
            let (kind, depth) = match part.as_rule() {
                Rule::list => {
                    let (args, depth) = self.deep_arguments(part);
                    let indices = args.into_iter().map(|arg| self.unnamed(arg)).collect();
                    (ExprKind::Index { value, indices }, depth.max(deep.depth))
                }
                _ => match self.as_name(part) {
                    Some(name) => (ExprKind::As { value, name }, deep.depth),
                    None => (ExprKind::Bad, deep.depth),
                },
            };
            deep = self.limit(Deep { expr: Expr { kind, span }, depth: depth + 1 });
        }
        deep
    }

    fn primary(&mut self, pair: Pair<'_, Rule>) -> Deep {
        let span = self.span(&pair);
        match pair.as_rule() {
            Rule::number => Deep::leaf(self.number(pair), span),
            Rule::string => Deep::leaf(self.string(span), span),
            Rule::call => self.call(pair),
            Rule::group => self.group(pair),
            Rule::list => {
                let (args, depth) = self.deep_arguments(pair);
                let values = args.into_iter().map(|arg| self.unnamed(arg)).collect();
                self.limit(Deep { expr: Expr { kind: ExprKind::List(values), span }, depth: depth + 1 })
            }
            _ => Deep::leaf(ExprKind::Bad, span),
        }
    }

    fn number(&mut self, pair: Pair<'_, Rule>) -> ExprKind {
        let span = self.span(&pair);
        let mut value: f64 = 0.0;
        let mut unit = String::new();
        for part in pair.into_inner() {
            match part.as_rule() {
                Rule::digits => value = part.as_str().replace('_', "").parse().unwrap_or(f64::INFINITY),
                _ => unit = part.as_str().to_owned(),
            }
        }
        if value.is_finite() {
            return ExprKind::Number { value, unit };
        }
        let written = self.written(span);
        self.mistakes.add(|| mistakes::number_too_large(span, written));
        ExprKind::Bad
    }

    fn string(&mut self, span: Span) -> ExprKind {
        let written = self.written(span);
        let inner = written.get(1..written.len().saturating_sub(1)).unwrap_or("");
        let mut value = String::new();
        let mut chars = inner.char_indices();
        while let Some((at, char)) = chars.next() {
            if char != '\\' {
                value.push(char);
                continue;
            }
            let escaped = chars.next().map_or('\\', |(_, c)| c);
            match escaped {
                '"' | '\\' => value.push(escaped),
                'n' => value.push('\n'),
                't' => value.push('\t'),
                other => {
                    let start = span.start as usize + 1 + at;
                    let place = Span::new(self.file, start, start + 1 + other.len_utf8());
                    self.mistakes.add(|| mistakes::bad_escape(place, other));
                    value.push(other);
                }
            }
        }
        ExprKind::String(value)
    }

    /// `path` or `path(…)`
    fn call(&mut self, pair: Pair<'_, Rule>) -> Deep {
        let span = self.span(&pair);
        let mut path = Path { segments: vec![], scoped: vec![] };
        let mut args = None;
        for part in pair.into_inner() {
            match part.as_rule() {
                Rule::path => path = self.path(part),
                _ => args = Some(self.deep_arguments(part)),
            }
        }
        let Some((args, depth)) = args else {
            let word = match path.segments.as_slice() {
                [only] => only.value.as_str(),
                _ => "",
            };
            return Deep::leaf(
                match word {
                    "true" => ExprKind::Bool(true),
                    "false" => ExprKind::Bool(false),
                    _ => ExprKind::Path(path),
                },
                span,
            );
        };
        self.limit(Deep {
            expr: Expr { kind: ExprKind::Call { callee: path, args }, span },
            depth: depth + 1,
        })
    }

    fn path(&self, pair: Pair<'_, Rule>) -> Path {
        let mut path = Path { segments: vec![], scoped: vec![] };
        for part in pair.into_inner() {
            match part.as_rule() {
                Rule::name => path.segments.push(self.name(&part)),
                separator => path.scoped.push(separator == Rule::scope),
            }
        }
        path
    }

    /// `(…)` that is no call: one value in parentheses, or a tuple.
    fn group(&mut self, pair: Pair<'_, Rule>) -> Deep {
        let span = self.span(&pair);
        let trailing_comma =
            pair.clone().into_inner().last().is_some_and(|part| part.as_rule() == Rule::comma);
        let (args, depth) = self.deep_arguments(pair);
        let mut values: Vec<Expr> = args.into_iter().map(|arg| self.unnamed(arg)).collect();
        let kind = match (values.len(), trailing_comma) {
            (1, false) => ExprKind::Paren(Box::new(values.remove(0))),
            _ => ExprKind::Tuple(values),
        };
        self.limit(Deep { expr: Expr { kind, span }, depth: depth + 1 })
    }

    /// `as mlp.c_fc`; reports a missing name.
    pub(crate) fn as_name(&mut self, pair: Pair<'_, Rule>) -> Option<Name> {
        let span = self.span(&pair);
        match pair.into_inner().find(|part| part.as_rule() == Rule::dotted) {
            Some(name) => Some(self.name(&name)),
            None => {
                self.missing(span, "a name", "`as`");
                None
            }
        }
    }

    /// The elements of a bracket.
    pub(crate) fn arguments(&mut self, pair: Pair<'_, Rule>) -> Vec<Arg> {
        self.deep_arguments(pair).0
    }

    fn deep_arguments(&mut self, pair: Pair<'_, Rule>) -> (Vec<Arg>, u32) {
        let mut depth = 0;
        let mut args = vec![];
        for element in self.elements(pair) {
            let (arg, deep) = self.argument(element);
            args.push(arg);
            depth = depth.max(deep);
        }
        (args, depth)
    }

    /// What stands between the commas of a bracket; reports commas with nothing between.
    pub(crate) fn elements<'p>(&mut self, pair: Pair<'p, Rule>) -> Vec<Pair<'p, Rule>> {
        let mut elements = vec![];
        let mut expects_comma = false;
        for part in pair.into_inner() {
            let is_comma = part.as_rule() == Rule::comma;
            if is_comma && !expects_comma {
                let span = self.span(&part);
                self.missing(span, "a value", "the bracket or comma before this comma");
            }
            expects_comma = !is_comma;
            if !is_comma {
                elements.push(part);
            }
        }
        elements
    }

    fn argument(&mut self, pair: Pair<'_, Rule>) -> (Arg, u32) {
        let span = self.span(&pair);
        let mut name = None;
        let mut value = None;
        let mut depth = 1;
        for part in pair.into_inner() {
            match part.as_rule() {
                Rule::name => name = Some(self.name(&part)),
                Rule::field_op => drop(self.field_op(&part, name.as_ref(), "in a call")),
                Rule::value => {
                    let deep = self.deep_value(part);
                    depth = deep.depth;
                    value = Some(deep.expr);
                }
                _ => value = Some(self.leftover(value, &part, A_COMMA)),
            }
        }
        let value = match (value, &name) {
            (Some(value), _) => value,
            (None, Some(name)) => self.missing(span, "a value", &format!("`{}:`", name.value)),
            (None, None) => Expr { kind: ExprKind::Bad, span },
        };
        (Arg { name, value }, depth)
    }

    /// A list, tuple or index has no names in it.
    fn unnamed(&mut self, arg: Arg) -> Expr {
        let Some(name) = arg.name else { return arg.value };
        self.mistakes.add(|| {
            mistakes::unreadable(
                name.span,
                &name.value,
                "a value without a name: only a call names them",
                &[],
            )
        });
        Expr { kind: ExprKind::Bad, span: name.span.to(arg.value.span) }
    }

    /// Cuts what nests too deep for those who walk the tree.
    fn limit(&mut self, deep: Deep) -> Deep {
        if deep.depth <= EXPRESSION_DEPTH_MAX {
            return deep;
        }
        let span = deep.expr.span;
        self.mistakes.add(|| mistakes::expression_too_deep(span));
        Deep::leaf(ExprKind::Bad, span)
    }
}

/// The names left of `=>`, or the place that is none (nothing if it was reported).
fn lambda_params(left: Expr) -> Result<Vec<Name>, Option<Span>> {
    let span = left.span;
    let parts = match left.kind {
        ExprKind::Paren(one) => vec![*one],
        ExprKind::Tuple(parts) => parts,
        ExprKind::Bad => return Err(None),
        _ => return Err(Some(span)),
    };
    parts
        .into_iter()
        .map(|part| match part.kind {
            ExprKind::Path(Path { mut segments, scoped }) if scoped.is_empty() && segments.len() == 1 => {
                Ok(segments.remove(0))
            }
            ExprKind::Bad => Err(None),
            _ => Err(Some(part.span)),
        })
        .collect()
}

fn binary_op(rule: Rule) -> Option<BinaryOp> {
    Some(match rule {
        Rule::or => BinaryOp::Or,
        Rule::and => BinaryOp::And,
        Rule::less => BinaryOp::Less,
        Rule::less_equal => BinaryOp::LessEqual,
        Rule::greater => BinaryOp::Greater,
        Rule::greater_equal => BinaryOp::GreaterEqual,
        Rule::equal => BinaryOp::Equal,
        Rule::not_equal => BinaryOp::NotEqual,
        Rule::add => BinaryOp::Add,
        Rule::subtract => BinaryOp::Subtract,
        Rule::multiply => BinaryOp::Multiply,
        Rule::divide => BinaryOp::Divide,
        Rule::remainder => BinaryOp::Remainder,
        Rule::matmul => BinaryOp::Matmul,
        _ => return None,
    })
}
