//! Writes row functions: operands first, then nodes; equal nodes are one.

use crate::rowfn::{Access, BinaryFn, InputId, Node, NodeId, ReduceFn, RowFn, RowMap, UnaryFn, Yield};

/// A row function under construction.
#[derive(Debug)]
pub struct RowBuilder {
    done: RowFn,
}

impl RowBuilder {
    /// Over `rows × cols`, with nothing in it.
    pub fn new(rows: u64, cols: u64) -> Self {
        Self { done: RowFn { rows, cols, inputs: vec![], nodes: vec![], outputs: vec![] } }
    }

    /// Declares the next operand.
    pub fn input(&mut self, access: Access) -> InputId {
        self.done.inputs.push(access);
        InputId(self.done.inputs.len() as u32 - 1)
    }

    /// Declares the next operand and loads it.
    pub fn load(&mut self, access: Access) -> NodeId {
        let input = self.input(access);
        self.node(Node::Load(input))
    }

    /// Declares and loads an operand of the iteration space's own shape.
    pub fn element(&mut self) -> NodeId {
        self.load(Access::Element(RowMap::EACH))
    }

    /// Declares and loads an operand `[cols]`, the same for every row.
    pub fn bias(&mut self) -> NodeId {
        self.load(Access::Element(RowMap::SAME))
    }

    /// Declares and loads an operand `[rows]`.
    pub fn row(&mut self) -> NodeId {
        self.load(Access::Row(RowMap::EACH))
    }

    /// Declares and loads a scalar.
    pub fn scalar(&mut self) -> NodeId {
        self.load(Access::Scalar)
    }

    /// Adds a node, or finds the one that is equal.
    pub fn node(&mut self, node: Node) -> NodeId {
        if let Some(at) = self.done.nodes.iter().position(|n| *n == node) {
            return NodeId(at as u32);
        }
        self.done.nodes.push(node);
        NodeId(self.done.nodes.len() as u32 - 1)
    }

    /// A float.
    pub fn number(&mut self, value: f64) -> NodeId {
        self.node(Node::Const(value))
    }

    /// A function of one operand.
    pub fn unary(&mut self, f: UnaryFn, x: NodeId) -> NodeId {
        self.node(Node::Unary(f, x))
    }

    /// A function of two operands.
    pub fn binary(&mut self, f: BinaryFn, a: NodeId, b: NodeId) -> NodeId {
        self.node(Node::Binary(f, a, b))
    }

    /// a + b
    pub fn add(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.binary(BinaryFn::Add, a, b)
    }

    /// a − b
    pub fn subtract(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.binary(BinaryFn::Subtract, a, b)
    }

    /// a · b
    pub fn multiply(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.binary(BinaryFn::Multiply, a, b)
    }

    /// a / b
    pub fn divide(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.binary(BinaryFn::Divide, a, b)
    }

    /// x · c
    pub fn times(&mut self, x: NodeId, c: f64) -> NodeId {
        let c = self.number(c);
        self.multiply(x, c)
    }

    /// x + c
    pub fn plus(&mut self, x: NodeId, c: f64) -> NodeId {
        let c = self.number(c);
        self.add(x, c)
    }

    /// −x
    pub fn negate(&mut self, x: NodeId) -> NodeId {
        self.unary(UnaryFn::Negate, x)
    }

    /// `condition ? then : otherwise`
    pub fn select(&mut self, condition: NodeId, then: NodeId, otherwise: NodeId) -> NodeId {
        self.node(Node::Select(condition, then, otherwise))
    }

    /// Σ over the columns.
    pub fn sum(&mut self, x: NodeId) -> NodeId {
        self.node(Node::Reduce(ReduceFn::Sum, x))
    }

    /// Σ over the columns / their number.
    pub fn mean(&mut self, x: NodeId) -> NodeId {
        let sum = self.sum(x);
        self.times(sum, 1.0 / self.done.cols as f64)
    }

    /// max over the columns.
    pub fn max(&mut self, x: NodeId) -> NodeId {
        self.node(Node::Reduce(ReduceFn::Max, x))
    }

    /// Declares the next result, a value an element.
    pub fn yield_element(&mut self, node: NodeId) {
        self.done.outputs.push(Yield::Element(node));
    }

    /// Declares the next result, a value a row.
    pub fn yield_row(&mut self, node: NodeId) {
        self.done.outputs.push(Yield::Row(node));
    }

    /// Declares the next result, a sum over the rows for each column.
    pub fn yield_column_sum(&mut self, node: NodeId) {
        self.done.outputs.push(Yield::ColumnSum(node));
    }

    /// The finished function.
    pub fn finish(self) -> RowFn {
        self.done
    }
}
