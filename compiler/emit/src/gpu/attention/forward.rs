//! Attention, forward: y = softmax(scale · q kᵀ + mask) v, and the log-sum-exp of each query's scores.
//!
//! A warp has 16 or 32 queries in registers and walks over tiles of keys and values with an online softmax. Probabilities are the left factor
//! of the second product as they lie in registers.
//!
//! Shapes    q: [batch, queries, heads, head_dim]   k, v: [batch, keys, kv_heads, head_dim]   lse: f32 [batch, heads, queries]
//! Numerics  scores, statistics and sums in f32; probabilities are factors of the second product, so rounded as those are.
//! Source    Milakov, Gimelshein 2018; Dao 2023 (FlashAttention-2), algorithm 1.

use super::block::{Block, Plan, Tiling, flat, quads};
use super::blocks::Outer;
use super::factors::{Left, Right, as_left, multiply};
use super::operand::{Head, head, statistic};
use crate::mlir::{Element, Function, Order, Quad, Value};
use dspc_kernel::describe::AttentionKernel;
use dspc_program::GpuLaunch;
use std::f32::consts::{LN_2, LOG2_E};

/// A row's statistics while its keys come: the greatest score, and this lane's part of the sum of exponentials.
#[derive(Clone, Copy)]
struct Softmax {
    maximum: Value,
    total: Value,
}

/// Writes the function; operands are q, k, v, y, log-sum-exp.
pub(super) fn emit(
    symbol: &str,
    kernel: &AttentionKernel,
    tiling: Tiling,
) -> Result<(String, GpuLaunch), String> {
    let plan = Plan::new(symbol.to_string(), kernel, (Outer::Queries, tiling), (1, 2, 0))?;
    plan.write(|f, args, block| {
        let &[q, k, v, y, lse] = args else {
            return Err("five operands".to_string());
        };
        let &[q_stride, k_stride, v_stride, y_stride] = kernel.strides.as_slice() else {
            return Err("four strides".to_string());
        };
        let place = (block.place.batch, block.place.head);
        let group = f.int32(kernel.heads / kernel.kv_heads);
        let kv_place = (place.0, f.divu(place.1, group));
        let q = head(f, kernel, (q, q_stride, kernel.queries), place);
        let k = head(f, kernel, (k, k_stride, kernel.keys), kv_place);
        let v = head(f, kernel, (v, v_stride, kernel.keys), kv_place);
        let y = head(f, kernel, (y, y_stride, kernel.queries), place);
        let lse = statistic(f, kernel, (lse, kernel.queries), place);
        Forward { plan: &plan, block, q, k, v, y, lse }.write(f);
        Ok(())
    })
}

struct Forward<'p> {
    plan: &'p Plan<'p>,
    block: &'p Block,
    q: Head,
    k: Head,
    v: Head,
    y: Head,
    lse: Value,
}

