//! Lowering: a graph's blocks to steps over storages.
//!
//! Reads   a graph (training, evaluation or logits), and where its state lies.
//! Writes  launches, matrix products and loops; a storage for every value that must be in memory.
//! Keeps   the graph's meaning. Views cost nothing; parts of a concat, turns' results and gradients are written where they are needed; what
//!         cannot be is copied.
//! Cost    O(ops) but for fusion.

mod block;
mod logits;
mod repeat;
pub(crate) mod rows;

use std::collections::{HashMap, HashSet};

use dspc_graph::form::{Form, View};
use dspc_graph::ir::{Block, Def, Graph, OpNode, ParamId, RepeatId, Step as GraphStep, ValueId};
use dspc_graph::rowfn::Yield;
use dspc_train::TrainGraph;

use crate::fuse::form_of;
use crate::locate::Location;
use crate::pool::Pool;
use crate::state::State;
use crate::steps::{Place, Step, StorageId, StorageKind};

pub(crate) use logits::Vocabulary;

/// How a GPU treats the logits.
#[derive(Clone, Copy)]
pub(crate) struct Head {
    /// The parameter that they are products with, where it is padded.
    pub vocabulary: Option<Vocabulary>,
    /// Bytes that they may take at once.
    pub logits_bytes_max: u64,
}

/// Lowers the forward and backward pass of one micro-batch.
pub(crate) fn lower_train(
    train: &TrainGraph,
    head: Option<Head>,
    state: &mut State,
    pool: &mut Pool,
) -> Vec<Step> {
    let mut lowering = Lowering::new(&train.graph, state, pool, "");
    lowering.micro = true;
    lowering.accumulates = lowering.state.accumulates;
    for gradient in &train.gradients {
        lowering.contributions.extend(gradient.contributions.iter().map(|&v| (v, gradient.param)));
    }
    lowering.root(train.graph.loss, StorageKind::Loss);
    lowering.lower_with_head(&train.graph.body, head)
}

/// Lowers a forward pass for its loss.
pub(crate) fn lower_loss(graph: &Graph, head: Option<Head>, state: &mut State, pool: &mut Pool) -> Vec<Step> {
    let mut lowering = Lowering::new(graph, state, pool, "eval.");
    lowering.root(graph.loss, StorageKind::Loss);
    lowering.lower_with_head(&graph.body, head)
}

/// Lowers a forward pass for its logits: what only the loss needs is left out.
pub(crate) fn lower_logits(graph: &Graph, state: &mut State, pool: &mut Pool) -> Vec<Step> {
    let mut lowering = Lowering::new(graph, state, pool, "generate.");
    lowering.root(graph.logits, StorageKind::Logits);
    let body = prune(&graph.body, graph.logits);
    lowering.lower(&body)
}

/// The steps that a value needs.
fn prune(block: &Block, root: Option<ValueId>) -> Block {
    let mut needed: HashSet<ValueId> = root.into_iter().collect();
    let mut steps = vec![];
    for step in block.steps.iter().rev() {
        if crate::fuse::outputs_of(step).iter().any(|v| needed.contains(v)) {
            needed.extend(crate::fuse::inputs_of(step));
            steps.push(step.clone());
        }
    }
    steps.reverse();
    Block { steps }
}

/// Where an op's result is defined.
struct Site<'a> {
    node: &'a OpNode,
    result: usize,
    form: Form,
}

impl Site<'_> {
    /// Whether the op writes its result into memory of the result's own; a view does not, and a concat may find its parts in place.
    fn writes(&self) -> bool {
        match &self.form {
            Form::Row(f) => matches!(f.outputs[self.result], Yield::Element(_) | Yield::Row(_)),
            Form::Contract { .. } | Form::Attention(_) | Form::AttentionBackward(_) | Form::Concat { .. } => {
                true
            }
            Form::View(_) | Form::Pad { .. } | Form::ScatterAdd => false,
        }
    }
}

