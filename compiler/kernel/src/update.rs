//! The update: norm, scalars of the step, and one optimizer kernel a group of the partition.

use dspc_graph::ir::DType;
use dspc_graph::rowfn::{Access, RowFn, RowMap, Yield};
use dspc_plan::Plan;
use dspc_spec::settings::Optimizer;
use dspc_train::optimizer::adamw::Copies;
use dspc_train::optimizer::scaler::Scaling;
use dspc_train::optimizer::{adamw, norm};

use crate::describe::{Kernel, Read, RowKernel, Split, Target, Write};
use crate::pool::Pool;
use crate::state::State;
use crate::steps::{Launch, Place, Step, StorageId, StorageKind, TableKind};

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

    let mut steps = vec![];
    let rows: u64 = state.groups.iter().map(|g| g.elements / NORM_COLS).sum();
    let squares = pool.storage("squares", DType::F32, rows, 1, StorageKind::Activation);
    let mut row = 0;
    for group in &state.groups {
        let function = norm::sum_of_squares(group.elements / NORM_COLS, NORM_COLS);
        let to = Place { offset: row, ..Place::start(squares) };
        steps.push(launch(pool, "sum_of_squares", function, vec![Place::start(group.gradients), to]));
        row += group.elements / NORM_COLS;
    }
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
    for group in &state.groups {
        let decay = if group.decay { weight_decay } else { 0.0 };
        let rule = adamw::AdamW { betas, eps, weight_decay: decay };
        let copies = if group.masters == group.parameters { Copies::No } else { Copies::Yes };
        let function = adamw::update(group.elements / NORM_COLS, NORM_COLS, rule, copies);
        let flat = |id: StorageId| Place::start(id);
        let (p, g, [m, v]) = (flat(group.masters), flat(group.gradients), group.moments.map(flat));
        let copy = (copies == Copies::Yes).then(|| flat(group.parameters));
        let operands = [p, g, m, v, factor, lr, bias1, bias2, finite, p, m, v].into_iter().chain(copy);
        steps.push(launch(pool, "adamw", function, operands.collect()));
    }
    steps
}

/// Lowers the copy from masters to the parameters that ops read; nothing where these are the masters.
pub(crate) fn lower_refresh(state: &State, pool: &mut Pool) -> Vec<Step> {
    let copied = state.groups.iter().filter(|g| g.masters != g.parameters);
    copied
        .map(|group| {
            let function = adamw::copy(group.elements / NORM_COLS, NORM_COLS);
            let operands = vec![Place::start(group.masters), Place::start(group.parameters)];
            launch(pool, "cast_parameters", function, operands)
        })
        .collect()
}

/// A row function on dense operands.
fn launch(pool: &mut Pool, stem: &str, function: RowFn, operands: Vec<Place>) -> Step {
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
