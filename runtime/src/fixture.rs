//! Small programs made by hand, for tests: kernels from a few lines of C, so that the runtime is tested without the compiler.

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
            mesh: vec![("data".into(), 1)],
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
    Instruction { action, stream: StreamId(0), waits: Vec::new(), records: None, origin: "here".into() }
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
