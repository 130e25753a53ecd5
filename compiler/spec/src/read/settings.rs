//! All settings, each in the type of its own.

use dspc_source::Spanned;

use super::Reader;
use super::held::{Held, HeldCall};
use super::optimizer::optimizer;
use super::solve::solve_batch;
use crate::errors::{NoText, UnknownTokenizer};
use crate::keys::Key;
use crate::settings::*;

/// The tokenizers that are built in.
const TOKENIZERS: &[&str] = &["chars", "bytes", "gpt2"];

/// Reads every setting, so that every mistake is found; `None` if one is wrong or missing.
pub(crate) fn read_settings(reader: &mut Reader<'_>) -> Option<Settings> {
    let seed = reader.whole("seed");
    let deterministic = reader.set("deterministic", |_, held| held.flag());
    let init = reader.set("init", |_, held| held.call().cloned());
    let data = read_data(reader);
    let optimizer = reader.set("optimizer", |reader, held| {
        let span = reader.written.get("optimizer")?.value.span;
        optimizer(held.call()?, span)
    });
    let precision = reader.set("precision", |_, held| precision(held.call()?));
    let parallel = reader.set("parallel", |reader, held| mesh(held.call()?, reader.facts));
    let zero = reader.set("zero", |_, held| zero(held.call()?));
    let recompute = reader.set("recompute", |_, held| recompute(held.call()?));
    let memory = reader.set("memory", |_, held| Some(held.whole()));
    let train = read_train(reader, parallel.as_ref());
    Some(Settings {
        seed: seed?,
        deterministic: deterministic?,
        init: init_directory(&init?),
        data: data?,
        optimizer: optimizer?,
        precision: precision?,
        parallel: parallel?,
        zero: zero?,
        recompute: recompute?,
        memory: memory?,
        train: train?,
    })
}

impl Reader<'_> {
    /// A setting in its own type.
    pub fn set<T>(
        &mut self,
        path: &str,
        convert: impl FnOnce(&mut Self, &Held) -> Option<T>,
    ) -> Option<Set<T>> {
        let (held, origin) = self.held(Key::find(path)?)?;
        Some(Set { value: convert(self, &held)?, origin })
    }

    /// A count.
    pub fn whole(&mut self, path: &str) -> Option<Set<u64>> {
        self.set(path, |_, held| held.whole())
    }
}

fn init_directory(init: &Set<HeldCall>) -> Option<Spanned<String>> {
    let arg = init.value.arg("path")?;
    Some(Spanned::new(arg.value.text()?.to_string(), init.span()?))
}

fn read_data(reader: &mut Reader<'_>) -> Option<Data> {
    let text = reader.set("data.text", |_, held| match held {
        Held::Texts(texts) => Some(texts.clone()),
        Held::Number(_) | Held::Flag(_) | Held::Text(_) | Held::Pair(..) | Held::Call(_) | Held::Calls(_) => {
            None
        }
    });
    if let Some(list) = text.as_ref().filter(|text| text.value.is_empty()).and_then(Set::span) {
        reader.mistakes.add(NoText { list });
    }
    let name = reader.set("data.tokenizer", |_, held| held.text().map(str::to_string));
    let tokenizer = name.and_then(|name| tokenizer(reader, name));
    let sequence = reader.whole("data.sequence");
    let holdout = reader.set("data.holdout", |_, held| held.number());
    Some(Data { text: text?, tokenizer: tokenizer?, sequence: sequence?, holdout: holdout? })
}

fn tokenizer(reader: &mut Reader<'_>, name: Set<String>) -> Option<Set<Tokenizer>> {
    let value = match name.value.as_str() {
        "chars" => Tokenizer::Chars,
        "bytes" => Tokenizer::Bytes,
        "gpt2" => Tokenizer::Gpt2,
        _ => {
            let name = Spanned::new(name.value.clone(), name.span()?);
            reader.mistakes.add(UnknownTokenizer { name, known: TOKENIZERS });
            return None;
        }
    };
    Some(Set { value, origin: name.origin })
}

