//! Groups of parameters that do not fit a model: E0451 to E0454.

use std::collections::BTreeSet;

use dspc_graph::ir::Graph;
use dspc_source::Diagnostic;
use dspc_spec::settings::{Optimizer, ParamGroup, Rule};

use super::assign::Way;

/// All that is wrong; what follows from another mistake is left out.
pub(super) fn mistakes(graph: &Graph, optimizer: &Optimizer, ways: &[Way]) -> Vec<Diagnostic> {
    let mut found = vec![];
    let mut taken: BTreeSet<usize> = BTreeSet::new();
    for group in &optimizer.groups {
        let takes = |param: &usize| {
            let param = &graph.params[*param];
            group.takes(&param.name, param.ty.dims.len() as u64)
        };
        let mine: Vec<usize> = (0..graph.params.len()).filter(takes).collect();
        let before = taken.len();
        taken.extend(&mine);
        if mine.is_empty() {
            found.push(takes_nothing(graph, group));
        } else if taken.len() == before {
            found.push(comes_too_late(graph, optimizer, group, &mine));
        }
    }
    if !found.is_empty() {
        return found;
    }
    if ways.iter().all(|way| way.frozen) {
        let d = Diagnostic::error(
            "E0453",
            "every parameter is frozen",
            optimizer.span,
            "nothing is left to train",
        );
        found.push(d.help("take `freeze: true` or `lr: 0` from a group"));
    } else if matches!(optimizer.rule, Rule::Muon(_)) && !ways.iter().any(|way| way.matrix) {
        let title = "`muon` has no matrix to change";
        let d = Diagnostic::error("E0454", title, optimizer.span, "for matrices inside the model")
            .note("embeddings, the head, and parameters of another number of dims than two are AdamW's");
        found.push(d.help("optimizer = adamw(…)"));
    }
    found
}

/// E0451.
fn takes_nothing(graph: &Graph, group: &ParamGroup) -> Diagnostic {
    let pattern = &group.names.value;
    let by_name: Vec<_> = graph
        .params
        .iter()
        .filter(|p| ParamGroup { dims: None, ..group.clone() }.takes(&p.name, 0))
        .collect();
    if let (Some(wanted), Some(first)) = (group.dims, by_name.first()) {
        let dims = if wanted == 1 { "dim" } else { "dims" };
        let title = format!("no parameter that fits `{pattern}` has {wanted} {dims}");
        return Diagnostic::error("E0451", title, group.names.span, "takes nothing").note(format!(
            "`{}` has {}",
            first.name,
            first.ty.dims.len()
        ));
    }
    let names: Vec<&str> = graph.params.iter().map(|p| p.name.as_str()).collect();
    let d = Diagnostic::error(
        "E0451",
        format!("no parameter's name fits `{pattern}`"),
        group.names.span,
        "takes nothing",
    );
    // `h.0.ln.weight` means one turn of `h.*.ln.weight`.
    let of_turn = names.iter().find(|name| {
        let any_turn = ParamGroup {
            names: group.names.clone().map(|n| n.replace(char::is_numeric, "*")),
            ..group.clone()
        };
        any_turn.takes(name, group.dims.unwrap_or(0)) && name.contains(".*")
    });
    match (of_turn, dspc_source::nearest(pattern, names.iter().copied())) {
        (Some(name), _) => {
            d.note("the turns of a `repeat` are changed alike").help(format!("group(\"{name}\")"))
        }
        (None, Some(near)) => d.help(format!("did you mean `{near}`?")),
        (None, None) => {
            let shown: Vec<String> = names.iter().take(8).map(|name| format!("`{name}`")).collect();
            let more = if names.len() > 8 { ", …" } else { "" };
            d.note(format!("the parameters are {}{more}", shown.join(", ")))
        }
    }
}

/// E0452.
fn comes_too_late(graph: &Graph, optimizer: &Optimizer, group: &ParamGroup, mine: &[usize]) -> Diagnostic {
    let title = format!("groups before `{}` have taken all that it names", group.names.value);
    let d = Diagnostic::error("E0452", title, group.names.span, "nothing is left for it");
    let name = mine.first().map(|&i| (&graph.params[i].name, graph.params[i].ty.dims.len() as u64));
    let first = name.and_then(|(name, dims)| {
        optimizer.groups.iter().find(|g| g.takes(name, dims)).map(|g| (name, g.names.span))
    });
    let d = match first {
        Some((name, span)) => d.label(span, format!("takes `{name}` first")),
        None => d,
    };
    d.note("a parameter belongs to the first group that takes it").help("put the narrower group first")
}
