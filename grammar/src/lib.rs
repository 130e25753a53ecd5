//! Text in, syntax tree with spans out, and back (formatter). It alone names pest.
//!
//! The grammar (`dsp.pest`) is permissive: it takes any identifier where a name may stand, and what it cannot read
//! becomes a `Bad` node ([`ast::ItemKind::Bad`], [`ast::StatementKind::Bad`], [`ast::ExprKind::Bad`]) with a diagnostic, so that
//! one parse reports every mistake. It never resolves a name, never evaluates anything and never reads a file. Linear
//! time on any input, within a quarter megabyte of stack.

#![forbid(unsafe_code)]

pub mod ast;
mod expression;
mod format;
mod items;
mod layout;
mod mistakes;
mod print;
mod rules;

use dspc_source::{Diagnostic, FileId, Span};
use pest::Parser;

pub use format::format;
pub use print::print_tree;

/// Reads a file. Never fails: what cannot be read is a `Bad` node, and reported.
///
/// The diagnostics are in the order of the text, E0001 to E0099, at most a hundred.
pub fn parse(file: FileId, text: &str) -> (ast::File, Vec<Diagnostic>) {
    if text.len() > mistakes::FILE_BYTES_MAX {
        return (ast::File::default(), vec![mistakes::file_too_large(file, text.len())]);
    }
    let layout = layout::lay_out(file, text);
    let mut reader = items::Reader { file, text, shadow: &layout.shadow, mistakes: layout.mistakes };
    let items = match rules::Rules::parse(rules::Rule::file, &layout.shadow) {
        Ok(pairs) => reader.items(pairs),
        Err(error) => {
            // No text is known that comes here: every rule inside a line, a bracket or a block takes what is left over.
            let at = match error.location {
                pest::error::InputLocation::Pos(at) | pest::error::InputLocation::Span((at, _)) => at,
            };
            reader
                .mistakes
                .add(|| mistakes::unreadable(Span::new(file, at, at), &text[at..], "an item", &[]));
            vec![]
        }
    };
    (ast::File { items, comments: layout.comments }, reader.mistakes.into_diagnostics())
}
