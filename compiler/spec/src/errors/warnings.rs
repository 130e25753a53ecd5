//! Settings that have no effect, or hardly the one that was meant.

use dspc_source::{Diagnostic, Span, Spanned};

use crate::body::Name;

/// W0101. The learning rate never reaches its peak.
pub(crate) struct WarmupPastSteps {
    pub warmup: Spanned<u64>,
    pub steps: Spanned<u64>,
}

impl From<WarmupPastSteps> for Diagnostic {
    fn from(it: WarmupPastSteps) -> Diagnostic {
        let (warmup, steps) = (it.warmup.value, it.steps.value);
        Diagnostic::warning(
            "W0101",
            "the learning rate never comes to its peak",
            it.warmup.span,
            format!("{warmup} steps of warm-up"),
        )
        .label(it.steps.span, format!("{steps} steps in all"))
        .help(format!("warmup: {}", steps / 10))
    }
}

/// W0102. Evaluation on nothing.
pub(crate) struct NothingHeldOut {
    pub eval: Span,
    /// `holdout: 0%`, if written.
    pub holdout: Option<Span>,
}

impl From<NothingHeldOut> for Diagnostic {
    fn from(it: NothingHeldOut) -> Diagnostic {
        let d = Diagnostic::warning(
            "W0102",
            "`eval` has no effect, for nothing is held out",
            it.eval,
            "never happens",
        );
        let d = match it.holdout {
            Some(span) => d.label(span, "no text is kept for it"),
            None => d.note("`data.holdout` is 0% by default"),
        };
        d.help("data { holdout: 10% }")
    }
}

/// W0103. A period longer than the run.
pub(crate) struct NeverInRun {
    pub name: &'static str,
    pub every: Spanned<u64>,
    pub steps: Spanned<u64>,
}

impl From<NeverInRun> for Diagnostic {
    fn from(it: NeverInRun) -> Diagnostic {
        let title = format!("`{}` happens only at the end", it.name);
        Diagnostic::warning("W0103", title, it.every.span, format!("every {} steps", it.every.value))
            .label(it.steps.span, format!("{} steps in all", it.steps.value))
            .help(match it.name {
                "log" => format!("log: every({})", (it.steps.value / 10).max(1)),
                name => format!("{name}: end"),
            })
    }
}

/// W0104. Embeddings that no id ever reaches.
pub(crate) struct VocabTooLarge {
    pub vocab: u64,
    pub vocab_span: Span,
    pub ids: u64,
    pub tokenizer: Span,
}

impl From<VocabTooLarge> for Diagnostic {
    fn from(it: VocabTooLarge) -> Diagnostic {
        let (vocab, ids) = (it.vocab, it.ids);
        Diagnostic::warning(
            "W0104",
            "the model's `vocab` is much larger than the tokenizer's",
            it.vocab_span,
            format!("{vocab} ids"),
        )
        .label(it.tokenizer, format!("{ids} ids"))
        .note(format!("{} embeddings are never used", vocab.saturating_sub(ids)))
        .help("vocab: data.vocab")
    }
}

/// W0105. ZeRO on one rank.
pub(crate) struct ZeroAlone {
    pub zero: Span,
    pub stage: u64,
}

impl From<ZeroAlone> for Diagnostic {
    fn from(it: ZeroAlone) -> Diagnostic {
        let title = format!("ZeRO stage {} partitions nothing on one rank", it.stage);
        Diagnostic::warning("W0105", title, it.zero, "no other rank shares this").help("zero = stage(0)")
    }
}

/// W0106. A layer or model that the job does not reach.
pub(crate) struct NeverUsed {
    pub name: Name,
    /// "layer", "model", "module"
    pub what: &'static str,
}

impl From<NeverUsed> for Diagnostic {
    fn from(it: NeverUsed) -> Diagnostic {
        let title = format!("the {} `{}` is never used", it.what, it.name.value);
        Diagnostic::warning("W0106", title, it.name.span, "the model does not reach it")
            .help(format!("remove it, or call it: {}", it.name.value))
    }
}

/// W0107. A detail of ZeRO that its stage does not have.
pub(crate) struct ZeroDetail {
    pub argument: Name,
    pub stage: Spanned<u64>,
    /// The stage from which it counts.
    pub from: u64,
}

impl From<ZeroDetail> for Diagnostic {
    fn from(it: ZeroDetail) -> Diagnostic {
        let title = format!("`{}` has no effect in ZeRO stage {}", it.argument.value, it.stage.value);
        Diagnostic::warning("W0107", title, it.argument.span, "ignored")
            .label(it.stage.span, format!("it counts from stage {} on", it.from))
            .help(format!("leave `{}` out", it.argument.value))
    }
}

/// W0108. A value that nothing reads.
pub(crate) struct ValueUnused {
    pub name: Name,
}

impl From<ValueUnused> for Diagnostic {
    fn from(it: ValueUnused) -> Diagnostic {
        Diagnostic::warning(
            "W0108",
            format!("`{}` is never read", it.name.value),
            it.name.span,
            "bound here and not used",
        )
        .help(format!("remove the line, or name it `_{}`", it.name.value))
    }
}

/// W0109. A decay or floor that a one-step or unmoving schedule cannot show.
pub(crate) struct FloorIsPeak {
    pub floor: Spanned<f64>,
    pub peak: Spanned<f64>,
}

impl From<FloorIsPeak> for Diagnostic {
    fn from(it: FloorIsPeak) -> Diagnostic {
        let rate = crate::numbers::number(it.peak.value);
        Diagnostic::warning("W0109", "the learning rate never falls", it.floor.span, "the floor is the peak")
            .label(it.peak.span, "the same rate")
            .help(format!("lr: constant({rate}, warmup: …)"))
    }
}
