//! The artifact's program, but for the kernel files: buffers with offsets, instructions on streams.

use std::collections::BTreeMap;

use dspc_graph::ir::{DType, Init, Table as GraphTable};
use dspc_kernel::describe::{Kernel, Split};
use dspc_kernel::steps::{
    Collective, CollectiveKind, Fused, Kernels, Launch, Matrix, MomentPlace, NamedKernel, Own, Part, Place,
    ShardedPlace, Step, Storage, StorageId, StorageKind, TableKind,
};
use dspc_plan::{AxisId, Plan};
use dspc_program as program;
use dspc_program::{
    Action, Arena, Arg, Buffer, BufferId, ElementType, Entry, Family, Formula, Instruction, KernelEntry,
    KernelId, Over, Program, RankGroup, Role, Shard, StreamId,
};
use dspc_spec::settings::Precision;

use crate::alias::{Aliases, reuse_in_place};
use crate::lifetime::lifetimes;
use crate::operands::operands;
use crate::pack::{ALIGN_BYTES, pack};
use crate::streams::overlap_collectives;

/// What the program says besides its instructions.
#[derive(Clone, Debug)]
pub struct Job {
    /// The compiler's version.
    pub dspc: String,
    /// Of the canonical spec.
    pub spec_hash: String,
    /// For `config.json`.
    pub model: program::Model,
    /// What to train on.
    pub data: program::Data,
    /// How long.
    pub training: program::Training,
}

/// Arenas, in order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ArenaId {
    Parameters,
    Gradients,
    Optimizer,
    Inputs,
    State,
    Activations,
}

const ARENAS: [&str; 6] = ["parameters", "gradients", "optimizer", "inputs", "state", "activations"];

/// Orders the kernels of a plan and gives every storage its bytes. `targets` is left empty: the back end fills it.
pub fn schedule(plan: &Plan, kernels: &Kernels, job: Job) -> Program {
    let mut memory = Memory::new(kernels);
    let peaks = [&kernels.train, &kernels.evaluate, &kernels.logits, &kernels.refresh]
        .map(|steps| memory.plan_entry(steps));
    let writer = Writer { kernels, tf32: plan.train.precision == Precision::Tf32 };
    let entry = |steps: &[Step], peak: u64| Entry { body: writer.instructions(steps), peak_bytes: peak };
    let mut arenas: Vec<Arena> = ARENAS.iter().map(|name| Arena { name: (*name).into(), bytes: 0 }).collect();
    for (arena, bytes) in arenas.iter_mut().zip(memory.ends) {
        arena.bytes = bytes;
    }
    let mut program = Program {
        format_version: program::FORMAT_VERSION,
        dspc: job.dspc,
        name: plan.name.clone(),
        spec_hash: job.spec_hash,
        family: kernels.family,
        mesh: plan.mesh.axes.iter().map(|a| (a.id.to_string(), a.size)).collect(),
        groups: groups(plan),
        zero_stage: plan.zero.stage,
        deterministic: plan.deterministic,
        model: job.model,
        data: job.data,
        training: job.training,
        params: params(plan, kernels),
        arenas,
        buffers: memory.buffers(),
        tables: tables(kernels),
        kernels: kernels.kernels.iter().map(|k| kernel_entry(k, kernels.family)).collect(),
        targets: vec![],
        train: entry(&kernels.train, peaks[0]),
        evaluate: entry(&kernels.evaluate, peaks[1]),
        logits: (!kernels.logits.is_empty()).then(|| entry(&kernels.logits, peaks[2])),
        refresh: (!kernels.refresh.is_empty()).then(|| entry(&kernels.refresh, peaks[3])),
    };
    if plan.zero.overlap {
        overlap(&mut program);
    }
    program
}

