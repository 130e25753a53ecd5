//! Storages that outlive an entry: parameters, gradients, moments, inputs, tables, results.

use std::collections::BTreeMap;

use dspc_graph::ir::{DType, Input, Param, ParamId, Table, TensorType};
use dspc_plan::{AxisId, GRID_ELEMENTS, Member, Plan};
use dspc_train::Storage;
use dspc_train::optimizer::Moment;
use dspc_train::optimizer::scaler::Scaling;

use crate::piece::{Piece, pieces};
use crate::pool::Pool;
use crate::steps::{MomentPlace, ParamPlace, ShardedPlace, StorageId, StorageKind, TableKind};

/// Where the training state lies.
pub(crate) struct State {
    /// Groups, or the classes that ranks share out.
    pub pieces: Vec<Piece>,
    /// Each parameter as ops read it, by [`ParamId`].
    pub params: Vec<StorageId>,
    /// Each gradient as ops write it, likewise.
    pub gradients: Vec<StorageId>,
    /// Each parameter's moments that are no parts of flat ranges, and their slots.
    pub own_moments: OwnMoments,
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

/// Storages by parameter, and how many slots each has.
pub(crate) type OwnMoments = BTreeMap<ParamId, Vec<(Moment, StorageId, u64)>>;

fn dims(param: &Param) -> Vec<u64> {
    param.ty.dims.iter().map(|d| d.size).collect()
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
        let trained = |p: &Piece| (!p.update.frozen).then_some(p.written);
        let gradients = members.views(pool, ".grad", |_| StorageKind::Gradients, trained);
        let own_moments = members.own_moments(pool);
        let moments = members.moments(&own_moments, pool);
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
            own_moments,
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

    /// Pieces that are not frozen.
    pub fn trained(&self) -> impl Iterator<Item = &Piece> {
        self.pieces.iter().filter(|piece| !piece.update.frozen)
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
        let at = self.pieces.iter().position(|piece| piece.has(member)).unwrap_or_default();
        &self.pieces[at]
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
            let slots = if piece.class.is_some() { kept.min(member.turns) } else { member.turns };
            Some(pool.part(&format!("{}{suffix}", param.name), param.ty.elements(), slots, kind(id), within))
        };
        self.all().map(view).collect()
    }

    /// Moments that have a place of their own, the same on every rank.
    fn own_moments(&self, pool: &mut Pool) -> OwnMoments {
        let mut of = |(id, param, member, piece): (ParamId, &Param, &Member, &Piece)| {
            let (rows, cols) = (param.ty.rows(), param.ty.cols());
            let mut storage = |moment: &Moment| {
                let name = format!("{}.{}", param.name, moment.short());
                let elements = moment.elements(rows, cols);
                let storage = pool.storage(&name, DType::F32, elements, member.turns, StorageKind::Moments);
                (*moment, storage, member.turns)
            };
            (id, piece.update.own_moments(param.ty.dims.len()).iter().map(&mut storage).collect())
        };
        self.all().map(&mut of).collect()
    }

    /// Each parameter's moments, in its rule's order: views of flat ranges where these are whole.
    fn moments(&self, own: &OwnMoments, pool: &mut Pool) -> Vec<Vec<MomentPlace>> {
        let of = |(id, param, member, piece): (ParamId, &Param, &Member, &Piece)| {
            let flat = piece.update.flat_moments().iter().zip(&piece.moments);
            let (rows, cols) = (param.ty.rows(), param.ty.cols());
            let own = own.get(&id).into_iter().flatten().map(|&(moment, storage, _)| {
                let dims = match moment {
                    Moment::SecondRows => vec![rows],
                    Moment::SecondColumns => vec![cols],
                    Moment::First | Moment::Second | Moment::Momentum => dims(param),
                };
                MomentPlace { name: moment.name().into(), dims, at: ShardedPlace { storage, shard: None } }
            });
            let flat = flat.map(|(moment, &storage)| {
                let view = (!piece.holding.optimizer.is_shard()).then(|| {
                    let name = format!("{}.{}", param.name, moment.short());
                    let within = piece.within(self.plan, member, storage);
                    pool.part(&name, param.ty.elements(), member.turns, StorageKind::MomentPart, within)
                });
                let at = piece.moment_of(self.plan, member, storage, view);
                MomentPlace { name: moment.name().into(), dims: dims(param), at }
            });
            flat.chain(own).collect()
        };
        self.all().map(of).collect()
    }

    fn places(&self, masters: &[Option<StorageId>], moments: &[Vec<MomentPlace>]) -> Vec<ParamPlace> {
        let place = |(param, _, member, piece): (ParamId, &Param, &Member, &Piece)| {
            let id = param.0 as usize;
            let class = self.plan.partition.class(member.class);
            ParamPlace {
                param,
                at: piece.master_of(self.plan, member, masters[id]),
                grid_row: self.plan.partition.first_row(member.class)
                    + (member.offset - class.start) / GRID_ELEMENTS,
                grid_rows: class.rows(),
                moments: moments[id].clone(),
            }
        };
        self.all().map(place).collect()
    }
}
