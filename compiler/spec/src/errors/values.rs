//! Values and units.

use dspc_source::{Diagnostic, Span, Spanned};

use crate::body::Name;
use crate::units::{Dimension, UNITS};

/// E0201. A unit that does not exist.
pub(crate) struct UnknownUnit {
    pub unit: String,
    pub number: Span,
    /// The number with the unit that was meant.
    pub meant: Option<String>,
}

impl From<UnknownUnit> for Diagnostic {
    fn from(it: UnknownUnit) -> Diagnostic {
        let d = Diagnostic::error("E0201", format!("unknown unit `{}`", it.unit), it.number, "no such unit");
        match it.meant {
            Some(meant) => d.help(format!("did you mean `{meant}`?")).patch(it.number, meant),
            None => {
                let names = crate::errors::listed(UNITS.iter().map(|unit| unit.name));
                d.note(format!("units are {names}"))
            }
        }
    }
}

/// E0202. A unit that makes no sense here.
pub(crate) struct WrongUnit {
    pub value: Span,
    pub found: Dimension,
    /// The setting or argument.
    pub place: String,
    pub expected: String,
    /// The number with a unit that fits.
    pub meant: Option<String>,
}

impl From<WrongUnit> for Diagnostic {
    fn from(it: WrongUnit) -> Diagnostic {
        let title = match it.found {
            Dimension::Plain => format!("`{}` needs a unit", it.place),
            found => format!("`{}` is not measured in {}", it.place, found.noun()),
        };
        let d = Diagnostic::error("E0202", title, it.value, format!("expected {}", it.expected));
        match it.meant {
            Some(meant) => d.help(format!("write `{meant}`")).patch(it.value, meant),
            None => d,
        }
    }
}

/// E0203. A value of another kind than the setting or argument takes.
pub(crate) struct WrongValue {
    pub value: Span,
    /// "a text", "a list"
    pub found: &'static str,
    pub place: String,
    pub expected: String,
    /// What would be typed.
    pub meant: Option<String>,
}

impl From<WrongValue> for Diagnostic {
    fn from(it: WrongValue) -> Diagnostic {
        let title = format!("`{}` cannot be {}", it.place, it.found);
        let d = Diagnostic::error("E0203", title, it.value, format!("expected {}", it.expected));
        match it.meant {
            Some(meant) => d.help(format!("write `{meant}`")).patch(it.value, meant),
            None => d.help(format!("write {}", it.expected)),
        }
    }
}

/// E0204. A number with a fraction where things are counted.
pub(crate) struct NotWhole {
    pub value: Spanned<f64>,
    pub place: String,
    pub of: &'static str,
}

impl From<NotWhole> for Diagnostic {
    fn from(it: NotWhole) -> Diagnostic {
        let x = it.value.value;
        Diagnostic::error(
            "E0204",
            format!("`{}` must be a whole number", it.place),
            it.value.span,
            format!("{x} {}", it.of).trim_end(),
        )
        .help(format!("write `{}` or `{}`", x.floor(), x.ceil()))
    }
}

/// E0205. A number outside its range.
pub(crate) struct OutOfRange {
    pub value: Spanned<f64>,
    pub place: String,
    /// "at least 1"
    pub range: String,
    pub help: String,
}

impl From<OutOfRange> for Diagnostic {
    fn from(it: OutOfRange) -> Diagnostic {
        let x = crate::numbers::number(it.value.value);
        Diagnostic::error(
            "E0205",
            format!("`{}` cannot be {x}", it.place),
            it.value.span,
            format!("must be {}", it.range),
        )
        .help(it.help)
    }
}

/// E0206. Something that cannot be worked out before the run, in a setting.
pub(crate) struct NotConstant {
    pub value: Span,
    /// "an index", "a comparison"
    pub what: &'static str,
}

impl From<NotConstant> for Diagnostic {
    fn from(it: NotConstant) -> Diagnostic {
        Diagnostic::error("E0206", format!("a setting cannot hold {}", it.what), it.value, "not a constant")
            .note("a setting's number is made of numbers, `+ - * / %`, parentheses and other settings such as `data.sequence`")
            .help("write the number itself")
    }
}

