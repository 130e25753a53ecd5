//! Shared memory of a block: tiles that stay for an item, a ring of stages that tiles come through, and the barriers of both.
//!
//! One thread fills, the consumers' warps empty. A barrier says that a stage is full (its bytes came), another that it is empty (each
//! consumer warp arrived). Phases alternate, so a place in the ring is a stage and a parity.

use crate::mlir::{Element, Function, INT, Order, Type, Value};

/// Sizes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Bytes that stay for an item, a multiple of 1024.
    pub resident: u32,
    /// Bytes of a stage, a multiple of 1024.
    pub stage: u32,
    /// Stages.
    pub stages: u32,
    /// Warps that consume.
    pub warps: u32,
}

/// The memory itself.
#[derive(Clone, Copy)]
pub(super) struct Shared {
    layout: Layout,
    /// Where it begins: the resident tiles.
    pub base: Value,
}

/// A place in the ring.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    pub stage: Value,
    pub phase: Value,
}

impl Layout {
    /// Of all of it.
    pub fn bytes(&self) -> u32 {
        self.barriers() + 8 * (2 * self.stages + 3)
    }

    fn barriers(&self) -> u32 {
        self.resident + self.stage * self.stages
    }
}

impl Shared {
    /// Declares the memory, named as in [`declaration`], makes its barriers, and lets the block's threads meet.
    pub fn new(f: &mut Function, symbol: &str, layout: Layout, thread: Value) -> Self {
        let base = f.dynamic_shared(&memory_symbol(symbol));
        let this = Shared { layout, base };
        let zero = f.int32(0);
        let is_first = f.order(Order::Equal, thread, zero);
        f.only_if(is_first, |f| {
            for i in 0..layout.stages {
                let stage = f.int32(i.into());
                let (full, empty) = (this.full(f, stage), this.empty(f, stage));
                f.barrier_new(full, 1);
                f.barrier_new(empty, layout.warps);
            }
            let (full, empty) = (this.resident_full(f), this.resident_empty(f));
            f.barrier_new(full, 1);
            f.barrier_new(empty, layout.warps);
            let spare = this.spare(f);
            f.barrier_new(spare, layout.warps);
        });
        f.barriers_ready();
        this
    }

    /// Where a stage begins.
    pub fn stage(&self, f: &mut Function, stage: Value) -> Value {
        let at = f.times(stage, self.layout.stage.into());
        let base = f.plus(self.base, self.layout.resident.into());
        f.addi(base, at)
    }

    /// The barrier of a stage's filling.
    pub fn full(&self, f: &mut Function, stage: Value) -> Value {
        self.barrier(f, stage, 0)
    }

    /// The barrier of its emptying.
    pub fn empty(&self, f: &mut Function, stage: Value) -> Value {
        self.barrier(f, stage, self.layout.stages)
    }

    /// The barrier of the resident tiles' filling.
    pub fn resident_full(&self, f: &mut Function) -> Value {
        let first = f.int32(0);
        self.barrier(f, first, 2 * self.layout.stages)
    }

    /// The barrier of their emptying.
    pub fn resident_empty(&self, f: &mut Function) -> Value {
        let first = f.int32(0);
        self.barrier(f, first, 2 * self.layout.stages + 1)
    }

    /// A barrier that nobody waits for: what the first visit empties.
    pub fn spare(&self, f: &mut Function) -> Value {
        let first = f.int32(0);
        self.barrier(f, first, 2 * self.layout.stages + 2)
    }

    fn barrier(&self, f: &mut Function, number: Value, after: u32) -> Value {
        let at = f.times(number, 8);
        let base = f.plus(self.base, u64::from(self.layout.barriers() + 8 * after));
        f.addi(base, at)
    }

    /// The next place.
    pub fn next(&self, f: &mut Function, turn: Turn) -> Turn {
        let stage = f.plus(turn.stage, 1);
        let (end, zero, one) = (f.int32(self.layout.stages.into()), f.int32(0), f.int32(1));
        let wraps = f.order(Order::Equal, stage, end);
        let other = f.xor(turn.phase, one);
        Turn { stage: f.select(wraps, zero, stage), phase: f.select(wraps, other, turn.phase) }
    }

    /// Waits until a stage is full; gives where it begins.
    pub fn await_full(&self, f: &mut Function, turn: Turn) -> Value {
        let barrier = self.full(f, turn.stage);
        f.barrier_wait(barrier, turn.phase);
        self.stage(f, turn.stage)
    }

    /// Waits until a stage is empty, and expects bytes in it; gives where it begins and the barrier of the bytes.
    pub fn await_empty(&self, f: &mut Function, turn: Turn, bytes: u32) -> (Value, Value) {
        let one = f.int32(1);
        let (barrier, parity) = (self.empty(f, turn.stage), f.xor(turn.phase, one));
        f.barrier_wait(barrier, parity);
        let full = self.full(f, turn.stage);
        f.barrier_expect(full, bytes);
        (self.stage(f, turn.stage), full)
    }
}

/// Arrives at a barrier where the lane is the warp's first.
pub(super) fn arrive(f: &mut Function, is_first: Value, barrier: Value) {
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
