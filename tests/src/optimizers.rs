//! Every optimizer on a small GPT-2 and real text.

use std::path::PathBuf;

use crate::file;

/// An optimizer, and the mean loss that it must have reached on the text held out when its run ends.
pub struct Case {
    /// For people.
    pub name: &'static str,
    /// As it is written.
    pub optimizer: &'static str,
    /// Nats a character, at most.
    pub loss: f64,
}

/// Each rule once, and groups.
pub const CASES: &[Case] = &[
    Case { name: "adamw", optimizer: "adamw(lr: 3e-3, weight_decay: 0.1)", loss: 2.75 },
    Case { name: "adam", optimizer: "adam(lr: 3e-3)", loss: 2.75 },
    Case { name: "sgd", optimizer: "sgd(lr: 0.3, momentum: 0.9, nesterov: true)", loss: 3.05 },
    Case { name: "lion", optimizer: "lion(lr: 1e-3, weight_decay: 0.3)", loss: 2.9 },
    Case { name: "lamb", optimizer: "lamb(lr: 2e-2, weight_decay: 0.01)", loss: 2.85 },
    Case { name: "adafactor", optimizer: "adafactor(lr: 3e-3)", loss: 2.85 },
    Case { name: "muon", optimizer: "muon(lr: 0.02, adam_lr: 3e-3)", loss: 2.75 },
    Case {
        name: "groups",
        optimizer: "adamw(lr: 3e-3, groups: [group(\"wpe\", freeze: true), group(\"*.bias\", lr: 0.5), group(dims: 1, weight_decay: 0.1)])",
        loss: 2.75,
    },
];

/// Steps of a run.
pub const STEPS: u64 = 60;

/// Where its spec would stand: beside the examples, whose text it reads.
pub fn path() -> PathBuf {
    file("../examples/optimizer.dsp")
}

/// The spec of a case, in a precision.
pub fn spec(optimizer: &str, precision: &str) -> String {
    format!(
        "use std::gpt2\n\
         model = gpt2::gpt2(layers: 2, heads: 2, width: 64, vocab: data.vocab, context: data.sequence)\n\
         data {{ text: [\"data/shakespeare.txt\"], tokenizer: \"chars\", sequence: 32, holdout: 1% }}\n\
         optimizer = {optimizer}\nprecision = {precision}\n\
         train {{ batch: 16, micro_batch: 8, steps: {STEPS}, eval: every({STEPS}, batches: 20), checkpoint: every(20) }}\n"
    )
}

/// A few steps of a case over ranks, with bits that do not depend on their number.
pub fn spread(optimizer: &str, ranks: u64, stage: u64) -> String {
    format!(
        "use std::gpt2\n\
         model = gpt2::gpt2(layers: 2, heads: 2, width: 32, vocab: data.vocab, context: data.sequence)\n\
         data {{ text: [\"data/shakespeare.txt\"], tokenizer: \"bytes\", sequence: 24 }}\n\
         optimizer = {optimizer}\nprecision = bf16\ndeterministic = true\n\
         parallel = mesh(data: {ranks})\nzero = stage({stage}, keep_below: 100)\n\
         train {{ batch: 8, micro_batch: 1, steps: 4 }}\n"
    )
}
