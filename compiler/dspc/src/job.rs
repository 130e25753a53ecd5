//! What the program says besides its instructions: data, training loop, model.

use dspc_plan::Plan;
use dspc_program as program;
use dspc_schedule::Job;
use dspc_spec::settings::{Schedule, Settings, Spec, Tokenizer};

/// Gathers it from a checked spec. `characters` are the training text's, where the tokenizer is `chars`.
pub fn job(spec: &Spec, plan: &Plan, characters: Option<String>) -> Job {
    let settings = &spec.settings;
    Job {
        dspc: env!("CARGO_PKG_VERSION").into(),
        spec_hash: blake3::hash(dspc_spec::print(spec).as_bytes()).to_hex().to_string(),
        model: model(spec, plan),
        data: data(settings, plan, characters),
        training: training(settings),
    }
}

fn model(spec: &Spec, plan: &Plan) -> program::Model {
    let definition = &spec.definitions[spec.model.definition.0 as usize];
    let architecture = definition.module.strip_prefix("std::").unwrap_or(&definition.name.value).to_string();
    program::Model {
        architecture,
        values: plan.train.graph.numbers.clone(),
        parameters: plan.train.graph.param_elements(),
        flops_per_token: dspc_plan::flops_per_token(plan, spec.settings.data.sequence.value),
    }
}

fn data(settings: &Settings, plan: &Plan, characters: Option<String>) -> program::Data {
    let data = &settings.data;
    let tokenizer = match data.tokenizer.value {
        Tokenizer::Chars => program::Tokenizer::Chars(characters.unwrap_or_default()),
        Tokenizer::Bytes => program::Tokenizer::Bytes,
        Tokenizer::Gpt2 => program::Tokenizer::Gpt2,
    };
    let logits = plan.train.graph.logits;
    program::Data {
        text: data.text.value.iter().map(|t| t.value.clone()).collect(),
        tokenizer,
        sequence: data.sequence.value,
        holdout: data.holdout.value,
        vocab: logits.map_or(0, |v| plan.train.graph.ty(v).cols()),
    }
}

fn training(settings: &Settings) -> program::Training {
    let train = &settings.train;
    program::Training {
        batch: train.batch.value,
        micro_batch: train.micro_batch.value,
        accumulation: train.accumulation.value,
        steps: train.steps.value,
        seed: settings.seed.value,
        eval_every: train.eval_every.value,
        eval_batches: train.eval_batches.value,
        checkpoint_every: train.checkpoint_every.value,
        checkpoint_keep: train.checkpoint_keep.value,
        log_every: train.log_every.value,
        sample: train.sample.value.clone().map(|s| program::Sample { prompt: s.prompt, tokens: s.tokens }),
        schedule: schedule(settings),
    }
}

fn schedule(settings: &Settings) -> program::LrSchedule {
    let steps = settings.train.steps.value;
    match settings.optimizer.value.lr {
        Schedule::Constant { lr, warmup } => program::LrSchedule::Constant { lr, warmup },
        Schedule::Linear { peak, warmup, floor } => {
            program::LrSchedule::Linear { peak, warmup, floor, steps }
        }
        Schedule::Cosine { peak, warmup, floor } => {
            program::LrSchedule::Cosine { peak, warmup, floor, steps }
        }
        Schedule::WarmupStableDecay { peak, warmup, decay, floor } => {
            program::LrSchedule::WarmupStableDecay { peak, warmup, decay, floor, steps }
        }
    }
}
