//! The functions and words that may stand in a setting.

use super::{Argument, Bound, Fallback, Function, Plain, Type};

pub(super) const fn plain(plain: Plain) -> Type {
    Type { plain: Some(plain), functions: &[] }
}

pub(super) const fn whole(least: u64, of: &'static str) -> Type {
    plain(Plain::Whole { least, most: 1_000_000_000, of })
}

pub(super) const fn real(above: Bound, below: Bound) -> Type {
    plain(Plain::Real { above, below })
}

const fn rate(above: Bound) -> Type {
    real(above, Bound::Closed(10.0))
}

pub(super) const fn word(name: &'static str, doc: &'static str) -> Function {
    Function { name, doc, positional: 0, args: &[] }
}

pub(super) const fn arg(name: &'static str, ty: Type, fallback: Fallback, doc: &'static str) -> Argument {
    Argument { name, ty, fallback, doc, deepspeed: "", hf: "" }
}

pub(super) const fn known_as(deepspeed: &'static str, hf: &'static str, arg: Argument) -> Argument {
    Argument { deepspeed, hf, ..arg }
}

pub(super) const RANDOM: Function =
    word("random", "The initialisers that the model declares, drawn from `seed`.");
pub(super) const HF: Function = Function {
    name: "hf",
    doc: "A Hugging Face model directory with `model.safetensors` and `config.json`.",
    positional: 1,
    args: &[arg(
        "path",
        plain(Plain::Text),
        Fallback::Required,
        "The directory, relative to the spec's folder.",
    )],
};

const PEAK: Argument = known_as(
    "warmup_max_lr",
    "learning_rate",
    arg("peak", rate(Bound::Open(0.0)), Fallback::Required, "Highest rate."),
);
const WARMUP: Argument = known_as(
    "warmup_num_steps",
    "warmup_steps",
    arg("warmup", whole(0, "steps"), Fallback::Text("0"), "Steps in which the rate rises linearly from 0."),
);
const FLOOR: Argument = known_as(
    "cos_min_ratio",
    "min_lr",
    arg("floor", rate(Bound::Closed(0.0)), Fallback::Text("0"), "Rate at the last step."),
);

pub(super) const CONSTANT: Function = Function {
    name: "constant",
    doc: "One rate, after an optional warm-up.",
    positional: 1,
    args: &[arg("lr", rate(Bound::Open(0.0)), Fallback::Required, "The rate."), WARMUP],
};
pub(super) const WARMUP_LINEAR: Function = Function {
    name: "warmup_linear",
    doc: "Up to the peak linearly, then down to the floor linearly.",
    positional: 0,
    args: &[PEAK, WARMUP, FLOOR],
};
pub(super) const WARMUP_COSINE: Function = Function {
    name: "warmup_cosine",
    doc: "Up to the peak linearly, then down to the floor along half a cosine.",
    positional: 0,
    args: &[PEAK, WARMUP, FLOOR],
};
pub(super) const WARMUP_STABLE_DECAY: Function = Function {
    name: "warmup_stable_decay",
    doc: "Up to the peak linearly, on the peak, then down to the floor linearly in the last `decay` steps.",
    positional: 0,
    args: &[
        PEAK,
        WARMUP,
        arg("decay", whole(1, "steps"), Fallback::Required, "Steps of decay at the end."),
        FLOOR,
    ],
};

pub(super) const FP32: Function = word("fp32", "Single precision throughout.");
pub(super) const TF32: Function = word("tf32", "Products in TF32 where the device has it, all else fp32.");
pub(super) const BF16: Function = Function {
    name: "bf16",
    doc: "Compute and storage in bfloat16; fp32 master weights and moments.",
    positional: 0,
    args: &[known_as(
        "data_types.grad_accum_dtype",
        "",
        arg(
            "accumulate",
            Type { plain: None, functions: &[&SUMS_F32, &SUMS_BF16] },
            Fallback::Text("f32"),
            "Type in which gradients are stored and summed over micro-batches.",
        ),
    )],
};
pub(super) const SUMS_F32: Function = word("f32", "Single precision, four bytes a weight.");
pub(super) const SUMS_BF16: Function =
    word("bf16", "Two bytes a weight; each sum is rounded to the 8 bits that bfloat16 has.");