struct Lowering<'a> {
    graph: &'a Graph,
    state: &'a mut State,
    pool: &'a mut Pool,
    prefix: &'static str,
    /// The steps stand in the loop over micro-batches.
    micro: bool,
    sites: HashMap<ValueId, Site<'a>>,
    /// The repeat whose body defines a value.
    repeat_of: HashMap<ValueId, RepeatId>,
    counts: HashMap<RepeatId, u64>,
    /// Op operands and carried values that name a value.
    uses: HashMap<ValueId, u32>,
    /// Values that the mirror of their repeat reads: one slot a turn.
    saved: HashSet<ValueId>,
    locations: HashMap<ValueId, Location>,
    contributions: HashMap<ValueId, ParamId>,
    /// Of those, the values that are written where the gradient lies.
    in_place: HashSet<ValueId>,
    /// Gradients that hold a term already.
    begun: HashSet<ParamId>,
    /// Gradients are added to from the first term on (they were zeroed before the micro-batches).
    accumulates: bool,
    /// The logits, on a GPU.
    logits: Option<logits::Logits>,
    /// Copies that a value's reader needs first.
    pending: Vec<Step>,
    /// Where a repeat's carried value (by its argument) must be copied before the first turn.
    carried_inits: HashMap<ValueId, Location>,
    /// Likewise at the end of each turn.
    carried_results: HashMap<ValueId, Location>,
}

impl<'a> Lowering<'a> {
    fn new(graph: &'a Graph, state: &'a mut State, pool: &'a mut Pool, prefix: &'static str) -> Self {
        let mut lowering = Self {
            graph,
            state,
            pool,
            prefix,
            micro: false,
            sites: HashMap::new(),
            repeat_of: HashMap::new(),
            counts: HashMap::new(),
            uses: HashMap::new(),
            saved: HashSet::new(),
            locations: HashMap::new(),
            contributions: HashMap::new(),
            in_place: HashSet::new(),
            begun: HashSet::new(),
            accumulates: false,
            logits: None,
            pending: vec![],
            carried_inits: HashMap::new(),
            carried_results: HashMap::new(),
        };
        lowering.survey(&graph.body, None);
        lowering.find_saved(&graph.body, None);
        lowering
    }

    /// Finds sites, repeats and uses.
    fn survey(&mut self, block: &'a Block, repeat: Option<RepeatId>) {
        for step in &block.steps {
            match step {
                GraphStep::Op(node) => {
                    for (result, &value) in node.outputs.iter().enumerate() {
                        self.sites.insert(value, Site { node, result, form: form_of(self.graph, node) });
                        self.repeat_of.extend(repeat.map(|r| (value, r)));
                    }
                    for &value in &node.inputs {
                        *self.uses.entry(value).or_insert(0) += 1;
                    }
                }
                GraphStep::Repeat(inner) => {
                    self.counts.insert(inner.id, inner.count);
                    for c in &inner.carried {
                        self.repeat_of.insert(c.arg, inner.id);
                        for value in [c.init, c.result] {
                            *self.uses.entry(value).or_insert(0) += 1;
                        }
                    }
                    self.survey(&inner.body, Some(inner.id));
                }
            }
        }
    }

    /// A value is saved if another repeat's body reads it, itself or through a view.
    fn find_saved(&mut self, block: &Block, repeat: Option<RepeatId>) {
        for step in &block.steps {
            match step {
                GraphStep::Op(node) => {
                    for &value in &node.inputs {
                        let mut value = value;
                        while self.repeat_of.get(&value).is_some_and(|r| Some(*r) != repeat) {
                            self.saved.insert(value);
                            match self.sites.get(&value) {
                                Some(Site { node, form: Form::View(_), .. }) => value = node.inputs[0],
                                _ => break,
                            }
                        }
                    }
                }
                GraphStep::Repeat(inner) => self.find_saved(&inner.body, Some(inner.id)),
            }
        }
    }