fn read_train(reader: &mut Reader<'_>, parallel: Option<&Set<Mesh>>) -> Option<Train> {
    let batch = solve_batch(reader, parallel);
    let steps = reader.whole("train.steps");
    let clip = reader.set("train.clip", |_, held| Some(held.number()));
    let eval = reader.set("train.eval", |_, held| held.call().cloned());
    let checkpoint = reader.set("train.checkpoint", |_, held| held.call().cloned());
    let log = reader.set("train.log", |_, held| held.call()?.whole("steps"));
    let sample = reader.set("train.sample", |_, held| sample(held.call()?));
    let (eval, checkpoint) = (eval?, checkpoint?);
    let batch = batch?;
    Some(Train {
        batch: batch.batch,
        micro_batch: batch.micro_batch,
        accumulation: batch.accumulation,
        steps: steps?,
        clip: clip?,
        eval_every: count_of(&eval, "steps"),
        eval_batches: count_of(&eval, "batches"),
        checkpoint_every: count_of(&checkpoint, "steps"),
        checkpoint_keep: count_of(&checkpoint, "keep"),
        log_every: log?,
        sample: sample?,
    })
}

/// A count of `every(…)`; 0 for a word, and for what `end` does not have.
fn count_of(call: &Set<HeldCall>, name: &str) -> Set<u64> {
    match call.value.arg(name) {
        Some(arg) => Set {
            value: arg.value.whole_or_zero().unwrap_or(0),
            origin: arg.span.map_or(Origin::Default, Origin::Written),
        },
        None if name == "steps" => Set { value: 0, origin: call.origin },
        None => Set { value: 0, origin: Origin::Default },
    }
}

pub(super) fn schedule(held: &Held) -> Option<Schedule> {
    if let Some(lr) = held.number() {
        return Some(Schedule::Constant { lr, warmup: 0 });
    }
    let call = held.call()?;
    let warmup = call.whole("warmup")?;
    let (peak, floor) = (call.number("peak"), call.number("floor"));
    match call.function.name {
        "constant" => Some(Schedule::Constant { lr: call.number("lr")?, warmup }),
        "warmup_linear" => Some(Schedule::Linear { peak: peak?, warmup, floor: floor? }),
        "warmup_cosine" => Some(Schedule::Cosine { peak: peak?, warmup, floor: floor? }),
        _ => Some(Schedule::WarmupStableDecay {
            peak: peak?,
            warmup,
            decay: call.whole("decay")?,
            floor: floor?,
        }),
    }
}

fn precision(call: &HeldCall) -> Option<Precision> {
    match call.function.name {
        "fp32" => Some(Precision::Fp32),
        "tf32" => Some(Precision::Tf32),
        "bf16" => Some(Precision::Bf16 { accumulate: accumulate(call.arg("accumulate")?.value.call()?) }),
        _ => Some(Precision::Fp16 { loss_scale: loss_scale(&call.arg("loss_scale")?.value)? }),
    }
}

fn accumulate(call: &HeldCall) -> Accumulate {
    if call.function.name == "bf16" { Accumulate::Bf16 } else { Accumulate::F32 }
}

fn loss_scale(held: &Held) -> Option<LossScale> {
    if let Some(scale) = held.number() {
        return Some(LossScale::Static(scale));
    }
    let call = held.call()?;
    Some(LossScale::Dynamic {
        start: call.number("start")?,
        window: call.whole("window")?,
        hysteresis: call.whole("hysteresis")?,
        consecutive_hysteresis: call.flag("consecutive_hysteresis")?,
        min: call.number("min")?,
    })
}

fn mesh(call: &HeldCall, facts: &DataFacts) -> Option<Mesh> {
    let data = match call.arg("data")?.value.number() {
        Some(ranks) => ranks as u64,
        None => facts.ranks.unwrap_or(1).max(1),
    };
    Some(Mesh {
        data,
        tensor: call.whole("tensor")?,
        pipeline: call.whole("pipeline")?,
        sequence: call.whole("sequence")?,
        expert: call.whole("expert")?,
    })
}

fn zero(call: &HeldCall) -> Option<Zero> {
    Some(Zero {
        stage: call.whole("stage")?,
        reduce_bucket: call.whole("reduce_bucket")?,
        gather_bucket: call.whole("gather_bucket")?,
        overlap: call.flag("overlap")?,
        keep_below: call.whole("keep_below")?,
    })
}

fn recompute(call: &HeldCall) -> Option<Recompute> {
    match call.function.name {
        "none" => Some(Recompute::None),
        "norms" => Some(Recompute::Norms),
        "block" => Some(Recompute::Block),
        _ => Some(Recompute::Auto),
    }
}

fn sample(call: &HeldCall) -> Option<Option<Sample>> {
    let Some(prompt) = call.arg("prompt") else { return Some(None) };
    Some(Some(Sample { prompt: prompt.value.text()?.to_string(), tokens: call.whole("tokens")? }))
}
