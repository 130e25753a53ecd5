//! Attention's gradient, keys outermost: dk and dv of a tile of keys stay in registers while the queries that look at it come.
//!
//! Scores have keys as rows: p and ds are left factors of the products with dy and q as they lie in registers. Query heads that share a head
//! of keys come one after the other, so their sum has a fixed order.

use super::block::{Block, Plan, Tiling, flat, quads};
use super::blocks::{Inner, Outer};
use super::factors::{Left, Right, as_left, multiply};
use super::gradient::{Operands, begin, differentiate, key_head, query_head, scaled, statistics};
use crate::mlir::{Element, Function, Order, Quad, Type, Value};
use dspc_kernel::describe::AttentionKernel;
use dspc_program::GpuLaunch;

/// Writes the function.
pub(super) fn emit(
    symbol: &str,
    kernel: &AttentionKernel,
    tiling: Tiling,
) -> Result<(String, GpuLaunch), String> {
    let statistics = tiling.inner * 8;
    let plan = Plan::new(symbol.to_string(), kernel, (Outer::Keys, tiling), (2, 2, statistics))?;
    plan.write(|f, args, block| {
        let operands = Operands::new(args, kernel)?;
        Keys { plan: &plan, block, operands }.write(f);
        Ok(())
    })
}

struct Keys<'p> {
    plan: &'p Plan<'p>,
    block: &'p Block,
    operands: Operands,
}

