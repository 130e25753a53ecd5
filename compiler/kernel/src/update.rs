//! The update: norm, scalars of the step, and one optimizer kernel a group of the partition.

use dspc_graph::ir::DType;
use dspc_graph::rowfn::{Access, RowFn, RowMap, Yield};
use dspc_plan::Plan;
use dspc_spec::settings::Optimizer;
use dspc_train::optimizer::adamw::Copies;
use dspc_train::optimizer::scaler::Scaling;
use dspc_train::optimizer::{adamw, norm};

use crate::describe::{Kernel, Read, RowKernel, Split, Target, Write};
use crate::exchange;
use crate::pool::Pool;
use crate::state::State;
use crate::steps::{Launch, Place, Step, StorageKind, TableKind};

/// Columns of the grid on which the norm is summed: a group's size is a multiple of it.
pub(crate) const NORM_COLS: u64 = dspc_plan::GRID_ELEMENTS;

/// Lowers the optimizer step.
pub(crate) fn lower_update(plan: &Plan, state: &State, pool: &mut Pool) -> Vec<Step> {
    let Optimizer::AdamW { betas, eps, weight_decay, .. } = plan.train.optimizer;
    let scalar = |pool: &mut Pool, name: &str, kind| Place::start(pool.storage(name, DType::F32, 1, 1, kind));
    let grad_norm = scalar(pool, "grad_norm", StorageKind::GradNorm);
    let finite = scalar(pool, "finite", StorageKind::Finite);
    let [factor, lr, bias1, bias2] =
        ["grad_factor", "lr", "bias1", "bias2"].map(|name| scalar(pool, name, StorageKind::State));
    let applied = Place::start(pool.storage("applied_steps", DType::I32, 1, 1, StorageKind::AppliedSteps));
    let first_bad = scalar(pool, "first_bad", StorageKind::FirstBad);
    let table = |pool: &mut Pool, name: &str, kind| {
        Place::start(pool.storage(name, DType::F32, plan.steps, 1, StorageKind::Table(kind)))
    };
    let tables = [
        table(pool, "table.lr", TableKind::LearningRate),
        table(pool, "table.bias1", TableKind::BiasCorrection(betas.0)),
        table(pool, "table.bias2", TableKind::BiasCorrection(betas.1)),
    ];

    let (mut steps, squares, rows) = exchange::squares(plan, state, pool);
    steps.extend(exchange::gather_summed(plan, state));
    let scaling = Scaling::of(&plan.train.precision);
    let mut reads = vec![Place::start(squares), applied, tables[0], tables[1], tables[2]];
    let mut writes = vec![grad_norm, finite, factor, lr, bias1, bias2, applied, first_bad];
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
    steps.push(launch(pool, "step_scalars", norm::step_scalars(rows, plan.train.clip, &scaling), operands));
    for piece in &state.pieces {
        let decay = if piece.decay { weight_decay } else { 0.0 };
        let rule = adamw::AdamW { betas, eps, weight_decay: decay };
        let copies = if piece.is_own_master() { Copies::No } else { Copies::Yes };
        let at = piece.operands();
        let (p, g, [m, v]) = (at.masters, at.gradients, at.moments);
        let places: Vec<Place> = [p, g, m, v].into_iter().chain(at.copy).collect();
        steps.extend(piece.over_turns(places, piece.updated(), |rows, at| {
            let function = adamw::update(rows, NORM_COLS, rule, copies);
            let scalars = [factor, lr, bias1, bias2, finite];
            let written = [at[0], at[2], at[3]].into_iter().chain(at.get(4).copied());
            let operands = at[..4].iter().copied().chain(scalars).chain(written).collect();
            launch(pool, "adamw", function, operands)
        }));
    }
    steps.extend(exchange::gather_updated(plan, state));
    steps
}

/// Lowers the copy from masters to the parameters that ops read; nothing where these are the masters.
pub(crate) fn lower_refresh(plan: &Plan, state: &State, pool: &mut Pool) -> Vec<Step> {
    let mut steps = vec![];
    for piece in state.pieces.iter().filter(|piece| !piece.is_own_master()) {
        let at = piece.operands();
        let places = std::iter::once(at.masters).chain(at.copy).collect();
        steps.extend(piece.over_turns(places, piece.updated(), |rows, at| {
            launch(pool, "cast_parameters", adamw::copy(rows, NORM_COLS), at)
        }));
    }
    if !steps.is_empty() {
        steps.extend(exchange::gather_updated(plan, state));
    }
    steps
}

/// A row function on dense operands.
pub(crate) fn launch(pool: &mut Pool, stem: &str, function: RowFn, operands: Vec<Place>) -> Step {
    let (rows, cols) = (function.rows, function.cols);
    let dtypes: Vec<DType> = operands.iter().map(|p| pool.storages[p.storage.0 as usize].dtype).collect();
    let dtype = |i: usize| dtypes[i];
    let name = |pool: &Pool, i: usize| pool.storages[operands[i].storage.0 as usize].name.clone();
    let read = |(i, access): (usize, &Access)| {
        let stride = if matches!(access, Access::Element(_)) { cols } else { 1 };
        Read { name: name(pool, i), dtype: dtype(i), access: access.clone(), stride }
    };
    let reads: Vec<Read> = function.inputs.iter().enumerate().map(read).collect();
    let write = |(i, yields): (usize, &Yield)| {
        let i = i + reads.len();
        let (what, stride) = match *yields {
            Yield::Element(node) => (Target::Element(node), cols),
            Yield::Row(node) => (Target::Row(node), 1),
            Yield::ColumnSum(node) => (Target::ColumnSum(node), cols),
        };
        Write { name: name(pool, i), dtype: dtype(i), what, stride, accumulate: false }
    };
    let writes: Vec<Write> = function.outputs.iter().enumerate().map(write).collect();
    let flat = reads
        .iter()
        .all(|r| matches!(&r.access, Access::Element(m) if *m == RowMap::EACH) || r.access == Access::Scalar)
        && writes.iter().all(|w| matches!(w.what, Target::Element(_)));
    let split = if flat { Split::Elements } else { Split::Rows };
    let kernel = RowKernel { rows, cols, reads, nodes: function.nodes, writes, split };
    Step::Launch(Launch { kernel: pool.kernel(stem, Kernel::Row(kernel)), operands, origin: "update".into() })
}
