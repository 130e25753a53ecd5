//! The mesh: named axes and their sizes.

use std::fmt;

use dspc_spec::settings;

/// A direction of the mesh.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum AxisId {
    /// Ranks that share the batch.
    Data,
    /// Ranks that share each matrix.
    Tensor,
    /// Ranks that share the layers.
    Pipeline,
    /// Ranks that share each sequence.
    Sequence,
    /// Ranks that share the experts.
    Expert,
}

impl fmt::Display for AxisId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AxisId::Data => "data",
            AxisId::Tensor => "tensor",
            AxisId::Pipeline => "pipeline",
            AxisId::Sequence => "sequence",
            AxisId::Expert => "expert",
        })
    }
}

/// An axis and its size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Axis {
    /// Which.
    pub id: AxisId,
    /// Ranks along it.
    pub size: u64,
}

/// Ranks as a grid; the data axis is always there, others if larger than one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mesh {
    /// Outermost first.
    pub axes: Vec<Axis>,
}

impl Mesh {
    /// The mesh that the spec asks for.
    pub fn of(mesh: &settings::Mesh) -> Self {
        let all = [
            (AxisId::Pipeline, mesh.pipeline),
            (AxisId::Data, mesh.data),
            (AxisId::Expert, mesh.expert),
            (AxisId::Sequence, mesh.sequence),
            (AxisId::Tensor, mesh.tensor),
        ];
        let axes = all.into_iter().filter(|&(id, size)| size > 1 || id == AxisId::Data);
        Self { axes: axes.map(|(id, size)| Axis { id, size }).collect() }
    }

    /// Ranks along an axis; 1 where the mesh has no such axis.
    pub fn size(&self, id: AxisId) -> u64 {
        self.axes.iter().find(|a| a.id == id).map_or(1, |a| a.size)
    }

    /// All ranks.
    pub fn world(&self) -> u64 {
        self.axes.iter().map(|a| a.size).product()
    }
}

/// `mesh(data: 4, tensor: 2)`
impl fmt::Display for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let axes: Vec<String> = self.axes.iter().map(|a| format!("{}: {}", a.id, a.size)).collect();
        write!(f, "mesh({})", axes.join(", "))
    }
}