impl Keys<'_> {
    fn write(&self, f: &mut Function) {
        let (plan, block, kernel) = (self.plan, self.block, self.plan.kernel);
        let place = (block.place.batch, block.place.head);
        let values_at = f.plus(block.own, plan.format.bytes(plan.rows()));
        for (operand, to) in [(self.operands.k, block.own), (self.operands.v, values_at)] {
            let from = key_head(f, kernel, operand, place);
            block.copier.copy(f, &from, block.first, plan.rows(), to);
        }
        let copy = |f: &mut Function, n: Value, buffer: Value| self.copy_inner(f, n, buffer);
        let tiles = f.times(block.walk.count, kernel.heads / kernel.kv_heads);
        plan.buffers.fill(f, tiles, copy);
        plan.buffers.await_first(f);
        let own = [block.own, values_at].map(|at| f.addi(at, block.warp_bytes));
        let left = own.map(|own| plan.left(f, block, own));
        let sums = plan.zeros(f, plan.columns());
        let both = [flat(&sums), flat(&sums)].concat();
        let both = plan.buffers.walk(f, tiles, &both, copy, |f, n, buffer, both| {
            let (dk, dv) = both.split_at(both.len() / 2);
            let next = self.step(f, (n, buffer), &left, [quads(dk, &sums), quads(dv, &sums)]);
            next.iter().flat_map(|sums| flat(sums)).collect()
        });
        let (dk, dv) = both.split_at(both.len() / 2);
        let dk = scaled(f, quads(dk, &sums), kernel.scale as f32);
        let first = f.addi(block.first, block.warp_row);
        for (operand, sums, own) in
            [(self.operands.dk, dk, own[0]), (self.operands.dv, quads(dv, &sums), own[1])]
        {
            let to = key_head(f, kernel, operand, place);
            plan.format.store(f, &sums, &to, (first, own, block.lane));
        }
    }

    /// The inner tile of a step, and the query head it is of.
    fn inner(&self, f: &mut Function, n: Value) -> (Inner, Value) {
        let (walk, kernel) = (&self.block.walk, self.plan.kernel);
        let group = kernel.heads / kernel.kv_heads;
        if group == 1 {
            return (walk.inner(f, n), self.block.place.head);
        }
        let (turn, n) = (f.divu(n, walk.count), f.remu(n, walk.count));
        let head = f.times(self.block.place.head, group);
        (walk.inner(f, n), f.addi(head, turn))
    }

    /// Queries, dy, log-sum-exp and δ of an inner tile; 0 where there is no query.
    fn copy_inner(&self, f: &mut Function, n: Value, buffer: Value) {
        let (plan, block, kernel) = (self.plan, self.block, self.plan.kernel);
        let (inner, query) = self.inner(f, n);
        let place = (block.place.batch, query);
        let first = f.times(inner.tile, plan.tiling.inner);
        let mut to = f.addi(block.buffers, buffer);
        for operand in [self.operands.q, self.operands.dy] {
            let from = query_head(f, kernel, operand, place);
            block.copier.copy(f, &from, first, plan.tiling.inner, to);
            to = f.plus(to, plan.format.bytes(plan.tiling.inner));
        }
        let rows = f.int32(plan.tiling.inner);
        let has_row = f.order(Order::Below, block.thread, rows);
        f.only_if(has_row, |f| {
            let position = f.addi(first, block.thread);
            let last = f.int32(kernel.queries - 1);
            let is_row = f.order(Order::LessEqual, position, last);
            let position = f.minu(position, last);
            let (four, zero) = (f.int32(4), f.int32(0));
            let size = f.select(is_row, four, zero);
            let position = f.zero_extend(position, Element::I64);
            let own = f.shl(block.thread, 2);
            let to = f.addi(to, own);
            for (i, from) in (0..).zip(statistics(f, kernel, &self.operands, place)) {
                let from = f.offset(from, position, Element::F32);
                let to = f.shared_at(to, i * plan.tiling.inner * 4);
                f.copy_async(to, from, 4, Some(size));
            }
        });
    }

    fn step(
        &self,
        f: &mut Function,
        (n, buffer): (Value, Value),
        [keys, values]: &[Left; 2],
        [mut dk, mut dv]: [Vec<Vec<Quad>>; 2],
    ) -> [Vec<Vec<Quad>>; 2] {
        let (plan, block) = (self.plan, self.block);
        let with = (plan.format.factors, &block.lanes);
        let (inner, _) = self.inner(f, n);
        let q = f.addi(block.buffers, buffer);
        let dy = f.plus(q, plan.format.bytes(plan.tiling.inner));
        let statistics = f.plus(dy, plan.format.bytes(plan.tiling.inner));
        for rows in (0..plan.tiling.inner).step_by(plan.tiling.chunk as usize) {
            let mask = plan.mask(f, block, (inner, rows));
            let [mut scores, mut dp] = self.begin(f, statistics, rows);
            multiply(f, with, keys, (Right::Transposed, q, rows), &mut scores);
            multiply(f, with, values, (Right::Transposed, dy, rows), &mut dp);
            let [p, ds] = differentiate(f, (plan, block), &mask, scores, dp);
            let p = as_left(f, plan.format.factors, &p);
            multiply(f, with, &p, (Right::Tile, dy, rows), &mut dv);
            let ds = as_left(f, plan.format.factors, &ds);
            multiply(f, with, &ds, (Right::Tile, q, rows), &mut dk);
        }
        [dk, dv]
    }

    /// From what the sums of scores and dp begin: the same for all keys of a query.
    fn begin(&self, f: &mut Function, statistics: Value, rows: u64) -> [Vec<Vec<Quad>>; 2] {
        let (plan, block) = (self.plan, self.block);
        let own = f.shl(block.column, 2);
        let at = f.addi(statistics, own);
        let pair = Type::vector(Element::F32, 2);
        let (mut scores, mut dp) = (vec![], vec![]);
        for column in (rows..rows + plan.tiling.chunk).step_by(8) {
            let [lse, delta] = [0, plan.tiling.inner].map(|after| {
                let at = f.shared_at(at, (after + column) * 4);
                let two = f.load(at, pair, 8);
                [f.extract(two, 0), f.extract(two, 1)]
            });
            let [s0, d0] = begin(f, plan.kernel, lse[0], delta[0]);
            let [s1, d1] = begin(f, plan.kernel, lse[1], delta[1]);
            scores.push([s0, s1, s0, s1]);
            dp.push([d0, d1, d0, d1]);
        }
        [scores, dp].map(|columns| vec![columns; plan.tiling.groups as usize])
    }
}
