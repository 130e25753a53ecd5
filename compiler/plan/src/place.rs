//! Placement: how each value is divided over the mesh.
//!
//! Reads   a training graph.
//! Writes  a placement a value.
//! Keeps   every value's meaning.
//! Leaves  alone the tensor, pipeline, sequence and expert axes: their passes come with them.
//! Cost    one walk.

use dspc_graph::ir::{Def, Dim, Input, Value, ValueId};
use dspc_train::TrainGraph;

use crate::AxisId;

/// Where a value lives: which axis divides each dim, and over which axes it is a sum not yet made.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Placement {
    /// By dim; `None` is whole.
    pub dims: Vec<Option<AxisId>>,
    /// Axes over which ranks hold terms of a sum.
    pub partial: Vec<AxisId>,
}

/// Divides the batch over the data axis; parameters are whole, and the contributions to their gradients partial over data.
///
/// The graph is already that of one rank's micro-batch: sizes are the rank's own, and the placement says what they are a shard of.
pub fn place_values(train: &TrainGraph) -> Vec<Placement> {
    let graph = &train.graph;
    let tokens = graph.values.iter().find(|v| v.def == Def::Input(Input::Tokens));
    let batch = tokens.and_then(|v| v.ty.dims.first().cloned());
    let is_batch = |d: &Dim| batch.as_ref().is_some_and(|b| b.name == d.name && b.size == d.size);
    let place = |value: &Value| {
        let first = value.ty.dims.first().filter(|d| is_batch(d)).map(|_| AxisId::Data);
        let rest = value.ty.dims.iter().skip(1).map(|_| None);
        let dims = value.ty.dims.iter().take(1).map(|_| first).chain(rest).collect();
        Placement { dims, partial: vec![] }
    };
    let mut placements: Vec<Placement> = graph.values.iter().map(place).collect();
    for ValueId(id) in train.gradients.iter().flat_map(|g| &g.contributions) {
        placements[*id as usize].partial = vec![AxisId::Data];
    }
    placements
}
