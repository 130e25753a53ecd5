//! Specs to programs without a back end, and a step of every rank of a program, in f64, on a batch that all layouts share.
//!
//! A world's micro-batch g = i · W + r is the i-th of rank r, so that the same micro-batches have the same ids whatever the number of ranks.

#![allow(dead_code, reason = "each suite uses some of it")]
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use dspc_graph::{Elaborate, elaborate};
use dspc_kernel::steps::Kernels;
use dspc_plan::{Batch, Graphs, Mesh, Plan, Spread};
use dspc_program::{
    Action, BufferId, Data, Family, Formula, Instruction, LrSchedule, Model, Over, ParamShard, Part, Program,
    Tokenizer, Training,
};
use dspc_schedule::{Job, Machine, run_ranks, schedule};
use dspc_source::SourceMap;
use dspc_spec::settings::{DataFacts, Spec};

/// Ids of the vocabulary.
const VOCAB: u64 = 37;

/// Every layer of a spec.
pub struct Compiled {
    /// Spread over the mesh.
    pub plan: Plan,
    /// Steps.
    pub kernels: Kernels,
    /// Instructions.
    pub program: Program,
}

/// Text to program.
pub fn compile(text: &str, family: Family) -> Compiled {
    let mut sources = SourceMap::default();
    let file = sources.add("spec.dsp", text);
    let (tree, found) = dspc_grammar::parse(file, text);
    assert!(found.is_empty(), "{found:?}");
    let facts = DataFacts { vocab: Some(VOCAB), ranks: None };
    let builtins = dspc_graph::ops::builtins();
    let (spec, found) = dspc_spec::check("spec", &tree, &facts, &builtins, &mut sources);
    let spec = spec.unwrap_or_else(|| panic!("{found:?}"));
    let plan = plan(&spec, &sources);
    dspc_plan::verify(&plan).unwrap();
    let kernels = dspc_kernel::kernels(&plan, family);
    let program = schedule(&plan, &kernels, job(&spec));
    let found = dspc_audit::audit(&program);
    assert!(found.is_empty(), "{:#?}\n{}", &found[..found.len().min(6)], dspc_schedule::print(&program));
    Compiled { plan, kernels, program }
}

fn plan(spec: &Spec, sources: &SourceMap) -> Plan {
    let settings = &spec.settings;
    let (micro_batch, accumulation) = (settings.train.micro_batch.value, settings.train.accumulation.value);
    let graph = |batch, train| {
        elaborate(spec, sources, batch, settings.data.sequence.value, Elaborate { train }).unwrap()
    };
    let precision = &settings.precision.value;
    let forward = |batch, logits| dspc_train::store_forward(graph(batch, false), precision, logits);
    let optimizer = &settings.optimizer.value;
    let train = graph(micro_batch, true);
    let train = dspc_train::differentiate(train, optimizer, settings.train.clip.value, precision.clone());
    let train = dspc_train::store(train.unwrap_or_else(|e| panic!("{e}")));
    let graphs = Graphs { train, evaluate: forward(micro_batch, false), logits: forward(1, true) };
    let batch = Batch { batch: settings.train.batch.value, micro_batch, accumulation };
    let spread = Spread { zero: settings.zero.value, deterministic: settings.deterministic.value };
    let mesh = Mesh::of(&settings.parallel.value);
    dspc_plan::plan("spec", mesh, batch, settings.train.steps.value, graphs, spread)
}

fn job(spec: &Spec) -> Job {
    let (data, train) = (&spec.settings.data, &spec.settings.train);
    Job {
        dspc: String::new(),
        spec_hash: String::new(),
        model: Model {
            architecture: String::new(),
            values: Default::default(),
            parameters: 0,
            flops_per_token: 0.0,
        },
        data: Data {
            text: vec![],
            tokenizer: Tokenizer::Bytes,
            sequence: data.sequence.value,
            holdout: 0.0,
            vocab: VOCAB,
        },
        training: Training {
            batch: train.batch.value,
            micro_batch: train.micro_batch.value,
            accumulation: train.accumulation.value,
            steps: train.steps.value,
            seed: 0,
            eval_every: 0,
            eval_batches: 0,
            checkpoint_every: 0,
            checkpoint_keep: 0,
            log_every: 1,
            sample: None,
            schedule: LrSchedule::Constant { lr: 0.5, warmup: 0 },
        },
    }
}

