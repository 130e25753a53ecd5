//! Kernels in f64: slow, obvious, and sharing nothing with the emitters that they are tested against.
//!
//! Memory is a flat array of cells, one an element whatever its type; an operand is the cell of its first element.

use dspc_graph::ir::DType;
use dspc_graph::mask::Mask;
use dspc_graph::philox;
use dspc_graph::rowfn::{Access, Node, ReduceFn, RowMap};

use crate::describe::{
    AttentionKernel, Kernel, ProductFused, ProductKernel, ProductMatrix, RowKernel, ScatterAddKernel, Split,
    Target,
};

/// Runs a kernel on its operands (reads, then writes).
pub fn evaluate(kernel: &Kernel, operands: &[usize], turn: u64, cells: &mut [f64]) {
    match kernel {
        Kernel::Row(k) => row_kernel(k, operands, turn, cells),
        Kernel::Attention(k) => attention(k, operands, cells),
        Kernel::AttentionBackward(k) => attention_backward(k, operands, cells),
        Kernel::ScatterAdd(k) => scatter_add(k, operands, cells),
        Kernel::Product(k) => product(k, operands, cells),
    }
}

fn row_kernel(k: &RowKernel, operands: &[usize], turn: u64, cells: &mut [f64]) {
    let chunk = match k.split {
        Split::Chunks(rows) => rows,
        Split::Rows | Split::Elements => k.rows,
    };
    for (write, to) in k.writes.iter().zip(&operands[k.reads.len()..]) {
        if matches!(write.what, Target::ColumnSum(_)) && !write.accumulate {
            for item in 0..k.rows.div_ceil(chunk) {
                let start = to + (item * write.stride) as usize;
                cells[start..start + k.cols as usize].fill(0.0);
            }
        }
    }
    for row in 0..k.rows {
        let values = Row { k, operands, turn, row }.nodes(cells);
        let value = |id: dspc_graph::rowfn::NodeId, col: u64| values[id.0 as usize][col as usize];
        for (write, to) in k.writes.iter().zip(&operands[k.reads.len()..]) {
            let kept = if write.accumulate { 1.0 } else { 0.0 };
            let mut store = |at: u64, x: f64, keep: f64| {
                let cell = &mut cells[to + at as usize];
                *cell = if keep == 0.0 { x } else { *cell + x };
            };
            match write.what {
                Target::Row(id) => store(row * write.stride, value(id, 0), kept),
                Target::Element(id) => {
                    (0..k.cols).for_each(|c| store(row * write.stride + c, value(id, c), kept))
                }
                Target::ColumnSum(id) => {
                    (0..k.cols).for_each(|c| store(row / chunk * write.stride + c, value(id, c), 1.0));
                }
            }
        }
    }
}

/// One row of a row kernel.
struct Row<'a> {
    k: &'a RowKernel,
    operands: &'a [usize],
    turn: u64,
    row: u64,
}

impl Row<'_> {
    /// Every node at every column of the row.
    fn nodes(&self, cells: &[f64]) -> Vec<Vec<f64>> {
        let cols = self.k.cols as usize;
        let mut values: Vec<Vec<f64>> = vec![];
        for node in &self.k.nodes {
            let at = |id: &dspc_graph::rowfn::NodeId, c: usize| values[id.0 as usize][c];
            let each = |f: &dyn Fn(usize) -> f64| (0..cols).map(f).collect::<Vec<f64>>();
            let value = match node {
                Node::Load(id) => each(&|c| cells[self.address(id.0 as usize, c as u64, cells)]),
                Node::LoadAt(id, col) => each(&|c| {
                    let column = at(col, c).max(0.0) as usize; // an ignored target reads any column and is selected away
                    cells[self.address(id.0 as usize, 0, cells) + column]
                }),
                Node::Const(x) => vec![*x; cols],
                Node::ConstInt(x) => vec![f64::from(*x); cols],
                Node::Column => each(&|c| c as f64),
                Node::Unary(f, a) => each(&|c| f.apply(at(a, c))),
                Node::Binary(f, a, b) => each(&|c| f.apply(at(a, c), at(b, c))),
                Node::Select(s, a, b) => each(&|c| if at(s, c) != 0.0 { at(a, c) } else { at(b, c) }),
                Node::Reduce(ReduceFn::Sum, a) => vec![(0..cols).map(|c| at(a, c)).sum(); cols],
                Node::Reduce(ReduceFn::Max, a) => {
                    vec![(0..cols).map(|c| at(a, c)).fold(f64::NEG_INFINITY, f64::max); cols]
                }
                Node::Uniform { rng, site, sample_elements } => {
                    let state = &cells[self.operands[rng.0 as usize]..][..4];
                    each(&|c| self.uniform(state, *site, *sample_elements, c as u64))
                }
            };
            values.push(value);
        }
        values
    }

    fn uniform(&self, rng: &[f64], site: u32, sample_elements: u64, col: u64) -> f64 {
        let word = |i: usize| rng[i] as i64 as u32;
        let element = u64::from(word(3)) * sample_elements + self.row * self.k.cols + col;
        let block = element / 4;
        let counter = [word(2), site + self.turn as u32, block as u32, (block >> 32) as u32];
        let lanes = philox::philox4x32([word(0), word(1)], counter);
        f64::from(lanes[(element % 4) as usize] >> 8) / f64::from(1 << 24)
    }

    fn address(&self, input: usize, col: u64, cells: &[f64]) -> usize {
        let read = &self.k.reads[input];
        let row = |map: &RowMap| match map {
            RowMap::Affine { divide, modulo } => {
                let row = self.row / divide;
                modulo.map_or(row, |m| row % m)
            }
            RowMap::Gather(ids) => cells[self.address(ids.0 as usize, 0, cells)] as u64,
        };
        let offset = match &read.access {
            Access::Element(map) => row(map) * read.stride + col,
            Access::HalfRotated(map) => row(map) * read.stride + (col + self.k.cols / 2) % self.k.cols,
            Access::Row(map) | Access::Table(map) => row(map) * read.stride,
            Access::Scalar => 0,
        };
        self.operands[input] + offset as usize
    }
}

