//! The graph's verifier: a bug of ours found before it becomes wrong numbers.
//!
//! Checks
//! - every op's result types are what the op infers from its operands' types;
//! - every value is written once, and before it is read; a repeat's body reads its own values, those before the repeat, and those of the
//!   repeat it mirrors;
//! - what a repeat carries keeps its type: before, in a turn, after a turn, after the last;
//! - there is no repeat inside a repeat;
//! - values and parameters have unique names; a parameter of a repeat is read in that repeat or its mirror alone;
//! - the loss is a scalar.
//!
//! Does not check what the ops compute, nor that a gradient is the right one: tests do.

use std::collections::{BTreeMap, BTreeSet};

use crate::ir::{Block, Def, Graph, OpNode, Repeat, RepeatId, Step, ValueId};

/// A broken invariant; a bug of the compiler, never of the user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// What is broken.
    pub message: String,
}

/// Every broken invariant of `graph`.
///
/// # Errors
/// At least one fault.
pub fn verify(graph: &Graph) -> Result<(), Vec<Fault>> {
    let mut checker = Checker { graph, written: BTreeSet::new(), bodies: BTreeMap::new(), faults: vec![] };
    checker.names();
    checker.block(&graph.body, None);
    checker.loss();
    if checker.faults.is_empty() { Ok(()) } else { Err(checker.faults) }
}

struct Checker<'a> {
    graph: &'a Graph,
    /// What can be read here.
    written: BTreeSet<ValueId>,
    /// What a finished repeat's turn wrote.
    bodies: BTreeMap<RepeatId, BTreeSet<ValueId>>,
    faults: Vec<Fault>,
}

impl Checker<'_> {
    fn fault(&mut self, message: String) {
        self.faults.push(Fault { message });
    }

    fn name(&self, value: ValueId) -> &str {
        self.graph.values.get(value.0 as usize).map_or("?", |v| v.name.as_str())
    }

    fn names(&mut self) {
        let mut seen = BTreeSet::new();
        for value in &self.graph.values {
            if !seen.insert(value.name.as_str()) {
                self.faults.push(Fault { message: format!("two values are called `{}`", value.name) });
            }
        }
        let mut seen = BTreeSet::new();
        for param in &self.graph.params {
            if !seen.insert(param.name.as_str()) {
                self.faults.push(Fault { message: format!("two parameters are called `{}`", param.name) });
            }
        }
    }

    fn block(&mut self, block: &Block, within: Option<&Repeat>) {
        for step in &block.steps {
            match (step, within) {
                (Step::Op(node), _) => self.op(node, within),
                (Step::Repeat(repeat), None) => self.repeat(repeat),
                (Step::Repeat(repeat), Some(_)) => {
                    self.fault(format!("the repeat `{}` is in a repeat", repeat.name))
                }
            }
        }
    }

    fn read(&mut self, value: ValueId, within: Option<&Repeat>, by: &str) {
        let Some(data) = self.graph.values.get(value.0 as usize) else {
            return self.fault(format!("`{by}` reads a value that does not exist"));
        };
        match &data.def {
            Def::Input(_) | Def::Table(_) => {}
            Def::Param(param) => match self.graph.params.get(param.0 as usize) {
                None => self.fault(format!("`{}` is of a parameter that does not exist", data.name)),
                Some(p) => {
                    let fits = p.turns.is_none_or(|turns| within.is_some_and(|r| r.count == turns));
                    if !fits {
                        self.fault(format!("`{by}` reads `{}` outside its repeat", p.name));
                    }
                    if p.ty != data.ty {
                        self.fault(format!("`{}` has another type than its parameter", data.name));
                    }
                }
            },
            Def::Op | Def::RepeatArg(_) | Def::RepeatOut(_) => {
                let mirrored = within.and_then(|r| r.mirrors).and_then(|id| self.bodies.get(&id));
                if !self.written.contains(&value) && !mirrored.is_some_and(|body| body.contains(&value)) {
                    self.fault(format!("`{by}` reads `{}` before it is written", self.name(value)));
                }
            }
        }
    }

    fn write(&mut self, value: ValueId) {
        if !self.written.insert(value) {
            self.fault(format!("`{}` is written twice", self.name(value)));
        }
    }

    fn op(&mut self, node: &OpNode, within: Option<&Repeat>) {
        let by = node.outputs.first().map_or_else(|| node.op.name().to_owned(), |v| self.name(*v).to_owned());
        let before = self.faults.len();
        for input in &node.inputs {
            self.read(*input, within, &by);
        }
        if self.faults.len() == before {
            let types: Vec<_> = node.inputs.iter().map(|v| self.graph.ty(*v)).collect();
            match node.op.infer(&types) {
                Err(error) => self.fault(format!("`{by}`: {}", error.message)),
                Ok(types) => {
                    let found: Vec<_> = node.outputs.iter().map(|v| self.graph.ty(*v).clone()).collect();
                    if found != types {
                        self.fault(format!("`{by}` does not have the type that `{}` yields", node.op.name()));
                    }
                }
            }
        }
        for output in &node.outputs {
            if self.graph.value(*output).def != Def::Op {
                self.fault(format!("`{}` is an op's result and says otherwise", self.name(*output)));
            }
            self.write(*output);
        }
    }

    fn repeat(&mut self, repeat: &Repeat) {
        if let Some(id) = repeat.mirrors
            && !self.bodies.contains_key(&id)
        {
            self.fault(format!("`{}` mirrors a repeat that is not before it", repeat.name));
        }
        for c in &repeat.carried {
            self.read(c.init, None, &repeat.name);
            let ty = self.graph.ty(c.init);
            if [c.arg, c.result, c.out].iter().any(|v| self.graph.ty(*v) != ty) {
                self.fault(format!("`{}` changes its type in `{}`", self.name(c.init), repeat.name));
            }
            let defs = (&self.graph.value(c.arg).def, &self.graph.value(c.out).def);
            if defs != (&Def::RepeatArg(repeat.id), &Def::RepeatOut(repeat.id)) {
                self.fault(format!("`{}` is carried by another repeat", self.name(c.arg)));
            }
        }
        let outside = self.written.clone();
        for c in &repeat.carried {
            self.write(c.arg);
        }
        self.block(&repeat.body, Some(repeat));
        for c in &repeat.carried {
            self.read(c.result, Some(repeat), &repeat.name);
        }
        let body = self.written.difference(&outside).copied().collect();
        if self.bodies.insert(repeat.id, body).is_some() {
            self.fault(format!("two repeats are {:?}", repeat.id));
        }
        self.written = outside;
        for c in &repeat.carried {
            self.write(c.out);
        }
    }

    fn loss(&mut self) {
        match self.graph.loss {
            Some(loss) if !self.graph.ty(loss).dims.is_empty() => self.fault("the loss is no scalar".into()),
            Some(_) | None => {}
        }
    }
}
