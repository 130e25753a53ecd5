//! The f64 reading of a row kernel, one node and one row at a time: slow and obvious.

use super::ball::Ball;
use super::operand::{Operand, smallest, unit};
use dspc_graph::ir::DType;
use dspc_graph::rowfn::{Access, BinaryFn, Node, NodeId, ReduceFn, RowMap, UnaryFn};
use dspc_kernel::describe::{RowKernel, Split, Target};

/// One value a column.
type Row = Vec<Ball>;

/// What each result should hold, with bounds; where a kernel does not write, what was there.
pub fn read(kernel: &RowKernel, inputs: &[Operand], outputs: &[Operand], turn: u64) -> Vec<Vec<Ball>> {
    let mut results: Vec<Vec<Ball>> =
        outputs.iter().map(|o| o.values.iter().map(|&x| Ball::exact(x)).collect()).collect();
    let chunk = match kernel.split {
        Split::Chunks(rows) => rows,
        Split::Elements | Split::Rows => kernel.rows,
    };
    let cols = kernel.cols as usize;
    for first in (0..kernel.rows).step_by(chunk as usize) {
        let last = (first + chunk).min(kernel.rows);
        let mut summands: Vec<Vec<Row>> = vec![vec![]; kernel.writes.len()];
        for row in first..last {
            let nodes = evaluate_row(kernel, inputs, row, turn);
            for (w, write) in kernel.writes.iter().enumerate() {
                let at = (row * write.stride) as usize;
                let mut put = |at: usize, x: Ball| put(&mut results[w][at], x, write.dtype, write.accumulate);
                match write.what {
                    Target::Element(n) => (0..cols).for_each(|c| put(at + c, nodes[n.0 as usize][c])),
                    Target::Row(n) => put(at, nodes[n.0 as usize][0]),
                    Target::ColumnSum(n) => summands[w].push(nodes[n.0 as usize].clone()),
                }
            }
        }
        for (w, write) in kernel.writes.iter().enumerate() {
            if let Target::ColumnSum(_) = write.what {
                let at = (first / chunk * write.stride) as usize;
                for c in 0..cols {
                    let column: Vec<Ball> = summands[w].iter().map(|row| row[c]).collect();
                    put(&mut results[w][at + c], Ball::sum(&column), write.dtype, write.accumulate);
                }
            }
        }
    }
    results
}

fn put(place: &mut Ball, x: Ball, dtype: DType, accumulate: bool) {
    let x = if accumulate { place.add(x) } else { x };
    // One final rounding, a hard bound.
    *place = Ball { x: x.x, e: x.e + 1.02 * unit(dtype) * (x.x.abs() + x.e) + smallest(dtype) };
}

fn mapped(kernel: &RowKernel, inputs: &[Operand], map: &RowMap, row: u64) -> u64 {
    match map {
        RowMap::Affine { divide, modulo } => {
            let row = row / divide;
            modulo.map_or(row, |m| row % m)
        }
        RowMap::Gather(ids) => {
            let read = &kernel.reads[ids.0 as usize];
            let Access::Row(map) = &read.access else { panic!("ids are one a row") };
            let at = mapped(kernel, inputs, map, row) * read.stride;
            inputs[ids.0 as usize].values[at as usize] as u64
        }
    }
}

