//! Partitioning: parameters, gradients and moments as flat ranges that one optimizer kernel walks.
//!
//! Reads   the parameters and whether weight decay acts on each.
//! Writes  one flat group per way of updating; in a group first the parameters outside repeats, then, turn by turn, those of each repeat.
//! Keeps   parameter order inside a group.
//! Cost    one walk over the parameters.

use dspc_graph::form::Form;
use dspc_graph::ir::{Def, Graph, Param, ParamId, Step, ValueId};
use dspc_train::TrainGraph;

/// Elements that every parameter's start is a multiple of: 64 bytes of the narrowest storage type.
pub const ALIGN_ELEMENTS: u64 = 32;

/// Elements that every group's size is a multiple of: the grid on which the gradient norm is summed, and on which shards will be cut.
pub const GRID_ELEMENTS: u64 = 1024;

/// Rows that those of the vocabulary's parameter are padded to a multiple of, with zeros: products over the vocabulary are then aligned.
pub const VOCABULARY_ROWS: u64 = 64;

/// Index in [`Partition::groups`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct GroupId(pub u32);

/// The flat layout of the training state; the same for parameters, gradients and each moment.
#[derive(Clone, PartialEq, Debug)]
pub struct Partition {
    /// Ranges that are updated alike.
    pub groups: Vec<Group>,
    /// Where each parameter lies, by [`ParamId`].
    pub members: Vec<Member>,
}

/// Parameters that are updated alike.
#[derive(Clone, PartialEq, Debug)]
pub struct Group {
    /// `decay` or `plain`.
    pub name: String,
    /// Weight decay acts on it.
    pub decay: bool,
    /// Elements, gaps between parameters included; a multiple of [`GRID_ELEMENTS`].
    pub elements: u64,
}

/// A parameter's place in its group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// The group.
    pub group: GroupId,
    /// Elements before its first turn.
    pub offset: u64,
    /// Elements of a turn; more than the parameter's where zero rows follow its own.
    pub elements: u64,
    /// Turns; 1 outside a repeat.
    pub turns: u64,
    /// Elements from one turn to the next.
    pub stride: u64,
}

/// Lays the training state out.
pub fn partition_state(train: &TrainGraph) -> Partition {
    let params = &train.graph.params;
    let mut members =
        vec![Member { group: GroupId(0), offset: 0, elements: 0, turns: 1, stride: 0 }; params.len()];
    let vocabulary = vocabulary_param(&train.graph);
    let elements = |id: ParamId| {
        let ty = &params[id.0 as usize].ty;
        let padded = ty.rows().next_multiple_of(VOCABULARY_ROWS) * ty.cols();
        if vocabulary == Some(id) { padded } else { ty.elements() }
    };
    let mut groups = vec![];
    for decay in [true, false] {
        let ids: Vec<ParamId> =
            train.gradients.iter().filter(|g| g.decay == decay).map(|g| g.param).collect();
        if ids.is_empty() {
            continue;
        }
        let group = GroupId(groups.len() as u32);
        let mut end = 0;
        for run in runs(&ids, params) {
            end = place_run(run, params, &elements, group, end, &mut members);
        }
        let elements = end.next_multiple_of(GRID_ELEMENTS);
        groups.push(Group { name: if decay { "decay" } else { "plain" }.into(), decay, elements });
    }
    Partition { groups, members }
}

/// The parameter whose rows the logits are products with.
pub fn vocabulary_param(graph: &Graph) -> Option<ParamId> {
    let logits = graph.logits?;
    graph.body.steps.iter().find_map(|step| {
        let Step::Op(node) = step else { return None };
        let types = |ids: &[ValueId]| ids.iter().map(|&v| graph.ty(v)).collect::<Vec<_>>();
        let by_rows = Form::Contract { transpose_a: false, transpose_b: true };
        if node.outputs != [logits] || node.op.form(&types(&node.inputs), &types(&node.outputs)) != by_rows {
            return None;
        }
        match graph.value(node.inputs[1]).def {
            Def::Param(param) if graph.param(param).turns.is_none() => Some(param),
            _ => None,
        }
    })
}

/// Parameters outside repeats one by one, those of a repeat together: outside first.
fn runs<'a>(ids: &'a [ParamId], params: &[Param]) -> Vec<Vec<&'a ParamId>> {
    let repeat_of = |id: &ParamId| -> Option<String> {
        let param = &params[id.0 as usize];
        param.turns.map(|_| param.name.split(".*").next().unwrap_or("").to_string())
    };
    let mut runs: Vec<(Option<String>, Vec<&ParamId>)> = vec![];
    for id in ids {
        let repeat = repeat_of(id);
        match runs.iter_mut().find(|(name, _)| *name == repeat) {
            Some((_, run)) => run.push(id),
            None => runs.push((repeat, vec![id])),
        }
    }
    runs.sort_by_key(|(name, _)| name.is_some());
    runs.into_iter().map(|(_, run)| run).collect()
}

fn place_run(
    run: Vec<&ParamId>,
    params: &[Param],
    elements: &dyn Fn(ParamId) -> u64,
    group: GroupId,
    start: u64,
    members: &mut [Member],
) -> u64 {
    let padded = |id: &ParamId| elements(*id).next_multiple_of(ALIGN_ELEMENTS);
    let stride: u64 = run.iter().map(|id| padded(id)).sum();
    let mut offset = start;
    let mut turns = 1;
    for id in run {
        turns = params[id.0 as usize].turns.unwrap_or(1);
        members[id.0 as usize] = Member { group, offset, elements: elements(*id), turns, stride };
        offset += padded(id);
    }
    start + stride * turns
}

impl Partition {
    /// Elements of all groups.
    pub fn elements(&self) -> u64 {
        self.groups.iter().map(|g| g.elements).sum()
    }
}
