//! The f64 interpreter: slow and obvious.

use std::collections::BTreeMap;

use crate::ir::{Block, Def, Graph, Input, Repeat, Step, Table, ValueId};

/// A tensor in f64, row-major; ids and flags are whole numbers in it.
#[derive(Clone, PartialEq, Debug)]
pub struct Tensor {
    /// Sizes, outermost first.
    pub dims: Vec<usize>,
    /// Elements.
    pub data: Vec<f64>,
}

impl Tensor {
    /// All zero.
    pub fn zeros(dims: &[usize]) -> Self {
        Self { dims: dims.to_vec(), data: vec![0.0; dims.iter().product()] }
    }

    /// One number without dims.
    pub fn scalar(x: f64) -> Self {
        Self { dims: vec![], data: vec![x] }
    }

    /// Element `i` is `f(i)`, row-major.
    pub fn from_fn(dims: &[usize], f: impl FnMut(usize) -> f64) -> Self {
        Self { dims: dims.to_vec(), data: (0..dims.iter().product()).map(f).collect() }
    }

    /// The last dim's size, 1 for a scalar.
    pub fn cols(&self) -> usize {
        self.dims.last().copied().unwrap_or(1)
    }

    /// Product of all sizes but the last.
    pub fn rows(&self) -> usize {
        self.data.len() / self.cols().max(1)
    }

    /// The same dims, each element mapped.
    pub fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Self { dims: self.dims.clone(), data: self.data.iter().map(|x| f(*x)).collect() }
    }
}

/// What a run of a graph needs from outside.
#[derive(Clone, PartialEq, Debug)]
pub struct Inputs {
    /// `[B, T]`
    pub tokens: Tensor,
    /// `[B, T]`; negative where there is no target.
    pub targets: Tensor,
    /// 1 / (targets in the whole batch).
    pub inv_targets: f64,
    /// `[seed low, seed high, step, first sample]`
    pub rng: [u32; 4],
    /// The loss's own gradient where the graph asks for it.
    pub loss_scale: f64,
    /// By [`crate::ir::ParamId`]; one tensor a turn, one in all outside a repeat.
    pub params: Vec<Vec<Tensor>>,
}

/// Every value of a run; those of a repeat's body by turn.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Results {
    values: BTreeMap<(ValueId, Option<u64>), Tensor>,
}

impl Results {
    /// A value outside repeats.
    pub fn get(&self, value: ValueId) -> Option<&Tensor> {
        self.values.get(&(value, None))
    }

    /// A value of one turn of the repeat it belongs to.
    pub fn get_in(&self, value: ValueId, turn: u64) -> Option<&Tensor> {
        self.values.get(&(value, Some(turn)))
    }
}

impl Results {
    /// A value as an op of this turn (or of no repeat) reads it: inputs, parameters and tables too.
    ///
    /// # Panics
    /// Where no run wrote it.
    pub fn operand(&self, graph: &Graph, inputs: &Inputs, value: ValueId, turn: Option<u64>) -> Tensor {
        match &graph.value(value).def {
            Def::Input(input) => input_tensor(inputs, *input, turn),
            Def::Param(param) => {
                let turns = &inputs.params[param.0 as usize];
                let at = graph.param(*param).turns.and(turn).unwrap_or(0);
                turns[at as usize].clone()
            }
            Def::Table(table) => {
                let dims: Vec<usize> = graph.ty(value).dims.iter().map(|d| d.size as usize).collect();
                evaluate_table(table, &dims)
            }
            Def::Op | Def::RepeatArg(_) | Def::RepeatOut(_) => {
                let of_turn = turn.and_then(|t| self.get_in(value, t));
                match of_turn.or_else(|| self.get(value)) {
                    Some(tensor) => tensor.clone(),
                    None => unreachable!(
                        "a verified graph writes `{}` before it is read",
                        graph.value(value).name
                    ),
                }
            }
        }
    }
}

