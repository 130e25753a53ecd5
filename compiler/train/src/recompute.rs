//! Recomputation: what the backward pass of a repeat reads is partly computed again instead of kept for every turn.
//!
//! Reads   a training graph; how much may be computed again.
//! Writes  the same graph with ops of the forward repeats repeated inside the repeats that mirror them: row ops each before its first reader, all
//!         at the mirror's start where products are among them.
//! Keeps   every gradient to the bit: an op done again sees the operands, the random site and the turn that it saw first. (In 16 bits what is done again in the
//!         kernel that reads it is not rounded in between.) The forward pass.
//! Leaves  alone what stands outside repeats: it is kept once, not once a turn.
//! Cost    one minimum cut a repeat, over the values of one turn.
//!
//! What to save is not a list of op names. [`Recompute::Norms`] may do row ops again (element-wise work, norms, dropout), whose cost is their
//! traffic; the scalars that a norm keeps for each row stay saved, so that no sum is made twice. [`Recompute::Products`] may do some products and attention
//! again as well, those first that cost the fewest FLOPs for a byte. [`Recompute::Block`] may do everything again, so that only
//! what goes from turn to turn is saved. Of all choices the least bytes are saved, and of those as little as possible is done again.

mod again;
mod cut;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use dspc_graph::form::Form;
use dspc_graph::ir::{Block, Def, Graph, Op, OpNode, Repeat, RepeatId, Step, TensorType, Value, ValueId};
use dspc_graph::rowfn::Yield;

use crate::TrainGraph;
use again::Again;
use cut::{Wanted, least_saved};

/// How much the backward pass computes again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Recompute {
    /// Nothing: all that it reads is saved.
    #[default]
    None,
    /// Row ops.
    Norms,
    /// Row ops, and in each turn so many of the products and attentions.
    Products(u32),
    /// Whole turns, from what is carried into them.
    Block,
}

impl std::fmt::Display for Recompute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Recompute::None => f.write_str("none"),
            Recompute::Norms => f.write_str("norms"),
            Recompute::Products(1) => f.write_str("norms and a product of each turn"),
            Recompute::Products(count) => write!(f, "norms and {count} products of each turn"),
            Recompute::Block => f.write_str("block"),
        }
    }
}

/// The most that [`Recompute::Products`] can count.
pub fn products_of_turns(train: &TrainGraph) -> u32 {
    let repeats = train.graph.body.steps[..train.backward_start].iter().filter_map(|step| match step {
        Step::Repeat(repeat) => Some(products(&train.graph, repeat).len() as u32),
        Step::Op(_) => None,
    });
    repeats.max().unwrap_or(0)
}

/// The products and attentions of a turn, those first that cost the fewest FLOPs for a byte that they yield; of equal ones the largest.
fn products<'a>(graph: &Graph, repeat: &'a Repeat) -> Vec<&'a OpNode> {
    let mut all: Vec<(f64, u64, &OpNode)> = vec![];
    for step in &repeat.body.steps {
        let Step::Op(node) = step else { continue };
        if let Form::Contract { .. } | Form::Attention(_) = form_of(graph, node) {
            let (inputs, outputs) = types_of(graph, node);
            let bytes: u64 = outputs.iter().map(|ty| ty.bytes()).sum();
            all.push((node.op.cost(&inputs, &outputs).flops / bytes.max(1) as f64, bytes, node));
        }
    }
    all.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
    all.into_iter().map(|(_, _, node)| node).collect()
}

/// Lets the backward repeats compute again what need not be saved.
#[must_use]
pub fn recompute(mut train: TrainGraph, what: Recompute) -> TrainGraph {
    train.recompute = what;
    if what == Recompute::None {
        return train;
    }
    let mut steps = std::mem::take(&mut train.graph.body.steps);
    let (forward, backward) = steps.split_at_mut(train.backward_start);
    for step in backward {
        let Step::Repeat(mirror) = step else { continue };
        if let Some(turn) = mirror.mirrors.and_then(|id| repeat_of(forward, id)) {
            rewrite(&mut train, turn, mirror, what);
        }
    }
    train.graph.body.steps = steps;
    train
}

fn repeat_of(steps: &[Step], id: RepeatId) -> Option<&Repeat> {
    steps.iter().find_map(|step| match step {
        Step::Repeat(repeat) if repeat.id == id => Some(repeat),
        _ => None,
    })
}

