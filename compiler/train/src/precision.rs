//! Storage: in which type each value lies in memory.
//!
//! Reads   a graph in f32, and the precision asked for.
//! Writes  the same graph with a type for each value: activations and their gradients in the compute type, contributions to the parameters' gradients
//!         in the accumulation type, parameters as ops see them in the compute type; what is one number a row or a column (a mean, a log-sum-exp,
//!         a row's loss, a bias's gradient), every scalar, the logits that generation reads and every table in f32. Casts where a kernel needs operands of one type.
//! Keeps   every value's meaning: kernels compute in f32 whatever they read and write, and products add up in f32.
//! Leaves  alone master weights and moments, which the graph does not see.
//! Cost    one walk, O(ops).
//!
//! Which results are one number a row follows from the ops' forms. A gradient is stored as the value it is of, so that the gradient of a
//! row's loss, which in half precision is as large as the loss scale, does not overflow.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dspc_graph::form::Form;
use dspc_graph::ir::{Block, DType, Def, Graph, OpNode, Repeat, Step, TensorType, Value, ValueId};
use dspc_graph::ops::Cast;
use dspc_graph::rowfn::{Access, RowFn, RowMap, Yield};
use dspc_spec::settings::{Accumulate, Precision};

use crate::TrainGraph;

/// The types that a precision stores numbers in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Storage {
    /// Of activations, of their gradients, and of parameters as ops read them.
    pub compute: DType,
    /// Of the parameters' gradients and of their sums over micro-batches.
    pub accumulate: DType,
}

impl Storage {
    /// The types of a precision.
    pub fn of(precision: &Precision) -> Self {
        match precision {
            Precision::Fp32 | Precision::Tf32 => Self { compute: DType::F32, accumulate: DType::F32 },
            Precision::Bf16 { accumulate: Accumulate::F32 } => {
                Self { compute: DType::Bf16, accumulate: DType::F32 }
            }
            Precision::Bf16 { accumulate: Accumulate::Bf16 } => {
                Self { compute: DType::Bf16, accumulate: DType::Bf16 }
            }
            Precision::Fp16 { .. } => Self { compute: DType::F16, accumulate: DType::F32 },
        }
    }

    /// Whether the optimizer keeps f32 weights of its own beside those that ops read.
    pub fn has_masters(self) -> bool {
        self.compute != DType::F32
    }
}

/// Stores a training graph in its own precision.
pub fn store(mut train: TrainGraph) -> TrainGraph {
    let storage = Storage::of(&train.precision);
    if storage.compute == DType::F32 {
        return train;
    }
    let contributions = train.gradients.iter().flat_map(|g| g.contributions.iter().copied()).collect();
    let mut pass = Pass::new(train.graph, storage, train.primals, contributions);
    let backward = pass.graph.body.steps.split_off(train.backward_start);
    let forward = std::mem::take(&mut pass.graph.body.steps);
    let forward = pass.block(forward);
    let backward = pass.block(backward);
    train.backward_start = forward.len();
    pass.graph.body.steps = forward.into_iter().chain(backward).collect();
    for gradient in &mut train.gradients {
        for value in &mut gradient.contributions {
            *value = pass.moved.get(value).copied().unwrap_or(*value);
        }
    }
    (train.graph, train.primals) = (pass.graph, pass.primals);
    train
}

/// Stores a forward graph; its logits, which the host reads, in f32 where `logits` is what it is for.
pub fn store_forward(graph: Graph, precision: &Precision, logits: bool) -> Graph {
    let storage = Storage::of(precision);
    if storage.compute == DType::F32 {
        return graph;
    }
    let root = graph.logits.filter(|_| logits);
    let mut pass = Pass::new(graph, storage, BTreeMap::new(), root.into_iter().collect());
    pass.storage.accumulate = DType::F32;
    let steps = std::mem::take(&mut pass.graph.body.steps);
    pass.graph.body.steps = pass.block(steps);
    if let Some(logits) = root {
        pass.graph.logits = Some(pass.moved.get(&logits).copied().unwrap_or(logits));
    }
    pass.graph
}

struct Pass {
    graph: Graph,
    storage: Storage,
    primals: BTreeMap<ValueId, ValueId>,
    /// Values that must be of the accumulation type.
    accumulated: BTreeSet<ValueId>,
    /// Of those, which could not be, and the cast that is.
    moved: BTreeMap<ValueId, ValueId>,
    names: BTreeSet<String>,
}

