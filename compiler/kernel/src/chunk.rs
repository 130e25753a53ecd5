//! Chunks: a value with a row a token, too big to hold, is made and used a run of rows at a time.
//!
//! Reads   the steps of an entry, and the storage of the logits, which their gradient takes over.
//! Writes  a loop over chunks in place of the steps that touch that storage; what else is by row follows the turn through views.
//! Keeps   every value; a sum over all rows (a weight's gradient) is added up chunk by chunk, in order.
//! Leaves  alone steps that are not by row, and rows that do not divide: then the storage stays whole.
//! Cost    one walk over the steps.

use std::collections::BTreeMap;

use dspc_graph::rowfn::{Access, Node, NodeId, RowMap};

use crate::describe::{Kernel, Read, RowKernel, Split, Target, Write};
use crate::pool::Pool;
use crate::steps::{Fused, Gemm, Launch, Loop, Matrix, Place, Step, StorageId, StorageKind, Within};

/// Rows of a chunk are a multiple of this, so that chunks begin on 16 bytes.
const ROWS_MULTIPLE: u64 = 4;
/// Every slot of a storage begins at a multiple of this many bytes.
const SLOT_BYTES: u64 = 64;

/// Divides the rows of `whole` so that it takes at most `bytes_max`, if it can.
pub(crate) fn chunk(steps: Vec<Step>, whole: StorageId, bytes_max: u64, pool: &mut Pool) -> Vec<Step> {
    let Some(span) = Span::of(&steps, whole, bytes_max, pool) else { return steps };
    let mut chunks = Chunks { span: &span, pool, views: BTreeMap::new(), before: vec![] };
    let body: Option<Vec<Chunked>> = span.by_row.iter().map(|&i| chunks.step(&steps[i])).collect();
    let (before, views) = (chunks.before, chunks.views.into_values().collect::<Vec<_>>());
    let Some(body) = body else { return steps };
    pool.storages[whole.0 as usize].elements = span.rows * span.stride;
    // A sum that is not added to what was there begins with the first chunk.
    let begins = body.iter().any(|c| c.sums && !c.accumulates());
    let done = u64::from(begins);
    let (first, last) = (span.by_row[0], span.by_row[span.by_row.len() - 1]);
    let mut all = steps[..first].to_vec();
    all.extend(before);
    if begins {
        all.extend(body.iter().map(|c| c.step.clone()));
    }
    all.push(Step::Loop(Loop {
        name: "chunk".into(),
        micro: false,
        count: span.count - done,
        reverse: false,
        body: body.into_iter().map(|c| c.at_turn(&views, done)).collect(),
    }));
    let others = (first..=last).filter(|i| !span.by_row.contains(i));
    all.extend(others.map(|i| steps[i].clone()));
    all.extend_from_slice(&steps[last + 1..]);
    all
}

/// The steps that touch the storage, and how its rows divide.
struct Span {
    whole: StorageId,
    /// Indices of the steps, in order.
    by_row: Vec<usize>,
    /// Elements from one row to the next.
    stride: u64,
    /// Rows of all.
    rows_all: u64,
    /// Rows of a chunk.
    rows: u64,
    /// Chunks.
    count: u64,
}

impl Span {
    fn of(steps: &[Step], whole: StorageId, bytes_max: u64, pool: &Pool) -> Option<Self> {
        let touches = |step: &Step| step.places().iter().any(|p| p.storage == whole);
        let by_row: Vec<usize> = (0..steps.len()).filter(|&i| touches(&steps[i])).collect();
        let Some(Step::Gemm(made)) = by_row.first().map(|&i| &steps[i]) else { return None };
        let (storage, stride) = (&pool.storages[whole.0 as usize], made.c.stride);
        if made.c.place != Place::start(whole) || storage.elements != made.m * stride {
            return None;
        }
        let row_bytes = stride * storage.dtype.bytes();
        let fits = |count: &u64| {
            made.m.is_multiple_of(*count)
                && (made.m / count).is_multiple_of(ROWS_MULTIPLE)
                && made.m / count * row_bytes <= bytes_max
        };
        let count = (1..=made.m).find(fits).filter(|count| *count > 1)?;
        let span = Self { whole, by_row, stride, rows_all: made.m, rows: made.m / count, count };
        span.others_can_wait(steps, pool).then_some(span)
    }