    /// The value that the entry is for goes where the runtime reads it.
    fn root(&mut self, value: Option<ValueId>, kind: StorageKind) {
        let Some(value) = value else { return };
        *self.uses.entry(value).or_insert(0) += 1;
        let ty = self.graph.ty(value).clone();
        let dims: Vec<u64> = ty.dims.iter().map(|d| d.size).collect();
        let place = match kind {
            StorageKind::Loss => Place { micro: self.micro, ..Place::start(self.state.loss) },
            kind => Place::start(self.pool.storage("logits", ty.dtype, ty.elements(), 1, kind)),
        };
        self.locations.insert(value, Location::dense(place, &dims));
    }

    fn lower(&mut self, block: &Block) -> Vec<Step> {
        self.lower_block(block)
    }

    fn lower_with_head(&mut self, block: &Block, head: Option<Head>) -> Vec<Step> {
        let Some(head) = head else { return self.lower(block) };
        self.place_logits(head.vocabulary);
        let steps = self.lower(block);
        self.chunk_logits(steps, head.logits_bytes_max)
    }

    fn dims(&self, value: ValueId) -> Vec<u64> {
        self.graph.ty(value).dims.iter().map(|d| d.size).collect()
    }

    /// Where a value lies; decided at the first question.
    fn locate(&mut self, value: ValueId) -> Location {
        if let Some(location) = self.locations.get(&value) {
            return location.clone();
        }
        let dims = self.dims(value);
        let location = match self.graph.value(value).def.clone() {
            Def::Input(input) => {
                let place = Place { micro: self.micro, ..Place::start(self.state.input(input)) };
                Location::dense(place, &dims)
            }
            Def::Param(param) => {
                let turn = self.graph.param(param).turns.is_some();
                Location::dense(Place { turn, ..Place::start(self.state.params[param.0 as usize]) }, &dims)
            }
            Def::Table(table) => {
                let ty = self.graph.ty(value).clone();
                Location::dense(Place::start(self.state.table(&table, &ty, self.pool)), &dims)
            }
            Def::Op | Def::RepeatArg(_) | Def::RepeatOut(_) => self.locate_result(value, &dims),
        };
        self.locations.insert(value, location.clone());
        location
    }

    fn locate_result(&mut self, value: ValueId, dims: &[u64]) -> Location {
        let view = match self.sites.get(&value) {
            Some(Site { node, result, form: Form::View(views) }) => {
                Some((node.inputs[0], views[*result].clone()))
            }
            _ => None,
        };
        match view {
            Some((base, view)) => self.locate_view(base, &view, dims),
            None => self.fresh(value, self.saved.contains(&value)),
        }
    }

    fn locate_view(&mut self, base: ValueId, view: &View, dims: &[u64]) -> Location {
        let location = self.locate(base);
        match view {
            View::Slice { dim, start } => location.slice(*dim, *start, dims[*dim]),
            View::Transpose { a, b } => location.transpose(*a, *b),
            View::Reshape => match location.reshape(dims) {
                Some(location) => location,
                None => Location { dims: dims.to_vec(), ..Location::dense(self.copy(base).place, dims) },
            },
        }
    }

    /// A storage of the value's own; with a slot a turn if the mirror reads it.
    fn fresh(&mut self, value: ValueId, saved: bool) -> Location {
        let turns = self.repeat_of.get(&value).filter(|_| saved).map(|r| self.counts[r]);
        let place = Place { turn: turns.is_some(), ..Place::start(self.storage(value, turns.unwrap_or(1))) };
        Location::dense(place, &self.dims(value))
    }

    fn storage(&mut self, value: ValueId, slots: u64) -> StorageId {
        let v = self.graph.value(value);
        let name = format!("{}{}", self.prefix, v.name);
        self.pool.storage(&name, v.ty.dtype, v.ty.elements(), slots, StorageKind::Activation)
    }

    /// A dense copy of a value, made before the step at hand.
    fn copy(&mut self, value: ValueId) -> Location {
        let from = self.locate(value);
        let to = self.fresh(value, self.saved.contains(&value));
        let steps = self.copy_steps(&from, &to, self.graph.ty(value).dtype, false);
        self.pending.extend(steps);
        to
    }

    /// The param whose gradient a value is a term of, and whether this is the first term to be written.
    fn begin(&mut self, param: ParamId) -> bool {
        self.begun.insert(param) && !self.accumulates
    }
}
