//! Reports for people (rustc's look, through annotate-snippets) and for programs (JSON lines).

use crate::{Diagnostic, SourceMap};

/// Whether the text carries terminal colours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Colour {
    /// ANSI escapes.
    Ansi,
    /// Plain text.
    Plain,
}

/// All diagnostics as text for people, one blank line between two.
pub fn render_text(_diagnostics: &[Diagnostic], _sources: &SourceMap, _colour: Colour) -> String {
    String::new()
}

/// One JSON object a line.
pub fn render_json(_diagnostics: &[Diagnostic], _sources: &SourceMap) -> String {
    String::new()
}
