//! Products of f32 by the ordinary units: a thread has 8 × 8 sums, and pieces of both factors are in shared memory.
//!
//! Any shape. Elements are copied one by one through registers, a piece ahead; sums are in the order of the terms.

use super::finish::Finish;
use super::problem::{Factor, Neighbours, Problem};
use super::{below, grid, operand_types, part_of_workspace};
use crate::gpu::attributes;
use crate::gpu::memory::{load, store};
use crate::mlir::{Element, Function, Order, Space, Type, Value};
use dspc_graph::ir::DType;
use dspc_program::GpuLaunch;

/// Rows and columns of a tile.
const SIDE: u64 = 128;
/// Terms of a piece.
const DEPTH: u64 = 16;
const THREADS: u64 = 256;
/// Bytes of a term's elements in shared memory: 16 more than they fill, so that the columns of a store lie in different banks.
const LINE: u64 = SIDE * 4 + 16;

/// Writes a kernel, and how it is launched.
pub(super) fn emit(symbol: &str, problem: &Problem<'_>) -> Result<(String, GpuLaunch), String> {
    let types = operand_types(problem.kernel);
    let (mut function, operands) = Function::new(&types);
    let f = &mut function;
    let (thread, block, part) = (f.special("tid.x"), f.special("ctaid.x"), f.special("ctaid.z"));
    let shared_symbol = format!("{symbol}_shared");
    let shared = f.address_in(Space::Shared, &shared_symbol);
    let shared = f.number_of_address(shared);
    let (rows, cols) = (problem.m.div_ceil(SIDE), problem.n.div_ceil(SIDE));
    let (row, col) = super::band(f, block, rows, cols, 8);
    let (row, col) = (f.times(row, SIDE), f.times(col, SIDE));
    let (pieces, share) = problem.pieces(DEPTH);
    let begin = f.times(part, share);
    let end = f.plus(begin, share);
    let all = f.int32(pieces);
    let (begin, end) = (f.minu(begin, all), f.minu(end, all));
    let (left, right) = (operands[problem.left.operand], operands[problem.right.operand]);
    let sides = [(problem.left, left, row), (problem.right, right, col)];
    let read = |f: &mut Function, piece: Value| -> Vec<Value> {
        sides
            .iter()
            .flat_map(|&(factor, at, first)| elements(f, problem, factor, at, first, piece, thread))
            .collect()
    };
    let fifteen = f.int32(15);
    let (own_row, own_col) = (f.shr(thread, 4), f.and(thread, fifteen));
    let zero = f.float(1, 0.0);
    let one = f.int32(1);
    let mut carried = read(f, begin);
    let held = carried.len();
    carried.extend([zero; 64]);
    let sums = f.fold((begin, end, one), &carried, |f, piece, carried| {
        let (values, sums) = carried.split_at(held);
        f.barrier();
        for (side, values) in values.chunks(held / 2).enumerate() {
            let neighbours = sides[side].0.neighbours;
            for (i, &x) in values.iter().enumerate() {
                let (sum, term) = place(f, neighbours, thread, i as u64);
                let term = f.times(term, LINE);
                let sum = f.shl(sum, 2);
                let at = f.addi(term, sum);
                let at = f.addi(shared, at);
                let at = f.shared_at(at, side as u64 * DEPTH * LINE);
                f.store(x, at, 4);
            }
        }
        f.barrier();
        let next = f.plus(piece, 1);
        let mut carried = read(f, next);
        let mut sums = sums.to_vec();
        for term in 0..DEPTH {
            let [a, b] = [(0, own_row), (1, own_col)].map(|(side, own)| {
                let own = f.shl(own, 4);
                let at = f.addi(shared, own);
                // Four elements, and four of the other half.
                [0, SIDE * 2].map(|half| {
                    let at = f.shared_at(at, side * DEPTH * LINE + term * LINE + half);
                    let four = f.load(at, Type::vector(Element::F32, 4), 16);
                    [0, 1, 2, 3].map(|i| f.extract(four, i))
                })
            });
            for (i, &a) in a.as_flattened().iter().enumerate() {
                for (j, &b) in b.as_flattened().iter().enumerate() {
                    sums[i * 8 + j] = f.fma(a, b, sums[i * 8 + j]);
                }
            }
        }
        carried.extend(sums);
        carried
    });
    let sums = &sums[held..];
    let to = (problem.kernel.splits > 1).then(|| part_of_workspace(f, problem, &operands, part));
    let finish = Finish::new(problem, &operands);
    let wide = if problem.is_regular() { 4 } else { 1 };
    for (i, line) in sums.chunks(8).enumerate() {
        let own = f.shl(own_row, 2);
        let own = f.addi(row, own);
        let row = f.plus(own, i as u64 / 4 * (SIDE / 2) + i as u64 % 4);
        let is_row = below(f, row, problem.m);
        for (j, run) in line.chunks(wide).enumerate() {
            let j = (j * wide) as u64;
            let own = f.shl(own_col, 2);
            let own = f.addi(col, own);
            let column = f.plus(own, j / 4 * (SIDE / 2) + j % 4);
            let is_column = below(f, column, problem.n);
            let is_inside = f.and(is_row, is_column);
            f.only_if(is_inside, |f| match to {
                None => finish.run(f, row, column, run),
                Some(to) => {
                    let (row, column) =
                        (f.zero_extend(row, Element::I64), f.zero_extend(column, Element::I64));
                    let at = f.times(row, problem.n);
                    let at = f.addi(at, column);
                    let at = f.offset(to, at, Element::F32);
                    store(f, DType::F32, run, at);
                }
            });
        }
    }
    let text = function.finish(symbol, &types, &attributes(THREADS as u32));
    let launch = GpuLaunch {
        symbol: symbol.into(),
        grid: [grid(rows * cols)?, 1, grid(problem.kernel.splits)?],
        block: THREADS as u32,
        shared: (2 * DEPTH * LINE) as u32,
        maps: vec![],
    };
    Ok((super::dynamic_shared(&shared_symbol) + &text, launch))
}

