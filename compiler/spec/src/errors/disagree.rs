//! Settings that do not go together.

use dspc_source::{Diagnostic, Span, Spanned};

use crate::numbers::number;

/// E0301. The learning rate would end above its peak.
pub(crate) struct FloorAbovePeak {
    pub floor: Spanned<f64>,
    pub peak: Spanned<f64>,
}

impl From<FloorAbovePeak> for Diagnostic {
    fn from(it: FloorAbovePeak) -> Diagnostic {
        let (floor, peak) = (number(it.floor.value), number(it.peak.value));
        Diagnostic::error(
            "E0301",
            "`floor` is above `peak`",
            it.floor.span,
            format!("the last rate is {floor}"),
        )
        .label(it.peak.span, format!("the highest is {peak}"))
        .help(format!("peak: {floor}, floor: {peak}"))
    }
}

/// E0302. Sequences longer than the model has positions for.
pub(crate) struct SequencePastContext {
    pub sequence: Spanned<u64>,
    pub context: u64,
    /// The argument, or the model's call where it is a default.
    pub context_span: Span,
}

impl From<SequencePastContext> for Diagnostic {
    fn from(it: SequencePastContext) -> Diagnostic {
        let (sequence, context) = (it.sequence.value, it.context);
        Diagnostic::error(
            "E0302",
            "`sequence` is longer than the model's `context`",
            it.sequence.span,
            format!("{sequence} tokens"),
        )
        .label(it.context_span, format!("the model has {context} positions"))
        .help(format!("sequence: {context}, or context: data.sequence in the model's call"))
    }
}

/// E0303. The tokenizer has ids that the model has no embedding for.
pub(crate) struct VocabTooSmall {
    pub vocab: u64,
    /// The argument, or the model's call where it is a default.
    pub vocab_span: Span,
    pub ids: u64,
    pub tokenizer: Span,
}

impl From<VocabTooSmall> for Diagnostic {
    fn from(it: VocabTooSmall) -> Diagnostic {
        let (vocab, ids) = (it.vocab, it.ids);
        Diagnostic::error(
            "E0303",
            "the model's `vocab` is smaller than the tokenizer's",
            it.vocab_span,
            format!("{vocab} ids"),
        )
        .label(it.tokenizer, format!("{ids} ids"))
        .help("vocab: data.vocab")
    }
}

/// E0304. Warm-up and decay do not fit into the steps.
pub(crate) struct DecayPastSteps {
    pub warmup: u64,
    pub decay: Spanned<u64>,
    pub steps: Spanned<u64>,
}

impl From<DecayPastSteps> for Diagnostic {
    fn from(it: DecayPastSteps) -> Diagnostic {
        let (warmup, decay, steps) = (it.warmup, it.decay.value, it.steps.value);
        let d = Diagnostic::error(
            "E0304",
            "warm-up and decay are longer than the run",
            it.decay.span,
            format!("{decay} steps of decay"),
        )
        .label(it.steps.span, format!("{steps} steps in all"))
        .note(format!(
            "{warmup} of warm-up + {decay} of decay = {}, more than {steps}",
            warmup.saturating_add(decay)
        ));
        match steps.saturating_sub(warmup) {
            0 => d.help("warmup: 0"),
            left => d.help(format!("decay: {left}")),
        }
    }
}

/// E0305. The loss scale would start below its minimum.
pub(crate) struct ScaleBelowMinimum {
    pub start: Spanned<f64>,
    pub min: Spanned<f64>,
}

impl From<ScaleBelowMinimum> for Diagnostic {
    fn from(it: ScaleBelowMinimum) -> Diagnostic {
        let (start, min) = (number(it.start.value), number(it.min.value));
        Diagnostic::error(
            "E0305",
            "the loss scale starts below its minimum",
            it.min.span,
            format!("never below {min}"),
        )
        .label(it.start.span, format!("starts at {start}"))
        .help(format!("start: {min}, or min: {start}"))
    }
}

/// E0306. Another number of ranks was asked for than the mesh holds.
pub(crate) struct OtherWorld {
    /// The mesh, or the file's end where none is written.
    pub mesh: Span,
    pub world: u64,
    pub ranks: u64,
}

impl From<OtherWorld> for Diagnostic {
    fn from(it: OtherWorld) -> Diagnostic {
        let plural = if it.world == 1 { "rank" } else { "ranks" };
        Diagnostic::error(
            "E0306",
            format!("the mesh has {} {plural}, and {} were asked for", it.world, it.ranks),
            it.mesh,
            format!("{} {plural}", it.world),
        )
        .note(format!("{} ranks: by `--ranks` or by the launcher", it.ranks))
        .help("parallel = mesh(data: auto)")
    }
}

/// E0307. A batch that is summed in one order for every layout is not halved again and again by this one.
pub(crate) struct NoTreeOfMicroBatches {
    pub deterministic: Span,
    /// What is no power of two: `ranks` or `accumulation`.
    pub what: &'static str,
    pub count: Spanned<u64>,
}

impl From<NoTreeOfMicroBatches> for Diagnostic {
    fn from(it: NoTreeOfMicroBatches) -> Diagnostic {
        let (count, what) = (it.count.value, it.what);
        let below = 1u64 << count.max(1).ilog2();
        let above = below.saturating_mul(2);
        let title = format!("with `deterministic` the {what} must be a power of two");
        Diagnostic::error("E0307", title, it.count.span, format!("{count} is none"))
            .label(it.deterministic, "sums are made in pairs")
            .note("micro-batches are summed two and two, in one order for every number of ranks and accumulation")
            .help(format!("{below} or {above}, or `deterministic = false`"))
    }
}
