//! Ops into the block being written; values and their names.

use std::collections::BTreeSet;
use std::sync::Arc;

use dspc_source::Span;

use super::{ELEMENTS_MAX, Elaborator, Naming, OPS_MAX, input_key};
use crate::ir::{DType, Def, Input, Op, OpNode, Step, Table, TensorType, Value, ValueId};
use crate::ops::{Emit, Misuse};

/// Where what is emitted came from.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Path of the values.
    pub path: String,
    /// Dotted path of the layer call, `*` for the turn.
    pub origin: String,
    /// The expression.
    pub span: Span,
}

impl Elaborator<'_> {
    /// A new value.
    pub(super) fn add(&mut self, ty: TensorType, def: Def, naming: Naming) -> ValueId {
        self.namings.push(naming);
        let span = Some(self.emission.span);
        self.graph.add_value(Value { name: String::new(), ty, def, span })
    }

    /// The user's name for a value, if it has none yet.
    pub(super) fn name_value(&mut self, value: ValueId, name: String) {
        let naming = &mut self.namings[value.0 as usize];
        if matches!(naming, Naming::Derived(_) | Naming::Beside(..)) {
            *naming = Naming::Given(name);
        }
    }

    /// A better derived name, that a binding may still replace.
    pub(super) fn rename_derived(&mut self, value: ValueId, name: String) {
        let naming = &mut self.namings[value.0 as usize];
        if matches!(naming, Naming::Derived(_)) {
            *naming = Naming::Derived(name);
        }
    }

    /// Final, unique names: values that are written first, in order.
    pub(super) fn name_values(&mut self) {
        let mut live = BTreeSet::new();
        written(&self.graph.body.steps, &mut live);
        let order = (0..self.graph.values.len()).map(|i| ValueId(i as u32));
        let (first, last): (Vec<_>, Vec<_>) = order.partition(|v| live.contains(v));
        let mut taken = BTreeSet::new();
        for value in first.into_iter().chain(last) {
            let wanted = match &self.namings[value.0 as usize] {
                Naming::Given(name) | Naming::Derived(name) => name.clone(),
                Naming::Beside(of, suffix) => format!("{}.{suffix}", self.graph.value(*of).name),
            };
            self.graph.values[value.0 as usize].name = unique(wanted, &mut taken);
        }
    }

    /// Says that a tensor is beyond the limit.
    pub(super) fn within_limit(&self, ty: &TensorType) -> bool {
        ty.elements() <= ELEMENTS_MAX
    }
}

/// `x`, `x2`, `x3`, …: the first that is free.
fn unique(wanted: String, taken: &mut BTreeSet<String>) -> String {
    let mut name = wanted.clone();
    let mut count = 1;
    while !taken.insert(name.clone()) {
        count += 1;
        name = format!("{wanted}{count}");
    }
    name
}

/// What steps write and read.
fn written(steps: &[Step], live: &mut BTreeSet<ValueId>) {
    for step in steps {
        match step {
            Step::Op(node) => live.extend(node.inputs.iter().chain(&node.outputs)),
            Step::Repeat(repeat) => {
                live.extend(repeat.carried.iter().flat_map(|c| [c.init, c.arg, c.result, c.out]));
                written(&repeat.body.steps, live);
            }
        }
    }
}

impl Emit for Elaborator<'_> {
    fn emit(&mut self, op: Arc<dyn Op>, inputs: &[ValueId]) -> Result<Vec<ValueId>, Misuse> {
        let types: Vec<&TensorType> = inputs.iter().map(|v| self.graph.ty(*v)).collect();
        let results = op.infer(&types).map_err(|error| Misuse::Shape { inputs: inputs.to_vec(), error })?;
        if let Some(ty) = results.iter().find(|ty| !self.within_limit(ty)) {
            let what = format!("the result of `{}`, {},", op.name(), crate::errors::shown(ty));
            return Err(Misuse::Limit { what, limit: "2^40 elements a tensor".into() });
        }
        self.ops += 1;
        if self.ops > OPS_MAX {
            return Err(Misuse::Limit { what: "the model".into(), limit: format!("{OPS_MAX} ops") });
        }
        let suffixes = op.result_suffixes();
        let mut outputs: Vec<ValueId> = vec![];
        for (i, ty) in results.into_iter().enumerate() {
            let naming = match (outputs.first(), i.checked_sub(1).and_then(|i| suffixes.get(i))) {
                (Some(first), Some(suffix)) => Naming::Beside(*first, suffix),
                _ => Naming::Derived(super::join(&self.emission.path, op.name())),
            };
            outputs.push(self.add(ty, Def::Op, naming));
        }
        if op.name() == "transpose" && self.graph.ty(inputs[0]).dims.len() == 2 {
            self.transposes.insert(outputs[0], inputs[0]);
        }
        let origin = self.emission.origin.clone();
        self.steps.push(Step::Op(OpNode { op, inputs: inputs.to_vec(), outputs: outputs.clone(), origin }));
        Ok(outputs)
    }

    fn ty(&self, value: ValueId) -> TensorType {
        self.graph.ty(value).clone()
    }

    fn input(&mut self, input: Input) -> ValueId {
        if let Some(value) = self.inputs.get(&input_key(input)) {
            return *value;
        }
        let (name, dtype, dims) = match input {
            Input::Tokens => ("tokens", DType::I32, vec![self.batch.clone(), self.sequence.clone()]),
            Input::Targets => ("targets", DType::I32, vec![self.batch.clone(), self.sequence.clone()]),
            Input::InvTargets => ("inv_targets", DType::F32, vec![]),
            Input::LossScale => ("loss_scale", DType::F32, vec![]),
            Input::Rng => ("rng", DType::I32, vec![crate::ir::Dim::of(4)]),
        };
        let value = self.add(TensorType { dtype, dims }, Def::Input(input), Naming::Given(name.into()));
        self.inputs.insert(input_key(input), value);
        value
    }

    fn table(&mut self, table: Table, ty: TensorType) -> ValueId {
        let def = Def::Table(table);
        let found = self.graph.values.iter().position(|v| v.def == def && v.ty == ty);
        if let Some(at) = found {
            return ValueId(at as u32);
        }
        let name = match &def {
            Def::Table(Table::RopeCos { .. }) => "rope.cos",
            _ => "rope.sin",
        };
        self.add(ty, def, Naming::Given(name.into()))
    }

    fn site(&mut self) -> u32 {
        let turns = self.repeat.map_or(1, |(_, turns)| turns as u32);
        let site = self.sites;
        self.sites = self.sites.saturating_add(turns);
        site
    }

    fn training(&self) -> bool {
        self.options.train
    }

    fn transposed(&self, value: ValueId) -> Option<ValueId> {
        self.transposes.get(&value).copied()
    }

    fn mark_logits(&mut self, value: ValueId) {
        self.graph.logits = Some(value);
    }
}