/// The probabilities of one query's row and their log-sum-exp; all zero and −∞ if it may look at nothing.
fn probabilities(
    k: &AttentionKernel,
    q: &[f64],
    keys: &dyn Fn(u64) -> Vec<f64>,
    query: u64,
) -> (Vec<f64>, f64) {
    let score = |key: u64| match &k.mask {
        Mask::Where(_) if !k.mask.allows(query, key) => f64::NEG_INFINITY,
        _ => k.scale * q.iter().zip(keys(key)).map(|(a, b)| a * b).sum::<f64>(),
    };
    let scores: Vec<f64> = (0..k.keys).map(score).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return (vec![0.0; scores.len()], max);
    }
    let sum: f64 = scores.iter().map(|s| libm::exp(s - max)).sum();
    (scores.iter().map(|s| libm::exp(s - max) / sum).collect(), max + libm::log(sum))
}

/// First cell of a head's row: operand cell + (batch · positions + position) · stride + head · width.
fn head_at(
    k: &AttentionKernel,
    operand: usize,
    stride: u64,
    positions: u64,
    (b, head, position): (u64, u64, u64),
) -> usize {
    operand + ((b * positions + position) * stride + head * k.head_dim) as usize
}

fn attention(k: &AttentionKernel, operands: &[usize], cells: &mut [f64]) {
    let width = k.head_dim as usize;
    for b in 0..k.batch {
        for head in 0..k.heads {
            let kv = head * k.kv_heads / k.heads;
            for query in 0..k.queries {
                let row = |cells: &[f64], i: usize, positions, head, at| {
                    let start = head_at(k, operands[i], k.strides[i], positions, (b, head, at));
                    cells[start..start + width].to_vec()
                };
                let q = row(cells, 0, k.queries, head, query);
                let (p, lse) = probabilities(k, &q, &|key| row(cells, 1, k.keys, kv, key), query);
                let mut y = vec![0.0; width];
                for (key, p) in p.iter().enumerate() {
                    let v = row(cells, 2, k.keys, kv, key as u64);
                    y.iter_mut().zip(v).for_each(|(y, v)| *y += p * v);
                }
                let to = head_at(k, operands[3], k.strides[3], k.queries, (b, head, query));
                cells[to..to + width].copy_from_slice(&y);
                cells[operands[4] + ((b * k.heads + head) * k.queries + query) as usize] = lse;
            }
        }
    }
}

