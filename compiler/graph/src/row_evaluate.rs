//! The meaning of a row function in f64: element by element, as the nodes say.

use crate::interpret::Tensor;
use crate::philox::UniformStream;
use crate::rowfn::{Access, InputId, Node, NodeId, ReduceFn, RowFn, RowMap, Yield};

/// The results of `f`, in its order: `[rows, cols]`, `[rows]` or `[cols]` by its [`Yield`].
///
/// An operand is seen as `[its rows, its last dim]`, whatever its dims. The rng operand is
/// `[seed low, seed high, step, first sample]`; a fifth element is the turn. Booleans are 0 and 1.
pub fn evaluate_row_fn(f: &RowFn, inputs: &[&Tensor]) -> Vec<Tensor> {
    let (rows, cols) = (f.rows as usize, f.cols as usize);
    let mut results: Vec<Tensor> =
        f.outputs.iter().map(|y| Tensor::zeros(&dims_of(*y, rows, cols))).collect();
    for row in 0..rows {
        let values = evaluate_row(f, inputs, row);
        for (result, y) in results.iter_mut().zip(&f.outputs) {
            match *y {
                Yield::Element(n) => {
                    for col in 0..cols {
                        result.data[row * cols + col] = values[n.0 as usize].at(col);
                    }
                }
                Yield::Row(n) => result.data[row] = values[n.0 as usize].at(0),
                Yield::ColumnSum(n) => {
                    for col in 0..cols {
                        result.data[col] += values[n.0 as usize].at(col);
                    }
                }
            }
        }
    }
    results
}

fn dims_of(y: Yield, rows: usize, cols: usize) -> Vec<usize> {
    match y {
        Yield::Element(_) => vec![rows, cols],
        Yield::Row(_) => vec![rows],
        Yield::ColumnSum(_) => vec![cols],
    }
}

/// A node's worth in one row: the same for all columns, or one a column.
enum RowValue {
    Same(f64),
    Each(Vec<f64>),
}

impl RowValue {
    fn at(&self, col: usize) -> f64 {
        match self {
            RowValue::Same(x) => *x,
            RowValue::Each(xs) => xs[col],
        }
    }
}

fn evaluate_row(f: &RowFn, inputs: &[&Tensor], row: usize) -> Vec<RowValue> {
    let mut values: Vec<RowValue> = Vec::with_capacity(f.nodes.len());
    for node in &f.nodes {
        let value = evaluate_node(f, inputs, row, node, &values);
        values.push(value);
    }
    values
}

fn evaluate_node(f: &RowFn, inputs: &[&Tensor], row: usize, node: &Node, values: &[RowValue]) -> RowValue {
    let cols = f.cols as usize;
    let value = |n: NodeId| &values[n.0 as usize];
    let lift = |operands: &[NodeId], g: &dyn Fn(usize) -> f64| {
        if operands.iter().all(|n| matches!(value(*n), RowValue::Same(_))) {
            RowValue::Same(g(0))
        } else {
            RowValue::Each((0..cols).map(g).collect())
        }
    };
    match *node {
        Node::Load(input) => load(f, inputs, row, input),
        Node::LoadAt(input, at) => {
            let Access::Table(map) = &f.inputs[input.0 as usize] else { return RowValue::Same(f64::NAN) };
            let x = inputs[input.0 as usize];
            RowValue::Same(x.data[mapped(map, inputs, row) * x.cols() + value(at).at(0) as usize])
        }
        Node::Const(c) => RowValue::Same(c),
        Node::ConstInt(c) => RowValue::Same(f64::from(c)),
        Node::Column => RowValue::Each((0..cols).map(|c| c as f64).collect()),
        Node::Unary(g, x) => lift(&[x], &|c| g.apply(value(x).at(c))),
        Node::Binary(g, a, b) => lift(&[a, b], &|c| g.apply(value(a).at(c), value(b).at(c))),
        Node::Select(k, a, b) => {
            lift(&[k, a, b], &|c| if value(k).at(c) != 0.0 { value(a).at(c) } else { value(b).at(c) })
        }
        Node::Reduce(ReduceFn::Sum, x) => RowValue::Same((0..cols).map(|c| value(x).at(c)).sum()),
        Node::Reduce(ReduceFn::Max, x) => {
            RowValue::Same((0..cols).map(|c| value(x).at(c)).fold(f64::NEG_INFINITY, f64::max))
        }
        Node::Uniform { rng, site, sample_elements } => {
            let (stream, first) = uniform_stream(inputs[rng.0 as usize], site);
            let base = first * sample_elements + row as u64 * f.cols;
            RowValue::Each((0..f.cols).map(|c| stream.at(base + c)).collect())
        }
    }
}

/// The stream that an rng operand and a site name, and the first sample.
pub(crate) fn uniform_stream(rng: &Tensor, site: u32) -> (UniformStream, u64) {
    let word = |i: usize| rng.data.get(i).map_or(0, |x| *x as i64 as u32);
    let stream = UniformStream { key: [word(0), word(1)], step: word(2), site: site.wrapping_add(word(4)) };
    (stream, u64::from(word(3)))
}

fn mapped(map: &RowMap, inputs: &[&Tensor], row: usize) -> usize {
    match map {
        RowMap::Affine { divide, modulo } => {
            let row = row / (*divide as usize).max(1);
            modulo.map_or(row, |m| row % (m as usize).max(1))
        }
        RowMap::Gather(ids) => inputs[ids.0 as usize].data[row] as usize,
    }
}

fn load(f: &RowFn, inputs: &[&Tensor], row: usize, input: InputId) -> RowValue {
    let x = inputs[input.0 as usize];
    let cols = f.cols as usize;
    match &f.inputs[input.0 as usize] {
        Access::Element(map) => {
            let start = mapped(map, inputs, row) * cols;
            RowValue::Each(x.data[start..start + cols].to_vec())
        }
        Access::HalfRotated(map) => {
            let start = mapped(map, inputs, row) * cols;
            RowValue::Each((0..cols).map(|c| x.data[start + (c + cols / 2) % cols]).collect())
        }
        Access::Row(map) => RowValue::Same(x.data[mapped(map, inputs, row)]),
        Access::Scalar => RowValue::Same(x.data[0]),
        Access::Table(_) => RowValue::Same(f64::NAN),
    }
}
