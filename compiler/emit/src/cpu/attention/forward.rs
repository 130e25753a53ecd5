//! Attention, forward: y = softmax(scale · q kᵀ + mask) v, and the log-sum-exp of each query's scores.
//!
//! Online softmax: each tile of keys brings a new maximum; what was summed before is scaled to it.
//! Source: Milakov, Gimelshein 2018; Dao 2023 (FlashAttention-2), algorithm 1.

use super::tile::{Onto, Start, Tile, multiply, pack, transpose, unpack};
use super::{ARGUMENTS, Geometry, Part, open};
use crate::cpu::memory::{Mask, store};
use crate::mlir::{Function, Value};
use crate::row::{Target as Machine, exp_of_score, log};
use dspc_graph::ir::DType;
use dspc_kernel::describe::AttentionKernel;

/// Memory of one call.
struct Tiles {
    /// Queries as rows; later y.
    rows: Tile,
    /// Queries as lanes.
    queries: Tile,
    keys: Tile,
    values: Tile,
    /// Keys as rows, queries as lanes.
    scores: Tile,
    /// y before division, queries as lanes.
    sum: Tile,
    /// A lane a query: the greatest score so far, the sum of exponentials, the factor to the new maximum.
    maximum: Tile,
    total: Tile,
    factor: Tile,
}

/// Writes a kernel; operands are q, k, v, y, log-sum-exp.
pub(in crate::cpu) fn emit(symbol: &str, kernel: &AttentionKernel, lanes: u32) -> Result<String, String> {
    let g = Geometry::new(symbol, kernel, lanes, 4)?;
    let (mut f, operands, begin, end) = open(5);
    let &[q, k, v, y, lse] = operands.as_slice() else {
        return Err("five operands".to_string());
    };
    let strides = &kernel.strides;
    let tiles = Tiles::new(&mut f, &g);
    let one = f.index(1);
    f.fold((begin, end, one), &[], |f, item, _| {
        let heads = f.index(kernel.heads);
        let (batch, head) = (f.divu(item, heads), f.remu(item, heads));
        let group = f.index(kernel.heads / kernel.kv_heads);
        let kv_head = f.divu(head, group);
        f.repeat(g.query_tiles(), 1, |f, query_tile| {
            let query = g.query_part(f, query_tile);
            let from = g.head(f, q, strides[0], kernel.queries, (batch, head, query.first));
            pack(f, &from, query.count, kernel.scale as f32, &tiles.rows, lanes);
            transpose(f, &tiles.rows, &tiles.queries, lanes);
            tiles.reset(f, lanes);
            f.repeat(g.key_tiles(), 1, |f, key_tile| {
                g.unless_skipped(f, query_tile, key_tile, |f, is_partial| {
                    let key = g.key_part(f, key_tile);
                    let keys = g.head(f, k, strides[1], kernel.keys, (batch, kv_head, key.first));
                    let values = g.head(f, v, strides[2], kernel.keys, (batch, kv_head, key.first));
                    pack(f, &keys, key.count, 1.0, &tiles.keys, lanes);
                    pack(f, &values, key.count, 1.0, &tiles.values, lanes);
                    let keys = tiles.keys.rows_left();
                    multiply(f, keys, &tiles.queries, kernel.head_dim, &tiles.scores, Start::Zero, lanes);
                    f.only_if(is_partial, |f| g.apply_mask(f, &tiles.scores, query, key));
                    tiles.softmax(f, &g);
                    let values = tiles.values.cols_left();
                    let start = Start::Scaled(tiles.factor);
                    multiply(f, values, &tiles.scores, g.key_tile, &tiles.sum, start, lanes);
                });
            });
            let statistic = g.statistic(f, lse, (batch, head, query.first));
            tiles.divide(f, &g, statistic, query);
            transpose(f, &tiles.sum, &tiles.rows, lanes);
            let to = g.head(f, y, strides[3], kernel.queries, (batch, head, query.first));
            unpack(f, &tiles.rows, query.count, 1.0, &to, Onto::Nothing, lanes);
        });
        vec![]
    });
    Ok(g.table_text() + &f.finish(symbol, &ARGUMENTS, ""))
}