pub(super) const FP16: Function = Function {
    name: "fp16",
    doc: "Half-precision compute and storage with a scaled loss; fp32 master weights and moments.",
    positional: 0,
    args: &[known_as(
        "fp16.loss_scale",
        "",
        arg(
            "loss_scale",
            Type {
                plain: Some(Plain::Real { above: Bound::Open(0.0), below: Bound::Closed(f64::INFINITY) }),
                functions: &[&DYNAMIC],
            },
            Fallback::Text("dynamic()"),
            "Factor on the loss: a number, or one that adapts.",
        ),
    )],
};
pub(super) const DYNAMIC: Function = Function {
    name: "dynamic",
    doc: "Halves after overflows and doubles after clean steps, as DeepSpeed's scaler under ZeRO does.",
    positional: 0,
    args: &[
        known_as(
            "fp16.initial_scale_power",
            "",
            arg(
                "start",
                real(Bound::Open(0.0), Bound::Closed(f64::INFINITY)),
                Fallback::Text("65536"),
                "First value (DeepSpeed writes its power of two).",
            ),
        ),
        known_as(
            "fp16.loss_scale_window",
            "",
            arg("window", whole(1, "steps"), Fallback::Text("1000"), "Clean steps before it doubles."),
        ),
        known_as(
            "fp16.hysteresis",
            "",
            arg("hysteresis", whole(1, "overflows"), Fallback::Text("2"), "Overflows before it halves."),
        ),
        known_as(
            "fp16.consecutive_hysteresis",
            "",
            arg(
                "consecutive_hysteresis",
                plain(Plain::Flag),
                Fallback::Text("false"),
                "A clean step refills the hysteresis.",
            ),
        ),
        known_as(
            "fp16.min_loss_scale",
            "",
            arg(
                "min",
                real(Bound::Open(0.0), Bound::Closed(f64::INFINITY)),
                Fallback::Text("1"),
                "Lowest value; an overflow there ends the run.",
            ),
        ),
    ],
};

const fn axis(name: &'static str, doc: &'static str) -> Argument {
    arg(name, plain(Plain::Whole { least: 1, most: 1_000_000, of: "ranks" }), Fallback::Text("1"), doc)
}

pub(super) const AUTO_RANKS: Function = word("auto", "As many as are started (`--ranks`), or 1.");
pub(super) const MESH: Function = Function {
    name: "mesh",
    doc: "A grid of ranks.",
    positional: 0,
    args: &[
        known_as(
            "data_parallel_size",
            "",
            arg(
                "data",
                Type {
                    plain: Some(Plain::Whole { least: 1, most: 1_000_000, of: "ranks" }),
                    functions: &[&AUTO_RANKS],
                },
                Fallback::Text("1"),
                "Ranks that share the batch.",
            ),
        ),
        known_as("tensor_parallel.autotp_size", "", axis("tensor", "Ranks that share each matrix.")),
        known_as("pipeline.stages", "", axis("pipeline", "Ranks that share the layers.")),
        known_as("sequence_parallel_size", "", axis("sequence", "Ranks that share each sequence.")),
        axis("expert", "Ranks that share the experts."),
    ],
};
pub(super) const STAGE: Function = Function {
    name: "stage",
    doc: "A ZeRO stage: 1 partitions optimizer state, 2 also gradients, 3 also parameters.",
    positional: 1,
    args: &[
        known_as(
            "zero_optimization.stage",
            "",
            arg("stage", plain(Plain::Whole { least: 0, most: 3, of: "" }), Fallback::Required, "0 to 3."),
        ),
        known_as(
            "zero_optimization.reduce_bucket_size",
            "",
            arg(
                "reduce_bucket",
                whole(1, "elements"),
                Fallback::Text("500M"),
                "Elements of a gradient bucket.",
            ),
        ),
        known_as(
            "zero_optimization.allgather_bucket_size",
            "",
            arg(
                "gather_bucket",
                whole(1, "elements"),
                Fallback::Text("500M"),
                "Elements of a gather bucket.",
            ),
        ),
        known_as(
            "zero_optimization.overlap_comm",
            "",
            arg("overlap", plain(Plain::Flag), Fallback::Text("true"), "Communicate while computing."),
        ),
        known_as(
            "zero_optimization.stage3_param_persistence_threshold",
            "",
            arg(
                "keep_below",
                whole(0, "elements"),
                Fallback::Text("100K"),
                "Parameters below this many elements stay whole in ZeRO stage 3.",
            ),
        ),
    ],
};