/// Collectives on a stream of their own, in every entry.
fn overlap(program: &mut Program) {
    let (train, evaluate) = (std::mem::take(&mut program.train), std::mem::take(&mut program.evaluate));
    let (logits, refresh) = (program.logits.take(), program.refresh.take());
    let placed = |mut entry: Entry| {
        overlap_collectives(program, &mut entry);
        entry
    };
    let (train, evaluate) = (placed(train), placed(evaluate));
    let (logits, refresh) = (logits.map(placed), refresh.map(placed));
    *program = Program { train, evaluate, logits, refresh, ..program.clone() };
}

struct Memory<'a> {
    kernels: &'a Kernels,
    places: BTreeMap<StorageId, (ArenaId, u64)>,
    ends: [u64; 6],
}

impl<'a> Memory<'a> {
    /// Everything that outlives an entry, one after the other.
    fn new(kernels: &'a Kernels) -> Self {
        let mut memory = Self { kernels, places: BTreeMap::new(), ends: [0; 6] };
        for (id, storage) in kernels.storages.iter().enumerate() {
            let arena = arena_of(&storage.kind);
            if storage.within.is_none() && arena != ArenaId::Activations {
                let end = &mut memory.ends[arena as usize];
                memory.places.insert(StorageId(id as u32), (arena, *end));
                *end += bytes(storage);
            }
        }
        memory
    }

    /// The activations of one entry, from offset 0: entries never run at the same time. Their peak.
    fn plan_entry(&mut self, steps: &[Step]) -> u64 {
        let mut lives = lifetimes(steps, &self.kernels.storages);
        lives.retain(|id, _| self.is_activation(*id));
        let all: Vec<StorageId> = lives.keys().copied().collect();
        let aliases: Aliases = reuse_in_place(self.kernels, steps, &mut lives);
        let size = |id: &StorageId| bytes(&self.kernels.storages[id.0 as usize]);
        let ranges: Vec<_> = lives.iter().map(|(id, life)| (*id, size(id), *life)).collect();
        let (offsets, peak) = pack(&ranges);
        for id in all {
            self.places.insert(id, (ArenaId::Activations, offsets[&aliases.root(id)]));
        }
        let end = &mut self.ends[ArenaId::Activations as usize];
        *end = peak.max(*end);
        peak
    }

    fn is_activation(&self, id: StorageId) -> bool {
        arena_of(&self.kernels.storages[id.0 as usize].kind) == ArenaId::Activations
    }

    fn buffers(&self) -> Vec<Buffer> {
        let buffer = |(id, storage): (usize, &Storage)| {
            let size = storage.dtype.bytes();
            let root = storage.within.map_or(StorageId(id as u32), |w| w.storage);
            // A storage that no entry uses (a loss in a program for its logits alone) lies at the start and is never touched.
            let (arena, start) = self.places.get(&root).copied().unwrap_or((arena_of(&storage.kind), 0));
            let dense = (storage.elements * size).next_multiple_of(ALIGN_BYTES);
            Buffer {
                name: storage.name.clone(),
                arena: arena as u32,
                offset: start + storage.within.map_or(0, |w| w.offset * size),
                dtype: element_type(storage.dtype),
                elements: storage.elements,
                slots: storage.slots,
                stride: storage.within.map_or(dense, |w| w.stride * size),
                role: role(&storage.kind),
                within: storage.within.map(|w| BufferId(w.storage.0)),
            }
        };
        self.kernels.storages.iter().enumerate().map(buffer).collect()
    }
}

/// All slots, each beginning at a multiple of [`ALIGN_BYTES`].
fn bytes(storage: &Storage) -> u64 {
    (storage.elements * storage.dtype.bytes()).next_multiple_of(ALIGN_BYTES) * storage.slots
}