fn rewrite(train: &mut TrainGraph, turn: &Repeat, mirror: &mut Repeat, what: Recompute) {
    let in_order: Vec<ValueId> = turn.body.steps.iter().flat_map(results).copied().collect();
    let turn = Turn::of(&train.graph, turn, what);
    let reads = turn.read_by(mirror);
    let saved = least_saved(&turn.wanted(&train.graph, &reads), &reads);
    let names = train.graph.values.iter().map(|v| v.name.clone()).collect();
    let mut writer = Writer {
        graph: &mut train.graph,
        again: &mut train.again,
        turn,
        saved,
        names,
        done: HashMap::new(),
        steps: vec![],
    };
    if what > Recompute::Norms {
        // The last op's gradient needs nearly all of it: done first and in order, it fuses as it did in the forward pass.
        in_order.iter().filter(|v| reads.contains(v)).for_each(|v| _ = writer.available(*v));
    }
    for mut step in std::mem::take(&mut mirror.body.steps) {
        if let Step::Op(node) = &mut step {
            node.inputs.iter_mut().for_each(|v| *v = writer.available(*v));
        }
        writer.steps.push(step);
    }
    mirror.carried.iter_mut().for_each(|c| c.result = writer.available(c.result));
    mirror.body = Block { steps: writer.steps };
}

fn results(step: &Step) -> &[ValueId] {
    match step {
        Step::Op(node) => &node.outputs,
        Step::Repeat(_) => &[],
    }
}

/// A forward repeat's turn.
struct Turn<'a> {
    what: Recompute,
    /// What it receives.
    args: BTreeSet<ValueId>,
    /// Results of products that may be done again.
    redone: BTreeSet<ValueId>,
    /// The op that yields a value, its form, and which of its results the value is.
    producers: HashMap<ValueId, (&'a OpNode, Form, usize)>,
}

impl<'a> Turn<'a> {
    fn of(graph: &Graph, repeat: &'a Repeat, what: Recompute) -> Self {
        let mut producers = HashMap::new();
        for step in &repeat.body.steps {
            let Step::Op(node) = step else { continue };
            let form = form_of(graph, node);
            for (result, value) in node.outputs.iter().enumerate() {
                producers.insert(*value, (node, form.clone(), result));
            }
        }
        let count = if let Recompute::Products(count) = what { count as usize } else { 0 };
        let redone =
            products(graph, repeat).iter().take(count).flat_map(|node| &node.outputs).copied().collect();
        Self { what, args: repeat.carried.iter().map(|c| c.arg).collect(), redone, producers }
    }

    /// Whether there is one of it a turn.
    fn owns(&self, value: ValueId) -> bool {
        self.args.contains(&value) || self.producers.contains_key(&value)
    }

    /// The turn's values that its mirror reads.
    fn read_by(&self, mirror: &Repeat) -> BTreeSet<ValueId> {
        let ops = mirror.body.steps.iter().filter_map(|step| match step {
            Step::Op(node) => Some(&node.inputs),
            Step::Repeat(_) => None,
        });
        let results = mirror.carried.iter().map(|c| c.result);
        ops.flatten().copied().chain(results).filter(|v| self.owns(*v)).collect()
    }

    /// Those that are read and those that they could be computed from.
    fn wanted(&self, graph: &Graph, reads: &BTreeSet<ValueId>) -> BTreeMap<ValueId, Wanted> {
        let mut all = BTreeMap::new();
        let mut open: Vec<ValueId> = reads.iter().copied().collect();
        while let Some(value) = open.pop() {
            if all.contains_key(&value) {
                continue;
            }
            let wanted = self.wanted_one(graph, value);
            open.extend(wanted.from.iter().flatten());
            all.insert(value, wanted);
        }
        all
    }

    fn wanted_one(&self, graph: &Graph, value: ValueId) -> Wanted {
        let bytes = Some(graph.ty(value).bytes());
        let Some((node, form, result)) = self.producers.get(&value) else {
            return Wanted { bytes, from: None };
        };
        let own = |values: &mut dyn Iterator<Item = ValueId>| values.filter(|v| self.owns(*v)).collect();
        let operands = own(&mut node.inputs.iter().copied());
        match (form, self.what) {
            (Form::View(_), _) => Wanted { bytes: None, from: Some(operands) },
            (_, Recompute::Block) => Wanted { bytes: None, from: Some(operands) },
            (Form::Row(f), _)
                if matches!(f.outputs[*result], Yield::Element(_)) && is_local(f.outputs.as_slice()) =>
            {
                let from =
                    own(&mut node.inputs.iter().copied().chain(row_results(node, f.outputs.as_slice())));
                Wanted { bytes, from: Some(from) }
            }
            _ if self.redone.contains(&value) => Wanted { bytes, from: Some(operands) },
            _ => Wanted { bytes, from: None },
        }
    }
}

