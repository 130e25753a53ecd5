//! The optimizer: rule, schedule, groups of parameters.

use dspc_source::{Span, Spanned};

use super::held::HeldCall;
use super::settings::schedule;
use crate::settings::{Adafactor, Adam, Muon, MuonScale, Optimizer, ParamGroup, Rule};

pub(super) fn optimizer(call: &HeldCall, span: Span) -> Option<Optimizer> {
    let groups = call.arg("groups")?.value.calls()?;
    Some(Optimizer {
        rule: rule(call)?,
        lr: schedule(&call.arg("lr")?.value)?,
        weight_decay: call.number("weight_decay")?,
        groups: groups.iter().map(group).collect::<Option<_>>()?,
        span,
    })
}

fn rule(call: &HeldCall) -> Option<Rule> {
    Some(match call.function.name {
        "adamw" => Rule::AdamW(adam(call)?),
        "adam" => Rule::Adam(adam(call)?),
        "sgd" => Rule::Sgd { momentum: call.number("momentum")?, nesterov: call.flag("nesterov")? },
        "lion" => Rule::Lion { betas: call.pair("betas")? },
        "lamb" => {
            Rule::Lamb { adam: adam(call)?, ratio: (call.number("min_ratio")?, call.number("max_ratio")?) }
        }
        "adafactor" => Rule::Adafactor(Adafactor {
            decay_power: call.number("decay_power")?,
            eps: call.number("eps")?,
            clip: call.number("clip")?,
            scale_parameter: call.flag("scale_parameter")?,
            eps_parameter: call.number("eps_parameter")?,
        }),
        _ => Rule::Muon(muon(call)?),
    })
}

fn adam(call: &HeldCall) -> Option<Adam> {
    Some(Adam { betas: call.pair("betas")?, eps: call.number("eps")? })
}

fn muon(call: &HeldCall) -> Option<Muon> {
    let scale = match call.arg("scale")?.value.call()?.function.name {
        "original" => MuonScale::Original,
        _ => MuonScale::MatchAdamW,
    };
    Some(Muon {
        momentum: call.number("momentum")?,
        nesterov: call.flag("nesterov")?,
        steps: call.whole("steps")?,
        scale,
        adam_lr: call.number("adam_lr")?,
        adam: adam(call)?,
    })
}

fn group(call: &Spanned<HeldCall>) -> Option<ParamGroup> {
    let (place, call) = (call.span, &call.value);
    let names = call.arg("names")?;
    Some(ParamGroup {
        names: Spanned::new(names.value.text()?.to_string(), names.span.unwrap_or(place)),
        dims: call.whole("dims"),
        lr: call.number("lr")?,
        weight_decay: call.number("weight_decay"),
        freeze: call.flag("freeze")?,
    })
}
