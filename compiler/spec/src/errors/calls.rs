//! Calls and their arguments, in settings and in bodies.

use dspc_source::{Diagnostic, Span};

use crate::body::Name;
use crate::errors::suggest;

/// E0105. A call names an argument that the callee does not have.
pub(crate) struct UnknownArgument {
    pub name: Name,
    pub callee: String,
    pub known: Vec<String>,
    /// Where the callee is defined, for one of the language.
    pub defined: Option<Span>,
}

impl From<UnknownArgument> for Diagnostic {
    fn from(it: UnknownArgument) -> Diagnostic {
        let title = format!("`{}` has no argument `{}`", it.callee, it.name.value);
        let d = Diagnostic::error("E0105", title, it.name.span, "not one of its arguments");
        let d = match it.defined {
            Some(span) => d.label(span, "defined here"),
            None => d,
        };
        let none = it.known.is_empty();
        let d = suggest(d, &it.name, it.known.iter().map(String::as_str), "it has");
        if none { d.note("it has none") } else { d }
    }
}

/// E0106. An argument is given twice.
pub(crate) struct ArgumentTwice {
    pub name: String,
    pub second: Span,
    pub first: Span,
}

impl From<ArgumentTwice> for Diagnostic {
    fn from(it: ArgumentTwice) -> Diagnostic {
        Diagnostic::error("E0106", format!("argument `{}` is given twice", it.name), it.second, "here again")
            .label(it.first, "first here")
            .help("keep one of the two")
    }
}

/// E0107. An argument without default is missing.
pub(crate) struct ArgumentMissing {
    pub names: Vec<String>,
    pub callee: Name,
    /// How the call would look.
    pub usage: String,
    /// Where the callee is defined, for one of the language.
    pub defined: Option<Span>,
}

impl From<ArgumentMissing> for Diagnostic {
    fn from(it: ArgumentMissing) -> Diagnostic {
        let names = crate::errors::listed(it.names.iter().map(String::as_str));
        let it_is = if it.names.len() == 1 { "it has" } else { "they have" };
        let title = format!("the call of `{}` lacks {names}", it.callee.value);
        let d = Diagnostic::error("E0107", title, it.callee.span, format!("{it_is} no default"));
        let d = match it.defined {
            Some(span) => d.label(span, "defined here"),
            None => d,
        };
        d.help(it.usage)
    }
}

/// E0108. More arguments without a name than the callee takes.
pub(crate) struct TooManyArguments {
    pub extra: Span,
    pub callee: String,
    pub takes: usize,
    pub usage: String,
    /// Where the callee is defined, for one of the language.
    pub defined: Option<Span>,
}

impl From<TooManyArguments> for Diagnostic {
    fn from(it: TooManyArguments) -> Diagnostic {
        let takes = match it.takes {
            0 => "no argument without its name".to_string(),
            1 => "one argument without its name".to_string(),
            n => format!("{n} arguments without their name"),
        };
        let d =
            Diagnostic::error("E0108", format!("`{}` takes {takes}", it.callee), it.extra, "one too many");
        let d = match it.defined {
            Some(span) => d.label(span, "defined here"),
            None => d,
        };
        d.help(it.usage)
    }
}

/// E0112. A call of something that is neither a layer nor a function.
pub(crate) struct UnknownFunction {
    pub name: Name,
    /// What may be called here.
    pub known: Vec<String>,
    /// A module in scope that has it.
    pub elsewhere: Option<String>,
    /// True where there are too many to list.
    pub many: bool,
}

impl From<UnknownFunction> for Diagnostic {
    fn from(it: UnknownFunction) -> Diagnostic {
        let title = format!("there is no layer or function `{}`", it.name.value);
        let d = Diagnostic::error("E0112", title, it.name.span, "not found");
        let near = crate::errors::near(&it.name.value, it.known.iter().map(String::as_str)).is_some();
        if let (false, Some(module)) = (near, &it.elsewhere) {
            let path = format!("{module}::{}", it.name.value);
            return d.help(format!("write `{path}`")).patch(it.name.span, path);
        }
        if it.many && !near {
            return d.help(format!("define it: layer {}(x: [B, T, D]) -> [B, T, D] {{ … }}", it.name.value));
        }
        suggest(d, &it.name, it.known.iter().map(String::as_str), "known are")
    }
}

/// E0120. A word or function that the setting or argument does not know.
pub(crate) struct UnknownWord {
    pub word: Name,
    /// The setting or argument: `optimizer`.
    pub place: String,
    pub expected: String,
    pub known: Vec<&'static str>,
}

