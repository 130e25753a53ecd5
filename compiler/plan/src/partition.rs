//! Partitioning: parameters, gradients and moments as flat ranges, cut into buckets that ranks share out.
//!
//! Reads   the parameters, how each is updated, and how many ranks share the batch.
//! Writes  one flat group per way of updating; in a group classes of buckets: first what is outside repeats, then, turn by turn, each repeat.
//! Keeps   parameter order inside a bucket; a bucket's inside, whatever the number of ranks: only the padding at its end follows them.
//! Cost    one walk over the parameters.

use dspc_graph::form::Form;
use dspc_graph::ir::{Def, Graph, Param, ParamId, Step, ValueId};
use dspc_train::TrainGraph;
use dspc_train::optimizer::Update;

/// Elements that every parameter's start is a multiple of: 64 bytes of the narrowest storage type.
pub const ALIGN_ELEMENTS: u64 = 32;

/// Elements that every shard of a bucket is a multiple of: the grid on which the gradient norm is summed.
pub const GRID_ELEMENTS: u64 = 1024;

/// Rows that those of the vocabulary's parameter are padded to a multiple of, with zeros: products over the vocabulary are then aligned.
pub const VOCABULARY_ROWS: u64 = 64;

/// Index in [`Partition::groups`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct GroupId(pub u32);

/// Index in [`Partition::classes`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ClassId(pub u32);

/// The flat layout of the training state; the same for parameters, gradients and each moment.
#[derive(Clone, PartialEq, Debug)]
pub struct Partition {
    /// Ranges that are updated alike.
    pub groups: Vec<Group>,
    /// Their pieces, in order.
    pub classes: Vec<Class>,
    /// Where each parameter lies, by [`ParamId`].
    pub members: Vec<Member>,
    /// Equal shards that every bucket is cut into.
    pub shards: u64,
}

/// Parameters that are updated alike.
#[derive(Clone, PartialEq, Debug)]
pub struct Group {
    /// `decay`, `plain`, `group1`: the update's.
    pub name: String,
    /// How they are updated.
    pub update: Update,
    /// Elements, gaps between parameters included.
    pub elements: u64,
}

/// A run of equal buckets in a group: one a turn of a repeat, or one alone.
#[derive(Clone, PartialEq, Debug)]
pub struct Class {
    /// The group.
    pub group: GroupId,
    /// `decay.h`: the group, and the repeat; `.small` where its parameters are.
    pub name: String,
    /// Its parameters have fewer elements than `keep_below`.
    pub small: bool,
    /// Elements of the group before its first bucket.
    pub start: u64,
    /// Buckets.
    pub turns: u64,
    /// Elements of a bucket; a multiple of [`GRID_ELEMENTS`] · shards.
    pub elements: u64,
    /// Elements of a bucket up to its padding.
    pub filled: u64,
}

impl Class {
    /// Rows of the grid that a bucket's parameters lie on, its padding left out: they do not depend on the number of ranks.
    pub fn rows(&self) -> u64 {
        self.filled.div_ceil(GRID_ELEMENTS)
    }
}

/// A parameter's place in its group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// The group.
    pub group: GroupId,
    /// The class.
    pub class: ClassId,
    /// Elements before its first turn.
    pub offset: u64,
    /// Elements of a turn; more than the parameter's where zero rows follow its own.
    pub elements: u64,
    /// Turns; 1 outside a repeat.
    pub turns: u64,
    /// Elements from one turn to the next: a bucket's.
    pub stride: u64,
}

/// How the training state is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cut {
    /// Ranks that share a bucket.
    pub shards: u64,
    /// Parameters with fewer elements have buckets of their own.
    pub keep_below: u64,
}

/// Lays the training state out.
pub fn partition_state(train: &TrainGraph, cut: Cut) -> Partition {
    let params = &train.graph.params;
    let nowhere =
        Member { group: GroupId(0), class: ClassId(0), offset: 0, elements: 0, turns: 1, stride: 0 };
    let mut layout = Layout {
        params,
        elements: elements(&train.graph),
        cut,
        align: ALIGN_ELEMENTS,
        classes: vec![],
        members: vec![nowhere; params.len()],
    };
    let mut groups = vec![];
    for (i, update) in train.updates.iter().enumerate() {
        let mine = train.gradients.iter().filter(|g| g.update.0 as usize == i);
        let ids: Vec<ParamId> = mine.map(|g| g.param).collect();
        let (group, name) = (GroupId(groups.len() as u32), &update.name);
        layout.align = align(update);
        let mut elements = 0;
        for (repeat, run) in runs(&ids, params) {
            let repeat = repeat.map_or(String::new(), |repeat| format!(".{repeat}"));
            let (small, large): (Vec<_>, Vec<_>) =
                run.into_iter().partition(|id| layout.elements[id.0 as usize] < cut.keep_below);
            for (run, small) in [(large, false), (small, true)] {
                let name = format!("{name}{repeat}{}", if small { ".small" } else { "" });
                elements = layout.place(
                    &run,
                    Class { group, name, small, start: elements, turns: 1, elements: 0, filled: 0 },
                );
            }
        }
        groups.push(Group { name: name.clone(), update: update.clone(), elements });
    }
    Partition { groups, classes: layout.classes, members: layout.members, shards: cut.shards }
}

