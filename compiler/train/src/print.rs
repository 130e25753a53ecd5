//! The printed form: forward, backward, update.

use std::fmt::Write;

use dspc_graph::{print_block, print_params};
use dspc_spec::settings::{Optimizer, Precision};

use crate::optimizer::scaler::Scaling;
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
    let Optimizer::AdamW { betas, eps, weight_decay, .. } = &train.optimizer;
    let width = graph.params.iter().map(|p| p.name.chars().count()).max().unwrap_or(0);
    for gradient in &train.gradients {
        let param = graph.param(gradient.param);
        let terms: Vec<&str> = gradient.contributions.iter().map(|v| graph.value(*v).name.as_str()).collect();
        let decay = if gradient.decay { format!("  decay {weight_decay}") } else { String::new() };
        let terms = if terms.is_empty() { "no gradient".to_owned() } else { terms.join(" + ") };
        let _ = writeln!(out, "  {:width$} = adamw {terms}{decay}", param.name);
    }
    let _ = writeln!(out, "\nadamw betas {} {} eps {eps:e}", betas.0, betas.1);
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
