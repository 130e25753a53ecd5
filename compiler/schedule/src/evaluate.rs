//! A program in f64 on its own arenas: kernels by their descriptions. What it yields must be what the graph's interpreter yields;
//! between the two lie fusion, placement in storages, aliasing and packing.

use dspc_graph::rowfn::UnaryFn;
use dspc_kernel::steps::NamedKernel;
use dspc_program::{Action, Arg, ElementType, Fused, Gemm, Instruction, Matrix, Place, Program};

use crate::ranks::run_ranks;

/// Arenas as cells, one after the other.
///
/// A cell holds an element, whatever its type. A buffer begins at the cell of its first byte, two bytes a cell, and its elements follow one another without gaps, the
/// slots of a view's root too: so a buffer of four-byte elements leaves the second half of its cells unused, and buffers that are apart in bytes are apart in cells.
pub struct Machine<'a> {
    program: &'a Program,
    kernels: &'a [NamedKernel],
    starts: Vec<usize>,
    rank: u64,
    /// One an element.
    pub cells: Vec<f64>,
}

impl<'a> Machine<'a> {
    /// The only rank, or the first. All cells are NaN but those of parameters' gaps, gradients and moments, which start as zero: nothing may depend on what was never
    /// written.
    pub fn new(program: &'a Program, kernels: &'a [NamedKernel]) -> Self {
        Self::of_rank(program, kernels, 0)
    }

    /// One of several ranks.
    pub fn of_rank(program: &'a Program, kernels: &'a [NamedKernel], rank: u64) -> Self {
        let mut starts = vec![];
        let mut cells = vec![];
        for arena in &program.arenas {
            starts.push(cells.len());
            let empty = if arena.name == "activations" { f64::NAN } else { 0.0 };
            cells.resize(cells.len() + arena.bytes as usize / 2, empty);
        }
        Self { program, kernels, starts, rank, cells }
    }

    /// What it runs.
    pub fn program(&self) -> &Program {
        self.program
    }

    /// The cell of a buffer's slot.
    pub fn cell(&self, buffer: usize, slot: u64) -> usize {
        let b = &self.program.buffers[buffer];
        let root = b.within.map_or(b, |whole| &self.program.buffers[whole.0 as usize]);
        let into = (b.offset - root.offset + slot * b.stride) / element_bytes(b.dtype);
        self.starts[root.arena as usize] + (root.offset / 2 + into) as usize
    }

    /// The index of the buffer of a name.
    pub fn buffer(&self, name: &str) -> Option<usize> {
        self.program.buffers.iter().position(|b| b.name == name)
    }

    /// Runs instructions in order, on the only rank.
    pub fn run(&mut self, body: &[Instruction], turn: u64, micro: u64) {
        run_ranks(std::slice::from_mut(self), body, turn, micro);
    }

    /// Anything but a loop or a collective.
    pub(crate) fn step(&mut self, action: &Action, turn: u64, micro: u64) {
        match action {
            Action::Launch { kernel, args } => self.launch(kernel.0 as usize, args, turn, micro),
            Action::Gemm(gemm) => {
                self.gemm(gemm, turn, micro);
                if let Some(e) = &gemm.epilogue {
                    self.launch(e.kernel.0 as usize, &e.args, turn, micro);
                }
            }
            Action::Zero { at } => {
                let start = self.address(at, turn, micro);
                let elements = self.program.buffers[at.buffer.0 as usize].elements as usize;
                self.cells[start..start + elements].fill(0.0);
            }
            Action::Collective(_) | Action::Loop { .. } => {}
        }
    }

    pub(crate) fn address(&self, at: &Place, turn: u64, micro: u64) -> usize {
        let b = &self.program.buffers[at.buffer.0 as usize];
        let slot = (at.add + if at.turn { turn } else { 0 } + if at.micro { micro } else { 0 }) % b.slots;
        let shard = at.shard.map_or(0, |shard| {
            let group = &self.program.groups[shard.group as usize];
            self.program.index_in(group, self.rank) * shard.elements
        });
        self.cell(at.buffer.0 as usize, slot) + (at.elements + shard) as usize
    }

