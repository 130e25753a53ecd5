//! What the tests here stand on: training graphs from text, random inputs, gradients as numbers.

use dspc_graph::form::Form;
use dspc_graph::interpret::{Inputs, Tensor, interpret};
use dspc_graph::ir::{Graph, OpNode, Param, Step, ValueId};
use dspc_graph::{Elaborate, elaborate, evaluate_row_fn, ops, verify};
use dspc_source::{Colour, FileId, SourceMap, Span, render_text};
use dspc_spec::settings::{Adam, DataFacts, Optimizer, Precision, Rule, Schedule};

use crate::{TrainGraph, differentiate};

pub(crate) const BATCH: u64 = 2;
pub(crate) const SEQUENCE: u64 = 5;
pub(crate) const VOCAB: usize = 7;

const SETTINGS: &str = "
data { text: [\"a.txt\"], tokenizer: \"chars\", sequence: 5 }
optimizer = adamw(lr: 1e-3)
train { batch: 2, steps: 1 }
";

/// The verified forward graph of a text; it must be right.
pub(crate) fn forward(text: &str) -> Graph {
    let mut sources = SourceMap::default();
    let text = format!("{}\n{SETTINGS}", text.trim());
    let id = sources.add("train.dsp", text.clone());
    let (file, mut found) = dspc_grammar::parse(id, &text);
    let facts = DataFacts { vocab: Some(VOCAB as u64), ranks: None };
    let (spec, more) = dspc_spec::check("train", &file, &facts, &ops::builtins(), &mut sources);
    found.extend(more);
    let Some(spec) = spec else { panic!("{}", render_text(&found, &sources, Colour::Plain)) };
    match elaborate(&spec, &sources, BATCH, SEQUENCE, Elaborate { train: true }) {
        Ok(graph) => {
            verify(&graph).unwrap();
            graph
        }
        Err(mistakes) => panic!("{}", render_text(&mistakes, &sources, Colour::Plain)),
    }
}

/// The verified training graph of a text, in single precision.
pub(crate) fn train(text: &str) -> TrainGraph {
    train_in(text, Precision::Fp32)
}

/// The verified training graph of a text, before it is stored.
pub(crate) fn train_in(text: &str, precision: Precision) -> TrainGraph {
    train_with(text, &adamw(), precision)
}

/// AdamW without groups.
pub(crate) fn adamw() -> Optimizer {
    Optimizer {
        rule: Rule::AdamW(Adam { betas: (0.9, 0.95), eps: 1e-8 }),
        lr: Schedule::Constant { lr: 1e-3, warmup: 0 },
        weight_decay: 0.1,
        groups: vec![],
        span: Span::new(FileId(0), 0, 0),
    }
}

/// The same with an optimizer.
pub(crate) fn train_with(text: &str, optimizer: &Optimizer, precision: Precision) -> TrainGraph {
    let train = differentiate(forward(text), optimizer, Some(1.0), precision).unwrap();
    verify(&train.graph).unwrap();
    train
}

/// Numbers in ±1 without a pattern: a linear congruence.
pub(crate) struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub fn tensor(&mut self, dims: &[usize]) -> Tensor {
        Tensor::from_fn(dims, |_| self.next())
    }
}

fn param(numbers: &mut Numbers, p: &Param) -> Vec<Tensor> {
    let dims: Vec<usize> = p.ty.dims.iter().map(|d| d.size as usize).collect();
    (0..p.turns.unwrap_or(1)).map(|_| numbers.tensor(&dims)).collect()
}

/// Ids, targets (one of them absent) and parameters.
pub(crate) fn inputs(graph: &Graph) -> Inputs {
    let mut numbers = Numbers(17);
    let dims = [BATCH as usize, SEQUENCE as usize];
    let tokens = Tensor::from_fn(&dims, |i| (i * 3 % VOCAB) as f64);
    let targets = Tensor::from_fn(&dims, |i| if i == 3 { -100.0 } else { (i * 5 % VOCAB) as f64 });
    let params = graph.params.iter().map(|p| param(&mut numbers, p)).collect();
    Inputs { tokens, targets, inv_targets: 1.0 / 9.0, rng: [11, 0, 4, 6], loss_scale: 1.0, params }
}

/// The loss.
pub(crate) fn loss(graph: &Graph, inputs: &Inputs) -> f64 {
    interpret(graph, inputs).get(graph.loss.unwrap()).unwrap().data[0]
}

/// Each parameter's gradient, by turn; zeros where the loss does not depend on it.
pub(crate) fn gradients(train: &TrainGraph, inputs: &Inputs) -> Vec<Vec<Tensor>> {
    let results = interpret(&train.graph, inputs);
    let of_param = |g: &crate::ParamGradient| {
        let p = train.graph.param(g.param);
        let at = &inputs.params[g.param.0 as usize];
        let turn = |t: u64| {
            let mut sum = Tensor::zeros(&at[t as usize].dims);
            for value in &g.contributions {
                let term = match p.turns {
                    Some(_) => results.get_in(*value, t),
                    None => results.get(*value),
                };
                let term = term.unwrap();
                assert_eq!(term.dims, sum.dims);
                sum.data.iter_mut().zip(&term.data).for_each(|(s, x)| *s += x);
            }
            sum
        };
        (0..p.turns.unwrap_or(1)).map(turn).collect()
    };
    train.gradients.iter().map(of_param).collect()
}

/// Asserts that the row function of every op yields what the op's own f64 meaning yields.
fn assert_row_functions(train: &TrainGraph, inputs: &Inputs) {
    let results = interpret(&train.graph, inputs);
    for step in &train.graph.body.steps {
        match step {
            Step::Op(node) => {
                assert_row_function(&train.graph, node, &|v| results.operand(&train.graph, inputs, v, None))
            }
            Step::Repeat(repeat) => {
                for (turn, step) in
                    (0..repeat.count).flat_map(|t| repeat.body.steps.iter().map(move |s| (t, s)))
                {
                    let Step::Op(node) = step else { continue };
                    assert_row_function(&train.graph, node, &|v| {
                        results.operand(&train.graph, inputs, v, Some(turn))
                    });
                }
            }
        }
    }
}

fn assert_row_function(graph: &Graph, node: &OpNode, operand: &dyn Fn(ValueId) -> Tensor) {
    let types = |values: &[ValueId]| values.iter().map(|v| graph.ty(*v).clone()).collect::<Vec<_>>();
    let (inputs, outputs) = (types(&node.inputs), types(&node.outputs));
    let form = node.op.form(&inputs.iter().collect::<Vec<_>>(), &outputs.iter().collect::<Vec<_>>());
    let Form::Row(f) = form else { return };
    let operands: Vec<Tensor> = node.inputs.iter().map(|v| operand(*v)).collect();
    let operands: Vec<&Tensor> = operands.iter().collect();
    let (expected, found) = (node.op.evaluate(&operands), evaluate_row_fn(&f, &operands));
    for ((e, f), ty) in expected.iter().zip(&found).zip(&outputs) {
        assert_eq!(e.data.len() as u64, ty.elements());
        assert_eq!(e.data.len(), f.data.len(), "{}", node.op.name());
        for (e, f) in e.data.iter().zip(&f.data) {
            assert!((e - f).abs() <= 1e-12 * (1.0 + e.abs()), "{}: {f} for {e}", node.op.name());
        }
    }
}

/// Asserts that every gradient element agrees with a central difference of the loss, and every row function with its op.
pub(crate) fn assert_right(text: &str) {
    let train = train(text);
    let inputs = inputs(&train.graph);
    assert_row_functions(&train, &inputs);
    let gradients = gradients(&train, &inputs);
    let scale = gradients.iter().flatten().flat_map(|t| &t.data).fold(0.0f64, |m, x| m.max(x.abs()));
    assert!(scale > 0.0, "every gradient is zero");
    for (p, turns) in gradients.iter().enumerate() {
        for (t, gradient) in turns.iter().enumerate() {
            for i in 0..gradient.data.len() {
                let at = |h: f64| {
                    let mut moved = inputs.clone();
                    moved.params[p][t].data[i] += h;
                    loss(&train.graph, &moved)
                };
                let h = 1e-4;
                let slope = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
                let error = (slope - gradient.data[i]).abs() / slope.abs().max(scale * 1e-2);
                let name = &train.graph.params[p].name;
                assert!(error < 1e-6, "{name} turn {t} element {i}: {} for {slope}", gradient.data[i]);
            }
        }
    }
}
