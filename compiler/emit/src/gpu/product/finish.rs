//! What happens to a product's sums before they are stored: bias, GELU, its gradient, addition to what is there.
//!
//! Sums come as the tensor cores leave them: a thread has two rows, eight apart, and of each eight columns two neighbours. Four threads have
//! eight columns, so of 32 columns each of them gathers eight, 16 bytes of 16-bit numbers, by four exchanges; what is read goes the same way
//! back, as the exchange is its own inverse.
//!
//! What the epilogue reads can be fetched long before it is needed ([`Finish::ahead`]), so that nothing waits for memory between two tiles.
//!
//! Addresses past the last row or column are those of the last one for reads, and stores are kept from them.

use super::problem::Problem;
use crate::gpu::memory::{load, store, stored};
use crate::mlir::{Element, Function, Order, Type, Value};
use crate::row::tanh;
use dspc_graph::ir::DType;
use dspc_kernel::describe::{ProductFused, ProductMatrix};

/// √(2/π), and with 0.044715.
const ROOT: f32 = 0.797_884_6;
const CUBE: f32 = 0.044_715;

/// A kernel's result and what its epilogue uses.
pub(super) struct Finish<'p> {
    pub problem: &'p Problem<'p>,
    /// The result.
    c: Value,
    /// `[n]`
    bias: Option<(DType, Value)>,
    /// Before GELU.
    pre: Option<(ProductMatrix, Value)>,
}

/// Where a strip of sums lies: a lane's first row, the first column of the strip, and the lane's number among four.
#[derive(Clone, Copy)]
pub(super) struct Strip {
    pub row: Value,
    pub column: Value,
    pub quarter: Value,
}

/// Numbers of four pairs of a row, as they came from memory.
enum Fetched {
    /// Eight neighbours of 16 bits, still to be exchanged.
    Eight(Value),
    /// A pair of 16-bit numbers a word.
    Words(Vec<Value>),
    /// Pairs of f32.
    Pairs(Vec<[Value; 2]>),
}

/// What a strip's epilogue reads: by 32 columns a bias, and two rows of what was before GELU.
pub(super) struct Ahead {
    bias: Vec<Fetched>,
    pre: Vec<[Fetched; 2]>,
}

/// How a matrix is accessed.
struct Access {
    matrix: ProductMatrix,
    pointer: Value,
}

impl<'p> Finish<'p> {
    /// Of a kernel with these operands.
    pub fn new(problem: &'p Problem<'p>, operands: &[Value]) -> Self {
        let (bias, pre) = match problem.kernel.fused {
            None | Some(ProductFused::BiasGradient(_)) => (None, None),
            Some(ProductFused::Bias(dtype)) => (Some((dtype, operands[3])), None),
            Some(ProductFused::BiasGelu { bias, pre }) => {
                (Some((bias, operands[3])), Some((pre, operands[4])))
            }
            Some(ProductFused::GeluGradient { pre }) => (None, Some((pre, operands[3]))),
        };
        Finish { problem, c: operands[2], bias, pre }
    }

    /// Fetches what the epilogue of a strip of so many columns reads.
    pub fn ahead(&self, f: &mut Function, at: Strip, columns: u64) -> Ahead {
        let (mut bias, mut pre) = (vec![], vec![]);
        for group in 0..columns / 32 {
            let at = Strip { column: f.plus(at.column, 32 * group), ..at };
            if let Some((dtype, pointer)) = self.bias {
                let matrix = ProductMatrix { dtype, stride: self.problem.n, transposed: false };
                bias.push(self.fetch_pairs(f, &Access { matrix, pointer }, pointer, at));
            } else if let Some((matrix, pointer)) = self.pre {
                let access = Access { matrix, pointer };
                pre.push([0, 8].map(|h| {
                    let row = f.plus(at.row, h);
                    self.fetch(f, &access, row, at)
                }));
            }
        }
        Ahead { bias, pre }
    }