impl From<UnknownWord> for Diagnostic {
    fn from(it: UnknownWord) -> Diagnostic {
        let title = format!("`{}` cannot be `{}`", it.place, it.word.value);
        let d = Diagnostic::error("E0120", title, it.word.span, format!("expected {}", it.expected));
        match crate::errors::near(&it.word.value, it.known.iter().copied()) {
            Some(near) => d.help(format!("did you mean `{near}`?")).patch(it.word.span, near),
            None => d.help(format!("write {}", it.expected)),
        }
    }
}

/// E0116. A layer that calls itself, directly or through others.
pub(crate) struct Recursion {
    pub name: Name,
    /// The call that closes the circle.
    pub call: Span,
    /// `a → b → a`
    pub circle: String,
}

impl From<Recursion> for Diagnostic {
    fn from(it: Recursion) -> Diagnostic {
        Diagnostic::error(
            "E0116",
            format!("`{}` calls itself", it.name.value),
            it.call,
            "this call closes the circle",
        )
        .label(it.name.span, "defined here")
        .note(it.circle)
        .help("for many turns of one layer write `repeat N as h { x = block(x) }`")
    }
}

/// E0117. `as` on something that is not a call of a layer.
pub(crate) struct NothingToName {
    pub alias: Name,
    pub value: Span,
    /// `gelu`, if it is a call of a function.
    pub function: Option<String>,
}

impl From<NothingToName> for Diagnostic {
    fn from(it: NothingToName) -> Diagnostic {
        let (title, label) = match it.function {
            Some(f) => (
                format!("`as {}` names a call that owns no parameters", it.alias.value),
                format!("`{f}` is a function, not a layer"),
            ),
            None => (
                format!("`as {}` names something that is not a call", it.alias.value),
                "not a call of a layer".into(),
            ),
        };
        Diagnostic::error("E0117", title, it.alias.span, "only a call of a layer has a name")
            .label(it.value, label)
            .help(format!(
                "to bind a value, write `{} = …` on a line of its own",
                it.alias.value.replace('.', "_")
            ))
    }
}

/// E0118. Two calls, params or repeats would give their parameters the same names.
pub(crate) struct SameParameterNames {
    pub path: String,
    pub second: Span,
    pub first: Span,
    /// True if the second has no `as` or name of its own.
    pub unnamed: bool,
    /// A name that is free.
    pub free: String,
}

impl From<SameParameterNames> for Diagnostic {
    fn from(it: SameParameterNames) -> Diagnostic {
        let title = format!("two parts of one scope are called `{}`", it.path);
        let help = match it.unnamed {
            true => format!("name this one: add `as {}`", it.free),
            false => format!("give this one another name: `{}`", it.free),
        };
        Diagnostic::error("E0118", title, it.second, "here again")
            .label(it.first, "first here")
            .note("a parameter's name is made of the names around it, so theirs would clash")
            .help(help)
    }
}

/// E0121. A layer where a model must stand, or a model where a layer must.
pub(crate) struct WrongKind {
    pub callee: Name,
    pub is_model: bool,
    pub defined: Span,
}

impl From<WrongKind> for Diagnostic {
    fn from(it: WrongKind) -> Diagnostic {
        let name = &it.callee.value;
        let (title, label, help) = match it.is_model {
            true => (
                format!("`{name}` is a model, and a body can call only layers"),
                "a model here",
                "put what both share into a layer and call that".to_string(),
            ),
            false => (
                format!("`{name}` is a layer, and `model` needs a model"),
                "a layer here",
                format!("model my_model(tokens: ids[B, T], targets: ids[B, T]) -> loss {{ … {name}(…) … }}"),
            ),
        };
        Diagnostic::error("E0121", title, it.callee.span, label).label(it.defined, "defined here").help(help)
    }
}

/// E0122. An argument of a model without its name, or a tensor handed to one.
pub(crate) struct ModelArgument {
    pub arg: Span,
    pub callee: String,
    /// Its compile-time parameters.
    pub known: Vec<String>,
    pub defined: Span,
}

impl From<ModelArgument> for Diagnostic {
    fn from(it: ModelArgument) -> Diagnostic {
        let known = crate::errors::listed(it.known.iter().map(String::as_str));
        let d = Diagnostic::error(
            "E0122",
            format!("sizes of the model `{}` go by their names", it.callee),
            it.arg,
            "which size is this?",
        )
        .label(it.defined, "defined here");
        match it.known.first() {
            Some(first) => d
                .note(format!("it has {known}; tokens and targets come from the data"))
                .help(format!("{first}: …")),
            None => d.note("it takes none; tokens and targets come from the data"),
        }
    }
}
