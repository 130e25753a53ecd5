//! The optimizer.

use super::quoted;
use super::settings::schedule;
use crate::numbers::number;
use crate::settings::{Adam, MuonScale, Optimizer, ParamGroup, Rule};

pub(super) fn optimizer(optimizer: &Optimizer) -> String {
    let (name, constants) = rule(&optimizer.rule);
    let (lr, decay) = (schedule(&optimizer.lr), number(optimizer.weight_decay));
    let groups: Vec<_> = optimizer.groups.iter().map(group).collect();
    let groups = if groups.is_empty() { String::new() } else { format!(", groups: [{}]", groups.join(", ")) };
    format!("{name}(lr: {lr}, {constants}, weight_decay: {decay}{groups})")
}

/// Its name, and its constants as they are written.
fn rule(rule: &Rule) -> (&'static str, String) {
    match rule {
        Rule::AdamW(rule) => ("adamw", adam(rule)),
        Rule::Adam(rule) => ("adam", adam(rule)),
        Rule::Sgd { momentum, nesterov } => {
            ("sgd", format!("momentum: {}, nesterov: {nesterov}", number(*momentum)))
        }
        Rule::Lion { betas } => ("lion", pair(*betas)),
        Rule::Lamb { adam: rule, ratio } => {
            let (least, most) = (number(ratio.0), number(ratio.1));
            ("lamb", format!("{}, min_ratio: {least}, max_ratio: {most}", adam(rule)))
        }
        Rule::Adafactor(rule) => (
            "adafactor",
            format!(
                "decay_power: {}, eps: {}, clip: {}, scale_parameter: {}, eps_parameter: {}",
                number(rule.decay_power),
                number(rule.eps),
                number(rule.clip),
                rule.scale_parameter,
                number(rule.eps_parameter)
            ),
        ),
        Rule::Muon(rule) => {
            let scale = match rule.scale {
                MuonScale::Original => "original",
                MuonScale::MatchAdamW => "match_adamw",
            };
            let (momentum, steps, lr) = (number(rule.momentum), rule.steps, number(rule.adam_lr));
            let (nesterov, adam) = (rule.nesterov, adam(&rule.adam));
            (
                "muon",
                format!(
                    "momentum: {momentum}, nesterov: {nesterov}, steps: {steps}, scale: {scale}, adam_lr: {lr}, {adam}"
                ),
            )
        }
    }
}

fn adam(rule: &Adam) -> String {
    format!("{}, eps: {}", pair(rule.betas), number(rule.eps))
}

fn pair(betas: (f64, f64)) -> String {
    format!("betas: ({}, {})", number(betas.0), number(betas.1))
}

fn group(group: &ParamGroup) -> String {
    let dims = group.dims.map_or("any".into(), |dims| dims.to_string());
    let decay = group.weight_decay.map_or("same".into(), number);
    let (names, lr, freeze) = (quoted(&group.names.value), number(group.lr), group.freeze);
    format!("group({names}, dims: {dims}, lr: {lr}, weight_decay: {decay}, freeze: {freeze})")
}
