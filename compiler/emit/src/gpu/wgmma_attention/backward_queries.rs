//! Gradient of queries: p = 2^(s − lse);  ds = p · (dy vᵀ − δ);  dq = scale · ds k.
//!
//! A block owns 64 queries a warpgroup, with their dy, and visits tiles of keys and values. Exponentials are taken while dy vᵀ is computed,
//! and dq of a visit while the scores of the next are.

use super::fragment::{Lane, Rows as Direction, Target, apply_mask, pack, store};
use super::items::{Item, Items};
use super::loads::{Place, Tiles, map};
use super::stage::{Layout, Shared, Turn, arrive, declaration, wide};
use super::statistics::{delta_at, padded};
use super::visits::{Owner, Visits};
use super::{Tiling, arguments, scale_of_powers};
use crate::gpu::memory::stored;
use crate::mlir::{Element, Factor, Function, Onto, Product, SharedMatrix, Summed, Type, Value};
use dspc_kernel::describe::AttentionKernel;
use dspc_program::GpuLaunch;

/// Sizes that measured fastest.
pub(super) fn tiling(kernel: &AttentionKernel) -> Tiling {
    match kernel.head_dim {
        64 => Tiling { groups: 2, visited: 128, stages: 3 },
        _ => Tiling { groups: 2, visited: 64, stages: 3 },
    }
}

struct Backward<'k> {
    kernel: &'k AttentionKernel,
    tiling: Tiling,
    visits: &'k Visits,
    items: Items,
    shared: Shared,
    /// Queries, dy; keys, values.
    own: [Tiles; 2],
    visited: [Tiles; 2],
    dq: Value,
    workspace: Value,
}

/// What stays for an item.
#[derive(Clone, Copy)]
struct Resident {
    queries: SharedMatrix,
    dy: SharedMatrix,
    /// − log-sum-exp of the thread's two rows, in powers of two.
    exponents: [Value; 2],
    deltas: [Value; 2],
}

/// Writes the kernel; parameters are those of the gradient and the maps of q, dy, k, v.
pub(super) fn emit(
    symbol: &str,
    kernel: &AttentionKernel,
    tiling: Tiling,
) -> Result<(String, GpuLaunch), String> {
    let &[sq, sk, sv, _, sdy, ..] = kernel.strides.as_slice() else {
        return Err("eight strides".to_string());
    };
    let types = arguments(10, 4);
    let (mut f, args) = Function::new(&types);
    let (rows, cols) = (tiling.own(), tiling.visited);
    let own = [args[10], args[11]].map(|map| Tiles::new(kernel, map, rows));
    let visited = [args[12], args[13]].map(|map| Tiles::new(kernel, map, cols));
    let visits = Visits::new(kernel, rows.into(), cols.into(), Owner::Queries);
    let table = format!("{symbol}_visits");
    let layout = Layout {
        resident: 2 * own[0].bytes(),
        stage: 2 * visited[0].bytes(),
        stages: tiling.stages,
        warps: 4 * tiling.groups,
    };
    let thread = f.special("tid.x");
    let shared = Shared::new(&mut f, symbol, layout, thread);
    let bytes = kernel.keys * kernel.head_dim * 4 * kernel.kv_heads / kernel.heads;
    let items = Items::new(&mut f, &table, &visits, kernel.batch * kernel.heads, bytes);
    let (queries, keys) = (kernel.queries, kernel.keys);
    let maps = vec![
        map(kernel, 0, (kernel.heads, queries, sq), rows),
        map(kernel, 5, (kernel.heads, queries, sdy), rows),
        map(kernel, 1, (kernel.kv_heads, keys, sk), cols),
        map(kernel, 2, (kernel.kv_heads, keys, sv), cols),
    ];
    let launch = tiling.launch(symbol, items.count(), layout.bytes(), maps);
    let (dq, workspace) = (args[6], args[9]);
    let this = Backward { kernel, tiling, visits: &visits, items, shared, own, visited, dq, workspace };
    tiling.roles(&mut f, thread, |f| this.load(f), |f| this.compute(f, thread));
    let text = f.finish(symbol, &types, &tiling.attributes());
    Ok((visits.text(&table) + &declaration(symbol) + &text, launch))
}

