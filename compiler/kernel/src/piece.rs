//! Pieces of the training state: what one kind of launch of the update covers.
//!
//! On one rank a piece is a whole group, flat. Where ranks share buckets out, or a rule looks at whole tensors, it is a class of them, with a slot a turn: a bucket, or a rank's shard of one.

use dspc_graph::ir::DType;
use dspc_plan::{
    ClassId, CollectiveKind as Kind, Exchanged, GRID_ELEMENTS, GroupId, Held, Holding, Member, Plan,
};
use dspc_spec::settings::Rule;
use dspc_train::Storage;
use dspc_train::optimizer::{Pace, Update};

use crate::pool::Pool;
use crate::steps::{Loop, Place, ShardedPlace, Step, StorageId, StorageKind, Within};

/// A run of the training state that is updated alike.
pub(crate) struct Piece {
    /// `decay`, `decay.h`
    pub name: String,
    /// How it is updated.
    pub update: Update,
    /// Its group.
    pub group: GroupId,
    /// The class, where ranks share it out or the rule looks at whole tensors.
    pub class: Option<ClassId>,
    /// Buckets: slots of each storage.
    pub turns: u64,
    /// Elements of a bucket.
    pub elements: u64,
    /// Elements of a rank's shard of it; all of them on one rank.
    pub shard: u64,
    /// Rows of the grid that each bucket's parameters lie on.
    pub rows: u64,
    /// Rows of the grid before them.
    pub first_row: u64,
    /// Which of the storages below are shared out.
    pub holding: Holding,
    /// What ops read.
    pub parameters: StorageId,
    /// What the optimizer updates, in f32: the parameters themselves where they are f32.
    pub masters: StorageId,
    /// Complete gradients; a rank's shard of them, or all. Of a frozen piece, which has none, the parameters: nobody asks for them.
    pub gradients: StorageId,
    /// The rule's flat ranges, in its order.
    pub moments: Vec<StorageId>,
    /// Whole buckets of parameters as ops read them: some turns', where parameters are shared out, else all.
    pub read: StorageId,
    /// Whole buckets of a micro-batch's gradients as ops write them: some turns', where gradients are shared out, else all.
    pub written: StorageId,
    /// Something of a bucket of gradients is written by no op.
    pub has_gaps: bool,
}

/// The pieces of a plan.
pub(crate) fn pieces(plan: &Plan, pool: &mut Pool) -> Vec<Piece> {
    let partition = &plan.partition;
    let classes = |group: GroupId| partition.classes().filter(move |(_, class)| class.group == group);
    let mut all = vec![];
    for (i, group) in partition.groups.iter().enumerate() {
        let id = GroupId(i as u32);
        if partition.shards > 1 || group.update.by_tensor() {
            all.extend(classes(id).map(|(class, _)| class_piece(plan, class, pool)));
            continue;
        }
        let shape = Piece {
            name: group.name.clone(),
            update: group.update.clone(),
            group: id,
            class: None,
            turns: 1,
            elements: group.elements,
            shard: group.elements,
            rows: group.elements / GRID_ELEMENTS,
            first_row: classes(id).next().map_or(0, |(class, _)| partition.first_row(class)),
            ..NOWHERE
        };
        all.push(shape.stored(plan, pool));
    }
    all
}

fn class_piece(plan: &Plan, id: ClassId, pool: &mut Pool) -> Piece {
    let class = plan.partition.class(id);
    let shape = Piece {
        name: class.name.clone(),
        update: plan.partition.update(class).clone(),
        group: class.group,
        class: Some(id),
        turns: class.turns,
        elements: class.elements,
        shard: plan.partition.shard(class),
        rows: class.rows(),
        first_row: plan.partition.first_row(id),
        holding: plan.holdings[id.0 as usize],
        ..NOWHERE
    };
    shape.stored(plan, pool)
}

const NO_RULE: Rule = Rule::Sgd { momentum: 0.0, nesterov: false };
const NO_PACE: Pace = Pace { lr: 0.0, weight_decay: 0.0 };

