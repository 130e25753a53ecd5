//! Row kernels as a training step has them, of any size and type.

use dspc_graph::ir::DType::{self, F32, I32};
use dspc_graph::rowfn::BinaryFn::*;
use dspc_graph::rowfn::UnaryFn::*;
use dspc_graph::rowfn::{Access, BinaryFn, InputId, Node, NodeId, ReduceFn, RowMap, UnaryFn};
use dspc_kernel::describe::{Read, RowKernel, Split, Target, Write};

/// Builds a row kernel node by node.
pub struct Builder(pub RowKernel);

impl Builder {
    pub fn new(rows: u64, cols: u64, split: Split) -> Self {
        Builder(RowKernel { rows, cols, reads: vec![], nodes: vec![], writes: vec![], split })
    }
    pub fn node(&mut self, node: Node) -> NodeId {
        self.0.nodes.push(node);
        NodeId(self.0.nodes.len() as u32 - 1)
    }
    pub fn operand(&mut self, name: &str, dtype: DType, access: Access, stride: u64) -> InputId {
        self.0.reads.push(Read { name: name.to_string(), dtype, access, stride });
        InputId(self.0.reads.len() as u32 - 1)
    }
    pub fn load(&mut self, name: &str, dtype: DType, access: Access, stride: u64) -> NodeId {
        let input = self.operand(name, dtype, access, stride);
        self.node(Node::Load(input))
    }
    pub fn element(&mut self, name: &str, dtype: DType, stride: u64) -> NodeId {
        self.load(name, dtype, Access::Element(RowMap::EACH), stride)
    }
    pub fn bias(&mut self, name: &str, dtype: DType) -> NodeId {
        let stride = self.0.cols;
        self.load(name, dtype, Access::Element(RowMap::SAME), stride)
    }
    pub fn row(&mut self, name: &str, dtype: DType) -> NodeId {
        self.load(name, dtype, Access::Row(RowMap::EACH), 1)
    }
    pub fn scalar(&mut self, name: &str) -> NodeId {
        self.load(name, F32, Access::Scalar, 1)
    }
    pub fn c(&mut self, x: f64) -> NodeId {
        self.node(Node::Const(x))
    }
    pub fn un(&mut self, function: UnaryFn, x: NodeId) -> NodeId {
        self.node(Node::Unary(function, x))
    }
    pub fn bin(&mut self, function: BinaryFn, a: NodeId, b: NodeId) -> NodeId {
        self.node(Node::Binary(function, a, b))
    }
    pub fn by(&mut self, function: BinaryFn, a: NodeId, x: f64) -> NodeId {
        let x = self.c(x);
        self.bin(function, a, x)
    }
    pub fn select(&mut self, condition: NodeId, a: NodeId, b: NodeId) -> NodeId {
        self.node(Node::Select(condition, a, b))
    }
    pub fn sum(&mut self, x: NodeId) -> NodeId {
        self.node(Node::Reduce(ReduceFn::Sum, x))
    }
    pub fn max(&mut self, x: NodeId) -> NodeId {
        self.node(Node::Reduce(ReduceFn::Max, x))
    }
    pub fn mean(&mut self, x: NodeId) -> NodeId {
        let sum = self.sum(x);
        let cols = self.0.cols as f64;
        self.by(Multiply, sum, 1.0 / cols)
    }
    pub fn write(&mut self, name: &str, dtype: DType, what: Target, stride: u64) {
        self.0.writes.push(Write { name: name.to_string(), dtype, what, stride, accumulate: false });
    }
    pub fn accumulate(&mut self, name: &str, dtype: DType, what: Target, stride: u64) {
        self.0.writes.push(Write { name: name.to_string(), dtype, what, stride, accumulate: true });
    }
}

/// s = x + r; y = layer norm of s; keeps mean and rstd.
pub fn residual_layer_norm(rows: u64, cols: u64, dtype: DType, stride: u64) -> RowKernel {
    let mut k = Builder::new(rows, cols, Split::Rows);
    let (x, r) = (k.element("x", dtype, stride), k.element("r", dtype, cols));
    let (w, b) = (k.bias("w", F32), k.bias("b", F32));
    let s = k.bin(Add, x, r);
    let mean = k.mean(s);
    let d = k.bin(Subtract, s, mean);
    let square = k.bin(Multiply, d, d);
    let variance = k.mean(square);
    let variance = k.by(Add, variance, 1e-5);
    let rstd = k.un(Rsqrt, variance);
    let n = k.bin(Multiply, d, rstd);
    let y = k.bin(Multiply, n, w);
    let y = k.bin(Add, y, b);
    k.write("s", dtype, Target::Element(s), cols);
    k.write("y", dtype, Target::Element(y), stride);
    k.write("mean", F32, Target::Row(mean), 1);
    k.write("rstd", F32, Target::Row(rstd), 1);
    k.0
}

