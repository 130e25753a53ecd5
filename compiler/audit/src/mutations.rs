//! One sane program, written by hand, and what the audit says when it is broken in one place.
//!
//! The program trains a chain of three square layers on two micro-batches: rows of a table go in, every layer adds `gelu(x · w)`, the
//! last x is the loss. Weight gradients of a turn, summed with those of biases, are squared on a second stream while the first goes on.

use crate::{Rule, audit};
use dspc_program::*;
use std::collections::BTreeMap;

const ROWS: u64 = 8;
const WIDTH: u64 = 16;
const LAYERS: u64 = 3;
const MICRO: u64 = 2;

/// Collects buffers at the next free offset of each arena.
struct Memory {
    arenas: Vec<Arena>,
    buffers: Vec<Buffer>,
}

impl Memory {
    fn new() -> Self {
        let names = ["inputs", "parameters", "optimizer", "gradients", "activations", "state"];
        let arenas = names.map(|name| Arena { name: name.into(), bytes: 0 }).to_vec();
        Self { arenas, buffers: vec![] }
    }

    fn add(
        &mut self,
        arena: u32,
        name: &str,
        dtype: ElementType,
        elements: u64,
        slots: u64,
        role: Role,
    ) -> Place {
        let stride = (elements * 4).next_multiple_of(64);
        let offset = self.arenas[arena as usize].bytes;
        self.arenas[arena as usize].bytes += stride * slots;
        self.buffers.push(Buffer {
            name: name.into(),
            arena,
            offset,
            dtype,
            elements,
            slots,
            stride,
            role,
            within: None,
        });
        Place::of(BufferId(self.buffers.len() as u32 - 1))
    }

    /// A view of all of a buffer's elements, in slots.
    fn view(&mut self, of: Place, name: &str, slots: u64, role: Role) -> Place {
        let root = &self.buffers[of.buffer.0 as usize];
        let elements = root.elements / slots;
        let view = Buffer { name: name.into(), elements, slots, stride: elements * 4, role, ..root.clone() };
        self.buffers.push(Buffer { within: Some(of.buffer), ..view });
        Place::of(BufferId(self.buffers.len() as u32 - 1))
    }
}

fn turn(place: Place) -> Place {
    Place { turn: true, ..place }
}

fn micro(place: Place) -> Place {
    Place { micro: true, ..place }
}

fn plus(add: u64, place: Place) -> Place {
    Place { add, ..place }
}

fn rows(access: OperandAccess, rows: u64, cols: u64) -> Operand {
    Operand { access, dtype: ElementType::F32, extent: Extent::Rows { rows, cols, stride: cols } }
}

fn kernel(symbol: &str, operands: Vec<Operand>) -> KernelEntry {
    KernelEntry { symbol: symbol.into(), items: ROWS, grain: 1, operands, uses_turn: false }
}

fn on(stream: u32, origin: &str, action: Action) -> Instruction {
    Instruction {
        action,
        stream: StreamId(stream),
        waits: vec![],
        records: None,
        when: None,
        origin: origin.into(),
    }
}

fn launch(kernel: u32, places: &[Place]) -> Action {
    Action::Launch { kernel: KernelId(kernel), args: places.iter().copied().map(Arg::At).collect() }
}

fn matrix(at: Place) -> Matrix {
    Matrix { at, stride: WIDTH, transposed: false }
}

fn transposed(at: Place) -> Matrix {
    Matrix { transposed: true, ..matrix(at) }
}

fn product(m: u64, n: u64, k: u64, [a, b, c]: [Matrix; 3]) -> Gemm {
    Gemm { m, n, k, a, b, c, accumulate: false, tf32: false, fused: None, own: None, epilogue: None }
}

fn repeat(over: Over, count: u64, reverse: bool, body: Vec<Instruction>) -> Instruction {
    on(0, "h", Action::Loop { over, count, reverse, body })
}

/// Kernels by number.
const EMBED: u32 = 0;
const GELU: u32 = 1;
const ADD: u32 = 2;
const LOSS: u32 = 3;
const SQUARES: u32 = 4;
const NORM: u32 = 5;
const ADAMW: u32 = 6;