    /// Finishes and stores sums `[4 j + 2 h + e]` of row + 8 h and column 8 j + 2 quarter + e.
    pub fn strip(&self, f: &mut Function, at: Strip, sums: &[Value], ahead: &Ahead) {
        for (group, sums) in sums.chunks(16).enumerate() {
            let at = Strip { column: f.plus(at.column, 32 * group as u64), ..at };
            let bias = self.bias.map(|(dtype, _)| self.pairs_of(f, dtype, &ahead.bias[group], at));
            for h in 0..2 {
                let row = f.plus(at.row, 8 * h as u64);
                let pre = ahead.pre.get(group).map(|rows| &rows[h]);
                self.group(f, row, at, pairs(sums, h), bias.as_deref(), pre);
            }
        }
    }

    /// Stores partial sums as they are into rows of `n` f32.
    pub fn partial(&self, f: &mut Function, at: Strip, sums: &[Value], to: Value) {
        let matrix = ProductMatrix { dtype: DType::F32, stride: self.problem.n, transposed: false };
        let access = Access { matrix, pointer: to };
        for (group, sums) in sums.chunks(16).enumerate() {
            let at = Strip { column: f.plus(at.column, 32 * group as u64), ..at };
            for h in 0..2 {
                let row = f.plus(at.row, 8 * h as u64);
                self.put(f, &access, row, at, &pairs(sums, h));
            }
        }
    }

    /// Four pairs of one row: columns column + 8 j + 2 quarter + e.
    fn group(
        &self,
        f: &mut Function,
        row: Value,
        at: Strip,
        mut values: Vec<[Value; 2]>,
        bias: Option<&[[Value; 2]]>,
        pre: Option<&Fetched>,
    ) {
        if let Some(bias) = bias {
            let added =
                |(pair, bias): (&[Value; 2], &[Value; 2])| [f.add(pair[0], bias[0]), f.add(pair[1], bias[1])];
            values = values.iter().zip(bias).map(added).collect();
        }
        if let Some((matrix, pointer)) = self.pre {
            let access = Access { matrix, pointer };
            if bias.is_some() {
                self.put(f, &access, row, at, &values);
                values = values.iter().map(|pair| pair.map(|x| self.gelu(f, x))).collect();
            } else if let Some(pre) = pre {
                let pre = self.pairs_of(f, matrix.dtype, pre, at);
                let scaled = |(pair, pre): (&[Value; 2], &[Value; 2])| {
                    [0, 1].map(|e| {
                        let slope = self.gelu_gradient(f, pre[e]);
                        f.mul(pair[e], slope)
                    })
                };
                values = values.iter().zip(&pre).map(scaled).collect();
            }
        }
        let access = Access { matrix: self.problem.result, pointer: self.c };
        if self.problem.kernel.accumulate {
            let before = self.fetch(f, &access, row, at);
            let before = self.pairs_of(f, access.matrix.dtype, &before, at);
            let added = |(pair, before): (&[Value; 2], &[Value; 2])| {
                [f.add(pair[0], before[0]), f.add(pair[1], before[1])]
            };
            values = values.iter().zip(&before).map(added).collect();
        }
        self.put(f, &access, row, at, &values);
    }

    /// A run of neighbours of one row, for kernels whose threads have such runs. Every one of them is inside.
    pub fn run(&self, f: &mut Function, row: Value, column: Value, sums: &[Value]) {
        let count = sums.len() as u32;
        let wide = f.zero_extend(column, Element::I64);
        let mut values = sums.to_vec();
        if let Some((dtype, pointer)) = self.bias {
            let at = f.offset(pointer, wide, stored(dtype));
            let bias = load(f, dtype, at, count);
            values = values.iter().zip(bias).map(|(&x, bias)| f.add(x, bias)).collect();
        }
        let place = |f: &mut Function, matrix: &ProductMatrix, pointer: Value| {
            let row = f.zero_extend(row, Element::I64);
            let row = f.times(row, matrix.stride);
            let at = f.addi(row, wide);
            f.offset(pointer, at, stored(matrix.dtype))
        };
        if let Some((matrix, pointer)) = self.pre {
            let at = place(f, &matrix, pointer);
            if self.bias.is_some() {
                store(f, matrix.dtype, &values, at);
                values = values.iter().map(|&x| self.gelu(f, x)).collect();
            } else {
                let pre = load(f, matrix.dtype, at, count);
                let scaled = |(&x, pre): (&Value, Value)| {
                    let slope = self.gelu_gradient(f, pre);
                    f.mul(x, slope)
                };
                values = values.iter().zip(pre).map(scaled).collect();
            }
        }
        let result = self.problem.result;
        let at = place(f, &result, self.c);
        if self.problem.kernel.accumulate {
            let before = load(f, result.dtype, at, count);
            values = values.iter().zip(before).map(|(&x, before)| f.add(x, before)).collect();
        }
        store(f, result.dtype, &values, at);
    }

