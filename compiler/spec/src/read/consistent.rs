//! Settings that disagree, and settings that have no effect.

use dspc_source::Spanned;

use super::Reader;
use super::held::{Held, HeldCall};
use super::model::ModelSizes;
use crate::errors::*;
use crate::keys::Key;
use crate::settings::{Set, Settings};

/// A vocabulary may be this much larger than the tokenizer's (padding to a round size) without a word.
const VOCAB_SLACK: u64 = 64;

impl Reader<'_> {
    /// Compares settings with each other; run after all were read.
    pub fn check_consistency(&mut self) {
        let steps = self.whole("train.steps").as_ref().and_then(spanned);
        if let Some(rate) =
            self.call_of("optimizer").and_then(|call| call.arg("lr").map(|arg| arg.value.clone()))
        {
            self.check_schedule(&rate, steps);
        }
        if let Some(call) = self.call_of("optimizer") {
            self.check_optimizer(&call);
        }
        if let Some(call) = self.call_of("precision") {
            self.check_loss_scale(&call);
        }
        self.check_periods(steps);
        self.check_evaluation();
        self.check_zero();
    }

    fn call_of(&mut self, path: &str) -> Option<HeldCall> {
        self.held(Key::find(path)?)?.0.call().cloned()
    }

    fn check_schedule(&mut self, rate: &Held, steps: Option<Spanned<u64>>) {
        let Some(call) = rate.call() else { return };
        if let (Some(peak), Some(floor)) = (call.written_number("peak"), call.written_number("floor")) {
            if floor.value > peak.value {
                self.mistakes.add(FloorAbovePeak { floor, peak });
            } else if floor.value == peak.value {
                self.mistakes.add(FloorIsPeak { floor, peak });
            }
        }
        let Some(steps) = steps else { return };
        if let Some(warmup) = call.written_whole("warmup").filter(|warmup| warmup.value >= steps.value) {
            self.mistakes.add(WarmupPastSteps { warmup, steps });
        } else if let (Some(warmup), Some(decay)) = (call.whole("warmup"), call.written_whole("decay"))
            && warmup.saturating_add(decay.value) > steps.value
        {
            self.mistakes.add(DecayPastSteps { warmup, decay, steps });
        }
    }

    fn check_optimizer(&mut self, call: &HeldCall) {
        let place = |name: &str| call.arg(name).and_then(|arg| arg.span);
        if let (Some(true), Some(0.0), Some(nesterov)) =
            (call.flag("nesterov"), call.number("momentum"), place("nesterov").or_else(|| place("momentum")))
        {
            self.mistakes.add(NesterovAlone { nesterov, momentum: place("momentum") });
        }
        if let (Some(min), Some(max)) = (call.number("min_ratio"), call.number("max_ratio"))
            && min > max
        {
            // One of the two was written, or they could not disagree.
            let Some(any) = place("min_ratio").or_else(|| place("max_ratio")) else { return };
            let min = Spanned::new(min, place("min_ratio").unwrap_or(any));
            let max = Spanned::new(max, place("max_ratio").unwrap_or(any));
            self.mistakes.add(RatiosCrossed { min, max });
        }
    }

    fn check_loss_scale(&mut self, precision: &HeldCall) {
        let Some(scale) = precision.arg("loss_scale").and_then(|arg| arg.value.call()) else { return };
        if let (Some(start), Some(min)) = (scale.number("start"), scale.number("min"))
            && start < min
        {
            let place = |name: &str| scale.arg(name).and_then(|arg| arg.span);
            // One of the two was written, or they could not disagree.
            let Some(any) = place("min").or_else(|| place("start")) else { return };
            let start = Spanned::new(start, place("start").unwrap_or(any));
            let min = Spanned::new(min, place("min").unwrap_or(any));
            self.mistakes.add(ScaleBelowMinimum { start, min });
        }
    }

    fn check_periods(&mut self, steps: Option<Spanned<u64>>) {
        for name in ["eval", "checkpoint", "log"] {
            let every = self.call_of(&format!("train.{name}")).and_then(|call| call.written_whole("steps"));
            if let (Some(every), Some(steps)) = (every, steps)
                && every.value > steps.value
            {
                self.mistakes.add(NeverInRun { name, every, steps });
            }
        }
    }

    fn check_evaluation(&mut self) {
        let Some(eval) = self.written.get("train.eval").map(|entry| entry.value.span) else { return };
        let Some(holdout) = self.set("data.holdout", |_, held| held.number()) else { return };
        if holdout.value == 0.0 {
            self.mistakes.add(NothingHeldOut { eval, holdout: holdout.span() });
        }
    }

    fn check_zero(&mut self) {
        let Some(call) = self.call_of("zero") else { return };
        let Some(stage) = call.written_whole("stage") else { return };
        for (name, from) in [("reduce_bucket", 1), ("gather_bucket", 1), ("overlap", 1), ("keep_below", 3)] {
            if let Some(span) = call.arg(name).and_then(|arg| arg.span)
                && stage.value < from
            {
                let argument = Spanned::new(name.to_string(), span);
                self.mistakes.add(ZeroDetail { argument, stage, from });
            }
        }
    }
}

