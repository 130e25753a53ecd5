//! Row kernels drawn at random: every access, several passes, every way to divide the work. Values stay of moderate size.

use super::kernels::Builder;
use super::operand::Numbers;
use dspc_graph::ir::DType::{self, Bf16, F16, F32, I32};
use dspc_graph::rowfn::{Access, BinaryFn, Node, NodeId, RowMap, UnaryFn};
use dspc_kernel::describe::{RowKernel, Split, Target};

const DTYPES: [DType; 3] = [F32, Bf16, F16];
const COLS: [u64; 14] = [1, 2, 3, 7, 8, 16, 17, 31, 33, 64, 100, 128, 133, 260];

/// A kernel, the same for the same seed.
pub fn kernel(seed: u64) -> RowKernel {
    let mut numbers = Numbers(seed);
    let n = &mut numbers;
    let (rows, cols) = (1 + n.below(12), COLS[n.below(COLS.len() as u64) as usize]);
    let split = match n.below(3) {
        0 => Split::Elements,
        1 => Split::Rows,
        _ => Split::Chunks(1 + n.below(5)),
    };
    let mut k = Builder::new(rows, cols, split);
    let mut pool = Pool { elements: vec![], rows: vec![] };
    for _ in 0..1 + n.below(3) {
        read(&mut k, n, &mut pool);
    }
    if n.below(3) == 0 {
        let rng = k.operand("rng", I32, Access::Scalar, 1);
        let sample_elements = rows * cols;
        pool.elements.push(k.node(Node::Uniform { rng, site: 5, sample_elements }));
    }
    for _ in 0..3 + n.below(12) {
        grow(&mut k, n, &mut pool);
    }
    for i in 0..1 + n.below(3) {
        write(&mut k, n, &pool, i);
    }
    k.0
}

/// Float nodes by how often they are worth a value.
struct Pool {
    elements: Vec<NodeId>,
    rows: Vec<NodeId>,
}

impl Pool {
    fn any(&self, n: &mut Numbers) -> NodeId {
        let all = (self.elements.len() + self.rows.len()) as u64;
        let i = n.below(all) as usize;
        self.elements.iter().chain(&self.rows).copied().nth(i).unwrap()
    }

    fn element(&self, n: &mut Numbers) -> NodeId {
        self.elements[n.below(self.elements.len() as u64) as usize]
    }

    /// Keeps a result of these operands where it belongs.
    fn put(&mut self, node: NodeId, operands: &[NodeId]) {
        let is_row = operands.iter().all(|o| self.rows.contains(o));
        if is_row { self.rows.push(node) } else { self.elements.push(node) }
    }
}

fn read(k: &mut Builder, n: &mut Numbers, pool: &mut Pool) {
    let (rows, cols) = (k.0.rows, k.0.cols);
    let dtype = DTYPES[n.below(3) as usize];
    let name = format!("x{}", k.0.reads.len());
    pool.elements.push(match k.0.split {
        Split::Elements => k.element(&name, dtype, cols),
        Split::Rows | Split::Chunks(_) => {
            let stride = cols + n.below(3) * n.below(5);
            match n.below(6) {
                0 => k.bias(&name, dtype),
                1 => k.load(&name, dtype, Access::HalfRotated(RowMap::EACH), stride),
                2 => {
                    let map = RowMap::Affine { divide: 1 + n.below(3), modulo: Some(1 + n.below(rows)) };
                    k.load(&name, dtype, Access::Element(map), stride)
                }
                3 => {
                    let ids = k.operand("ids", I32, Access::Row(RowMap::EACH), 1);
                    k.load(&name, dtype, Access::Element(RowMap::Gather(ids)), stride)
                }
                _ => k.element(&name, dtype, stride),
            }
        }
    });
    match (k.0.split, n.below(3)) {
        (Split::Rows | Split::Chunks(_), 0) => {
            pool.rows.push(k.row(&(name + "m"), DTYPES[n.below(3) as usize]))
        }
        (_, 1) => pool.rows.push(k.scalar(&(name + "s"))),
        _ => {}
    }
}

fn grow(k: &mut Builder, n: &mut Numbers, pool: &mut Pool) {
    use BinaryFn::{Add, Less, Max, Min, Multiply, Subtract};
    use UnaryFn::{Abs, Erf, Negate, Tanh};
    let x = pool.any(n);
    match n.below(8) {
        0 => {
            let function = [Tanh, Erf, Abs, Negate][n.below(4) as usize];
            let y = k.un(function, x);
            pool.put(y, &[x]);
        }
        1 => {
            let small = k.un(Tanh, x);
            let y = k.un(UnaryFn::Exp, small);
            pool.put(y, &[x]);
        }
        2 => {
            let y = pool.any(n);
            let less = k.bin(Less, x, y);
            let z = k.select(less, x, y);
            pool.put(z, &[x, y]);
        }
        3 if k.0.split != Split::Elements => {
            let element = pool.element(n);
            let total = if n.below(2) == 0 { k.mean(element) } else { k.max(element) };
            pool.rows.push(total);
        }
        _ => {
            let y = pool.any(n);
            let function = [Add, Subtract, Multiply, Min, Max][n.below(5) as usize];
            let z = k.bin(function, x, y);
            let half = k.by(Multiply, z, 0.5);
            pool.put(half, &[x, y]);
        }
    }
}

fn write(k: &mut Builder, n: &mut Numbers, pool: &Pool, i: u64) {
    let cols = k.0.cols;
    let name = format!("y{i}");
    let dtype = DTYPES[n.below(3) as usize];
    let stride = cols + n.below(2) * n.below(4);
    let (what, stride) = match (k.0.split, n.below(3)) {
        (Split::Elements, _) => (Target::Element(pool.element(n)), cols),
        (Split::Chunks(_), 0) => (Target::ColumnSum(pool.any(n)), stride),
        (_, 1) if !pool.rows.is_empty() => {
            (Target::Row(pool.rows[n.below(pool.rows.len() as u64) as usize]), 1 + n.below(2))
        }
        _ => (Target::Element(pool.any(n)), stride),
    };
    if n.below(3) == 0 {
        k.accumulate(&name, dtype, what, stride)
    } else {
        k.write(&name, dtype, what, stride)
    }
}