/// A piece without storages.
const NOWHERE: Piece = Piece {
    name: String::new(),
    update: Update { name: String::new(), rule: NO_RULE, pace: NO_PACE, frozen: true },
    group: GroupId(0),
    class: None,
    turns: 1,
    elements: 0,
    shard: 0,
    rows: 0,
    first_row: 0,
    holding: Holding::WHOLE,
    parameters: StorageId(0),
    masters: StorageId(0),
    gradients: StorageId(0),
    moments: vec![],
    read: StorageId(0),
    written: StorageId(0),
    has_gaps: false,
};

/// Whether no op writes some element of a class' gradients.
fn has_gaps(plan: &Plan, id: ClassId) -> bool {
    let graph = &plan.train.graph;
    let written = plan.train.gradients.iter().filter(|gradient| {
        let member = &plan.partition.members[gradient.param.0 as usize];
        member.class == id && !gradient.contributions.is_empty()
    });
    let elements: u64 = written.map(|gradient| graph.param(gradient.param).ty.elements()).sum();
    elements < plan.partition.class(id).elements
}

impl Piece {
    /// With its storages.
    fn stored(mut self, plan: &Plan, pool: &mut Pool) -> Self {
        let storage = Storage::of(&plan.train.precision);
        let Holding { parameters, gradients, optimizer } = self.holding;
        let params_kind = match (storage.has_masters(), parameters) {
            (false, Held::Shard(_)) => StorageKind::ParamShards,
            _ => StorageKind::Parameters,
        };
        self.parameters = self.flat(pool, "params", storage.compute, params_kind, parameters);
        self.masters = self.parameters;
        if storage.has_masters() {
            let kind = if optimizer.is_shard() { StorageKind::MasterShards } else { StorageKind::Masters };
            self.masters = self.flat(pool, "masters", DType::F32, kind, optimizer);
        }
        self.gradients = match self.update.frozen {
            true => self.parameters,
            false => self.flat(pool, "grads", storage.accumulate, StorageKind::Gradients, gradients),
        };
        let moments = self.update.flat_moments().iter();
        self.moments = moments
            .map(|moment| self.flat(pool, moment.short(), DType::F32, StorageKind::Moments, optimizer))
            .collect();
        let transient = |pool: &mut Pool, what: &str, dtype, slots| {
            pool.storage(
                &format!("{what}.{}", self.name),
                dtype,
                self.elements,
                slots,
                StorageKind::Activation,
            )
        };
        self.read = self.parameters;
        if parameters.is_shard() {
            let slots = self.slots_at_once(plan, (Kind::AllGather, Exchanged::Parameters));
            self.read = transient(pool, "gathered", storage.compute, slots);
        }
        self.written = self.gradients;
        if gradients.is_shard() {
            let slots = self.slots_at_once(plan, (Kind::ReduceScatter, Exchanged::Gradients));
            self.written = transient(pool, "bucket", storage.accumulate, slots);
        }
        self.has_gaps = self.class.is_some_and(|id| has_gaps(plan, id));
        self
    }

    /// Whole buckets at once: those that travel together, and as many again where ranks compute meanwhile.
    pub fn slots_at_once(&self, plan: &Plan, what: (Kind, Exchanged)) -> u64 {
        let planned = plan.collectives.iter().find(|c| (c.kind, c.of) == what && c.class == self.class);
        let together = planned.map_or(1, |c| c.together);
        (if plan.zero.overlap { 2 * together } else { together }).min(self.turns)
    }

    fn flat(&self, pool: &mut Pool, what: &str, dtype: DType, kind: StorageKind, held: Held) -> StorageId {
        let elements = if held.is_shard() { self.shard } else { self.elements };
        pool.storage(&format!("{what}.{}", self.name), dtype, elements, self.turns, kind)
    }

    /// Whether ranks share it out.
    pub fn is_shared(&self) -> bool {
        self.shard < self.elements
    }

    /// Whether a parameter lies in it.
    pub fn has(&self, member: &Member) -> bool {
        self.class.map_or(self.group == member.group, |class| class == member.class)
    }

    /// Whether ops read the masters themselves.
    pub fn is_own_master(&self) -> bool {
        self.masters == self.parameters
    }

