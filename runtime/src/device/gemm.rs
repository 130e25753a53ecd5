//! Matrix products on the CPU: the `gemm` crate on one thread a block, our own division into blocks.
//!
//! Bits do not depend on the division. Every element of c is one chain of fused multiply-adds over k, in order, cut into runs of
//! [`DEPTH`] that are added to c one after the other; blocks are whole numbers of [`UNIT`] rows or columns, so that none is so thin
//! that the crate takes another way (dot products, outer products) than it takes for the rest.
//!
//! Factors of 16 bits are widened a panel at a time, and a result of 16 bits is summed in f32 and rounded once; what that needs is taken once a thread.

mod stored;

pub(super) use stored::Stored;

use super::call::{Address, Counters, LaunchCall};
use super::pool::Pool;
use std::cell::RefCell;
use std::ops::RangeInclusive;

/// Summed at once. The crate's own depth depends on the block's size; a depth of at most this is never cut again.
const DEPTH: usize = 512;
/// Blocks are multiples of this; the last takes the remainder, so a block is thinner only where the whole matrix is.
const UNIT: usize = 32;
/// Rows of a call. More share the cost of packing b; fewer would keep a wider c in cache for the epilogue: 256 rows of 1024 columns are
/// 1 MiB.
const ROWS: usize = 256;
/// Columns of a panel: its part of c stays in cache from one depth to the next. A turned panel of b is 2 MiB.
const PANEL: usize = 1024;
/// Fewer rows do not pay for turning b.
const TURN_ROWS: usize = 64;
/// Nor do fewer columns; where there are more, as in a large vocabulary, the crate packs b in pieces itself, and as fast.
const TURN_COLS: RangeInclusive<usize> = 128..=8192;
/// Floats of a cache line.
const TILE: usize = 16;
/// Multiply-adds that are worth a thread of their own: about 10 µs.
const WORTH: usize = 1 << 19;

/// A matrix in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side {
    pub(super) at: Address,
    pub(super) stored: Stored,
    pub(super) row_stride: isize,
    pub(super) col_stride: isize,
}

/// A row kernel that runs on rows of c.
#[derive(Debug)]
pub(super) struct Epilogue {
    pub(super) launch: LaunchCall,
    /// Rows of c that one of its items covers: blocks of rows begin at multiples of it.
    pub(super) rows_per_item: usize,
}

/// `c = a · b [+ c]`, then the epilogue.
#[derive(Debug)]
pub(super) struct GemmCall {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) a: Side,
    pub(super) b: Side,
    pub(super) c: Side,
    pub(super) accumulate: bool,
    pub(super) epilogue: Option<Epilogue>,
}

impl GemmCall {
    /// Runs it on the pool.
    pub(super) fn run(&self, pool: &mut Pool, counters: Counters, values: &mut Vec<*mut u8>) {
        let operands = Operands {
            a: self.a.bind(counters),
            b: self.b.bind(counters),
            c: self.c.bind(counters),
            accumulate: self.accumulate,
        };
        let bound = self.epilogue.as_ref().map(|e| (e.launch.bind(counters, values), e));
        let rows_per_item = self.epilogue.as_ref().map_or(1, |e| e.rows_per_item);
        let unit = UNIT.next_multiple_of(rows_per_item);
        let block = ROWS.next_multiple_of(rows_per_item);
        let grid = Grid::new((self.m, unit), self.n, self.k, pool.threads());
        let fused = bound.as_ref().filter(|_| grid.cols == 1);
        pool.run(grid.rows * grid.cols, &|part| {
            let (row, col) = (part / grid.cols, part % grid.cols);
            let (rows, cols) = (range(self.m, unit, row, grid.rows), range(self.n, UNIT, col, grid.cols));
            let mut begin = rows.0;
            while begin < rows.1 {
                // The last block takes a remainder that would be thinner than a unit.
                let end = if rows.1 - begin < block + UNIT { rows.1 } else { begin + block };
                // SAFETY: the matrices were checked to lie in the arenas; blocks of c are disjoint, and the schedule orders this
                // product after what it reads.
                unsafe { operands.block((begin, end), cols, self.k) };
                if let Some((launch, _)) = fused {
                    launch.call((begin / rows_per_item) as i64, end.div_ceil(rows_per_item) as i64);
                }
                begin = end;
            }
        });
        if let (Some((launch, epilogue)), None) = (&bound, fused) {
            let parts = epilogue.launch.parts(pool.threads());
            pool.run(parts, &|part| launch.call_part(part, parts));
        }
    }
}

