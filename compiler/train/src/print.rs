//! The printed form: forward, backward, update.

use std::fmt::Write;

use dspc_graph::{print_block, print_params};
use dspc_spec::settings::{MuonScale, Precision, Rule};

use crate::optimizer::scaler::Scaling;
use crate::optimizer::{self, Update};
use crate::{Storage, TrainGraph};

/// The whole training graph.
pub fn print(train: &TrainGraph) -> String {
    let graph = &train.graph;
    let (forward, backward) = graph.body.steps.split_at(train.backward_start);
    let precision = precision(&train.precision);
    let mut out = format!("train {}{precision}\n\nparams\n{}", graph.name, print_params(graph, 2));
    out.push_str("\nforward\n");
    out.push_str(&print_block(graph, forward, 2));
    out.push_str("\nbackward\n");
    out.push_str(&print_block(graph, backward, 2));
    out.push_str("\nupdate\n");
    let clip = train.clip.map_or_else(String::new, |c| format!("  clip {c}"));
    let scaling = Scaling::of(&train.precision);
    let unscaled = if scaling.is_scaled() { " / loss_scale" } else { "" };
    let _ = writeln!(out, "  norm = global_norm of all gradients{unscaled}{clip}");
    if let Scaling::Dynamic(rule) = scaling {
        let refill = if rule.consecutive { ", refilled by a clean step" } else { "" };
        let _ = writeln!(
            out,
            "  loss_scale = {} at first, twice that after {} clean steps, half on overflow {}{refill}, at least {}",
            rule.start, rule.window, rule.hysteresis, rule.min
        );
    }
    let width = graph.params.iter().map(|p| p.name.chars().count()).max().unwrap_or(0);
    for gradient in &train.gradients {
        let param = graph.param(gradient.param);
        let update = train.update(gradient.update);
        if update.frozen {
            let _ = writeln!(out, "  {:width$}   frozen", param.name);
            continue;
        }
        let terms: Vec<&str> = gradient.contributions.iter().map(|v| graph.value(*v).name.as_str()).collect();
        let terms = if terms.is_empty() { "no gradient".to_owned() } else { terms.join(" + ") };
        let rule = optimizer::name(&update.rule);
        let _ = writeln!(out, "  {:width$} = {rule} {terms}{}", param.name, pace(update));
    }
    out.push('\n');
    let rules: Vec<&Rule> = train.updates.iter().filter(|u| !u.frozen).map(|u| &u.rule).collect();
    for (_, rule) in rules.iter().enumerate().filter(|(i, rule)| !rules[..*i].contains(rule)) {
        let _ = writeln!(out, "{}", constants(rule));
    }
    out
}

/// `   bf16, gradients f32, masters and moments f32`; nothing in single precision.
fn precision(precision: &Precision) -> String {
    let storage = Storage::of(precision);
    match precision {
        Precision::Fp32 => String::new(),
        Precision::Tf32 => "   f32, products in tf32".into(),
        Precision::Bf16 { .. } | Precision::Fp16 { .. } => {
            format!("   {}, gradients {}, masters and moments f32", storage.compute, storage.accumulate)
        }
    }
}

/// What a group says besides the rule.
fn pace(update: &Update) -> String {
    let lr = update.pace.lr;
    let lr = if lr == 1.0 { String::new() } else { format!("  lr × {lr}") };
    let decay = update.pace.weight_decay;
    let decay = if decay == 0.0 { String::new() } else { format!("  decay {decay}") };
    format!("{lr}{decay}")
}

/// `adamw betas 0.9 0.999 eps 1e-8`
fn constants(rule: &Rule) -> String {
    let name = optimizer::name(rule);
    match rule {
        Rule::AdamW(adam) | Rule::Adam(adam) => {
            format!("{name} betas {} {} eps {:e}", adam.betas.0, adam.betas.1, adam.eps)
        }
        Rule::Sgd { momentum, nesterov } => {
            format!("{name} momentum {momentum}{}", if *nesterov { " nesterov" } else { "" })
        }
        Rule::Lion { betas } => format!("{name} betas {} {}", betas.0, betas.1),
        Rule::Lamb { adam, ratio } => {
            let (first, second) = adam.betas;
            format!("{name} betas {first} {second} eps {:e} ratio {} to {}", adam.eps, ratio.0, ratio.1)
        }
        Rule::Adafactor(rule) => {
            let scaled = if rule.scale_parameter { " scaled by the parameter" } else { "" };
            format!("{name} decay 1 − t^−{} eps {:e} clip {}{scaled}", rule.decay_power, rule.eps, rule.clip)
        }
        Rule::Muon(muon) => {
            let scale = match muon.scale {
                MuonScale::Original => "original",
                MuonScale::MatchAdamW => "match_adamw",
            };
            let nesterov = if muon.nesterov { " nesterov" } else { "" };
            format!("{name} momentum {}{nesterov} steps {} scale {scale}", muon.momentum, muon.steps)
        }
    }
}