/// Casts made in a block so far.
type Casts = BTreeMap<(ValueId, DType), ValueId>;

impl Pass {
    fn new(
        mut graph: Graph,
        storage: Storage,
        primals: BTreeMap<ValueId, ValueId>,
        accumulated: BTreeSet<ValueId>,
    ) -> Self {
        for param in &mut graph.params {
            param.ty.dtype = storage.compute;
        }
        for value in &mut graph.values {
            if matches!(value.def, Def::Param(_)) {
                value.ty.dtype = storage.compute;
            }
        }
        let names = graph.values.iter().map(|v| v.name.clone()).collect();
        Self { graph, storage, primals, accumulated, moved: BTreeMap::new(), names }
    }

    fn dtype(&self, value: ValueId) -> DType {
        self.graph.ty(value).dtype
    }

    fn set(&mut self, value: ValueId, dtype: DType) {
        self.graph.values[value.0 as usize].ty.dtype = dtype;
    }

    fn block(&mut self, steps: Vec<Step>) -> Vec<Step> {
        let (mut out, mut casts) = (vec![], Casts::new());
        for step in steps {
            let results = match step {
                Step::Op(node) => self.op(node, &mut out, &mut casts),
                Step::Repeat(repeat) => self.repeat(repeat, &mut out, &mut casts),
            };
            for value in results {
                if self.accumulated.contains(&value) && self.dtype(value) != self.storage.accumulate {
                    let cast = self.cast(value, self.storage.accumulate, &mut out, &mut casts);
                    self.moved.insert(value, cast);
                }
            }
        }
        out
    }

    fn op(&mut self, mut node: OpNode, out: &mut Vec<Step>, casts: &mut Casts) -> Vec<ValueId> {
        let form = self.form(&node);
        if let Some(dtype) = self.operand_type(&form, &node) {
            let reads_tensor = |i: usize| !matches!(form, Form::AttentionBackward(_)) || i != 4;
            for i in (0..node.inputs.len()).filter(|i| reads_tensor(*i)) {
                node.inputs[i] = self.cast(node.inputs[i], dtype, out, casts);
            }
        }
        for (i, &value) in node.outputs.iter().enumerate() {
            let dtype = self.result_type(&form, &node, i, value);
            self.set(value, dtype);
        }
        let outputs = node.outputs.clone();
        out.push(Step::Op(node));
        outputs
    }

    fn form(&self, node: &OpNode) -> Form {
        let types = |ids: &[ValueId]| ids.iter().map(|&v| self.graph.ty(v)).collect::<Vec<&TensorType>>();
        node.op.form(&types(&node.inputs), &types(&node.outputs))
    }

    /// The one type that a kernel reads its operands in, where it has one.
    fn operand_type(&self, form: &Form, node: &OpNode) -> Option<DType> {
        let all_f32 = || node.inputs.iter().all(|v| self.dtype(*v) == DType::F32);
        match form {
            Form::Attention(_) | Form::AttentionBackward(_) => Some(self.storage.compute),
            Form::Contract { .. } | Form::Concat { .. } => {
                Some(if all_f32() { DType::F32 } else { self.storage.compute })
            }
            Form::Row(_) | Form::View(_) | Form::Pad { .. } | Form::ScatterAdd => None,
        }
    }

    fn result_type(&self, form: &Form, node: &OpNode, result: usize, value: ValueId) -> DType {
        match form {
            Form::Attention(_) if result > 0 => DType::F32,
            Form::Attention(_) | Form::AttentionBackward(_) => self.storage.compute,
            Form::View(_) | Form::Pad { .. } | Form::Concat { .. } => self.dtype(node.inputs[0]),
            Form::ScatterAdd => DType::F32,
            Form::Contract { .. } => self.wanted(value).unwrap_or(self.storage.compute),
            Form::Row(function) => {
                self.wanted(value).unwrap_or_else(|| self.row_type(function, node, result, value))
            }
        }
    }

