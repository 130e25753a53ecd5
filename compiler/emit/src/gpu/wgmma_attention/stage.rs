//! Shared memory of a block: two rings of stages that tiles come through, one of items' own tiles, one of visited ones.
//!
//! One thread fills, the consumers' warps empty. A barrier says that a stage is full (its bytes came), another that it is empty (each
//! consumer warp arrived). Phases alternate, so a place in a ring is a stage and a parity.

use crate::mlir::{Element, Function, INT, Order, Type, Value};

/// Sizes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Bytes of an item's own tiles, and how many items there is room for.
    pub own: (u32, u32),
    /// Bytes of a visit's tiles, and how many visits there is room for.
    pub visited: (u32, u32),
    /// Warps that consume.
    pub warps: u32,
}

/// The memory itself.
#[derive(Clone, Copy)]
pub(super) struct Shared {
    /// Own tiles of items.
    pub own: Ring,
    /// Tiles of visits.
    pub visited: Ring,
    /// A barrier that nobody waits for: what a first visit empties.
    pub spare: Value,
}

/// Stages of one size.
#[derive(Clone, Copy)]
pub(super) struct Ring {
    base: Value,
    bytes: u32,
    stages: u32,
    /// Where its barriers begin: full, then empty.
    barriers: Value,
}

/// A place in a ring.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    pub stage: Value,
    pub phase: Value,
}

impl Layout {
    /// Of all of it; tiles come first, on boundaries of 1024.
    pub fn bytes(&self) -> u32 {
        self.barriers() + 8 * (2 * self.own.1 + 2 * self.visited.1 + 1)
    }

    fn barriers(&self) -> u32 {
        self.own.0 * self.own.1 + self.visited.0 * self.visited.1
    }
}

impl Shared {
    /// Declares the memory, named as in [`declaration`], makes its barriers, and lets the block's threads meet.
    pub fn new(f: &mut Function, symbol: &str, layout: Layout, thread: Value) -> Self {
        let base = f.dynamic_shared(&memory_symbol(symbol));
        let ring = |f: &mut Function, (bytes, stages): (u32, u32), before: u32, barriers: u32| Ring {
            base: f.plus(base, before.into()),
            bytes,
            stages,
            barriers: f.plus(base, (layout.barriers() + 8 * barriers).into()),
        };
        let own = ring(f, layout.own, 0, 0);
        let visited = ring(f, layout.visited, layout.own.0 * layout.own.1, 2 * layout.own.1);
        let spare = f.plus(base, (layout.bytes() - 8).into());
        let zero = f.int32(0);
        let is_first = f.order(Order::Equal, thread, zero);
        f.only_if(is_first, |f| {
            for ring in [own, visited] {
                for i in 0..ring.stages {
                    let stage = f.int32(i.into());
                    let (full, empty) = (ring.full(f, stage), ring.empty(f, stage));
                    f.barrier_new(full, 1);
                    f.barrier_new(empty, layout.warps);
                }
            }
            f.barrier_new(spare, layout.warps);
        });
        f.barriers_ready();
        Shared { own, visited, spare }
    }
}

impl Ring {
    /// Where a stage begins.
    pub fn at(&self, f: &mut Function, stage: Value) -> Value {
        let before = f.times(stage, self.bytes.into());
        f.addi(self.base, before)
    }

    /// The barrier of a stage's filling.
    fn full(&self, f: &mut Function, stage: Value) -> Value {
        let before = f.times(stage, 8);
        f.addi(self.barriers, before)
    }

    /// The barrier of its emptying.
    pub fn empty(&self, f: &mut Function, stage: Value) -> Value {
        let full = self.full(f, stage);
        f.plus(full, (8 * self.stages).into())
    }

    /// The next place.
    pub fn next(&self, f: &mut Function, turn: Turn) -> Turn {
        let (end, zero, one) = (f.int32(self.stages.into()), f.int32(0), f.int32(1));
        let other = f.xor(turn.phase, one);
        if self.stages == 1 {
            return Turn { stage: zero, phase: other };
        }
        let stage = f.plus(turn.stage, 1);
        let wraps = f.order(Order::Equal, stage, end);
        Turn { stage: f.select(wraps, zero, stage), phase: f.select(wraps, other, turn.phase) }
    }

    /// Waits until a stage is full; gives where it begins.
    pub fn await_full(&self, f: &mut Function, turn: Turn) -> Value {
        let barrier = self.full(f, turn.stage);
        f.barrier_wait(barrier, turn.phase);
        self.at(f, turn.stage)
    }

    /// Waits until a stage is empty, and expects bytes in it; gives where it begins and the barrier of the bytes.
    pub fn await_empty(&self, f: &mut Function, turn: Turn, bytes: u32) -> (Value, Value) {
        let one = f.int32(1);
        let (barrier, parity) = (self.empty(f, turn.stage), f.xor(turn.phase, one));
        f.barrier_wait(barrier, parity);
        let full = self.full(f, turn.stage);
        f.barrier_expect(full, bytes);
        (self.at(f, turn.stage), full)
    }
}

impl Turn {
    /// From carried values.
    pub fn of(values: &[Value]) -> Self {
        Turn { stage: values[0], phase: values[1] }
    }

    /// As carried values.
    pub fn values(self) -> [Value; 2] {
        [self.stage, self.phase]
    }
}

/// Arrives at a barrier for a warp: its first lane, after what all its lanes have read.
pub(super) fn arrive(f: &mut Function, is_first: Value, barrier: Value) {
    f.warp_barrier();
    f.only_if(is_first, |f| f.barrier_arrive(barrier));
}

/// The global of a function's shared memory.
pub(super) fn declaration(symbol: &str) -> String {
    format!(
        "  llvm.mlir.global external @{}() {{addr_space = 3 : i32, alignment = 1024 : i64}} : !llvm.array<0 x i8>\n",
        memory_symbol(symbol)
    )
}

fn memory_symbol(symbol: &str) -> String {
    format!("{symbol}_memory")
}

/// A scalar of 64 bits.
pub(super) fn wide(f: &mut Function, x: Value) -> Value {
    debug_assert_eq!(x.ty, INT);
    f.zero_extend(x, Element::I64)
}

/// The type of pointers to operands.
pub(super) const GLOBAL: Type = Type::scalar(Element::Pointer(crate::mlir::Space::Global));
