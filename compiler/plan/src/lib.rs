//! Spreads the training graph over a mesh: placements, partitions of the training state, collectives, micro-batches.
//!
//! Never sees a kernel, a stream or a byte offset. A mesh of one rank is just the smallest mesh.

#![forbid(unsafe_code)]

mod collective;
mod cost;
mod deterministic;
mod hold;
mod mesh;
mod partition;
mod place;
mod print;
mod verify;
mod zero;

pub use collective::{Collective, CollectiveKind, Exchanged, Moment};
pub use cost::{StateBytes, elements_sent, flops_per_token, recomputed_flops_per_token, state_bytes};
pub use deterministic::{DeterministicCost, deterministic_cost};
pub use hold::{Held, Holding};
pub use mesh::{Axis, AxisId, Mesh};
pub use partition::{
    Class, ClassId, Cut, GRID_ELEMENTS, Group, GroupId, Member, Partition, VOCABULARY_ROWS, partition_state,
    vocabulary_param,
};
pub use place::{Placement, place_values};
pub use print::print;
pub use verify::verify;

use dspc_graph::ir::Graph;
use dspc_spec::settings::Zero;
use dspc_train::TrainGraph;

/// A training graph spread over a mesh.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The spec's name.
    pub name: String,
    /// How ranks are arranged.
    pub mesh: Mesh,
    /// How the batch divides.
    pub batch: Batch,
    /// Optimizer steps.
    pub steps: u64,
    /// Forward and backward of one micro-batch.
    pub train: TrainGraph,
    /// The loss alone, no dropout.
    pub evaluate: Graph,
    /// One sequence up to the logits, no dropout.
    pub logits: Graph,
    /// Where each value of `train.graph` lives, by [`dspc_graph::ir::ValueId`].
    pub placements: Vec<Placement>,
    /// Parameters, gradients and moments as flat ranges.
    pub partition: Partition,
    /// What a rank holds of each class, by [`ClassId`].
    pub holdings: Vec<Holding>,
    /// The ZeRO stage and its sizes.
    pub zero: Zero,
    /// Bits do not depend on the layout.
    pub deterministic: bool,
    /// What ranks tell one another, in order.
    pub collectives: Vec<Collective>,
}

impl Plan {
    /// Classes that are not frozen.
    fn trained_classes(&self) -> Vec<ClassId> {
        let trained = self.partition.classes().filter(|(_, class)| !self.partition.update(class).frozen);
        trained.map(|(id, _)| id).collect()
    }
}

/// `batch = micro_batch × accumulation × data ranks`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Batch {
    /// Sequences a step, over all ranks.
    pub batch: u64,
    /// Sequences a rank holds at once.
    pub micro_batch: u64,
    /// Micro-batches a step and rank.
    pub accumulation: u64,
}

/// The graphs of one rank's micro-batch.
#[derive(Clone, Debug)]
pub struct Graphs {
    /// Forward and backward.
    pub train: TrainGraph,
    /// The loss alone.
    pub evaluate: Graph,
    /// One sequence up to the logits.
    pub logits: Graph,
}

/// How the training state is spread.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    /// The ZeRO stage and its sizes.
    pub zero: Zero,
    /// Bits do not depend on the layout.
    pub deterministic: bool,
}

/// The passes from training graph to plan.
pub fn plan(name: &str, mesh: Mesh, batch: Batch, steps: u64, graphs: Graphs, spread: Spread) -> Plan {
    let Graphs { train, evaluate, logits } = graphs;
    let placements = place_values(&train);
    let Spread { zero, deterministic } = spread;
    let cut = Cut { shards: mesh.size(AxisId::Data), keep_below: zero.keep_below };
    let partition = partition_state(&train, cut);
    let holdings = vec![Holding::WHOLE; partition.classes.len()];
    let name = name.into();
    let collectives = vec![];
    let mut plan = Plan {
        name,
        mesh,
        batch,
        steps,
        train,
        evaluate,
        logits,
        placements,
        partition,
        holdings,
        zero,
        deterministic,
        collectives,
    };
    collective::place_collectives(&mut plan);
    zero::apply(&mut plan);
    plan
}
