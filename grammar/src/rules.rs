//! The generated parser. Its rules are `dsp.pest`, at the top of this crate's folder.

#![allow(missing_docs, reason = "the derive writes an undocumented public enum")]

/// The parser that pest writes from `dsp.pest`.
#[derive(pest_derive::Parser)]
#[grammar = "../dsp.pest"]
pub(crate) struct Rules;