/// How many blocks each way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Grid {
    rows: usize,
    cols: usize,
}

impl Grid {
    /// Rows first, since they keep the epilogue in cache; columns for the threads that are left.
    fn new((m, unit): (usize, usize), n: usize, k: usize, threads: usize) -> Self {
        let worth = (m * n).saturating_mul(k) / WORTH;
        let parts = threads.min(worth).max(1);
        let (units_m, units_n) = ((m / unit).max(1), (n / UNIT).max(1));
        let best = (1..=parts.min(units_m))
            .map(|rows| Grid { rows, cols: (parts / rows).clamp(1, units_n) })
            .min_by_key(|grid| {
                let longest = units_m.div_ceil(grid.rows) * units_n.div_ceil(grid.cols);
                (longest, grid.cols)
            });
        best.unwrap_or(Grid { rows: 1, cols: 1 })
    }
}

/// Part `i` of `parts` of a length, in whole units; the last takes the remainder.
fn range(length: usize, unit: usize, i: usize, parts: usize) -> (usize, usize) {
    let units = length / unit;
    let edge = |i: usize| if i == parts { length } else { units * i / parts * unit };
    (edge(i), edge(i + 1))
}

#[derive(Clone, Copy)]
struct BoundSide {
    at: *mut u8,
    stored: Stored,
    row_stride: isize,
    col_stride: isize,
}

impl Side {
    fn bind(&self, counters: Counters) -> BoundSide {
        BoundSide {
            at: self.at.at(counters),
            stored: self.stored,
            row_stride: self.row_stride,
            col_stride: self.col_stride,
        }
    }
}

/// Part of a matrix in f32.
#[derive(Clone, Copy)]
struct Panel {
    at: *mut f32,
    row_stride: isize,
    col_stride: isize,
}

impl Panel {
    fn at(&self, row: usize, col: usize) -> *mut f32 {
        self.at.wrapping_offset(row as isize * self.row_stride + col as isize * self.col_stride)
    }
}

impl BoundSide {
    fn at(&self, row: usize, col: usize) -> *mut u8 {
        let elements = row as isize * self.row_stride + col as isize * self.col_stride;
        self.at.wrapping_offset(elements * self.stored.bytes() as isize)
    }

    /// Rows and columns of the part, as they are stored: the number of runs, and the elements of one.
    fn runs(&self, (rows, cols): (usize, usize)) -> (usize, usize) {
        if self.col_stride == 1 { (rows, cols) } else { (cols, rows) }
    }

    fn run(&self, (row, col): (usize, usize), i: usize) -> *mut u8 {
        if self.col_stride == 1 { self.at(row + i, col) } else { self.at(row, col + i) }
    }

    /// Where a part lies in f32: in place, or in the scratch, stored the same way round without gaps.
    fn place(&self, (row, col): (usize, usize), dims: (usize, usize), scratch: &mut Vec<f32>) -> Panel {
        if self.stored == Stored::F32 {
            let at = self.at(row, col).cast();
            return Panel { at, row_stride: self.row_stride, col_stride: self.col_stride };
        }
        scratch.resize(scratch.len().max(dims.0 * dims.1), 0.0);
        let length = self.runs(dims).1 as isize;
        let (row_stride, col_stride) = if self.col_stride == 1 { (length, 1) } else { (1, length) };
        Panel { at: scratch.as_mut_ptr(), row_stride, col_stride }
    }

