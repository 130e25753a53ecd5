//! Text in, syntax tree with spans out, and back (formatter). It alone names pest.
//!
//! The grammar (`grammar/dsp.pest`) is permissive: it takes any identifier where a name may stand, and what it
//! cannot read becomes a [`ast::ItemKind::Bad`], [`ast::FieldValue`] or [`ast::StatementKind::Bad`] node with a diagnostic, so that one parse
//! reports every mistake. It never resolves a name and never evaluates anything. Linear time on any input.

#![forbid(unsafe_code)]

pub mod ast;
