//! The optimizers and what they take.

use super::functions::*;
use super::{Argument, Bound, Fallback, Function, Plain, Type};

const LR: Argument = known_as(
    "optimizer.params.lr",
    "learning_rate",
    arg(
        "lr",
        Type {
            plain: Some(Plain::Real { above: Bound::Open(0.0), below: Bound::Closed(10.0) }),
            functions: &[&CONSTANT, &WARMUP_LINEAR, &WARMUP_COSINE, &WARMUP_STABLE_DECAY],
        },
        Fallback::Required,
        "Learning rate: a number, or a schedule over the steps.",
    ),
);

const fn betas(default: &'static str, doc: &'static str) -> Argument {
    known_as(
        "optimizer.params.betas",
        "adam_beta1, adam_beta2",
        arg("betas", plain(Plain::Shares), Fallback::Text(default), doc),
    )
}

const BETAS: Argument = betas("(0.9, 0.999)", "Decay of the first and the second moment.");

const fn eps(default: &'static str) -> Argument {
    known_as(
        "optimizer.params.eps",
        "adam_epsilon",
        arg(
            "eps",
            real(Bound::Open(0.0), Bound::Closed(1.0)),
            Fallback::Text(default),
            "Added to the root of the second moment.",
        ),
    )
}

const WEIGHT_DECAY: Argument = known_as(
    "optimizer.params.weight_decay",
    "weight_decay",
    arg(
        "weight_decay",
        DECAY,
        Fallback::Text("0"),
        "Share of a weight that a step of learning rate 1 would take away.",
    ),
);

const DECAY: Type = real(Bound::Closed(0.0), Bound::Closed(10.0));

const GROUPS: Argument = arg(
    "groups",
    Type { plain: Some(Plain::Calls), functions: &[&GROUP] },
    Fallback::Text("[]"),
    "Parameters that are changed otherwise. The first group that takes a parameter holds for it.",
);

const SAME: Function = word("same", "The optimizer's, on tensors of two or more dims.");
const ANY: Function = word("any", "Any number of dims.");

const GROUP: Function = Function {
    name: "group",
    doc: "Parameters by their names, their number of dims, or both. A parameter belongs to the first group that takes it.",
    positional: 1,
    args: &[
        arg(
            "names",
            plain(Plain::Text),
            Fallback::Text("\"*\""),
            "Pattern of names as `dspc plan` lists them; `*` stands for any characters. The turns of a `repeat` are changed alike: `h.*.ln_1.weight` is one name.",
        ),
        arg(
            "dims",
            Type { plain: Some(Plain::Whole { least: 0, most: 16, of: "dims" }), functions: &[&ANY] },
            Fallback::Text("any"),
            "Only tensors of so many dims: 1 for biases and norms, 2 for matrices.",
        ),
        known_as(
            "optimizer.param_groups.lr",
            "",
            arg(
                "lr",
                real(Bound::Closed(0.0), Bound::Closed(1e6)),
                Fallback::Text("1"),
                "Factor on the optimizer's learning rate; 0 freezes.",
            ),
        ),
        known_as(
            "optimizer.param_groups.weight_decay",
            "",
            arg(
                "weight_decay",
                Type { plain: DECAY.plain, functions: &[&SAME] },
                Fallback::Text("same"),
                "Decay of all that the group takes, whatever its dims.",
            ),
        ),
        known_as(
            "",
            "requires_grad",
            arg(
                "freeze",
                plain(Plain::Flag),
                Fallback::Text("false"),
                "Nothing changes them: they have no gradient and no moments.",
            ),
        ),
    ],
};

pub(super) const ADAMW: Function = Function {
    name: "adamw",
    doc: "Adam with decoupled weight decay (Loshchilov, Hutter 2019). Decay acts on tensors of two or more dims.",
    positional: 0,
    args: &[LR, BETAS, eps("1e-8"), WEIGHT_DECAY, GROUPS],
};

pub(super) const ADAM: Function = Function {
    name: "adam",
    doc: "Adam (Kingma, Ba 2015). Decay is added to the gradient, as PyTorch's `Adam` does it; DeepSpeed's \"Adam\" is `adamw`.",
    positional: 0,
    args: &[LR, BETAS, eps("1e-8"), WEIGHT_DECAY, GROUPS],
};

pub(super) const SGD: Function = Function {
    name: "sgd",
    doc: "Gradient descent with momentum, as PyTorch's `SGD`. Decay is added to the gradient.",
    positional: 0,
    args: &[
        LR,
        known_as(
            "optimizer.params.momentum",
            "",
            arg(
                "momentum",
                plain(Plain::Share),
                Fallback::Text("0"),
                "Share of the momentum kept from step to step; 0 stores none.",
            ),
        ),
        known_as(
            "optimizer.params.nesterov",
            "",
            arg(
                "nesterov",
                plain(Plain::Flag),
                Fallback::Text("false"),
                "The update looks ahead by a step of the momentum.",
            ),
        ),
        WEIGHT_DECAY,
        GROUPS,
    ],
};

