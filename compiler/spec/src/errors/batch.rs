//! The batch equation: `batch = micro_batch × accumulation × data ranks`.

use dspc_source::{Diagnostic, Span, Spanned};

/// The ranks that share the batch, and where that was said.
#[derive(Clone, Copy)]
pub(crate) struct DataRanks {
    pub count: u64,
    /// None if it is the default.
    pub span: Option<Span>,
}

impl DataRanks {
    fn label(self, d: Diagnostic) -> Diagnostic {
        match self.span {
            Some(span) if self.count == 1 => d.label(span, "1 rank has the whole batch"),
            Some(span) => d.label(span, format!("{} ranks share the batch", self.count)),
            None => d,
        }
    }
}

/// "`batch: 6` and `batch: 12`": the multiples of `unit` next to `value`.
fn nearest_multiples(name: &str, value: u64, unit: u64) -> String {
    let below = value / unit * unit;
    match (below, below.checked_add(unit)) {
        (0, Some(above)) => format!("the nearest that fits is `{name}: {above}`"),
        (below, Some(above)) => format!("the nearest that fit are `{name}: {below}` and `{name}: {above}`"),
        (below, None) => format!("the nearest that fits is `{name}: {below}`"),
    }
}

/// E0312. `batch = micro_batch × accumulation × data_ranks` has no whole `accumulation`.
pub(crate) struct BatchUnreachable {
    pub batch: Spanned<u64>,
    pub micro_batch: Spanned<u64>,
    pub data_ranks: DataRanks,
}

impl From<BatchUnreachable> for Diagnostic {
    fn from(it: BatchUnreachable) -> Diagnostic {
        let (batch, micro, ranks) = (it.batch.value, it.micro_batch.value, it.data_ranks.count);
        let at_once = micro.saturating_mul(ranks);
        let title = match ranks {
            1 => "`batch` cannot be reached with this micro-batch",
            _ => "`batch` cannot be reached with this many ranks",
        };
        let d = Diagnostic::error("E0312", title, it.batch.span, format!("{batch} sequences a step"))
            .label(it.micro_batch.span, format!("{micro} sequences a rank at once"));
        it.data_ranks
            .label(d)
            .note(format!(
                "{micro} × {ranks} = {at_once} at once, and {batch} is not a multiple of {at_once}"
            ))
            .help(nearest_multiples("batch", batch, at_once.max(1)))
    }
}

/// E0313. All three terms are written, and their product is another number.
pub(crate) struct BatchDisagrees {
    pub batch: Spanned<u64>,
    pub micro_batch: Spanned<u64>,
    pub accumulation: Spanned<u64>,
    pub data_ranks: DataRanks,
}

impl From<BatchDisagrees> for Diagnostic {
    fn from(it: BatchDisagrees) -> Diagnostic {
        let (batch, micro) = (it.batch.value, it.micro_batch.value);
        let (accumulation, ranks) = (it.accumulation.value, it.data_ranks.count);
        let product = u128::from(micro) * u128::from(accumulation) * u128::from(ranks);
        let d = Diagnostic::error(
            "E0313",
            "`batch` is not the product of its parts",
            it.batch.span,
            format!("{batch} sequences a step"),
        )
        .label(it.micro_batch.span, format!("{micro} sequences a rank at once"))
        .label(it.accumulation.span, format!("{accumulation} micro-batches a step"));
        let d = it
            .data_ranks
            .label(d)
            .note(format!("{micro} × {accumulation} × {ranks} = {product}, not {batch}"));
        let at_once = micro.saturating_mul(ranks);
        match batch % at_once.max(1) {
            0 if at_once <= batch => {
                d.help(format!("`batch: {product}`, or `accumulation: {}`", batch / at_once))
            }
            _ => d.help(format!("`batch: {product}`, or leave `batch` out")),
        }
    }
}

/// E0314. `batch` cannot be shared out evenly over ranks and micro-batches.
pub(crate) struct BatchIndivisible {
    pub batch: Spanned<u64>,
    pub accumulation: Option<Spanned<u64>>,
    pub data_ranks: DataRanks,
}

impl From<BatchIndivisible> for Diagnostic {
    fn from(it: BatchIndivisible) -> Diagnostic {
        let (batch, ranks) = (it.batch.value, it.data_ranks.count);
        let accumulation = it.accumulation.map_or(1, |a| a.value);
        let pieces = accumulation.saturating_mul(ranks);
        let d = Diagnostic::error(
            "E0314",
            "`batch` cannot be shared out evenly",
            it.batch.span,
            format!("{batch} sequences a step"),
        );
        let d = match it.accumulation {
            Some(a) => d.label(a.span, format!("{} micro-batches a step", a.value)),
            None => d,
        };
        let d = it.data_ranks.label(d);
        let d = match it.accumulation {
            Some(_) => d.note(format!(
                "{accumulation} × {ranks} = {pieces} micro-batches, and {batch} is not a multiple of {pieces}"
            )),
            None => d.note(format!("{batch} is not a multiple of {ranks} ranks")),
        };
        d.help(nearest_multiples("batch", batch, pieces.max(1)))
    }
}

/// E0315. The batch that follows from its parts is too large to count.
pub(crate) struct BatchTooLarge {
    pub micro_batch: Spanned<u64>,
    pub product: u128,
}

impl From<BatchTooLarge> for Diagnostic {
    fn from(it: BatchTooLarge) -> Diagnostic {
        let span = it.micro_batch.span;
        Diagnostic::error(
            "E0315",
            format!("a batch of {} sequences is too large", crate::numbers::number(it.product as f64)),
            span,
            "this times the rest",
        )
        .note("a batch holds at most 1B sequences")
        .help("micro_batch: 1")
    }
}