fn kernels() -> Vec<KernelEntry> {
    use OperandAccess::{Read, Update, Write};
    let ids = Operand { dtype: ElementType::I32, ..rows(Read, ROWS, 1) };
    let table = Operand { extent: Extent::Slot, ..rows(Read, 1, 1) };
    let (x, scalar) = (|access| rows(access, ROWS, WIDTH), |access| rows(access, 1, 1));
    let weights = |access| rows(access, LAYERS * WIDTH, WIDTH);
    vec![
        kernel("embed", vec![ids, table, x(Write)]),
        kernel("gelu", vec![x(Read), x(Write)]),
        kernel("add", vec![x(Read), x(Read), x(Write)]),
        kernel("loss", vec![x(Read), ids, scalar(Write), x(Write)]),
        kernel("squares", vec![rows(Read, WIDTH, WIDTH), scalar(Write)]),
        kernel("norm", vec![rows(Read, LAYERS, 1), scalar(Write)]),
        kernel("adamw", vec![weights(Read), scalar(Read), weights(Update), weights(Update)]),
    ]
}

fn sane() -> Program {
    let mut memory = Memory::new();
    let (f32, i32, inner) = (ElementType::F32, ElementType::I32, Role::Inner);
    let tokens = memory.add(0, "tokens", i32, ROWS, MICRO, Role::Tokens);
    let targets = memory.add(0, "targets", i32, ROWS, MICRO, Role::Targets);
    let table = memory.add(1, "wte", f32, 5 * WIDTH, 1, Role::Param);
    let flat = memory.add(1, "flat", f32, LAYERS * WIDTH * WIDTH, 1, inner);
    let w = memory.view(flat, "h.*.weight", LAYERS, Role::Param);
    let moment = memory.add(2, "h.*.weight.m", f32, WIDTH * WIDTH, LAYERS, Role::Moment);
    let flat_d = memory.add(3, "flat.d", f32, LAYERS * WIDTH * WIDTH, 1, inner);
    let dw = memory.view(flat_d, "h.*.weight.d", LAYERS, inner);
    let db = memory.add(3, "h.*.bias.d", f32, WIDTH, LAYERS, inner);
    let x = memory.add(4, "x", f32, ROWS * WIDTH, LAYERS + 1, inner);
    let h = memory.add(4, "h", f32, ROWS * WIDTH, 1, inner);
    let a = memory.add(4, "a", f32, ROWS * WIDTH, LAYERS, inner);
    let dx = memory.add(4, "dx", f32, ROWS * WIDTH, 1, inner);
    let norms = memory.add(4, "norms", f32, 1, LAYERS, inner);
    let loss = memory.add(5, "loss", f32, 1, MICRO, Role::Loss);
    let norm = memory.add(5, "norm", f32, 1, 1, Role::GradNorm);
    let flat_norms = memory.add(4, "norms.flat", f32, LAYERS, 1, inner);

    let mut up = product(ROWS, WIDTH, WIDTH, [matrix(turn(x)), matrix(turn(w)), matrix(h)]);
    let args = vec![Arg::At(h), Arg::At(turn(a))];
    up.epilogue = Some(Epilogue { kernel: KernelId(GELU), args, rows_per_item: 1 });
    let embed = on(0, "wte", launch(EMBED, &[micro(tokens), table, x]));
    let forward = vec![
        on(0, "h.*.up", Action::Gemm(up)),
        on(0, "h.*.add", launch(ADD, &[turn(x), turn(a), turn(plus(1, x))])),
    ];
    let compare = on(0, "loss", launch(LOSS, &[plus(LAYERS, x), micro(targets), micro(loss), dx]));

    let mut gradient = product(WIDTH, WIDTH, ROWS, [transposed(turn(x)), matrix(dx), matrix(turn(dw))]);
    gradient.accumulate = true;
    gradient.fused = Some(Fused::BiasGradient { sum: turn(db) });
    let mut gradient = on(0, "h.*.dw", Action::Gemm(gradient));
    gradient.records = Some(EventId(0));
    let mut squares = on(1, "h.*.squares", launch(SQUARES, &[turn(dw), turn(norms)]));
    squares.waits = vec![EventId(0)];
    squares.records = Some(EventId(1));
    let mut gather = on(1, "norms", launch(NORM, &[Place::of(flat_norms.buffer), norm]));
    gather.records = Some(EventId(2));
    let mut adamw = on(0, "adamw", launch(ADAMW, &[flat_d, norm, flat, moment]));
    adamw.waits = vec![EventId(2)];

    let clear = on(0, "flat.d", Action::Zero { at: flat_d });
    let step = vec![
        embed.clone(),
        repeat(Over::Turns, LAYERS, false, forward.clone()),
        compare.clone(),
        repeat(Over::Turns, LAYERS, true, vec![gradient]),
    ];
    let flatten = on(1, "norms.flat", Action::Zero { at: flat_norms });
    let train = vec![
        clear,
        repeat(Over::MicroBatches, MICRO, false, step),
        repeat(Over::Turns, LAYERS, false, vec![squares]),
        flatten,
        gather,
        adamw,
    ];
    let first = |mut instruction: Instruction| {
        if let Action::Launch { args, .. } = &mut instruction.action {
            for arg in args {
                if let Arg::At(place) = arg {
                    place.micro = false;
                }
            }
        }
        instruction
    };
    let evaluate = vec![first(embed), repeat(Over::Turns, LAYERS, false, forward), first(compare)];
    let peak_bytes = memory.arenas[4].bytes;
    let param = |name: String, dims, place: Place, slot| Param {
        name,
        dims,
        init: Init::Normal(0.02),
        site: slot as u32,
        buffer: place.buffer,
        slot,
        shard: None,
        grid_row: 0,
        moments: vec![],
    };
    let mut params = vec![param("wte".into(), vec![5, WIDTH], table, 0)];
    params.extend((0..LAYERS).map(|n| param(format!("h.{n}.weight"), vec![WIDTH, WIDTH], w, n)));
    Program {
        format_version: FORMAT_VERSION,
        dspc: "0.1.0".into(),
        name: "chain".into(),
        spec_hash: String::new(),
        family: Family::Cuda,
        mesh: vec![("data".into(), 1)],
        groups: vec![],
        zero_stage: 0,
        deterministic: false,
        model: Model {
            architecture: "chain".into(),
            values: BTreeMap::new(),
            parameters: 0,
            flops_per_token: 0.0,
        },
        data: Data { text: vec![], tokenizer: Tokenizer::Bytes, sequence: ROWS, holdout: 0.0, vocab: 5 },
        training: Training {
            batch: MICRO,
            micro_batch: 1,
            accumulation: MICRO,
            steps: 1,
            seed: 0,
            eval_every: 0,
            eval_batches: 0,
            checkpoint_every: 0,
            checkpoint_keep: 0,
            log_every: 1,
            sample: None,
            schedule: LrSchedule::Constant { lr: 1e-3, warmup: 0 },
        },
        params,
        arenas: memory.arenas,
        buffers: memory.buffers,
        tables: vec![],
        kernels: kernels(),
        targets: vec![],
        train: Entry { body: train, peak_bytes },
        evaluate: Entry { body: evaluate, peak_bytes },
        logits: None,
        refresh: None,
    }
}

