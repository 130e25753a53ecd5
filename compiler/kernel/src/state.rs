//! Storages that outlive an entry: parameters, gradients, moments, inputs, tables, results.

use std::collections::BTreeMap;

use dspc_graph::ir::{DType, Input, Param, ParamId, Table, TensorType};
use dspc_plan::{AxisId, GRID_ELEMENTS, Member, Plan};
use dspc_train::Storage;
use dspc_train::optimizer::scaler::Scaling;

use crate::piece::{Piece, pieces};
use crate::pool::Pool;
use crate::steps::{ParamPlace, StorageId, StorageKind, TableKind};

/// Where the training state lies.
pub(crate) struct State {
    /// Groups, or the classes that ranks share out.
    pub pieces: Vec<Piece>,
    /// Each parameter as ops read it, by [`ParamId`].
    pub params: Vec<StorageId>,
    /// Each gradient as ops write it, likewise.
    pub gradients: Vec<StorageId>,
    /// Where the runtime finds parameters and moments.
    pub places: Vec<ParamPlace>,
    pub tokens: StorageId,
    pub targets: StorageId,
    pub inv_targets: StorageId,
    pub rng: StorageId,
    /// The loss of each of the rank's micro-batches.
    pub loss: StorageId,
    /// The losses of all ranks, where there are several.
    pub losses: Option<StorageId>,
    /// In half precision.
    pub loss_scale: Option<StorageId>,
    /// Ops add to gradients, which were zeroed before the micro-batches.
    pub accumulates: bool,
    tables: BTreeMap<String, StorageId>,
}

impl State {
    pub fn new(plan: &Plan, pool: &mut Pool) -> Self {
        let storage = Storage::of(&plan.train.precision);
        let pieces = pieces(plan, pool);
        let members = Members { plan, pieces: &pieces };
        let masters =
            members.views(pool, "", StorageKind::Param, |p| p.has_whole_masters().then_some(p.masters));
        let copied = |p: &Piece| (storage.has_masters() || p.holding.parameters.is_shard()).then_some(p.read);
        let suffix = format!(".{}", storage.compute);
        let copies = members.views(pool, &suffix, |_| StorageKind::Parameters, copied);
        let params = copies.iter().zip(&masters).map(|(copy, master)| copy.or(*master)).collect();
        let gradients = members.views(pool, ".grad", |_| StorageKind::Gradients, |p| Some(p.written));
        let moments = [0, 1].map(|i| {
            let whole = |p: &Piece| (!p.holding.optimizer.is_shard()).then_some(p.moments[i]);
            members.views(pool, [".m", ".v"][i], |_| StorageKind::MomentPart, whole)
        });
        let shared_gradients = pieces.iter().any(|p| p.holding.gradients.is_shard());
        let places = members.places(&masters, &moments);
        let every =
            |views: Vec<Option<StorageId>>| views.into_iter().map(|v| v.unwrap_or(StorageId(0))).collect();
        let loss_scale = match Scaling::of(&plan.train.precision) {
            Scaling::None => None,
            Scaling::Static(scale) => Some(StorageKind::Table(TableKind::Constant(scale))),
            Scaling::Dynamic(scaler) => Some(StorageKind::LossScale { start: scaler.start }),
        };
        let slots = plan.batch.accumulation;
        let ids = input_type(plan).elements();
        let ranks = plan.mesh.size(AxisId::Data);
        let (own, own_kind) =
            if ranks > 1 { ("loss.own", StorageKind::State) } else { ("loss", StorageKind::Loss) };
        Self {
            params: every(params),
            gradients: every(gradients),
            places,
            tokens: pool.storage("tokens", DType::I32, ids, slots, StorageKind::Tokens),
            targets: pool.storage("targets", DType::I32, ids, slots, StorageKind::Targets),
            inv_targets: pool.storage("inv_targets", DType::F32, 1, 1, StorageKind::InvTargets),
            rng: pool.storage("rng", DType::I32, 4, slots, StorageKind::Rng),
            loss: pool.storage(own, DType::F32, 1, slots, own_kind),
            losses: (ranks > 1).then(|| pool.storage("loss", DType::F32, ranks, slots, StorageKind::Loss)),
            loss_scale: loss_scale.map(|kind| pool.storage("loss_scale", DType::F32, 1, 1, kind)),
            accumulates: plan.batch.accumulation > 1 && !plan.deterministic && !shared_gradients,
            tables: BTreeMap::new(),
            pieces,
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

/// Parameters and the pieces that they lie in.
struct Members<'a> {
    plan: &'a Plan,
    pieces: &'a [Piece],
}

impl Members<'_> {
    fn piece(&self, member: &Member) -> &Piece {
        let at = if self.pieces.iter().any(Piece::is_shared) { member.class.0 } else { member.group.0 };
        &self.pieces[at as usize]
    }

    fn all(&self) -> impl Iterator<Item = (ParamId, &Param, &Member, &Piece)> {
        let params = self.plan.train.graph.params.iter().zip(&self.plan.partition.members).enumerate();
        params.map(|(id, (param, member))| (ParamId(id as u32), param, member, self.piece(member)))
    }

    /// A view a parameter of a storage of its piece, where there is a whole one.
    fn views(
        &self,
        pool: &mut Pool,
        suffix: &str,
        kind: impl Fn(ParamId) -> StorageKind,
        storage: impl Fn(&Piece) -> Option<StorageId>,
    ) -> Vec<Option<StorageId>> {
        let view = |(id, param, member, piece): (ParamId, &Param, &Member, &Piece)| {
            let within = piece.within(self.plan, member, storage(piece)?);
            let kept = pool.storages[within.storage.0 as usize].slots;
            let slots = if piece.is_shared() { kept.min(member.turns) } else { member.turns };
            Some(pool.part(&format!("{}{suffix}", param.name), param.ty.elements(), slots, kind(id), within))
        };
        self.all().map(view).collect()
    }

    fn places(
        &self,
        masters: &[Option<StorageId>],
        moments: &[Vec<Option<StorageId>>; 2],
    ) -> Vec<ParamPlace> {
        let place = |(param, _, member, piece): (ParamId, &Param, &Member, &Piece)| {
            let id = param.0 as usize;
            let moment = |i: usize, name: &str| {
                (name.to_string(), piece.moment_of(self.plan, member, piece.moments[i], moments[i][id]))
            };
            let class = self.plan.partition.class(member.class);
            ParamPlace {
                param,
                at: piece.master_of(self.plan, member, masters[id]),
                grid_row: self.plan.partition.first_row(member.class)
                    + (member.offset - class.start) / GRID_ELEMENTS,
                grid_rows: class.rows(),
                moments: vec![moment(0, "m"), moment(1, "v")],
            }
        };
        self.all().map(place).collect()
    }
}
