//! What the language can say and this version cannot run yet.

use dspc_source::{Diagnostic, Span};

/// E0320 to E0329. Refused, never ignored.
pub(crate) struct NotYet {
    pub code: &'static str,
    pub place: Span,
    /// "more than one rank"
    pub what: String,
    /// What to write instead.
    pub instead: &'static str,
}

impl From<NotYet> for Diagnostic {
    fn from(it: NotYet) -> Diagnostic {
        Diagnostic::error(it.code, format!("this version cannot run {} yet", it.what), it.place, "not yet")
            .help(it.instead)
    }
}
