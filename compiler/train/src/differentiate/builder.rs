//! What gradient rules emit into: steps, values, unique names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dspc_graph::ir::{Def, GradientBuilder, Graph, Op, OpNode, Step, TensorType, Value, ValueId};
use dspc_graph::ops::Fill;

/// The graph, and the block of the backward pass being written.
pub(super) struct Builder {
    pub graph: Graph,
    /// The block.
    pub steps: Vec<Step>,
    /// Values with a parameter behind them.
    pub wanted: BTreeSet<ValueId>,
    /// Of the forward op whose gradient is being written.
    pub origin: String,
    names: BTreeSet<String>,
    /// Values that are one number everywhere.
    constants: BTreeMap<ValueId, f64>,
}

impl Builder {
    pub fn new(graph: Graph, wanted: BTreeSet<ValueId>) -> Self {
        let names = graph.values.iter().map(|v| v.name.clone()).collect();
        Self { graph, steps: vec![], wanted, origin: String::new(), names, constants: BTreeMap::new() }
    }

    /// A constant.
    pub fn fill(&mut self, value: f64, ty: TensorType, name: &str) -> ValueId {
        let filled = self.emit(Arc::new(Fill { value, ty }), &[], name)[0];
        self.constants.insert(filled, value);
        filled
    }

    /// A new value under the first free name of `wanted`, `wanted2`, ….
    pub fn add(&mut self, wanted: &str, ty: TensorType, def: Def) -> ValueId {
        let name = self.free(wanted);
        self.graph.add_value(Value { name, ty, def, span: None })
    }

    fn free(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_owned();
        let mut count = 1;
        while !self.names.insert(name.clone()) {
            count += 1;
            name = format!("{wanted}{count}");
        }
        name
    }

    /// Gives a value that was just made the name that says whose gradient it is.
    pub fn rename(&mut self, value: ValueId, wanted: &str) {
        let old = std::mem::take(&mut self.graph.values[value.0 as usize].name);
        self.names.remove(&old);
        let name = self.free(wanted);
        self.graph.values[value.0 as usize].name = name;
    }
}

impl GradientBuilder for Builder {
    fn emit(&mut self, op: Arc<dyn Op>, inputs: &[ValueId], name: &str) -> Vec<ValueId> {
        let types: Vec<&TensorType> = inputs.iter().map(|v| self.graph.ty(*v)).collect();
        let types = match op.infer(&types) {
            Ok(types) => types,
            Err(error) => {
                unreachable!("a gradient rule fits its op, and `{name}` does not: {}", error.message)
            }
        };
        if let (true, [input], [ty]) = (op.keeps_constants(), inputs, types.as_slice())
            && let Some(constant) = self.constants.get(input)
        {
            return vec![self.fill(*constant, ty.clone(), name)];
        }
        let suffixes = op.result_suffixes();
        let outputs: Vec<ValueId> = types
            .into_iter()
            .enumerate()
            .map(|(i, ty)| match i.checked_sub(1).and_then(|i| suffixes.get(i)) {
                Some(suffix) => self.add(&format!("{name}.{suffix}"), ty, Def::Op),
                None => self.add(name, ty, Def::Op),
            })
            .collect();
        let origin = self.origin.clone();
        self.steps.push(Step::Op(OpNode { op, inputs: inputs.to_vec(), outputs: outputs.clone(), origin }));
        outputs
    }

    fn ty(&self, value: ValueId) -> TensorType {
        self.graph.ty(value).clone()
    }

    fn name(&self, value: ValueId) -> String {
        self.graph.value(value).name.clone()
    }

    fn needs_gradient(&self, value: ValueId) -> bool {
        self.wanted.contains(&value)
    }
}
