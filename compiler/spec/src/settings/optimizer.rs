//! `optimizer = …`: the rule, its learning rate, and what groups of parameters do otherwise.

use dspc_source::{Span, Spanned};

/// How gradients change the weights.
#[derive(Clone, PartialEq, Debug)]
pub struct Optimizer {
    /// The rule and its constants.
    pub rule: Rule,
    /// Learning rate by step.
    pub lr: Schedule,
    /// Decay of the weights; acts on tensors of two or more dims where no group says otherwise.
    pub weight_decay: f64,
    /// What some parameters do otherwise; the first that names a parameter holds for it.
    pub groups: Vec<ParamGroup>,
    /// Where it was written.
    pub span: Span,
}

/// The rules. Formulas and papers are in `docs/optimizers.md`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Rule {
    /// Adam with decoupled weight decay (Loshchilov, Hutter 2019).
    AdamW(Adam),
    /// Adam (Kingma, Ba 2015); decay is added to the gradient.
    Adam(Adam),
    /// Gradient descent with momentum, as PyTorch's.
    Sgd {
        /// Share of the momentum kept; 0 keeps none.
        momentum: f64,
        /// Looks ahead by one step of the momentum.
        nesterov: bool,
    },
    /// Lion (Chen et al. 2023).
    Lion {
        /// Interpolation for the update, and decay of the momentum.
        betas: (f64, f64),
    },
    /// LAMB (You et al. 2020).
    Lamb {
        /// Its Adam.
        adam: Adam,
        /// Least and greatest trust ratio.
        ratio: (f64, f64),
    },
    /// Adafactor (Shazeer, Stern 2018) without a first moment.
    Adafactor(Adafactor),
    /// Muon (Jordan et al. 2024) for matrices, AdamW for all else.
    Muon(Muon),
}

/// Constants of Adam and its kin.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Adam {
    /// Decay of the first and the second moment.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
}

/// Constants of Adafactor.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Adafactor {
    /// The second moment's decay at step t is 1 − t^−power.
    pub decay_power: f64,
    /// Added to squares of the gradient.
    pub eps: f64,
    /// Largest root mean square of an update.
    pub clip: f64,
    /// The learning rate is relative to the root mean square of the parameter.
    pub scale_parameter: bool,
    /// The least that this counts as.
    pub eps_parameter: f64,
}

/// Constants of Muon.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Muon {
    /// Decay of the momentum.
    pub momentum: f64,
    /// Looks ahead by one step of the momentum.
    pub nesterov: bool,
    /// Newton–Schulz steps.
    pub steps: u64,
    /// Size of an update.
    pub scale: MuonScale,
    /// Highest learning rate of what AdamW changes; follows the schedule of `lr`.
    pub adam_lr: f64,
    /// Constants of that AdamW.
    pub adam: Adam,
}

/// By what an orthogonal update is multiplied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MuonScale {
    /// √max(1, outputs / inputs) (Jordan et al.).
    Original,
    /// 0.2 · √max(outputs, inputs): the root mean square that AdamW's updates have (Liu et al. 2025).
    MatchAdamW,
}

/// `group("*.bias", lr: 0.5)`
#[derive(Clone, PartialEq, Debug)]
pub struct ParamGroup {
    /// Pattern of the parameters' names: `*` stands for any characters.
    pub names: Spanned<String>,
    /// How many dims they have, if that is asked for.
    pub dims: Option<u64>,
    /// Factor on the learning rate.
    pub lr: f64,
    /// Decay, if it is another than the optimizer's.
    pub weight_decay: Option<f64>,
    /// They do not change.
    pub freeze: bool,
}

impl ParamGroup {
    /// Whether it names a parameter.
    pub fn takes(&self, name: &str, dims: u64) -> bool {
        self.dims.is_none_or(|wanted| wanted == dims) && matches(&self.names.value, name)
    }
}

/// Whether a name fits a pattern, whose `*` stand for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    // The earliest place for each part leaves the most for those behind it.
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Learning rate by applied step.
#[derive(Clone, PartialEq, Debug)]
pub enum Schedule {
    /// `3e-4`, `constant(3e-4, warmup: 100)`
    Constant {
        /// The rate.
        lr: f64,
        /// Steps of linear warm-up.
        warmup: u64,
    },
    /// `warmup_linear(peak:, warmup:, floor:)`
    Linear {
        /// Highest.
        peak: f64,
        /// Steps of linear warm-up.
        warmup: u64,
        /// At the last step.
        floor: f64,
    },
    /// `warmup_cosine(peak:, warmup:, floor:)`
    Cosine {
        /// Highest.
        peak: f64,
        /// Steps of linear warm-up.
        warmup: u64,
        /// At the last step.
        floor: f64,
    },
    /// `warmup_stable_decay(peak:, warmup:, decay:, floor:)`
    WarmupStableDecay {
        /// Highest.
        peak: f64,
        /// Steps of linear warm-up.
        warmup: u64,
        /// Steps of decay at the end.
        decay: u64,
        /// At the last step.
        floor: f64,
    },
}

impl Schedule {
    /// The highest rate.
    pub fn peak(&self) -> f64 {
        match *self {
            Schedule::Constant { lr, .. } => lr,
            Schedule::Linear { peak, .. }
            | Schedule::Cosine { peak, .. }
            | Schedule::WarmupStableDecay { peak, .. } => peak,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, name) in [
            ("*", "wte"),
            ("wte", "wte"),
            ("*.bias", "h.*.attn.c_attn.bias"),
            ("h.*", "h.*.ln_1.weight"),
            ("h.*.ln_*.weight", "h.*.ln_1.weight"),
            ("*ln*", "ln_f.weight"),
            ("a*b*b", "abb"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("wte", "wte2"),
            ("*.bias", "bias"),
            ("h.0.*", "h.*.ln_1.weight"),
            ("a*b*b", "ab"),
            ("", "x"),
            ("a*a", "a"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn a_group_takes_by_name_and_by_dims() {
        let names = Spanned::new("*.weight".to_string(), Span::new(dspc_source::FileId(0), 0, 0));
        let group = ParamGroup { names, dims: Some(1), lr: 1.0, weight_decay: None, freeze: false };
        assert!(group.takes("ln.weight", 1));
        assert!(!group.takes("mlp.weight", 2) && !group.takes("ln.bias", 1));
    }
}