    /// What is known of a value whatever writes it: a scalar, a contribution, or the gradient of a value that is stored already.
    fn wanted(&self, value: ValueId) -> Option<DType> {
        if self.graph.ty(value).dims.is_empty() {
            return Some(DType::F32);
        }
        if self.accumulated.contains(&value) {
            return Some(self.storage.accumulate);
        }
        let primal = *self.primals.get(&value)?;
        match self.graph.value(primal).def {
            Def::Param(_) => Some(self.storage.accumulate),
            _ => Some(self.dtype(primal)),
        }
    }

    fn row_type(&self, function: &RowFn, node: &OpNode, result: usize, value: ValueId) -> DType {
        match function.outputs[result] {
            Yield::Row(_) | Yield::ColumnSum(_) => DType::F32,
            Yield::Element(_) if self.graph.ty(value).dims.is_empty() => DType::F32,
            Yield::Element(_) => {
                // What is made element by element of statistics alone is a statistic.
                let elements = node.inputs.iter().zip(&function.inputs).filter(|(_, a)| is_element(a));
                let types: Vec<DType> = elements.map(|(v, _)| self.dtype(*v)).collect();
                let statistic = !types.is_empty() && types.iter().all(|t| *t == DType::F32);
                if statistic { DType::F32 } else { self.storage.compute }
            }
        }
    }

    fn repeat(&mut self, mut repeat: Repeat, out: &mut Vec<Step>, casts: &mut Casts) -> Vec<ValueId> {
        for c in &mut repeat.carried {
            let dtype = self.carried_type(c.init, c.arg, c.out);
            c.init = self.cast(c.init, dtype, out, casts);
            self.set(c.arg, dtype);
            self.set(c.out, dtype);
        }
        let mut body = self.block(std::mem::take(&mut repeat.body.steps));
        let mut inner = Casts::new();
        for c in &mut repeat.carried {
            c.result = self.cast(c.result, self.dtype(c.arg), &mut body, &mut inner);
        }
        repeat.body = Block { steps: body };
        let outs = repeat.carried.iter().map(|c| c.out).collect();
        out.push(Step::Repeat(repeat));
        outs
    }

    /// A carried value keeps its type round the loop: that of what it starts as, or of what it is the gradient of.
    fn carried_type(&self, init: ValueId, arg: ValueId, out: ValueId) -> DType {
        if self.accumulated.contains(&out) {
            return self.storage.accumulate;
        }
        self.wanted(arg).unwrap_or_else(|| self.dtype(init))
    }

    /// The value itself if it is of that type or holds ids; else a cast of it, made once a block.
    fn cast(&mut self, value: ValueId, to: DType, out: &mut Vec<Step>, casts: &mut Casts) -> ValueId {
        let from = self.graph.ty(value);
        if from.dtype == to || from.dtype == DType::I32 {
            return value;
        }
        if let Some(done) = casts.get(&(value, to)) {
            return *done;
        }
        let ty = TensorType { dtype: to, dims: from.dims.clone() };
        let (name, span) = (self.free(value, to), self.graph.value(value).span);
        let cast = self.graph.add_value(Value { name, ty, def: Def::Op, span });
        out.push(Step::Op(OpNode {
            op: Arc::new(Cast { to }),
            inputs: vec![value],
            outputs: vec![cast],
            origin: String::new(),
        }));
        casts.insert((value, to), cast);
        cast
    }

    fn free(&mut self, value: ValueId, to: DType) -> String {
        let wanted = format!("{}.{to}", self.graph.value(value).name);
        let (mut name, mut count) = (wanted.clone(), 1);
        while !self.names.insert(name.clone()) {
            count += 1;
            name = format!("{wanted}{count}");
        }
        name
    }
}

/// The operand has the iteration space's own shape: it is not repeated over rows, and not one number for several columns.
fn is_element(access: &Access) -> bool {
    match access {
        Access::Element(map) | Access::HalfRotated(map) | Access::Table(map) => {
            !matches!(map, RowMap::Affine { modulo: Some(_), .. })
        }
        Access::Row(_) | Access::Scalar => false,
    }
}

#[cfg(test)]
mod tests {
    use dspc_graph::interpret::{Inputs, interpret, interpret_as_stored};
    use dspc_graph::verify;
    use dspc_spec::settings::LossScale;

    use super::*;
    use crate::fixture::{gradients, inputs, train_in};

