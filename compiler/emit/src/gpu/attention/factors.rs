//! Products of tiles on tensor cores, and what their factors are: 16-bit numbers, or f32 as one or two TF32 numbers.
//!
//! An f32 as two: x = big + small, both with 11 bits, so 22 of 24 bits stay. a · b is then a big · big, and two products with a small factor; that of
//! both small factors is below the last bit. Source: Ootomo, Yokota 2022, section 3.
//!
//! The tensor cores cut their f32 sums off rather than round them, always towards 0: sums over a whole sequence would drift, and small terms
//! would be cut off beside a large beginning. So products of two-part factors begin from 0 and are added by the ordinary units.

use super::tile::Lanes;
use crate::mlir::{Function, Quad, Turned, Value};
use dspc_graph::ir::DType;
use dspc_kernel::describe::AttentionKernel;

/// What tensor cores multiply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Factors {
    /// Numbers of 16 bits.
    Half(DType),
    /// f32 rounded to TF32.
    Tf32,
    /// f32 as two TF32 numbers: three products.
    Split,
}

/// Registers of a factor: of TF32 the rounded number, and what rounding left.
struct Parts<const N: usize> {
    big: [Value; N],
    small: Option<[Value; N]>,
}

impl Factors {
    /// Those of a kernel.
    pub fn of(kernel: &AttentionKernel) -> Self {
        match (kernel.dtype, kernel.tf32) {
            (DType::F32, true) => Factors::Tf32,
            (DType::F32, false) => Factors::Split,
            (half, _) => Factors::Half(half),
        }
    }

    /// Registers from what memory holds.
    fn parts<const N: usize>(self, f: &mut Function, words: [Value; N]) -> Parts<N> {
        match self {
            Factors::Half(_) => Parts { big: words, small: None },
            Factors::Tf32 => Parts { big: words.map(|x| f.round_to_tf32(x)), small: None },
            Factors::Split => {
                let big = words.map(|x| f.round_to_tf32(x));
                let mut small = big;
                for (small, whole) in small.iter_mut().zip(words) {
                    let (whole, big) = (f.float_of_bits(whole), f.float_of_bits(*small));
                    let rest = f.sub(whole, big);
                    let rest = f.bits(rest);
                    *small = f.round_to_tf32(rest);
                }
                Parts { big, small: Some(small) }
            }
        }
    }

    /// `c + a b`.
    fn multiply(self, f: &mut Function, a: &Parts<4>, b: &Parts<2>, mut c: Quad) -> Quad {
        if let Factors::Half(dtype) = self {
            return f.multiply_matrices(dtype, a.big, b.big, c);
        }
        if let (Some(a_small), Some(b_small)) = (a.small, b.small) {
            c = f.multiply_tf32(a_small, b.big, c);
            c = f.multiply_tf32(a.big, b_small, c);
        }
        f.multiply_tf32(a.big, b.big, c)
    }
}

/// Left factors of a product: for each group of 16 rows, and each 32 bytes of depth, a square.
#[derive(Clone, Debug)]
pub(super) enum Left {
    /// In registers, by group and depth.
    Held(Vec<Vec<Quad>>),
    /// In shared memory: where a lane begins, groups, depths.
    Shared(Value, usize, usize),
}

impl Left {
    /// Rows of a tile, 16 a group, from the tile's first on.
    pub fn held(f: &mut Function, lanes: &Lanes, tile: Value, groups: u64, depths: u64) -> Self {
        let start = f.addi(tile, lanes.down);
        let square =
            |f: &mut Function, group, depth| lanes.square(f, start, group * 16, (0, depth), Turned::No);
        Left::Held(
            (0..groups).map(|group| (0..depths).map(|depth| square(f, group, depth)).collect()).collect(),
        )
    }

    /// The same, loaded whenever they are used.
    pub fn shared(f: &mut Function, lanes: &Lanes, tile: Value, groups: u64, depths: u64) -> Self {
        Left::Shared(f.addi(tile, lanes.down), groups as usize, depths as usize)
    }

    fn depths(&self) -> usize {
        match self {
            Left::Held(all) => all[0].len(),
            Left::Shared(_, _, depths) => *depths,
        }
    }

    /// The squares of a depth, one a group.
    fn squares(&self, f: &mut Function, lanes: &Lanes, depth: usize) -> Vec<Quad> {
        match self {
            Left::Held(all) => all.iter().map(|group| group[depth]).collect(),
            Left::Shared(start, groups, _) => (0..*groups as u64)
                .map(|group| lanes.square(f, *start, group * 16, (0, depth as u64), Turned::No))
                .collect(),
        }
    }

    /// The same as factors.
    fn parts(&self, f: &mut Function, (factors, lanes): (Factors, &Lanes), depth: usize) -> Vec<Parts<4>> {
        let squares = self.squares(f, lanes, depth);
        squares.into_iter().map(|square| factors.parts(f, square)).collect()
    }
}

/// How a tile is a right factor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Right {
    /// As it lies: depth runs over its rows. Of f32, the left factor is one of [`as_left`].
    Tile,
    /// Transposed: depth runs over its columns.
    Transposed,
}