impl Forward<'_> {
    fn write(&self, f: &mut Function) {
        let (plan, block) = (self.plan, self.block);
        block.copier.copy(f, &self.q, block.first, plan.rows(), block.own);
        let copy = |f: &mut Function, n: Value, buffer: Value| {
            plan.copy_inner(f, block, [&self.k, &self.v], (n, buffer));
        };
        plan.buffers.fill(f, block.walk.count, copy);
        plan.buffers.await_first(f);
        let own = f.addi(block.own, block.warp_bytes);
        let queries = plan.left(f, block, own);
        let sums = plan.zeros(f, plan.columns());
        let rows = plan.tiling.groups as usize * 2;
        let (none, zero) = (f.float(1, f32::NEG_INFINITY), f.float(1, 0.0));
        let mut carried = flat(&sums);
        carried.extend([none, zero].repeat(rows));
        let carried = plan.buffers.walk(f, block.walk.count, &carried, copy, |f, n, buffer, carried| {
            let (values, statistics) = carried.split_at(carried.len() - rows * 2);
            let softmax = statistics.chunks_exact(2).map(|s| Softmax { maximum: s[0], total: s[1] });
            let (sums, softmax) =
                self.step(f, (n, buffer), &queries, quads(values, &sums), softmax.collect());
            let mut next = flat(&sums);
            next.extend(softmax.iter().flat_map(|s| [s.maximum, s.total]));
            next
        });
        let (values, statistics) = carried.split_at(carried.len() - rows * 2);
        let softmax: Vec<Softmax> =
            statistics.chunks_exact(2).map(|s| Softmax { maximum: s[0], total: s[1] }).collect();
        self.finish(f, quads(values, &sums), &softmax);
    }

    /// One inner tile.
    fn step(
        &self,
        f: &mut Function,
        (n, buffer): (Value, Value),
        queries: &Left,
        mut sums: Vec<Vec<Quad>>,
        mut softmax: Vec<Softmax>,
    ) -> (Vec<Vec<Quad>>, Vec<Softmax>) {
        let (plan, block) = (self.plan, self.block);
        let with = (plan.format.factors, &block.lanes);
        let inner = block.walk.inner(f, n);
        let nothing = if self.factors().0.is_some() { f32::INFINITY } else { f32::NEG_INFINITY };
        let keys = f.addi(block.buffers, buffer);
        let values = f.plus(keys, plan.format.bytes(plan.tiling.inner));
        for rows in (0..plan.tiling.inner).step_by(plan.tiling.chunk as usize) {
            let mask = plan.mask(f, block, (inner, rows));
            let mut scores = plan.zeros(f, plan.tiling.chunk);
            multiply(f, with, queries, (Right::Transposed, keys, rows), &mut scores);
            let mut scores = plan.apply_mask(f, block, &mask, nothing, &scores);
            for (group, columns) in scores.iter_mut().enumerate() {
                for half in 0..2 {
                    let row = &mut softmax[group * 2 + half];
                    let factor = self.advance(f, row, columns, half);
                    for quad in &mut sums[group] {
                        for x in &mut quad[half * 2..half * 2 + 2] {
                            *x = f.mul(*x, factor);
                        }
                    }
                }
            }
            let p = as_left(f, plan.format.factors, &scores);
            multiply(f, with, &p, (Right::Tile, values, rows), &mut sums);
        }
        (sums, softmax)
    }

    /// What scores are multiplied by before anything else, and in their exponent of 2 after the maximum is taken off: a factor below 0 would
    /// make the least score the greatest.
    fn factors(&self) -> (Option<f32>, f32) {
        let factor = self.plan.kernel.scale as f32 * LOG2_E;
        if factor > 0.0 { (None, factor) } else { (Some(factor), 1.0) }
    }

    /// Scores of a row to exponentials under the new maximum; gives the factor for what was summed before.
    fn advance(&self, f: &mut Function, row: &mut Softmax, columns: &mut [Quad], half: usize) -> Value {
        let at = half * 2;
        let (before, factor) = self.factors();
        if let Some(before) = before {
            let before = f.float(1, before);
            for quad in columns.iter_mut() {
                for x in &mut quad[at..at + 2] {
                    *x = f.mul(*x, before);
                }
            }
        }
        let mut maximum = row.maximum;
        for quad in columns.iter() {
            let two = f.max_number(quad[at], quad[at + 1]);
            maximum = f.max_number(maximum, two);
        }
        for bits in [1, 2] {
            let other = f.of_lane_across(maximum, bits);
            maximum = f.max_number(maximum, other);
        }
        // A row that has seen nothing has no maximum: 0 in its place makes all its exponentials 0.
        let (none, zero, factor) = (f.float(1, f32::NEG_INFINITY), f.float(1, 0.0), f.float(1, factor));
        let is_none = f.compare("oeq", maximum, none);
        let base = f.select(is_none, zero, maximum);
        let base = f.mul(base, factor);
        let base = f.neg(base);
        let shift = f.fma(row.maximum, factor, base);
        let shift = f.fast_exp2(shift);
        let mut totals = [zero; 2];
        for quad in columns.iter_mut() {
            for (x, total) in quad[at..at + 2].iter_mut().zip(&mut totals) {
                let score = f.fma(*x, factor, base);
                *x = f.fast_exp2(score);
                *total = f.add(*total, *x);
            }
        }
        let total = f.add(totals[0], totals[1]);
        *row = Softmax { maximum, total: f.fma(row.total, shift, total) };
        shift
    }

    /// Divides by the sums, writes y and log-sum-exp.
    fn finish(&self, f: &mut Function, mut sums: Vec<Vec<Quad>>, softmax: &[Softmax]) {
        let (plan, block) = (self.plan, self.block);
        let (zero, none) = (f.float(1, 0.0), f.int32(0));
        let is_first = f.order(Order::Equal, block.column, none);
        for (i, row) in softmax.iter().enumerate() {
            let (group, half) = (i / 2, i % 2);
            let mut total = row.total;
            for bits in [1, 2] {
                let other = f.of_lane_across(total, bits);
                total = f.add(total, other);
            }
            let is_empty = f.compare("oeq", total, zero);
            let inverse = f.fast_reciprocal(total);
            let inverse = f.select(is_empty, zero, inverse);
            for quad in &mut sums[group] {
                for x in &mut quad[half * 2..half * 2 + 2] {
                    *x = f.mul(*x, inverse);
                }
            }
            let (factor, ln2) = (f.float(1, self.factors().1), f.float(1, LN_2));
            let log = f.fast_log2(total);
            let log = f.fma(row.maximum, factor, log);
            let log = f.mul(log, ln2);
            let position = f.plus(block.row, group as u64 * 16 + half as u64 * 8);
            let end = f.int32(plan.kernel.queries);
            let is_row = f.order(Order::Below, position, end);
            let is_written = f.and(is_row, is_first);
            let position = f.zero_extend(position, Element::I64);
            let at = f.offset(self.lse, position, Element::F32);
            f.only_if(is_written, |f| f.store(log, at, 4));
        }
        let first = f.addi(block.first, block.warp_row);
        let own = f.addi(block.own, block.warp_bytes);
        plan.format.store(f, &sums, &self.y, (first, own, block.lane));
    }
}