/// What is wrong with a number.
#[derive(Clone, Copy)]
pub(crate) enum Arithmetic {
    DividesByZero,
    TooLarge,
}

/// E0207. Arithmetic without a usable result.
pub(crate) struct BadArithmetic {
    pub value: Span,
    pub what: Arithmetic,
}

impl From<BadArithmetic> for Diagnostic {
    fn from(it: BadArithmetic) -> Diagnostic {
        match it.what {
            Arithmetic::DividesByZero => {
                Diagnostic::error("E0207", "this number divides by zero", it.value, "no such number")
                    .help("divide by something other than 0")
            }
            Arithmetic::TooLarge => Diagnostic::error(
                "E0207",
                "this number is too large to be exact",
                it.value,
                "worked out here",
            )
            .note("whole numbers are exact up to 2^53 - 1")
            .help("write a smaller number"),
        }
    }
}

/// E0208. A path in a setting that names no number.
pub(crate) struct NoSuchNumber {
    pub path: Name,
    pub known: Vec<&'static str>,
    /// Why not, if there is such a setting.
    pub why: Option<&'static str>,
}

impl From<NoSuchNumber> for Diagnostic {
    fn from(it: NoSuchNumber) -> Diagnostic {
        let title = match it.why {
            Some(why) => format!("`{}` {why}", it.path.value),
            None => format!("`{}` is no setting", it.path.value),
        };
        let d = Diagnostic::error("E0208", title, it.path.span, "expected a number");
        match it.why {
            Some(_) => d.help("write the number itself"),
            None => crate::errors::suggest(d, &it.path, it.known, "numbers are"),
        }
    }
}

/// E0209. Settings that need each other.
pub(crate) struct Circle {
    pub path: Name,
    /// `train.batch → train.steps → train.batch`
    pub circle: String,
}

impl From<Circle> for Diagnostic {
    fn from(it: Circle) -> Diagnostic {
        Diagnostic::error(
            "E0209",
            format!("`{}` depends on itself", it.path.value),
            it.path.span,
            "this closes the circle",
        )
        .note(it.circle)
        .help("write one of them as a number")
    }
}

/// E0210. Nothing to learn from.
pub(crate) struct NoText {
    pub list: Span,
}

impl From<NoText> for Diagnostic {
    fn from(it: NoText) -> Diagnostic {
        Diagnostic::error("E0210", "`data.text` names no file", it.list, "an empty list")
            .help("text: [\"data/*.txt\"]")
    }
}

/// E0211. A tokenizer that is not built in.
pub(crate) struct UnknownTokenizer {
    pub name: Spanned<String>,
    pub known: &'static [&'static str],
}

impl From<UnknownTokenizer> for Diagnostic {
    fn from(it: UnknownTokenizer) -> Diagnostic {
        let title = format!("there is no tokenizer \"{}\"", it.name.value);
        let d = Diagnostic::error("E0211", title, it.name.span, "not built in");
        match crate::errors::near(&it.name.value, it.known.iter().copied()) {
            Some(near) => {
                d.help(format!("did you mean \"{near}\"?")).patch(it.name.span, format!("\"{near}\""))
            }
            None => d.help("write \"chars\", \"bytes\" or \"gpt2\""),
        }
    }
}

/// E0212. A sum of things of different kinds, such as bytes and tokens.
pub(crate) struct MixedUnits {
    pub left: Spanned<Dimension>,
    pub right: Spanned<Dimension>,
    pub operator: Span,
}

impl From<MixedUnits> for Diagnostic {
    fn from(it: MixedUnits) -> Diagnostic {
        let (left, right) = (it.left.value.noun(), it.right.value.noun());
        Diagnostic::error("E0212", format!("{left} and {right} do not combine"), it.operator, "here")
            .label(it.left.span, left)
            .label(it.right.span, right)
            .help("write both in one unit")
    }
}