    /// A part in f32.
    ///
    /// # Safety
    /// The matrix holds the part, and nobody writes it.
    unsafe fn widened(&self, from: (usize, usize), dims: (usize, usize), scratch: &mut Vec<f32>) -> Panel {
        let panel = self.place(from, dims, scratch);
        if self.stored != Stored::F32 {
            let (runs, length) = self.runs(dims);
            for i in 0..runs {
                // SAFETY: the scratch has room for the part; the caller's contract.
                unsafe { self.stored.widen(self.run(from, i), &mut scratch[i * length..(i + 1) * length]) };
            }
        }
        panel
    }

    /// Writes a part that [`Self::place`] placed.
    ///
    /// # Safety
    /// The matrix holds the part, and nobody else touches it.
    unsafe fn keep(&self, to: (usize, usize), dims: (usize, usize), scratch: &[f32]) {
        if self.stored != Stored::F32 {
            let (runs, length) = self.runs(dims);
            for i in 0..runs {
                // SAFETY: the caller's contract.
                unsafe { self.stored.narrow(&scratch[i * length..(i + 1) * length], self.run(to, i)) };
            }
        }
    }
}

struct Operands {
    a: BoundSide,
    b: BoundSide,
    c: BoundSide,
    accumulate: bool,
}

// SAFETY: threads read a and b and write disjoint blocks of c.
unsafe impl Sync for Operands {}

impl Operands {
    /// One block of c.
    ///
    /// # Safety
    /// The matrices hold the block's rows and columns, and no other thread touches the block of c.
    unsafe fn block(&self, rows: (usize, usize), cols: (usize, usize), k: usize) {
        let m = rows.1 - rows.0;
        let turn = self.b.row_stride == 1
            && self.b.col_stride > 1
            && m >= TURN_ROWS
            && TURN_COLS.contains(&(cols.1 - cols.0));
        SCRATCH.with_borrow_mut(|scratch| {
            let mut col = cols.0;
            while col < cols.1 {
                let end = if cols.1 - col >= PANEL + UNIT { col + PANEL } else { cols.1 };
                // SAFETY: the caller's contract; the panel is inside the block.
                unsafe { self.panel((rows.0, col), (m, end - col), k, turn, scratch) };
                col = end;
            }
        });
    }

    /// A panel of a block: all of k, a depth at a time.
    ///
    /// # Safety
    /// That of [`Self::block`].
    unsafe fn panel(
        &self,
        (row, col): (usize, usize),
        (m, n): (usize, usize),
        k: usize,
        turn: bool,
        scratch: &mut Scratch,
    ) {
        let c = match self.accumulate {
            // SAFETY: the caller's contract.
            true => unsafe { self.c.widened((row, col), (m, n), &mut scratch.c) },
            false => self.c.place((row, col), (m, n), &mut scratch.c),
        };
        let mut depth = 0;
        loop {
            let run = DEPTH.min(k - depth);
            let accumulate = self.accumulate || depth > 0;
            // SAFETY: the caller's contract.
            unsafe {
                let a = self.a.widened((row, depth), (m, run), &mut scratch.a);
                let b = self.b.widened((depth, col), (run, n), &mut scratch.b);
                let b = if turn { turned(b, n, run, &mut scratch.turned) } else { b };
                multiply((m, n, run), a, b, c, accumulate);
            }
            depth += run;
            if depth >= k {
                break;
            }
        }
        // SAFETY: the caller's contract.
        unsafe { self.c.keep((row, col), (m, n), &scratch.c) };
    }
}

