//! Differentiation: the backward pass behind the forward pass, in reverse mode.
//!
//! Reads   a verified graph that ends in a loss.
//! Writes  the same graph with a step for each gradient behind its own steps, and which values are the parameters' gradients.
//! Keeps   the forward steps; `repeat`: the backward of a repeat is a repeat that goes from the last turn to the first and mirrors it.
//! Leaves  alone how values are stored (`store`), and sums over ranks and micro-batches. In half precision the loss's own gradient is the loss scale, an input.
//! Cost    one walk, O(ops).

mod backward;
mod builder;

use std::collections::{BTreeMap, BTreeSet};

use dspc_graph::ir::{Def, Graph, Input, OpNode, Step, ValueId};
use dspc_source::Diagnostic;
use dspc_spec::settings::{Optimizer, Precision};

use crate::optimizer::{Update, UpdateId, assign_updates};
use crate::{ParamGradient, Recompute, TrainGraph};
use backward::Backward;

/// Why a graph has no gradient.
#[derive(Clone, PartialEq, Debug)]
pub enum NotTrainable {
    /// It has no loss.
    NoLoss,
    /// Its loss depends on no parameter.
    NoParameters,
    /// The optimizer's groups do not fit its parameters.
    Groups(Vec<Diagnostic>),
}

impl std::fmt::Display for NotTrainable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NotTrainable::NoLoss => "the model has no loss",
            NotTrainable::NoParameters => "the loss depends on no parameter",
            NotTrainable::Groups(_) => "the optimizer's groups do not fit the parameters",
        })
    }
}

impl std::error::Error for NotTrainable {}

/// Appends the backward pass of `graph.loss`.
///
/// # Errors
/// If there is nothing to differentiate, or the optimizer's groups do not fit.
pub fn differentiate(
    graph: Graph,
    optimizer: &Optimizer,
    clip: Option<f64>,
    precision: Precision,
) -> Result<TrainGraph, NotTrainable> {
    let loss = graph.loss.ok_or(NotTrainable::NoLoss)?;
    let wanted = depends_on_params(&graph);
    if !wanted.contains(&loss) {
        return Err(NotTrainable::NoParameters);
    }
    let (updates, of_param) = assign_updates(&graph, optimizer).map_err(NotTrainable::Groups)?;
    let backward_start = graph.body.steps.len();
    let forward = graph.body.steps.clone();
    let mut backward = Backward::new(graph, wanted);
    let seed = match precision {
        Precision::Fp16 { .. } => backward.input("loss_scale", Input::LossScale),
        Precision::Fp32 | Precision::Tf32 | Precision::Bf16 { .. } => backward.fill(1.0, loss, ""),
    };
    backward.contribute(loss, seed);
    backward.steps(&forward);
    let (mut graph, steps, contributions, primals) = backward.finish();
    graph.body.steps.extend(steps);
    let gradients = gather(&graph, &contributions, &updates, &of_param);
    let roots: Vec<ValueId> = gradients.iter().flat_map(|g| g.contributions.iter().copied()).collect();
    dspc_graph::prune(&mut graph, &roots, backward_start);
    Ok(TrainGraph {
        graph,
        backward_start,
        gradients,
        primals,
        updates,
        clip,
        precision,
        recompute: Recompute::None,
        again: BTreeSet::new(),
    })
}

/// Gradients by parameter, in the parameters' order. A frozen one has no terms: what only they need is pruned.
fn gather(
    graph: &Graph,
    contributions: &BTreeMap<ValueId, Vec<ValueId>>,
    updates: &[Update],
    of_param: &[UpdateId],
) -> Vec<ParamGradient> {
    let mut gradients: Vec<ParamGradient> = of_param
        .iter()
        .enumerate()
        .map(|(i, &update)| ParamGradient {
            param: dspc_graph::ir::ParamId(i as u32),
            contributions: vec![],
            update,
        })
        .collect();
    for (value, terms) in contributions {
        if let Def::Param(param) = graph.value(*value).def {
            let gradient = &mut gradients[param.0 as usize];
            if !updates[gradient.update.0 as usize].frozen {
                gradient.contributions.extend(terms);
            }
        }
    }
    gradients
}

