//! The settings.

use super::functions::*;
use super::optimizers::*;
use super::{Bound, Fallback, Key, Plain, Type};

/// The blocks and what each is for.
pub(crate) const BLOCKS: &[(&str, &str)] =
    &[("data", "Where text comes from and how it becomes ids."), ("train", "The training loop.")];

const fn count(of: &'static str, most: u64) -> Type {
    Type { plain: Some(Plain::Whole { least: 1, most, of }), functions: &[] }
}

const fn either(functions: &'static [&'static Function]) -> Type {
    Type { plain: None, functions }
}

use super::Function;

/// Every setting, in the order in which the canonical form prints them.
pub(crate) const KEYS: &[Key] = &[
    Key {
        path: "model",
        ty: plain(Plain::Model),
        fallback: Fallback::Required,
        example: "gpt2::small(vocab: data.vocab)",
        doc: "The model to train: a call of a model of the library (`use std::gpt2`) or of this file, with its sizes.",
        deepspeed: "",
        hf: "",
    },
    Key {
        path: "init",
        ty: either(&[&RANDOM, &HF]),
        fallback: Fallback::Text("random"),
        example: "random",
        doc: "What the weights start from: the initialisers that the model declares, or a directory of weights.",
        deepspeed: "",
        hf: "model_name_or_path",
    },
    Key {
        path: "seed",
        ty: plain(Plain::Whole { least: 0, most: (1 << 53) - 1, of: "" }),
        fallback: Fallback::Text("0"),
        example: "42",
        doc: "Key of all random numbers: initial weights, dropout, the order of the data. The same spec and seed give the same bits.",
        deepspeed: "",
        hf: "seed",
    },
    Key {
        path: "deterministic",
        ty: plain(Plain::Flag),
        fallback: Fallback::Text("false"),
        example: "true",
        doc: "The same bits also for another number of ranks, another accumulation and another ZeRO stage. Without it, runs repeat bit for bit on one layout.",
        deepspeed: "",
        hf: "full_determinism",
    },
    Key {
        path: "data.text",
        ty: plain(Plain::Texts),
        fallback: Fallback::Required,
        example: "[\"data/*.txt\"]",
        doc: "Text files to learn from: paths or patterns, relative to the spec's folder.",
        deepspeed: "",
        hf: "train_file",
    },
    Key {
        path: "data.tokenizer",
        ty: plain(Plain::Text),
        fallback: Fallback::Required,
        example: "\"gpt2\"",
        doc: "How text becomes ids: \"chars\" (one id for each character that occurs), \"bytes\" (256 ids) or \"gpt2\" (GPT-2's byte-pair encoding, 50257 ids). `data.vocab` is the number of ids.",
        deepspeed: "",
        hf: "tokenizer_name",
    },
    Key {
        path: "data.sequence",
        ty: count("tokens", 16_000_000),
        fallback: Fallback::Required,
        example: "128",
        doc: "Tokens in a training sequence.",
        deepspeed: "",
        hf: "block_size, max_seq_length",
    },
    Key {
        path: "data.holdout",
        ty: plain(Plain::Share),
        fallback: Fallback::Text("0%"),
        example: "10%",
        doc: "Share of the text, from its end, that is never trained on and serves evaluation.",
        deepspeed: "",
        hf: "validation_split_percentage",
    },
    Key {
        path: "optimizer",
        ty: either(&[&ADAMW, &ADAM, &SGD, &LION, &LAMB, &ADAFACTOR, &MUON]),
        fallback: Fallback::Required,
        example: "adamw(lr: warmup_cosine(peak: 3e-4, warmup: 100), betas: (0.9, 0.95), weight_decay: 0.1)",
        doc: "How gradients change the weights.",
        deepspeed: "optimizer.type",
        hf: "optim",
    },
    Key {
        path: "precision",
        ty: either(&[&FP32, &TF32, &BF16, &FP16]),
        fallback: Fallback::Text("fp32"),
        example: "fp32",
        doc: "Precision of compute and of stored weights and activations. Sums, norms, softmax and losses accumulate in fp32; master weights and moments are fp32.",
        deepspeed: "fp16.enabled, bf16.enabled",
        hf: "fp16, bf16, tf32",
    },
    Key {
        path: "parallel",
        ty: either(&[&MESH]),
        fallback: Fallback::Text("mesh(data: 1)"),
        example: "mesh(data: 1)",
        doc: "How ranks are arranged: the sizes of the mesh's axes. The world is their product.",
        deepspeed: "data_parallel_size, tensor_parallel.autotp_size, sequence_parallel_size",
        hf: "",
    },
    Key {
        path: "zero",
        ty: either(&[&STAGE]),
        fallback: Fallback::Text("stage(0)"),
        example: "stage(0)",
        doc: "What data ranks partition instead of replicating.",
        deepspeed: "zero_optimization",
        hf: "",
    },
    Key {
        path: "recompute",
        ty: either(&[&NONE_RECOMPUTED, &NORMS, &BLOCK, &AUTO_RECOMPUTE]),
        fallback: Fallback::Text("none"),
        example: "norms",
        doc: "Activations that the backward pass computes again instead of keeping.",
        deepspeed: "activation_checkpointing",
        hf: "gradient_checkpointing",
    },
    Key {
        path: "memory",
        ty: Type { plain: Some(Plain::Bytes), functions: &[&ALL_MEMORY] },
        fallback: Fallback::Text("all"),
        example: "31GB",
        doc: "Bytes of device memory that the program may use, the driver's own included. A program that needs more is not built (E0530).",
        deepspeed: "",
        hf: "",
    },
    Key {
        path: "train.batch",
        ty: count("sequences", 1_000_000_000),
        fallback: Fallback::Required,
        example: "8",
        doc: "Sequences a step, over all ranks and micro-batches: `batch = micro_batch × accumulation × data ranks`. What is left out of the three follows; this may be left out where `micro_batch` is given.",
        deepspeed: "train_batch_size",
        hf: "",
    },
    Key {
        path: "train.micro_batch",
        ty: count("sequences", 1_000_000_000),
        fallback: Fallback::Derived("batch ÷ accumulation ÷ data ranks"),
        example: "2",
        doc: "Sequences that a rank holds at once.",
        deepspeed: "train_micro_batch_size_per_gpu",
        hf: "per_device_train_batch_size",
    },
    Key {
        path: "train.accumulation",
        ty: count("micro-batches", 1_000_000_000),
        fallback: Fallback::Derived("batch ÷ micro_batch ÷ data ranks, or 1"),
        example: "4",
        doc: "Micro-batches that a rank adds up before a step.",
        deepspeed: "gradient_accumulation_steps",
        hf: "gradient_accumulation_steps",
    },
    Key {
        path: "train.steps",
        ty: count("steps", 1_000_000_000),
        fallback: Fallback::Required,
        example: "1000",
        doc: "Optimizer steps.",
        deepspeed: "",
        hf: "max_steps",
    },
    Key {
        path: "train.clip",
        ty: Type {
            plain: Some(Plain::Real { above: Bound::Open(0.0), below: Bound::Closed(f64::INFINITY) }),
            functions: &[&NO_CLIP],
        },
        fallback: Fallback::Text("1.0"),
        example: "1.0",
        doc: "Largest global L2 norm of the gradient; a longer one is scaled down to it.",
        deepspeed: "gradient_clipping",
        hf: "max_grad_norm",
    },
    Key {
        path: "train.eval",
        ty: either(&[&EVAL_EVERY, &EVAL_END]),
        fallback: Fallback::Text("end"),
        example: "every(100)",
        doc: "When the loss on the holdout is measured.",
        deepspeed: "",
        hf: "eval_steps",
    },
    Key {
        path: "train.checkpoint",
        ty: either(&[&CHECKPOINT_EVERY, &CHECKPOINT_END]),
        fallback: Fallback::Text("end"),
        example: "every(200, keep: 3)",
        doc: "When a checkpoint is written.",
        deepspeed: "",
        hf: "save_steps",
    },
    Key {
        path: "train.log",
        ty: either(&[&LOG_EVERY]),
        fallback: Fallback::Text("every(10)"),
        example: "every(10)",
        doc: "How often a line of metrics is written.",
        deepspeed: "steps_per_print",
        hf: "logging_steps",
    },
    Key {
        path: "train.sample",
        ty: either(&[&SAMPLE_TEXT, &NO_SAMPLE]),
        fallback: Fallback::Text("none"),
        example: "text(\"ROMEO:\", tokens: 200)",
        doc: "A text that the model goes on from when training ends.",
        deepspeed: "",
        hf: "",
    },
];
