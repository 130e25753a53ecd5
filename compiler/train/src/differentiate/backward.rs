//! The walk: steps from the last to the first, each value's gradient a sum of what its users contribute.

use std::collections::{BTreeMap, BTreeSet};

use dspc_graph::ir::{
    Block, Carried, Def, GradientBuilder, Graph, Input, OpNode, Repeat, RepeatId, Step, TensorType, ValueId,
};
use dspc_graph::ops::{gradient_name, sum_of_gradients};

use super::builder::Builder;

/// Contributions by value.
type Terms = BTreeMap<ValueId, Vec<ValueId>>;

/// The state of the walk.
pub(super) struct Backward {
    builder: Builder,
    /// Not yet summed; a parameter's never are.
    terms: Terms,
    /// Which value each gradient is of; the first, where one gradient is that of several.
    primals: BTreeMap<ValueId, ValueId>,
    repeats: u32,
}

impl Backward {
    pub fn new(graph: Graph, wanted: BTreeSet<ValueId>) -> Self {
        let repeats = graph.body.steps.iter().filter(|s| matches!(s, Step::Repeat(_))).count() as u32;
        Self { builder: Builder::new(graph, wanted), terms: Terms::new(), primals: BTreeMap::new(), repeats }
    }

    /// The graph, the backward steps, what is left: the parameters' contributions, and which value each gradient is of.
    pub fn finish(self) -> (Graph, Vec<Step>, Terms, BTreeMap<ValueId, ValueId>) {
        (self.builder.graph, self.builder.steps, self.terms, self.primals)
    }

    /// A scalar that is handed in.
    pub fn input(&mut self, name: &str, input: Input) -> ValueId {
        self.builder.add(name, TensorType::scalar(), Def::Input(input))
    }

    /// A constant of a value's type, called after its gradient.
    pub fn fill(&mut self, number: f64, like: ValueId, origin: &str) -> ValueId {
        let (name, ty) = (gradient_name(&self.builder.name(like)), self.builder.ty(like));
        self.builder.origin = origin.to_owned();
        let filled = self.builder.fill(number, ty, &name);
        self.primals.insert(filled, like);
        filled
    }

    /// `grad` is a term of the gradient of `value`.
    pub fn contribute(&mut self, value: ValueId, grad: ValueId) {
        self.primals.entry(grad).or_insert(value);
        self.terms.entry(value).or_default().push(grad);
    }

    /// The backward of `steps`.
    pub fn steps(&mut self, steps: &[Step]) {
        for step in steps.iter().rev() {
            match step {
                Step::Op(node) => self.op(node),
                Step::Repeat(repeat) => self.repeat(repeat),
            }
        }
    }

    /// The sum of a value's terms, taken once all its users have contributed.
    fn gradient_of(&mut self, value: ValueId) -> Option<ValueId> {
        let terms = self.terms.remove(&value)?;
        let name = gradient_name(&self.builder.name(value));
        terms.into_iter().reduce(|sum, term| {
            let sum = self.builder.emit(sum_of_gradients(), &[sum, term], &name)[0];
            self.primals.insert(sum, value);
            sum
        })
    }

    fn op(&mut self, node: &OpNode) {
        self.builder.origin.clone_from(&node.origin);
        let grads: Vec<Option<ValueId>> = node.outputs.iter().map(|v| self.gradient_of(*v)).collect();
        if grads.iter().all(Option::is_none) {
            return;
        }
        let before = self.builder.graph.values.len();
        let terms = node.op.gradient(&mut self.builder, &node.inputs, &node.outputs, &grads);
        for (input, term) in node.inputs.iter().zip(terms) {
            let Some(term) = term.filter(|_| self.builder.wanted.contains(input)) else { continue };
            if term.0 as usize >= before {
                let name = gradient_name(&self.builder.name(*input));
                self.builder.rename(term, &name);
            }
            self.contribute(*input, term);
        }
    }