fn input_tensor(inputs: &Inputs, input: Input, turn: Option<u64>) -> Tensor {
    match input {
        Input::Tokens => inputs.tokens.clone(),
        Input::Targets => inputs.targets.clone(),
        Input::InvTargets => Tensor::scalar(inputs.inv_targets),
        Input::LossScale => Tensor::scalar(inputs.loss_scale),
        Input::Rng => {
            let mut words: Vec<f64> = inputs.rng.iter().map(|w| f64::from(*w)).collect();
            words.push(turn.unwrap_or(0) as f64);
            Tensor { dims: vec![words.len()], data: words }
        }
    }
}

/// Runs a verified graph.
///
/// # Panics
/// Where the graph was not verified, or a tensor of `inputs` has other dims than its value.
pub fn interpret(graph: &Graph, inputs: &Inputs) -> Results {
    run(graph, inputs, Stored::Exactly)
}

/// Runs a verified graph, each float rounded to the type that it is stored in: what a machine without fusion would hold, but for the order of its sums.
///
/// # Panics
/// Likewise.
pub fn interpret_as_stored(graph: &Graph, inputs: &Inputs) -> Results {
    run(graph, inputs, Stored::AsTyped)
}

fn run(graph: &Graph, inputs: &Inputs, stored: Stored) -> Results {
    let mut machine = Machine { graph, inputs, stored, results: Results::default() };
    machine.run(&graph.body, None);
    machine.results
}

/// What becomes of a result before the next op reads it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stored {
    Exactly,
    AsTyped,
}

struct Machine<'a> {
    graph: &'a Graph,
    inputs: &'a Inputs,
    stored: Stored,
    results: Results,
}

impl Machine<'_> {
    fn run(&mut self, block: &Block, turn: Option<u64>) {
        for step in &block.steps {
            match step {
                Step::Op(node) => {
                    let operands: Vec<Tensor> = node.inputs.iter().map(|v| self.read(*v, turn)).collect();
                    let results = node.op.evaluate(&operands.iter().collect::<Vec<_>>());
                    for (value, result) in node.outputs.iter().zip(results) {
                        let result = self.stored(*value, result);
                        self.results.values.insert((*value, turn), result);
                    }
                }
                Step::Repeat(repeat) => self.run_repeat(repeat),
            }
        }
    }

    fn run_repeat(&mut self, repeat: &Repeat) {
        let mut carried: Vec<Tensor> = repeat.carried.iter().map(|c| self.read(c.init, None)).collect();
        for i in 0..repeat.count {
            let turn = if repeat.reverse { repeat.count - 1 - i } else { i };
            for (c, x) in repeat.carried.iter().zip(&carried) {
                self.results.values.insert((c.arg, Some(turn)), x.clone());
            }
            self.run(&repeat.body, Some(turn));
            carried = repeat.carried.iter().map(|c| self.read(c.result, Some(turn))).collect();
        }
        for (c, x) in repeat.carried.iter().zip(carried) {
            self.results.values.insert((c.out, None), x);
        }
    }

    fn read(&self, value: ValueId, turn: Option<u64>) -> Tensor {
        self.stored(value, self.results.operand(self.graph, self.inputs, value, turn))
    }

    fn stored(&self, value: ValueId, tensor: Tensor) -> Tensor {
        match self.stored {
            Stored::Exactly => tensor,
            Stored::AsTyped => {
                let dtype = self.graph.ty(value).dtype;
                tensor.map(|x| dtype.round(x))
            }
        }
    }
}

/// The elements of a table of these dims.
pub fn evaluate_table(table: &Table, dims: &[usize]) -> Tensor {
    let cols = dims.last().copied().unwrap_or(1);
    let half = (cols / 2).max(1);
    let angle = |index: usize, base: f64| {
        let (t, col) = (index / cols, index % cols);
        t as f64 * libm::pow(base, -2.0 * (col % half) as f64 / cols as f64)
    };
    match *table {
        Table::RopeCos { base } => Tensor::from_fn(dims, |i| libm::cos(angle(i, base))),
        Table::RopeSin { base } => Tensor::from_fn(dims, |i| {
            let sin = libm::sin(angle(i, base));
            if i % cols < half { -sin } else { sin }
        }),
    }
}
