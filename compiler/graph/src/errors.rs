//! Mistakes that only sizes show: one type each, its facts as fields, its words below it.

use dspc_source::{Diagnostic, Span};

use crate::ir::{Dim, TensorType};

/// A place and what a reader should see there.
pub(crate) type Place = (Span, String);

fn with_places(mut diagnostic: Diagnostic, places: Vec<Place>) -> Diagnostic {
    for (span, text) in places {
        if diagnostic.labels.iter().all(|l| l.span != span) && diagnostic.primary.span != span {
            diagnostic = diagnostic.label(span, text);
        }
    }
    diagnostic
}

/// `f32 [B, T, D] = [4, 128, 64]`, dims with names once more as numbers.
pub(crate) fn shown(ty: &TensorType) -> String {
    let sizes: Vec<String> = ty.dims.iter().map(|d| d.size.to_string()).collect();
    let names: Vec<&str> = ty.dims.iter().map(|d| d.name.as_str()).collect();
    match ty.dims.is_empty() {
        true => "a scalar".to_owned(),
        false if names.iter().zip(&sizes).all(|(n, s)| n == s) => format!("[{}]", sizes.join(", ")),
        false => format!("[{}] = [{}]", names.join(", "), sizes.join(", ")),
    }
}

/// Where a dim got its size, if that is known.
pub(crate) fn origin(dim: &Dim) -> Option<Place> {
    let text = if dim.name == dim.size.to_string() {
        format!("{} is said here", dim.size)
    } else {
        format!("`{}` is {} because of this", dim.name, dim.size)
    };
    dim.place.map(|span| (span, text))
}

/// E0401. Operands do not fit an op.
pub(crate) struct ShapeMismatch {
    pub op: &'static str,
    pub message: String,
    pub call: Span,
    pub places: Vec<Place>,
}

impl From<ShapeMismatch> for Diagnostic {
    fn from(e: ShapeMismatch) -> Self {
        let title = format!("the operands of `{}` do not fit", e.op);
        with_places(Diagnostic::error("E0401", title, e.call, "here").note(e.message), e.places)
    }
}

/// E0403. A width is no multiple of the heads.
pub(crate) struct HeadsDoNotDivide {
    pub heads: Dim,
    pub width: Dim,
    pub call: Span,
    pub places: Vec<Place>,
    /// Each head needs an even width.
    pub halves: bool,
}

impl From<HeadsDoNotDivide> for Diagnostic {
    fn from(e: HeadsDoNotDivide) -> Self {
        let (heads, width) = (e.heads.size, e.width.size);
        let unit = if e.halves { heads.saturating_mul(2) } else { heads };
        let halves = if e.halves { " of two halves" } else { "" };
        let title = format!("{heads} heads{halves} do not divide a width of {width}");
        let mut d =
            with_places(Diagnostic::error("E0403", title, e.call, "the heads are cut here"), e.places);
        if e.halves {
            d = d.note(format!(
                "each head is turned in two halves: the width must be a multiple of 2 × {heads}"
            ));
        }
        if unit == 0 {
            return d.help("`heads` must be at least 1");
        }
        let below = width / unit * unit;
        let fit =
            if below == 0 { format!("{unit}") } else { format!("{below} or {}", below.saturating_add(unit)) };
        d.help(format!("the nearest widths that fit are {fit}"))
    }
}

/// E0404. A size is not a whole number of at least 1.
pub(crate) struct SizeNotWhole {
    pub text: String,
    pub value: f64,
    pub span: Span,
    pub places: Vec<Place>,
    /// `T / 3 = 64 / 3`
    pub parts: Option<String>,
}

impl From<SizeNotWhole> for Diagnostic {
    fn from(e: SizeNotWhole) -> Self {
        let why = if e.value.fract() != 0.0 { "no whole number" } else { "not at least 1" };
        let title = format!("`{}` is {}, which is {why}", e.text, e.value);
        let mut d = with_places(Diagnostic::error("E0404", title, e.span, "a size is expected"), e.places);
        if let Some(parts) = e.parts {
            d = d.note(parts);
        }
        d
    }
}

/// E0405. Another kind of value than the place needs.
pub(crate) struct WrongKind {
    pub expected: String,
    pub found: String,
    pub span: Span,
    pub places: Vec<Place>,
    pub help: Option<String>,
}

impl From<WrongKind> for Diagnostic {
    fn from(e: WrongKind) -> Self {
        let title = format!("{} is expected, and this is {}", e.expected, e.found);
        let d = with_places(Diagnostic::error("E0405", title, e.span, format!("{} here", e.found)), e.places);
        match e.help {
            Some(help) => d.help(help),
            None => d,
        }
    }
}

/// E0406. A definition yields something else than it says.
pub(crate) struct ResultDiffers {
    pub definition: String,
    pub declared: String,
    pub found: String,
    pub result: Span,
    pub declaration: Span,
    pub places: Vec<Place>,
}