pub(super) const LION: Function = Function {
    name: "lion",
    doc: "Lion (Chen et al. 2023): the sign of an interpolated momentum, one moment. Decay is decoupled.",
    positional: 0,
    args: &[
        LR,
        betas("(0.9, 0.99)", "Share of the momentum in the update, and the momentum's decay."),
        WEIGHT_DECAY,
        GROUPS,
    ],
};

pub(super) const LAMB: Function = Function {
    name: "lamb",
    doc: "LAMB (You et al. 2020): AdamW's direction for each tensor, as long as the tensor itself.",
    positional: 0,
    args: &[
        LR,
        BETAS,
        eps("1e-6"),
        known_as(
            "optimizer.params.min_coeff",
            "",
            arg(
                "min_ratio",
                real(Bound::Closed(0.0), Bound::Closed(1e6)),
                Fallback::Text("0.01"),
                "Least length of a tensor over that of its direction.",
            ),
        ),
        known_as(
            "optimizer.params.max_coeff",
            "",
            arg(
                "max_ratio",
                real(Bound::Open(0.0), Bound::Closed(1e6)),
                Fallback::Text("10"),
                "Greatest length of a tensor over that of its direction.",
            ),
        ),
        WEIGHT_DECAY,
        GROUPS,
    ],
};

pub(super) const ADAFACTOR: Function = Function {
    name: "adafactor",
    doc: "Adafactor (Shazeer, Stern 2018) without a first moment: a matrix's second moments are kept as a row and a column. Decay is decoupled.",
    positional: 0,
    args: &[
        LR,
        arg(
            "decay_power",
            real(Bound::Open(0.0), Bound::Closed(1.0)),
            Fallback::Text("0.8"),
            "The second moment's decay at step t is 1 − t^−power.",
        ),
        arg(
            "eps",
            real(Bound::Open(0.0), Bound::Closed(1.0)),
            Fallback::Text("1e-30"),
            "Added to the squares of the gradient.",
        ),
        arg(
            "clip",
            real(Bound::Open(0.0), Bound::Closed(1e6)),
            Fallback::Text("1"),
            "Largest root mean square of a tensor's update before the learning rate.",
        ),
        arg(
            "scale_parameter",
            plain(Plain::Flag),
            Fallback::Text("false"),
            "The learning rate is relative to the root mean square of the tensor.",
        ),
        arg(
            "eps_parameter",
            real(Bound::Open(0.0), Bound::Closed(1.0)),
            Fallback::Text("1e-3"),
            "The least that this root mean square counts as.",
        ),
        WEIGHT_DECAY,
        GROUPS,
    ],
};

const ORIGINAL: Function = word("original", "Jordan et al. (2024): √max(1, outputs / inputs).");
const MATCH_ADAMW: Function = word(
    "match_adamw",
    "Liu et al. (2025): 0.2 · √max(outputs, inputs), with which learning rates of AdamW fit.",
);

pub(super) const MUON: Function = Function {
    name: "muon",
    doc: "Muon (Jordan et al. 2024) for matrices: their momentum made orthogonal. Embeddings, the head and all that has not two dims are AdamW's.",
    positional: 0,
    args: &[
        LR,
        known_as(
            "optimizer.params.momentum",
            "",
            arg("momentum", plain(Plain::Share), Fallback::Text("0.95"), "Decay of the momentum."),
        ),
        arg(
            "nesterov",
            plain(Plain::Flag),
            Fallback::Text("true"),
            "The update looks ahead by a step of the momentum.",
        ),
        arg(
            "steps",
            plain(Plain::Whole { least: 1, most: 20, of: "steps" }),
            Fallback::Text("5"),
            "Newton–Schulz steps that make the momentum orthogonal.",
        ),
        arg(
            "scale",
            Type { plain: None, functions: &[&ORIGINAL, &MATCH_ADAMW] },
            Fallback::Text("original"),
            "Size of an update.",
        ),
        known_as(
            "optimizer.params.adam_lr",
            "",
            arg(
                "adam_lr",
                real(Bound::Open(0.0), Bound::Closed(10.0)),
                Fallback::Text("3e-4"),
                "Highest learning rate of what AdamW changes; it follows the schedule of `lr`.",
            ),
        ),
        betas("(0.9, 0.95)", "Decay of AdamW's first and second moment."),
        eps("1e-10"),
        WEIGHT_DECAY,
        GROUPS,
    ],
};