/// The instruction at a path of the training entry.
fn at<'a>(program: &'a mut Program, path: &[usize]) -> &'a mut Instruction {
    let (first, rest) = path.split_first().expect("a path has a step");
    rest.iter().fold(&mut program.train.body[*first], |instruction, index| match &mut instruction.action {
        Action::Loop { body, .. } => &mut body[*index],
        other => panic!("{other:?} has no body"),
    })
}

/// Argument `n` of the launch at a path.
fn arg<'a>(program: &'a mut Program, path: &[usize], n: usize) -> &'a mut Place {
    match &mut at(program, path).action {
        Action::Launch { args, .. } => match &mut args[n] {
            Arg::At(place) => place,
            Arg::Turn => panic!("argument {n} is the turn"),
        },
        other => panic!("{other:?} has no arguments"),
    }
}

fn gemm<'a>(program: &'a mut Program, path: &[usize]) -> &'a mut Gemm {
    match &mut at(program, path).action {
        Action::Gemm(gemm) => gemm,
        other => panic!("{other:?} is no matrix product"),
    }
}

fn for_each_gemm(body: &mut [Instruction], change: &mut dyn FnMut(&mut Gemm)) {
    for instruction in body {
        match &mut instruction.action {
            Action::Gemm(gemm) => change(gemm),
            Action::Loop { body, .. } => for_each_gemm(body, change),
            Action::Launch { .. } | Action::Zero { .. } | Action::Collective(_) => {}
        }
    }
}