fn attention_backward(k: &AttentionKernel, operands: &[usize], cells: &mut [f64]) {
    let width = k.head_dim as usize;
    // q, k, v, y, (statistics), dy, dq, dk, dv: an operand and its stride.
    let strided = |i: usize| (operands[if i < 4 { i } else { i + 1 }], k.strides[i]);
    let at = |i: usize, positions: u64, place: (u64, u64, u64)| {
        let (operand, stride) = strided(i);
        head_at(k, operand, stride, positions, place)
    };
    for (i, positions, heads) in [(5, k.queries, k.heads), (6, k.keys, k.kv_heads), (7, k.keys, k.kv_heads)] {
        for (b, head, position) in triples(k.batch, heads, positions) {
            let start = at(i, positions, (b, head, position));
            cells[start..start + width].fill(0.0);
        }
    }
    for (b, head, query) in triples(k.batch, k.heads, k.queries) {
        let kv = head * k.kv_heads / k.heads;
        let row = |cells: &[f64], i: usize, positions, head, position| {
            let start = at(i, positions, (b, head, position));
            cells[start..start + width].to_vec()
        };
        let q = row(cells, 0, k.queries, head, query);
        let (p, _) = probabilities(k, &q, &|key| row(cells, 1, k.keys, kv, key), query);
        let (y, dy) = (row(cells, 3, k.queries, head, query), row(cells, 4, k.queries, head, query));
        let delta: f64 = y.iter().zip(&dy).map(|(a, b)| a * b).sum();
        for (key, p) in p.iter().enumerate() {
            let (kr, vr) = (row(cells, 1, k.keys, kv, key as u64), row(cells, 2, k.keys, kv, key as u64));
            let dp: f64 = dy.iter().zip(&vr).map(|(a, b)| a * b).sum();
            let ds = k.scale * p * (dp - delta);
            let (dq, dk, dv) = (
                at(5, k.queries, (b, head, query)),
                at(6, k.keys, (b, kv, key as u64)),
                at(7, k.keys, (b, kv, key as u64)),
            );
            for c in 0..width {
                cells[dq + c] += ds * kr[c];
                cells[dk + c] += ds * q[c];
                cells[dv + c] += p * dy[c];
            }
        }
    }
}

fn triples(a: u64, b: u64, c: u64) -> impl Iterator<Item = (u64, u64, u64)> {
    (0..a).flat_map(move |x| (0..b).flat_map(move |y| (0..c).map(move |z| (x, y, z))))
}

fn scatter_add(k: &ScatterAddKernel, operands: &[usize], cells: &mut [f64]) {
    debug_assert!(k.dtype != DType::I32);
    for row in 0..k.rows {
        let id = cells[operands[0] + row as usize] as u64;
        for col in 0..k.cols {
            let x = cells[operands[1] + (row * k.stride + col) as usize];
            cells[operands[2] + (id * k.cols + col) as usize] += x;
        }
    }
}

/// The cell of a matrix's element.
fn element(matrix: &ProductMatrix, operand: usize, row: u64, col: u64) -> usize {
    let (row, col) = if matrix.transposed { (col, row) } else { (row, col) };
    operand + (row * matrix.stride + col) as usize
}

fn product(k: &ProductKernel, operands: &[usize], cells: &mut [f64]) {
    for i in 0..k.m {
        for j in 0..k.n {
            let term =
                |s: u64| cells[element(&k.a, operands[0], i, s)] * cells[element(&k.b, operands[1], s, j)];
            let sum: f64 = (0..k.k).map(term).sum();
            let x = match k.fused {
                Some(ProductFused::Bias(_) | ProductFused::BiasGelu { .. }) => {
                    sum + cells[operands[3] + j as usize]
                }
                Some(ProductFused::GeluGradient { pre }) => {
                    sum * gelu_gradient(cells[element(&pre, operands[3], i, j)])
                }
                Some(ProductFused::BiasGradient(_)) | None => sum,
            };
            let x = match k.fused {
                Some(ProductFused::BiasGelu { pre, .. }) => {
                    cells[element(&pre, operands[4], i, j)] = x;
                    gelu(x)
                }
                _ => x,
            };
            let c = &mut cells[element(&k.c, operands[2], i, j)];
            *c = if k.accumulate { *c + x } else { x };
        }
    }
    if let Some(ProductFused::BiasGradient(_)) = k.fused {
        for j in 0..k.n {
            let sum = (0..k.k).map(|s| cells[element(&k.b, operands[1], s, j)]).sum();
            cells[operands[3] + j as usize] = sum;
        }
    }
}

/// √(2/π) (x + 0.044715 x³), and its derivative.
fn gelu_inner(x: f64) -> (f64, f64) {
    let root = libm::sqrt(std::f64::consts::FRAC_2_PI);
    (root * (x + 0.044715 * x * x * x), root * (1.0 + 3.0 * 0.044715 * x * x))
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + libm::tanh(gelu_inner(x).0))
}

fn gelu_gradient(x: f64) -> f64 {
    let (inner, slope) = gelu_inner(x);
    let t = libm::tanh(inner);
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope
}
