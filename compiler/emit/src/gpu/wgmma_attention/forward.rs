//! Attention, forward: y = softmax(scale · q kᵀ + mask) v, and the log-sum-exp of each query's scores.
//!
//! A block owns 64 queries a warpgroup and visits tiles of keys and values. The scores of a visit are started before the sum over values of
//! the one before, so that the tensor cores work while exponentials are taken; also where the one before was the last of another item.

use super::allowed::{Allowed, Rows as Direction};
use super::fragment::{Hold, Lane, Left, Target, pack, store};
use super::items::{Item, Items};
use super::loads::{Tiles, batch_and_head, load_for_queries, map};
use super::softmax::{Rows, exponentials, finish, is_first_of_row, scale_rows};
use super::stage::{Layout, Shared, Turn, arrive, declaration, wide};
use super::visits::{Owner, Visits};
use super::{Tiling, arguments, scale_of_powers};
use crate::gpu::memory::stored;
use crate::mlir::{Element, Factor, Function, INT, Onto, Order, Product, Summed, Value};
use dspc_kernel::describe::AttentionKernel;
use dspc_program::GpuLaunch;

/// Sizes that measured fastest.
pub(super) fn tiling(kernel: &AttentionKernel) -> Tiling {
    match kernel.head_dim {
        64 => Tiling { groups: 2, visited: 128, stages: 3, items: 2 },
        _ => Tiling { groups: 2, visited: 128, stages: 3, items: 1 },
    }
}

struct Forward<'k> {
    kernel: &'k AttentionKernel,
    tiling: Tiling,
    hold: Hold,
    visits: &'k Visits,
    items: Items,
    shared: Shared,
    queries: Tiles,
    keys: Tiles,
    values: Tiles,
    y: Value,
    lse: Value,
}

/// What goes from visit to visit.
struct State {
    /// The next place in the ring of visits.
    turn: Turn,
    /// Where the keys and values of the visit before begin, and the barrier of their emptying.
    before: [Value; 2],
    rows: Rows,
    /// Sums over values, without those of the visit before.
    sums: Vec<Value>,
    /// The weights of those, packed.
    weights: Vec<Value>,
}

/// An item's results: its head and the thread's first row.
#[derive(Clone, Copy)]
struct Own {
    head: Value,
    row: Value,
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
        own: (queries.bytes(), tiling.items),
        visited: (keys.bytes() + values.bytes(), tiling.stages),
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
    let hold = if kernel.head_dim == 64 { Hold::Registers } else { Hold::Shared };
    let this =
        Forward { kernel, tiling, hold, visits: &visits, items, shared, queries, keys, values, y, lse };
    tiling.roles(&mut f, thread, this.items.count(), |f| this.load(f), |f| this.compute(f, thread));
    let text = f.finish(symbol, &types, &tiling.attributes());
    Ok((visits.text(&table) + &declaration(symbol) + &text, launch))
}

