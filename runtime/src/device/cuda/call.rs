//! Instructions with everything looked up: what is walked to fill a graph. No ids; names only for reports.

use super::super::call::{Address, Counters, Operand};
use super::product::Product;
use cudarc::driver::sys;
use dspc_program::{ElementType, TensorMap};
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

/// One instruction, with the layer call that it came from.
pub(super) enum Call {
    Launch(Launch, Arc<str>),
    Product(Box<Product>, Arc<str>),
    Zero { at: Address, bytes: usize, origin: Arc<str> },
    Turns { count: u64, reverse: bool, body: Vec<Call> },
    MicroBatches { count: u64, reverse: bool, body: Vec<Call> },
}

/// Visits every instruction in order, loops unrolled.
pub(super) fn walk<'c, E>(
    calls: &'c [Call],
    counters: Counters,
    visit: &mut impl FnMut(&'c Call, Counters) -> Result<(), E>,
) -> Result<(), E> {
    for call in calls {
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
        Call::Turns { count, body, .. } | Call::MicroBatches { count, body, .. } => {
            count.saturating_mul(unrolled(body))
        }
    };
    calls.iter().map(of).fold(0, u64::saturating_add)
}