/// Row (or column) and term of a thread's i-th element of a piece.
fn place(f: &mut Function, neighbours: Neighbours, thread: Value, i: u64) -> (Value, Value) {
    let index = f.plus(thread, i * THREADS);
    let across = match neighbours {
        Neighbours::Terms => DEPTH,
        Neighbours::Sums => SIDE,
    };
    let mask = f.int32(across - 1);
    let inner = f.and(index, mask);
    let outer = f.shr(index, i64::from(across.trailing_zeros()));
    match neighbours {
        Neighbours::Terms => (outer, inner),
        Neighbours::Sums => (inner, outer),
    }
}

/// A thread's elements of a piece; 0 past the last term.
fn elements(
    f: &mut Function,
    problem: &Problem<'_>,
    factor: Factor,
    pointer: Value,
    first: Value,
    piece: Value,
    thread: Value,
) -> Vec<Value> {
    let before = f.times(piece, DEPTH);
    (0..SIDE * DEPTH / THREADS)
        .map(|i| {
            let (sum, term) = place(f, factor.neighbours, thread, i);
            let (sum, term) = (f.addi(first, sum), f.addi(before, term));
            let (last_sum, last_term, end) =
                (f.int32(factor.length - 1), f.int32(problem.k - 1), f.int32(problem.k));
            let is_term = f.order(Order::Below, term, end);
            let (sum, term) = (f.minu(sum, last_sum), f.minu(term, last_term));
            let (line, neighbour) = match factor.neighbours {
                Neighbours::Terms => (sum, term),
                Neighbours::Sums => (term, sum),
            };
            let (line, neighbour) =
                (f.zero_extend(line, Element::I64), f.zero_extend(neighbour, Element::I64));
            let at = f.times(line, factor.stride);
            let at = f.addi(at, neighbour);
            let at = f.offset(pointer, at, Element::F32);
            let x = load(f, DType::F32, at, 1)[0];
            let zero = f.float(1, 0.0);
            f.select(is_term, x, zero)
        })
        .collect()
}
