//! Gradients of keys and values: pᵀ = 2^(sᵀ − lse);  dv = pᵀ dy;  dsᵀ = pᵀ · (v dyᵀ − δ);  dk = scale · dsᵀ q.
//!
//! A block owns 64 keys a warpgroup, with their values, and visits tiles of queries and dy, for all query heads that share the keys. Scores
//! have keys as rows, so pᵀ and dsᵀ are left factors as they are. Log-sum-exp and δ are of columns and come with each tile.

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
        64 => Tiling { groups: 2, visited: 64, stages: 4 },
        _ => Tiling { groups: 2, visited: 64, stages: 3 },
    }
}

/// What the last products of a visit do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Last {
    /// They run on while the next visit's scores are computed. That takes registers.
    Run,
    /// They end with the visit.
    End,
}

struct Backward<'k> {
    kernel: &'k AttentionKernel,
    tiling: Tiling,
    last: Last,
    visits: &'k Visits,
    items: Items,
    shared: Shared,
    /// Keys, values; queries, dy.
    own: [Tiles; 2],
    visited: [Tiles; 2],
    dk: Value,
    dv: Value,
    workspace: Value,
}

/// Factors that stay for an item.
#[derive(Clone, Copy)]
struct Resident {
    keys: SharedMatrix,
    values: SharedMatrix,
}

/// Writes the kernel; parameters are those of the gradient and the maps of k, v, q, dy.
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
    let visits = Visits::new(kernel, cols.into(), rows.into(), Owner::Keys);
    let table = format!("{symbol}_visits");
    let layout = Layout {
        resident: 2 * own[0].bytes(),
        stage: 2 * visited[0].bytes() + (8 * cols).next_multiple_of(1024),
        stages: tiling.stages,
        warps: 4 * tiling.groups,
    };
    let thread = f.special("tid.x");
    let shared = Shared::new(&mut f, symbol, layout, thread);
    let (queries, keys) = (kernel.queries, kernel.keys);
    let bytes = queries * kernel.head_dim * 4 * kernel.heads / kernel.kv_heads;
    let items = Items::new(&mut f, &table, &visits, kernel.batch * kernel.kv_heads, bytes);
    let maps = vec![
        map(kernel, 1, (kernel.kv_heads, keys, sk), rows),
        map(kernel, 2, (kernel.kv_heads, keys, sv), rows),
        map(kernel, 0, (kernel.heads, queries, sq), cols),
        map(kernel, 5, (kernel.heads, queries, sdy), cols),
    ];
    let launch = tiling.launch(symbol, items.count(), layout.bytes(), maps);
    let last = if kernel.head_dim == 64 { Last::Run } else { Last::End };
    let (dk, dv, workspace) = (args[7], args[8], args[9]);
    let this =
        Backward { kernel, tiling, last, visits: &visits, items, shared, own, visited, dk, dv, workspace };
    tiling.roles(&mut f, thread, |f| this.load(f), |f| this.compute(f, thread));
    let text = f.finish(symbol, &types, &tiling.attributes());
    Ok((visits.text(&table) + &declaration(symbol) + &text, launch))
}