    const BF16: Precision = Precision::Bf16 { accumulate: Accumulate::F32 };
    const SUMS_IN_BF16: Precision = Precision::Bf16 { accumulate: Accumulate::Bf16 };
    const FP16: Precision = Precision::Fp16 { loss_scale: LossScale::Static(1024.0) };

    /// A norm, attention, a repeat, a table used twice, and a mean of each row beside them.
    const MODEL: &str = "
        layer block(x: [B, T, D]) -> [B, T, D] {
          q, k, v = split(linear(norm(x) as ln, 3*D) as up, 3)
          x + linear(gelu(attend(q, k, v, heads: 2, mask: causal)), D) as down
        }
        model m(tokens: ids[B, T], targets: ids[B, T], width: D, vocab: V) -> loss {
          param wte: [V, D] ~ normal(1)
          param wpe: [T, D] ~ normal(1)
          x = wte[tokens] + wpe
          repeat 2 as h { x = block(x) }
          cross_entropy((norm(x) as ln_f) @ transpose(wte), targets) + 0.1 * mean(mean(x, last: true) * mean(x * x, last: true))
        }
        model = m(width: 8, vocab: data.vocab)";

    fn stored(precision: Precision) -> TrainGraph {
        let train = store(train_in(MODEL, precision));
        verify(&train.graph).unwrap();
        train
    }

    #[test]
    fn storing_changes_no_meaning() {
        let plain = train_in(MODEL, Precision::Fp32);
        let inputs = inputs(&plain.graph);
        let expected = gradients(&plain, &inputs);
        for precision in [BF16, SUMS_IN_BF16, FP16] {
            let scale = if precision == FP16 { 1024.0 } else { 1.0 };
            let train = stored(precision);
            let inputs = Inputs { loss_scale: scale, ..inputs.clone() };
            let found = gradients(&train, &inputs);
            let pairs = expected.iter().flatten().zip(found.iter().flatten());
            for (e, f) in pairs.flat_map(|(e, f)| e.data.iter().zip(&f.data)) {
                assert!((e * scale - f).abs() <= 1e-12 * scale, "{f} for {e}");
            }
        }
    }

    #[test]
    fn statistics_scalars_and_contributions_are_f32_and_all_else_is_not() {
        let train = stored(BF16);
        for gradient in &train.gradients {
            assert!(gradient.contributions.iter().all(|v| train.graph.ty(*v).dtype == DType::F32));
        }
        let dtype = |name: &str| {
            let value = train.graph.values.iter().find(|v| v.name == name);
            value.unwrap_or_else(|| panic!("no value `{name}`")).ty.dtype
        };
        assert_eq!(train.graph.ty(train.graph.loss.unwrap()).dtype, DType::F32);
        for name in ["h.x", "h.q", "x"] {
            assert_eq!(dtype(name), DType::Bf16, "{name}");
        }
        let of_rows =
            train.graph.values.iter().filter(|v| v.name.ends_with(".rstd") || v.name.ends_with(".lse"));
        assert!(of_rows.clone().count() >= 4 && of_rows.clone().all(|v| v.ty.dtype == DType::F32));
        assert!(train.graph.params.iter().all(|p| p.ty.dtype == DType::Bf16));
    }

    #[test]
    fn sums_in_bf16_are_of_that_type() {
        let train = stored(SUMS_IN_BF16);
        for gradient in &train.gradients {
            assert!(gradient.contributions.iter().all(|v| train.graph.ty(*v).dtype == DType::Bf16));
        }
    }

    /// In half precision the gradient of a row's loss is the loss scale, which may be more than the largest half.
    #[test]
    fn a_large_loss_scale_does_not_overflow_where_it_is_spread() {
        let train = stored(FP16);
        let small = 1.0 / 4096.0;
        let inputs = Inputs { loss_scale: 262_144.0, inv_targets: small, ..inputs(&train.graph) };
        let results = interpret_as_stored(&train.graph, &inputs);
        let exact = interpret(&train.graph, &inputs);
        for gradient in &train.gradients {
            if train.graph.param(gradient.param).turns.is_some() {
                continue;
            }
            for value in &gradient.contributions {
                let (stored, exact) = (results.get(*value).unwrap(), exact.get(*value).unwrap());
                let size = exact.data.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                for (s, e) in stored.data.iter().zip(&exact.data) {
                    assert!((s - e).abs() <= 0.02 * size, "{s} for {e}");
                }
            }
        }
    }
}
