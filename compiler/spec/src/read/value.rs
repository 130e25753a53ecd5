//! One setting's or argument's value, checked against its type.

use std::collections::BTreeMap;

use dspc_grammar::ast::{Arg, Expr, ExprKind, ItemKind, Path, UnaryOp};
use dspc_source::{FileId, Span, Spanned};

use super::Reader;
use super::held::{Held, HeldArg, HeldCall};
use super::quantity::{describe, written};
use crate::body::Name;
use crate::errors::*;
use crate::keys::{Argument, Bound, Fallback, Function, Key, Plain, Type};
use crate::numbers::number;
use crate::settings::Origin;
use crate::units::Dimension;

impl Reader<'_> {
    /// A setting's value, as written or by default, and where it comes from; `None` if it is wrong or missing, which is reported.
    pub fn held(&mut self, key: &'static Key) -> Option<(Held, Origin)> {
        self.open.push(key.path);
        let held = match (self.written.get(key.path), key.fallback) {
            (Some(entry), _) => {
                let expr = entry.value;
                self.value(key.name(), &key.ty, expr).map(|held| (held, Origin::Written(expr.span)))
            }
            (None, Fallback::Text(text)) => {
                self.default(key.name(), &key.ty, text).map(|held| (held, Origin::Default))
            }
            (None, Fallback::Required | Fallback::Derived(_)) => None,
        };
        self.open.pop();
        held
    }

    fn default(&mut self, place: &str, ty: &Type, text: &str) -> Option<Held> {
        self.value(place, ty, &expression(text)?).map(Held::unwritten)
    }

    /// Checks one value.
    fn value(&mut self, place: &str, ty: &Type, expr: &Expr) -> Option<Held> {
        match &expr.kind {
            ExprKind::Bad => None,
            ExprKind::Paren(inner) => self.value(place, ty, inner),
            ExprKind::Path(path) => self.word(place, ty, path, expr),
            ExprKind::Call { callee, args } => {
                let name = Name { value: written(callee), span: path_span(callee, expr.span) };
                match ty.functions.iter().find(|f| f.name == name.value) {
                    Some(_) if ty.plain == Some(Plain::Calls) => self.wrong(place, ty, expr, None),
                    Some(function) => self.call(function, &name, args),
                    None => self.unknown_word(place, ty, name),
                }
            }
            _ => match ty.plain {
                Some(plain) => self.plain(place, plain, ty, expr),
                None => self.wrong(place, ty, expr, None),
            },
        }
    }

    fn word(&mut self, place: &str, ty: &Type, path: &Path, expr: &Expr) -> Option<Held> {
        let name = Name { value: written(path), span: expr.span };
        if let Some(function) = ty.functions.iter().find(|f| f.name == name.value) {
            return self.call(function, &name, &[]);
        }
        match ty.plain {
            Some(plain @ (Plain::Whole { .. } | Plain::Real { .. } | Plain::Share | Plain::Bytes))
                if path.segments.len() > 1 || Key::find(&name.value).is_some() =>
            {
                self.plain(place, plain, ty, expr)
            }
            _ => self.unknown_word(place, ty, name),
        }
    }

    fn unknown_word(&mut self, place: &str, ty: &Type, word: Name) -> Option<Held> {
        let known = ty.functions.iter().map(|f| f.name).collect();
        self.mistakes.add(UnknownWord { word, place: place.into(), expected: ty.expected(), known });
        None
    }

    fn wrong(&mut self, place: &str, ty: &Type, expr: &Expr, meant: Option<String>) -> Option<Held> {
        let found = match (ty.plain, &expr.kind) {
            (Some(Plain::Texts), ExprKind::String(_)) => "one text",
            (_, kind) => describe(kind),
        };
        let expected = ty.expected();
        self.mistakes.add(WrongValue { value: expr.span, found, place: place.into(), expected, meant });
        None
    }

    fn plain(&mut self, place: &str, plain: Plain, ty: &Type, expr: &Expr) -> Option<Held> {
        match (plain, &expr.kind) {
            (Plain::Flag, ExprKind::Bool(flag)) => Some(Held::Flag(*flag)),
            (Plain::Text, ExprKind::String(text)) => Some(Held::Text(text.clone())),
            (Plain::Texts, ExprKind::List(items)) => self.texts(place, ty, items),
            (Plain::Calls, ExprKind::List(items)) => self.calls(place, ty, items),
            (Plain::Texts, ExprKind::String(text)) => {
                self.wrong(place, ty, expr, Some(format!("[\"{text}\"]")))
            }
            (Plain::Shares, ExprKind::Tuple(items)) if items.len() == 2 => {
                let both =
                    (self.share_of_pair(place, ty, &items[0]), self.share_of_pair(place, ty, &items[1]));
                Some(Held::Pair(both.0?, both.1?))
            }
            (Plain::Whole { .. } | Plain::Real { .. } | Plain::Share | Plain::Bytes, kind)
                if is_arithmetic(kind) =>
            {
                self.number(place, plain, ty, expr).map(Held::Number)
            }
            (Plain::Whole { .. } | Plain::Real { .. } | Plain::Share, ExprKind::String(text))
                if text.parse::<f64>().is_ok() =>
            {
                self.wrong(place, ty, expr, Some(text.clone()))
            }
            (Plain::Flag, ExprKind::String(text)) if text.parse::<bool>().is_ok() => {
                self.wrong(place, ty, expr, Some(text.clone()))
            }
            _ => self.wrong(place, ty, expr, None),
        }
    }

    fn share_of_pair(&mut self, place: &str, ty: &Type, expr: &Expr) -> Option<f64> {
        match is_arithmetic(&expr.kind) || matches!(expr.kind, ExprKind::Path(_)) {
            true => self.number(place, Plain::Share, ty, expr),
            false => self.wrong(place, ty, expr, None)?.number(),
        }
    }

    fn texts(&mut self, place: &str, ty: &Type, items: &[Expr]) -> Option<Held> {
        let mut texts = Some(vec![]);
        for item in items {
            match (&item.kind, &mut texts) {
                (ExprKind::String(text), Some(texts)) => texts.push(Spanned::new(text.clone(), item.span)),
                (ExprKind::String(_), None) | (ExprKind::Bad, _) => {}
                _ => {
                    self.wrong(place, ty, item, None);
                    texts = None;
                }
            }
        }
        texts.map(Held::Texts)
    }

    /// Calls of the type's functions.
    fn calls(&mut self, place: &str, ty: &Type, items: &[Expr]) -> Option<Held> {
        let one = Type { plain: None, ..*ty };
        let calls: Vec<_> = items
            .iter()
            .map(|item| match self.value(place, &one, item)? {
                Held::Call(call) => Some(Spanned::new(call, item.span)),
                _ => None,
            })
            .collect();
        calls.into_iter().collect::<Option<_>>().map(Held::Calls)
    }

    /// A number in its unit and range.
    fn number(&mut self, place: &str, plain: Plain, ty: &Type, expr: &Expr) -> Option<f64> {
        let q = self.quantity(expr)?;
        let fits = match plain {
            Plain::Whole { .. } => q.dimension == Dimension::Plain,
            Plain::Real { .. } | Plain::Share => matches!(q.dimension, Dimension::Plain | Dimension::Share),
            Plain::Bytes => q.dimension == Dimension::Bytes,
            Plain::Flag | Plain::Text | Plain::Texts | Plain::Shares | Plain::Calls | Plain::Model => true,
        };
        if !fits {
            let (expected, meant) = (plain.expected(), meant_unit(plain, &expr.kind));
            self.mistakes.add(WrongUnit {
                value: expr.span,
                found: q.dimension,
                place: place.into(),
                expected,
                meant,
            });
            return None;
        }
        self.in_range(place, plain, ty, Spanned::new(q.value, expr.span))
    }

    fn in_range(&mut self, place: &str, plain: Plain, ty: &Type, value: Spanned<f64>) -> Option<f64> {
        let x = value.value;
        let (ok, range, help) = match plain {
            Plain::Whole { of, .. } if x.fract() != 0.0 => {
                self.mistakes.add(NotWhole { value, place: place.into(), of });
                return None;
            }
            Plain::Whole { least, most, .. } => {
                let ok = x >= least as f64 && x <= most as f64;
                let near = if x < least as f64 { least } else { most };
                (ok, format!("from {least} to {}", number(most as f64)), number(near as f64))
            }
            Plain::Real { above, below } => {
                let ok = match (above, below) {
                    (Bound::Closed(a), Bound::Closed(b)) => a <= x && x <= b,
                    (Bound::Open(a), Bound::Closed(b)) => a < x && x <= b,
                    (Bound::Closed(a), Bound::Open(b)) => a <= x && x < b,
                    (Bound::Open(a), Bound::Open(b)) => a < x && x < b,
                };
                let word = ty.functions.iter().find(|f| f.args.is_empty()).map_or("1e-3", |f| f.name);
                (ok, plain.describe().replacen("number ", "", 1), word.to_string())
            }
            Plain::Share => {
                let percent = if (1.0..100.0).contains(&x) { format!("{x}%") } else { "10%".into() };
                ((0.0..1.0).contains(&x), "from 0% to below 100%".into(), percent)
            }
            Plain::Bytes => (x >= 1.0, "at least 1 byte".into(), "8GiB".into()),
            Plain::Flag | Plain::Text | Plain::Texts | Plain::Shares | Plain::Calls | Plain::Model => {
                (true, String::new(), String::new())
            }
        };
        if ok {
            return Some(x);
        }
        let help = format!("{place}: {help}");
        self.mistakes.add(OutOfRange { value, place: place.into(), range, help });
        None
    }

    /// A function's arguments: those written in their places, the rest by default.
    fn call(&mut self, function: &'static Function, name: &Name, args: &[Arg]) -> Option<Held> {
        let given = self.arguments(function, args);
        let missing: Vec<String> = function
            .args
            .iter()
            .filter(|arg| matches!(arg.fallback, Fallback::Required) && !given.contains_key(arg.name))
            .map(|arg| arg.name.to_string())
            .collect();
        if !missing.is_empty() {
            let (callee, usage) = (name.clone(), function.usage());
            self.mistakes.add(ArgumentMissing { names: missing, callee, usage, defined: None });
        }
        let held: Vec<_> =
            function.args.iter().map(|arg| self.argument(arg, given.get(arg.name).copied())).collect();
        Some(Held::Call(HeldCall { function, args: held.into_iter().collect::<Option<_>>()? }))
    }

    fn argument(&mut self, arg: &'static Argument, given: Option<&Expr>) -> Option<HeldArg> {
        let (value, span) = match (given, arg.fallback) {
            (Some(expr), _) => (self.value(arg.name, &arg.ty, expr)?, Some(expr.span)),
            (None, Fallback::Text(text)) => (self.default(arg.name, &arg.ty, text)?, None),
            (None, Fallback::Required | Fallback::Derived(_)) => return None,
        };
        Some(HeldArg { name: arg.name, value, span })
    }

    fn arguments<'e>(
        &mut self,
        function: &'static Function,
        args: &'e [Arg],
    ) -> BTreeMap<&'static str, &'e Expr> {
        let mut given: BTreeMap<&'static str, &'e Expr> = BTreeMap::new();
        let mut firsts: BTreeMap<&str, Span> = BTreeMap::new();
        for (i, arg) in args.iter().enumerate() {
            let found = match &arg.name {
                Some(name) => function.args.iter().find(|known| known.name == name.value),
                None => function.args.get(i).filter(|_| i < function.positional),
            };
            match (found, &arg.name) {
                (Some(known), name) => {
                    let place = name.as_ref().map_or(arg.value.span, |n| n.span);
                    match firsts.get(known.name) {
                        Some(&first) => {
                            self.mistakes.add(ArgumentTwice {
                                name: known.name.into(),
                                second: place,
                                first,
                            });
                        }
                        None => {
                            given.insert(known.name, &arg.value);
                            firsts.insert(known.name, place);
                        }
                    }
                }
                (None, Some(name)) => {
                    let known = function.args.iter().map(|known| known.name.to_string()).collect();
                    let callee = function.name.to_string();
                    self.mistakes.add(UnknownArgument { name: name.clone(), callee, known, defined: None });
                }
                (None, None) => self.mistakes.add(TooManyArguments {
                    extra: arg.value.span,
                    callee: function.name.into(),
                    takes: function.positional,
                    usage: function.usage(),
                    defined: None,
                }),
            }
        }
        given
    }
}