    fn repeat(&mut self, repeat: &Repeat) {
        let graph = &self.builder.graph;
        let wanted = |c: &&Carried| self.builder.wanted.contains(&c.arg) || self.terms.contains_key(&c.out);
        let carried: Vec<Carried> = repeat.carried.iter().filter(wanted).copied().collect();
        let dtype_of = |v: ValueId| graph.ty(v).dtype;
        debug_assert!(carried.iter().all(|c| dtype_of(c.arg) != dspc_graph::ir::DType::I32));
        if !carried.iter().any(|c| self.terms.contains_key(&c.out)) {
            return;
        }
        let id = RepeatId(self.repeats);
        self.repeats += 1;
        let inits: Vec<ValueId> = carried.iter().map(|c| self.gradient_or_zero(c.out)).collect();
        let outside = std::mem::take(&mut self.builder.steps);
        let outer_terms = std::mem::take(&mut self.terms);

        let args: Vec<ValueId> =
            carried.iter().map(|c| self.repeat_value(c.result, Def::RepeatArg(id))).collect();
        for (c, arg) in carried.iter().zip(&args) {
            self.contribute(c.result, *arg);
        }
        self.steps(&repeat.body.steps);
        let results: Vec<ValueId> = carried.iter().map(|c| self.gradient_or_zero(c.arg)).collect();
        let inner_terms = std::mem::replace(&mut self.terms, outer_terms);

        let mut backward = vec![];
        for (((c, init), arg), result) in carried.iter().zip(inits).zip(args).zip(results) {
            let out = self.repeat_value(c.init, Def::RepeatOut(id));
            backward.push(Carried { init, arg, result, out });
        }
        let own = written(&repeat.body.steps);
        let mut before = outside;
        for (value, terms) in inner_terms {
            if own.contains(&value) || repeat.carried.iter().any(|c| c.arg == value) {
                continue;
            }
            if self.is_of_turn(value) {
                self.terms.entry(value).or_default().extend(terms);
                continue;
            }
            backward.push(self.accumulate(id, value, terms, &mut before));
        }
        let body = Block { steps: std::mem::replace(&mut self.builder.steps, before) };
        for (c, b) in carried.iter().zip(&backward) {
            if self.builder.wanted.contains(&c.init) {
                self.contribute(c.init, b.out);
            }
        }
        let name = repeat.name.clone();
        let count = repeat.count;
        let mirrors = Some(repeat.id);
        self.builder.steps.push(Step::Repeat(Repeat {
            id,
            name,
            count,
            reverse: true,
            mirrors,
            carried: backward,
            body,
        }));
    }

    /// A value of outside that turns use: its gradient is a sum over the turns, carried from turn to turn.
    fn accumulate(
        &mut self,
        id: RepeatId,
        value: ValueId,
        terms: Vec<ValueId>,
        before: &mut Vec<Step>,
    ) -> Carried {
        let body = std::mem::replace(&mut self.builder.steps, std::mem::take(before));
        let init = self.fill(0.0, value, "");
        *before = std::mem::replace(&mut self.builder.steps, body);
        let arg = self.repeat_value(value, Def::RepeatArg(id));
        let name = gradient_name(&self.builder.name(value));
        let mut result = arg;
        for term in terms {
            result = self.builder.emit(sum_of_gradients(), &[result, term], &name)[0];
            self.primals.insert(result, value);
        }
        let out = self.repeat_value(value, Def::RepeatOut(id));
        self.contribute(value, out);
        Carried { init, arg, result, out }
    }

    fn gradient_or_zero(&mut self, value: ValueId) -> ValueId {
        match self.gradient_of(value) {
            Some(grad) => grad,
            None => self.fill(0.0, value, ""),
        }
    }

    fn repeat_value(&mut self, of: ValueId, def: Def) -> ValueId {
        let name = gradient_name(&self.builder.name(of));
        let ty = self.builder.ty(of);
        let gradient = self.builder.add(&name, ty, def);
        self.primals.insert(gradient, of);
        gradient
    }

    /// A parameter that each turn has one of.
    fn is_of_turn(&self, value: ValueId) -> bool {
        match self.builder.graph.value(value).def {
            Def::Param(param) => self.builder.graph.param(param).turns.is_some(),
            _ => false,
        }
    }
}

fn written(steps: &[Step]) -> BTreeSet<ValueId> {
    let ops = steps.iter().filter_map(|s| match s {
        Step::Op(node) => Some(&node.outputs),
        Step::Repeat(_) => None,
    });
    ops.flatten().copied().collect()
}