/// Compares what is read with the model's sizes, the tokenizer and the world.
pub(crate) fn check_against_model(settings: &Settings, sizes: ModelSizes, reader: &mut Reader<'_>) {
    if let (Some(sequence), Some((context, context_span))) = (spanned(&settings.data.sequence), sizes.context)
        && (sequence.value as f64) > context
    {
        let context = context.max(0.0) as u64;
        reader.mistakes.add(SequencePastContext { sequence, context, context_span });
    }
    let tokenizer = settings.data.tokenizer.span();
    if let (Some(ids), Some((vocab, vocab_span)), Some(tokenizer)) = (reader.vocab(), sizes.vocab, tokenizer)
    {
        let vocab = vocab.max(0.0) as u64;
        if vocab < ids {
            reader.mistakes.add(VocabTooSmall { vocab, vocab_span, ids, tokenizer });
        } else if vocab - ids > VOCAB_SLACK {
            reader.mistakes.add(VocabTooLarge { vocab, vocab_span, ids, tokenizer });
        }
    }
    check_deterministic(settings, reader);
    let mesh = settings.parallel.value;
    let axes = [mesh.data, mesh.tensor, mesh.pipeline, mesh.sequence, mesh.expert];
    let world = axes.iter().fold(1u64, |world, axis| world.saturating_mul(*axis));
    if let Some(ranks) = reader.facts.ranks.filter(|ranks| *ranks != world) {
        let mesh = settings.parallel.span().unwrap_or(reader.written.end);
        reader.mistakes.add(OtherWorld { mesh, world, ranks });
    }
    if let Some(zero) = settings.zero.span().filter(|_| settings.zero.value.stage > 0 && world == 1) {
        reader.mistakes.add(ZeroAlone { zero, stage: settings.zero.value.stage });
    }
}

/// With `deterministic`, ranks and accumulation must be powers of two.
fn check_deterministic(settings: &Settings, reader: &mut Reader<'_>) {
    if !settings.deterministic.value {
        return;
    }
    let end = reader.written.end;
    let deterministic = settings.deterministic.span().unwrap_or(end);
    let accumulation = &settings.train.accumulation;
    // An accumulation that follows from the batch is shown where that was written.
    let accumulation_at = accumulation.span().or(settings.train.batch.span()).unwrap_or(end);
    let ranks_at = settings.parallel.span().unwrap_or(end);
    let counts = [
        ("ranks", settings.parallel.value.data, ranks_at),
        ("accumulation", accumulation.value, accumulation_at),
    ];
    for (what, count, at) in counts.into_iter().filter(|(_, count, _)| !count.is_power_of_two()) {
        let count = Spanned::new(count, at);
        reader.mistakes.add(NoTreeOfMicroBatches { deterministic, what, count });
    }
}

fn spanned<T: Copy>(set: &Set<T>) -> Option<Spanned<T>> {
    Some(Spanned::new(set.value, set.span()?))
}
