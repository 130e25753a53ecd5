//! The graph's verifier: a bug of ours found before it becomes wrong numbers.
//!
//! Checks
//! - every op's results have the dims that the op infers from its operands', and are ids or floats as it says; a float may be stored in any float type, but
//!   a view is of its operand's type, and what a kernel reads through one type is of one type;
//! - every value is written once, and before it is read; a repeat's body reads its own values, those before the repeat, and those of the
//!   repeat it mirrors;
//! - what a repeat carries keeps its type: before, in a turn, after a turn, after the last;
//! - there is no repeat inside a repeat;
//! - values and parameters have unique names; a parameter of a repeat is read in that repeat or its mirror alone;
//! - the loss is a scalar.
//!
//! Does not check what the ops compute, nor that a gradient is the right one: tests do.

use std::collections::{BTreeMap, BTreeSet};

use crate::form::Form;
use crate::ir::{Block, DType, Def, Graph, OpNode, Repeat, RepeatId, Step, TensorType, ValueId};

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
                    let found: Vec<&TensorType> = node.outputs.iter().map(|v| self.graph.ty(*v)).collect();
                    let fits = |(found, inferred): (&&TensorType, &TensorType)| {
                        let ids = |ty: &TensorType| ty.dtype == DType::I32;
                        found.dims == inferred.dims && ids(found) == ids(inferred)
                    };
                    if found.len() != types.len() || !found.iter().zip(&types).all(fits) {
                        self.fault(format!("`{by}` does not have the type that `{}` yields", node.op.name()));
                    } else if let Some(what) = storage_fault(node, self.graph) {
                        self.fault(format!("`{by}`: {what}"));
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

/// What the op's kernel does not accept about the types that its operands and results are stored in.
fn storage_fault(node: &OpNode, graph: &Graph) -> Option<&'static str> {
    let types = |values: &[ValueId]| values.iter().map(|v| graph.ty(*v)).collect::<Vec<_>>();
    let (inputs, outputs) = (types(&node.inputs), types(&node.outputs));
    let same = |types: &[&TensorType]| types.iter().all(|ty| ty.dtype == types[0].dtype);
    let f32 = |ty: &TensorType| ty.dtype == DType::F32;
    match node.op.form(&inputs, &outputs) {
        Form::Row(_) => None,
        Form::Contract { .. } => (!same(&inputs)).then_some("the factors are of two types"),
        Form::Attention(_) => {
            let of_one_type = same(&[inputs[0], inputs[1], inputs[2], outputs[0]]) && f32(outputs[1]);
            (!of_one_type).then_some("q, k, v and the result are of one type, the statistics f32")
        }
        Form::AttentionBackward(_) => {
            let tensors = [&inputs[..4], &inputs[5..], &outputs].concat();
            let of_one_type = same(&tensors) && f32(inputs[4]);
            (!of_one_type).then_some("the tensors and their gradients are of one type, the statistics f32")
        }
        Form::View(_) | Form::Concat { .. } | Form::Pad { .. } => {
            let whole = [&inputs[..], &outputs].concat();
            (!same(&whole)).then_some("what is not computed keeps its type")
        }
        Form::ScatterAdd => (!f32(outputs[0])).then_some("rows are added in f32"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ir::{Carried, Dim, Init, Param, ParamId, TensorType, Value};
    use crate::ops::Binary;

    /// A repeat of two turns that adds each turn's `w` to `x`.
    fn small() -> Graph {
        let mut g = Graph::default();
        let ty = TensorType::f32(vec![Dim::new("D", 4)]);
        let span = dspc_source::Span::new(dspc_source::FileId(0), 0, 0);
        g.params.push(Param {
            name: "h.*.w".into(),
            ty: ty.clone(),
            init: Init::Zeros,
            turns: Some(2),
            span,
        });
        g.params.push(Param { name: "x".into(), ty: ty.clone(), init: Init::Zeros, turns: None, span });
        let mut add =
            |name: &str, def| g.add_value(Value { name: name.into(), ty: ty.clone(), def, span: None });
        let w = add("h.w", Def::Param(ParamId(0)));
        let x = add("x", Def::Param(ParamId(1)));
        let arg = add("h.x", Def::RepeatArg(RepeatId(0)));
        let result = add("h.y", Def::Op);
        let out = add("y", Def::RepeatOut(RepeatId(0)));
        let node = OpNode {
            op: Arc::new(Binary::ADD),
            inputs: vec![arg, w],
            outputs: vec![result],
            origin: String::new(),
        };
        g.body.steps.push(Step::Repeat(Repeat {
            id: RepeatId(0),
            name: "h".into(),
            count: 2,
            reverse: false,
            mirrors: None,
            carried: vec![Carried { init: x, arg, result, out }],
            body: Block { steps: vec![Step::Op(node)] },
        }));
        g
    }

    fn body(g: &mut Graph) -> &mut Repeat {
        match &mut g.body.steps[0] {
            Step::Repeat(r) => r,
            Step::Op(_) => unreachable!("the only step is a repeat"),
        }
    }

    fn faults(change: impl FnOnce(&mut Graph)) -> Vec<String> {
        let mut g = small();
        change(&mut g);
        verify(&g).err().unwrap_or_default().into_iter().map(|f| f.message).collect()
    }

    #[test]
    fn a_right_graph_passes() {
        assert_eq!(faults(|_| {}), [""; 0]);
    }

    #[test]
    fn a_wrong_type_is_found() {
        let found = faults(|g| g.values[3].ty.dims[0].size = 5);
        assert!(found.contains(&"`h.y` does not have the type that `add` yields".to_owned()), "{found:?}");
        assert!(found.contains(&"`x` changes its type in `h`".to_owned()), "{found:?}");
    }

    #[test]
    fn two_values_of_one_name_are_found() {
        assert_eq!(faults(|g| g.values[3].name = "x".into()), ["two values are called `x`"]);
    }

    #[test]
    fn a_read_before_its_write_is_found() {
        let late = faults(|g| {
            let Step::Op(node) = &mut body(g).body.steps[0] else { return };
            node.inputs[0] = ValueId(4);
        });
        assert_eq!(late, ["`h.y` reads `y` before it is written"]);
    }

    #[test]
    fn a_second_write_is_found() {
        let twice = faults(|g| {
            let again = body(g).body.steps[0].clone();
            body(g).body.steps.push(again);
        });
        assert_eq!(twice, ["`h.y` is written twice"]);
    }

    #[test]
    fn a_parameter_of_a_repeat_outside_it_is_found() {
        let found = faults(|g| body(g).carried[0].init = ValueId(0));
        assert_eq!(found, ["`h` reads `h.*.w` outside its repeat"]);
        assert_eq!(faults(|g| g.params[0].turns = Some(3)), ["`h.y` reads `h.*.w` outside its repeat"]);
    }

    #[test]
    fn a_repeat_in_a_repeat_is_found() {
        let found = faults(|g| {
            let inner = g.body.steps[0].clone();
            body(g).body.steps.push(inner);
        });
        assert_eq!(found, ["the repeat `h` is in a repeat"]);
    }

    #[test]
    fn a_mirror_of_nothing_is_found() {
        assert_eq!(
            faults(|g| body(g).mirrors = Some(RepeatId(7))),
            ["`h` mirrors a repeat that is not before it"]
        );
    }

    #[test]
    fn a_loss_with_dims_is_found() {
        assert_eq!(faults(|g| g.loss = Some(ValueId(4))), ["the loss is no scalar"]);
    }
}
