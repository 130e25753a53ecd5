//! Storages that outlive an entry: parameters, gradients, moments, inputs, tables, results.

use std::collections::BTreeMap;

use dspc_graph::ir::{DType, Input, ParamId, Table, TensorType};
use dspc_plan::{Batch, Plan};
use dspc_train::Storage;
use dspc_train::optimizer::scaler::Scaling;

use crate::pool::Pool;
use crate::steps::{StorageId, StorageKind, TableKind, Within};

/// Where the training state lies.
pub(crate) struct State {
    /// A group's parameters, gradients, first and second moments, flat; by group.
    pub groups: Vec<GroupState>,
    /// Each parameter, by [`ParamId`].
    pub params: Vec<StorageId>,
    /// Each gradient, likewise.
    pub gradients: Vec<StorageId>,
    pub tokens: StorageId,
    pub targets: StorageId,
    pub inv_targets: StorageId,
    pub rng: StorageId,
    pub loss: StorageId,
    /// In half precision.
    pub loss_scale: Option<StorageId>,
    pub batch: Batch,
    tables: BTreeMap<String, StorageId>,
}

pub(crate) struct GroupState {
    /// What ops read.
    pub parameters: StorageId,
    /// What the optimizer updates, in f32: the parameters themselves where they are f32.
    pub masters: StorageId,
    pub gradients: StorageId,
    pub moments: [StorageId; 2],
    pub elements: u64,
    pub decay: bool,
}

impl State {
    pub fn new(plan: &Plan, pool: &mut Pool) -> Self {
        let storage = Storage::of(&plan.train.precision);
        let groups: Vec<GroupState> =
            plan.partition.groups.iter().map(|g| group_state(g, storage, pool)).collect();
        let masters = parts(plan, &groups, pool, |g| g.masters, "", StorageKind::Param);
        let params = if storage.has_masters() {
            let suffix = format!(".{}", storage.compute);
            parts(plan, &groups, pool, |g| g.parameters, &suffix, |_| StorageKind::Parameters)
        } else {
            masters
        };
        let gradients = parts(plan, &groups, pool, |g| g.gradients, ".grad", |_| StorageKind::Gradients);
        let loss_scale = match Scaling::of(&plan.train.precision) {
            Scaling::None => None,
            Scaling::Static(scale) => Some(StorageKind::Table(TableKind::Constant(scale))),
            Scaling::Dynamic(scaler) => Some(StorageKind::LossScale { start: scaler.start }),
        };
        let slots = plan.batch.accumulation;
        let ids = input_type(plan).elements();
        Self {
            groups,
            params,
            gradients,
            tokens: pool.storage("tokens", DType::I32, ids, slots, StorageKind::Tokens),
            targets: pool.storage("targets", DType::I32, ids, slots, StorageKind::Targets),
            inv_targets: pool.storage("inv_targets", DType::F32, 1, 1, StorageKind::InvTargets),
            rng: pool.storage("rng", DType::I32, 4, slots, StorageKind::Rng),
            loss: pool.storage("loss", DType::F32, 1, slots, StorageKind::Loss),
            loss_scale: loss_scale.map(|kind| pool.storage("loss_scale", DType::F32, 1, 1, kind)),
            batch: plan.batch,
            tables: BTreeMap::new(),
        }
    }

    pub fn input(&self, input: Input) -> StorageId {
        match input {
            Input::Tokens => self.tokens,
            Input::Targets => self.targets,
            Input::InvTargets => self.inv_targets,
            Input::Rng => self.rng,
            Input::LossScale => match self.loss_scale {
                Some(scale) => scale,
                None => unreachable!("only half precision asks for a loss scale"),
            },
        }
    }

    /// A table of the graph; equal ones are one.
    pub fn table(&mut self, table: &Table, ty: &TensorType, pool: &mut Pool) -> StorageId {
        let key = format!("{table:?} {:?}", ty.dims.iter().map(|d| d.size).collect::<Vec<_>>());
        let name = match table {
            Table::RopeCos { .. } => "rope.cos",
            Table::RopeSin { .. } => "rope.sin",
        };
        let kind = || StorageKind::Table(TableKind::Graph(table.clone(), ty.cols()));
        *self.tables.entry(key).or_insert_with(|| pool.storage(name, ty.dtype, ty.elements(), 1, kind()))
    }
}

fn input_type(plan: &Plan) -> TensorType {
    let tokens = plan.train.graph.values.iter().find(|v| v.def == dspc_graph::ir::Def::Input(Input::Tokens));
    tokens.map_or_else(|| TensorType { dtype: DType::I32, dims: vec![] }, |v| v.ty.clone())
}

fn group_state(group: &dspc_plan::Group, storage: Storage, pool: &mut Pool) -> GroupState {
    let name = &group.name;
    let mut flat =
        |what: &str, dtype, kind| pool.storage(&format!("{what}.{name}"), dtype, group.elements, 1, kind);
    let parameters = flat("params", storage.compute, StorageKind::Parameters);
    let masters = match storage.has_masters() {
        true => flat("masters", DType::F32, StorageKind::Masters),
        false => parameters,
    };
    GroupState {
        parameters,
        masters,
        gradients: flat("grads", storage.accumulate, StorageKind::Gradients),
        moments: ["m", "v"].map(|what| flat(what, DType::F32, StorageKind::Moments)),
        elements: group.elements,
        decay: group.decay,
    }
}

fn parts(
    plan: &Plan,
    groups: &[GroupState],
    pool: &mut Pool,
    flat: impl Fn(&GroupState) -> StorageId,
    suffix: &str,
    kind: impl Fn(ParamId) -> StorageKind,
) -> Vec<StorageId> {
    let params = plan.train.graph.params.iter().zip(&plan.partition.members).enumerate();
    params
        .map(|(id, (param, member))| {
            let storage = flat(&groups[member.group.0 as usize]);
            let within = Within { storage, offset: member.offset, stride: member.stride };
            let name = format!("{}{suffix}", param.name);
            pool.part(&name, param.ty.elements(), member.turns, kind(ParamId(id as u32)), within)
        })
        .collect()
}
