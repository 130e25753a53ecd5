//! A mistake of the user, as data.

use crate::Span;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// The spec works, and something in it has no effect or is likely a slip.
    Warning,
    /// The spec cannot be built.
    Error,
}

/// A place and what it has to do with the mistake.
#[derive(Clone, PartialEq, Debug)]
pub struct Label {
    /// The place.
    pub span: Span,
    /// What to know of it; may be empty.
    pub text: String,
}

/// Text to put in place of a span; an empty span inserts.
#[derive(Clone, PartialEq, Debug)]
pub struct Patch {
    /// What is replaced.
    pub span: Span,
    /// By what.
    pub text: String,
}

/// One mistake: collected, so that one run shows all.
///
/// `title` makes sense alone: lower case, no full stop, names in backticks. `primary` is where it is;
/// `labels` are the other places and say why. `help` is something to type.
#[derive(Clone, PartialEq, Debug)]
pub struct Diagnostic {
    /// Stable code, `E0312` or `W0101`; `dspc explain` and `docs/errors/` answer to it.
    pub code: &'static str,
    /// Error or warning.
    pub severity: Severity,
    /// The first line.
    pub title: String,
    /// Where it is.
    pub primary: Label,
    /// Other places that matter.
    pub labels: Vec<Label>,
    /// Facts, one line each.
    pub notes: Vec<String>,
    /// What to type instead.
    pub help: Vec<String>,
    /// The same as an edit, where one is certain.
    pub patches: Vec<Patch>,
}

impl Diagnostic {
    /// An error at a place.
    pub fn error(code: &'static str, title: impl Into<String>, span: Span, label: impl Into<String>) -> Self {
        Self::new(Severity::Error, code, title.into(), span, label.into())
    }

    /// A warning at a place.
    pub fn warning(
        code: &'static str,
        title: impl Into<String>,
        span: Span,
        label: impl Into<String>,
    ) -> Self {
        Self::new(Severity::Warning, code, title.into(), span, label.into())
    }

    fn new(severity: Severity, code: &'static str, title: String, span: Span, text: String) -> Self {
        let primary = Label { span, text };
        Self { code, severity, title, primary, labels: vec![], notes: vec![], help: vec![], patches: vec![] }
    }

    /// Adds another place.
    pub fn label(mut self, span: Span, text: impl Into<String>) -> Self {
        self.labels.push(Label { span, text: text.into() });
        self
    }

    /// Adds a fact.
    pub fn note(mut self, text: impl Into<String>) -> Self {
        self.notes.push(text.into());
        self
    }

    /// Adds what to type.
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help.push(text.into());
        self
    }

    /// Adds an edit that mends it.
    pub fn patch(mut self, span: Span, text: impl Into<String>) -> Self {
        self.patches.push(Patch { span, text: text.into() });
        self
    }
}
