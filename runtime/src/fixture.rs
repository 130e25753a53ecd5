//! Small programs made by hand, for tests: kernels from a few lines of C, so that the runtime is tested without the compiler.

use crate::artifact::{self, Artifact, KernelFile};
use dspc_program::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A program in the making. One arena holds all buffers.
pub(crate) struct Builder {
    pub(crate) program: Program,
    source: String,
}

impl Builder {
    pub(crate) fn new() -> Self {
        let program = Program {
            format_version: FORMAT_VERSION,
            dspc: "test".into(),
            name: "tiny".into(),
            spec_hash: "5ec".into(),
            family: Family::Cpu,
            mesh: vec![("data".into(), 1)],
            groups: vec![],
            zero_stage: 0,
            deterministic: false,
            model: Model {
                architecture: "tiny".into(),
                values: BTreeMap::new(),
                parameters: 0,
                flops_per_token: 0.0,
            },
            data: Data {
                text: vec!["text/*.txt".into()],
                tokenizer: Tokenizer::Bytes,
                sequence: 4,
                holdout: 0.0,
                vocab: 256,
            },
            training: Training {
                batch: 1,
                micro_batch: 1,
                accumulation: 1,
                steps: 1,
                seed: 1,
                eval_every: 0,
                eval_batches: 0,
                checkpoint_every: 0,
                checkpoint_keep: 0,
                log_every: 1,
                sample: None,
                schedule: LrSchedule::Constant { lr: 0.1, warmup: 0 },
            },
            params: Vec::new(),
            arenas: vec![Arena { name: "all".into(), bytes: 0 }],
            buffers: Vec::new(),
            tables: Vec::new(),
            kernels: Vec::new(),
            targets: Vec::new(),
            train: Entry::default(),
            evaluate: Entry::default(),
            logits: None,
            refresh: None,
        };
        Self { program, source: "#include <stdint.h>\n#include <math.h>\n".into() }
    }

    pub(crate) fn buffer(
        &mut self,
        name: &str,
        dtype: ElementType,
        elements: u64,
        slots: u64,
        role: Role,
    ) -> BufferId {
        let stride = (elements * 4).next_multiple_of(64);
        let offset = self.program.arenas[0].bytes;
        self.program.arenas[0].bytes += stride * slots;
        self.program.buffers.push(Buffer {
            name: name.into(),
            arena: 0,
            offset,
            dtype,
            elements,
            slots,
            stride,
            role,
            within: None,
        });
        BufferId(self.program.buffers.len() as u32 - 1)
    }

    /// A kernel whose operands may touch anything; its C body sees `args`, `begin` and `end`.
    pub(crate) fn kernel(
        &mut self,
        symbol: &str,
        items: u64,
        operands: &[ElementType],
        uses_turn: bool,
        body: &str,
    ) -> KernelId {
        self.source +=
            &format!("void {symbol}(void *const *args, int64_t begin, int64_t end) {{\n{body}\n}}\n");
        let operands = operands
            .iter()
            .map(|&dtype| Operand { access: OperandAccess::Update, dtype, extent: Extent::Slot })
            .collect();
        self.program.kernels.push(KernelEntry {
            symbol: symbol.into(),
            items,
            grain: 1,
            operands,
            uses_turn,
        });
        KernelId(self.program.kernels.len() as u32 - 1)
    }

    /// Compiles the kernels to `kernels.so` in a folder.
    pub(crate) fn compile(&self, dir: &Path) -> PathBuf {
        let (source, object) = (dir.join("kernels.c"), dir.join("kernels.so"));
        std::fs::write(&source, &self.source).unwrap();
        let output = std::process::Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-ffp-contract=off", "-o"])
            .args([&object, &source])
            .arg("-lm")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        object
    }
}

pub(crate) fn instruction(action: Action) -> Instruction {
    Instruction {
        action,
        stream: StreamId(0),
        waits: Vec::new(),
        records: None,
        when: None,
        origin: "here".into(),
    }
}

pub(crate) fn launch(kernel: KernelId, args: &[Arg]) -> Instruction {
    instruction(Action::Launch { kernel, args: args.to_vec() })
}