impl Backward<'_> {
    /// Batch, head and key head of an item.
    fn heads(&self, f: &mut Function, item: Item) -> (Value, Value, Value) {
        let heads = f.int32(self.kernel.heads);
        let (batch, head) = (f.divu(item.head, heads), f.remu(item.head, heads));
        let group = f.int32(self.kernel.heads / self.kernel.kv_heads);
        (batch, head, f.divu(head, group))
    }

    fn load(&self, f: &mut Function) {
        let zero = f.int32(0);
        self.items.each(f, &[zero, zero, zero], |f, item, carried| {
            let (batch, head, kv_head) = self.heads(f, item);
            let one = f.int32(1);
            let (full, empty) = (self.shared.resident_full(f), self.shared.resident_empty(f));
            let parity = f.xor(carried[2], one);
            f.barrier_wait(empty, parity);
            f.barrier_expect(full, 2 * self.own[0].bytes());
            let row = f.times(item.tile, self.own[0].rows.into());
            let place = Place { batch, head, row };
            self.own[0].copy(f, place, self.shared.base, full);
            let at = f.plus(self.shared.base, self.own[0].bytes().into());
            self.own[1].copy(f, place, at, full);
            let turn = f.fold((zero, item.visits, one), &carried[..2], |f, visit, turn| {
                let turn = Turn { stage: turn[0], phase: turn[1] };
                let tile = self.items.visited(f, item, visit);
                let row = f.times(tile, self.visited[0].rows.into());
                let place = Place { batch, head: kv_head, row };
                let bytes = self.visited[0].bytes();
                let (at, barrier) = self.shared.await_empty(f, turn, 2 * bytes);
                self.visited[0].copy(f, place, at, barrier);
                let at = f.plus(at, bytes.into());
                self.visited[1].copy(f, place, at, barrier);
                let next = self.shared.next(f, turn);
                vec![next.stage, next.phase]
            });
            vec![turn[0], turn[1], parity]
        });
    }

    fn compute(&self, f: &mut Function, thread: Value) {
        let lane = Lane::new(f, thread);
        let at = f.times(lane.group, 64 * 128);
        let at = f.addi(self.shared.base, at);
        let queries = self.own[0].matrix(f, at, Summed::Columns);
        let at = f.plus(at, self.own[0].bytes().into());
        let dy = self.own[1].matrix(f, at, Summed::Columns);
        let zero = f.int32(0);
        self.items.each(f, &[zero, zero, zero], |f, item, carried| {
            let first = f.times(item.tile, self.tiling.own().into());
            let row = f.addi(first, lane.row);
            let (exponents, deltas) = self.statistics(f, item, row);
            let resident = Resident { queries, dy, exponents, deltas };
            let full = self.shared.resident_full(f);
            f.barrier_wait(full, carried[2]);
            let (sums, turn) = self.sum(f, (item, lane, row), resident, &carried[..2]);
            let (batch, head, _) = self.heads(f, item);
            let factor = f.float(1, self.kernel.scale as f32);
            let (positions, stride) = (self.kernel.queries, self.kernel.strides[5]);
            let to = Target { operand: self.dq, batch, head, row, positions, stride };
            store(f, self.kernel, lane, &sums, [factor; 2], &to);
            let one = f.int32(1);
            vec![turn[0], turn[1], f.xor(carried[2], one)]
        });
    }

    /// − log-sum-exp and δ of the thread's two rows. The workspace has rows up to a multiple of 128; a block's last tile may reach further.
    fn statistics(&self, f: &mut Function, item: Item, row: Value) -> ([Value; 2], [Value; 2]) {
        let last = f.int32(padded(self.kernel) - 1);
        let both = [0, 8].map(|more| {
            let row = f.plus(row, more);
            let row = f.minu(row, last);
            let at = f.times(item.head, padded(self.kernel));
            let at = f.addi(at, row);
            let at = wide(f, at);
            let at = f.offset(self.workspace, at, Element::F32);
            let exponent = f.load(at, Type::scalar(Element::F32), 4);
            let exponent = f.neg(exponent);
            let delta = f.index(delta_at(self.kernel));
            let at = f.offset(at, delta, Element::F32);
            (exponent, f.load(at, Type::scalar(Element::F32), 4))
        });
        (both.map(|b| b.0), both.map(|b| b.1))
    }

    /// All visits of an item.
    fn sum(
        &self,
        f: &mut Function,
        place: (Item, Lane, Value),
        resident: Resident,
        turn: &[Value],
    ) -> (Vec<Value>, [Value; 2]) {
        let (item, lane, _) = place;
        let (zero, one, nothing) = (f.int32(0), f.int32(1), f.float(1, 0.0));
        let mut carried = turn.to_vec();
        carried.push(self.shared.spare(f));
        carried.extend(vec![nothing; self.kernel.head_dim as usize / 2]);
        let kinds: &[bool] = if self.visits.any_partial { &[true, false] } else { &[false] };
        for &masked in kinds {
            let range = if masked { (zero, item.partial, one) } else { (item.partial, item.visits, one) };
            carried = f.fold(range, &carried, |f, visit, carried| {
                self.visit(f, place, resident, carried, masked.then_some(visit))
            });
        }
        let sums = f.await_products(0, &carried[3..]);
        arrive(f, lane.is_first, carried[2]);
        let empty = self.shared.resident_empty(f);
        arrive(f, lane.is_first, empty);
        (sums, [carried[0], carried[1]])
    }

    /// One tile of keys and values. Carried: the place in the ring, the barrier of the stage that the running product reads, its sums.
    fn visit(
        &self,
        f: &mut Function,
        (item, lane, row): (Item, Lane, Value),
        resident: Resident,
        carried: &[Value],
        masked: Option<Value>,
    ) -> Vec<Value> {
        let (dim, cols, element) =
            (self.kernel.head_dim as u32, self.tiling.visited, stored(self.kernel.dtype));
        let turn = Turn { stage: carried[0], phase: carried[1] };
        let stage = self.shared.await_full(f, turn);
        let inner = Product { columns: cols, depth: dim, element };
        let keys = self.visited[0].matrix(f, stage, Summed::Columns);
        let scores = f.product(inner, Factor::Shared(resident.queries), keys, Onto::Zero);
        let at = f.plus(stage, self.visited[0].bytes().into());
        let values = self.visited[1].matrix(f, at, Summed::Columns);
        let slopes = f.product(inner, Factor::Shared(resident.dy), values, Onto::Zero);
        let ended = f.await_products(1, &[&scores, &carried[3..]].concat());
        arrive(f, lane.is_first, carried[2]);
        let (scores, sums) = ended.split_at(scores.len());
        let mut scores = scores.to_vec();
        if let Some(visit) = masked {
            let tile = self.items.visited(f, item, visit);
            let column = f.times(tile, cols.into());
            let column = f.addi(column, lane.column);
            apply_mask(f, self.kernel, &mut scores, (Direction::Queries, row, column));
        }
        let scale = f.float(1, scale_of_powers(self.kernel));
        let weights: Vec<Value> = (scores.iter().enumerate())
            .map(|(i, &score)| {
                let power = f.fma(score, scale, resident.exponents[i / 2 % 2]);
                f.fast_exp2(power)
            })
            .collect();
        let slopes = f.await_products(0, &slopes);
        let slopes: Vec<Value> = (slopes.iter().zip(&weights).enumerate())
            .map(|(i, (&slope, &weight))| {
                let difference = f.sub(slope, resident.deltas[i / 2 % 2]);
                f.mul(weight, difference)
            })
            .collect();
        let slopes = pack(f, self.kernel.dtype, &slopes);
        let keys = SharedMatrix { summed: Summed::Rows, ..keys };
        let outer = Product { columns: dim, depth: cols, element };
        let sums = f.product(outer, Factor::Registers(&slopes), keys, Onto::Sum(sums));
        let next = self.shared.next(f, turn);
        let mut carried = vec![next.stage, next.phase, self.shared.empty(f, turn.stage)];
        carried.extend(sums);
        carried
    }
}