    /// The lane's first column of the j-th eight.
    fn own_column(&self, f: &mut Function, at: Strip, j: u64) -> Value {
        let own = f.shl(at.quarter, 1);
        let column = f.addi(at.column, own);
        f.plus(column, 8 * j)
    }

    fn row_start(&self, f: &mut Function, access: &Access, row: Value) -> Value {
        let row = f.zero_extend(row, Element::I64);
        let elements = f.times(row, access.matrix.stride);
        f.offset(access.pointer, elements, stored(access.matrix.dtype))
    }

    fn clamp(&self, f: &mut Function, x: Value, last: u64) -> Value {
        let last = f.int32(last);
        f.minu(x, last)
    }

    /// Reads four pairs of a row.
    fn fetch(&self, f: &mut Function, access: &Access, row: Value, at: Strip) -> Fetched {
        let row = self.clamp(f, row, self.problem.m - 1);
        let start = self.row_start(f, access, row);
        let dtype = access.matrix.dtype;
        if dtype.bytes() != 2 || !self.problem.is_regular() {
            return self.fetch_pairs(f, access, start, at);
        }
        let own = f.shl(at.quarter, 3);
        let column = f.addi(at.column, own);
        let column = self.clamp(f, column, self.problem.n - 8);
        let column = f.zero_extend(column, Element::I64);
        let place = f.offset(start, column, stored(dtype));
        Fetched::Eight(f.load(place, Type::vector(Element::I32, 4), 16))
    }

    /// Reads the lane's own pairs from a row's first element on.
    fn fetch_pairs(&self, f: &mut Function, access: &Access, start: Value, at: Strip) -> Fetched {
        let (n, dtype) = (self.problem.n, access.matrix.dtype);
        let element = stored(dtype);
        let is_regular = self.problem.is_regular();
        let place = |f: &mut Function, column: Value, last: u64| {
            let column = self.clamp(f, column, last);
            let column = f.zero_extend(column, Element::I64);
            f.offset(start, column, element)
        };
        if is_regular && dtype.bytes() == 2 {
            let word = |j| {
                let column = self.own_column(f, at, j);
                let place = place(f, column, n - 2);
                f.load(place, Type::scalar(Element::I32), 4)
            };
            return Fetched::Words((0..4).map(word).collect());
        }
        let pair = |j| {
            let column = self.own_column(f, at, j);
            if is_regular {
                let place = place(f, column, n - 2);
                let pair = load(f, dtype, place, 2);
                return [pair[0], pair[1]];
            }
            [0, 1].map(|e| {
                let column = f.plus(column, e);
                let place = place(f, column, n - 1);
                load(f, dtype, place, 1)[0]
            })
        };
        Fetched::Pairs((0..4).map(pair).collect())
    }

    /// The numbers of what was fetched.
    fn pairs_of(&self, f: &mut Function, dtype: DType, fetched: &Fetched, at: Strip) -> Vec<[Value; 2]> {
        match fetched {
            Fetched::Eight(words) => {
                let words = [0, 1, 2, 3].map(|i| f.extract(*words, i));
                let words = exchange(f, at.quarter, words);
                words.iter().map(|&word| f.unpack_halves(dtype, word)).collect()
            }
            Fetched::Words(words) => words.iter().map(|&word| f.unpack_halves(dtype, word)).collect(),
            Fetched::Pairs(pairs) => pairs.clone(),
        }
    }

