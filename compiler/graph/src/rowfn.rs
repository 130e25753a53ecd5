//! Row functions: element-wise work and reductions along rows, as a scalar expression DAG.
//!
//! One description serves fusion (two row functions over the same rows become one), the CPU and GPU emitters, and
//! the f64 reading of a fused kernel. An iteration space of `rows × cols`; a node is worth one scalar per element, per row,
//! or for the whole kernel, which follows from its operands.

/// Index of a node in [`RowFn::nodes`]; operands come before their users.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeId(pub u32);

/// Index of an operand that is read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct InputId(pub u32);

/// Element-wise work and row reductions over `rows × cols`.
#[derive(Clone, PartialEq, Debug)]
pub struct RowFn {
    /// Rows of the iteration space.
    pub rows: u64,
    /// Columns of it.
    pub cols: u64,
    /// How each operand is read, in the op's order.
    pub inputs: Vec<Access>,
    /// The expression DAG.
    pub nodes: Vec<Node>,
    /// How each result is written, in the op's order.
    pub outputs: Vec<Yield>,
}

/// How an operand is addressed. The operand is seen as a matrix `[its rows, its last dim]`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// `x[map(row), col]`
    Element(RowMap),
    /// `x[map(row), partner(col)]`, where partner exchanges the halves of a row: `(col + cols/2) % cols`.
    HalfRotated(RowMap),
    /// `x[map(row)]`: one scalar a row.
    Row(RowMap),
    /// One scalar.
    Scalar,
    /// `x[map(row), c]` at columns that [`Node::LoadAt`] computes.
    Table(RowMap),
}

/// From the kernel's row to the operand's.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum RowMap {
    /// `(row / divide) % modulo`; `divide` 1 and no modulo is the row itself, modulo 1 the same row for all (a bias).
    Affine {
        /// Rows that share one of the operand's.
        divide: u64,
        /// The operand's rows, if it repeats.
        modulo: Option<u64>,
    },
    /// `ids[row]`, ids being an i32 operand with [`Access::Row`].
    Gather(InputId),
}

impl RowMap {
    /// The row itself.
    pub const EACH: RowMap = RowMap::Affine { divide: 1, modulo: None };
    /// Row 0 for all.
    pub const SAME: RowMap = RowMap::Affine { divide: 1, modulo: Some(1) };

    /// Repeats every `rows` rows.
    pub fn modulo(rows: u64) -> Self {
        RowMap::Affine { divide: 1, modulo: Some(rows) }
    }
}

/// One scalar operation. Floats are computed in f32 whatever the operands' storage; ids in i32; conditions are booleans.
#[derive(Clone, PartialEq, Debug)]
pub enum Node {
    /// The operand's element, row scalar or scalar, by its [`Access`].
    Load(InputId),
    /// `x[map(row), col]` with `col` an i32 node worth one scalar a row; the operand's access is [`Access::Table`].
    LoadAt(InputId, NodeId),
    /// A float.
    Const(f64),
    /// An integer.
    ConstInt(i32),
    /// The column, i32.
    Column,
    /// One operand.
    Unary(UnaryFn, NodeId),
    /// Two operands.
    Binary(BinaryFn, NodeId, NodeId),
    /// `condition ? then : otherwise`
    Select(NodeId, NodeId, NodeId),
    /// Over the columns of the row: worth one scalar a row.
    Reduce(ReduceFn, NodeId),
    /// Uniform in [0, 1) from Philox4x32-10: key = seed, counter = (step, site + turn, element / 4), lane element % 4,
    /// where element = first_sample × `sample_elements` + row × cols + col. `rng` is the [`crate::ir::Input::Rng`] operand, read as a [`Access::Scalar`] of 4 × i32.
    Uniform {
        /// The rng operand.
        rng: InputId,
        /// Site id; inside a repeat each turn adds one.
        site: u32,
        /// Elements of one sample.
        sample_elements: u64,
    },
}

impl Node {
    /// The nodes it is computed from.
    pub fn operands(&self) -> Vec<NodeId> {
        match *self {
            Node::LoadAt(_, a) | Node::Unary(_, a) | Node::Reduce(_, a) => vec![a],
            Node::Binary(_, a, b) => vec![a, b],
            Node::Select(c, a, b) => vec![c, a, b],
            Node::Load(_) | Node::Const(_) | Node::ConstInt(_) | Node::Column | Node::Uniform { .. } => {
                vec![]
            }
        }
    }

