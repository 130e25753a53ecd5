//! Instructions with everything looked up: what the hot loop walks. No ids, no names, no allocation.

use super::gemm::GemmCall;
use crate::communicator::{Kind, Piece, Spot};
use dspc_program::{ElementType, When};

/// `void name(void *const *args, int64_t begin, int64_t end)`
pub(super) type KernelFn = unsafe extern "C" fn(*const *mut u8, i64, i64);

/// Turn and micro-batch that the loops around an instruction are at.
#[derive(Clone, Copy, Default)]
pub(super) struct Counters {
    pub(super) turn: u64,
    pub(super) micro: u64,
}

/// A place whose slot depends on the counters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    /// Slot 0, the place's elements added.
    pub(super) base: *mut u8,
    pub(super) stride: usize,
    pub(super) slots: u64,
    pub(super) add: u64,
    pub(super) turn: bool,
    pub(super) micro: bool,
}

// SAFETY: a number until a kernel uses it; who may use it is decided by the owner of the arenas.
unsafe impl Send for Address {}
// SAFETY: as above.
unsafe impl Sync for Address {}

impl Address {
    #[inline]
    pub(super) fn at(&self, counters: Counters) -> *mut u8 {
        if self.slots == 1 {
            return self.base;
        }
        let turn = if self.turn { counters.turn } else { 0 };
        let micro = if self.micro { counters.micro } else { 0 };
        let slot = (self.add + turn + micro) % self.slots;
        self.base.wrapping_add(slot as usize * self.stride)
    }
}

/// A kernel's operand.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operand {
    At(Address),
    Turn,
}

impl Operand {
    #[inline]
    fn value(&self, counters: Counters) -> *mut u8 {
        match self {
            Operand::At(address) => address.at(counters),
            Operand::Turn => std::ptr::without_provenance_mut(counters.turn as usize),
        }
    }
}

/// A kernel with its operands.
#[derive(Clone, Debug)]
pub(super) struct LaunchCall {
    pub(super) function: KernelFn,
    pub(super) items: i64,
    pub(super) grain: i64,
    pub(super) operands: Box<[Operand]>,
}

impl LaunchCall {
    /// Writes the operands' values for this turn of the loops.
    #[inline]
    pub(super) fn bind<'a>(&self, counters: Counters, values: &'a mut Vec<*mut u8>) -> BoundLaunch<'a> {
        values.clear();
        values.extend(self.operands.iter().map(|operand| operand.value(counters)));
        BoundLaunch { function: self.function, items: self.items, values }
    }

    /// Parts worth having on this many threads.
    pub(super) fn parts(&self, threads: usize) -> usize {
        let worth = self.items / self.grain.max(1);
        usize::try_from(worth).unwrap_or(1).clamp(1, threads)
    }
}

/// A kernel with its operands' addresses.
pub(super) struct BoundLaunch<'a> {
    function: KernelFn,
    pub(super) items: i64,
    values: &'a [*mut u8],
}

// SAFETY: kernels may run on any thread, on disjoint items; that is their contract.
unsafe impl Sync for BoundLaunch<'_> {}

impl BoundLaunch<'_> {
    /// Runs some of the items.
    #[inline]
    pub(super) fn call(&self, begin: i64, end: i64) {
        if begin < end {
            // SAFETY: the operands were checked against the kernel's own declaration and lie in the arenas; items are independent.
            unsafe { (self.function)(self.values.as_ptr(), begin, end) }
        }
    }

    /// Runs part `part` of `parts`.
    pub(super) fn call_part(&self, part: usize, parts: usize) {
        let edge = |i: usize| {
            let at = (self.items as i128 * i as i128 / parts as i128) as i64;
            // Whole cache lines a thread, where items are small and many.
            if i < parts && self.items / parts as i64 >= 1024 { at & !63 } else { at }
        };
        self.call(edge(part), edge(part + 1));
    }
}

/// A place that peers find as well.
#[derive(Clone, Copy, Debug)]
pub(super) struct SharedPlace {
    pub(super) at: Address,
    pub(super) arena: u32,
    /// First byte of the arena, on this rank.
    pub(super) base: usize,
    /// Bytes from one member's place to the next one's.
    pub(super) step: usize,
    /// This rank's place in the team.
    pub(super) index: usize,
}

impl SharedPlace {
    fn spot(&self, counters: Counters) -> Spot {
        let address = self.at.at(counters).expose_provenance();
        let origin = address.wrapping_sub(self.base).wrapping_sub(self.index * self.step);
        Spot { address, arena: self.arena, origin, step: self.step }
    }
}

/// A range of a collective.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartCall {
    pub(super) from: SharedPlace,
    pub(super) to: SharedPlace,
    pub(super) elements: usize,
    pub(super) dtype: ElementType,
    pub(super) bytes: usize,
}

/// A collective; the operands of `sum` come with the call.
pub(super) struct CollectiveCall {
    pub(super) kind: Kind,
    pub(super) group: u32,
    pub(super) parts: Vec<PartCall>,
    pub(super) sum: Option<LaunchCall>,
}

impl CollectiveCall {
    /// Writes the addresses for this turn of the loops.
    pub(super) fn bind(&self, counters: Counters, pieces: &mut Vec<Piece>) {
        pieces.clear();
        pieces.extend(self.parts.iter().map(|part| part.piece(counters)));
    }
}

impl PartCall {
    /// With its addresses for this turn of the loops.
    pub(super) fn piece(&self, counters: Counters) -> Piece {
        Piece {
            from: self.from.spot(counters),
            to: self.to.spot(counters),
            elements: self.elements,
            dtype: self.dtype,
            bytes: self.bytes,
        }
    }
}

impl LaunchCall {
    /// The kernel on operands that come from elsewhere.
    pub(super) fn on<'a>(&self, values: &'a [*mut u8]) -> BoundLaunch<'a> {
        BoundLaunch { function: self.function, items: self.items, values }
    }
}

/// One instruction.
pub(super) enum Call {
    Launch(LaunchCall),
    Gemm(Box<GemmCall>),
    Zero {
        at: Address,
        bytes: usize,
    },
    Collective(Box<CollectiveCall>),
    /// At some turns of a loop around it.
    At {
        when: When,
        call: Box<Call>,
    },
    Turns {
        count: u64,
        reverse: bool,
        body: Vec<Call>,
    },
    MicroBatches {
        count: u64,
        reverse: bool,
        body: Vec<Call>,
    },
}
