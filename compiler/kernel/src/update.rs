//! The update: norm, scalars of the step, and one optimizer kernel a group of the partition.

use dspc_graph::ir::DType;
use dspc_graph::rowfn::{Access, Node, RowFn, RowMap, Yield};
use dspc_plan::Plan;
use dspc_program::Family;
use dspc_train::optimizer::scaler::Scaling;
use dspc_train::optimizer::{StepTable, element, norm, tables};

mod adafactor;
mod apply;
mod lamb;
mod muon;
mod tensors;

use crate::describe::{Kernel, Read, RowKernel, Split, Target, Write};
use crate::exchange;
use crate::lower::rows::chunk_rows;
use crate::pool::Pool;
use crate::state::State;
use crate::steps::{Launch, Place, Step, StorageKind, TableKind};
use crate::update::apply::{Scalars, apply};

/// Columns of the grid on which the norm is summed: a group's size is a multiple of it.
pub(crate) const NORM_COLS: u64 = dspc_plan::GRID_ELEMENTS;

/// Lowers the optimizer step.
pub(crate) fn lower_update(plan: &Plan, state: &State, pool: &mut Pool) -> Vec<Step> {
    let scalar = |pool: &mut Pool, name: &str, kind| Place::start(pool.storage(name, DType::F32, 1, 1, kind));
    let grad_norm = scalar(pool, "grad_norm", StorageKind::GradNorm);
    let finite = scalar(pool, "finite", StorageKind::Finite);
    let [factor, lr] = ["grad_factor", "lr"].map(|name| scalar(pool, name, StorageKind::State));
    let by_step = by_step(plan);
    let numbers: Vec<Place> =
        by_step.iter().map(|(name, _)| scalar(pool, name, StorageKind::State)).collect();
    let applied = Place::start(pool.storage("applied_steps", DType::I32, 1, 1, StorageKind::AppliedSteps));
    let first_bad = scalar(pool, "first_bad", StorageKind::FirstBad);
    let table = |pool: &mut Pool, name: &str, kind| {
        Place::start(pool.storage(name, DType::F32, plan.steps, 1, StorageKind::Table(kind)))
    };
    let rates = table(pool, "table.lr", TableKind::LearningRate);
    let by_step_tables: Vec<Place> =
        by_step.iter().map(|(name, t)| table(pool, &format!("table.{name}"), kind_of(*t))).collect();

    let (mut steps, squares, rows) = exchange::squares(plan, state, pool);
    steps.extend(exchange::gather_summed(plan, state));
    let scaling = Scaling::of(&plan.train.precision);
    let mut reads = vec![Place::start(squares), applied, rates];
    reads.extend(by_step_tables);
    let mut writes = vec![grad_norm, finite, factor, lr];
    writes.extend(&numbers);
    writes.extend([applied, first_bad]);
    if let Some(scale) = state.loss_scale.map(Place::start) {
        reads.push(scale);
        if let Scaling::Dynamic(scaler) = scaling {
            let counter =
                |pool: &mut Pool, name, kind| Place::start(pool.storage(name, DType::I32, 1, 1, kind));
            let clean = counter(pool, "clean_steps", StorageKind::CleanSteps);
            let left = counter(pool, "hysteresis", StorageKind::Hysteresis { full: scaler.hysteresis });
            reads.extend([clean, left]);
            writes.extend([scale, clean, left, scalar(pool, "scale_exhausted", StorageKind::ScaleExhausted)]);
        }
    }
    let operands = reads.into_iter().chain(writes).collect();
    let function = norm::step_scalars(rows, plan.train.clip, &scaling, by_step.len());
    steps.push(launch(pool, "step_scalars", function, operands));
    let tables = by_step.iter().map(|(_, table)| *table).zip(numbers).collect();
    let scalars = Scalars { factor, lr, finite, tables };
    for piece in state.trained() {
        steps.extend(apply((plan, state), piece, &scalars, pool));
    }
    steps.extend(exchange::gather_updated(plan, state));
    steps
}