/// Its gradient: dx, and partial sums of dw and db a chunk.
pub fn layer_norm_backward(rows: u64, cols: u64, dtype: DType, chunk: u64) -> RowKernel {
    let mut k = Builder::new(rows, cols, Split::Chunks(chunk));
    let (x, dy) = (k.element("x", dtype, cols), k.element("dy", dtype, cols));
    let w = k.bias("w", F32);
    let (mean, rstd) = (k.row("mean", F32), k.row("rstd", F32));
    let d = k.bin(Subtract, x, mean);
    let n = k.bin(Multiply, d, rstd);
    let g = k.bin(Multiply, dy, w);
    let gn = k.bin(Multiply, g, n);
    let (a, b) = (k.mean(g), k.mean(gn));
    let nb = k.bin(Multiply, n, b);
    let dx = k.bin(Subtract, g, a);
    let dx = k.bin(Subtract, dx, nb);
    let dx = k.bin(Multiply, dx, rstd);
    let dw = k.bin(Multiply, dy, n);
    k.accumulate("dx", dtype, Target::Element(dx), cols);
    k.write("dw", F32, Target::ColumnSum(dw), cols);
    k.write("db", F32, Target::ColumnSum(dy), cols);
    k.0
}

/// Loss and gradient of softmax cross-entropy; targets below 0 are ignored.
pub fn cross_entropy(rows: u64, cols: u64, dtype: DType, stride: u64) -> RowKernel {
    let mut k = Builder::new(rows, cols, Split::Rows);
    let x = k.element("logits", dtype, stride);
    let table = k.operand("logits", dtype, Access::Table(RowMap::EACH), stride);
    let target = k.row("targets", I32);
    let seed = k.scalar("seed");
    let zero_int = k.node(Node::ConstInt(0));
    let counted = k.bin(LessEqual, zero_int, target);
    let max = k.max(x);
    let shifted = k.bin(Subtract, x, max);
    let e = k.un(Exp, shifted);
    let sum = k.sum(e);
    let log = k.un(Log, sum);
    let lse = k.bin(Add, max, log);
    let at = k.node(Node::LoadAt(table, target));
    let loss = k.bin(Subtract, lse, at);
    let zero = k.c(0.0);
    let loss = k.select(counted, loss, zero);
    let scale = k.select(counted, seed, zero);
    let p = k.bin(Divide, e, sum);
    let column = k.node(Node::Column);
    let hit = k.bin(Equal, column, target);
    let one = k.c(1.0);
    let one_hot = k.select(hit, one, zero);
    let d = k.bin(Subtract, p, one_hot);
    let d = k.bin(Multiply, d, scale);
    k.write("loss", F32, Target::Row(loss), 1);
    k.write("dlogits", dtype, Target::Element(d), stride);
    k.0
}

/// GELU by tanh of x + bias.
pub fn gelu_tanh(rows: u64, cols: u64, dtype: DType) -> RowKernel {
    let mut k = Builder::new(rows, cols, Split::Rows);
    let x = k.element("x", dtype, cols);
    let b = k.bias("bias", F32);
    let x = k.bin(Add, x, b);
    let y = gelu_tanh_of(&mut k, x);
    k.write("y", dtype, Target::Element(y), cols);
    k.0
}

/// GELU by tanh, element-wise.
pub fn gelu_flat(rows: u64, cols: u64, dtype: DType) -> RowKernel {
    let mut k = Builder::new(rows, cols, Split::Elements);
    let x = k.element("x", dtype, cols);
    let y = gelu_tanh_of(&mut k, x);
    k.write("y", dtype, Target::Element(y), cols);
    k.0
}

