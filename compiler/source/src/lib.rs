//! Files, spans and diagnostics: the bottom of the compiler. It alone renders an error.
//!
//! Never reads a file: texts are handed in. Knows nothing of the language.

#![forbid(unsafe_code)]

mod diagnostic;
mod file;
mod nearest;
mod render;

pub use diagnostic::{Diagnostic, Label, Patch, Severity};
pub use file::{FileId, SourceMap, Span, Spanned};
pub use nearest::nearest;
pub use render::{Colour, render_json, render_text};