/// No result is a sum over rows.
fn is_local(outputs: &[Yield]) -> bool {
    outputs.iter().all(|y| !matches!(y, Yield::ColumnSum(_)))
}

/// The results that are one scalar a row.
fn row_results<'n>(node: &'n OpNode, outputs: &'n [Yield]) -> impl Iterator<Item = ValueId> + 'n {
    node.outputs.iter().zip(outputs).filter(|(_, y)| matches!(y, Yield::Row(_))).map(|(v, _)| *v)
}

fn form_of(graph: &Graph, node: &OpNode) -> Form {
    let (inputs, outputs) = types_of(graph, node);
    node.op.form(&inputs, &outputs)
}

fn types_of<'g>(graph: &'g Graph, node: &OpNode) -> (Vec<&'g TensorType>, Vec<&'g TensorType>) {
    let types = |ids: &[ValueId]| ids.iter().map(|v| graph.ty(*v)).collect();
    (types(&node.inputs), types(&node.outputs))
}

/// The mirror's body being written.
struct Writer<'a, 't> {
    graph: &'a mut Graph,
    again: &'a mut BTreeSet<ValueId>,
    turn: Turn<'t>,
    saved: BTreeSet<ValueId>,
    names: BTreeSet<String>,
    /// What stands for a value of the turn from here on.
    done: HashMap<ValueId, ValueId>,
    steps: Vec<Step>,
}

impl Writer<'_, '_> {
    /// The value to read in the mirror: itself if it is saved or of outside, else that of an op done again.
    fn available(&mut self, value: ValueId) -> ValueId {
        if self.saved.contains(&value) {
            return value;
        }
        if let Some(done) = self.done.get(&value) {
            return *done;
        }
        let Some((node, form, _)) = self.turn.producers.get(&value).cloned() else { return value };
        let mut inputs: Vec<ValueId> = node.inputs.iter().map(|v| self.available(*v)).collect();
        if matches!(form, Form::View(_)) && inputs == node.inputs {
            return value;
        }
        let mut outputs = node.outputs.clone();
        let mut op: Arc<dyn Op> = node.op.clone();
        if let (Form::Row(function), Recompute::Norms | Recompute::Products(_)) = (&form, self.turn.what) {
            let known: Vec<ValueId> = row_results(node, &function.outputs).collect();
            if !known.is_empty() {
                op = Arc::new(Again::new(op.as_ref(), function, &types_of(self.graph, node).1));
                inputs.extend(known.iter().map(|v| self.available(*v)));
                outputs.retain(|v| !known.contains(v));
            }
        }
        let copies: Vec<ValueId> = outputs.iter().map(|v| self.copy(*v)).collect();
        self.done.extend(outputs.iter().copied().zip(copies.iter().copied()));
        self.steps.push(Step::Op(OpNode { op, inputs, outputs: copies, origin: node.origin.clone() }));
        self.done[&value]
    }

