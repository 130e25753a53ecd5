//! What rules need that look at whole tensors: the tensors of a class, and a bucket that every rank knows whole.

use dspc_graph::ir::{DType, ParamId};
use dspc_plan::{GRID_ELEMENTS, Plan};

use crate::exchange::collective;
use crate::piece::Piece;
use crate::pool::Pool;
use crate::steps::{CollectiveKind, Part, Place, Step, StorageId, StorageKind, Within};

/// A tensor of one turn in its bucket.
pub(super) struct Tensor {
    pub param: ParamId,
    pub name: String,
    /// Elements of the bucket before it; a multiple of the grid.
    pub offset: u64,
    /// All dims but the last, and the last.
    pub rows: u64,
    pub cols: u64,
}

impl Tensor {
    pub fn elements(&self) -> u64 {
        self.rows * self.cols
    }

    /// The first of its rows on the bucket's grid.
    pub fn grid_row(&self) -> u64 {
        self.offset / GRID_ELEMENTS
    }

    /// How many there are.
    pub fn grid_rows(&self) -> u64 {
        self.elements().div_ceil(GRID_ELEMENTS)
    }
}

/// The tensors of a piece that is a class.
pub(super) fn tensors(plan: &Plan, piece: &Piece) -> Vec<Tensor> {
    let Some(class) = piece.class else { return vec![] };
    let start = plan.partition.class(class).start;
    let params = plan.train.graph.params.iter().zip(&plan.partition.members).enumerate();
    let mine = params.filter(|(_, (_, member))| member.class == class);
    mine.map(|(i, (param, member))| Tensor {
        param: ParamId(i as u32),
        name: param.name.clone(),
        offset: member.offset - start,
        rows: param.ty.rows(),
        cols: param.ty.cols(),
    })
    .collect()
}

/// A bucket for as long as it takes to update it: each rank writes what it updates of it, then all ranks know it whole.
#[derive(Clone, Copy)]
pub(super) struct Bucket {
    storage: StorageId,
    elements: u64,
    own: u64,
}

impl Bucket {
    pub fn new(piece: &Piece, name: &str, dtype: DType, pool: &mut Pool) -> Self {
        let name = format!("{name}.{}", piece.name);
        let storage = pool.storage(&name, dtype, piece.elements, 1, StorageKind::Activation);
        Self { storage, elements: piece.elements, own: piece.updated() }
    }

    /// What a rank updates of it.
    pub fn own(self) -> Place {
        let shard = (self.own < self.elements).then_some(self.own);
        Place { shard, ..Place::start(self.storage) }
    }

    /// A place in it.
    pub fn at(self, offset: u64) -> Place {
        Place { offset, ..Place::start(self.storage) }
    }

    /// Makes it whole on every rank; nothing where it is.
    pub fn gather(self, piece: &Piece) -> Option<Step> {
        let part = Part { from: self.own(), to: Place::start(self.storage), elements: self.own };
        (self.own < self.elements).then(|| collective(CollectiveKind::AllGather, vec![part], &piece.name))
    }
}

/// Numbers of a class, one a row of the grid, turn by turn: a rank writes those of the rows that it updates, then all ranks know all of them.
#[derive(Clone, Copy)]
pub(super) struct GridRows {
    own: StorageId,
    all: StorageId,
    turns: u64,
    own_rows: u64,
    all_rows: u64,
}

impl GridRows {
    pub fn new(piece: &Piece, name: &str, pool: &mut Pool) -> Self {
        let (own_rows, all_rows) = (piece.updated() / GRID_ELEMENTS, piece.elements / GRID_ELEMENTS);
        let mut flat = |suffix: &str, rows: u64| {
            let name = format!("{name}{suffix}.{}", piece.name);
            pool.storage(&name, DType::F32, rows * piece.turns, 1, StorageKind::Activation)
        };
        let all = flat("", all_rows);
        let own = if own_rows < all_rows { flat(".own", own_rows) } else { all };
        Self { own, all, turns: piece.turns, own_rows, all_rows }
    }

    /// Where a rank writes those of its own rows, beside what it reads them from: at the turn where that has to be done turn by turn.
    pub fn own(self, beside: &[Place], pool: &mut Pool) -> Place {
        match beside.iter().any(|place| place.shard.is_some()) {
            true => self.turn_of(self.own, self.own_rows, pool),
            false => Place::start(self.own),
        }
    }

    /// The numbers of a tensor's rows in the first turn; [`GridRows::stride`] from one turn to the next.
    pub fn of(self, tensor: &Tensor) -> Place {
        Place { offset: tensor.grid_row(), ..Place::start(self.all) }
    }

    /// Rows of the grid from one turn to the next.
    pub fn stride(self) -> u64 {
        self.all_rows
    }

    /// The numbers of the rows that a rank updates, once all are known: all turns' at once where it updates all.
    pub fn updated(self, pool: &mut Pool) -> Place {
        if self.own == self.all { Place::start(self.all) } else { self.at_each_turn(pool) }
    }

    /// The same at the turn.
    pub fn at_each_turn(self, pool: &mut Pool) -> Place {
        let shard = (self.own_rows < self.all_rows).then_some(self.own_rows);
        Place { shard, ..self.turn_of(self.all, self.all_rows, pool) }
    }

    /// Zeroes all of them: rows of a bucket's padding belong to no tensor.
    pub fn zero(self) -> Step {
        Step::Zero(Place::start(self.all), "update".into())
    }

    /// What must travel for every rank to know all; nothing where it does.
    pub fn parts(self) -> Vec<Part> {
        if self.own == self.all {
            return vec![];
        }
        let at = |storage, offset| Place { offset, ..Place::start(storage) };
        let part = |turn: u64| Part {
            from: at(self.own, turn * self.own_rows),
            to: at(self.all, turn * self.all_rows),
            elements: self.own_rows,
        };
        (0..self.turns).map(part).collect()
    }

    fn turn_of(self, storage: StorageId, rows: u64, pool: &mut Pool) -> Place {
        if self.turns == 1 {
            return Place::start(storage);
        }
        let name = format!("{}.turn", pool.storages[storage.0 as usize].name);
        let within = Within { storage, offset: 0, stride: rows };
        let view = pool.part(&name, rows, self.turns, StorageKind::Activation, within);
        Place { turn: true, ..Place::start(view) }
    }
}
