//! The formatter: one look for every text, without options.
//!
//! Two blanks of indent; one field, statement or item a line; single blanks round operators (`3*D`, a number before a
//! name, stays tight). What does not fit in 100 columns wraps one element a line with a comma after the last, or goes on
//! below an operator. A body of one statement written on one line stays there while it fits. Comments and single blank
//! lines are kept; a comment from inside an operator's reach moves above its line.
//!
//! Never changes the tree (but for spans), and formatting twice is formatting once. Refuses a text with mistakes.

mod document;
mod write;

use dspc_source::{Diagnostic, FileId};

use crate::parse;

/// Formats a text; a text with mistakes is not touched, and they are returned (their file is `FileId(0)`).
pub fn format(text: &str) -> Result<String, Vec<Diagnostic>> {
    let (file, mistakes) = parse(FileId(0), text);
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let rows = document::Source { text, comments: &file.comments }.items(&file.items);
    Ok(write::write(text, &file.comments, &rows))
}
