//! The logits on a GPU: their gradient is written over them, and their rows are as long as the vocabulary's padded parameter has rows, so that each
//! begins on a boundary that fast products need.
//!
//! The parameter's rows behind the last id are zero, and so are the logits' columns there: products compute them, and row
//! kernels leave them alone. A zero gradient keeps the padding zero.

use dspc_graph::form::Form;
use dspc_graph::ir::{Def, Graph, OpNode, ParamId, Step as GraphStep, ValueId};
use dspc_plan::Plan;

use super::Lowering;
use crate::chunk::chunk;
use crate::locate::Location;
use crate::steps::{Matrix, Place, Step, StorageId, StorageKind};

/// A parameter with zero rows behind its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Vocabulary {
    /// Which.
    pub param: ParamId,
    /// Its rows, the zero rows included.
    pub padded: u64,
}

impl Vocabulary {
    /// The plan's, if it is padded.
    pub fn of(plan: &Plan) -> Option<Self> {
        let param = dspc_plan::vocabulary_param(&plan.train.graph)?;
        let ty = &plan.train.graph.param(param).ty;
        let padded = plan.partition.members[param.0 as usize].elements / ty.cols();
        (padded > ty.rows()).then_some(Self { param, padded })
    }
}

/// The logits of a graph and their gradient, which lies where they do.
#[derive(Clone, Copy)]
pub(super) struct Logits {
    value: ValueId,
    gradient: Option<ValueId>,
    /// The parameter that they are products with, where it is padded.
    vocabulary: Option<Vocabulary>,
    /// Where they lie.
    storage: StorageId,
}

/// The logits and their gradient, if nobody but the loss reads the one, and nobody but products the other.
fn find(graph: &Graph) -> Option<(ValueId, Option<ValueId>, &OpNode)> {
    let value = graph.logits?;
    let ops = || graph.body.steps.iter().filter_map(op);
    let reading = |v: ValueId| ops().filter(move |node| node.inputs.contains(&v));
    let inside = graph.body.steps.iter().any(|step| match step {
        GraphStep::Repeat(_) => crate::fuse::inputs_of(step).contains(&value),
        GraphStep::Op(_) => false,
    });
    let losses = reading(value).filter(|node| node.op.name() == "cross_entropy").count();
    let mut gradients = reading(value).filter(|node| node.op.name() == "cross_entropy_backward");
    let gradient = gradients.next().map(|node| node.outputs[0]);
    if inside || losses == 0 || losses + usize::from(gradient.is_some()) != reading(value).count() {
        return None;
    }
    let is_product = |node: &OpNode| matches!(crate::fuse::form_of(graph, node), Form::Contract { .. });
    if let Some(gradient) = gradient
        && (graph.ty(gradient).dtype != graph.ty(value).dtype || !reading(gradient).all(is_product))
    {
        return None;
    }
    let product = ops().find(|node| node.outputs[0] == value && is_product(node))?;
    Some((value, gradient, product))
}

fn op(step: &GraphStep) -> Option<&OpNode> {
    match step {
        GraphStep::Op(node) => Some(node),
        GraphStep::Repeat(_) => None,
    }
}

impl Lowering<'_> {
    /// Gives the logits and their gradient one storage, of padded rows where the vocabulary is padded.
    pub(super) fn place_logits(&mut self, vocabulary: Option<Vocabulary>) {
        let Some((value, gradient, product)) = find(self.graph) else { return };
        let is_factor = |v: &Vocabulary| self.graph.value(product.inputs[1]).def == Def::Param(v.param);
        let vocabulary = vocabulary.filter(is_factor);
        let (dims, ty) = (self.dims(value), self.graph.ty(value).clone());
        let padded = vocabulary.map_or(ty.cols(), |v| v.padded);
        let name = format!("{}{}", self.prefix, self.graph.value(value).name);
        let storage = self.pool.storage(&name, ty.dtype, ty.rows() * padded, 1, StorageKind::Activation);
        let mut strides = vec![1; dims.len()];
        for i in (0..dims.len() - 1).rev() {
            strides[i] = if i + 2 == dims.len() { padded } else { strides[i + 1] * dims[i + 1] };
        }
        let location = Location { place: Place::start(storage), dims, strides };
        for value in std::iter::once(value).chain(gradient) {
            self.locations.insert(value, location.clone());
        }
        self.logits = Some(Logits { value, gradient, vocabulary, storage });
    }

    /// The steps with the logits in chunks of at most so many bytes.
    pub(super) fn chunk_logits(&mut self, steps: Vec<Step>, bytes_max: u64) -> Vec<Step> {
        match &self.logits {
            Some(logits) => chunk(steps, logits.storage, bytes_max, self.pool),
            None => steps,
        }
    }

    /// A product's sizes and matrices with the vocabulary's padding, where both matrices that share the size have it.
    pub(super) fn pad_product(
        &self,
        [a, b, c]: [ValueId; 3],
        [m, n, k]: [u64; 3],
        [ma, mb, mc]: [Matrix; 3],
    ) -> ([u64; 3], [Matrix; 3]) {
        let Some(Logits { vocabulary: Some(vocabulary), value, gradient, .. }) = self.logits else {
            return ([m, n, k], [ma, mb, mc]);
        };
        let padded = vocabulary.padded;
        let is_param = self.graph.value(b).def == Def::Param(vocabulary.param);
        if c == value && is_param {
            return ([m, padded, k], [ma, self.whole(mb), mc]);
        }
        if Some(a) == gradient && is_param {
            return ([m, n, padded], [ma, self.whole(mb), mc]);
        }
        let is_gradient = self.contributions.get(&c) == Some(&vocabulary.param) && self.in_place.contains(&c);
        if Some(a) == gradient && is_gradient {
            return ([padded, n, k], [ma, mb, self.whole(mc)]);
        }
        ([m, n, k], [ma, mb, mc])
    }

    /// A parameter, or its gradient, seen from the flat range that it lies in: the padding is beyond its own end.
    fn whole(&self, matrix: Matrix) -> Matrix {
        match self.pool.storages[matrix.place.storage.0 as usize].within {
            Some(within) => {
                let offset = within.offset + matrix.place.offset;
                Matrix { place: Place { offset, ..Place::start(within.storage) }, ..matrix }
            }
            None => matrix,
        }
    }
}