/// Element and site to 32 bits.
fn hash(element: u64, site: u64) -> u32 {
    let x = (element.wrapping_mul(2_654_435_761).wrapping_add(site * 40503)) as u32;
    let x = x ^ (x >> 16);
    let x = x.wrapping_mul(2_246_822_519);
    x ^ (x >> 13)
}

/// A number that keeps a small model lively: norms near one, all else near zero.
fn weight(name: &str, site: u64, element: u64) -> f64 {
    let is_norm = name.contains("ln_") || name.contains("norm");
    let (scale, offset) = match (is_norm, name.ends_with("weight")) {
        (true, true) => (0.2, 1.0),
        (false, true) => (0.6, 0.0),
        (_, false) => (0.4, 0.0),
    };
    offset + (f64::from(hash(element, site)) / 4_294_967_296.0 - 0.5) * scale
}

fn buffer(machine: &Machine<'_>, name: &str) -> usize {
    machine.buffer(name).unwrap_or_else(|| panic!("no buffer `{name}`"))
}

/// Fills a buffer's slot.
pub fn fill(machine: &mut Machine<'_>, name: &str, slot: u64, values: &[f64]) {
    let start = machine.cell(buffer(machine, name), slot);
    machine.cells[start..start + values.len()].copy_from_slice(values);
}

/// A buffer's slot.
pub fn read(machine: &Machine<'_>, name: &str, slot: u64) -> Vec<f64> {
    let at = buffer(machine, name);
    let start = machine.cell(at, slot);
    machine.cells[start..start + machine.program().buffers[at].elements as usize].to_vec()
}

fn fill_tables(machine: &mut Machine<'_>, program: &Program) {
    for table in &program.tables {
        let buffer = &program.buffers[table.buffer.0 as usize];
        let value = |e: u64| match table.formula {
            Formula::RopeCos { base, cols } | Formula::RopeSin { base, cols } => {
                let col = (e % cols) as f64;
                Some(((e / cols) as f64 / base.powf(col / cols as f64)).cos())
            }
            Formula::Constant(x) => Some(x),
            Formula::LearningRate | Formula::BiasCorrection { .. } | Formula::Decay { .. } => Some(0.5),
        };
        let values: Option<Vec<f64>> = (0..buffer.elements).map(value).collect();
        if let Some(values) = values {
            fill(machine, &buffer.name, 0, &values);
        }
    }
}

/// Site of the ids' hash.
const IDS: u64 = 1000;

/// Runs one optimizer step on all ranks.
pub fn step(compiled: &Compiled) -> Vec<Machine<'_>> {
    let mut machines = prepared(compiled);
    run_ranks(&mut machines, &compiled.program.train.body, 0, 0);
    machines
}

/// All ranks before their first step.
pub fn prepared(compiled: &Compiled) -> Vec<Machine<'_>> {
    let (program, kernels) = (&compiled.program, &compiled.kernels);
    let world = program.world();
    let mut machines: Vec<Machine<'_>> =
        (0..world).map(|rank| Machine::of_rank(program, &kernels.kernels, rank)).collect();
    for (rank, machine) in machines.iter_mut().enumerate() {
        prepare(machine, program, rank as u64);
    }
    if let Some(refresh) = &program.refresh {
        run_ranks(&mut machines, &refresh.body, 0, 0);
    }
    machines
}

/// Parameters before the step.
pub fn initial(program: &Program) -> Vec<(String, Vec<f64>)> {
    let params = program.params.iter().enumerate();
    let values = |(site, param): (usize, &dspc_program::Param)| {
        let elements = 0..param.dims.iter().product();
        (param.name.clone(), elements.map(|e| weight(&param.name, site as u64, e)).collect())
    };
    params.map(values).collect()
}

/// Weights, ids and tables of a rank.
fn prepare(machine: &mut Machine<'_>, program: &Program, rank: u64) {
    let world = program.world();
    for (site, param) in program.params.iter().enumerate() {
        let elements = param.dims.iter().product();
        let (range, into) = match &param.shard {
            None => (0..elements, 0),
            Some(shard) => {
                let group = &program.groups[shard.of.group as usize];
                shard.held(program.index_in(group, rank), elements)
            }
        };
        let start = machine.cell(param.buffer.0 as usize, param.slot) + into as usize;
        for (cell, element) in (start..).zip(range) {
            machine.cells[cell] = weight(&param.name, site as u64, element);
        }
    }
    let training = &program.training;
    let (accumulation, micro_batch) = (training.accumulation, training.micro_batch);
    let ids_each = micro_batch * program.data.sequence;
    let id = |i: u64| f64::from(hash(i, IDS) % program.data.vocab as u32);
    let target = |i: u64| if i % 7 == 3 { -100.0 } else { id(i + 1) };
    for i in 0..accumulation {
        let g = i * world + rank;
        let of = |f: &dyn Fn(u64) -> f64| (0..ids_each).map(|j| f(g * ids_each + j)).collect::<Vec<f64>>();
        fill(machine, "tokens", i, &of(&id));
        fill(machine, "targets", i, &of(&target));
        fill(machine, "rng", i, &[7.0, 0.0, 3.0, (g * micro_batch) as f64]);
    }
    let all = accumulation * world * ids_each;
    let count = (0..all).filter(|i| target(*i) >= 0.0).count();
    fill(machine, "inv_targets", 0, &[1.0 / count as f64]);
    fill_tables(machine, program);
}