pub(super) const NONE_RECOMPUTED: Function = word("none", "Every activation is kept.");
pub(super) const NORMS: Function = word(
    "norms",
    "Outputs of norms, activation functions and dropout are computed again, from products and sums that are kept: no matrix product is done twice.",
);
pub(super) const BLOCK: Function = word("block", "Each turn of a `repeat` is computed again from its input.");
pub(super) const AUTO_RECOMPUTE: Function =
    word("auto", "The cheapest that fits the memory: `none`, `norms`, that and ever more products, `block`.");
pub(super) const ALL_MEMORY: Function = word("all", "All that the device has.");
pub(super) const NO_CLIP: Function = word("none", "No clipping.");
pub(super) const NO_SAMPLE: Function = word("none", "No sample.");

const STEPS: Argument = arg("steps", whole(1, "steps"), Fallback::Required, "Steps between two.");

pub(super) const EVAL_END: Function = word("end", "Once, after the last step.");
pub(super) const CHECKPOINT_END: Function = word("end", "Once, after the last step.");
pub(super) const EVERY_BATCH: Function = word("all", "The whole holdout.");
pub(super) const EVERY_CHECKPOINT: Function = word("all", "None is ever removed.");
pub(super) const EVAL_EVERY: Function = Function {
    name: "every",
    doc: "Every so many steps, and after the last one.",
    positional: 1,
    args: &[
        STEPS,
        arg(
            "batches",
            Type {
                plain: Some(Plain::Whole { least: 1, most: 1_000_000_000, of: "micro-batches" }),
                functions: &[&EVERY_BATCH],
            },
            Fallback::Text("all"),
            "Micro-batches that an evaluation reads.",
        ),
    ],
};
pub(super) const CHECKPOINT_EVERY: Function = Function {
    name: "every",
    doc: "Every so many steps, and after the last one.",
    positional: 1,
    args: &[
        STEPS,
        known_as(
            "",
            "save_total_limit",
            arg(
                "keep",
                Type {
                    plain: Some(Plain::Whole { least: 1, most: 1_000_000_000, of: "checkpoints" }),
                    functions: &[&EVERY_CHECKPOINT],
                },
                Fallback::Text("all"),
                "Newest checkpoints kept; older ones are removed.",
            ),
        ),
    ],
};
pub(super) const LOG_EVERY: Function = Function {
    name: "every",
    doc: "Every so many steps, and at the last one.",
    positional: 1,
    args: &[STEPS],
};
pub(super) const SAMPLE_TEXT: Function = Function {
    name: "text",
    doc: "A prompt and how many tokens follow it.",
    positional: 1,
    args: &[
        arg("prompt", plain(Plain::Text), Fallback::Required, "The text to go on from."),
        known_as(
            "",
            "max_new_tokens",
            arg("tokens", whole(1, "tokens"), Fallback::Text("200"), "New tokens."),
        ),
    ],
};