    /// A value of the same type, called `h.gelu.again`.
    fn copy(&mut self, value: ValueId) -> ValueId {
        let Value { name, ty, span, .. } = self.graph.value(value).clone();
        let wanted = format!("{name}.again");
        let mut name = wanted.clone();
        let mut count = 1;
        while !self.names.insert(name.clone()) {
            count += 1;
            name = format!("{wanted}{count}");
        }
        let copy = self.graph.add_value(Value { name, ty, def: Def::Op, span });
        self.again.insert(copy);
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{gradients, inputs, loss, train};

    const GPT2: &str = "use std::gpt2
        model = gpt2::gpt2(layers: 3, heads: 2, width: 6, vocab: data.vocab, context: data.sequence, dropout: 0.1)";
    const LLAMA: &str = "use std::llama
        model = llama::llama(layers: 2, heads: 2, kv_heads: 1, width: 8, hidden: 5, vocab: data.vocab)";

    /// A model around a repeat's lines, which keep `x` a `[B, T, 6]`.
    fn around(lines: &str) -> String {
        format!(
            "model m(tokens: ids[B, T], targets: ids[B, T], width: D, vocab: V) -> loss {{
               param table: [V, D] ~ normal(1)
               x = table[tokens]
               repeat 3 as h {{
                 {lines}
               }}
               cross_entropy(x @ transpose(table), targets)
             }}
             model = m(width: 6, vocab: data.vocab)"
        )
    }

    /// What the mirrors of a training graph read of their forward repeats' turns, views as what they are views of.
    fn saved(train: &TrainGraph) -> Vec<String> {
        let mut names = BTreeSet::new();
        let (forward, backward) = train.graph.body.steps.split_at(train.backward_start);
        for step in backward {
            let Step::Repeat(mirror) = step else { continue };
            let Some(repeat) = mirror.mirrors.and_then(|id| repeat_of(forward, id)) else { continue };
            let turn = Turn::of(&train.graph, repeat, Recompute::None);
            for mut value in turn.read_by(mirror) {
                while let Some((node, Form::View(_), _)) = turn.producers.get(&value) {
                    value = node.inputs[0];
                }
                if turn.owns(value) {
                    names.insert(train.graph.value(value).name.clone());
                }
            }
        }
        names.into_iter().collect()
    }

    fn assert_same_bits(text: &str) {
        let plain = train(text);
        let inputs = inputs(&plain.graph);
        let expected = (loss(&plain.graph, &inputs), gradients(&plain, &inputs));
        let products = (1..=products_of_turns(&plain)).map(Recompute::Products);
        for what in [Recompute::None, Recompute::Norms, Recompute::Block].into_iter().chain(products) {
            let again = recompute(plain.clone(), what);
            dspc_graph::verify(&again.graph).unwrap();
            assert_eq!((loss(&again.graph, &inputs), gradients(&again, &inputs)), expected, "{what}: {text}");
        }
    }

    #[test]
    fn the_same_loss_and_gradients_to_the_bit() {
        for text in [GPT2, LLAMA] {
            assert_same_bits(text);
        }
        for lines in [
            "x = x + dropout(gelu(linear(norm(x), D)), 0.3)",
            "x = x + rope(rms(x), heads: 3)",
            "u, v = split(linear(x, 12) as s, 2)\n x = tanh(u * silu(v))",
            "param w: [D] ~ ones\n y = tanh(x * w)\n x = norm(x + y * y)",
            "y = tanh(x)\n x = y + attend(y, gelu(y), y, heads: 2, mask: causal)",
            "x = linear(concat(x, tanh(x)), D) as c",
            "y = reshape(gelu(reshape(x, [B, T, 2, 3])), [B, T, D])\n x = x + y * y",
        ] {
            assert_same_bits(&around(lines));
        }
    }

    #[test]
    fn norms_saves_products_sums_and_the_scalars_of_rows() {
        insta::assert_debug_snapshot!(saved(&recompute(train(GPT2), Recompute::Norms)));
        insta::assert_debug_snapshot!(saved(&recompute(train(LLAMA), Recompute::Norms)));
    }

    #[test]
    fn each_product_done_again_saves_less() {
        let plain = train(GPT2);
        let count = |what| saved(&recompute(plain.clone(), what)).len();
        let counts: Vec<usize> =
            (1..=products_of_turns(&plain)).map(|n| count(Recompute::Products(n))).collect();
        assert!(counts.is_sorted_by(|a, b| a >= b), "{counts:?}");
        assert!(counts[0] < count(Recompute::Norms) || counts[1] < count(Recompute::Norms), "{counts:?}");
        let all = saved(&recompute(plain.clone(), Recompute::Products(5)));
        assert_eq!(all, ["h.ln_1.mean", "h.ln_1.rstd", "h.ln_2.mean", "h.ln_2.rstd", "h.x"]);
    }

    #[test]
    fn block_saves_what_is_carried() {
        assert_eq!(saved(&recompute(train(GPT2), Recompute::Block)), ["h.x"]);
        assert_eq!(saved(&recompute(train(LLAMA), Recompute::Block)), ["layers.x"]);
    }

    #[test]
    fn without_repeats_nothing_changes() {
        let text = around("x = gelu(x)")
            .replace("repeat 3 as h {", "")
            .replace("x = gelu(x)\n               }", "x = gelu(x)");
        let plain = train(&text);
        let again = recompute(plain.clone(), Recompute::Block);
        assert_eq!(crate::print(&again), crate::print(&plain));
        assert!(again.again.is_empty());
    }

    #[test]
    fn a_norm_done_again_makes_no_sums() {
        let again = recompute(train(GPT2), Recompute::Norms);
        let norms = again.graph.body.steps.iter().filter_map(|step| match step {
            Step::Repeat(repeat) if repeat.reverse => Some(&repeat.body.steps),
            _ => None,
        });
        let mut count = 0;
        for step in norms.flatten() {
            let Step::Op(node) = step else { continue };
            if let ("layer_norm", Form::Row(f)) = (node.op.name(), form_of(&again.graph, node)) {
                count += 1;
                assert!(!f.nodes.iter().any(|n| matches!(n, dspc_graph::rowfn::Node::Reduce(..))), "{f:?}");
            }
        }
        assert_eq!(count, 2);
    }
}
