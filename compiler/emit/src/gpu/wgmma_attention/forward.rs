//! Attention, forward: y = softmax(scale · q kᵀ + mask) v, and the log-sum-exp of each query's scores.
//!
//! A block owns 64 queries a warpgroup and visits tiles of keys and values. The scores of a visit are started before the sum over values of
//! the one before, so that the tensor cores work while exponentials are taken.

use super::fragment::{Lane, Rows as Direction, Target, apply_mask, pack, store};
use super::items::{Item, Items};
use super::loads::{Place, Tiles, map};
use super::softmax::{Rows, exponentials, finish, is_first_of_row, scale_rows};
use super::stage::{Layout, Shared, Turn, arrive, declaration, wide};
use super::visits::{Owner, Visits};
use super::{Tiling, arguments, scale_of_powers};
use crate::gpu::memory::stored;
use crate::mlir::{Element, Factor, Function, INT, Onto, Order, Product, SharedMatrix, Summed, Value};
use dspc_kernel::describe::AttentionKernel;
use dspc_program::GpuLaunch;

/// Sizes that measured fastest, for heads of 64 and of 128.
pub(super) const TILING: Tiling = Tiling { groups: 2, visited: 128, stages: 3 };

struct Forward<'k> {
    kernel: &'k AttentionKernel,
    tiling: Tiling,
    visits: &'k Visits,
    items: Items,
    shared: Shared,
    queries: Tiles,
    keys: Tiles,
    values: Tiles,
    y: Value,
    lse: Value,
}

/// Writes the kernel; parameters are q, k, v, y, log-sum-exp and the maps of the first three.
pub(super) fn emit(
    symbol: &str,
    kernel: &AttentionKernel,
    tiling: Tiling,
) -> Result<(String, GpuLaunch), String> {
    let &[sq, sk, sv, _] = kernel.strides.as_slice() else {
        return Err("four strides".to_string());
    };
    let types = arguments(5, 3);
    let (mut f, args) = Function::new(&types);
    let (own, visited) = (tiling.own(), tiling.visited);
    let (queries, keys, values) = (
        Tiles::new(kernel, args[5], own),
        Tiles::new(kernel, args[6], visited),
        Tiles::new(kernel, args[7], visited),
    );
    let visits = Visits::new(kernel, own.into(), visited.into(), Owner::Queries);
    let table = format!("{symbol}_visits");
    let layout = Layout {
        resident: queries.bytes(),
        stage: keys.bytes() + values.bytes(),
        stages: tiling.stages,
        warps: 4 * tiling.groups,
    };
    let thread = f.special("tid.x");
    let shared = Shared::new(&mut f, symbol, layout, thread);
    let bytes = kernel.keys * kernel.head_dim * 4 * kernel.kv_heads / kernel.heads;
    let items = Items::new(&mut f, &table, &visits, kernel.batch * kernel.heads, bytes);
    let maps = vec![
        map(kernel, 0, (kernel.heads, kernel.queries, sq), own),
        map(kernel, 1, (kernel.kv_heads, kernel.keys, sk), visited),
        map(kernel, 2, (kernel.kv_heads, kernel.keys, sv), visited),
    ];
    let launch = tiling.launch(symbol, items.count(), layout.bytes(), maps);
    let (y, lse) = (args[3], args[4]);
    let this = Forward { kernel, tiling, visits: &visits, items, shared, queries, keys, values, y, lse };
    tiling.roles(&mut f, thread, |f| this.load(f), |f| this.compute(f, thread));
    let text = f.finish(symbol, &types, &tiling.attributes());
    Ok((visits.text(&table) + &declaration(symbol) + &text, launch))
}