    /// Whether the steps between can run behind the loop: what one writes, no later step of the loop touches, and the other way round.
    fn others_can_wait(&self, steps: &[Step], pool: &Pool) -> bool {
        let last = self.by_row[self.by_row.len() - 1];
        let mut others = (self.by_row[0]..last).filter(|i| !self.by_row.contains(i));
        let meet = |a: &[StorageId], b: &[StorageId]| a.iter().any(|id| b.contains(id));
        others.all(|other| {
            let (touched, written) = (touched(&steps[other], pool), written(&steps[other], pool));
            self.by_row.iter().filter(|&&i| i > other).all(|&later| {
                !meet(&written, &self::touched(&steps[later], pool))
                    && !meet(&touched, &self::written(&steps[later], pool))
            })
        })
    }
}

/// The storages whose memory a step uses.
fn touched(step: &Step, pool: &Pool) -> Vec<StorageId> {
    step.places().iter().map(|place| pool.root(place.storage)).collect()
}

/// Those that it may change.
fn written(step: &Step, pool: &Pool) -> Vec<StorageId> {
    let reads = match step {
        Step::Launch(launch) => match &pool.kernels[launch.kernel.0 as usize].kernel {
            Kernel::Row(kernel) => kernel.reads.len(),
            _ => 0,
        },
        Step::Gemm(_) => 2, // its factors
        Step::Zero(..) | Step::Collective(_) | Step::Only(..) | Step::Loop(_) => 0,
    };
    touched(step, pool).split_off(reads)
}

/// A step of one chunk, the first.
struct Chunked {
    step: Step,
    /// It adds up what every chunk yields.
    sums: bool,
}

impl Chunked {
    fn accumulates(&self) -> bool {
        matches!(&self.step, Step::Gemm(gemm) if gemm.accumulate)
    }

    /// The same step of the chunk `done` after the turn's.
    fn at_turn(self, views: &[StorageId], done: u64) -> Step {
        let follow = |place: Place| match views.contains(&place.storage) {
            true => Place { add: done, turn: true, ..place },
            false => place,
        };
        let matrix = |m: Matrix| Matrix { place: follow(m.place), ..m };
        match self.step {
            Step::Gemm(gemm) => Step::Gemm(Gemm {
                a: matrix(gemm.a),
                b: matrix(gemm.b),
                c: matrix(gemm.c),
                accumulate: gemm.accumulate || self.sums,
                ..gemm
            }),
            Step::Launch(launch) => {
                let operands = launch.operands.into_iter().map(follow).collect();
                Step::Launch(Launch { operands, ..launch })
            }
            other => other,
        }
    }
}

struct Chunks<'a> {
    span: &'a Span,
    pool: &'a mut Pool,
    /// By storage, first element of the slot, and elements a row.
    views: BTreeMap<(StorageId, u64, u64), StorageId>,
    /// Copies of inputs that follow the micro-batch.
    before: Vec<Step>,
}