impl Tiles {
    fn new(f: &mut Function, g: &Geometry) -> Self {
        Tiles {
            rows: Tile::new(f, g.query_tile, g.width),
            queries: Tile::new(f, g.width, g.query_tile),
            keys: Tile::new(f, g.key_tile, g.width),
            values: Tile::new(f, g.key_tile, g.width),
            scores: Tile::new(f, g.key_tile, g.query_tile),
            sum: Tile::new(f, g.width, g.query_tile),
            maximum: Tile::new(f, 1, g.query_tile),
            total: Tile::new(f, 1, g.query_tile),
            factor: Tile::new(f, 1, g.query_tile),
        }
    }

    fn reset(&self, f: &mut Function, lanes: u32) {
        self.sum.fill(f, 0.0, lanes);
        self.maximum.fill(f, f32::NEG_INFINITY, lanes);
        self.total.fill(f, 0.0, lanes);
    }

    /// Scores to exponentials under the new maximum; the sums and the factor follow.
    fn softmax(&self, f: &mut Function, g: &Geometry) {
        let lanes = g.lanes;
        let columns = g.query_vectors();
        let (zero, end, one) = (f.index(0), f.index(g.key_tile), f.index(1));
        let before: Vec<Value> = columns.iter().map(|&col| self.maximum.load(f, zero, col, lanes)).collect();
        let after = f.fold((zero, end, one), &before, |f, row, greatest| {
            let scores: Vec<_> = columns.iter().map(|&c| self.scores.load(f, row, c, lanes)).collect();
            scores.into_iter().zip(greatest).map(|(s, &m)| f.max(m, s)).collect()
        });
        // A lane that has seen nothing has no maximum: 0 in its place makes all its exponentials 0.
        let (none, nought) = (f.float(lanes, f32::NEG_INFINITY), f.float(lanes, 0.0));
        let base: Vec<Value> = after
            .iter()
            .map(|&m| {
                let is_none = f.compare("oeq", m, none);
                f.select(is_none, nought, m)
            })
            .collect();
        let sums = f.fold((zero, end, one), &vec![nought; columns.len()], |f, row, sums| {
            let mut next = vec![];
            for ((&col, &base), &sum) in columns.iter().zip(&base).zip(sums) {
                let score = self.scores.load(f, row, col, lanes);
                let score = f.sub(score, base);
                let e = exp_of_score(f, score);
                self.scores.store(f, e, row, col);
                next.push(f.add(sum, e));
            }
            next
        });
        for (i, &col) in columns.iter().enumerate() {
            let shift = f.sub(before[i], base[i]);
            let factor = exp_of_score(f, shift);
            let total = self.total.load(f, zero, col, lanes);
            let total = f.fma(total, factor, sums[i]);
            self.total.store(f, total, zero, col);
            self.maximum.store(f, after[i], zero, col);
            self.factor.store(f, factor, zero, col);
        }
    }

    /// Divides by the sums, and writes log-sum-exp.
    fn divide(&self, f: &mut Function, g: &Geometry, statistic: Value, query: Part) {
        let lanes = g.lanes;
        let zero_row = f.index(0);
        let (zero, one) = (f.float(lanes, 0.0), f.float(lanes, 1.0));
        for col in g.query_vectors() {
            let total = self.total.load(f, zero_row, col, lanes);
            let maximum = self.maximum.load(f, zero_row, col, lanes);
            let size = log(f, Machine::Cpu, total);
            let sum = f.add(maximum, size);
            let first = f.index(col);
            let at = f.offset(statistic, first, crate::mlir::Element::F32);
            let mask = g.is_query(f, query, col);
            store(f, DType::F32, sum, at, Mask::Lanes(mask));
            let inverse = f.div(one, total);
            let is_empty = f.compare("oeq", total, zero);
            let inverse = f.select(is_empty, zero, inverse);
            f.repeat(g.width, 1, |f, row| {
                let y = self.sum.load(f, row, col, lanes);
                let y = f.mul(y, inverse);
                self.sum.store(f, y, row, col);
            });
        }
    }
}
