//! The walk over inner tiles: copies run some tiles ahead of the work, through buffers used in turn.

use crate::mlir::{Function, Order, Value};

/// Buffers used in turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffers {
    /// How many, at least 2.
    pub count: u64,
    /// Bytes of each.
    pub bytes: u64,
}

impl Buffers {
    /// Begins to copy the first tiles; what was begun before belongs to the first one's group.
    pub fn fill(&self, f: &mut Function, tiles: Value, copy: impl Fn(&mut Function, Value, Value)) {
        for n in 0..self.count - 1 {
            let (number, buffer) = (f.int32(n), f.int32(n * self.bytes));
            let is_tile = f.order(Order::Less, number, tiles);
            f.only_if(is_tile, |f| copy(f, number, buffer));
            f.commit_copies();
        }
    }

    /// Waits for the first tile, and what came with it.
    pub fn await_first(&self, f: &mut Function) {
        f.await_copies(self.count - 2);
        f.barrier();
    }

    /// Works on all tiles in order, carrying values. Both closures get the number of a tile and the bytes from the first buffer to its own.
    pub fn walk(
        &self,
        f: &mut Function,
        tiles: Value,
        carried: &[Value],
        copy: impl Fn(&mut Function, Value, Value),
        work: impl FnOnce(&mut Function, Value, Value, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let (zero, one) = (f.int32(0), f.int32(1));
        let ahead = f.int32((self.count - 1) * self.bytes);
        let all: Vec<Value> = carried.iter().copied().chain([zero, ahead]).collect();
        let count = carried.len();
        let mut all = f.fold((zero, tiles, one), &all, |f, n, all| {
            let (own, next) = (all[count], all[count + 1]);
            f.await_copies(self.count - 2);
            f.barrier();
            let later = f.plus(n, self.count - 1);
            let is_tile = f.order(Order::Less, later, tiles);
            f.only_if(is_tile, |f| copy(f, later, next));
            f.commit_copies();
            let mut results = work(f, n, own, &all[..count]);
            results.extend([self.after(f, own), self.after(f, next)]);
            results
        });
        all.truncate(count);
        all
    }

    fn after(&self, f: &mut Function, buffer: Value) -> Value {
        let (zero, end) = (f.int32(0), f.int32(self.count * self.bytes));
        let next = f.plus(buffer, self.bytes);
        let is_end = f.order(Order::Equal, next, end);
        f.select(is_end, zero, next)
    }
}