impl Chunks<'_> {
    /// The step on the first chunk; `None` if it is not by row.
    fn step(&mut self, step: &Step) -> Option<Chunked> {
        match step {
            Step::Gemm(gemm) => self.product(gemm),
            Step::Launch(launch) => self.launch(launch),
            Step::Zero(..) | Step::Collective(_) | Step::Only(..) | Step::Loop(_) => None,
        }
    }

    fn product(&mut self, gemm: &Gemm) -> Option<Chunked> {
        let is_whole = |m: &Matrix| m.place.storage == self.span.whole;
        let parts = [is_whole(&gemm.a), is_whole(&gemm.b), is_whole(&gemm.c)];
        let plain = matches!(gemm.fused, None | Some(Fused::Bias { .. })) && gemm.epilogue.is_none();
        let rows = self.span.rows;
        let mut new = gemm.clone();
        let sums = match (parts, gemm.a.transposed, gemm.b.transposed, gemm.c.transposed) {
            ([false, false, true], false, _, false) if !gemm.accumulate => {
                (new.m, new.a) = (rows, self.matrix(&gemm.a)?);
                false
            }
            ([true, false, false], false, _, false) => {
                (new.m, new.c) = (rows, self.matrix(&gemm.c)?);
                false
            }
            ([true, false, false], true, false, _) if gemm.fused.is_none() => {
                (new.k, new.b) = (rows, self.matrix(&gemm.b)?);
                true
            }
            ([false, true, false], true, false, _) if gemm.fused.is_none() => {
                (new.k, new.a) = (rows, self.matrix(&gemm.a)?);
                true
            }
            _ => return None,
        };
        plain.then_some(Chunked { step: Step::Gemm(new), sums })
    }

    fn matrix(&mut self, matrix: &Matrix) -> Option<Matrix> {
        Some(Matrix { place: self.rows_of(matrix.place, matrix.stride, false)?, ..*matrix })
    }

    fn launch(&mut self, launch: &Launch) -> Option<Chunked> {
        let named = self.pool.kernels[launch.kernel.0 as usize].clone();
        let Kernel::Row(kernel) = named.kernel else { return None };
        if kernel.rows != self.span.rows_all || kernel.uses_turn() || kernel.split != Split::Rows {
            return None;
        }
        let (reads, writes) = launch.operands.split_at(kernel.reads.len());
        let mut operands = vec![];
        for (read, place) in kernel.reads.iter().zip(reads) {
            let map = match &read.access {
                Access::Element(map) | Access::HalfRotated(map) | Access::Row(map) | Access::Table(map) => {
                    map
                }
                Access::Scalar => &RowMap::SAME,
            };
            operands.push(match map {
                m if *m == RowMap::EACH => self.rows_of(*place, read.stride, true)?,
                RowMap::Affine { modulo: Some(1), .. } | RowMap::Gather(_) => *place,
                RowMap::Affine { .. } => return None,
            });
        }
        for (write, place) in kernel.writes.iter().zip(writes) {
            if matches!(write.what, Target::ColumnSum(_)) {
                return None;
            }
            operands.push(self.rows_of(*place, write.stride, false)?);
        }
        let kernel = Kernel::Row(RowKernel { rows: self.span.rows, ..kernel });
        let kernel = self.pool.kernel(&named.stem, kernel);
        let step = Step::Launch(Launch { kernel, operands, origin: launch.origin.clone() });
        Some(Chunked { step, sums: false })
    }

    /// The first chunk of rows that are `stride` apart, in a view with a slot a chunk.
    fn rows_of(&mut self, place: Place, stride: u64, may_copy: bool) -> Option<Place> {
        if place.storage == self.span.whole {
            return Some(place);
        }
        let storage = self.pool.storages[place.storage.0 as usize].clone();
        let whole = storage.elements == self.span.rows_all * stride && place.offset < stride;
        if place.turn || storage.within.is_some() || !whole {
            return None;
        }
        if storage.kind != StorageKind::Activation {
            let copied = (may_copy && stride == 1).then(|| self.copy(place))?;
            return self.rows_of(copied, stride, false);
        }
        let slot = place.add % storage.slots;
        let bytes = storage.elements * storage.dtype.bytes();
        if slot > 0 && !bytes.is_multiple_of(SLOT_BYTES) {
            return None;
        }
        let offset = slot * storage.elements;
        let elements = self.span.rows * stride;
        let (pool, count) = (&mut *self.pool, self.span.count);
        let view = *self.views.entry((place.storage, offset, stride)).or_insert_with(|| {
            let within = Within { storage: place.storage, offset, stride: elements };
            pool.part(&format!("{}.chunk", storage.name), elements, count, StorageKind::Activation, within)
        });
        Some(Place { offset: place.offset, ..Place::start(view) })
    }

    /// An input of the micro-batch where a view can follow the turn.
    fn copy(&mut self, from: Place) -> Place {
        let storage = self.pool.storages[from.storage.0 as usize].clone();
        let name = format!("{}.now", storage.name);
        let kind = StorageKind::Activation;
        let to = Place::start(self.pool.storage(&name, storage.dtype, storage.elements, 1, kind));
        let (rows, dtype) = (1, storage.dtype);
        let access = Access::Element(RowMap::EACH);
        let read = Read { name: "from".into(), dtype, access, stride: storage.elements };
        let what = Target::Element(NodeId(0));
        let write = Write { name: "to".into(), dtype, what, stride: storage.elements, accumulate: false };
        let nodes = vec![Node::Load(dspc_graph::rowfn::InputId(0))];
        let (reads, writes, split) = (vec![read], vec![write], Split::Elements);
        let kernel = RowKernel { rows, cols: storage.elements, reads, nodes, writes, split };
        let kernel = self.pool.kernel("copy", Kernel::Row(kernel));
        let operands = vec![from, to];
        self.before.push(Step::Launch(Launch { kernel, operands, origin: "chunk".into() }));
        to
    }
}
