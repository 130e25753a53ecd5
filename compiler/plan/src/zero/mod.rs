//! ZeRO: what a rank holds of the training state, and what ranks tell one another for it. One pass a stage, each on top of the one before.

mod stage1;
mod stage2;
mod stage3;

use crate::{AxisId, Plan};

/// The passes up to the stage that is asked for; none of them on one rank.
pub(crate) fn apply(plan: &mut Plan) {
    let stage = if plan.mesh.size(AxisId::Data) == 1 { 0 } else { plan.zero.stage };
    if stage >= 1 {
        stage1::partition_optimizer_state(plan);
    }
    if stage >= 2 {
        stage2::partition_gradients(plan);
    }
    if stage >= 3 {
        stage3::partition_parameters(plan);
    }
}
