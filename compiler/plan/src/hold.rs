//! What a rank holds of the training state.

use std::fmt;

use crate::AxisId;

/// What a rank holds of a range.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Held {
    /// All of it, as every other rank does.
    Whole,
    /// Its own of equal shards of each bucket, one a rank along the axis.
    Shard(AxisId),
}

impl Held {
    /// Whether ranks share it out.
    pub fn is_shard(self) -> bool {
        self != Held::Whole
    }
}

/// `whole`, `/data`
impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Held::Whole => f.write_str("whole"),
            Held::Shard(axis) => write!(f, "/{axis}"),
        }
    }
}

/// What a rank holds of a class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holding {
    /// Parameters as ops read them.
    pub parameters: Held,
    /// Gradients, complete over the axis, of one step.
    pub gradients: Held,
    /// Masters and moments.
    pub optimizer: Held,
}

impl Holding {
    /// Every rank holds everything.
    pub const WHOLE: Self = Self { parameters: Held::Whole, gradients: Held::Whole, optimizer: Held::Whole };
}