    /// Writes four pairs.
    fn put(&self, f: &mut Function, access: &Access, row: Value, at: Strip, pairs: &[[Value; 2]]) {
        let dtype = access.matrix.dtype;
        let element = stored(dtype);
        let is_row = self.below(f, row, self.problem.m);
        let start = self.row_start(f, access, row);
        let inside = |this: &Self, f: &mut Function, column: Value| {
            let is_column = this.below(f, column, this.problem.n);
            f.and(is_row, is_column)
        };
        if dtype.bytes() == 2 && self.problem.is_regular() {
            let words = [0, 1, 2, 3].map(|j| f.pack_halves(dtype, pairs[j][0], pairs[j][1]));
            let words = exchange(f, at.quarter, words);
            let own = f.shl(at.quarter, 3);
            let column = f.addi(at.column, own);
            let inside = inside(self, f, column);
            let words = f.gather(&words);
            f.only_if(inside, |f| {
                let column = f.zero_extend(column, Element::I64);
                let place = f.offset(start, column, element);
                f.store(words, place, 16);
            });
            return;
        }
        let wide = if self.problem.is_regular() { 2 } else { 1 };
        for (j, pair) in pairs.iter().enumerate() {
            let first = self.own_column(f, at, j as u64);
            for e in (0..2u64).step_by(wide) {
                let column = f.plus(first, e);
                let inside = inside(self, f, column);
                let values = &pair[e as usize..e as usize + wide];
                f.only_if(inside, |f| {
                    let column = f.zero_extend(column, Element::I64);
                    let place = f.offset(start, column, element);
                    store(f, dtype, values, place);
                });
            }
        }
    }

    fn below(&self, f: &mut Function, x: Value, end: u64) -> Value {
        let end = f.int32(end);
        f.order(Order::Below, x, end)
    }

    /// tanh to a unit of 16-bit results, or of f32 ones.
    fn tanh(&self, f: &mut Function, x: Value) -> Value {
        match self.problem.result.dtype {
            DType::Bf16 | DType::F16 => f.fast_tanh(x),
            DType::F32 | DType::I32 => tanh(f, x),
        }
    }

    fn gelu(&self, f: &mut Function, x: Value) -> Value {
        let [root, cube, half] = [ROOT, ROOT * CUBE, 0.5].map(|c| f.float(1, c));
        let square = f.mul(x, x);
        let inner = f.fma(square, cube, root);
        let inner = f.mul(inner, x);
        let t = self.tanh(f, inner);
        let x = f.mul(x, half);
        f.fma(x, t, x)
    }

    fn gelu_gradient(&self, f: &mut Function, x: Value) -> Value {
        let [root, cube, slope, half] = [ROOT, ROOT * CUBE, 3.0 * ROOT * CUBE, 0.5].map(|c| f.float(1, c));
        let square = f.mul(x, x);
        let inner = f.fma(square, cube, root);
        let inner = f.mul(inner, x);
        let t = self.tanh(f, inner);
        let slope = f.fma(square, slope, root);
        let minus = f.neg(t);
        let one = f.float(1, 1.0);
        let rest = f.fma(minus, t, one);
        let x = f.mul(x, half);
        let x = f.mul(x, slope);
        let above = f.fma(half, t, half);
        f.fma(x, rest, above)
    }
}

/// Among four lanes, the i-th gets the i-th word of each, in their order.
fn exchange(f: &mut Function, quarter: Value, words: [Value; 4]) -> [Value; 4] {
    let mut words = words;
    for distance in [1usize, 2] {
        let bit = f.int32(distance as u64);
        let bit = f.and(quarter, bit);
        let zero = f.int32(0);
        let is_low = f.order(Order::Equal, bit, zero);
        for first in [0, 3 - distance] {
            let second = first + distance;
            let away = f.select(is_low, words[second], words[first]);
            let there = f.word_of_lane_across(away, distance as u64);
            (words[first], words[second]) =
                (f.select(is_low, words[first], there), f.select(is_low, there, words[second]));
        }
    }
    words
}

/// The pairs of a lane's first row, or of the one eight rows on.
fn pairs(sums: &[Value], h: usize) -> Vec<[Value; 2]> {
    sums.chunks(4).map(|block| [block[2 * h], block[2 * h + 1]]).collect()
}