fn gelu_tanh_of(k: &mut Builder, x: NodeId) -> NodeId {
    let x2 = k.bin(Multiply, x, x);
    let inner = k.by(Multiply, x2, 0.044715 * 0.797_884_560_802_865_4);
    let inner = k.by(Add, inner, 0.797_884_560_802_865_4);
    let inner = k.bin(Multiply, inner, x);
    let t = k.un(Tanh, inner);
    let t = k.by(Add, t, 1.0);
    let half = k.by(Multiply, x, 0.5);
    k.bin(Multiply, t, half)
}

/// GELU by erf, element-wise, and its slope.
pub fn gelu_erf(rows: u64, cols: u64, dtype: DType) -> RowKernel {
    let mut k = Builder::new(rows, cols, Split::Elements);
    let x = k.element("x", dtype, cols);
    let scaled = k.by(Multiply, x, std::f64::consts::FRAC_1_SQRT_2);
    let e = k.un(Erf, scaled);
    let phi = k.by(Add, e, 1.0);
    let phi = k.by(Multiply, phi, 0.5);
    let y = k.bin(Multiply, phi, x);
    let square = k.bin(Multiply, scaled, scaled);
    let square = k.un(Negate, square);
    let density = k.un(Exp, square);
    let density = k.by(Multiply, density, 0.398_942_280_401_432_7);
    let slope = k.bin(Multiply, density, x);
    let slope = k.bin(Add, slope, phi);
    k.write("y", dtype, Target::Element(y), cols);
    k.write("slope", F32, Target::Element(slope), cols);
    k.0
}

/// Drops a share of x, adds a residual.
pub fn dropout(rows: u64, cols: u64, dtype: DType, split: Split) -> RowKernel {
    let mut k = Builder::new(rows, cols, split);
    let rng = k.operand("rng", I32, Access::Scalar, 1);
    let (x, r) = (k.element("x", dtype, cols), k.element("r", dtype, cols));
    let u = k.node(Node::Uniform { rng, site: 7, sample_elements: rows * cols });
    let rate = k.c(0.25);
    let dropped = k.bin(Less, u, rate);
    let scaled = k.by(Multiply, x, 1.0 / 0.75);
    let zero = k.c(0.0);
    let kept = k.select(dropped, zero, scaled);
    let y = k.bin(Add, r, kept);
    k.write("y", dtype, Target::Element(y), cols);
    k.write("u", F32, Target::Element(u), cols);
    k.0
}

/// AdamW with a gate: p, m and v stay where a gradient is not finite.
pub fn adamw(elements: u64) -> RowKernel {
    let mut k = Builder::new(1, elements, Split::Elements);
    let p = k.element("p", F32, elements);
    let g = k.element("g", F32, elements);
    let (m0, v0) = (k.element("m", F32, elements), k.element("v", F32, elements));
    let (lr, finite) = (k.scalar("lr"), k.scalar("finite"));
    let (c1, c2) = (k.scalar("c1"), k.scalar("c2"));
    let m = k.by(Multiply, m0, 0.9);
    let g1 = k.by(Multiply, g, 0.1);
    let m = k.bin(Add, m, g1);
    let v = k.by(Multiply, v0, 0.95);
    let g2 = k.bin(Multiply, g, g);
    let g2 = k.by(Multiply, g2, 0.05);
    let v = k.bin(Add, v, g2);
    let mh = k.bin(Divide, m, c1);
    let vh = k.bin(Divide, v, c2);
    let root = k.un(Sqrt, vh);
    let root = k.by(Add, root, 1e-8);
    let step = k.bin(Divide, mh, root);
    let decay = k.by(Multiply, p, 0.1);
    let step = k.bin(Add, step, decay);
    let step = k.bin(Multiply, step, lr);
    let next = k.bin(Subtract, p, step);
    let half = k.c(0.5);
    let go = k.bin(Less, half, finite);
    for (name, new, old) in [("p", next, p), ("m", m, m0), ("v", v, v0)] {
        let value = k.select(go, new, old);
        k.write(name, F32, Target::Element(value), elements);
    }
    k.0
}

