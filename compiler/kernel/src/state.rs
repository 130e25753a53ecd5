//! Storages that outlive an entry: parameters, gradients, moments, inputs, tables, results.

use std::collections::BTreeMap;

use dspc_graph::ir::{DType, Input, ParamId, Table, TensorType};
use dspc_plan::{Batch, Plan};

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
    pub batch: Batch,
    tables: BTreeMap<String, StorageId>,
}

pub(crate) struct GroupState {
    pub parameters: StorageId,
    pub gradients: StorageId,
    pub moments: [StorageId; 2],
    pub elements: u64,
    pub decay: bool,
}

impl State {
    pub fn new(plan: &Plan, pool: &mut Pool) -> Self {
        let groups: Vec<GroupState> = plan.partition.groups.iter().map(|g| group_state(g, pool)).collect();
        let params = parts(plan, &groups, pool, |g| g.parameters, "", StorageKind::Param);
        let gradients = parts(plan, &groups, pool, |g| g.gradients, ".grad", |_| StorageKind::Gradients);
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

fn group_state(group: &dspc_plan::Group, pool: &mut Pool) -> GroupState {
    let name = &group.name;
    let mut flat =
        |what: &str, kind| pool.storage(&format!("{what}.{name}"), DType::F32, group.elements, 1, kind);
    GroupState {
        parameters: flat("params", StorageKind::Parameters),
        gradients: flat("grads", StorageKind::Gradients),
        moments: [flat("m", StorageKind::Moments), flat("v", StorageKind::Moments)],
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