/// `sums += left · right`, sums by group and 8 columns; the right factor is a tile's rows from `rows` on.
pub(super) fn multiply(
    f: &mut Function,
    with: (Factors, &Lanes),
    left: &Left,
    right: (Right, Value, u64),
    sums: &mut [Vec<Quad>],
) {
    match (with.0, right.0) {
        (Factors::Split, Right::Tile) => multiply_apart(f, with, left, right, sums),
        (Factors::Split, Right::Transposed) => {
            let zero = f.float(1, 0.0);
            let before = sums.to_vec();
            sums.iter_mut().flatten().for_each(|sum| *sum = [zero; 4]);
            accumulate(f, with, left, right, sums);
            for (sum, before) in sums.iter_mut().flatten().flatten().zip(before.iter().flatten().flatten()) {
                *sum = f.add(*sum, *before);
            }
        }
        (Factors::Half(_) | Factors::Tf32, _) => accumulate(f, with, left, right, sums),
    }
}

/// The same by the tensor cores alone.
fn accumulate(
    f: &mut Function,
    with: (Factors, &Lanes),
    left: &Left,
    right: (Right, Value, u64),
    sums: &mut [Vec<Quad>],
) {
    let start = begin(f, with, right);
    for depth in 0..left.depths() {
        let left = left.parts(f, with, depth);
        for pair in 0..sums[0].len() / 2 {
            let right = columns(f, with, (right.0, start, right.2), (depth as u64, pair as u64));
            for (left, sums) in left.iter().zip(sums.iter_mut()) {
                for (i, right) in right.iter().enumerate() {
                    let sum = &mut sums[pair * 2 + i];
                    *sum = with.0.multiply(f, left, right, *sum);
                }
            }
        }
    }
}

/// The same, sum after sum: few registers beside those of sums that stay.
fn multiply_apart(
    f: &mut Function,
    with: (Factors, &Lanes),
    left: &Left,
    right: (Right, Value, u64),
    sums: &mut [Vec<Quad>],
) {
    let start = begin(f, with, right);
    let left: Vec<_> = (0..left.depths()).map(|depth| left.parts(f, with, depth)).collect();
    for pair in 0..sums[0].len() / 2 {
        let zero = f.float(1, 0.0);
        let mut apart = vec![[[zero; 4]; 2]; sums.len()];
        for (depth, left) in (0..).zip(&left) {
            let right = columns(f, with, (right.0, start, right.2), (depth, pair as u64));
            for (left, apart) in left.iter().zip(&mut apart) {
                for (sum, right) in apart.iter_mut().zip(&right) {
                    *sum = with.0.multiply(f, left, right, *sum);
                }
            }
        }
        for (sums, apart) in sums.iter_mut().zip(apart) {
            for (sum, apart) in sums[pair * 2..].iter_mut().zip(apart) {
                for (x, apart) in sum.iter_mut().zip(apart) {
                    *x = f.add(*x, apart);
                }
            }
        }
    }
}

/// Where a lane's addresses in a right factor begin.
fn begin(
    f: &mut Function,
    (factors, lanes): (Factors, &Lanes),
    (right, tile, _): (Right, Value, u64),
) -> Value {
    match (factors, right) {
        (Factors::Half(_), Right::Tile) => f.addi(tile, lanes.down),
        (Factors::Tf32 | Factors::Split, Right::Tile) => tile,
        (_, Right::Transposed) => f.addi(tile, lanes.across),
    }
}

/// Right factors of a depth and two neighbours of 8 columns.
fn columns(
    f: &mut Function,
    (factors, lanes): (Factors, &Lanes),
    (right, start, rows): (Right, Value, u64),
    (depth, pair): (u64, u64),
) -> [Parts<2>; 2] {
    let two = match (factors, right) {
        (Factors::Half(_), Right::Tile) => {
            let [a, b, c, d] = lanes.square(f, start, rows, (depth, pair), Turned::Yes);
            [[a, b], [c, d]]
        }
        (Factors::Tf32 | Factors::Split, Right::Tile) => {
            [0, 1].map(|i| lanes.pair(f, start, rows + depth * 8, pair * 2 + i))
        }
        (_, Right::Transposed) => {
            let [a, b, c, d] = lanes.square(f, start, rows, (pair, depth), Turned::No);
            [[a, b], [c, d]]
        }
    };
    two.map(|words| factors.parts(f, words))
}

/// Numbers of sums as left factors of a further product by a [`Right::Tile`].
///
/// Of 16 bits, two neighbours of 8 columns are 16 of depth. Of f32, 8 columns are 8 of depth, in the order in which a lane has them: 0, 2, 4, 6,
/// 1, 3, 5, 7.
pub(super) fn as_left(f: &mut Function, factors: Factors, groups: &[Vec<Quad>]) -> Left {
    let groups = groups.iter().map(|columns| match factors {
        Factors::Half(dtype) => columns
            .chunks(2)
            .map(|two| {
                [
                    f.pack_halves(dtype, two[0][0], two[0][1]),
                    f.pack_halves(dtype, two[0][2], two[0][3]),
                    f.pack_halves(dtype, two[1][0], two[1][1]),
                    f.pack_halves(dtype, two[1][2], two[1][3]),
                ]
            })
            .collect(),
        Factors::Tf32 | Factors::Split => {
            columns.iter().map(|&[a, b, c, d]| [a, c, b, d].map(|x| f.bits(x))).collect()
        }
    });
    Left::Held(groups.collect())
}