/// Elements of a turn of each parameter, zero rows behind its own included.
fn elements(graph: &Graph) -> Vec<u64> {
    let vocabulary = vocabulary_param(graph);
    let of = |(i, param): (usize, &Param)| {
        let padded = param.ty.rows().next_multiple_of(VOCABULARY_ROWS) * param.ty.cols();
        if vocabulary == Some(ParamId(i as u32)) { padded } else { param.ty.elements() }
    };
    graph.params.iter().enumerate().map(of).collect()
}

/// A row of the grid has elements of one tensor alone where a rule sums up tensors.
fn align(update: &Update) -> u64 {
    if update.by_tensor() { GRID_ELEMENTS } else { ALIGN_ELEMENTS }
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

/// Parameters outside repeats, then those of each repeat.
fn runs(ids: &[ParamId], params: &[Param]) -> Vec<(Option<String>, Vec<ParamId>)> {
    let repeat_of = |id: &ParamId| -> Option<String> {
        let param = &params[id.0 as usize];
        param.turns.map(|_| param.name.split(".*").next().unwrap_or("").to_string())
    };
    let mut runs: Vec<(Option<String>, Vec<ParamId>)> = vec![];
    for id in ids {
        let repeat = repeat_of(id);
        match runs.iter_mut().find(|(name, _)| *name == repeat) {
            Some((_, run)) => run.push(*id),
            None => runs.push((repeat, vec![*id])),
        }
    }
    runs.sort_by_key(|(name, _)| name.is_some());
    runs
}

/// The layout in the making.
struct Layout<'a> {
    params: &'a [Param],
    /// By parameter.
    elements: Vec<u64>,
    cut: Cut,
    /// What every parameter's start in a bucket is a multiple of.
    align: u64,
    classes: Vec<Class>,
    members: Vec<Member>,
}

impl Layout<'_> {
    /// Places a run one parameter behind the other in a class that begins where `class` says; where the class ends. No class for nothing.
    fn place(&mut self, run: &[ParamId], mut class: Class) -> u64 {
        let Some(first) = run.first() else { return class.start };
        let padded = |id: &ParamId| self.elements[id.0 as usize].next_multiple_of(self.align);
        class.turns = self.params[first.0 as usize].turns.unwrap_or(1);
        class.filled = run.iter().map(padded).sum();
        class.elements = class.filled.next_multiple_of(GRID_ELEMENTS * self.cut.shards);
        let mut offset = class.start;
        for id in run {
            self.members[id.0 as usize] = Member {
                group: class.group,
                class: ClassId(self.classes.len() as u32),
                offset,
                elements: self.elements[id.0 as usize],
                turns: class.turns,
                stride: class.elements,
            };
            offset += self.elements[id.0 as usize].next_multiple_of(self.align);
        }
        let end = class.start + class.turns * class.elements;
        self.classes.push(class);
        end
    }
}

impl Partition {
    /// Elements of all groups.
    pub fn elements(&self) -> u64 {
        self.groups.iter().map(|g| g.elements).sum()
    }

    /// A class and its id, in order.
    pub fn classes(&self) -> impl Iterator<Item = (ClassId, &Class)> {
        self.classes.iter().enumerate().map(|(i, class)| (ClassId(i as u32), class))
    }

    /// The class of an id.
    pub fn class(&self, id: ClassId) -> &Class {
        &self.classes[id.0 as usize]
    }

    /// How a class is updated.
    pub fn update(&self, class: &Class) -> &Update {
        &self.groups[class.group.0 as usize].update
    }

    /// Elements of a rank's shard of a bucket.
    pub fn shard(&self, class: &Class) -> u64 {
        class.elements / self.shards
    }

    /// Rows of the grid of gradients before a class' first bucket, paddings left out. Frozen classes have none.
    pub fn first_row(&self, id: ClassId) -> u64 {
        let before = self.classes[..id.0 as usize].iter().filter(|c| !self.update(c).frozen);
        before.map(|c| c.turns * c.rows()).sum()
    }
}
