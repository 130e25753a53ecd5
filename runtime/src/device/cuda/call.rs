//! Instructions with everything looked up: what is walked to fill a graph. No ids; names only for reports.

use super::super::call::{Address, Counters, Operand, PartCall};
use super::product::Product;
use crate::communicator::{Kind, Piece};
use cudarc::driver::sys;
use dspc_program::{ElementType, TensorMap, When};
use std::sync::Arc;

/// One function of a kernel.
pub(super) struct Part {
    pub(super) function: sys::CUfunction,
    pub(super) symbol: Arc<str>,
    pub(super) grid: [u32; 3],
    pub(super) block: u32,
    pub(super) shared: u32,
    /// Each with the type of the operand's elements.
    pub(super) maps: Arc<[(TensorMap, ElementType)]>,
}

/// A kernel with its operands.
pub(super) struct Launch {
    pub(super) parts: Arc<[Part]>,
    pub(super) operands: Box<[Operand]>,
}

/// A collective; the operands of `sum` come with the call.
pub(super) struct Shared {
    pub(super) kind: Kind,
    pub(super) group: u32,
    /// Ranks of the team.
    pub(super) members: usize,
    pub(super) parts: Vec<PartCall>,
    pub(super) sum: Option<Arc<[Part]>>,
}

impl Shared {
    /// Its addresses at this turn of the loops.
    pub(super) fn pieces(&self, counters: Counters) -> Vec<Piece> {
        self.parts.iter().map(|part| part.piece(counters)).collect()
    }
}

/// One instruction, with the layer call that it came from.
pub(super) enum Call {
    Launch(Launch, Arc<str>),
    Product(Box<Product>, Arc<str>),
    Zero {
        at: Address,
        bytes: usize,
        origin: Arc<str>,
    },
    Collective(Box<Shared>, Arc<str>),
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

/// Visits every instruction in order, loops unrolled.
pub(super) fn walk<'c, E>(
    calls: &'c [Call],
    counters: Counters,
    visit: &mut impl FnMut(&'c Call, Counters) -> Result<(), E>,
) -> Result<(), E> {
    for call in calls {
        if let Call::At { when, call } = call {
            if when.holds(counters.turn, counters.micro) {
                walk(std::slice::from_ref(&**call), counters, visit)?;
            }
            continue;
        }
        let (Call::Turns { count, reverse, body } | Call::MicroBatches { count, reverse, body }) = call
        else {
            visit(call, counters)?;
            continue;
        };
        for i in 0..*count {
            let i = if *reverse { count - 1 - i } else { i };
            let inner = match call {
                Call::Turns { .. } => Counters { turn: i, ..counters },
                _ => Counters { micro: i, ..counters },
            };
            walk(body, inner, visit)?;
        }
    }
    Ok(())
}

/// Instructions of a walk, loops unrolled.
pub(super) fn unrolled(calls: &[Call]) -> u64 {
    let of = |call: &Call| match call {
        Call::Launch(launch, _) => launch.parts.len() as u64,
        Call::Product(product, _) => 1 + product.after.as_ref().map_or(0, |launch| launch.parts.len() as u64),
        Call::Zero { .. } => 1,
        Call::Collective(shared, _) => 3 * shared.parts.len() as u64,
        Call::At { call, .. } => unrolled(std::slice::from_ref(&**call)),
        Call::Turns { count, body, .. } | Call::MicroBatches { count, body, .. } => {
            count.saturating_mul(unrolled(body))
        }
    };
    calls.iter().map(of).fold(0, u64::saturating_add)
}