fn count<'a>(program: &'a mut Program, path: &[usize]) -> &'a mut u64 {
    match &mut at(program, path).action {
        Action::Loop { count, .. } => count,
        other => panic!("{other:?} is no loop"),
    }
}

fn buffer<'a>(program: &'a mut Program, name: &str) -> &'a mut Buffer {
    program.buffers.iter_mut().find(|b| b.name == name).expect("the buffer is there")
}

fn id(program: &Program, name: &str) -> BufferId {
    BufferId(program.buffers.iter().position(|b| b.name == name).expect("the buffer is there") as u32)
}

#[test]
fn the_sane_program_has_no_finding() {
    assert_eq!(audit(&sane()), []);
}

type Mutation = (&'static str, Rule, fn(&mut Program));

const FORWARD_UP: &[usize] = &[1, 1, 0];
const FORWARD_ADD: &[usize] = &[1, 1, 1];
const LOSS_AT: &[usize] = &[1, 2];
const BACKWARD: &[usize] = &[1, 3, 0];
const SQUARES_AT: &[usize] = &[2, 0];

#[rustfmt::skip] // A table.
const MUTATIONS: &[Mutation] = &[
    ("another format", Rule::FormatVersion, |p| p.format_version += 1),
    ("two buffers of one name", Rule::NameTaken, |p| buffer(p, "h").name = "a".into()),
    ("two parameters of one name", Rule::NameTaken, |p| p.params[1].name = "h.1.weight".into()),
    ("a buffer of no arena", Rule::IdOutOfRange, |p| buffer(p, "h").arena = 6),
    ("a kernel that is not there", Rule::IdOutOfRange, |p| p.kernels.truncate(6)),
    ("a place of no buffer", Rule::IdOutOfRange, |p| arg(p, LOSS_AT, 3).buffer = BufferId(99)),
    ("an arena too small", Rule::BufferOutsideArena, |p| p.arenas[4].bytes -= 64),
    ("an offset beyond 64 bits", Rule::BufferOutsideArena, |p| buffer(p, "h").offset = u64::MAX - 63),
    ("a buffer off its boundary", Rule::BufferMisaligned, |p| buffer(p, "x").offset += 4),
    ("slots closer than they are long", Rule::BufferSlots, |p| buffer(p, "a").stride = 64),
    ("a buffer without slots", Rule::BufferSlots, |p| buffer(p, "h").slots = 0),
    ("scratch on a parameter", Rule::RuntimeBufferShared, |p| { let h = buffer(p, "h"); (h.arena, h.offset) = (1, 64); }),
    ("a view of no buffer", Rule::View, |p| buffer(p, "h.*.weight").within = Some(BufferId(99))),
    ("a view of a view", Rule::View, |p| { let view = id(p, "h.*.weight"); buffer(p, "h.*.weight.m").within = Some(view); }),
    ("a view outside", Rule::View, |p| { let state = id(p, "x"); buffer(p, "h.*.weight").within = Some(state); }),
    ("a view past the end", Rule::View, |p| buffer(p, "flat").elements -= 1),
    ("views that overlap", Rule::View, |p| { let other = Buffer { name: "w".into(), ..buffer(p, "h.*.weight").clone() }; p.buffers.push(other); }),
    ("a parameter's slot beyond the last", Rule::ParamSlot, |p| p.params[3].slot = LAYERS),
    ("two parameters of one slot", Rule::ParamSlot, |p| p.params[2].slot = 0),
    ("a parameter of another size", Rule::ParamSlot, |p| p.params[0].dims = vec![6, WIDTH]),
    ("a parameter in scratch", Rule::ParamSlot, |p| p.params[0].buffer = id(p, "h")),
    ("a table that nothing fills", Rule::TableBuffer, |p| buffer(p, "h").role = Role::Table),
    ("a table in scratch", Rule::TableBuffer, |p| p.tables.push(Table { buffer: id(p, "h"), formula: Formula::Constant(1.0) })),
    ("micro-batches inside turns", Rule::LoopNesting, |p| {
        let inner = on(0, "x", Action::Loop { over: Over::MicroBatches, count: MICRO, reverse: false, body: vec![] });
        p.train.body[0] = repeat(Over::Turns, 1, false, vec![inner]);
    }),
    ("turns inside turns", Rule::LoopNesting, |p| { let inner = p.train.body[2].clone(); p.train.body[2] = repeat(Over::Turns, 2, false, vec![inner]); }),
    ("a loop of no turns", Rule::LoopNesting, |p| *count(p, &[1, 1]) = 0),
    ("a loop of too many turns", Rule::LoopNesting, |p| *count(p, &[1, 1]) = u64::MAX),
    ("fewer micro-batches than planned", Rule::LoopNesting, |p| *count(p, &[1]) = 1),
    ("an argument too few", Rule::Arguments, |p| match &mut at(p, FORWARD_ADD).action { Action::Launch { args, .. } => drop(args.pop()), _ => unreachable!() }),
    ("an epilogue over other rows", Rule::Arguments, |p| gemm(p, FORWARD_UP).epilogue.as_mut().unwrap().rows_per_item = 3),
    ("a fused product on a CPU", Rule::Arguments, |p| p.family = Family::Cpu),
    ("a bias of no buffer", Rule::IdOutOfRange, |p| gemm(p, BACKWARD).fused = Some(Fused::Bias { bias: Place::of(BufferId(99)) })),
    ("a product's own kernel that is none", Rule::IdOutOfRange, |p| gemm(p, BACKWARD).own = Some(OwnProduct { kernel: KernelId(99), workspace: None })),
    ("a product's own kernel of other operands", Rule::Arguments, |p| gemm(p, BACKWARD).own = Some(OwnProduct { kernel: KernelId(ADD), workspace: None })),
    ("a turn that the kernel does not take", Rule::Arguments, |p| match &mut at(p, FORWARD_ADD).action { Action::Launch { args, .. } => args.push(Arg::Turn), _ => unreachable!() }),
    ("a turn outside a loop", Rule::LoopVariable, |p| arg(p, &[5], 2).turn = true),
    ("a micro-batch outside a loop", Rule::LoopVariable, |p| arg(p, &[5], 2).micro = true),
    ("half as many bytes an element", Rule::ElementType, |p| buffer(p, "dx").dtype = ElementType::Bf16),
    ("a place past the end", Rule::OutsideBuffer, |p| arg(p, LOSS_AT, 3).elements = 1),
    ("a place beyond 64 bits", Rule::OutsideBuffer, |p| arg(p, LOSS_AT, 3).elements = u64::MAX / 4),
    ("a matrix with too wide rows", Rule::OutsideBuffer, |p| gemm(p, FORWARD_UP).c.stride = WIDTH + 1),
    ("a matrix with too many rows", Rule::OutsideBuffer, |p| gemm(p, BACKWARD).k = ROWS + 1),
    ("a bias gradient past the end", Rule::OutsideSlot, |p| { let sum = turn(Place { elements: 1, ..Place::of(id(p, "h.*.bias.d")) }); gemm(p, BACKWARD).fused = Some(Fused::BiasGradient { sum }); }),
    ("a pre-activation with too wide rows", Rule::OutsideBuffer, |p| { let pre = Matrix { stride: WIDTH + 1, ..matrix(Place::of(id(p, "h"))) }; gemm(p, BACKWARD).fused = Some(Fused::GeluGradient { pre }); }),
    ("a bias of another type", Rule::ElementType, |p| { let bias = Place::of(id(p, "tokens")); gemm(p, BACKWARD).fused = Some(Fused::Bias { bias }); }),
    ("a matrix the wrong way round", Rule::OutsideBuffer, |p| { gemm(p, FORWARD_UP).c.transposed = true }),
    ("a turn's weights that run into the next", Rule::OutsideSlot, |p| gemm(p, FORWARD_UP).b.at.elements = 1),
    ("rows that overlap", Rule::RowsOverlap, |p| gemm(p, FORWARD_UP).c.stride = WIDTH - 1),
    ("a dropped instruction", Rule::ReadBeforeWritten, |p| drop(p.train.body.remove(0))),
    ("a slope of what is not there yet", Rule::ReadBeforeWritten, |p| { let pre = matrix(Place::of(id(p, "dx"))); gemm(p, FORWARD_UP).fused = Some(Fused::GeluGradient { pre }); }),
    ("a read before the write", Rule::ReadBeforeWritten, |p| match &mut at(p, &[1]).action { Action::Loop { body, .. } => body.swap(0, 1), _ => unreachable!() }),
    ("a read of half-written rows", Rule::ReadBeforeWritten, |p| p.kernels[EMBED as usize].operands[2] = rows(OperandAccess::Write, ROWS / 2, WIDTH)),
    ("forward turns run backward", Rule::ReadBeforeWritten, |p| match &mut at(p, &[1, 1]).action { Action::Loop { reverse, .. } => *reverse = true, _ => unreachable!() }),
    ("early reuse of a live buffer", Rule::ReadAfterOverwritten, |p| { let x = buffer(p, "x").offset; buffer(p, "dx").offset = x; }),
    ("reuse within the forward turn", Rule::ReadAfterOverwritten, |p| { let x = buffer(p, "x").offset; buffer(p, "a").offset = x; }),
    ("an epilogue's operand under the product", Rule::ReadAfterOverwritten, |p| {
        let x = Arg::At(turn(Place::of(id(p, "x"))));
        p.kernels[GELU as usize].operands.insert(1, rows(OperandAccess::Read, ROWS, WIDTH));
        for entry in [&mut p.train, &mut p.evaluate] {
            for_each_gemm(&mut entry.body, &mut |gemm| {
                if let Some(epilogue) = &mut gemm.epilogue {
                    epilogue.args.insert(1, x);
                }
            });
        }
        let x = buffer(p, "x").offset;
        buffer(p, "h").offset = x;
    }),
    ("a slot too few for what is kept", Rule::SlotReused, |p| buffer(p, "x").slots = 2),
    ("a slot too few of four", Rule::SlotReused, |p| buffer(p, "x").slots = 3),
    ("a loss for one micro-batch only", Rule::ResultMissing, |p| arg(p, LOSS_AT, 2).micro = false),
    ("a norm that nothing computes", Rule::ResultMissing, |p| { p.train.body.truncate(4); }),
    ("a loss that is overwritten", Rule::ResultMissing, |p| { let loss = buffer(p, "loss").offset; buffer(p, "norm").offset = loss; }),
    ("evaluation that trains", Rule::WriteForbidden, |p| { let adamw = p.train.body[5].clone(); p.evaluate.body.push(Instruction { waits: vec![], ..adamw }); }),
    ("evaluation that clears all parameters", Rule::WriteForbidden, |p| {
        let at = Place::of(id(p, "flat"));
        p.evaluate.body.push(on(0, "clear", Action::Zero { at }));
    }),
    ("a kernel that writes the tokens", Rule::WriteForbidden, |p| { p.kernels[EMBED as usize].operands[0].access = OperandAccess::Update }),
    ("a sum written over its shifted input", Rule::OperandsOverlap, |p| { let x = buffer(p, "x").offset; let h = buffer(p, "a"); h.offset = x + 64; }),
    ("a pre-activation over the product", Rule::OperandsOverlap, |p| {
        let (pre, bias) = (gemm(p, BACKWARD).c, turn(Place::of(id(p, "h.*.bias.d"))));
        gemm(p, BACKWARD).fused = Some(Fused::BiasGelu { bias, pre });
    }),
    ("a product over its own factor", Rule::OperandsOverlap, |p| { let c = gemm(p, FORWARD_UP).a; gemm(p, FORWARD_UP).c = c; }),
    ("an epilogue over a factor", Rule::OperandsOverlap, |p| { let a = gemm(p, FORWARD_UP).a.at; gemm(p, FORWARD_UP).epilogue.as_mut().unwrap().args[1] = Arg::At(a); }),
    ("a dropped record", Rule::WaitWithoutRecord, |p| at(p, BACKWARD).records = None),
    ("a wait for what nobody records", Rule::WaitWithoutRecord, |p| at(p, BACKWARD).waits = vec![EventId(9)]),
    ("a dropped wait of the second stream", Rule::Race, |p| at(p, SQUARES_AT).waits.clear()),
    ("a dropped wait of the first stream", Rule::Race, |p| at(p, &[5]).waits.clear()),
    ("a record before the work is done", Rule::Race, |p| { at(p, &[4]).records = None; at(p, SQUARES_AT).records = Some(EventId(2)); }),
    ("work moved to another stream", Rule::Race, |p| at(p, FORWARD_ADD).stream = StreamId(1)),
    ("a peak that is too low", Rule::PeakUnderstated, |p| p.train.peak_bytes -= 64),
];

#[test]
fn every_mutation_is_caught_by_its_rule() {
    let mut missed = vec![];
    for (name, rule, mutate) in MUTATIONS {
        let mut program = sane();
        mutate(&mut program);
        let findings = audit(&program);
        if !findings.iter().any(|f| f.rule == *rule) {
            let found: Vec<String> = findings.iter().map(ToString::to_string).collect();
            missed.push(format!("{name}: wanted {rule:?}, found {found:#?}"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn every_rule_has_a_mutation() {
    let mut caught: Vec<Rule> = MUTATIONS.iter().map(|(_, rule, _)| *rule).collect();
    caught.sort();
    caught.dedup();
    let last = Rule::PeakUnderstated as usize;
    assert_eq!(caught.len(), last + 1, "{caught:?}");
}

#[test]
fn an_instruction_in_a_loop_answers_once_for_a_rule() {
    let mut program = sane();
    gemm(&mut program, BACKWARD).k = ROWS + 1;
    let train: Vec<String> =
        audit(&program).iter().map(ToString::to_string).filter(|f| f.contains("leaves its buffer")).collect();
    assert_eq!(
        train,
        [
            "train[1.3.0] h.*.dw, turn 2, micro-batch 0: an operand leaves its buffer: `dx` ends at byte 4608 and byte 4671 is touched"
        ]
    );
}

#[test]
fn work_in_place_is_sane() {
    let mut program = sane();
    let h = Place::of(id(&program, "h"));
    gemm(&mut program, FORWARD_UP).epilogue.as_mut().unwrap().args[1] = Arg::At(h);
    *arg(&mut program, FORWARD_ADD, 1) = h;
    let up_in_evaluation = match &mut program.evaluate.body[1].action {
        Action::Loop { body, .. } => body,
        other => panic!("{other:?} is no loop"),
    };
    up_in_evaluation.clone_from(match &program.train.body[1].action {
        Action::Loop { body, .. } => match &body[1].action {
            Action::Loop { body, .. } => body,
            other => panic!("{other:?} is no loop"),
        },
        other => panic!("{other:?} is no loop"),
    });
    assert_eq!(audit(&program), []);
}

#[test]
fn the_gap_between_views_is_zero_from_the_start() {
    let mut program = sane();
    buffer(&mut program, "h.*.weight.d").slots = LAYERS - 1;
    *count(&mut program, &[1, 3]) = LAYERS - 1;
    *count(&mut program, &[2]) = LAYERS - 1;
    gemm(&mut program, BACKWARD).accumulate = false;
    program.kernels[NORM as usize].operands[0] = rows(OperandAccess::Read, LAYERS - 1, 1);
    // Without the clearing, the flat gradient has a third that nothing writes.
    program.train.body[0].action = Action::Zero { at: Place::of(id(&program, "h")) };
    assert_eq!(audit(&program), []);
}

#[test]
fn many_micro_batches_are_proven_as_three() {
    let mut program = sane();
    program.training.accumulation = 1_000_000_000;
    *count(&mut program, &[1]) = 1_000_000_000;
    let findings = audit(&program);
    assert_eq!(findings, []);
}

/// Every number of a value, by JSON pointer.
fn numbers(value: &serde_json::Value, at: String, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Number(_) => found.push(at),
        serde_json::Value::Array(all) => {
            all.iter().enumerate().for_each(|(n, one)| numbers(one, format!("{at}/{n}"), found))
        }
        serde_json::Value::Object(all) => {
            all.iter().for_each(|(key, one)| numbers(one, format!("{at}/{key}"), found))
        }
        _ => {}
    }
}

#[test]
fn no_number_in_an_artifact_makes_the_audit_panic() {
    let text = serde_json::to_value(sane()).unwrap();
    let mut places = vec![];
    numbers(&text, String::new(), &mut places);
    assert!(places.len() > 300, "{}", places.len());
    for place in places {
        for number in [0, 1, u64::from(u32::MAX), u64::MAX / 4, u64::MAX] {
            let mut changed = text.clone();
            *changed.pointer_mut(&place).unwrap() = number.into();
            // A number too big for its field is refused by the reader already.
            if let Ok(program) = serde_json::from_value::<Program>(changed) {
                audit(&program);
            }
        }
    }
}