    /// A kernel on other cells.
    pub(crate) fn evaluate(&self, kernel: usize, operands: &[usize], cells: &mut [f64]) {
        dspc_kernel::evaluate(&self.kernels[kernel].kernel, operands, 0, cells);
    }

    fn launch(&mut self, kernel: usize, args: &[Arg], turn: u64, micro: u64) {
        let operand = |arg: &Arg| match arg {
            Arg::At(at) => Some(self.address(at, turn, micro)),
            Arg::Turn => None,
        };
        let operands: Vec<usize> = args.iter().filter_map(operand).collect();
        dspc_kernel::evaluate(&self.kernels[kernel].kernel, &operands, turn, &mut self.cells);
    }

    fn gemm(&mut self, gemm: &Gemm, turn: u64, micro: u64) {
        let at = |this: &Self, m: &Matrix| this.address(&m.at, turn, micro);
        let (a, b, c) = (at(self, &gemm.a), at(self, &gemm.b), at(self, &gemm.c));
        let index = |m: &Matrix, row: u64, col: u64| {
            let (row, col) = if m.transposed { (col, row) } else { (row, col) };
            (row * m.stride + col) as usize
        };
        let other = |this: &Self, at: &Place| this.address(at, turn, micro);
        for i in 0..gemm.m {
            for j in 0..gemm.n {
                let term =
                    |k: u64| self.cells[a + index(&gemm.a, i, k)] * self.cells[b + index(&gemm.b, k, j)];
                let sum: f64 = (0..gemm.k).map(term).sum();
                let sum = match &gemm.fused {
                    None | Some(Fused::BiasGradient { .. }) => sum,
                    Some(Fused::Bias { bias }) => sum + self.cells[other(self, bias) + j as usize],
                    Some(Fused::BiasGelu { bias, pre }) => {
                        let value = sum + self.cells[other(self, bias) + j as usize];
                        let to = at(self, pre) + index(pre, i, j);
                        self.cells[to] = value;
                        gelu(value)
                    }
                    Some(Fused::GeluGradient { pre }) => {
                        sum * gelu_slope(self.cells[at(self, pre) + index(pre, i, j)])
                    }
                };
                let cell = &mut self.cells[c + index(&gemm.c, i, j)];
                *cell = if gemm.accumulate { *cell + sum } else { sum };
            }
        }
        if let Some(Fused::BiasGradient { sum }) = &gemm.fused {
            let to = other(self, sum);
            for j in 0..gemm.n {
                let term = |k: u64| self.cells[b + index(&gemm.b, k, j)];
                self.cells[to + j as usize] = (0..gemm.k).map(term).sum();
            }
        }
    }
}

/// √(2/π), and the cube's factor in what the tanh form of GELU takes tanh of.
const GELU: (f64, f64) = (0.797_884_560_802_865_4, 0.044715);

/// The bits of GELU as an op of its own: it may be computed again as one.
fn gelu(x: f64) -> f64 {
    let tanh = UnaryFn::Tanh.apply(x * (x * x * GELU.1 + 1.0) * GELU.0);
    x * 0.5 * (tanh + 1.0)
}

fn gelu_slope(x: f64) -> f64 {
    let tanh = UnaryFn::Tanh.apply(x * (x * x * GELU.1 + 1.0) * GELU.0);
    let inner = (x * x * (3.0 * GELU.1) + 1.0) * (0.5 * GELU.0);
    (tanh + 1.0) * 0.5 + x * (1.0 - tanh * tanh) * inner
}

fn element_bytes(dtype: ElementType) -> u64 {
    match dtype {
        ElementType::F32 | ElementType::I32 => 4,
        ElementType::Bf16 | ElementType::F16 => 2,
    }
}
