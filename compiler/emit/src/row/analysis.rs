//! What an emitter must know of a row kernel: the kind and level of each node, and the passes over a row.
//!
//! A reduction is known only when the row has been walked once, so an element that depends on it belongs to a later walk: a
//! *pass*. Passes recompute what they need from the operands, which are in the first cache by then, but for dear values
//! (exponentials and their like): those are kept in a row buffer from the pass that computes them to the last that reads them.
//! Element results are written in the last pass alone, so a result may lie where an operand of the same shape and stride lies.

use dspc_graph::ir::DType;
use dspc_graph::rowfn::{Access, BinaryFn, InputId, Node, NodeId, ReduceFn, RowMap, UnaryFn};
use dspc_kernel::describe::{RowKernel, Split, Target, Write};
use std::collections::BTreeSet;

/// What a node's value is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// f32
    Float,
    /// i32
    Int,
    /// A condition.
    Bool,
}

/// How often a node is worth a value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Level {
    /// Once.
    Kernel,
    /// Once a row.
    Row,
    /// For each element.
    Element,
}

/// One walk over the columns of a row.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Pass {
    /// Element nodes it computes, operands first.
    pub compute: Vec<NodeId>,
    /// Nodes it takes from row buffers.
    pub reload: Vec<NodeId>,
    /// Of those it computes, the ones it leaves in row buffers.
    pub keep: Vec<NodeId>,
    /// Reductions it completes.
    pub reduces: Vec<NodeId>,
    /// Indices of the element and column-sum writes it does.
    pub writes: Vec<usize>,
}

/// A row kernel, understood.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Analysis {
    /// By node.
    pub kinds: Vec<Kind>,
    /// By node.
    pub levels: Vec<Level>,
    /// By node: the pass that can compute it if it is worth a value an element, else how many passes must be over.
    pub stages: Vec<usize>,
    /// In order; empty if there is nothing to walk for.
    pub passes: Vec<Pass>,
}

impl Analysis {
    /// Checks a kernel and understands it; else says what is wrong. Row buffers for dear values are at most `kept_bytes_max` long in all.
    pub fn of(kernel: &RowKernel, kept_bytes_max: u64) -> Result<Self, String> {
        check(kernel)?;
        let mut all = Analysis { kinds: vec![], levels: vec![], stages: vec![], passes: vec![] };
        for (index, node) in kernel.nodes.iter().enumerate() {
            if let Some(late) = operands(node).into_iter().find(|n| n.0 as usize >= index) {
                return Err(format!("node {index} uses node {}, which does not come before it", late.0));
            }
            let kind = all.kind(kernel, node).map_err(|why| format!("node {index}: {why}"))?;
            let level = all.level(kernel, node);
            let stage = all.stage(node);
            all.kinds.push(kind);
            all.levels.push(level);
            all.stages.push(stage);
        }
        all.check_writes(kernel)?;
        all.passes = all.plan_passes(kernel, kept_bytes_max);
        Ok(all)
    }

    /// The kind of a node.
    pub fn kind_of(&self, node: NodeId) -> Kind {
        self.kinds[node.0 as usize]
    }

    /// The level of a node.
    pub fn level_of(&self, node: NodeId) -> Level {
        self.levels[node.0 as usize]
    }