fn evaluate_row(kernel: &RowKernel, inputs: &[Operand], row: u64, turn: u64) -> Vec<Row> {
    let cols = kernel.cols as usize;
    let mut nodes: Vec<Row> = vec![];
    for node in &kernel.nodes {
        let value = |n: &NodeId, c: usize| nodes[n.0 as usize][c];
        let each = |of: &dyn Fn(usize) -> Ball| -> Row { (0..cols).map(of).collect() };
        let computed: Row = match node {
            Node::Load(input) => {
                let (read, data) = (&kernel.reads[input.0 as usize], &inputs[input.0 as usize].values);
                let at = |map: &RowMap| (mapped(kernel, inputs, map, row) * read.stride) as usize;
                match &read.access {
                    Access::Element(map) => each(&|c| Ball::exact(data[at(map) + c])),
                    Access::HalfRotated(map) => each(&|c| Ball::exact(data[at(map) + (c + cols / 2) % cols])),
                    Access::Row(map) => each(&|_| Ball::exact(data[at(map)])),
                    Access::Scalar => each(&|_| Ball::exact(data[0])),
                    Access::Table(_) => panic!("a table needs an index"),
                }
            }
            Node::LoadAt(input, column) => {
                let (read, data) = (&kernel.reads[input.0 as usize], &inputs[input.0 as usize].values);
                let Access::Table(map) = &read.access else { panic!("only tables have indices") };
                let at = (mapped(kernel, inputs, map, row) * read.stride) as usize;
                let column = value(column, 0).x;
                let inside = column >= 0.0 && column < cols as f64;
                each(&|_| if inside { Ball::exact(data[at + column as usize]) } else { Ball::exact(0.0) })
            }
            Node::Const(x) => each(&|_| Ball { x: *x, e: (f64::from(*x as f32) - x).abs() }),
            Node::ConstInt(x) => each(&|_| Ball::exact(f64::from(*x))),
            Node::Column => each(&|c| Ball::exact(c as f64)),
            Node::Unary(function, x) => each(&|c| unary(*function, value(x, c))),
            Node::Binary(function, a, b) => each(&|c| binary(*function, value(a, c), value(b, c))),
            Node::Select(condition, a, b) => each(&|c| {
                let (condition, a, b) = (value(condition, c), value(a, c), value(b, c));
                let picked = if condition.x != 0.0 { a } else { b };
                // A condition that f32 may see the other way round allows both.
                let slack = if condition.e > 0.0 { (a.x - b.x).abs() + a.e.max(b.e) } else { 0.0 };
                Ball { x: picked.x, e: picked.e + slack }
            }),
            Node::Reduce(function, x) => {
                let all = &nodes[x.0 as usize];
                let total = match function {
                    ReduceFn::Sum => Ball::sum(all),
                    ReduceFn::Max => all.iter().copied().reduce(Ball::max).unwrap(),
                };
                vec![total; cols]
            }
            Node::Uniform { rng, site, sample_elements } => {
                let words: Vec<u32> =
                    inputs[rng.0 as usize].values.iter().map(|&x| x as i32 as u32).collect();
                let first = u64::from(words[3]) * sample_elements + row * kernel.cols;
                each(&|c| {
                    let element = first + c as u64;
                    let counter = [
                        words[2],
                        site.wrapping_add(turn as u32),
                        (element / 4) as u32,
                        ((element / 4) >> 32) as u32,
                    ];
                    let word = philox([words[0], words[1]], counter)[(element % 4) as usize];
                    Ball::exact(f64::from(word >> 8) / 16_777_216.0)
                })
            }
        };
        nodes.push(computed);
    }
    nodes
}

fn unary(function: UnaryFn, x: Ball) -> Ball {
    match function {
        UnaryFn::Negate => x.neg(),
        UnaryFn::Exp => x.exp(),
        UnaryFn::Log => x.log(),
        UnaryFn::Sqrt => x.sqrt(),
        UnaryFn::Rsqrt => x.rsqrt(),
        UnaryFn::Reciprocal => Ball::exact(1.0).div(x),
        UnaryFn::Tanh => x.tanh(),
        UnaryFn::Erf => x.erf(),
        UnaryFn::Abs => x.abs(),
        UnaryFn::IsFinite => truth(x.x.is_finite(), false),
        UnaryFn::ToFloat => Ball { x: x.x, e: x.x.abs() * 2f64.powi(-24) },
        UnaryFn::Not => truth(x.x == 0.0, x.e > 0.0),
        UnaryFn::RoundBf16 => Ball { x: function.apply(x.x), e: x.e + x.x.abs() * 2f64.powi(-8) },
    }
}

fn binary(function: BinaryFn, a: Ball, b: Ball) -> Ball {
    match function {
        BinaryFn::Add => a.add(b),
        BinaryFn::Subtract => a.add(b.neg()),
        BinaryFn::Multiply => a.mul(b),
        BinaryFn::Divide => a.div(b),
        BinaryFn::Min => a.min(b),
        BinaryFn::Max => a.max(b),
        BinaryFn::Less => truth(a.x < b.x, a.is_unsure(b)),
        BinaryFn::LessEqual => truth(a.x <= b.x, a.is_unsure(b)),
        BinaryFn::Equal => truth(a.x == b.x, a.is_unsure(b)),
        BinaryFn::And => truth(a.x != 0.0 && b.x != 0.0, a.e + b.e > 0.0),
        BinaryFn::Or => truth(a.x != 0.0 || b.x != 0.0, a.e + b.e > 0.0),
    }
}

fn truth(is: bool, unsure: bool) -> Ball {
    Ball { x: f64::from(u8::from(is)), e: f64::from(u8::from(unsure)) }
}

/// Philox4x32-10, word by word.
pub fn philox(mut key: [u32; 2], mut c: [u32; 4]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let a = u64::from(c[0]) * 0xD251_1F53;
        let b = u64::from(c[2]) * 0xCD9E_8D57;
        c = [(b >> 32) as u32 ^ c[1] ^ key[0], b as u32, (a >> 32) as u32 ^ c[3] ^ key[1], a as u32];
    }
    c
}
