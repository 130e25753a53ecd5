//! Row kernels as both targets see them: passes, nodes as operations, functions, random numbers.

mod analysis;
mod expression;
mod math;
mod operands;
mod philox;
mod softmax;

pub(crate) use analysis::{Analysis, Level, Pass, neutral, operands, weight};
pub(crate) use expression::{emit_pure, for_result};
pub(crate) use math::{Target, exp_of_distance, exp_of_score, log, tanh};
pub(crate) use operands::{Draw, draw_of, draws, known, mapped_row, reduce_pair, reduction, target_node};
pub(crate) use philox::{Stream, uniform, uniform_quads};
pub(crate) use softmax::{is_share, is_sum_of_shares};
