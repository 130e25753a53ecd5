//! Attention's gradient, queries outermost: dq of a tile of queries stays in registers while the keys it looks at come.
//!
//! A walk of its own, that computes p and ds a second time: adding to dq in memory from several tiles of keys would need an order among blocks
//! of threads.

use super::block::{Block, Plan, Tiling, flat, quads};
use super::blocks::Outer;
use super::factors::{Left, Right, as_left, multiply};
use super::gradient::{Operands, begin, differentiate, key_head, query_head, scaled, statistics};
use super::operand::Head;
use crate::mlir::{Element, Function, Quad, Type, Value};
use dspc_kernel::describe::AttentionKernel;
use dspc_program::GpuLaunch;

/// Writes the function.
pub(super) fn emit(
    symbol: &str,
    kernel: &AttentionKernel,
    tiling: Tiling,
) -> Result<(String, GpuLaunch), String> {
    let plan = Plan::new(symbol.to_string(), kernel, (Outer::Queries, tiling), (2, 2, 0))?;
    plan.write(|f, args, block| {
        let operands = Operands::new(args, kernel)?;
        let group = f.int32(kernel.heads / kernel.kv_heads);
        let place = (block.place.batch, f.divu(block.place.head, group));
        let k = key_head(f, kernel, operands.k, place);
        let v = key_head(f, kernel, operands.v, place);
        Queries { plan: &plan, block, operands, k, v }.write(f);
        Ok(())
    })
}

struct Queries<'p> {
    plan: &'p Plan<'p>,
    block: &'p Block,
    operands: Operands,
    k: Head,
    v: Head,
}

impl Queries<'_> {
    fn write(&self, f: &mut Function) {
        let (plan, block, kernel) = (self.plan, self.block, self.plan.kernel);
        let place = (block.place.batch, block.place.head);
        let dy_at = f.plus(block.own, plan.format.bytes(plan.rows()));
        for (operand, to) in [(self.operands.q, block.own), (self.operands.dy, dy_at)] {
            let from = query_head(f, kernel, operand, place);
            block.copier.copy(f, &from, block.first, plan.rows(), to);
        }
        let copy = |f: &mut Function, n: Value, buffer: Value| {
            plan.copy_inner(f, block, [&self.k, &self.v], (n, buffer));
        };
        plan.buffers.fill(f, block.walk.count, copy);
        let starts = self.starts(f);
        plan.buffers.await_first(f);
        let own = [block.own, dy_at].map(|at| f.addi(at, block.warp_bytes));
        let left = own.map(|own| plan.left(f, block, own));
        let sums = plan.zeros(f, plan.columns());
        let dq = plan.buffers.walk(f, block.walk.count, &flat(&sums), copy, |f, n, buffer, dq| {
            let dq = self.step(f, (n, buffer), &left, &starts, quads(dq, &sums));
            flat(&dq)
        });
        let dq = scaled(f, quads(&dq, &sums), kernel.scale as f32);
        let first = f.addi(block.first, block.warp_row);
        let to = query_head(f, kernel, self.operands.dq, place);
        plan.format.store(f, &dq, &to, (first, own[0], block.lane));
    }

    /// From what the sums of s and dp begin, for each of a lane's rows.
    fn starts(&self, f: &mut Function) -> Vec<[Value; 2]> {
        let (plan, block, kernel) = (self.plan, self.block, self.plan.kernel);
        let from = statistics(f, kernel, &self.operands, (block.place.batch, block.place.head));
        (0..plan.tiling.groups * 2)
            .map(|i| {
                let position = f.plus(block.row, i * 8);
                let last = f.int32(kernel.queries - 1);
                let position = f.minu(position, last);
                let position = f.zero_extend(position, Element::I64);
                let [lse, delta] = from.map(|from| {
                    let at = f.offset(from, position, Element::F32);
                    f.load(at, Type::scalar(Element::F32), 4)
                });
                begin(f, kernel, lse, delta)
            })
            .collect()
    }

    fn step(
        &self,
        f: &mut Function,
        (n, buffer): (Value, Value),
        [q, dy]: &[Left; 2],
        starts: &[[Value; 2]],
        mut dq: Vec<Vec<Quad>>,
    ) -> Vec<Vec<Quad>> {
        let (plan, block) = (self.plan, self.block);
        let with = (plan.format.factors, &block.lanes);
        let inner = block.walk.inner(f, n);
        let keys = f.addi(block.buffers, buffer);
        let values = f.plus(keys, plan.format.bytes(plan.tiling.inner));
        for rows in (0..plan.tiling.inner).step_by(plan.tiling.chunk as usize) {
            let mask = plan.mask(f, block, (inner, rows));
            let [mut scores, mut dp] = [0, 1].map(|which| {
                starts
                    .chunks_exact(2)
                    .map(|rows| {
                        let (a, b) = (rows[0][which], rows[1][which]);
                        vec![[a, a, b, b]; plan.tiling.chunk as usize / 8]
                    })
                    .collect::<Vec<Vec<Quad>>>()
            });
            multiply(f, with, q, (Right::Transposed, keys, rows), &mut scores);
            multiply(f, with, dy, (Right::Transposed, values, rows), &mut dp);
            let [_, ds] = differentiate(f, (plan, block), &mask, scores, dp);
            let ds = as_left(f, plan.format.factors, &ds);
            multiply(f, with, &ds, (Right::Tile, keys, rows), &mut dq);
        }
        dq
    }
}
