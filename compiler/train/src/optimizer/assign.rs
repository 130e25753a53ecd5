//! Which rule changes which parameter.
//!
//! Reads   the parameters' names and dims, how the graph uses them, and the optimizer with its groups.
//! Writes  the distinct ways of updating, and each parameter's.
//! Keeps   the order of the groups: the first that takes a parameter holds for it.
//! Cost    parameters × groups.

use dspc_graph::form::Form;
use dspc_graph::ir::{Block, Def, Graph, OpNode, ParamId, Step, ValueId};
use dspc_source::Diagnostic;
use dspc_spec::settings::{Optimizer, ParamGroup, Rule};

use super::mistakes::mistakes;
use super::{Moment, Pace, moments};

/// Index in [`crate::TrainGraph::updates`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct UpdateId(pub u32);

/// One way of changing parameters.
#[derive(Clone, PartialEq, Debug)]
pub struct Update {
    /// `decay`, `plain`, `matrices`, `group1`, `group1.decay`, `frozen`; unique.
    pub name: String,
    /// The rule; under Muon, that of its part.
    pub rule: Rule,
    /// Factor on the learning rate, and decay.
    pub pace: Pace,
    /// Nothing changes them.
    pub frozen: bool,
}

impl Update {
    /// What is kept for a parameter of so many dims.
    pub fn moments(&self, dims: usize) -> &'static [Moment] {
        if self.frozen { &[] } else { moments(&self.rule, dims) }
    }

    /// Those that are flat ranges like the parameters'.
    pub fn flat_moments(&self) -> &'static [Moment] {
        if matches!(self.rule, Rule::Adafactor(_)) { &[] } else { self.moments(2) }
    }

    /// Those of a tensor of so many dims that have a place of their own.
    pub fn own_moments(&self, dims: usize) -> &'static [Moment] {
        if matches!(self.rule, Rule::Adafactor(_)) { self.moments(dims) } else { &[] }
    }

    /// Whether an element's change depends on others of its tensor.
    pub fn by_tensor(&self) -> bool {
        match self.rule {
            Rule::AdamW(_) | Rule::Adam(_) | Rule::Sgd { .. } | Rule::Lion { .. } => false,
            Rule::Lamb { .. } | Rule::Adafactor(_) | Rule::Muon(_) => !self.frozen,
        }
    }
}

/// What decides a parameter's update; parameters that agree in it share one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Way {
    pub frozen: bool,
    /// Place in the optimizer's groups, from 0; behind them what none takes.
    group: usize,
    /// Muon's own part.
    pub matrix: bool,
    /// Two dims or more.
    decays: bool,
}

/// The updates of a graph's parameters, those in use alone, and each parameter's.
///
/// # Errors
/// A group that takes nothing; parameters that are all frozen; Muon without a matrix.
pub fn assign_updates(
    graph: &Graph,
    optimizer: &Optimizer,
) -> Result<(Vec<Update>, Vec<UpdateId>), Vec<Diagnostic>> {
    let ways: Vec<Way> = (0..graph.params.len()).map(|i| way(graph, optimizer, i)).collect();
    let mistakes = mistakes(graph, optimizer, &ways);
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    // Decay first and what no group takes first, as the layers have always printed it; frozen parameters last.
    let mut distinct: Vec<Way> = ways.clone();
    let others = optimizer.groups.len();
    distinct.sort_by_key(|w| (w.frozen, w.group != others, w.group, !w.matrix, !w.decays));
    distinct.dedup();
    let updates = distinct.iter().map(|&way| update(optimizer, way, &ways)).collect();
    let id = |way: &Way| UpdateId(distinct.iter().position(|d| d == way).unwrap_or(0) as u32);
    Ok((updates, ways.iter().map(id).collect()))
}

fn way(graph: &Graph, optimizer: &Optimizer, param: usize) -> Way {
    let ty = &graph.params[param].ty;
    let name = &graph.params[param].name;
    let group = optimizer.groups.iter().position(|g| g.takes(name, ty.dims.len() as u64));
    let said = group.map(|group| &optimizer.groups[group]);
    let frozen = said.is_some_and(is_frozen);
    if frozen {
        return Way { frozen, group: 0, matrix: false, decays: false };
    }
    let matrix = matches!(optimizer.rule, Rule::Muon(_)) && is_hidden_matrix(graph, ParamId(param as u32));
    let decays = ty.dims.len() >= 2 || said.is_some_and(|group| group.weight_decay.is_some());
    Way { frozen, group: group.unwrap_or(optimizer.groups.len()), matrix, decays }
}

