//! The settings half.

use super::optimizer::optimizer;
use super::quoted;
use crate::body::{ModelCall, Value};
use crate::numbers::{bytes, number, share};
use crate::settings::*;

/// Column of the marks.
const MARK: usize = 40;

/// Appends all settings.
pub(super) fn push(text: &mut String, spec: &Spec) {
    let s = &spec.settings;
    line(text, &format!("model = {}", model(&spec.model, spec)), None);
    let init = s.init.as_ref().map(|path| format!("hf({})", quoted(&path.value)));
    let init_mark = if init.is_some() { None } else { Some("default") };
    line(text, &format!("init = {}", init.unwrap_or("random".into())), init_mark);
    top(text, "seed", &s.seed, u64::to_string);
    top(text, "deterministic", &s.deterministic, bool::to_string);

    text.push_str("\ndata {\n");
    field(text, "text", &s.data.text, |all| {
        let all: Vec<_> = all.iter().map(|path| quoted(&path.value)).collect();
        format!("[{}]", all.join(", "))
    });
    field(text, "tokenizer", &s.data.tokenizer, |t| tokenizer(t).to_string());
    field(text, "sequence", &s.data.sequence, u64::to_string);
    field(text, "holdout", &s.data.holdout, |x| share(*x));
    text.push_str("}\n\n");

    top(text, "optimizer", &s.optimizer, optimizer);
    top(text, "precision", &s.precision, precision);
    top(text, "parallel", &s.parallel, mesh);
    top(text, "zero", &s.zero, zero);
    top(text, "recompute", &s.recompute, |r| recompute(*r).to_string());
    top(text, "memory", &s.memory, |m| m.map_or("all".into(), bytes));

    text.push_str("\ntrain {\n");
    train(text, &s.train);
    text.push_str("}\n");
}

fn train(text: &mut String, t: &Train) {
    field(text, "batch", &t.batch, u64::to_string);
    field(text, "micro_batch", &t.micro_batch, u64::to_string);
    field(text, "accumulation", &t.accumulation, u64::to_string);
    field(text, "steps", &t.steps, u64::to_string);
    field(text, "clip", &t.clip, |clip| clip.map_or("none".into(), number));
    field(text, "eval", &t.eval_every, |n| every(*n, "batches", t.eval_batches.value));
    field(text, "checkpoint", &t.checkpoint_every, |n| every(*n, "keep", t.checkpoint_keep.value));
    field(text, "log", &t.log_every, |n| format!("every({n})"));
    field(text, "sample", &t.sample, |sample| match sample {
        Some(sample) => format!("text({}, tokens: {})", quoted(&sample.prompt), sample.tokens),
        None => "none".into(),
    });
}

fn top<T>(text: &mut String, name: &str, set: &Set<T>, show: impl FnOnce(&T) -> String) {
    line(text, &format!("{name} = {}", show(&set.value)), mark(set.origin));
}

fn field<T>(text: &mut String, name: &str, set: &Set<T>, show: impl FnOnce(&T) -> String) {
    line(text, &format!("  {name}: {}", show(&set.value)), mark(set.origin));
}

fn mark(origin: Origin) -> Option<&'static str> {
    match origin {
        Origin::Written(_) => None,
        Origin::Derived => Some("derived"),
        Origin::Default => Some("default"),
    }
}

fn line(text: &mut String, line: &str, mark: Option<&str>) {
    match mark {
        Some(mark) => text.push_str(&format!("{line:<MARK$} # {mark}\n")),
        None => text.push_str(&format!("{line}\n")),
    }
}

fn model(call: &ModelCall, spec: &Spec) -> String {
    let name =
        spec.definitions.get(call.definition.0 as usize).map(super::body::full_name).unwrap_or_default();
    let args: Vec<_> = call.args.iter().map(|(name, v)| format!("{}: {}", name.value, value(v))).collect();
    format!("{name}({})", args.join(", "))
}

fn value(value: &Value) -> String {
    match value {
        Value::Number(x) => number(*x),
        Value::Bool(flag) => flag.to_string(),
        Value::String(text) => quoted(text),
    }
}

fn tokenizer(tokenizer: &Tokenizer) -> &'static str {
    match tokenizer {
        Tokenizer::Chars => "\"chars\"",
        Tokenizer::Bytes => "\"bytes\"",
        Tokenizer::Gpt2 => "\"gpt2\"",
    }
}

pub(super) fn schedule(schedule: &Schedule) -> String {
    let rise = |name, peak: f64, warmup: u64| format!("{name}(peak: {}, warmup: {warmup}", number(peak));
    match *schedule {
        Schedule::Constant { lr, warmup } => format!("constant({}, warmup: {warmup})", number(lr)),
        Schedule::Linear { peak, warmup, floor } => {
            format!("{}, floor: {})", rise("warmup_linear", peak, warmup), number(floor))
        }
        Schedule::Cosine { peak, warmup, floor } => {
            format!("{}, floor: {})", rise("warmup_cosine", peak, warmup), number(floor))
        }
        Schedule::WarmupStableDecay { peak, warmup, decay, floor } => {
            let rise = rise("warmup_stable_decay", peak, warmup);
            format!("{rise}, decay: {decay}, floor: {})", number(floor))
        }
    }
}

fn precision(precision: &Precision) -> String {
    match precision {
        Precision::Fp32 => "fp32".into(),
        Precision::Tf32 => "tf32".into(),
        Precision::Bf16 { accumulate: Accumulate::F32 } => "bf16(accumulate: f32)".into(),
        Precision::Bf16 { accumulate: Accumulate::Bf16 } => "bf16(accumulate: bf16)".into(),
        Precision::Fp16 { loss_scale: LossScale::Static(scale) } => {
            format!("fp16(loss_scale: {})", number(*scale))
        }
        Precision::Fp16 {
            loss_scale: LossScale::Dynamic { start, window, hysteresis, consecutive_hysteresis, min },
        } => format!(
            "fp16(loss_scale: dynamic(start: {}, window: {window}, hysteresis: {hysteresis}, \
             consecutive_hysteresis: {consecutive_hysteresis}, min: {}))",
            number(*start),
            number(*min)
        ),
    }
}

fn mesh(mesh: &Mesh) -> String {
    let Mesh { data, tensor, pipeline, sequence, expert } = mesh;
    format!(
        "mesh(data: {data}, tensor: {tensor}, pipeline: {pipeline}, sequence: {sequence}, expert: {expert})"
    )
}

fn zero(zero: &Zero) -> String {
    let count = |n: u64| number(n as f64);
    let (reduce, gather, keep) =
        (count(zero.reduce_bucket), count(zero.gather_bucket), count(zero.keep_below));
    let (stage, overlap) = (zero.stage, zero.overlap);
    format!(
        "stage({stage}, reduce_bucket: {reduce}, gather_bucket: {gather}, overlap: {overlap}, keep_below: {keep})"
    )
}

fn recompute(recompute: Recompute) -> &'static str {
    match recompute {
        Recompute::None => "none",
        Recompute::Norms => "norms",
        Recompute::Block => "block",
        Recompute::Auto => "auto",
    }
}

fn every(steps: u64, detail: &str, value: u64) -> String {
    let value = if value == 0 { "all".to_string() } else { value.to_string() };
    if steps == 0 { "end".into() } else { format!("every({steps}, {detail}: {value})") }
}