    /// What the masters' storage holds of a bucket.
    fn masters_held(&self) -> Held {
        if self.is_own_master() { self.holding.parameters } else { self.holding.optimizer }
    }

    /// A parameter's place in one of the storages that is not shared out.
    pub fn within(&self, plan: &Plan, member: &Member, storage: StorageId) -> Within {
        let start = if self.class.is_some() { plan.partition.class(member.class).start } else { 0 };
        Within { storage, offset: member.offset - start, stride: member.stride }
    }

    /// Where a parameter's masters lie, `view` being the view of them where they are whole.
    pub fn master_of(&self, plan: &Plan, member: &Member, view: Option<StorageId>) -> ShardedPlace {
        self.placed(plan, member, self.masters, self.masters_held(), view)
    }

    /// Where one of a parameter's moments lies.
    pub fn moment_of(
        &self,
        plan: &Plan,
        member: &Member,
        moment: StorageId,
        view: Option<StorageId>,
    ) -> ShardedPlace {
        self.placed(plan, member, moment, self.holding.optimizer, view)
    }

    fn placed(
        &self,
        plan: &Plan,
        member: &Member,
        storage: StorageId,
        held: Held,
        view: Option<StorageId>,
    ) -> ShardedPlace {
        match view {
            Some(view) if !held.is_shard() => ShardedPlace { storage: view, shard: None },
            _ => {
                ShardedPlace { storage, shard: Some((self.shard, self.within(plan, member, storage).offset)) }
            }
        }
    }

    /// Whether masters are whole, so that each parameter has a view of them.
    pub fn has_whole_masters(&self) -> bool {
        !self.masters_held().is_shard()
    }

    /// Elements of a bucket that a rank updates.
    pub fn updated(&self) -> u64 {
        if self.holding.optimizer.is_shard() { self.shard } else { self.elements }
    }

    /// The part of a bucket, `elements` of it, that a rank works on, at the turn: its own shard where that is less than the storage holds.
    pub fn at_turn(&self, storage: StorageId, held: Held, elements: u64) -> Place {
        let own = !held.is_shard() && elements < self.elements;
        Place { turn: self.turns > 1, shard: own.then_some(elements), ..Place::start(storage) }
    }

    /// Its masters, gradients and moments, and its parameters where they are a copy, at the turn: what the update works on.
    pub fn operands(&self) -> Operands {
        let Holding { parameters, gradients, optimizer } = self.holding;
        let at = |storage, held| self.at_turn(storage, held, self.updated());
        Operands {
            masters: at(self.masters, self.masters_held()),
            gradients: at(self.gradients, gradients),
            moments: self.moments.iter().map(|&m| at(m, optimizer)).collect(),
            copy: (!self.is_own_master()).then(|| at(self.parameters, parameters)),
        }
    }

    /// A rank's own shard of the gradients, at the turn.
    pub fn own_gradients(&self) -> Place {
        self.at_turn(self.gradients, self.holding.gradients, self.shard)
    }

    /// Steps of every turn.
    pub fn by_turn(&self, body: Vec<Step>) -> Vec<Step> {
        if self.turns == 1 {
            return body;
        }
        let name = self.name.clone();
        vec![Step::Loop(Loop { name, micro: false, count: self.turns, reverse: false, body })]
    }

    /// A launch over all turns' elements at once where every operand's turns lie one behind the other, else one a turn: `launch` gets the rows of the grid
    /// and the operands.
    pub fn over_turns(
        &self,
        places: Vec<Place>,
        elements: u64,
        launch: impl FnOnce(u64, Vec<Place>) -> Step,
    ) -> Vec<Step> {
        let rows = elements / GRID_ELEMENTS;
        if places.iter().all(|p| p.shard.is_none()) {
            let first = places.into_iter().map(|p| Place { turn: false, ..p }).collect();
            return vec![launch(rows * self.turns, first)];
        }
        self.by_turn(vec![launch(rows, places)])
    }
}

/// What an update of a piece reads and writes.
pub(crate) struct Operands {
    pub masters: Place,
    pub gradients: Place,
    pub moments: Vec<Place>,
    /// Parameters in another type, written beside the masters.
    pub copy: Option<Place>,
}
