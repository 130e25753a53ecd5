//! A setting's value, checked against its type and not yet turned into the type of its own.

use dspc_source::{Span, Spanned};

use crate::keys::Function;

/// A checked value.
#[derive(Clone)]
pub(crate) enum Held {
    /// A number in base units.
    Number(f64),
    /// A flag.
    Flag(bool),
    /// A text.
    Text(String),
    /// Texts.
    Texts(Vec<Spanned<String>>),
    /// Two numbers.
    Pair(f64, f64),
    /// A function with all its arguments.
    Call(HeldCall),
    /// Several, and where each stands.
    Calls(Vec<Spanned<HeldCall>>),
}

/// A function and its arguments, those left out included.
#[derive(Clone)]
pub(crate) struct HeldCall {
    /// Which.
    pub function: &'static Function,
    /// One for each argument of the function.
    pub args: Vec<HeldArg>,
}

/// An argument.
#[derive(Clone)]
pub(crate) struct HeldArg {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: Held,
    /// Where it stands, if it was written.
    pub span: Option<Span>,
}

impl Held {
    /// The same value as nobody wrote it: a default's text is no file of the user's, so no report may point into it.
    pub fn unwritten(self) -> Held {
        match self {
            Held::Call(call) => {
                let unwritten = |arg: HeldArg| HeldArg { value: arg.value.unwritten(), span: None, ..arg };
                Held::Call(HeldCall { args: call.args.into_iter().map(unwritten).collect(), ..call })
            }
            plain @ (Held::Number(_)
            | Held::Flag(_)
            | Held::Text(_)
            | Held::Texts(_)
            | Held::Pair(..)
            | Held::Calls(_)) => plain,
        }
    }

    /// The number, if it is one.
    pub fn number(&self) -> Option<f64> {
        match self {
            Held::Number(x) => Some(*x),
            Held::Flag(_)
            | Held::Text(_)
            | Held::Texts(_)
            | Held::Pair(..)
            | Held::Call(_)
            | Held::Calls(_) => None,
        }
    }

    /// The count, if it is a number; its range was checked.
    pub fn whole(&self) -> Option<u64> {
        self.number().map(|x| x as u64)
    }

    /// The count, or 0 for a word (`all`, `end`).
    pub fn whole_or_zero(&self) -> Option<u64> {
        match self {
            Held::Call(call) if call.function.args.is_empty() => Some(0),
            other => other.whole(),
        }
    }

    /// The flag, if it is one.
    pub fn flag(&self) -> Option<bool> {
        match self {
            Held::Flag(flag) => Some(*flag),
            Held::Number(_)
            | Held::Text(_)
            | Held::Texts(_)
            | Held::Pair(..)
            | Held::Call(_)
            | Held::Calls(_) => None,
        }
    }

    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Held::Text(text) => Some(text),
            Held::Number(_)
            | Held::Flag(_)
            | Held::Texts(_)
            | Held::Pair(..)
            | Held::Call(_)
            | Held::Calls(_) => None,
        }
    }

    /// The calls, if they are several.
    pub fn calls(&self) -> Option<&[Spanned<HeldCall>]> {
        match self {
            Held::Calls(calls) => Some(calls),
            Held::Number(_)
            | Held::Flag(_)
            | Held::Text(_)
            | Held::Texts(_)
            | Held::Pair(..)
            | Held::Call(_) => None,
        }
    }

    /// The function, if it is one.
    pub fn call(&self) -> Option<&HeldCall> {
        match self {
            Held::Call(call) => Some(call),
            Held::Number(_)
            | Held::Flag(_)
            | Held::Text(_)
            | Held::Texts(_)
            | Held::Pair(..)
            | Held::Calls(_) => None,
        }
    }
}

impl HeldCall {
    /// An argument by name.
    pub fn arg(&self, name: &str) -> Option<&HeldArg> {
        self.args.iter().find(|arg| arg.name == name)
    }

    /// A number by name.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.arg(name)?.value.number()
    }

    /// Two numbers by name.
    pub fn pair(&self, name: &str) -> Option<(f64, f64)> {
        match self.arg(name)?.value {
            Held::Pair(first, second) => Some((first, second)),
            _ => None,
        }
    }

    /// A count by name.
    pub fn whole(&self, name: &str) -> Option<u64> {
        self.arg(name)?.value.whole()
    }

    /// A flag by name.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.arg(name)?.value.flag()
    }

    /// A number and its place, if it was written.
    pub fn written_number(&self, name: &str) -> Option<Spanned<f64>> {
        let arg = self.arg(name)?;
        Some(Spanned::new(arg.value.number()?, arg.span?))
    }

    /// A count and its place, if it was written.
    pub fn written_whole(&self, name: &str) -> Option<Spanned<u64>> {
        self.written_number(name).map(|x| x.map(|x| x as u64))
    }
}
