//! The bytes of each arena that an instruction touches: for every operand the run from its first byte to its last.
//!
//! A rank's own shard counts as all ranks' shards: what holds for one rank then holds for every other.

use dspc_program::{
    Action, Arg, CollectiveKind, ElementType, Extent, Fused, Gemm, Instruction, KernelId, Matrix,
    OperandAccess, Place, Program,
};

/// A run of bytes and what is done with them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Use {
    arena: u32,
    start: u64,
    end: u64,
    writes: bool,
}

impl Use {
    /// Whether the order of two uses matters.
    pub fn clashes(&self, other: &Use) -> bool {
        let meet = self.arena == other.arena && self.start < other.end && other.start < self.end;
        meet && (self.writes || other.writes)
    }
}

/// What an instruction touches at a turn and a micro-batch; nothing, of a loop.
pub(crate) fn uses(program: &Program, instruction: &Instruction, turn: u64, micro: u64) -> Vec<Use> {
    let mut list = List { program, turn, micro, uses: vec![] };
    match &instruction.action {
        Action::Launch { kernel, args } => list.launch(*kernel, args),
        Action::Gemm(gemm) => list.product(gemm),
        Action::Zero { at } => list.run(at, None, true),
        Action::Collective(collective) => {
            let size = program.groups[collective.group as usize].size;
            for part in &collective.parts {
                let (from, to) = match collective.kind {
                    CollectiveKind::ReduceScatter { .. } => (part.elements * size, part.elements),
                    CollectiveKind::AllGather => (part.elements, part.elements * size),
                };
                list.run(&part.from, Some(from), false);
                list.run(&part.to, Some(to), true);
            }
        }
        Action::Loop { .. } => {}
    }
    list.uses
}

struct List<'a> {
    program: &'a Program,
    turn: u64,
    micro: u64,
    uses: Vec<Use>,
}

impl List<'_> {
    /// So many elements from a place on; all of its slot's.
    fn run(&mut self, at: &Place, elements: Option<u64>, writes: bool) {
        let buffer = &self.program.buffers[at.buffer.0 as usize];
        let follows = if at.turn { self.turn } else { 0 } + if at.micro { self.micro } else { 0 };
        let slot = buffer.offset + (at.add + follows) % buffer.slots * buffer.stride;
        let size = match buffer.dtype {
            ElementType::F32 | ElementType::I32 => 4,
            ElementType::Bf16 | ElementType::F16 => 2,
        };
        let others = at.shard.map_or(0, |shard| {
            let ranks = self.program.groups[shard.group as usize].size;
            (ranks - 1) * shard.elements
        });
        let start = slot + at.elements * size;
        let end = match elements {
            Some(elements) => start + (elements + others) * size,
            None => slot + buffer.elements * size,
        };
        self.uses.push(Use { arena: buffer.arena, start, end, writes });
    }

    fn launch(&mut self, kernel: KernelId, args: &[Arg]) {
        let program = self.program;
        for (arg, operand) in args.iter().zip(&program.kernels[kernel.0 as usize].operands) {
            let Arg::At(at) = arg else { continue };
            let elements = match operand.extent {
                Extent::Rows { rows, cols, stride } => Some(rows.saturating_sub(1) * stride + cols),
                Extent::Slot => None,
            };
            self.run(at, elements, operand.access != OperandAccess::Read);
        }
    }

    fn product(&mut self, gemm: &Gemm) {
        self.matrix(&gemm.a, (gemm.m, gemm.k), false);
        self.matrix(&gemm.b, (gemm.k, gemm.n), false);
        self.matrix(&gemm.c, (gemm.m, gemm.n), true);
        match &gemm.fused {
            None => {}
            Some(Fused::Bias { bias }) => self.run(bias, Some(gemm.n), false),
            Some(Fused::BiasGelu { bias, pre }) => {
                self.run(bias, Some(gemm.n), false);
                self.matrix(pre, (gemm.m, gemm.n), true);
            }
            Some(Fused::GeluGradient { pre }) => self.matrix(pre, (gemm.m, gemm.n), false),
            Some(Fused::BiasGradient { sum }) => self.run(sum, Some(gemm.n), true),
        }
        if let Some(workspace) = gemm.own.as_ref().and_then(|own| own.workspace.as_ref()) {
            self.run(workspace, None, true);
        }
        if let Some(epilogue) = &gemm.epilogue {
            self.launch(epilogue.kernel, &epilogue.args);
        }
    }

    fn matrix(&mut self, matrix: &Matrix, (rows, cols): (u64, u64), writes: bool) {
        let (rows, cols) = if matrix.transposed { (cols, rows) } else { (rows, cols) };
        self.run(&matrix.at, Some(rows.saturating_sub(1) * matrix.stride + cols), writes);
    }
}