    fn kind(&self, kernel: &RowKernel, node: &Node) -> Result<Kind, String> {
        let of = |id: NodeId| self.kind_of(id);
        let want = |id: NodeId, kind: Kind| match of(id) == kind {
            true => Ok(()),
            false => Err(format!("operand {} is {:?} where {kind:?} is needed", id.0, of(id))),
        };
        match node {
            Node::Load(input) => match &kernel.reads[input.0 as usize].access {
                Access::Table(_) => Err("a table is read with an index".to_string()),
                _ => Ok(kind_in_memory(kernel, *input)),
            },
            Node::LoadAt(input, index) => {
                want(*index, Kind::Int)?;
                match &kernel.reads[input.0 as usize].access {
                    Access::Table(_) => Ok(kind_in_memory(kernel, *input)),
                    other => Err(format!("an index into {other:?}, which is not a table")),
                }
            }
            Node::Const(_) | Node::Uniform { .. } => Ok(Kind::Float),
            Node::ConstInt(_) | Node::Column => Ok(Kind::Int),
            Node::Unary(function, x) => match function {
                UnaryFn::ToFloat => want(*x, Kind::Int).map(|()| Kind::Float),
                UnaryFn::Not => want(*x, Kind::Bool).map(|()| Kind::Bool),
                UnaryFn::IsFinite => want(*x, Kind::Float).map(|()| Kind::Bool),
                UnaryFn::Negate if of(*x) == Kind::Int => Ok(Kind::Int),
                _ => want(*x, Kind::Float).map(|()| Kind::Float),
            },
            Node::Binary(function, a, b) => {
                want(*b, of(*a))?;
                match function {
                    BinaryFn::Add | BinaryFn::Subtract | BinaryFn::Multiply if of(*a) == Kind::Int => {
                        Ok(Kind::Int)
                    }
                    BinaryFn::Less | BinaryFn::LessEqual | BinaryFn::Equal if of(*a) != Kind::Bool => {
                        Ok(Kind::Bool)
                    }
                    BinaryFn::And | BinaryFn::Or => want(*a, Kind::Bool).map(|()| Kind::Bool),
                    _ => want(*a, Kind::Float).map(|()| Kind::Float),
                }
            }
            Node::Select(condition, a, b) => {
                want(*condition, Kind::Bool)?;
                want(*b, of(*a))?;
                Ok(of(*a))
            }
            Node::Reduce(_, x) => want(*x, Kind::Float).map(|()| Kind::Float),
        }
    }

    fn level(&self, kernel: &RowKernel, node: &Node) -> Level {
        match node {
            Node::Load(input) => match kernel.reads[input.0 as usize].access {
                Access::Element(_) | Access::HalfRotated(_) | Access::Table(_) => Level::Element,
                Access::Row(_) => Level::Row,
                Access::Scalar => Level::Kernel,
            },
            Node::LoadAt(..) | Node::Reduce(..) => Level::Row,
            Node::Const(_) | Node::ConstInt(_) => Level::Kernel,
            Node::Column | Node::Uniform { .. } => Level::Element,
            _ => operands(node).into_iter().map(|n| self.level_of(n)).max().unwrap_or(Level::Kernel),
        }
    }

    fn stage(&self, node: &Node) -> usize {
        let operands = operands(node).into_iter().map(|n| self.stages[n.0 as usize]).max().unwrap_or(0);
        operands + usize::from(matches!(node, Node::Reduce(..)))
    }

