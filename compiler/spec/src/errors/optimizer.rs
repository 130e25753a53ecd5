//! The optimizer's constants that do not go together.

use dspc_source::{Diagnostic, Span, Spanned};

use crate::numbers::number;

/// E0308. Nesterov's step looks along a momentum that is not there.
pub(crate) struct NesterovAlone {
    pub nesterov: Span,
    /// `momentum: 0`, if it was written.
    pub momentum: Option<Span>,
}

impl From<NesterovAlone> for Diagnostic {
    fn from(it: NesterovAlone) -> Diagnostic {
        let title = "`nesterov` needs a `momentum`";
        let d = Diagnostic::error("E0308", title, it.nesterov, "looks ahead along the momentum");
        let d = match it.momentum {
            Some(momentum) => d.label(momentum, "none is kept"),
            None => d.note("`momentum` is 0 where nothing is said"),
        };
        d.help("momentum: 0.9")
    }
}

/// E0309. The least trust ratio is above the greatest.
pub(crate) struct RatiosCrossed {
    pub min: Spanned<f64>,
    pub max: Spanned<f64>,
}

impl From<RatiosCrossed> for Diagnostic {
    fn from(it: RatiosCrossed) -> Diagnostic {
        let (min, max) = (number(it.min.value), number(it.max.value));
        Diagnostic::error("E0309", "`min_ratio` is above `max_ratio`", it.min.span, format!("at least {min}"))
            .label(it.max.span, format!("at most {max}"))
            .help(format!("min_ratio: {max}, max_ratio: {min}"))
    }
}