pub(crate) fn repeat(over: Over, count: u64, reverse: bool, body: Vec<Instruction>) -> Instruction {
    instruction(Action::Loop { over, count, reverse, body })
}

pub(crate) fn at(buffer: BufferId) -> Arg {
    Arg::At(Place::of(buffer))
}

/// Spreads a program over ranks of one data axis.
pub(crate) fn across(b: &mut Builder, world: u64) {
    b.program.mesh = vec![("data".into(), world)];
    b.program.groups = vec![RankGroup { axes: vec!["data".into()], size: world }];
}

/// A kernel that adds up a shard of every rank, as a binary tree over neighbours.
pub(crate) fn add_up(b: &mut Builder, world: u64, elements: u64, dtype: ElementType) -> KernelId {
    let body = format!(
        "for (int64_t i = begin; i < end; i++) {{ float x[{world}]; int n = {world}; \
         for (int r = 0; r < n; r++) x[r] = ((float *)args[r])[i]; \
         for (; n > 1; n = (n + 1) / 2) for (int r = 0; r < n; r += 2) x[r / 2] = r + 1 < n ? x[r] + x[r + 1] : x[r]; \
         ((float *)args[{world}])[i] = x[0]; }}"
    );
    b.kernel(&format!("add_up_{world}"), elements, &vec![dtype; world as usize + 1], false, &body)
}

/// A table of next-byte logits, trained with momentum: the smallest model that uses every role.
///
/// Batch 4 as two micro-batches of 2, sequence 4, 20 steps; text and artifact are written into `dir`.
pub(crate) fn bigram(dir: &Path) -> Artifact {
    use ElementType::{F32, I32};
    const V: u64 = 256;
    let mut b = Builder::new();
    let table = b.buffer("table", F32, V * V, 1, Role::Param);
    let momentum = b.buffer("table.momentum", F32, V * V, 1, Role::Moment);
    let gradient = b.buffer("table.d", F32, V * V, 1, Role::Inner);
    let tokens = b.buffer("tokens", I32, 8, 2, Role::Tokens);
    let targets = b.buffer("targets", I32, 8, 2, Role::Targets);
    let inverse = b.buffer("inverse", F32, 1, 1, Role::InvTargets);
    let rng = b.buffer("rng", I32, 4, 2, Role::Rng);
    let applied = b.buffer("applied", I32, 1, 1, Role::AppliedSteps);
    let loss = b.buffer("loss", F32, 1, 2, Role::Loss);
    let norm = b.buffer("norm", F32, 1, 1, Role::GradNorm);
    let finite = b.buffer("finite", F32, 1, 1, Role::Finite);
    let rates = b.buffer("rates", F32, 64, 1, Role::Table);
    let logits = b.buffer("logits", F32, 4 * V, 1, Role::Logits);
    let softmax = "const int *x = args[0], *y = args[1]; const float *inv = args[2], *w = args[3]; float *loss = args[4]; \
        *loss = 0; for (int i = 0; i < 8; i++) { if (y[i] < 0) continue; const float *row = w + 256 * x[i]; \
        float top = row[0], sum = 0; for (int j = 0; j < 256; j++) top = fmaxf(top, row[j]); \
        for (int j = 0; j < 256; j++) sum += expf(row[j] - top); *loss += *inv * (logf(sum) + top - row[y[i]]);";
    let evaluate = b.kernel("evaluate", 1, &[I32, I32, F32, F32, F32], false, &format!("{softmax} }}"));
    let forward = b.kernel(
        "forward",
        1,
        &[I32, I32, F32, F32, F32, F32, I32],
        false,
        &format!(
            "{softmax} float *d = (float *)args[5] + 256 * x[i]; \
             for (int j = 0; j < 256; j++) d[j] += *inv * (expf(row[j] - top) / sum - (j == y[i])); }}"
        ),
    );
    let update = b.kernel(
        "update",
        1,
        &[F32, F32, F32, F32, I32, F32, F32],
        false,
        "float *w = args[0], *d = args[1], *m = args[2], *rates = args[3]; int *applied = args[4]; float sum = 0; \
         for (int i = 0; i < 65536; i++) sum += d[i] * d[i]; *(float *)args[5] = sqrtf(sum); \
         *(float *)args[6] = isfinite(sum); if (!isfinite(sum)) return; \
         for (int i = 0; i < 65536; i++) { m[i] = 0.9f * m[i] + d[i]; w[i] -= rates[*applied] * m[i]; } ++*applied;",
    );
    let read = b.kernel(
        "read",
        4,
        &[I32, F32, F32],
        false,
        "for (int64_t i = begin; i < end; i++) for (int j = 0; j < 256; j++) \
         ((float *)args[2])[256 * i + j] = ((float *)args[1])[256 * ((int *)args[0])[i] + j];",
    );
    let each = |buffer| Arg::At(Place { micro: true, ..Place::of(buffer) });
    let micro = [each(tokens), each(targets), at(inverse), at(table), each(loss), at(gradient), each(rng)];
    b.program.train.body = vec![
        instruction(Action::Zero { at: Place::of(gradient) }),
        repeat(Over::MicroBatches, 2, false, vec![launch(forward, &micro)]),
        launch(
            update,
            &[at(table), at(gradient), at(momentum), at(rates), at(applied), at(norm), at(finite)],
        ),
    ];
    b.program.evaluate.body =
        vec![launch(evaluate, &[at(tokens), at(targets), at(inverse), at(table), at(loss)])];
    let body = vec![launch(read, &[at(tokens), at(table), at(logits)])];
    b.program.logits = Some(Entry { body, peak_bytes: 0 });
    b.program.tables = vec![Table { buffer: rates, formula: Formula::LearningRate }];
    b.program.params = vec![Param {
        name: "table".into(),
        dims: vec![V, V],
        init: Init::Normal(0.02),
        site: 1,
        buffer: table,
        slot: 0,
        shard: None,
        grid_row: 0,
        moments: vec![Moment {
            name: "momentum".into(),
            dims: vec![V, V],
            buffer: momentum,
            slot: 0,
            shard: None,
        }],
    }];
    b.program.data.holdout = 0.1;
    b.program.training = Training {
        batch: 4,
        micro_batch: 2,
        accumulation: 2,
        steps: 20,
        log_every: 5,
        schedule: LrSchedule::Cosine { peak: 2.0, warmup: 2, floor: 0.1, steps: 20 },
        sample: Some(Sample { prompt: "to".into(), tokens: 8 }),
        ..b.program.training
    };
    finish(b, dir, 12)
}

