//! Bodies of layers and models.

use dspc_source::{Diagnostic, Span};

use crate::body::Name;
use crate::errors::suggest;

/// Why a binding of a name does not count at a place.
#[derive(Clone, Copy)]
pub(crate) enum Elsewhere {
    /// It stands further down.
    Later,
    /// It was of one turn of a `repeat` that is over.
    Gone,
}

impl Elsewhere {
    fn label(self) -> &'static str {
        match self {
            Elsewhere::Later => "bound only here, later",
            Elsewhere::Gone => "bound here, for one turn of the `repeat`",
        }
    }

    fn help(self, name: &str) -> String {
        match self {
            Elsewhere::Later => "move that line above this one".into(),
            Elsewhere::Gone => format!("bind it before the `repeat`, which then carries it on: {name} = …"),
        }
    }
}

/// E0115. A name that nothing has at this place.
pub(crate) struct UnknownName {
    pub name: Name,
    pub known: Vec<String>,
    /// Where the name is bound after all, but not for this place, and why not.
    pub bound_elsewhere: Option<(Span, Elsewhere)>,
    /// The name by which the body knows a parameter of this name: `H` for `heads`.
    pub known_as: Option<Name>,
}

impl From<UnknownName> for Diagnostic {
    fn from(it: UnknownName) -> Diagnostic {
        let word = &it.name;
        let d = Diagnostic::error(
            "E0115",
            format!("unknown name `{}`", word.value),
            word.span,
            "nothing has this name here",
        );
        if let Some(known) = it.known_as {
            return d
                .label(known.span, format!("the body knows it as `{}`", known.value))
                .help(format!("write `{}`", known.value))
                .patch(word.span, known.value);
        }
        if let Some((span, why)) = it.bound_elsewhere {
            return d.label(span, why.label()).help(why.help(&word.value));
        }
        suggest(d, word, it.known.iter().map(String::as_str), "in scope are")
    }
}

/// E0123. A body without a result.
pub(crate) struct NoResult {
    pub name: Name,
    /// The last statement, or the whole body.
    pub last: Span,
    /// The name that the last statement binds, if it does.
    pub bound: Option<String>,
}

impl From<NoResult> for Diagnostic {
    fn from(it: NoResult) -> Diagnostic {
        let title = format!("the body of `{}` has no result", it.name.value);
        let d = Diagnostic::error("E0123", title, it.last, "the last statement must be an expression")
            .label(it.name.span, "defined here");
        match it.bound {
            Some(bound) => d.help(format!("add a line that yields it: {bound}")),
            None => d.help("add a last line that yields a value: x"),
        }
    }
}

/// E0124. An expression that is not the last statement: its value is lost.
pub(crate) struct ValueLost {
    pub value: Span,
    pub in_repeat: bool,
}

impl From<ValueLost> for Diagnostic {
    fn from(it: ValueLost) -> Diagnostic {
        let note = match it.in_repeat {
            true => "a `repeat` has no result; it carries the names that it binds",
            false => "only the last statement of a body is its result",
        };
        Diagnostic::error("E0124", "the value of this expression is not used", it.value, "bind it to a name")
            .note(note)
            .help("x = …")
    }
}

/// E0125. What a definition says it yields does not suit it.
pub(crate) struct WrongResult {
    pub name: Name,
    /// The result as written, or the name where none is.
    pub place: Span,
    pub is_model: bool,
}

impl From<WrongResult> for Diagnostic {
    fn from(it: WrongResult) -> Diagnostic {
        let name = &it.name.value;
        let (title, help) = match it.is_model {
            true => {
                (format!("the model `{name}` must yield a loss"), format!("model {name}(…) -> loss {{ … }}"))
            }
            false => (
                format!("the layer `{name}` must yield a tensor"),
                format!("layer {name}(x: [B, T, D]) -> [B, T, D] {{ … }}"),
            ),
        };
        Diagnostic::error("E0125", title, it.place, "expected here").help(help)
    }
}

/// E0126. A model has a tensor parameter other than `tokens: ids[…]` and `targets: ids[…]`.
pub(crate) struct ModelInput {
    pub model: Name,
    /// The parameter that should not be, or the model's name where one is missing.
    pub place: Span,
    /// `tokens` or `targets`, where one is missing.
    pub missing: Option<&'static str>,
}

impl From<ModelInput> for Diagnostic {
    fn from(it: ModelInput) -> Diagnostic {
        let name = &it.model.value;
        let (title, label) = match it.missing {
            Some(missing) => (format!("the model `{name}` lacks `{missing}`"), "not among its parameters"),
            None => (format!("the model `{name}` gets only `tokens` and `targets`"), "nothing hands this in"),
        };
        Diagnostic::error("E0126", title, it.place, label)
            .note("the data gives a model the ids of a sequence and those that follow each")
            .help(format!("model {name}(tokens: ids[B, T], targets: ids[B, T], …) -> loss {{ … }}"))
    }
}

/// E0127. `a.b`, `a::b` where a body wants a plain name, or a call of such a path.
pub(crate) struct NotAName {
    pub place: Span,
    pub written: String,
}

impl From<NotAName> for Diagnostic {
    fn from(it: NotAName) -> Diagnostic {
        Diagnostic::error(
            "E0127",
            format!("`{}` is no value of a body", it.written),
            it.place,
            "expected a plain name",
        )
        .note("settings such as `data.vocab` reach a model as arguments of its call")
        .help("add a parameter for it: vocab: V")
    }
}

/// E0128. One statement binds a name twice.
pub(crate) struct BoundTwice {
    pub name: Name,
    pub first: Span,
}

impl From<BoundTwice> for Diagnostic {
    fn from(it: BoundTwice) -> Diagnostic {
        Diagnostic::error(
            "E0128",
            format!("`{}` is bound twice at once", it.name.value),
            it.name.span,
            "here again",
        )
        .label(it.first, "first here")
        .help("give one of them another name")
    }
}