fn arena_of(kind: &StorageKind) -> ArenaId {
    match kind {
        StorageKind::Parameters | StorageKind::Param(_) | StorageKind::ParamShards => ArenaId::Parameters,
        StorageKind::Masters | StorageKind::MasterShards => ArenaId::Optimizer,
        StorageKind::Gradients => ArenaId::Gradients,
        StorageKind::Moments | StorageKind::MomentPart => ArenaId::Optimizer,
        StorageKind::Tokens | StorageKind::Targets | StorageKind::InvTargets | StorageKind::Rng => {
            ArenaId::Inputs
        }
        StorageKind::AppliedSteps
        | StorageKind::Loss
        | StorageKind::GradNorm
        | StorageKind::Finite
        | StorageKind::LossScale { .. }
        | StorageKind::CleanSteps
        | StorageKind::Hysteresis { .. }
        | StorageKind::ScaleExhausted
        | StorageKind::FirstBad
        | StorageKind::Table(_)
        | StorageKind::State => ArenaId::State,
        StorageKind::Activation | StorageKind::Logits => ArenaId::Activations,
    }
}

fn role(kind: &StorageKind) -> Role {
    match kind {
        StorageKind::Activation | StorageKind::Parameters | StorageKind::Gradients | StorageKind::State => {
            Role::Inner
        }
        StorageKind::Masters | StorageKind::MomentPart => Role::Inner,
        StorageKind::LossScale { .. } => Role::LossScale,
        StorageKind::CleanSteps => Role::CleanSteps,
        StorageKind::Hysteresis { .. } => Role::Hysteresis,
        StorageKind::ScaleExhausted => Role::ScaleExhausted,
        StorageKind::FirstBad => Role::FirstBad,
        StorageKind::Param(_) | StorageKind::ParamShards | StorageKind::MasterShards => Role::Param,
        StorageKind::Moments => Role::Moment,
        StorageKind::Tokens => Role::Tokens,
        StorageKind::Targets => Role::Targets,
        StorageKind::InvTargets => Role::InvTargets,
        StorageKind::Rng => Role::Rng,
        StorageKind::AppliedSteps => Role::AppliedSteps,
        StorageKind::Loss => Role::Loss,
        StorageKind::GradNorm => Role::GradNorm,
        StorageKind::Finite => Role::Finite,
        StorageKind::Logits => Role::Logits,
        StorageKind::Table(_) => Role::Table,
    }
}

pub(crate) fn element_type(dtype: DType) -> ElementType {
    match dtype {
        DType::F32 => ElementType::F32,
        DType::Bf16 => ElementType::Bf16,
        DType::F16 => ElementType::F16,
        DType::I32 => ElementType::I32,
    }
}

/// The ranks that share the batch, where there are several.
fn groups(plan: &Plan) -> Vec<RankGroup> {
    let size = plan.mesh.size(AxisId::Data);
    let data = RankGroup { axes: vec![AxisId::Data.to_string()], size };
    if size > 1 { vec![data] } else { vec![] }
}

fn params(plan: &Plan, kernels: &Kernels) -> Vec<program::Param> {
    let mut all = vec![];
    for place in &kernels.params {
        let param = plan.train.graph.param(place.param);
        let dims: Vec<u64> = param.ty.dims.iter().map(|d| d.size).collect();
        for slot in 0..param.turns.unwrap_or(1) {
            let moment = |moment: &MomentPlace| {
                let (buffer, shard) = shared(&moment.at);
                program::Moment { name: moment.name.clone(), dims: moment.dims.clone(), buffer, slot, shard }
            };
            let (buffer, shard) = shared(&place.at);
            all.push(program::Param {
                name: param.name_in(slot),
                dims: dims.clone(),
                init: init(param.init),
                site: all.len() as u32,
                buffer,
                slot,
                shard,
                grid_row: place.grid_row + slot * place.grid_rows,
                moments: place.moments.iter().map(moment).collect(),
            });
        }
    }
    all
}

fn shared(at: &ShardedPlace) -> (BufferId, Option<program::ParamShard>) {
    let shard = at
        .shard
        .map(|(elements, start)| program::ParamShard { of: Shard { group: DATA_GROUP, elements }, start });
    (BufferId(at.storage.0), shard)
}

