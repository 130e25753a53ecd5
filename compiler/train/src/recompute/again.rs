//! A row op done again where the scalars of its rows were kept: a norm without its sums.

use dspc_graph::evaluate_row_fn;
use dspc_graph::form::Form;
use dspc_graph::interpret::Tensor;
use dspc_graph::ir::{Cost, GradientBuilder, Op, ShapeError, TensorType, ValueId};
use dspc_graph::rowfn::{Access, InputId, Node, NodeId, RowFn, RowMap, Yield};

/// The results of another op that are tensors of elements, computed from its operands and, behind them, its results that are one scalar a row.
#[derive(Clone, Debug)]
pub(super) struct Again {
    name: &'static str,
    attributes: String,
    function: RowFn,
    results: Vec<TensorType>,
}

impl Again {
    /// `op`, whose row function is `function`, with its scalars of rows as operands. `results` are the types of all its results.
    pub fn new(op: &dyn Op, function: &RowFn, results: &[&TensorType]) -> Self {
        let pairs = function.outputs.iter().zip(results);
        let elements = pairs.filter(|(y, _)| matches!(y, Yield::Element(_))).map(|(_, ty)| (*ty).clone());
        Self {
            name: op.name(),
            attributes: op.attributes(),
            function: with_known_rows(function),
            results: elements.collect(),
        }
    }
}

/// The function with each result that is one scalar a row as one more operand, and the nodes that only made it left out.
fn with_known_rows(function: &RowFn) -> RowFn {
    let mut inputs = function.inputs.clone();
    let mut nodes = function.nodes.clone();
    for yields in &function.outputs {
        if let Yield::Row(id) = yields {
            nodes[id.0 as usize] = Node::Load(InputId(inputs.len() as u32));
            inputs.push(Access::Row(RowMap::EACH));
        }
    }
    let outputs = function.outputs.iter().copied().filter(|y| matches!(y, Yield::Element(_)));
    let outputs: Vec<Yield> = outputs.collect();
    let mut needed = vec![false; nodes.len()];
    for yields in &outputs {
        let (Yield::Element(id) | Yield::Row(id) | Yield::ColumnSum(id)) = yields;
        needed[id.0 as usize] = true;
    }
    // Operands come before their users, so one walk from the last node finds all that is needed.
    for i in (0..nodes.len()).rev() {
        if needed[i] {
            nodes[i].operands().iter().for_each(|id| needed[id.0 as usize] = true);
        }
    }
    let mut places = vec![NodeId(0); nodes.len()];
    let mut kept = vec![];
    for (i, node) in nodes.iter().enumerate().filter(|(i, _)| needed[*i]) {
        places[i] = NodeId(kept.len() as u32);
        kept.push(node.with_operands(&|id| places[id.0 as usize]));
    }
    let placed = |y: &Yield| match *y {
        Yield::Element(id) => Yield::Element(places[id.0 as usize]),
        Yield::Row(id) => Yield::Row(places[id.0 as usize]),
        Yield::ColumnSum(id) => Yield::ColumnSum(places[id.0 as usize]),
    };
    let outputs = outputs.iter().map(placed).collect();
    RowFn { rows: function.rows, cols: function.cols, inputs, nodes: kept, outputs }
}

impl Op for Again {
    fn name(&self) -> &'static str {
        self.name
    }

    fn attributes(&self) -> String {
        self.attributes.clone()
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, ShapeError> {
        if inputs.len() != self.function.inputs.len() {
            return Err(ShapeError::new(0, 0, "the scalars of the rows are missing"));
        }
        Ok(self.results.clone())
    }

    fn gradient(
        &self,
        _g: &mut dyn GradientBuilder,
        inputs: &[ValueId],
        _outputs: &[ValueId],
        _grads: &[Option<ValueId>],
    ) -> Vec<Option<ValueId>> {
        vec![None; inputs.len()]
    }

    fn evaluate(&self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let dims = |ty: &TensorType| ty.dims.iter().map(|d| d.size as usize).collect::<Vec<_>>();
        let results = evaluate_row_fn(&self.function, inputs);
        results.into_iter().zip(&self.results).map(|(t, ty)| Tensor { dims: dims(ty), ..t }).collect()
    }

    fn cost(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> Cost {
        let elements = (self.function.rows * self.function.cols) as f64;
        let works = |n: &&Node| matches!(n, Node::Unary(..) | Node::Binary(..) | Node::Select(..));
        let bytes = inputs.iter().chain(outputs).map(|t| t.bytes() as f64).sum();
        Cost { flops: elements * self.function.nodes.iter().filter(works).count() as f64, bytes }
    }

    fn form(&self, _inputs: &[&TensorType], _outputs: &[&TensorType]) -> Form {
        Form::Row(self.function.clone())
    }
}