fn is_frozen(group: &ParamGroup) -> bool {
    group.freeze || group.lr == 0.0
}

fn update(optimizer: &Optimizer, way: Way, all: &[Way]) -> Update {
    let group = optimizer.groups.get(way.group).filter(|_| !way.frozen);
    let (rule, share) = match optimizer.rule {
        Rule::Muon(muon) if !way.matrix => (Rule::AdamW(muon.adam), muon.adam_lr / optimizer.lr.peak()),
        rule => (rule, 1.0),
    };
    let decay = group.and_then(|g| g.weight_decay).unwrap_or(optimizer.weight_decay);
    let pace =
        Pace { lr: group.map_or(1.0, |g| g.lr) * share, weight_decay: if way.decays { decay } else { 0.0 } };
    Update { name: name(optimizer, way, all), rule, pace, frozen: way.frozen }
}

fn name(optimizer: &Optimizer, way: Way, all: &[Way]) -> String {
    if way.frozen {
        return "frozen".into();
    }
    let part = match (way.matrix, way.decays) {
        (true, _) => "matrices",
        (false, true) => "decay",
        (false, false) => "plain",
    };
    if way.group == optimizer.groups.len() {
        return part.into();
    }
    let alone = all.iter().all(|other| other.frozen || other.group != way.group || *other == way);
    let number = way.group + 1;
    if alone { format!("group{number}") } else { format!("group{number}.{part}") }
}

/// Two dims, a factor of a matrix product, and neither looked up by id nor what the logits are products with.
fn is_hidden_matrix(graph: &Graph, param: ParamId) -> bool {
    if graph.param(param).ty.dims.len() != 2 {
        return false;
    }
    let (mut inside, mut outside) = (false, false);
    for_each_use(graph, &graph.body, param, &mut |node| {
        let types = |ids: &[ValueId]| ids.iter().map(|&v| graph.ty(v)).collect::<Vec<_>>();
        let form = node.op.form(&types(&node.inputs), &types(&node.outputs));
        let is_head = graph.logits.is_some_and(|logits| node.outputs.contains(&logits));
        let factor = matches!(form, Form::Contract { .. }) && !is_head;
        inside |= factor;
        outside |= !factor;
    });
    inside && !outside
}

fn for_each_use(graph: &Graph, block: &Block, param: ParamId, found: &mut dyn FnMut(&OpNode)) {
    for step in &block.steps {
        match step {
            Step::Op(node) if node.inputs.iter().any(|&v| graph.value(v).def == Def::Param(param)) => {
                found(node)
            }
            Step::Op(_) => {}
            Step::Repeat(repeat) => for_each_use(graph, &repeat.body, param, found),
        }
    }
}

#[cfg(test)]
mod tests {
    use dspc_source::{FileId, Span, Spanned};
    use dspc_spec::settings::{Adam, Muon, MuonScale, Precision};

    use super::*;
    use crate::fixture::{adamw, forward, train_with};