fn init(init: Init) -> program::Init {
    match init {
        Init::Zeros => program::Init::Zeros,
        Init::Ones => program::Init::Ones,
        Init::Normal(std) => program::Init::Normal(std),
        Init::Uniform(limit) => program::Init::Uniform(limit),
    }
}

fn tables(kernels: &Kernels) -> Vec<program::Table> {
    let table = |(id, storage): (usize, &Storage)| {
        let kind = match &storage.kind {
            StorageKind::Table(kind) => kind,
            StorageKind::LossScale { start } => return Some(starts_as(id, *start)),
            StorageKind::Hysteresis { full } => return Some(starts_as(id, f64::from(*full))),
            _ => return None,
        };
        let formula = match kind {
            TableKind::LearningRate => Formula::LearningRate,
            TableKind::Constant(x) => Formula::Constant(*x),
            TableKind::BiasCorrection(beta) => Formula::BiasCorrection { beta: *beta },
            TableKind::Decay(power) => Formula::Decay { power: *power },
            TableKind::Graph(GraphTable::RopeCos { base }, cols) => {
                Formula::RopeCos { base: *base, cols: *cols }
            }
            TableKind::Graph(GraphTable::RopeSin { base }, cols) => {
                Formula::RopeSin { base: *base, cols: *cols }
            }
        };
        Some(program::Table { buffer: BufferId(id as u32), formula })
    };
    kernels.storages.iter().enumerate().filter_map(table).collect()
}

fn starts_as(id: usize, value: f64) -> program::Table {
    program::Table { buffer: BufferId(id as u32), formula: Formula::Constant(value) }
}

/// The symbol: the stem, and the description's hash so that equal kernels of two programs have one name.
pub(crate) fn symbol(kernel: &NamedKernel) -> String {
    let hash = blake3::hash(format!("{:?}", kernel.kernel).as_bytes()).to_hex();
    format!("{}_{}", kernel.stem, &hash[..8])
}

/// Scalar operations that are worth a thread of their own: about ten microseconds.
const WORK_PER_THREAD: u64 = 1 << 16;

fn kernel_entry(kernel: &NamedKernel, family: Family) -> KernelEntry {
    let items = kernel.kernel.items();
    let grain = (WORK_PER_THREAD / work_per_item(&kernel.kernel).max(1)).clamp(1, items.max(1));
    let uses_turn = matches!(&kernel.kernel, Kernel::Row(k) if k.uses_turn());
    let operands = operands(&kernel.kernel, family);
    KernelEntry { symbol: symbol(kernel), items, grain, operands, uses_turn }
}

fn work_per_item(kernel: &Kernel) -> u64 {
    match kernel {
        Kernel::Row(k) => {
            let per_element = (k.nodes.len() + k.reads.len() + k.writes.len()) as u64;
            match k.split {
                Split::Elements => per_element,
                Split::Rows => per_element * k.cols,
                Split::Chunks(rows) => per_element * k.cols * rows,
            }
        }
        Kernel::Attention(k) => 4 * k.queries * k.keys * k.head_dim,
        Kernel::AttentionBackward(k) => 10 * k.queries * k.keys * k.head_dim,
        Kernel::ScatterAdd(k) => 2 * k.rows,
        Kernel::Product(k) => 2 * k.n * k.k,
    }
}

struct Writer<'a> {
    kernels: &'a Kernels,
    /// f32 factors may be rounded to TF32.
    tf32: bool,
}