/// The values that a parameter has a part in.
fn depends_on_params(graph: &Graph) -> BTreeSet<ValueId> {
    let ids = (0..graph.values.len()).map(|i| ValueId(i as u32));
    let mut found: BTreeSet<ValueId> = ids.filter(|v| matches!(graph.value(*v).def, Def::Param(_))).collect();
    spread(&graph.body.steps, &mut found);
    found
}

fn spread(steps: &[Step], found: &mut BTreeSet<ValueId>) {
    for step in steps {
        match step {
            Step::Op(OpNode { inputs, outputs, .. }) => {
                if inputs.iter().any(|v| found.contains(v)) {
                    found.extend(outputs);
                }
            }
            Step::Repeat(repeat) => loop {
                let before = found.len();
                for c in &repeat.carried {
                    if found.contains(&c.init) || found.contains(&c.result) {
                        found.extend([c.arg, c.out]);
                    }
                }
                spread(&repeat.body.steps, found);
                if found.len() == before {
                    break;
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::fixture::{assert_right, gradients, inputs, loss, train};

    /// A model around some lines: `x` is [B, T, 6], and what they leave in `y`, [B, T, 6] as well, meets the targets.
    fn around(lines: &str) -> String {
        format!(
            "model m(tokens: ids[B, T], targets: ids[B, T], width: D, vocab: V) -> loss {{
               param table: [V, D] ~ normal(1)
               param head: [D, V] ~ normal(1)
               x = table[tokens]
               {lines}
               cross_entropy(y @ head, targets)
             }}
             model = m(width: 6, vocab: data.vocab)"
        )
    }

    macro_rules! gradient_of {
        ($($name:ident: $lines:expr;)*) => {
            $(#[test]
            fn $name() {
                assert_right(&around($lines));
            })*
        };
    }

    gradient_of! {
        embedding_matmul_and_cross_entropy: "y = x";
        bias: "param b: [D] ~ zeros\n y = x + b";
        positions: "param p: [9, D] ~ zeros\n y = x + p[0..T]";
        a_slice_that_starts_late: "param p: [9, D] ~ zeros\n y = x * p[2..T+2]";
        a_difference_with_a_broadcast: "param b: [T, D] ~ zeros\n y = b - x";
        a_product_with_a_broadcast: "param b: [D] ~ zeros\n y = b * x";
        a_quotient: "param b: [D] ~ zeros\n y = x / exp(b)";
        a_quotient_of_a_broadcast: "param b: [T, D] ~ zeros\n y = b / exp(x)";
        numbers_with_tensors: "y = (2 - x * 0.3) / 1.5 + 0.1 - 3 * x + 2 / exp(x) - (-x)";
        layer_norm: "param w: [D] ~ ones\n param b: [D] ~ zeros\n y = layer_norm(x, w, b)";
        rms_norm: "param w: [D] ~ ones\n y = rms_norm(x, w, eps: 1e-3)";
        gelu: "y = gelu(x)";
        gelu_erf: "y = gelu_erf(2 * x)";
        silu: "y = silu(x * 2)";
        sigmoid_and_tanh: "y = sigmoid(x) + tanh(x)";
        relu_and_abs: "y = relu(x) + abs(x)";
        log_and_sqrt: "y = log(x + 3) * sqrt(x + 2)";
        a_split_used_whole: "param w: [D, 12] ~ zeros\n a, b = split(x @ w, 2)\n y = a * gelu(b)";
        a_split_used_in_part: "param w: [D, 18] ~ zeros\n a, b, c = split(x @ w, 3)\n y = a * c";
        concat: "param w: [12, D] ~ zeros\n y = concat(x, gelu(x)) @ w";
        concat_of_positions: "param p: [2, D] ~ zeros\n param q: [3, D] ~ zeros\n y = x * concat(p, q, dim: 0)";
        reshape: "y = reshape(gelu(reshape(x, [B, T, 2, 3])), [B, T, D])";
        transpose_of_a_value: "param a: [D, 4] ~ zeros\n param b: [D, 4] ~ zeros\n y = (x @ a) @ transpose(b)";
        transpose_on_its_own: "param a: [4, D] ~ zeros\n y = x @ gelu(transpose(a) @ a)";
        sums: "y = x * sum(x * x) + x";
        means: "param w: [5, 6] ~ zeros\n y = x + mean(gelu(x)) * w";
        a_sum_of_rows: "y = x + reshape(sum(reshape(x, [B, T, D, 1]), last: true), [B, T, D])";
        attention: "param w: [D, 18] ~ zeros\n q, k, v = split(x @ w, 3)\n y = attend(q, k, v, heads: 2, mask: causal)";
        attention_with_a_window: "y = attend(x, gelu(x), x * x, heads: 3, mask: causal & window(2), scale: 0.7)";
        attention_with_a_predicate: "y = attend(x, gelu(x), x * x, heads: 1, mask: (q, k) => k <= q & q - k < 3 | k == 0)";
        grouped_attention: "param w: [D, 6] ~ zeros\n k, v = split(x @ w, 2)\n y = attend(x, k, v, heads: 2, kv_heads: 1, mask: causal)";
        rope: "y = rope(x, heads: 3, base: 100)";
        dropout: "y = dropout(x, 0.4)";
        a_value_used_three_times: "a = gelu(x)\n y = a + a * a";
        a_repeat: "repeat 3 as h {\n param w: [D, D] ~ zeros\n x = x + tanh(x @ w)\n }\n y = x";
        dropout_in_a_repeat: "repeat 2 as h { x = x + dropout(x, 0.5) }\n y = x";
        a_tied_weight_in_a_repeat: "param w: [D, D] ~ zeros\n repeat 3 as h { x = x + tanh(x @ w) }\n y = x @ w";
        a_value_of_outside_in_a_repeat: "a = gelu(x)\n repeat 2 as h { x = tanh(x + a) }\n y = x";
        two_carried_values: "a = gelu(x)\n repeat 3 as h {\n param w: [D] ~ ones\n b = a\n a = tanh(x * w)\n x = x + b\n }\n y = a + x";
        a_carried_value_that_ends_unused: "a = gelu(x)\n repeat 3 as h {\n x = x + a\n a = tanh(a)\n }\n y = x";
        a_repeat_in_a_repeat: "repeat 2 as h { repeat 2 as g {\n param w: [D] ~ ones\n x = tanh(x * w)\n } }\n y = x";
        two_repeats: "repeat 2 as h {\n param w: [D] ~ ones\n x = tanh(x * w)\n }\n repeat 3 as g {\n param w: [D] ~ ones\n x = gelu(x * w)\n }\n y = x";
    }

    #[test]
    fn a_repeat_is_its_turns_one_after_the_other() {
        let rolled = train(&around(
            "repeat 2 as h {\n param w: [D, D] ~ zeros\n param b: [D] ~ zeros\n x = x + tanh(x @ w + b)\n }\n y = x",
        ));
        let unrolled = train(&around(
            "param w0: [D, D] ~ zeros\n param w1: [D, D] ~ zeros\n param b0: [D] ~ zeros\n param b1: [D] ~ zeros
             x = x + tanh(x @ w0 + b0)\n y = x + tanh(x @ w1 + b1)",
        ));
        let (a, b) = (inputs(&rolled.graph), inputs(&unrolled.graph));
        assert_eq!(loss(&rolled.graph, &a), loss(&unrolled.graph, &b));
        let flat = |g: Vec<Vec<dspc_graph::interpret::Tensor>>| g.into_iter().flatten().collect::<Vec<_>>();
        assert_eq!(flat(gradients(&rolled, &a)), flat(gradients(&unrolled, &b)));
    }

    #[test]
    fn a_tied_weight_has_two_contributions_outside_repeats() {
        let train = train(
            "use std::gpt2\nmodel = gpt2::gpt2(layers: 2, heads: 2, width: 6, vocab: data.vocab, context: data.sequence)",
        );
        let wte = train.graph.params.iter().position(|p| p.name == "wte").unwrap();
        assert_eq!(train.gradients[wte].contributions.len(), 2);
        assert_eq!(train.update(train.gradients[wte].update).name, "decay");
    }

    #[test]
    fn a_backward_repeat_goes_from_the_last_turn_to_the_first() {
        let train = train(&around("repeat 3 as h { x = tanh(x) }\n y = x"));
        let repeats: Vec<_> = train
            .graph
            .body
            .steps
            .iter()
            .filter_map(|s| match s {
                dspc_graph::ir::Step::Repeat(r) => Some((r.id, r.reverse, r.mirrors)),
                dspc_graph::ir::Step::Op(_) => None,
            })
            .collect();
        assert_eq!(repeats, [(repeats[0].0, false, None), (repeats[1].0, true, Some(repeats[0].0))]);
    }

    /// (L(θ + εv) − L(θ − εv)) / 2ε against ⟨∇L, v⟩.
    fn assert_direction(text: &str, bound: f64) {
        let train = train(text);
        let inputs = inputs(&train.graph);
        let gradients = gradients(&train, &inputs);
        for seed in 0..3 {
            let mut numbers = crate::fixture::Numbers(seed);
            let direction: Vec<Vec<_>> =
                inputs.params.iter().map(|ts| ts.iter().map(|t| numbers.tensor(&t.dims)).collect()).collect();
            let at = |h: f64| {
                let mut moved = inputs.clone();
                for (ps, vs) in moved.params.iter_mut().zip(&direction) {
                    for (p, v) in ps.iter_mut().zip(vs) {
                        p.data.iter_mut().zip(&v.data).for_each(|(p, v)| *p += h * v);
                    }
                }
                loss(&train.graph, &moved)
            };
            let h = 1e-4;
            let slope = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
            let pairs = gradients.iter().flatten().zip(direction.iter().flatten());
            let product: f64 = pairs.flat_map(|(g, v)| g.data.iter().zip(&v.data)).map(|(g, v)| g * v).sum();
            let size: f64 =
                gradients.iter().flatten().flat_map(|g| &g.data).map(|g| g * g).sum::<f64>().sqrt();
            let error = (slope - product).abs() / slope.abs().max(size);
            assert!(error < bound, "{product} for {slope}: {error}");
        }
    }

    /// Lines that keep `x` a `[B, T, 6]` of moderate size, whatever stands before them; `#` is a number of its own for each.
    const LINES: &[&str] = &[
        "x = x + tanh(x)",
        "x = tanh(linear(x, D) as l#) - x",
        "x = norm(x * 2) as n#",
        "x = rms(x) as n#",
        "x = gelu(x) * sigmoid(x)",
        "param b#: [T, D] ~ zeros\n x = x + b#",
        "x = attend(x, tanh(x), x, heads: 2, mask: causal & window(3))",
        "x = rope(x, heads: 3)",
        "x = dropout(x, 0.3)",
        "x = tanh(x) * mean(x)",
        "u#, v# = split(linear(x, 12) as s#, 2)\n x = tanh(u# * silu(v#))",
        "x = linear(concat(x, tanh(x)), D) as c#",
        "repeat 2 as h# {\n param w: [D] ~ ones\n x = tanh(x * w + x)\n }",
        "y# = x\n repeat 3 as h# {\n z = tanh(y#)\n y# = norm(x) as n\n x = z\n }\n x = x + y#",
        "repeat 2 as h# { repeat 2 as g { x = x + dropout(linear(x, D) as l, 0.2) } }",
        "a# = tanh(x)\n repeat 2 as h# { x = x * 0.5 + a# }",
    ];

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]

        #[test]
        fn any_model_of_these_lines(picks in proptest::collection::vec(0..LINES.len(), 1..6)) {
            let lines: Vec<String> = picks.iter().enumerate().map(|(i, p)| LINES[*p].replace('#', &i.to_string())).collect();
            assert_direction(&around(&format!("{}\n y = x", lines.join("\n"))), 1e-5);
        }
    }

    #[test]
    fn a_small_gpt2() {
        assert_direction(
            "use std::gpt2
             model = gpt2::gpt2(layers: 2, heads: 2, width: 6, vocab: data.vocab, context: data.sequence, dropout: 0.1)",
            1e-7,
        );
    }

    #[test]
    fn a_small_llama() {
        assert_direction(
            "use std::llama
             model = llama::llama(layers: 2, heads: 2, kv_heads: 1, width: 8, hidden: 5, vocab: data.vocab)",
            1e-7,
        );
    }
}