impl Backward<'_> {
    /// Batch and key head of an item.
    fn heads(&self, f: &mut Function, item: Item) -> (Value, Value) {
        let heads = f.int32(self.kernel.kv_heads);
        (f.divu(item.head, heads), f.remu(item.head, heads))
    }

    /// Query heads of a key head.
    fn group(&self) -> u64 {
        self.kernel.heads / self.kernel.kv_heads
    }

    fn load(&self, f: &mut Function) {
        let zero = f.int32(0);
        self.items.each(f, &[zero, zero, zero], |f, item, carried| {
            let (batch, kv_head) = self.heads(f, item);
            let one = f.int32(1);
            let (full, empty) = (self.shared.resident_full(f), self.shared.resident_empty(f));
            let parity = f.xor(carried[2], one);
            f.barrier_wait(empty, parity);
            f.barrier_expect(full, 2 * self.own[0].bytes());
            let row = f.times(item.tile, self.own[0].rows.into());
            let place = Place { batch, head: kv_head, row };
            self.own[0].copy(f, place, self.shared.base, full);
            let at = f.plus(self.shared.base, self.own[0].bytes().into());
            self.own[1].copy(f, place, at, full);
            let first = f.times(kv_head, self.group());
            // Visits that need the predicate first, as those that compute take them.
            let mut turn = carried[..2].to_vec();
            for range in self.ranges(f, item) {
                turn = self.each_head(f, &turn, |f, head, turn| {
                    let head = f.addi(first, head);
                    f.fold((range.0, range.1, one), turn, |f, visit, turn| {
                        let tile = self.items.visited(f, item, visit);
                        let row = f.times(tile, self.visited[0].rows.into());
                        self.load_visit(
                            f,
                            Place { batch, head, row },
                            Turn { stage: turn[0], phase: turn[1] },
                        )
                    })
                });
            }
            vec![turn[0], turn[1], parity]
        });
    }

    /// Ranges of an item's visits: those with the predicate, if there are any in the whole table, and those without.
    fn ranges(&self, f: &mut Function, item: Item) -> Vec<(Value, Value)> {
        let zero = f.int32(0);
        if self.visits.any_partial {
            vec![(zero, item.partial), (item.partial, item.visits)]
        } else {
            vec![(zero, item.visits)]
        }
    }

    /// Runs the body for each query head of the key head, by its number in the group.
    fn each_head(
        &self,
        f: &mut Function,
        carried: &[Value],
        body: impl FnOnce(&mut Function, Value, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let (zero, one, end) = (f.int32(0), f.int32(1), f.int32(self.group()));
        if self.group() == 1 {
            return body(f, zero, carried);
        }
        f.fold((zero, end, one), carried, body)
    }

    /// Queries, dy and their statistics.
    fn load_visit(&self, f: &mut Function, place: Place, turn: Turn) -> Vec<Value> {
        let (bytes, cols) = (self.visited[0].bytes(), self.tiling.visited);
        let (at, barrier) = self.shared.await_empty(f, turn, 2 * bytes + 8 * cols);
        self.visited[0].copy(f, place, at, barrier);
        let to = f.plus(at, bytes.into());
        self.visited[1].copy(f, place, to, barrier);
        let number = f.times(place.batch, self.kernel.heads);
        let number = f.addi(number, place.head);
        let from = f.times(number, padded(self.kernel));
        let from = f.addi(from, place.row);
        let from = wide(f, from);
        let from = f.offset(self.workspace, from, Element::F32);
        let to = f.plus(at, (2 * bytes).into());
        f.copy_bytes(from, 4 * cols, to, barrier);
        let delta = f.index(delta_at(self.kernel));
        let from = f.offset(from, delta, Element::F32);
        let to = f.plus(to, (4 * cols).into());
        f.copy_bytes(from, 4 * cols, to, barrier);
        let next = self.shared.next(f, turn);
        vec![next.stage, next.phase]
    }

    fn compute(&self, f: &mut Function, thread: Value) {
        let lane = Lane::new(f, thread);
        let at = f.times(lane.group, 64 * 128);
        let at = f.addi(self.shared.base, at);
        let keys = self.own[0].matrix(f, at, Summed::Columns);
        let at = f.plus(at, self.own[0].bytes().into());
        let values = self.own[1].matrix(f, at, Summed::Columns);
        let resident = Resident { keys, values };
        let (zero, one, nothing) = (f.int32(0), f.int32(1), f.float(1, 0.0));
        self.items.each(f, &[zero, zero, zero], |f, item, carried| {
            let first = f.times(item.tile, self.tiling.own().into());
            let row = f.addi(first, lane.row);
            let full = self.shared.resident_full(f);
            f.barrier_wait(full, carried[2]);
            let spare = self.shared.spare(f);
            let mut sums = vec![carried[0], carried[1], spare];
            sums.extend(vec![nothing; self.kernel.head_dim as usize]);
            let masks: &[bool] = if self.visits.any_partial { &[true, false] } else { &[false] };
            for (range, &masked) in self.ranges(f, item).into_iter().zip(masks) {
                sums = self.each_head(f, &sums, |f, _, sums| {
                    f.fold((range.0, range.1, one), sums, |f, visit, sums| {
                        self.visit(f, (item, lane, row), resident, sums, masked.then_some(visit))
                    })
                });
            }
            let (turn, last) = ([sums[0], sums[1]], sums[2]);
            let sums = f.await_products(0, &sums[3..]);
            arrive(f, lane.is_first, last);
            let empty = self.shared.resident_empty(f);
            arrive(f, lane.is_first, empty);
            self.write(f, item, lane, row, &sums);
            vec![turn[0], turn[1], f.xor(carried[2], one)]
        });
    }

    /// Writes dv and dk, whose sums lie in this order.
    fn write(&self, f: &mut Function, item: Item, lane: Lane, row: Value, sums: &[Value]) {
        let (batch, head) = self.heads(f, item);
        let (one, scale) = (f.float(1, 1.0), f.float(1, self.kernel.scale as f32));
        let (dv, dk) = sums.split_at(self.kernel.head_dim as usize / 2);
        let positions = self.kernel.keys;
        let stride = self.kernel.strides[7];
        let to = Target { operand: self.dv, batch, head, row, positions, stride };
        store(f, self.kernel, lane, dv, [one; 2], &to);
        let stride = self.kernel.strides[6];
        let to = Target { operand: self.dk, batch, head, row, positions, stride };
        store(f, self.kernel, lane, dk, [scale; 2], &to);
    }

    /// A statistic of the thread's columns: `number` counts the two that come with a stage.
    fn of_columns(&self, f: &mut Function, stage: Value, lane: Lane, number: u32) -> Vec<Value> {
        let before = 2 * self.visited[0].bytes() + 4 * self.tiling.visited * number;
        let at = f.plus(stage, before.into());
        let step = f.times(lane.column, 4);
        let at = f.addi(at, step);
        (0..self.tiling.visited / 8)
            .flat_map(|j| {
                let at = f.shared_at(at, (32 * j).into());
                let pair = f.load(at, Type::vector(Element::F32, 2), 8);
                [f.extract(pair, 0), f.extract(pair, 1)]
            })
            .collect()
    }

    /// One tile of queries. Carried: the place in the ring, the barrier of the stage that the running products read, their sums: dv, dk.
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
        let queries = self.visited[0].matrix(f, stage, Summed::Columns);
        let scores = f.product(inner, Factor::Shared(resident.keys), queries, Onto::Zero);
        let at = f.plus(stage, self.visited[0].bytes().into());
        let dy = self.visited[1].matrix(f, at, Summed::Columns);
        let slopes = f.product(inner, Factor::Shared(resident.values), dy, Onto::Zero);
        let (mut scores, sums) = self.await_scores(f, lane, &scores, carried);
        let (dv, dk) = sums.split_at(dim as usize / 2);
        if let Some(visit) = masked {
            let tile = self.items.visited(f, item, visit);
            let column = f.times(tile, cols.into());
            let column = f.addi(column, lane.column);
            apply_mask(f, self.kernel, &mut scores, (Direction::Keys, row, column));
        }
        let exponents = self.of_columns(f, stage, lane, 0);
        let scale = f.float(1, scale_of_powers(self.kernel));
        let weights: Vec<Value> = (scores.iter().enumerate())
            .map(|(i, &score)| {
                let below = f.neg(exponents[i / 4 * 2 + i % 2]);
                let power = f.fma(score, scale, below);
                f.fast_exp2(power)
            })
            .collect();
        let packed = pack(f, self.kernel.dtype, &weights);
        let outer = Product { columns: dim, depth: cols, element };
        let dy = SharedMatrix { summed: Summed::Rows, ..dy };
        let dv = f.product(outer, Factor::Registers(&packed), dy, Onto::Sum(dv));
        let (slopes, dv) = match self.last {
            Last::Run => (f.await_products(1, &slopes), dv),
            Last::End => {
                let count = slopes.len();
                let mut ended = f.await_products(0, &[slopes, dv].concat());
                let dv = ended.split_off(count);
                (ended, dv)
            }
        };
        let deltas = self.of_columns(f, stage, lane, 1);
        let slopes: Vec<Value> = (slopes.iter().zip(&weights).enumerate())
            .map(|(i, (&slope, &weight))| {
                let difference = f.sub(slope, deltas[i / 4 * 2 + i % 2]);
                f.mul(weight, difference)
            })
            .collect();
        let packed = pack(f, self.kernel.dtype, &slopes);
        let queries = SharedMatrix { summed: Summed::Rows, ..queries };
        let dk = f.product(outer, Factor::Registers(&packed), queries, Onto::Sum(dk));
        let mut sums = [dv, dk].concat();
        let mut reads = self.shared.empty(f, turn.stage);
        if self.last == Last::End {
            sums = f.await_products(0, &sums);
            arrive(f, lane.is_first, reads);
            reads = carried[2];
        }
        let next = self.shared.next(f, turn);
        let mut carried = vec![next.stage, next.phase, reads];
        carried.extend(sums);
        carried
    }

    /// Waits for scores, and for the products of the visit before, whose stage is then empty.
    fn await_scores(
        &self,
        f: &mut Function,
        lane: Lane,
        scores: &[Value],
        carried: &[Value],
    ) -> (Vec<Value>, Vec<Value>) {
        let sums = &carried[3..];
        match self.last {
            Last::Run => {
                let mut ended = f.await_products(1, &[scores, sums].concat());
                let sums = ended.split_off(scores.len());
                arrive(f, lane.is_first, carried[2]);
                (ended, sums)
            }
            Last::End => (f.await_products(1, scores), sums.to_vec()),
        }
    }
}