/// Rotary embedding of heads packed in a wider row, tables by position.
pub fn rope(rows: u64, head_dim: u64, positions: u64, heads: u64, stride: u64) -> RowKernel {
    let mut k = Builder::new(rows, head_dim, Split::Rows);
    let x = k.element("x", F32, stride);
    let partner = k.load("x", F32, Access::HalfRotated(RowMap::EACH), stride);
    let at = RowMap::Affine { divide: heads, modulo: Some(positions) };
    let cos = k.load("cos", F32, Access::Element(at.clone()), head_dim);
    let sin = k.load("sin", F32, Access::Element(at), head_dim);
    let a = k.bin(Multiply, x, cos);
    let b = k.bin(Multiply, partner, sin);
    let y = k.bin(Add, a, b);
    k.write("y", F32, Target::Element(y), head_dim);
    k.0
}

/// Token and position embedding, gathered and added.
pub fn embedding(rows: u64, cols: u64, positions: u64, dtype: DType) -> RowKernel {
    let mut k = Builder::new(rows, cols, Split::Rows);
    let ids = k.operand("ids", I32, Access::Row(RowMap::EACH), 1);
    let token = k.load("wte", dtype, Access::Element(RowMap::Gather(ids)), cols);
    let place = k.load("wpe", dtype, Access::Element(RowMap::modulo(positions)), cols);
    let y = k.bin(Add, token, place);
    k.write("y", dtype, Target::Element(y), cols);
    k.0
}

/// Bias gradient: a column sum and nothing else.
pub fn bias_gradient(rows: u64, cols: u64, dtype: DType, chunk: u64) -> RowKernel {
    let mut k = Builder::new(rows, cols, Split::Chunks(chunk));
    let dy = k.element("dy", dtype, cols);
    k.accumulate("db", F32, Target::ColumnSum(dy), cols);
    k.0
}

/// Every function there is, each in a result of its own.
pub fn every_function(rows: u64, cols: u64) -> RowKernel {
    let mut k = Builder::new(rows, cols, Split::Rows);
    let (x, y) = (k.element("x", F32, cols), k.element("y", F32, cols));
    let n = k.element("targets", I32, cols);
    let positive = k.un(Abs, x);
    let positive = k.by(Add, positive, 0.5);
    let column = k.node(Node::Column);
    let two = k.node(Node::ConstInt(2));
    let mut floats = vec![];
    for function in [Negate, Exp, Tanh, Erf, Abs] {
        floats.push(k.un(function, x));
    }
    for function in [Log, Sqrt, Rsqrt, Reciprocal] {
        floats.push(k.un(function, positive));
    }
    for function in [Add, Subtract, Multiply, Min, Max] {
        floats.push(k.bin(function, x, y));
    }
    floats.push(k.bin(Divide, x, positive));
    let half = k.by(Multiply, x, 0.5);
    let (less, most, same) = (k.bin(Less, x, y), k.bin(LessEqual, x, half), k.bin(Equal, n, two));
    let (below, at_most) = (k.bin(Less, column, n), k.bin(LessEqual, n, column));
    let finite = k.un(IsFinite, x);
    let not = k.un(Not, same);
    let mut truths = vec![less, most, same, below, at_most, finite, not];
    truths.push(k.bin(And, less, not));
    truths.push(k.bin(Or, same, most));
    let sum = k.bin(Add, column, n);
    let difference = k.bin(Subtract, sum, two);
    let product = k.bin(Multiply, difference, n);
    let negative = k.un(Negate, product);
    let picked = k.select(same, column, negative);
    floats.push(k.un(ToFloat, picked));
    floats.push(k.select(below, x, y));
    let (greatest, total) = (k.max(x), k.sum(y));
    floats.push(k.bin(Multiply, greatest, total));
    for (i, node) in floats.into_iter().enumerate() {
        k.write(&format!("float {i}"), F32, Target::Element(node), cols);
    }
    for (i, node) in truths.into_iter().enumerate() {
        k.write(&format!("truth {i}"), if i % 2 == 0 { F32 } else { I32 }, Target::Element(node), cols);
    }
    k.write("int", I32, Target::Element(picked), cols + 1);
    k.0
}

/// Adds the rows of two operands, as partial column sums are added.
pub fn sum_parts(rows: u64, cols: u64) -> RowKernel {
    let mut k = Builder::new(rows, cols, Split::Chunks(rows));
    let (a, b) = (k.element("a", F32, cols), k.element("b", F32, cols));
    k.write("sum_a", F32, Target::ColumnSum(a), cols);
    k.accumulate("sum_b", F32, Target::ColumnSum(b), cols);
    k.0
}