/// Parameters and moments after a step, each whole, with their names; the same on every rank that holds them whole.
pub fn state(machines: &[Machine<'_>]) -> Vec<(String, Vec<f64>)> {
    let program = machines[0].program();
    let mut all = vec![];
    for param in &program.params {
        let elements = param.dims.iter().product();
        all.push((param.name.clone(), whole(machines, param.buffer, param.slot, param.shard, elements)));
        for moment in &param.moments {
            let name = format!("{}.{}", param.name, moment.name);
            let elements = moment.dims.iter().product();
            all.push((name, whole(machines, moment.buffer, moment.slot, moment.shard, elements)));
        }
    }
    all
}

fn program_name(machines: &[Machine<'_>], buffer: BufferId) -> String {
    machines[0].program().buffers[buffer.0 as usize].name.clone()
}

/// A tensor from where ranks hold it.
fn whole(
    machines: &[Machine<'_>],
    buffer: BufferId,
    slot: u64,
    shard: Option<ParamShard>,
    elements: u64,
) -> Vec<f64> {
    let start = |machine: &Machine<'_>| machine.cell(buffer.0 as usize, slot);
    let Some(shard) = shard else {
        let of = |m: &Machine<'_>| m.cells[start(m)..start(m) + elements as usize].to_vec();
        let first = of(&machines[0]);
        assert!(
            machines.iter().all(|m| of(m).iter().zip(&first).all(|(a, b)| a.to_bits() == b.to_bits())),
            "ranks differ in {}",
            program_name(machines, buffer)
        );
        return first;
    };
    let program = machines[0].program();
    let group = &program.groups[shard.of.group as usize];
    let mut all = vec![f64::NAN; elements as usize];
    for (rank, machine) in machines.iter().enumerate() {
        let (range, into) = shard.held(program.index_in(group, rank as u64), elements);
        let from = start(machine) + into as usize;
        let length = (range.end - range.start) as usize;
        all[range.start as usize..range.end as usize].copy_from_slice(&machine.cells[from..from + length]);
    }
    all
}

/// Elements that a rank sends in a step: its shard of each part to every other one, of the parts from buffers that count.
pub fn sent(
    program: &Program,
    body: &[Instruction],
    (turn, micro): (u64, u64),
    counts: fn(&str) -> bool,
) -> u64 {
    let of = |instruction: &Instruction| match &instruction.action {
        _ if !instruction.when.is_none_or(|when| when.holds(turn, micro)) => 0,
        Action::Collective(collective) => {
            let others = program.groups[collective.group as usize].size - 1;
            let from = |part: &&Part| counts(&program.buffers[part.from.buffer.0 as usize].name);
            collective.parts.iter().filter(from).map(|part| part.elements * others).sum()
        }
        Action::Loop { over, count, body, .. } => {
            let at = |i: u64| if *over == Over::Turns { (i, micro) } else { (turn, i) };
            (0..*count).map(|i| sent(program, body, at(i), counts)).sum()
        }
        _ => 0,
    };
    body.iter().map(of).sum()
}

/// What the runtime reads after a step, and must be the same on every rank: the losses in the order of the micro-batches, the norm, the finite flag.
pub fn results(machines: &[Machine<'_>]) -> Vec<f64> {
    let accumulation = machines[0].program().training.accumulation;
    let of = |machine: &Machine<'_>| -> Vec<f64> {
        let losses = (0..accumulation).flat_map(|i| read(machine, "loss", i));
        let scalars = ["grad_norm", "finite", "first_bad"].into_iter().flat_map(|n| read(machine, n, 0));
        losses.chain(scalars).collect()
    };
    let first = of(&machines[0]);
    assert!(machines.iter().all(|m| of(m) == first), "ranks disagree");
    first
}