    const MODEL: &str = "model m(tokens: ids[B, T], targets: ids[B, T], width: D, vocab: V) -> loss {
        param wte: [V, D] ~ normal(0.02)
        param wpe: [T, D] ~ normal(0.02)
        x = wte[tokens] + wpe[0..T]
        repeat 2 as h { x = x + gelu(linear(norm(x), D)) }
        cross_entropy(x @ transpose(wte), targets)
      }
      model = m(width: 6, vocab: data.vocab)";

    fn group(names: &str) -> ParamGroup {
        let names = Spanned::new(names.to_string(), Span::new(FileId(0), 0, 0));
        ParamGroup { names, dims: None, lr: 1.0, weight_decay: None, freeze: false }
    }

    /// Name of the update, factor on the learning rate and decay of each parameter.
    fn assigned(optimizer: &Optimizer) -> Vec<(String, String, f64, f64)> {
        let train = train_with(MODEL, optimizer, Precision::Fp32);
        let of = |g: &crate::ParamGradient| {
            let update = train.update(g.update);
            let name = train.graph.param(g.param).name.clone();
            (name, update.name.clone(), update.pace.lr, update.pace.weight_decay)
        };
        train.gradients.iter().map(of).collect()
    }

    fn row(param: &str, update: &str, lr: f64, decay: f64) -> (String, String, f64, f64) {
        (param.into(), update.into(), lr, decay)
    }

    #[test]
    fn decay_acts_on_matrices_where_nothing_is_said() {
        let found = assigned(&adamw());
        assert_eq!(
            found,
            [
                row("wte", "decay", 1.0, 0.1),
                row("wpe", "decay", 1.0, 0.1),
                row("h.*.norm.weight", "plain", 1.0, 0.0),
                row("h.*.norm.bias", "plain", 1.0, 0.0),
                row("h.*.linear.weight", "decay", 1.0, 0.1),
                row("h.*.linear.bias", "plain", 1.0, 0.0),
            ]
        );
    }

    #[test]
    fn the_first_group_that_takes_a_parameter_holds() {
        let slow = ParamGroup { lr: 0.5, ..group("h.*") };
        let all = ParamGroup { weight_decay: Some(0.3), ..group("*.bias") };
        let frozen = ParamGroup { freeze: true, ..group("w*") };
        let optimizer = Optimizer { groups: vec![all, slow, frozen], ..adamw() };
        assert_eq!(
            assigned(&optimizer),
            [
                row("wte", "frozen", 1.0, 0.0),
                row("wpe", "frozen", 1.0, 0.0),
                row("h.*.norm.weight", "group2.plain", 0.5, 0.0),
                row("h.*.norm.bias", "group1", 1.0, 0.3),
                row("h.*.linear.weight", "group2.decay", 0.5, 0.1),
                row("h.*.linear.bias", "group1", 1.0, 0.3),
            ]
        );
    }

    #[test]
    fn a_frozen_parameter_has_no_gradient_and_none_is_computed_for_it() {
        let frozen = ParamGroup { freeze: true, ..group("w*") };
        let whole = train_with(MODEL, &adamw(), Precision::Fp32);
        let train = train_with(MODEL, &Optimizer { groups: vec![frozen], ..adamw() }, Precision::Fp32);
        assert!(train.gradients[..2].iter().all(|g| g.contributions.is_empty()));
        assert!(train.gradients[2..].iter().all(|g| !g.contributions.is_empty()));
        assert!(train.graph.body.steps.len() < whole.graph.body.steps.len());
    }

    #[test]
    fn muon_takes_matrices_inside_the_model_alone() {
        let adam = Adam { betas: (0.9, 0.95), eps: 1e-10 };
        let muon = Muon {
            momentum: 0.95,
            nesterov: true,
            steps: 5,
            scale: MuonScale::Original,
            adam_lr: 1e-4,
            adam,
        };
        let optimizer = Optimizer { rule: Rule::Muon(muon), ..adamw() };
        assert_eq!(
            assigned(&optimizer),
            [
                row("wte", "decay", 0.1, 0.1),
                row("wpe", "decay", 0.1, 0.1),
                row("h.*.norm.weight", "plain", 0.1, 0.0),
                row("h.*.norm.bias", "plain", 0.1, 0.0),
                row("h.*.linear.weight", "matrices", 1.0, 0.1),
                row("h.*.linear.bias", "plain", 0.1, 0.0),
            ]
        );
        let train = train_with(MODEL, &optimizer, Precision::Fp32);
        assert_eq!(train.updates[0].rule, Rule::Muon(muon));
        assert_eq!(train.updates[1].rule, Rule::AdamW(adam));
    }

    #[test]
    fn a_group_that_changes_nothing_is_a_mistake() {
        let graph = forward(MODEL);
        let codes = |groups: Vec<ParamGroup>| {
            let found = assign_updates(&graph, &Optimizer { groups, ..adamw() });
            found.err().unwrap_or_default().iter().map(|d| d.code).collect::<Vec<_>>()
        };
        assert_eq!(
            codes(vec![group("nothing"), group("wte"), group("h.0.linear.weight")]),
            ["E0451", "E0451"]
        );
        assert_eq!(codes(vec![group("*"), group("wte")]), ["E0452"]);
        assert_eq!(codes(vec![ParamGroup { lr: 0.0, ..group("*") }]), ["E0453"]);
        assert_eq!(codes(vec![group("wte"), group("*")]), [""; 0]);
    }
}