/// The table of next-byte logits on several ranks: the table, its momentum and the gradient's sum are shared out, and the table is gathered where it is read.
///
/// Batch 8 as micro-batches of 2, whose gradients are added as a binary tree whichever rank has which: 1, 2 and 4 ranks come to the same bits.
pub(crate) fn bigram_of_ranks(dir: &Path, world: u64) -> Artifact {
    use ElementType::{F32, I32};
    const V: u64 = 256;
    /// Elements before the table in the range that is shared out.
    const START: u64 = 100;
    let accumulation = 4 / world;
    let mut b = Builder::new();
    across(&mut b, world);
    let shard = (V * V + START).div_ceil(world).next_multiple_of(16);
    let table = b.buffer("table", F32, shard, 1, Role::Param);
    let momentum = b.buffer("momentum", F32, shard, 1, Role::Moment);
    let whole = b.buffer("whole", F32, shard * world, 1, Role::Inner);
    let leaf = b.buffer("leaf", F32, shard * world, 1, Role::Inner);
    let arrived = b.buffer("arrived", F32, shard, 1, Role::Inner);
    let counter = b.buffer("counter", F32, shard, 2, Role::Inner);
    let summed = b.buffer("summed", F32, shard * world, 1, Role::Inner);
    let tokens = b.buffer("tokens", I32, 8, accumulation, Role::Tokens);
    let targets = b.buffer("targets", I32, 8, accumulation, Role::Targets);
    let inverse = b.buffer("inverse", F32, 1, 1, Role::InvTargets);
    let own_loss = b.buffer("loss.own", F32, 1, accumulation, Role::Inner);
    let loss = b.buffer("loss", F32, world, accumulation, Role::Loss);
    let applied = b.buffer("applied", I32, 1, 1, Role::AppliedSteps);
    let norm = b.buffer("norm", F32, 1, 1, Role::GradNorm);
    let finite = b.buffer("finite", F32, 1, 1, Role::Finite);
    let rates = b.buffer("rates", F32, 64, 1, Role::Table);
    let logits = b.buffer("logits", F32, 4 * V, 1, Role::Logits);
    let softmax = "const int *x = args[0], *y = args[1]; const float *inv = args[2], *w = args[3]; float *loss = args[4]; \
        *loss = 0; for (int i = 0; i < 8; i++) { if (y[i] < 0) continue; const float *row = w + 256 * x[i]; \
        float top = row[0], sum = 0; for (int j = 0; j < 256; j++) top = fmaxf(top, row[j]); \
        for (int j = 0; j < 256; j++) sum += expf(row[j] - top); *loss += *inv * (logf(sum) + top - row[y[i]]);";
    let evaluate = b.kernel("evaluate", 1, &[I32, I32, F32, F32, F32], false, &format!("{softmax} }}"));
    let forward = b.kernel(
        "forward",
        1,
        &[I32, I32, F32, F32, F32, F32],
        false,
        &format!(
            "{softmax} float *d = (float *)args[5] + 256 * x[i]; \
             for (int j = 0; j < 256; j++) d[j] += *inv * (expf(row[j] - top) / sum - (j == y[i])); }}"
        ),
    );
    let add = b.kernel(
        "add",
        shard,
        &[F32, F32],
        false,
        "for (int64_t i = begin; i < end; i++) ((float *)args[1])[i] += ((float *)args[0])[i];",
    );
    let keep = b.kernel(
        "keep",
        shard,
        &[F32, F32],
        false,
        "for (int64_t i = begin; i < end; i++) ((float *)args[0])[i] = ((float *)args[1])[i];",
    );
    let update = b.kernel(
        "update",
        1,
        &[F32, F32, F32, F32, I32, F32, F32, F32],
        false,
        &format!(
            "float *w = args[0], *d = args[1], *m = args[2], *rates = args[3], *all = args[7]; int *applied = args[4]; float sum = 0; \
             for (int i = 0; i < 65536; i++) sum += all[i] * all[i]; *(float *)args[5] = sqrtf(sum); \
             *(float *)args[6] = isfinite(sum); if (!isfinite(sum)) return; \
             for (int i = 0; i < {shard}; i++) {{ m[i] = 0.9f * m[i] + d[i]; w[i] -= rates[*applied] * m[i]; }} ++*applied;"
        ),
    );
    let read = b.kernel(
        "read",
        4,
        &[I32, F32, F32],
        false,
        "for (int64_t i = begin; i < end; i++) for (int j = 0; j < 256; j++) \
         ((float *)args[2])[256 * i + j] = ((float *)args[1])[256 * ((int *)args[0])[i] + j];",
    );
    let sum = add_up(&mut b, world, shard, F32);
    let exchange = |kind, from, to, elements| {
        let parts = vec![Part { from: Place::of(from), to: Place::of(to), elements }];
        instruction(Action::Collective(Collective { kind, group: 0, parts }))
    };
    let gather = exchange(CollectiveKind::AllGather, table, whole, shard);
    let losses = |slots: u64| {
        let at = |buffer, add| Place { add, ..Place::of(buffer) };
        let part = |slot| Part { from: at(own_loss, slot), to: at(loss, slot), elements: 1 };
        let parts = (0..slots).map(part).collect();
        instruction(Action::Collective(Collective { kind: CollectiveKind::AllGather, group: 0, parts }))
    };
    let each = |buffer| Arg::At(Place { micro: true, ..Place::of(buffer) });
    let inside = |buffer| Arg::At(Place { elements: START, ..Place::of(buffer) });
    let micro = [each(tokens), each(targets), at(inverse), inside(whole), each(own_loss), inside(leaf)];
    let mut turn = vec![
        instruction(Action::Zero { at: Place::of(leaf) }),
        launch(forward, &micro),
        exchange(CollectiveKind::ReduceScatter { sum, tree: true }, leaf, arrived, shard),
    ];
    for level in 0..accumulation.ilog2() {
        let every = 2 << level;
        let held = Arg::At(Place { add: u64::from(level), ..Place::of(counter) });
        for (kernel, place) in [(add, every - 1), (keep, every / 2 - 1)] {
            let mut step = launch(kernel, &[held, at(arrived)]);
            step.when = Some(When::each(Over::MicroBatches, every, place));
            turn.push(step);
        }
    }
    let own = Arg::At(Place { shard: Some(Shard { group: 0, elements: shard }), ..Place::of(summed) });
    b.program.train.body = vec![
        gather.clone(),
        repeat(Over::MicroBatches, accumulation, false, turn),
        losses(accumulation),
        exchange(CollectiveKind::AllGather, arrived, summed, shard),
        launch(
            update,
            &[at(table), own, at(momentum), at(rates), at(applied), at(norm), at(finite), inside(summed)],
        ),
    ];
    b.program.evaluate.body = vec![
        gather.clone(),
        launch(evaluate, &[at(tokens), at(targets), at(inverse), inside(whole), at(own_loss)]),
        losses(1),
    ];
    let body = vec![gather, launch(read, &[at(tokens), inside(whole), at(logits)])];
    b.program.logits = Some(Entry { body, peak_bytes: 0 });
    b.program.tables = vec![Table { buffer: rates, formula: Formula::LearningRate }];
    let shard = Some(ParamShard { of: Shard { group: 0, elements: shard }, start: START });
    let dims = vec![V, V];
    b.program.params = vec![Param {
        name: "table".into(),
        dims: dims.clone(),
        init: Init::Normal(0.02),
        site: 1,
        buffer: table,
        slot: 0,
        shard,
        grid_row: 0,
        moments: vec![Moment { name: "momentum".into(), dims, buffer: momentum, slot: 0, shard }],
    }];
    b.program.data.holdout = 0.1;
    b.program.training = Training {
        batch: 8,
        micro_batch: 2,
        accumulation,
        steps: 20,
        eval_every: 10,
        log_every: 1,
        schedule: LrSchedule::Cosine { peak: 2.0, warmup: 2, floor: 0.1, steps: 20 },
        sample: Some(Sample { prompt: "to".into(), tokens: 8 }),
        ..b.program.training
    };
    finish(b, dir, 25)
}