    fn check_writes(&self, kernel: &RowKernel) -> Result<(), String> {
        for (index, node) in kernel.nodes.iter().enumerate() {
            if let Node::LoadAt(_, column) = node
                && self.level_of(*column) == Level::Element
            {
                return Err(format!("node {index} indexes a table element by element"));
            }
        }
        for write in &kernel.writes {
            let (Target::Element(node) | Target::Row(node) | Target::ColumnSum(node)) = write.what;
            if node.0 as usize >= kernel.nodes.len() {
                return Err(format!("`{}` is written from node {}, which is not there", write.name, node.0));
            }
            let level = self.level_of(node);
            match write.what {
                Target::Row(_) if level == Level::Element => {
                    return Err(format!("`{}` has one value a row, its node one an element", write.name));
                }
                Target::Row(_) | Target::Element(_)
                    if kernel.split == Split::Elements && !matches!(write.what, Target::Element(_)) =>
                {
                    return Err(format!("`{}` is no element-wise result", write.name));
                }
                Target::ColumnSum(_) if !matches!(kernel.split, Split::Chunks(_)) => {
                    return Err(format!("`{}` is a column sum, so items must be chunks of rows", write.name));
                }
                _ => {}
            }
            let float = write.dtype != DType::I32;
            match self.kind_of(node) {
                Kind::Float if !float => {
                    return Err(format!("`{}` is {} and its node a float", write.name, write.dtype));
                }
                Kind::Int | Kind::Bool if matches!(write.what, Target::ColumnSum(_)) => {
                    return Err(format!("`{}` sums what is no float", write.name));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Element nodes that must be computed for `roots`, operands first; stops at `given`.
    fn closure(&self, kernel: &RowKernel, roots: &[NodeId], given: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let mut needed = BTreeSet::new();
        let mut open: Vec<NodeId> = roots.to_vec();
        while let Some(node) = open.pop() {
            if self.level_of(node) == Level::Element && needed.insert(node) && !given.contains(&node) {
                open.extend(operands(&kernel.nodes[node.0 as usize]));
            }
        }
        needed
    }

    fn plan_passes(&self, kernel: &RowKernel, kept_bytes_max: u64) -> Vec<Pass> {
        let mut passes: Vec<Pass> = vec![];
        let mut at = |stage: usize| {
            if passes.len() <= stage {
                passes.resize(stage + 1, Pass::default());
            }
            stage
        };
        let mut reduces = vec![];
        for (index, node) in kernel.nodes.iter().enumerate() {
            if let Node::Reduce(_, x) = node {
                reduces.push((at(self.stages[x.0 as usize]), NodeId(index as u32)));
            }
        }
        let walked = |write: &Write| match write.what {
            Target::Element(n) | Target::ColumnSum(n) => Some(n),
            Target::Row(_) => None,
        };
        for node in kernel.writes.iter().filter_map(walked) {
            at(self.stages[node.0 as usize]);
        }
        for (stage, node) in reduces {
            passes[stage].reduces.push(node);
        }
        if let Some(last) = passes.last_mut() {
            last.writes = (0..kernel.writes.len()).filter(|&w| walked(&kernel.writes[w]).is_some()).collect();
        }
        self.fill_passes(kernel, &mut passes, kept_bytes_max);
        passes
    }

    fn fill_passes(&self, kernel: &RowKernel, passes: &mut [Pass], kept_bytes_max: u64) {
        let roots: Vec<Vec<NodeId>> = passes.iter().map(|pass| roots(kernel, pass)).collect();
        let nothing = BTreeSet::new();
        let whole: Vec<_> = roots.iter().map(|r| self.closure(kernel, r, &nothing)).collect();
        let mut kept = BTreeSet::new();
        let kept_max = kept_bytes_max / (4 * kernel.cols.max(1));
        for (index, pass) in passes.iter_mut().enumerate() {
            let needed = self.closure(kernel, &roots[index], &kept);
            pass.reload = needed.intersection(&kept).copied().collect();
            pass.compute = needed.difference(&kept).copied().collect();
            for &node in &pass.compute {
                let again = whole[index + 1..].iter().any(|later| later.contains(&node));
                if again && is_dear(&kernel.nodes[node.0 as usize]) && (kept.len() as u64) < kept_max {
                    pass.keep.push(node);
                }
            }
            kept.extend(pass.keep.iter().copied());
        }
    }
}

/// The nodes a pass is for.
fn roots(kernel: &RowKernel, pass: &Pass) -> Vec<NodeId> {
    let reduced = pass.reduces.iter().flat_map(|n| operands(&kernel.nodes[n.0 as usize]));
    let written = pass.writes.iter().map(|&w| match kernel.writes[w].what {
        Target::Element(n) | Target::ColumnSum(n) | Target::Row(n) => n,
    });
    reduced.chain(written).collect()
}

/// Worth a store and a load rather than to be computed twice.
fn is_dear(node: &Node) -> bool {
    matches!(
        node,
        Node::Unary(UnaryFn::Exp | UnaryFn::Log | UnaryFn::Tanh | UnaryFn::Erf, _) | Node::Uniform { .. }
    )
}

/// Machine operations of a node for one vector, about.
pub(crate) fn weight(node: &Node) -> u32 {
    match node {
        Node::Load(_) | Node::LoadAt(..) => 1,
        Node::Const(_) | Node::ConstInt(_) => 0,
        Node::Unary(UnaryFn::Exp | UnaryFn::Log, _) => 16,
        Node::Unary(UnaryFn::Tanh | UnaryFn::Erf, _) => 20,
        Node::Unary(UnaryFn::Sqrt | UnaryFn::Rsqrt | UnaryFn::Reciprocal, _) => 6,
        Node::Unary(UnaryFn::RoundBf16, _) | Node::Binary(BinaryFn::Divide, ..) => 6,
        Node::Uniform { .. } => 120,
        _ => 1,
    }
}

/// The nodes a node uses.
pub(crate) fn operands(node: &Node) -> Vec<NodeId> {
    match node {
        Node::Load(_) | Node::Const(_) | Node::ConstInt(_) | Node::Column | Node::Uniform { .. } => vec![],
        Node::LoadAt(_, x) | Node::Unary(_, x) | Node::Reduce(_, x) => vec![*x],
        Node::Binary(_, a, b) => vec![*a, *b],
        Node::Select(a, b, c) => vec![*a, *b, *c],
    }
}

/// What a reduction begins with.
pub(crate) fn neutral(function: ReduceFn) -> f32 {
    match function {
        ReduceFn::Sum => 0.0,
        ReduceFn::Max => f32::NEG_INFINITY,
    }
}

fn kind_in_memory(kernel: &RowKernel, input: InputId) -> Kind {
    match kernel.reads[input.0 as usize].dtype {
        DType::I32 => Kind::Int,
        DType::F32 | DType::Bf16 | DType::F16 => Kind::Float,
    }
}

fn check(kernel: &RowKernel) -> Result<(), String> {
    if kernel.rows == 0 || kernel.cols == 0 {
        return Err(format!("an empty iteration space, {} × {}", kernel.rows, kernel.cols));
    }
    if kernel.split == Split::Chunks(0) {
        return Err("chunks of no rows".to_string());
    }
    let there = |input: InputId| match (input.0 as usize) < kernel.reads.len() {
        true => Ok(()),
        false => Err(format!("operand {} is not there", input.0)),
    };
    for node in &kernel.nodes {
        match node {
            Node::Load(input) | Node::LoadAt(input, _) | Node::Uniform { rng: input, .. } => there(*input)?,
            Node::Reduce(..) if kernel.split == Split::Elements => {
                return Err("a reduction where items are elements".to_string());
            }
            _ => {}
        }
    }
    for read in &kernel.reads {
        let (Access::Element(map) | Access::HalfRotated(map) | Access::Row(map) | Access::Table(map)) =
            &read.access
        else {
            continue;
        };
        if kernel.split == Split::Elements && read.access != Access::Element(RowMap::EACH) {
            return Err(format!("`{}` is not read element by element", read.name));
        }
        match map {
            RowMap::Gather(ids) => {
                there(*ids)?;
                let ids = &kernel.reads[ids.0 as usize];
                let plain = matches!(ids.access, Access::Row(RowMap::Affine { .. }));
                if ids.dtype != DType::I32 || !plain {
                    return Err(format!(
                        "`{}` is gathered by `{}`, which is not one id a row",
                        read.name, ids.name
                    ));
                }
            }
            RowMap::Affine { divide: 0, .. } | RowMap::Affine { modulo: Some(0), .. } => {
                return Err(format!("`{}` divides by zero rows", read.name));
            }
            RowMap::Affine { .. } => {}
        }
    }
    Ok(())
}