    /// The same operation on other nodes.
    #[must_use]
    pub fn with_operands(&self, at: &dyn Fn(NodeId) -> NodeId) -> Node {
        match *self {
            Node::LoadAt(input, a) => Node::LoadAt(input, at(a)),
            Node::Unary(f, a) => Node::Unary(f, at(a)),
            Node::Reduce(f, a) => Node::Reduce(f, at(a)),
            Node::Binary(f, a, b) => Node::Binary(f, at(a), at(b)),
            Node::Select(c, a, b) => Node::Select(at(c), at(a), at(b)),
            Node::Load(_) | Node::Const(_) | Node::ConstInt(_) | Node::Column | Node::Uniform { .. } => {
                self.clone()
            }
        }
    }
}

/// Functions of one operand.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum UnaryFn {
    /// −x
    Negate,
    /// eˣ
    Exp,
    /// ln x
    Log,
    /// √x
    Sqrt,
    /// 1/√x
    Rsqrt,
    /// 1/x
    Reciprocal,
    /// tanh x
    Tanh,
    /// erf x
    Erf,
    /// |x|
    Abs,
    /// Neither infinite nor NaN: boolean.
    IsFinite,
    /// From i32 to f32.
    ToFloat,
    /// Boolean to its opposite.
    Not,
    /// To the nearest bfloat16, ties to even, and back.
    RoundBf16,
}

/// Functions of two operands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BinaryFn {
    /// a + b (float or i32)
    Add,
    /// a − b (float or i32)
    Subtract,
    /// a · b (float or i32)
    Multiply,
    /// a / b (float)
    Divide,
    /// the smaller (float)
    Min,
    /// the larger (float)
    Max,
    /// a < b: boolean
    Less,
    /// a ≤ b: boolean
    LessEqual,
    /// a = b: boolean
    Equal,
    /// both: boolean
    And,
    /// either: boolean
    Or,
}

/// Reductions along a row.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ReduceFn {
    /// Σ
    Sum,
    /// max
    Max,
}

/// How a result is written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Yield {
    /// `out[row, col] = node`
    Element(NodeId),
    /// `out[row] = node`
    Row(NodeId),
    /// `out[col] = Σ over rows of node`: bias and gain gradients.
    ColumnSum(NodeId),
}

impl UnaryFn {
    /// Its value in f64; a boolean is 0 or 1.
    pub fn apply(self, x: f64) -> f64 {
        match self {
            UnaryFn::Negate => -x,
            UnaryFn::Exp => libm::exp(x),
            UnaryFn::Log => libm::log(x),
            UnaryFn::Sqrt => x.sqrt(),
            UnaryFn::Rsqrt => 1.0 / x.sqrt(),
            UnaryFn::Reciprocal => 1.0 / x,
            UnaryFn::Tanh => libm::tanh(x),
            UnaryFn::Erf => libm::erf(x),
            UnaryFn::Abs => x.abs(),
            UnaryFn::IsFinite => truth(x.is_finite()),
            UnaryFn::ToFloat => x,
            UnaryFn::Not => truth(x == 0.0),
            UnaryFn::RoundBf16 => round_bf16(x),
        }
    }
}

/// As a device rounds the f32 that it holds. What it rounds is exact in f64, or a sum of two such: rounding to f32 first is what a device does too.
fn round_bf16(x: f64) -> f64 {
    let bits = (x as f32).to_bits();
    if !x.is_finite() {
        return x;
    }
    let odd = bits >> 16 & 1;
    f64::from(f32::from_bits(bits.wrapping_add(0x7FFF + odd) & 0xFFFF_0000))
}

impl BinaryFn {
    /// Its value in f64; a boolean is 0 or 1.
    pub fn apply(self, a: f64, b: f64) -> f64 {
        match self {
            BinaryFn::Add => a + b,
            BinaryFn::Subtract => a - b,
            BinaryFn::Multiply => a * b,
            BinaryFn::Divide => a / b,
            BinaryFn::Min => a.min(b),
            BinaryFn::Max => a.max(b),
            BinaryFn::Less => truth(a < b),
            BinaryFn::LessEqual => truth(a <= b),
            BinaryFn::Equal => truth(a == b),
            BinaryFn::And => truth(a != 0.0 && b != 0.0),
            BinaryFn::Or => truth(a != 0.0 || b != 0.0),
        }
    }
}

fn truth(x: bool) -> f64 {
    f64::from(u8::from(x))
}