/// Panels of a thread; each grows to its largest once.
#[derive(Default)]
struct Scratch {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    turned: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Copies a `[k, n]` panel that is stored the other way round, so that its rows lie in memory: the crate reads such a panel as it is,
/// and its own packing of a transposed one, a column at a time, costs a quarter of the product at 256 rows.
///
/// # Safety
/// `b` holds n stored rows of k elements.
unsafe fn turned(b: Panel, n: usize, k: usize, scratch: &mut Vec<f32>) -> Panel {
    let stride = n.next_multiple_of(TILE);
    scratch.resize(scratch.len().max(stride * k), 0.0);
    let out = scratch.as_mut_ptr();
    let mut tile = [[0f32; TILE]; TILE];
    for col in (0..n).step_by(TILE) {
        let cols = TILE.min(n - col);
        for row in (0..k).step_by(TILE) {
            let rows = TILE.min(k - row);
            for (i, line) in tile.iter_mut().enumerate().take(cols) {
                // SAFETY: stored row col + i holds elements row .. row + rows.
                unsafe { std::ptr::copy_nonoverlapping(b.at(row, col + i), line.as_mut_ptr(), rows) };
            }
            for j in 0..rows {
                // SAFETY: row + j < k, and col + TILE is at most the stride.
                let to = unsafe { std::slice::from_raw_parts_mut(out.add((row + j) * stride + col), TILE) };
                for (x, line) in to.iter_mut().zip(&tile) {
                    *x = line[j];
                }
            }
        }
    }
    Panel { at: out, row_stride: stride as isize, col_stride: 1 }
}

/// `c = a · b [+ c]` on this thread; dims are m, n, k.
///
/// # Safety
/// The matrices hold what the dims say, and no other thread touches c.
unsafe fn multiply((m, n, k): (usize, usize, usize), a: Panel, b: Panel, c: Panel, accumulate: bool) {
    // SAFETY: the caller's contract.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.at,
            c.col_stride,
            c.row_stride,
            accumulate,
            a.at,
            a.col_stride,
            a.row_stride,
            b.at,
            b.col_stride,
            b.row_stride,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(base: *mut f32) -> Address {
        Address { base: base.cast(), stride: 0, slots: 1, add: 0, turn: false, micro: false }
    }

    fn side(matrix: &mut [f32], cols: usize, transposed: bool) -> Side {
        let stride = cols as isize;
        let (row_stride, col_stride) = if transposed { (1, stride) } else { (stride, 1) };
        Side { at: address(matrix.as_mut_ptr()), stored: Stored::F32, row_stride, col_stride }
    }

    /// Prints GFLOP/s of the shapes that small and GPT-2 models have; asserts nothing.
    #[test]
    #[ignore = "a measurement: cargo test -p dspc-runtime --lib rates -- --ignored --nocapture"]
    fn rates() {
        let cases = [
            ("forward qkv", 768, 384, 128, false, false),
            ("forward up", 768, 512, 128, false, false),
            ("forward down", 768, 128, 512, false, false),
            ("forward head", 768, 65, 128, false, true),
            ("input gradient", 768, 128, 384, false, true),
            ("weight gradient", 128, 512, 768, true, false),
            ("head gradient", 65, 128, 768, true, false),
            ("gpt2 qkv", 256, 2304, 768, false, false),
            ("gpt2 up", 256, 3072, 768, false, false),
            ("gpt2 down", 256, 768, 3072, false, false),
            ("gpt2 head", 256, 50257, 768, false, true),
            ("gpt2 input gradient", 256, 768, 3072, false, true),
            ("gpt2 head input gradient", 256, 768, 50257, false, false),
            ("gpt2 weight gradient", 768, 3072, 256, true, false),
            ("gpt2 head weight gradient", 50257, 768, 256, true, false),
        ];
        let mut pool = Pool::new(1);
        for (name, m, n, k, at, bt) in cases {
            let (mut a, mut b, mut c) = (vec![1f32; m * k], vec![1f32; k * n], vec![0f32; m * n]);
            let call = GemmCall {
                m,
                n,
                k,
                a: side(&mut a, if at { m } else { k }, at),
                b: side(&mut b, if bt { k } else { n }, bt),
                c: side(&mut c, n, false),
                accumulate: false,
                epilogue: None,
            };
            let flops = 2.0 * (m * n * k) as f64;
            let repeats = (2e9 / flops).clamp(1.0, 200.0) as usize;
            let best = (0..7)
                .map(|_| {
                    let begun = std::time::Instant::now();
                    (0..repeats).for_each(|_| call.run(&mut pool, Counters::default(), &mut Vec::new()));
                    begun.elapsed().as_nanos() as f64 / repeats as f64
                })
                .fold(f64::INFINITY, f64::min);
            println!("{name:28} {m}×{n}×{k}  {:6.1} GFLOP/s", flops / best);
        }
    }
}