impl Forward<'_> {
    /// Batch, head and key head of an item.
    fn heads(&self, f: &mut Function, item: Item) -> (Value, Value, Value) {
        let heads = f.int32(self.kernel.heads);
        let (batch, head) = (f.divu(item.head, heads), f.remu(item.head, heads));
        let group = f.int32(self.kernel.heads / self.kernel.kv_heads);
        (batch, head, f.divu(head, group))
    }

    /// The thread that loads.
    fn load(&self, f: &mut Function) {
        let zero = f.int32(0);
        self.items.each(f, &[zero, zero, zero], |f, item, carried| {
            let (batch, head, kv_head) = self.heads(f, item);
            let (mine, one) = (carried[2], f.int32(1));
            let (full, empty) = (self.shared.resident_full(f), self.shared.resident_empty(f));
            let parity = f.xor(mine, one);
            f.barrier_wait(empty, parity);
            f.barrier_expect(full, self.queries.bytes());
            let row = f.times(item.tile, self.queries.rows.into());
            self.queries.copy(f, Place { batch, head, row }, self.shared.base, full);
            let turn = f.fold((zero, item.visits, one), &carried[..2], |f, visit, turn| {
                let turn = Turn { stage: turn[0], phase: turn[1] };
                let tile = self.items.visited(f, item, visit);
                let row = f.times(tile, self.keys.rows.into());
                let place = Place { batch, head: kv_head, row };
                let bytes = self.keys.bytes() + self.values.bytes();
                let (at, barrier) = self.shared.await_empty(f, turn, bytes);
                self.keys.copy(f, place, at, barrier);
                let at = f.plus(at, self.keys.bytes().into());
                self.values.copy(f, place, at, barrier);
                let next = self.shared.next(f, turn);
                vec![next.stage, next.phase]
            });
            vec![turn[0], turn[1], parity]
        });
    }

    /// The threads that compute.
    fn compute(&self, f: &mut Function, thread: Value) {
        let lane = Lane::new(f, thread);
        let at = f.times(lane.group, 64 * 128);
        let at = f.addi(self.shared.base, at);
        let queries = self.queries.matrix(f, at, Summed::Columns);
        let zero = f.int32(0);
        self.items.each(f, &[zero, zero, zero], |f, item, carried| {
            let turn = Turn { stage: carried[0], phase: carried[1] };
            let full = self.shared.resident_full(f);
            f.barrier_wait(full, carried[2]);
            let first = f.times(item.tile, self.tiling.own().into());
            let row = f.addi(first, lane.row);
            let (sums, rows, turn) = self.sum(f, (item, lane, row), queries, turn);
            self.write(f, item, lane, row, &sums, rows);
            let one = f.int32(1);
            vec![turn.stage, turn.phase, f.xor(carried[2], one)]
        });
    }

    /// Starts scores of a stage.
    fn scores(&self, f: &mut Function, queries: SharedMatrix, stage: Value) -> Vec<Value> {
        let keys = self.keys.matrix(f, stage, Summed::Columns);
        let product = Product {
            columns: self.tiling.visited,
            depth: self.kernel.head_dim as u32,
            element: stored(self.kernel.dtype),
        };
        f.product(product, Factor::Shared(queries), keys, Onto::Zero)
    }

    /// Starts the sum over a stage's values.
    fn add_values(&self, f: &mut Function, weights: &[Value], stage: Value, sums: &[Value]) -> Vec<Value> {
        let at = f.plus(stage, self.keys.bytes().into());
        let values = self.values.matrix(f, at, Summed::Rows);
        let product = Product {
            columns: self.kernel.head_dim as u32,
            depth: self.tiling.visited,
            element: stored(self.kernel.dtype),
        };
        f.product(product, Factor::Registers(weights), values, Onto::Sum(sums))
    }

    /// Masks the scores of a visit.
    fn mask(
        &self,
        f: &mut Function,
        (item, lane, row): (Item, Lane, Value),
        visit: Value,
        scores: &mut [Value],
    ) {
        let tile = self.items.visited(f, item, visit);
        let column = f.times(tile, self.tiling.visited.into());
        let column = f.addi(column, lane.column);
        apply_mask(f, self.kernel, scores, (Direction::Queries, row, column));
    }

    /// All visits of an item: sums of values, not yet divided, and the rows' statistics.
    fn sum(
        &self,
        f: &mut Function,
        place: (Item, Lane, Value),
        queries: SharedMatrix,
        turn: Turn,
    ) -> (Vec<Value>, Rows, Turn) {
        let (item, lane, _) = place;
        let scale = scale_of_powers(self.kernel);
        let stage = self.shared.await_full(f, turn);
        let scores = self.scores(f, queries, stage);
        let mut scores = f.await_products(0, &scores);
        let (zero, one) = (f.int32(0), f.int32(1));
        if self.visits.any_partial {
            self.mask(f, place, zero, &mut scores);
        }
        let rows = Rows::new(f);
        let (rows, _) = exponentials(f, &mut scores, rows, scale);
        let weights = pack(f, self.kernel.dtype, &scores);
        let nothing = f.float(1, 0.0);
        let count = self.kernel.head_dim as usize / 2;
        let next = self.shared.next(f, turn);
        let mut carried = vec![turn.stage, next.stage, next.phase];
        carried.extend(rows.values());
        carried.extend(vec![nothing; count]);
        carried.extend(weights);
        let kinds: &[bool] = if self.visits.any_partial { &[true, false] } else { &[false] };
        for &masked in kinds {
            let from = self.at_least_one(f, item.partial);
            let range = if masked { (one, item.partial, one) } else { (from, item.visits, one) };
            carried = f.fold(range, &carried, |f, visit, carried| {
                self.visit(f, place, queries, carried, masked.then_some(visit))
            });
        }
        let turn = Turn { stage: carried[1], phase: carried[2] };
        let rows = Rows::of(&carried[3..7]);
        let empty = self.shared.resident_empty(f);
        arrive(f, lane.is_first, empty);
        let stage = self.shared.stage(f, carried[0]);
        let sums = self.add_values(f, &carried[7 + count..], stage, &carried[7..7 + count]);
        let sums = f.await_products(0, &sums);
        let empty = self.shared.empty(f, carried[0]);
        arrive(f, lane.is_first, empty);
        (sums, rows, turn)
    }

    fn at_least_one(&self, f: &mut Function, x: Value) -> Value {
        let one = f.int32(1);
        let is_less = f.order(Order::Below, x, one);
        f.select(is_less, one, x)
    }

    /// A visit after the first. Carried: the stage of the values not yet summed, the next place, statistics, sums, weights of those values.
    fn visit(
        &self,
        f: &mut Function,
        place: (Item, Lane, Value),
        queries: SharedMatrix,
        carried: &[Value],
        masked: Option<Value>,
    ) -> Vec<Value> {
        let lane = place.1;
        let count = self.kernel.head_dim as usize / 2;
        let turn = Turn { stage: carried[1], phase: carried[2] };
        let rows = Rows::of(&carried[3..7]);
        let stage = self.shared.await_full(f, turn);
        let scores = self.scores(f, queries, stage);
        let before = self.shared.stage(f, carried[0]);
        let sums = self.add_values(f, &carried[7 + count..], before, &carried[7..7 + count]);
        let mut scores = f.await_products(1, &scores);
        if let Some(visit) = masked {
            self.mask(f, place, visit, &mut scores);
        }
        let (rows, factors) = exponentials(f, &mut scores, rows, scale_of_powers(self.kernel));
        let weights = pack(f, self.kernel.dtype, &scores);
        let sums = f.await_products(0, &sums);
        let empty = self.shared.empty(f, carried[0]);
        arrive(f, lane.is_first, empty);
        let sums = scale_rows(f, &sums, factors);
        let next = self.shared.next(f, turn);
        let mut carried = vec![turn.stage, next.stage, next.phase];
        carried.extend(rows.values());
        carried.extend(sums);
        carried.extend(weights);
        carried
    }

    /// Writes y and log-sum-exp.
    fn write(&self, f: &mut Function, item: Item, lane: Lane, row: Value, sums: &[Value], rows: Rows) {
        let (batch, head, _) = self.heads(f, item);
        let (inverse, lse) = finish(f, rows, scale_of_powers(self.kernel));
        let (positions, stride) = (self.kernel.queries, self.kernel.strides[3]);
        let to = Target { operand: self.y, batch, head, row, positions, stride };
        store(f, self.kernel, lane, sums, inverse, &to);
        let is_first = is_first_of_row(f, lane.column);
        let end = f.int32(positions);
        for (h, lse) in lse.into_iter().enumerate() {
            let row = f.plus(row, 8 * h as u64);
            let is_there = f.order(Order::Below, row, end);
            let writes = f.and(is_there, is_first);
            let at = f.times(item.head, positions);
            let at = f.addi(at, row);
            debug_assert_eq!(at.ty, INT);
            let at = wide(f, at);
            let at = f.offset(self.lse, at, Element::F32);
            f.only_if(writes, |f| f.store(lse, at, 4));
        }
    }
}