/// Compiles the kernels and writes the artifact, beside a text of so many lines to learn from.
fn finish(mut b: Builder, dir: &Path, lines: usize) -> Artifact {
    std::fs::create_dir_all(dir.join("text")).unwrap();
    std::fs::write(dir.join("text/a.txt"), "to be, or not to be, that is the question. ".repeat(lines))
        .unwrap();
    let bytes = std::fs::read(b.compile(dir)).unwrap();
    b.program.targets = vec![Target {
        name: "cpu".into(),
        file: "cpu.so".into(),
        hash: artifact::hash(&bytes),
        level: "x86-64".into(),
        features: Vec::new(),
        launches: Vec::new(),
    }];
    write(dir, &b.program, &bytes)
}

/// The artifact of `dir`, its program changed.
pub(crate) fn changed(dir: &Path, artifact: &Artifact, change: impl FnOnce(&mut Program)) -> Artifact {
    let mut program = artifact.program.clone();
    change(&mut program);
    write(dir, &program, &std::fs::read(artifact.directory.join("cpu.so")).unwrap())
}

fn write(dir: &Path, program: &Program, kernels: &[u8]) -> Artifact {
    let directory = dir.join("tiny.dspx");
    artifact::write(&directory, &[program], &[KernelFile { name: "cpu.so", bytes: kernels }]).unwrap();
    artifact::read(&directory, program.family).unwrap()
}
