//! Groups ops into kernels and library calls, and describes each. Still plain data: MLIR begins below.
//!
//! Never names a stream, an arena or a byte offset. One description of a kernel serves the CPU and every GPU generation.

#![forbid(unsafe_code)]

mod absorb;
mod chunk;
pub mod describe;
mod evaluate;
mod exchange;
mod fuse;
mod locate;
mod lower;
mod own;
mod piece;
mod pool;
mod print;
mod state;
pub mod steps;
pub mod tiles;
mod update;

pub use evaluate::evaluate;
pub use print::print;

use dspc_plan::Plan;
use dspc_program::Family;
use dspc_spec::settings::Precision;

use crate::pool::Pool;
use crate::state::State;
use crate::steps::{Kernels, Loop, Step};

/// Bytes that a GPU's logits may take at once: enough rows for a product at its best rate.
const LOGITS_BYTES_MAX: u64 = 800 << 20;

/// The passes from plan to kernels of one kind of device.
pub fn kernels(plan: &Plan, family: Family) -> Kernels {
    kernels_within(plan, family, LOGITS_BYTES_MAX)
}

/// The same, with the logits of a GPU in chunks of at most so many bytes.
pub fn kernels_within(plan: &Plan, family: Family, logits_bytes_max: u64) -> Kernels {
    let mut pool = Pool::new(family, family == Family::Cuda && plan.train.precision == Precision::Tf32);
    let mut state = State::new(plan, &mut pool);
    let head = lower::Head { vocabulary: lower::Vocabulary::of(plan), logits_bytes_max };
    let head = (family == Family::Cuda).then_some(head);
    let mut micro_batch = lower::lower_train(&plan.train, head, &mut state, &mut pool);
    let mut evaluate = lower::lower_loss(&plan.evaluate, head, &mut state, &mut pool);
    let mut logits = lower::lower_logits(&plan.logits, &mut state, &mut pool);
    if family == Family::Cuda {
        for steps in [&mut micro_batch, &mut evaluate, &mut logits] {
            own::give_own_products(steps, &mut pool);
        }
    }
    let mut train = vec![];
    if plan.batch.accumulation > 1 && !plan.deterministic {
        train.extend(state.trained().flat_map(|piece| {
            let zero = |at| Step::Zero(at, "accumulate".into());
            piece.by_turn(vec![zero(piece.at_turn(piece.gradients, piece.holding.gradients, piece.elements))])
        }));
    }
    let micro_batch = exchange::reduce_gradients(plan, &state, micro_batch, &mut pool);
    exchange::gather_losses(&state, &mut evaluate);
    let [micro_batch, evaluate, logits] =
        exchange::gather_ahead(plan, &state, [micro_batch, evaluate, logits], &mut pool);
    train.push(Step::Loop(Loop {
        name: "micro-batch".into(),
        micro: true,
        count: plan.batch.accumulation,
        reverse: false,
        body: micro_batch,
    }));
    let mut update = update::lower_update(plan, &state, &mut pool);
    if family == Family::Cuda {
        own::give_own_products(&mut update, &mut pool);
    }
    train.extend(update);
    let refresh = update::lower_refresh(plan, &state, &mut pool);
    Kernels {
        name: plan.name.clone(),
        family,
        kernels: pool.kernels,
        storages: pool.storages,
        train,
        evaluate,
        logits,
        refresh,
        params: state.places,
    }
}
