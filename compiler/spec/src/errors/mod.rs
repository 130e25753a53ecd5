//! Mistakes of the user: one type each, with the facts as fields and its words below it; a file for each topic.
//!
//! Codes: E01xx names, E02xx values and units, E03xx settings that disagree or cannot run yet, W01xx warnings. Each has a page in
//! `docs/errors`.

mod batch;
mod bodies;
mod calls;
mod disagree;
mod names;
mod optimizer;
mod supported;
mod values;
mod warnings;

pub(crate) use batch::*;
pub(crate) use bodies::*;
pub(crate) use calls::*;
pub(crate) use disagree::*;
pub(crate) use names::*;
pub(crate) use optimizer::*;
pub(crate) use supported::*;
pub(crate) use values::*;
pub(crate) use warnings::*;

use dspc_source::{Diagnostic, Severity, Span};

/// The mistakes found so far.
#[derive(Default)]
pub(crate) struct Mistakes {
    found: Vec<Diagnostic>,
}

impl Mistakes {
    /// Adds one.
    pub fn add(&mut self, mistake: impl Into<Diagnostic>) {
        self.found.push(mistake.into());
    }

    /// True if one of them is an error.
    pub fn has_errors(&self) -> bool {
        self.found.iter().any(|d| d.severity == Severity::Error)
    }

    /// True if an error lies inside a place.
    pub fn has_error_within(&self, place: Span) -> bool {
        let inside =
            |span: Span| span.file == place.file && place.start <= span.start && span.end <= place.end;
        self.found.iter().any(|d| d.severity == Severity::Error && inside(d.primary.span))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.found.len()
    }

    /// All, in the order of the text, the same mistake once.
    pub fn into_sorted(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|d| (d.primary.span.file, d.primary.span.start, d.code));
        self.found.dedup();
        self.found
    }
}

/// "`a`, `b` and `c`".
pub(crate) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match names.pop() {
        Some(last) if !names.is_empty() => format!("{} and {last}", names.join(", ")),
        last => last.unwrap_or_default(),
    }
}

/// The known name nearest to a word; a word of one letter is near to everything and so to nothing.
pub(crate) fn near<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.chars().count() > 1 { dspc_source::nearest(word, known) } else { None }
}

/// Adds "did you mean", with its edit, or else what is known.
fn suggest<'a>(
    diagnostic: Diagnostic,
    word: &dspc_source::Spanned<String>,
    known: impl IntoIterator<Item = &'a str> + Clone,
    what: &str,
) -> Diagnostic {
    match near(&word.value, known.clone()) {
        Some(near) => diagnostic.help(format!("did you mean `{near}`?")).patch(word.span, near),
        None => match listed(known) {
            names if names.is_empty() => diagnostic,
            names => diagnostic.note(format!("{what} {names}")),
        },
    }
}