impl Writer<'_> {
    fn instructions(&self, steps: &[Step]) -> Vec<Instruction> {
        steps.iter().map(|step| self.instruction(step)).collect()
    }

    fn instruction(&self, step: &Step) -> Instruction {
        let (action, origin) = match step {
            Step::Launch(launch) => {
                let action = Action::Launch { kernel: KernelId(launch.kernel.0), args: self.args(launch) };
                (action, launch.origin.clone())
            }
            Step::Gemm(gemm) => {
                let epilogue = gemm.epilogue.as_ref().map(|launch| program::Epilogue {
                    kernel: KernelId(launch.kernel.0),
                    args: self.args(launch),
                    rows_per_item: self.rows_per_item(launch),
                });
                let (a, b, c) = (matrix(&gemm.a), matrix(&gemm.b), matrix(&gemm.c));
                let (m, n, k, accumulate) = (gemm.m, gemm.n, gemm.k, gemm.accumulate);
                let product = program::Gemm {
                    m,
                    n,
                    k,
                    a,
                    b,
                    c,
                    accumulate,
                    tf32: self.tf32,
                    fused: gemm.fused.as_ref().map(fused),
                    own: gemm.own.as_ref().map(own),
                    epilogue,
                };
                (Action::Gemm(product), gemm.origin.clone())
            }
            Step::Zero(place, origin) => (Action::Zero { at: at(place) }, origin.clone()),
            Step::Collective(collective) => {
                (Action::Collective(exchange(collective)), collective.origin.clone())
            }
            Step::Only(when, step) => return Instruction { when: Some(*when), ..self.instruction(step) },
            Step::Loop(inner) => {
                let over = if inner.micro { Over::MicroBatches } else { Over::Turns };
                let body = self.instructions(&inner.body);
                (Action::Loop { over, count: inner.count, reverse: inner.reverse, body }, inner.name.clone())
            }
        };
        Instruction { action, stream: StreamId(0), waits: vec![], records: None, when: None, origin }
    }

    fn args(&self, launch: &Launch) -> Vec<Arg> {
        let kernel = &self.kernels.kernels[launch.kernel.0 as usize].kernel;
        let turn = matches!(kernel, Kernel::Row(k) if k.uses_turn());
        launch.operands.iter().map(|p| Arg::At(at(p))).chain(turn.then_some(Arg::Turn)).collect()
    }

    fn rows_per_item(&self, launch: &Launch) -> u64 {
        match &self.kernels.kernels[launch.kernel.0 as usize].kernel {
            Kernel::Row(kernel) => match kernel.split {
                Split::Chunks(rows) => rows,
                Split::Rows | Split::Elements => 1,
            },
            _ => 1,
        }
    }
}

fn at(place: &Place) -> program::Place {
    let Place { storage, add, turn, micro, offset, shard } = *place;
    let shard = shard.map(|elements| Shard { group: DATA_GROUP, elements });
    program::Place { buffer: BufferId(storage.0), add, turn, micro, elements: offset, shard }
}

/// The ranks of the data axis: the only group there is.
const DATA_GROUP: u32 = 0;

fn exchange(collective: &Collective) -> program::Collective {
    let kind = match collective.kind {
        CollectiveKind::ReduceScatter { sum, tree } => {
            program::CollectiveKind::ReduceScatter { sum: KernelId(sum.0), tree }
        }
        CollectiveKind::AllGather => program::CollectiveKind::AllGather,
    };
    let part = |p: &Part| program::Part { from: at(&p.from), to: at(&p.to), elements: p.elements };
    program::Collective { kind, group: DATA_GROUP, parts: collective.parts.iter().map(part).collect() }
}

fn fused(fused: &Fused) -> program::Fused {
    match fused {
        Fused::Bias { bias } => program::Fused::Bias { bias: at(bias) },
        Fused::BiasGelu { bias, pre } => program::Fused::BiasGelu { bias: at(bias), pre: matrix(pre) },
        Fused::GeluGradient { pre } => program::Fused::GeluGradient { pre: matrix(pre) },
        Fused::BiasGradient { sum } => program::Fused::BiasGradient { sum: at(sum) },
    }
}

fn own(own: &Own) -> program::OwnProduct {
    program::OwnProduct { kernel: KernelId(own.kernel.0), workspace: own.workspace.as_ref().map(at) }
}

fn matrix(matrix: &Matrix) -> program::Matrix {
    program::Matrix { at: at(&matrix.place), stride: matrix.stride, transposed: matrix.transposed }
}