impl From<ResultDiffers> for Diagnostic {
    fn from(e: ResultDiffers) -> Self {
        let title = format!("`{}` does not yield what it says", e.definition);
        let d = Diagnostic::error("E0406", title, e.result, format!("this is {}", e.found));
        with_places(d.label(e.declaration, format!("{} is promised here", e.declared)), e.places)
    }
}

/// E0407. A name that a repeat carries changes its type.
pub(crate) struct CarriedChanges {
    pub name: String,
    pub before: String,
    pub after: String,
    pub bound: Span,
    pub rebound: Span,
}

impl From<CarriedChanges> for Diagnostic {
    fn from(e: CarriedChanges) -> Self {
        let title = format!("`{}` changes its type from turn to turn", e.name);
        Diagnostic::error("E0407", title, e.rebound, format!("after a turn it is {}", e.after))
            .label(e.bound, format!("before the repeat it is {}", e.before))
            .note("a name that a repeat binds again is carried from turn to turn, so it keeps its type")
            .help("give the new value another name")
    }
}

/// E0408. Two parameters with one name.
pub(crate) struct ParamTwice {
    pub path: String,
    pub first: Span,
    pub second: Span,
    pub are_calls: bool,
}

impl From<ParamTwice> for Diagnostic {
    fn from(e: ParamTwice) -> Self {
        let title = format!("two parameters would be called `{}`", e.path);
        let d = Diagnostic::error("E0408", title, e.second, "the second")
            .label(e.first, if e.are_calls { "the first comes from this call" } else { "the first" });
        if e.are_calls {
            d.help("give each call a name of its own with `as`")
        } else {
            d.help("give one another name")
        }
    }
}

/// E0409. The model passes a limit of the compiler.
pub(crate) struct TooLarge {
    pub what: String,
    pub limit: String,
    pub span: Span,
    pub places: Vec<Place>,
}

impl From<TooLarge> for Diagnostic {
    fn from(e: TooLarge) -> Self {
        let d = Diagnostic::error("E0409", format!("{} is too large", e.what), e.span, "here");
        with_places(d.note(format!("the limit is {}", e.limit)), e.places)
    }
}

/// E0411. The model does not end in a loss.
pub(crate) struct NoLoss {
    pub model: String,
    pub found: String,
    pub result: Span,
}

impl From<NoLoss> for Diagnostic {
    fn from(e: NoLoss) -> Self {
        let title = format!("the model `{}` does not end in a loss", e.model);
        Diagnostic::error("E0411", title, e.result, format!("this is {}", e.found))
            .help("end the model with `cross_entropy(logits, targets)`")
    }
}

/// E0412. A tensor does not fit the dims that a definition names.
pub(crate) struct ArgumentDims {
    pub definition: String,
    pub param: String,
    pub expected: String,
    pub found: String,
    pub argument: Span,
    pub declaration: Span,
    pub places: Vec<Place>,
}

impl From<ArgumentDims> for Diagnostic {
    fn from(e: ArgumentDims) -> Self {
        let title = format!("`{}` of `{}` does not fit its dims", e.param, e.definition);
        let d = Diagnostic::error("E0412", title, e.argument, format!("this is {}", e.found));
        with_places(d.label(e.declaration, e.expected), e.places)
    }
}

/// E0413. As many names as values.
pub(crate) struct NameCount {
    pub names: usize,
    pub values: usize,
    pub span: Span,
    pub value: Span,
}

impl From<NameCount> for Diagnostic {
    fn from(e: NameCount) -> Self {
        let plural = |n: usize, what: &str| if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") };
        let title = format!("{} for {}", plural(e.names, "name"), plural(e.values, "value"));
        Diagnostic::error("E0413", title, e.span, plural(e.names, "name"))
            .label(e.value, plural(e.values, "value"))
    }
}

/// E0414. A call's arguments do not match the parameters.
pub(crate) struct BadArguments {
    pub function: String,
    pub message: String,
    pub span: Span,
    pub signature: String,
}

impl From<BadArguments> for Diagnostic {
    fn from(e: BadArguments) -> Self {
        let title = format!("the call of `{}` {}", e.function, e.message);
        Diagnostic::error("E0414", title, e.span, "here").note(format!("it is `{}`", e.signature))
    }
}

/// E0417. A value that an argument may not have.
pub(crate) struct OutOfRange {
    pub function: &'static str,
    pub param: &'static str,
    pub message: String,
    pub span: Span,
    pub said: Option<Place>,
}

impl From<OutOfRange> for Diagnostic {
    fn from(e: OutOfRange) -> Self {
        let title = format!("`{}` of `{}` {}", e.param, e.function, e.message);
        with_places(Diagnostic::error("E0417", title, e.span, "here"), e.said.into_iter().collect())
    }
}
