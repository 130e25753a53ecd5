//! Gradient of queries: p = 2^(s − lse);  ds = p · (dy vᵀ − δ);  dq = scale · ds k.
//!
//! A block owns 64 queries a warpgroup, with their dy, and visits tiles of keys and values. Exponentials are taken while dy vᵀ is computed,
//! and dq of a visit while the scores of the next are; an item's dq is written while the first products of the next item run.

use super::allowed::{self, Allowed, Rows as Direction};
use super::fragment::{Lane, Target, pack, store};
use super::items::{Item, Items};
use super::loads::{Tiles, batch_and_head, load_for_queries, map};
use super::stage::{Layout, Shared, Turn, arrive, declaration, wide};
use super::statistics::{delta_at, padded};
use super::visits::{Owner, Visits};
use super::{Tiling, arguments, scale_of_powers};
use crate::gpu::memory::stored;
use crate::mlir::{Element, Factor, Function, Onto, Order, Product, SharedMatrix, Summed, Type, Value};
use dspc_kernel::describe::AttentionKernel;
use dspc_program::GpuLaunch;

/// Sizes that measured fastest.
pub(super) fn tiling(kernel: &AttentionKernel) -> Tiling {
    match kernel.head_dim {
        // The bits of a long predicate take registers.
        64 if allowed::is_long(&kernel.mask) => Tiling { groups: 2, visited: 64, stages: 5, items: 2 },
        64 => Tiling { groups: 2, visited: 128, stages: 3, items: 2 },
        _ => Tiling { groups: 2, visited: 64, stages: 4, items: 1 },
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

/// What goes from visit to visit.
struct State {
    /// The next place in the ring of visits.
    turn: Turn,
    /// The barrier of the stage that the running product reads.
    reads: Value,
    /// Its sums.
    sums: Vec<Value>,
}

/// An item's results: its head and the thread's first row.
#[derive(Clone, Copy)]
struct Own {
    head: Value,
    row: Value,
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
        own: (2 * own[0].bytes(), tiling.items),
        visited: (2 * visited[0].bytes(), tiling.stages),
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
    tiling.roles(&mut f, thread, this.items.count(), |f| this.load(f), |f| this.compute(f, thread));
    let text = f.finish(symbol, &types, &tiling.attributes());
    Ok((visits.text(&table) + &declaration(symbol) + &text, launch))
}

impl Backward<'_> {
    /// The thread that loads.
    fn load(&self, f: &mut Function) {
        load_for_queries(f, self.kernel, (&self.items, &self.shared), &self.own, &self.visited);
    }

    /// The threads that compute.
    fn compute(&self, f: &mut Function, thread: Value) {
        let lane = Lane::new(f, thread);
        let (zero, one, none) = (f.int32(0), f.int32(1), f.float(1, 0.0));
        let mut carried = vec![zero; 7];
        carried.push(self.shared.spare);
        carried.extend(vec![none; self.kernel.head_dim as usize / 2]);
        let carried = self.items.each(f, &carried, |f, item, carried| {
            let turn = Turn::of(&carried[..2]);
            let first = f.times(item.tile, self.tiling.own().into());
            let row = f.addi(first, lane.row);
            let (exponents, deltas) = self.statistics(f, item, row);
            let at = self.shared.own.await_full(f, turn);
            let group = f.times(lane.group, 64 * 128);
            let at = f.addi(at, group);
            let queries = self.own[0].matrix(f, at, Summed::Columns);
            let at = f.plus(at, self.own[0].bytes().into());
            let dy = self.own[1].matrix(f, at, Summed::Columns);
            let resident = Resident { queries, dy, exponents, deltas };
            let is_there = f.order(Order::NotEqual, carried[2], zero);
            let before = Own { head: carried[3], row: carried[4] };
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

    /// The first visit of an item, after the last of another, whose results are written, if there is one.
    fn first_visit(
        &self,
        f: &mut Function,
        place: (Item, Lane, Value),
        resident: Resident,
        state: &State,
        (is_there, before): (Value, Own),
    ) -> State {
        let masked = self.visits.any_partial.then(|| f.int32(0));
        let (stage, scores, slopes) = self.start(f, resident, state.turn);
        let allowed = self.allowed(f, place, masked);
        // All of them: what is read while other products run makes the assembler put them one after the other.
        let count = scores.len();
        let mut scores = f.await_products(0, &[&scores[..], &slopes, &state.sums].concat());
        let mut slopes = scores.split_off(count);
        let sums = slopes.split_off(count);
        arrive(f, place.1.is_first, state.reads);
        f.only_if(is_there, |f| self.write(f, place.1, before, &sums));
        self.finish(f, resident, (stage, state.turn), (scores, slopes), Onto::Zero, allowed)
    }

    /// All visits but the first.
    fn other_visits(
        &self,
        f: &mut Function,
        place: (Item, Lane, Value),
        resident: Resident,
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
                let (stage, scores, slopes) = self.start(f, resident, state.turn);
                let allowed = self.allowed(f, place, masked);
                let count = scores.len();
                let mut scores = f.await_products(1, &[scores, state.sums].concat());
                let sums = scores.split_off(count);
                arrive(f, place.1.is_first, state.reads);
                let products = (scores, slopes);
                let turn = (stage, state.turn);
                self.finish(f, resident, turn, products, Onto::Sum(&sums), allowed).values()
            });
        }
        State::of(&carried)
    }

    /// Starts scores and dy vᵀ of a visit.
    fn start(&self, f: &mut Function, resident: Resident, turn: Turn) -> (Value, Vec<Value>, Vec<Value>) {
        let stage = self.shared.visited.await_full(f, turn);
        let (columns, depth) = (self.tiling.visited, self.kernel.head_dim as u32);
        let product = Product { columns, depth, element: stored(self.kernel.dtype) };
        let keys = self.visited[0].matrix(f, stage, Summed::Columns);
        let scores = f.product(product, Factor::Shared(resident.queries), keys, Onto::Zero);
        let at = f.plus(stage, self.visited[0].bytes().into());
        let values = self.visited[1].matrix(f, at, Summed::Columns);
        let slopes = f.product(product, Factor::Shared(resident.dy), values, Onto::Zero);
        (stage, scores, slopes)
    }

    /// Which scores of a visit count, if not all.
    fn allowed(
        &self,
        f: &mut Function,
        (item, lane, row): (Item, Lane, Value),
        masked: Option<Value>,
    ) -> Option<Allowed<'_>> {
        masked.map(|visit| {
            let tile = self.items.visited(f, item, visit);
            let column = f.times(tile, self.tiling.visited.into());
            let place = (Direction::Queries, row, column);
            Allowed::new(f, self.kernel, place, lane, self.tiling.visited / 2)
        })
    }

    /// From scores, which are there, and dy vᵀ, which is to come, to dq, which is left running.
    fn finish(
        &self,
        f: &mut Function,
        resident: Resident,
        (stage, turn): (Value, Turn),
        (mut scores, slopes): (Vec<Value>, Vec<Value>),
        onto: Onto<'_>,
        allowed: Option<Allowed<'_>>,
    ) -> State {
        let (columns, depth) = (self.kernel.head_dim as u32, self.tiling.visited);
        if let Some(allowed) = allowed {
            allowed.apply(f, &mut scores);
        }
        let scale = f.float(1, scale_of_powers(self.kernel));
        let weights: Vec<Value> = (scores.iter().enumerate())
            .map(|(i, &score)| {
                let power = f.fma(score, scale, resident.exponents[i / 2 % 2]);
                f.fast_exp2(power)
            })
            .collect();
        let some: Vec<Value> = weights.iter().copied().skip(3).step_by(weights.len() / 8).collect();
        let witness = some.into_iter().reduce(|a, b| f.add(a, b)).unwrap_or(scale);
        let (slopes, weights) = f.await_products_after(witness, &slopes, &weights);
        let slopes: Vec<Value> = (slopes.iter().zip(&weights).enumerate())
            .map(|(i, (&slope, &weight))| {
                let difference = f.sub(slope, resident.deltas[i / 2 % 2]);
                f.mul(weight, difference)
            })
            .collect();
        let slopes = pack(f, self.kernel.dtype, &slopes);
        let keys = self.visited[0].matrix(f, stage, Summed::Rows);
        let product = Product { columns, depth, element: stored(self.kernel.dtype) };
        let sums = f.product(product, Factor::Registers(&slopes), keys, onto);
        let reads = self.shared.visited.empty(f, turn.stage);
        State { turn: self.shared.visited.next(f, turn), reads, sums }
    }

    /// Writes dq.
    fn write(&self, f: &mut Function, lane: Lane, own: Own, sums: &[Value]) {
        let (batch, head) = batch_and_head(f, own.head, self.kernel.heads);
        let factor = f.float(1, self.kernel.scale as f32);
        let (positions, stride) = (self.kernel.queries, self.kernel.strides[5]);
        let to = Target { operand: self.dq, batch, head, row: own.row, positions, stride };
        store(f, self.kernel, lane, sums, [factor; 2], &to);
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