impl Forward<'_> {
    /// The thread that loads.
    fn load(&self, f: &mut Function) {
        load_for_queries(
            f,
            self.kernel,
            (&self.items, &self.shared),
            &[self.queries],
            &[self.keys, self.values],
        );
    }

    /// The threads that compute.
    fn compute(&self, f: &mut Function, thread: Value) {
        let lane = Lane::new(f, thread);
        let (zero, one) = (f.int32(0), f.int32(1));
        let mut carried = vec![zero; 5];
        carried.extend(self.nothing(f).values());
        let carried = self.items.each(f, &carried, |f, item, carried| {
            let turn = Turn::of(&carried[..2]);
            let at = self.shared.own.await_full(f, turn);
            let group = f.times(lane.group, 64 * 128);
            let at = f.addi(at, group);
            let queries = &Left::new(f, self.hold, self.queries, at, thread);
            let before = Own { head: carried[3], row: carried[4] };
            let is_there = f.order(Order::NotEqual, carried[2], zero);
            let first = f.times(item.tile, self.tiling.own().into());
            let row = f.addi(first, lane.row);
            let place = (item, lane, row);
            let state = self.state(&carried[5..]);
            let state = self.first_visit(f, place, queries, state, (is_there, before));
            let state = self.other_visits(f, place, queries, state);
            let empty = self.shared.own.empty(f, turn.stage);
            arrive(f, lane.is_first, empty);
            let next = self.shared.own.next(f, turn);
            let mut carried = vec![next.stage, next.phase, one, item.head, row];
            carried.extend(state.values());
            carried
        });
        let state = self.state(&carried[5..]);
        let sums = self.add_values(f, &state);
        let sums = f.await_products(0, &sums);
        self.write(f, lane, Own { head: carried[3], row: carried[4] }, &sums, state.rows);
    }

    /// Before the first visit: its sum over values counts for nothing.
    fn nothing(&self, f: &mut Function) -> State {
        let (zero, none) = (f.int32(0), f.float(1, 0.0));
        State {
            turn: Turn { stage: zero, phase: zero },
            before: [self.shared.visited.at(f, zero), self.shared.spare],
            rows: Rows::new(f),
            sums: vec![none; self.kernel.head_dim as usize / 2],
            weights: vec![zero; self.tiling.visited as usize / 4],
        }
    }

    fn state(&self, values: &[Value]) -> State {
        let sums = 8 + self.kernel.head_dim as usize / 2;
        State {
            turn: Turn::of(values),
            before: [values[2], values[3]],
            rows: Rows::of(&values[4..8]),
            sums: values[8..sums].to_vec(),
            weights: values[sums..].to_vec(),
        }
    }

    /// Starts scores of a stage.
    fn scores(&self, f: &mut Function, queries: &Left, stage: Value) -> Vec<Value> {
        let keys = self.keys.matrix(f, stage, Summed::Columns);
        let product = Product {
            columns: self.tiling.visited,
            depth: self.kernel.head_dim as u32,
            element: stored(self.kernel.dtype),
        };
        f.product(product, queries.factor(), keys, Onto::Zero)
    }

    /// Starts the sum over the values of the visit before.
    fn add_values(&self, f: &mut Function, state: &State) -> Vec<Value> {
        let at = f.plus(state.before[0], self.keys.bytes().into());
        let values = self.values.matrix(f, at, Summed::Rows);
        let product = Product {
            columns: self.kernel.head_dim as u32,
            depth: self.tiling.visited,
            element: stored(self.kernel.dtype),
        };
        f.product(product, Factor::Registers(&state.weights), values, Onto::Sum(&state.sums))
    }

    /// The first visit of an item, after the last of another, whose results are written, if there is one.
    fn first_visit(
        &self,
        f: &mut Function,
        place: (Item, Lane, Value),
        queries: &Left,
        state: State,
        (is_there, before): (Value, Own),
    ) -> State {
        let masked = self.visits.any_partial.then(|| f.int32(0));
        let rows = Rows::new(f);
        let (next, sums, _) = self.visit(f, place, queries, &state, rows, masked);
        f.only_if(is_there, |f| self.write(f, place.1, before, &sums, state.rows));
        let none = f.float(1, 0.0);
        State { sums: vec![none; sums.len()], ..next }
    }

    /// All visits but the first.
    fn other_visits(
        &self,
        f: &mut Function,
        place: (Item, Lane, Value),
        queries: &Left,
        state: State,
    ) -> State {
        let item = place.0;
        let one = f.int32(1);
        let from = f.maxu(item.partial, one);
        let ranges = [(true, (one, item.partial, one)), (false, (from, item.visits, one))];
        let mut carried = state.values();
        for (masked, range) in ranges.into_iter().filter(|(masked, _)| self.visits.any_partial || !masked) {
            carried = f.fold(range, &carried, |f, visit, carried| {
                let state = self.state(carried);
                let masked = masked.then_some(visit);
                let (next, sums, factors) = self.visit(f, place, queries, &state, state.rows, masked);
                State { sums: scale_rows(f, &sums, factors), ..next }.values()
            });
        }
        self.state(&carried)
    }

    /// Scores and weights of a visit, and the sum over values of the one before: the next state without its sums, the sums, and their factors.
    fn visit(
        &self,
        f: &mut Function,
        (item, lane, row): (Item, Lane, Value),
        queries: &Left,
        state: &State,
        rows: Rows,
        masked: Option<Value>,
    ) -> (State, Vec<Value>, [Value; 2]) {
        let stage = self.shared.visited.await_full(f, state.turn);
        let scores = self.scores(f, queries, stage);
        let sums = self.add_values(f, state);
        let allowed = masked.map(|visit| {
            let tile = self.items.visited(f, item, visit);
            let column = f.times(tile, self.tiling.visited.into());
            let place = (Direction::Queries, row, column);
            Allowed::new(f, self.kernel, place, lane, self.tiling.visited / 2)
        });
        let mut scores = f.await_products(1, &scores);
        if let Some(allowed) = allowed {
            allowed.apply(f, &mut scores);
        }
        let (rows, factors) = exponentials(f, &mut scores, rows, scale_of_powers(self.kernel));
        let witness = f.add(rows.total[0], rows.total[1]);
        let (sums, scores) = f.await_products_after(witness, &sums, &scores);
        let weights = pack(f, self.kernel.dtype, &scores);
        arrive(f, lane.is_first, state.before[1]);
        let before = [stage, self.shared.visited.empty(f, state.turn.stage)];
        let turn = self.shared.visited.next(f, state.turn);
        (State { turn, before, rows, sums: vec![], weights }, sums, factors)
    }

    /// Writes y and log-sum-exp.
    fn write(&self, f: &mut Function, lane: Lane, own: Own, sums: &[Value], rows: Rows) {
        let (batch, head) = batch_and_head(f, own.head, self.kernel.heads);
        let (inverse, lse) = finish(f, rows, scale_of_powers(self.kernel));
        let (positions, stride) = (self.kernel.queries, self.kernel.strides[3]);
        let to = Target { operand: self.y, batch, head, row: own.row, positions, stride };
        store(f, self.kernel, lane, sums, inverse, &to);
        let is_first = is_first_of_row(f, lane.column);
        let end = f.int32(positions);
        for (h, lse) in lse.into_iter().enumerate() {
            let row = f.plus(own.row, 8 * h as u64);
            let is_there = f.order(Order::Below, row, end);
            let writes = f.and(is_there, is_first);
            let at = f.times(own.head, positions);
            let at = f.addi(at, row);
            debug_assert_eq!(at.ty, INT);
            let at = wide(f, at);
            let at = f.offset(self.lse, at, Element::F32);
            f.only_if(writes, |f| f.store(lse, at, 4));
        }
    }
}

impl State {
    fn values(&self) -> Vec<Value> {
        let rows = self.rows.values();
        [&self.turn.values()[..], &self.before, &rows, &self.sums, &self.weights].concat()
    }
}
