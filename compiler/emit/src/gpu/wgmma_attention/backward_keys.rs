//! Gradients of keys and values: pᵀ = 2^(sᵀ − lse);  dv = pᵀ dy;  dsᵀ = pᵀ · (v dyᵀ − δ);  dk = scale · dsᵀ q.
//!
//! A block owns 64 keys a warpgroup, with their values, and visits tiles of queries and dy, for all query heads that share the keys. Scores
//! have keys as rows, so pᵀ and dsᵀ are left factors as they are. Log-sum-exp and δ are of columns and come with each tile.

use super::allowed::{Allowed, Rows as Direction};
use super::fragment::{Hold, Lane, Left, Target, pack, store};
use super::items::{Item, Items};
use super::loads::{Place, Tiles, batch_and_head, copy_all, map};
use super::stage::{Layout, Shared, Turn, arrive, declaration, wide};
use super::statistics::{delta_at, padded};
use super::visits::{HEAD, Owner, Visits};
use super::{Tiling, arguments, scale_of_powers};
use crate::gpu::memory::stored;
use crate::mlir::{Element, Factor, Function, Onto, Order, Product, Summed, Type, Value};
use dspc_kernel::describe::AttentionKernel;
use dspc_program::GpuLaunch;

/// Sizes that measured fastest.
pub(super) fn tiling(kernel: &AttentionKernel) -> Tiling {
    match kernel.head_dim {
        64 => Tiling { groups: 2, visited: 64, stages: 4, items: 2 },
        _ => Tiling { groups: 2, visited: 64, stages: 4, items: 1 },
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
    hold: Hold,
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
struct Resident {
    keys: Left,
    values: Left,
}

/// What goes from visit to visit.
struct State {
    /// The next place in the ring of visits.
    turn: Turn,
    /// The barrier of the stage that the running products read.
    reads: Value,
    /// Their sums: dv, dk.
    sums: Vec<Value>,
}

/// An item's results: its head and the thread's first row.
#[derive(Clone, Copy)]
struct Own {
    head: Value,
    row: Value,
}

/// A visit's products that run: sᵀ and v dyᵀ, and the place of its tiles.
struct Started<'k> {
    allowed: Option<Allowed<'k>>,
    stage: Value,
    turn: Turn,
    scores: Vec<Value>,
    slopes: Vec<Value>,
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
        own: (2 * own[0].bytes(), tiling.items),
        visited: (2 * visited[0].bytes() + (8 * cols).next_multiple_of(1024), tiling.stages),
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
    let (last, hold) =
        if kernel.head_dim == 64 { (Last::Run, Hold::Registers) } else { (Last::End, Hold::Shared) };
    let (dk, dv, workspace) = (args[7], args[8], args[9]);
    let this = Backward {
        kernel,
        tiling,
        last,
        hold,
        visits: &visits,
        items,
        shared,
        own,
        visited,
        dk,
        dv,
        workspace,
    };
    tiling.roles(&mut f, thread, this.items.count(), |f| this.load(f), |f| this.compute(f, thread));
    let text = f.finish(symbol, &types, &tiling.attributes());
    Ok((visits.text(&table) + &declaration(symbol) + &text, launch))
}

impl Backward<'_> {
    /// Query heads of a key head.
    fn group(&self) -> u64 {
        self.kernel.heads / self.kernel.kv_heads
    }

    /// The tile of a visit, and the number of its head among those that share the keys.
    fn visited(&self, f: &mut Function, item: Item, visit: Value) -> (Value, Value) {
        let number = self.items.visited(f, item, visit);
        if self.group() == 1 {
            return (number, f.int32(0));
        }
        let low = f.int32((1 << HEAD) - 1);
        (f.and(number, low), f.shr(number, HEAD.into()))
    }

    /// The thread that loads.
    fn load(&self, f: &mut Function) {
        let (zero, one) = (f.int32(0), f.int32(1));
        self.items.each(f, &[zero; 4], |f, item, carried| {
            let (batch, kv_head) = batch_and_head(f, item.head, self.kernel.kv_heads);
            let own = Turn::of(&carried[..2]);
            let bytes = self.own[0].bytes();
            let (at, barrier) = self.shared.own.await_empty(f, own, 2 * bytes);
            let row = f.times(item.tile, self.own[0].rows.into());
            let place = Place { batch, head: kv_head, row };
            copy_all(f, &self.own, place, at, barrier);
            let first = f.times(kv_head, self.group());
            let turn = f.fold((zero, item.visits, one), &carried[2..], |f, visit, turn| {
                let (tile, head) = self.visited(f, item, visit);
                let head = f.addi(first, head);
                let row = f.times(tile, self.visited[0].rows.into());
                self.load_visit(f, Place { batch, head, row }, Turn::of(turn)).values().to_vec()
            });
            [self.shared.own.next(f, own).values(), [turn[0], turn[1]]].concat()
        });
    }

    /// Queries, dy and their statistics.
    fn load_visit(&self, f: &mut Function, place: Place, turn: Turn) -> Turn {
        let (bytes, cols) = (self.visited[0].bytes(), self.tiling.visited);
        let (at, barrier) = self.shared.visited.await_empty(f, turn, 2 * bytes + 8 * cols);
        copy_all(f, &self.visited, place, at, barrier);
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
        self.shared.visited.next(f, turn)
    }

    /// The threads that compute.
    fn compute(&self, f: &mut Function, thread: Value) {
        let lane = Lane::new(f, thread);
        let (zero, one, none) = (f.int32(0), f.int32(1), f.float(1, 0.0));
        let mut carried = vec![zero; 7];
        carried.push(self.shared.spare);
        carried.extend(vec![none; self.kernel.head_dim as usize]);
        let carried = self.items.each(f, &carried, |f, item, carried| {
            let turn = Turn::of(&carried[..2]);
            let at = self.shared.own.await_full(f, turn);
            let group = f.times(lane.group, 64 * 128);
            let at = f.addi(at, group);
            let keys = Left::new(f, self.hold, self.own[0], at, thread);
            let at = f.plus(at, self.own[0].bytes().into());
            let values = Left::new(f, self.hold, self.own[1], at, thread);
            let resident = &Resident { keys, values };
            let is_there = f.order(Order::NotEqual, carried[2], zero);
            let before = Own { head: carried[3], row: carried[4] };
            let first = f.times(item.tile, self.tiling.own().into());
            let row = f.addi(first, lane.row);
            let place = (item, lane, row);
            let state = State::of(&carried[5..]);
            let state = self.first_visit(f, place, resident, &state, (is_there, before));
            let state = self.other_visits(f, place, resident, &state);
            let empty = self.shared.own.empty(f, turn.stage);
            arrive(f, lane.is_first, empty);
            let next = self.shared.own.next(f, turn);
            let mut carried = vec![next.stage, next.phase, one, item.head, row];
            carried.extend(state.values());
            carried
        });
        let state = State::of(&carried[5..]);
        let sums = f.await_products(0, &state.sums);
        self.write(f, lane, Own { head: carried[3], row: carried[4] }, &sums);
    }

    /// The first visit of an item, after the last of another, whose results are written, if there is one.
    fn first_visit(
        &self,
        f: &mut Function,
        place: (Item, Lane, Value),
        resident: &Resident,
        state: &State,
        (is_there, before): (Value, Own),
    ) -> State {
        let masked = self.visits.any_partial.then(|| f.int32(0));
        if self.last == Last::End {
            f.only_if(is_there, |f| self.write(f, place.1, before, &state.sums));
        }
        let mut started = self.start(f, place, resident, state.turn, masked);
        if self.last == Last::Run {
            // All of them: what is read while other products run makes the assembler put them one after the other.
            let count = started.scores.len();
            let all = [&started.scores[..], &started.slopes, &state.sums].concat();
            started.scores = f.await_products(0, &all);
            started.slopes = started.scores.split_off(count);
            let sums = started.slopes.split_off(count);
            arrive(f, place.1.is_first, state.reads);
            f.only_if(is_there, |f| self.write(f, place.1, before, &sums));
        } else {
            started.scores = f.await_products(1, &started.scores);
        }
        self.finish(f, place.1, started, None)
    }

    /// All visits but the first.
    fn other_visits(
        &self,
        f: &mut Function,
        place: (Item, Lane, Value),
        resident: &Resident,
        state: &State,
    ) -> State {
        let item = place.0;
        let one = f.int32(1);
        let from = f.maxu(item.partial, one);
        let ranges = [(true, (one, item.partial, one)), (false, (from, item.visits, one))];
        let mut carried = state.values();
        for (masked, range) in ranges.into_iter().filter(|(masked, _)| self.visits.any_partial || !masked) {
            carried = f.fold(range, &carried, |f, visit, carried| {
                let state = State::of(carried);
                let masked = masked.then_some(visit);
                let mut started = self.start(f, place, resident, state.turn, masked);
                let sums = self.await_scores(f, place.1, &mut started, state);
                self.finish(f, place.1, started, Some(&sums)).values()
            });
        }
        State::of(&carried)
    }

    /// Waits for a visit's scores and for the sums of the one before, whose stage is then empty.
    fn await_scores(
        &self,
        f: &mut Function,
        lane: Lane,
        started: &mut Started<'_>,
        before: State,
    ) -> Vec<Value> {
        match self.last {
            Last::Run => {
                let count = started.scores.len();
                let mut ended = f.await_products(1, &[&started.scores[..], &before.sums].concat());
                let sums = ended.split_off(count);
                started.scores = ended;
                arrive(f, lane.is_first, before.reads);
                sums
            }
            Last::End => {
                started.scores = f.await_products(1, &started.scores);
                before.sums
            }
        }
    }

    /// Starts scores and v dyᵀ of a visit.
    fn start(
        &self,
        f: &mut Function,
        (item, lane, row): (Item, Lane, Value),
        resident: &Resident,
        turn: Turn,
        masked: Option<Value>,
    ) -> Started<'_> {
        let stage = self.shared.visited.await_full(f, turn);
        let (columns, depth) = (self.tiling.visited, self.kernel.head_dim as u32);
        let product = Product { columns, depth, element: stored(self.kernel.dtype) };
        let queries = self.visited[0].matrix(f, stage, Summed::Columns);
        let scores = f.product(product, resident.keys.factor(), queries, Onto::Zero);
        let at = f.plus(stage, self.visited[0].bytes().into());
        let dy = self.visited[1].matrix(f, at, Summed::Columns);
        let slopes = f.product(product, resident.values.factor(), dy, Onto::Zero);
        let allowed = masked.map(|visit| {
            let (tile, _) = self.visited(f, item, visit);
            let column = f.times(tile, columns.into());
            Allowed::new(f, self.kernel, (Direction::Keys, row, column), lane, columns / 2)
        });
        Started { allowed, stage, turn, scores, slopes }
    }

    /// From scores, which are there, and v dyᵀ, which is to come, to dv and dk, on top of `sums`.
    fn finish(&self, f: &mut Function, lane: Lane, started: Started<'_>, sums: Option<&[Value]>) -> State {
        let Started { allowed, stage, turn, mut scores, slopes } = started;
        let (columns, depth) = (self.kernel.head_dim as u32, self.tiling.visited);
        let (dv, dk) = match sums {
            None => (Onto::Zero, Onto::Zero),
            Some(sums) => {
                let (dv, dk) = sums.split_at(columns as usize / 2);
                (Onto::Sum(dv), Onto::Sum(dk))
            }
        };
        if let Some(allowed) = allowed {
            allowed.apply(f, &mut scores);
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
        let product = Product { columns, depth, element: stored(self.kernel.dtype) };
        let at = f.plus(stage, self.visited[0].bytes().into());
        let dy = self.visited[1].matrix(f, at, Summed::Rows);
        let dv = f.product(product, Factor::Registers(&packed), dy, dv);
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
        let queries = self.visited[0].matrix(f, stage, Summed::Rows);
        let dk = f.product(product, Factor::Registers(&packed), queries, dk);
        let mut sums = [dv, dk].concat();
        let mut reads = self.shared.visited.empty(f, turn.stage);
        if self.last == Last::End {
            sums = f.await_products(0, &sums);
            arrive(f, lane.is_first, reads);
            reads = self.shared.spare;
        }
        State { turn: self.shared.visited.next(f, turn), reads, sums }
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

    /// Writes dv and dk, whose sums lie in this order.
    fn write(&self, f: &mut Function, lane: Lane, own: Own, sums: &[Value]) {
        let (batch, head) = batch_and_head(f, own.head, self.kernel.kv_heads);
        let (one, scale) = (f.float(1, 1.0), f.float(1, self.kernel.scale as f32));
        let (dv, dk) = sums.split_at(self.kernel.head_dim as usize / 2);
        let (row, positions) = (own.row, self.kernel.keys);
        let stride = self.kernel.strides[7];
        let to = Target { operand: self.dv, batch, head, row, positions, stride };
        store(f, self.kernel, lane, dv, [one; 2], &to);
        let stride = self.kernel.strides[6];
        let to = Target { operand: self.dk, batch, head, row, positions, stride };
        store(f, self.kernel, lane, dk, [scale; 2], &to);
    }
}

impl State {
    fn of(values: &[Value]) -> Self {
        State { turn: Turn::of(values), reads: values[2], sums: values[3..].to_vec() }
    }

    fn values(&self) -> Vec<Value> {
        [&self.turn.values()[..], &[self.reads], &self.sums].concat()
    }
}