/// The expression of a default, which is kept as it would be written.
pub(crate) fn expression(text: &str) -> Option<Expr> {
    let (file, _) = dspc_grammar::parse(FileId(u32::MAX), &format!("x = {text}\n"));
    file.items.into_iter().find_map(|item| match item.kind {
        ItemKind::Setting { value, .. } => Some(value),
        ItemKind::Use(_)
        | ItemKind::Block { .. }
        | ItemKind::Layer(_)
        | ItemKind::Model(_)
        | ItemKind::Bad => None,
    })
}

fn path_span(path: &Path, otherwise: Span) -> Span {
    match (path.segments.first(), path.segments.last()) {
        (Some(first), Some(last)) => first.span.to(last.span),
        _ => otherwise,
    }
}

fn is_arithmetic(kind: &ExprKind) -> bool {
    match kind {
        ExprKind::Number { .. } | ExprKind::Binary { .. } | ExprKind::Path(_) => true,
        ExprKind::Unary { op, .. } => op.value == UnaryOp::Negate,
        _ => false,
    }
}

/// The number with the unit that would fit: `200M` for `200MB` where things are counted.
fn meant_unit(plain: Plain, kind: &ExprKind) -> Option<String> {
    let ExprKind::Number { value, unit } = kind else { return None };
    let value = crate::numbers::number(*value);
    let unit = match (plain, unit.as_str()) {
        (Plain::Whole { .. }, "kB") => "K",
        (Plain::Whole { .. }, "MB") => "M",
        (Plain::Whole { .. }, "GB") => "B",
        (Plain::Whole { .. }, "ms" | "s" | "min" | "h" | "%") => "",
        (Plain::Bytes, "") => "GB",
        (Plain::Bytes, "K") => "kB",
        (Plain::Bytes, "M") => "MB",
        (Plain::Bytes, "B") => "GB",
        _ => return None,
    };
    Some(format!("{value}{unit}"))
}