/// The tables by step that some rule reads, and what they are called.
fn by_step(plan: &Plan) -> Vec<(String, StepTable)> {
    let mut found: Vec<(String, StepTable)> = vec![];
    for table in plan.train.updates.iter().filter(|u| !u.frozen).flat_map(|u| tables(&u.rule)) {
        if found.iter().all(|(_, known)| *known != table) {
            let name = match table {
                StepTable::BiasCorrection(_) => format!("bias{}", found.len() + 1),
                StepTable::Decay(_) => "v_decay".into(),
            };
            found.push((name, table));
        }
    }
    found
}

fn kind_of(table: StepTable) -> TableKind {
    match table {
        StepTable::BiasCorrection(beta) => TableKind::BiasCorrection(beta),
        StepTable::Decay(power) => TableKind::Decay(power),
    }
}

/// Lowers the copy from masters to the parameters that ops read; nothing where these are the masters.
pub(crate) fn lower_refresh(plan: &Plan, state: &State, pool: &mut Pool) -> Vec<Step> {
    let mut steps = vec![];
    for piece in state.pieces.iter().filter(|piece| !piece.is_own_master()) {
        let at = piece.operands();
        let places = std::iter::once(at.masters).chain(at.copy).collect();
        steps.extend(piece.over_turns(places, piece.updated(), |rows, at| {
            launch(pool, "cast_parameters", element::copy(rows, NORM_COLS), at)
        }));
    }
    if !steps.is_empty() {
        steps.extend(exchange::gather_updated(plan, state));
    }
    steps
}

/// A row function on dense operands.
pub(crate) fn launch(pool: &mut Pool, stem: &str, function: RowFn, operands: Vec<Place>) -> Step {
    let stride = function.cols;
    launch_by(pool, stem, function, operands, stride)
}

/// Parts that a sum over so many rows is made in.
fn parts_of_columns(rows: u64, family: Family) -> u64 {
    rows.div_ceil(chunk_rows(rows, family))
}

/// The same on operands whose rows are `stride` elements apart.
fn launch_by(pool: &mut Pool, stem: &str, function: RowFn, operands: Vec<Place>, row_stride: u64) -> Step {
    let (rows, cols) = (function.rows, function.cols);
    let dtypes: Vec<DType> = operands.iter().map(|p| pool.storages[p.storage.0 as usize].dtype).collect();
    let dtype = |i: usize| dtypes[i];
    let name = |pool: &Pool, i: usize| pool.storages[operands[i].storage.0 as usize].name.clone();
    let read = |(i, access): (usize, &Access)| {
        let stride = if matches!(access, Access::Element(_)) { row_stride } else { 1 };
        Read { name: name(pool, i), dtype: dtype(i), access: access.clone(), stride }
    };
    let reads: Vec<Read> = function.inputs.iter().enumerate().map(read).collect();
    let write = |(i, yields): (usize, &Yield)| {
        let i = i + reads.len();
        let (what, stride) = match *yields {
            Yield::Element(node) => (Target::Element(node), row_stride),
            Yield::Row(node) => (Target::Row(node), 1),
            Yield::ColumnSum(node) => (Target::ColumnSum(node), cols),
        };
        Write { name: name(pool, i), dtype: dtype(i), what, stride, accumulate: false }
    };
    let writes: Vec<Write> = function.outputs.iter().enumerate().map(write).collect();
    let sums = writes.iter().any(|w| matches!(w.what, Target::ColumnSum(_)));
    let reduces = function.nodes.iter().any(|node| matches!(node, Node::Reduce(..)));
    let flat = row_stride == cols
        && !reduces
        && reads.iter().all(|r| {
            matches!(&r.access, Access::Element(m) if *m == RowMap::EACH) || r.access == Access::Scalar
        })
        && writes.iter().all(|w| matches!(w.what, Target::Element(_)));
    let split = match (sums, flat) {
        (true, _) => Split::Chunks(chunk_rows(rows, pool.family)),
        (false, true) => Split::Elements,
        (false, false) => Split::Rows,
    };
    let kernel = RowKernel { rows, cols, reads, nodes: function.nodes, writes, split };
    Step::Launch(Launch { kernel: pool.kernel(stem, Kernel::Row(kernel)), operands, origin: "update".into() })
}
