//! A group of row ops as one row kernel.

use std::collections::HashMap;

use dspc_graph::form::Form;
use dspc_graph::ir::{DType, OpNode, ValueId};
use dspc_graph::rowfn::{Access, BinaryFn, InputId, Node, NodeId, RowFn, RowMap, Yield};
use dspc_program::Family;

use super::Lowering;
use crate::describe::{Kernel, Read, RowKernel, Split, Target, Write};
use crate::fuse::form_of;
use crate::locate::Location;
use crate::steps::{Launch, Place, Step, StorageKind};

/// Rows of a chunk, at least: a column sum's partial row costs a pass over `cols`.
const CHUNK_ROWS_MIN: u64 = 64;
/// Chunks, at most: as many threads can share a kernel with column sums.
const CHUNKS_MAX: u64 = 64;

/// Columns of a column sum that is made row by row, at most: a partial row must stay in the first cache.
const SUM_COLS_MAX: u64 = 8192;
/// Rows that one kernel adds element by element.
const SUM_ROWS_MAX: u64 = 8;

/// The same of a GPU: a block walks a chunk, several rows at once, and one on each multiprocessor of an H100 keeps memory busy.
const GPU_CHUNK_ROWS_MIN: u64 = 16;
const GPU_CHUNKS_MAX: u64 = 132;

/// Rows that one partial column sum covers: fixed by the shape, so that the sum's order is.
pub(crate) fn chunk_rows(rows: u64, family: Family) -> u64 {
    match family {
        Family::Cpu => rows.div_ceil(CHUNKS_MAX).next_multiple_of(CHUNK_ROWS_MIN),
        Family::Cuda => rows.div_ceil(GPU_CHUNKS_MAX).max(GPU_CHUNK_ROWS_MIN),
    }
}

/// A column sum that was made in parts.
struct Parts {
    /// A row a chunk.
    from: Place,
    /// Of the sum in memory.
    dtype: DType,
    to: Place,
    adds: bool,
}

/// A kernel in the making.
struct Draft {
    rows: u64,
    cols: u64,
    reads: Vec<(Read, Place)>,
    nodes: Vec<Node>,
    /// Equal nodes are one.
    known: HashMap<String, NodeId>,
}

impl Draft {
    fn node(&mut self, node: Node) -> NodeId {
        let next = NodeId(self.nodes.len() as u32);
        let id = *self.known.entry(format!("{node:?}")).or_insert(next);
        if id == next {
            self.nodes.push(node);
        }
        id
    }

    fn read(&mut self, read: Read, place: Place) -> InputId {
        let same = |(r, p): &(Read, Place)| *p == place && r.access == read.access && r.stride == read.stride;
        let index = self.reads.iter().position(same).unwrap_or_else(|| {
            self.reads.push((read, place));
            self.reads.len() - 1
        });
        InputId(index as u32)
    }
}

impl Lowering<'_> {
    /// One launch for the group, then one for each column sum that was made in parts.
    pub(super) fn lower_rows(&mut self, ops: &[&OpNode], epilogue: bool) -> Vec<Step> {
        let functions: Vec<RowFn> = ops.iter().filter_map(|op| row_fn(form_of(self.graph, op))).collect();
        let Some(first) = functions.first() else { return vec![] };
        let mut draft =
            Draft { rows: first.rows, cols: first.cols, reads: vec![], nodes: vec![], known: HashMap::new() };
        let mut inside: HashMap<ValueId, NodeId> = HashMap::new();
        let mut results = vec![];
        for (op, function) in ops.iter().zip(&functions) {
            let nodes = self.inline(op, function, &inside, &mut draft);
            for (&value, yields) in op.outputs.iter().zip(&function.outputs) {
                let yields = mapped(*yields, &nodes);
                if let Yield::Element(node) | Yield::Row(node) = yields {
                    inside.insert(value, node);
                }
                results.push((value, yields));
            }
        }
        let readers =
            |value: ValueId| ops.iter().flat_map(|op| &op.inputs).filter(|v| **v == value).count() as u32;
        let needed = |this: &Self, value: ValueId| {
            let uses = this.uses.get(&value).copied().unwrap_or(0);
            uses > readers(value) || this.contributions.contains_key(&value)
        };
        results.retain(|(value, _)| needed(self, *value));
        self.finish(draft, &results, ops, epilogue)
    }

    /// Adds an op's expression to the draft; the node each of its own nodes became.
    fn inline(
        &mut self,
        op: &OpNode,
        function: &RowFn,
        inside: &HashMap<ValueId, NodeId>,
        draft: &mut Draft,
    ) -> Vec<NodeId> {
        let mut inputs: Vec<Option<InputId>> = vec![None; function.inputs.len()];
        let mut order: Vec<usize> = (0..function.inputs.len()).collect();
        order.sort_by_key(|&i| row_map(&function.inputs[i]).is_some_and(|m| matches!(m, RowMap::Gather(_))));
        for i in order {
            if !inside.contains_key(&op.inputs[i]) {
                inputs[i] = Some(self.operand(op.inputs[i], &function.inputs[i], &inputs, draft));
            }
        }
        let mut nodes: Vec<NodeId> = vec![];
        for node in &function.nodes {
            let fused = match node {
                Node::Load(id) => inside.get(&op.inputs[id.0 as usize]).copied(),
                _ => None,
            };
            let at = |id: NodeId| nodes[id.0 as usize];
            let input = |id: InputId| inputs[id.0 as usize].unwrap_or(id);
            let id = fused.unwrap_or_else(|| draft.node(rename(node, &at, &input)));
            nodes.push(id);
        }
        nodes
    }

    fn operand(
        &mut self,
        value: ValueId,
        access: &Access,
        inputs: &[Option<InputId>],
        draft: &mut Draft,
    ) -> InputId {
        let ty = self.graph.ty(value);
        let (dtype, own_cols) = (ty.dtype, ty.cols());
        let mut location = self.locate(value);
        let stride = |l: &Location| match access {
            Access::Element(_) | Access::HalfRotated(_) => l.row_stride(draft.cols),
            Access::Table(_) => l.row_stride(own_cols),
            Access::Row(_) => l.is_dense().then_some(1),
            Access::Scalar => Some(1),
        };
        let stride = stride(&location).unwrap_or_else(|| {
            location = self.copy(value);
            stride(&location).unwrap_or(1)
        });
        let access = renamed(access, &|id| inputs[id.0 as usize].unwrap_or(id));
        let name = self.graph.value(value).name.clone();
        draft.read(Read { name, dtype, access, stride }, location.place)
    }

    fn finish(
        &mut self,
        draft: Draft,
        results: &[(ValueId, Yield)],
        ops: &[&OpNode],
        epilogue: bool,
    ) -> Vec<Step> {
        if let [(value, Yield::ColumnSum(node))] = results
            && let Node::Load(input) = draft.nodes[node.0 as usize]
            && draft.cols > SUM_COLS_MAX
            && !epilogue
        {
            return self.sum_rows(&draft, input, *value, &ops[0].origin);
        }
        let chunk = chunk_rows(draft.rows, self.pool.family);
        let chunks = draft.rows.div_ceil(chunk);
        let sums = results.iter().any(|(_, y)| matches!(y, Yield::ColumnSum(_)));
        let origin = ops[0].origin.clone();
        let (mut writes, mut places, mut sums_in_parts) = (vec![], vec![], vec![]);
        for &(value, yields) in results {
            let location = self.locate(value);
            let adds = self.adds(value);
            let (name, dtype) = (self.graph.value(value).name.clone(), self.graph.ty(value).dtype);
            let mut write = |what, stride, accumulate, place| {
                // Parts of a sum are f32, whatever their sum is stored as.
                let in_parts = chunks > 1 && matches!(what, Target::ColumnSum(_));
                let dtype = if in_parts { DType::F32 } else { dtype };
                writes.push(Write { name: name.clone(), dtype, what, stride, accumulate });
                places.push(place);
            };
            match yields {
                Yield::Element(node) => {
                    let stride = location.row_stride(draft.cols).unwrap_or(draft.cols);
                    write(Target::Element(node), stride, adds, location.place);
                }
                Yield::Row(node) => write(Target::Row(node), 1, adds, location.place),
                Yield::ColumnSum(node) if chunks == 1 => {
                    write(Target::ColumnSum(node), draft.cols, adds, location.place);
                }
                Yield::ColumnSum(node) => {
                    let name = format!("{}{name}.parts", self.prefix);
                    let elements = chunks * draft.cols;
                    let parts = self.pool.storage(&name, DType::F32, elements, 1, StorageKind::Activation);
                    let parts = Place::start(parts);
                    write(Target::ColumnSum(node), draft.cols, false, parts);
                    sums_in_parts.push(Parts { from: parts, dtype, to: location.place, adds });
                }
            }
        }
        let split = match (sums, epilogue || !is_flat(&draft, &writes)) {
            (true, _) => Split::Chunks(chunk),
            (false, true) => Split::Rows,
            (false, false) => Split::Elements,
        };
        let (reads, read_places) = draft.reads.into_iter().unzip();
        let kernel =
            RowKernel { rows: draft.rows, cols: draft.cols, reads, nodes: draft.nodes, writes, split };
        let (kernel, read_places) = live(kernel, read_places);
        let operands = read_places.into_iter().chain(places).collect();
        let kernel = self.pool.kernel(&stem(ops), Kernel::Row(kernel));
        let mut steps = vec![Step::Launch(Launch { kernel, operands, origin: origin.clone() })];
        if !sums_in_parts.is_empty() {
            steps.push(self.sum_parts(&sums_in_parts, chunks, draft.cols, origin));
        }
        steps
    }

    /// Few long rows, added element by element in order: the gradient of a value that was broadcast over the batch.
    fn sum_rows(&mut self, draft: &Draft, input: InputId, value: ValueId, origin: &str) -> Vec<Step> {
        let (read, from) = draft.reads[input.0 as usize].clone();
        let to = self.locate(value);
        let mut adds = self.adds(value);
        let mut steps = vec![];
        for start in (0..draft.rows).step_by(SUM_ROWS_MAX as usize) {
            let rows = start..draft.rows.min(start + SUM_ROWS_MAX);
            let mut operands: Vec<Place> =
                rows.map(|row| Place { offset: from.offset + row * read.stride, ..from }).collect();
            let dense = Read { access: Access::Element(RowMap::EACH), stride: draft.cols, ..read.clone() };
            let reads = vec![dense; operands.len()];
            let mut nodes = vec![Node::Load(InputId(0))];
            for i in 1..operands.len() as u32 {
                let sum = NodeId(nodes.len() as u32 - 1);
                nodes.push(Node::Load(InputId(i)));
                nodes.push(Node::Binary(BinaryFn::Add, sum, NodeId(nodes.len() as u32 - 1)));
            }
            let what = Target::Element(NodeId(nodes.len() as u32 - 1));
            let (name, dtype) = (self.graph.value(value).name.clone(), self.graph.ty(value).dtype);
            let writes = vec![Write { name, dtype, what, stride: draft.cols, accumulate: adds }];
            let kernel =
                RowKernel { rows: 1, cols: draft.cols, reads, nodes, writes, split: Split::Elements };
            let kernel = self.pool.kernel("sum_rows", Kernel::Row(kernel));
            operands.push(to.place);
            steps.push(Step::Launch(Launch { kernel, operands, origin: origin.into() }));
            adds = true;
        }
        steps
    }

    /// Adds the rows of partial column sums, in order.
    fn sum_parts(&mut self, sums: &[Parts], chunks: u64, cols: u64, origin: String) -> Step {
        let read = |_: &Parts| Read {
            name: "parts".into(),
            dtype: DType::F32,
            access: Access::Element(RowMap::EACH),
            stride: cols,
        };
        let write = |(i, sum): (usize, &Parts)| {
            let what = Target::ColumnSum(NodeId(i as u32));
            Write { name: "sum".into(), dtype: sum.dtype, what, stride: cols, accumulate: sum.adds }
        };
        let kernel = RowKernel {
            rows: chunks,
            cols,
            reads: sums.iter().map(read).collect(),
            nodes: (0..sums.len() as u32).map(|i| Node::Load(InputId(i))).collect(),
            writes: sums.iter().enumerate().map(write).collect(),
            split: Split::Chunks(chunks),
        };
        let kernel = self.pool.kernel("sum_parts", Kernel::Row(kernel));
        let operands = sums.iter().map(|s| s.from).chain(sums.iter().map(|s| s.to)).collect();
        Step::Launch(Launch { kernel, operands, origin })
    }

    /// Moves elements from one location to another of the same dims: as many launches as it takes runs of evenly spaced rows.
    pub(super) fn copy_steps(
        &mut self,
        from: &Location,
        to: &Location,
        dtype: DType,
        accumulate: bool,
    ) -> Vec<Step> {
        let cols = from.dims.last().copied().unwrap_or(1);
        if let (Some(read_stride), Some(write_stride)) = (from.row_stride(cols), to.row_stride(cols)) {
            return vec![self.copy_rows(
                from,
                to,
                (from.elements() / cols, cols),
                (read_stride, write_stride),
                dtype,
                accumulate,
            )];
        }
        if let ([rows], [read_stride], [write_stride]) = (&from.dims[..], &from.strides[..], &to.strides[..])
        {
            return vec![self.copy_rows(
                from,
                to,
                (*rows, 1),
                (*read_stride, *write_stride),
                dtype,
                accumulate,
            )];
        }
        let below = |l: &Location, i: u64| {
            let mut inner = l.slice(0, i, 1);
            inner.dims.remove(0);
            inner.strides.remove(0);
            inner
        };
        (0..from.dims[0])
            .flat_map(|i| self.copy_steps(&below(from, i), &below(to, i), dtype, accumulate))
            .collect()
    }

    fn copy_rows(
        &mut self,
        from: &Location,
        to: &Location,
        (rows, cols): (u64, u64),
        (read_stride, write_stride): (u64, u64),
        dtype: DType,
        accumulate: bool,
    ) -> Step {
        let access = Access::Element(RowMap::EACH);
        let read = Read { name: "from".into(), dtype, access, stride: read_stride };
        let what = Target::Element(NodeId(0));
        let write = Write { name: "to".into(), dtype, what, stride: write_stride, accumulate };
        let flat = read_stride == cols && write_stride == cols;
        let split = if flat { Split::Elements } else { Split::Rows };
        let nodes = vec![Node::Load(InputId(0))];
        let kernel = RowKernel { rows, cols, reads: vec![read], nodes, writes: vec![write], split };
        let kernel = self.pool.kernel("copy", Kernel::Row(kernel));
        Step::Launch(Launch { kernel, operands: vec![from.place, to.place], origin: "copy".into() })
    }
}

fn row_fn(form: Form) -> Option<RowFn> {
    match form {
        Form::Row(function) => Some(function),
        _ => None,
    }
}

fn row_map(access: &Access) -> Option<&RowMap> {
    match access {
        Access::Element(map) | Access::HalfRotated(map) | Access::Row(map) | Access::Table(map) => Some(map),
        Access::Scalar => None,
    }
}

fn mapped(yields: Yield, nodes: &[NodeId]) -> Yield {
    let at = |id: NodeId| nodes[id.0 as usize];
    match yields {
        Yield::Element(id) => Yield::Element(at(id)),
        Yield::Row(id) => Yield::Row(at(id)),
        Yield::ColumnSum(id) => Yield::ColumnSum(at(id)),
    }
}

/// Purely element-wise without gaps: rows do not matter.
fn is_flat(draft: &Draft, writes: &[Write]) -> bool {
    let reads = draft.reads.iter().all(|(read, _)| match &read.access {
        Access::Element(map) => *map == RowMap::EACH && read.stride == draft.cols,
        Access::Scalar => true,
        Access::HalfRotated(_) | Access::Row(_) | Access::Table(_) => false,
    });
    let writes = writes.iter().all(|w| matches!(w.what, Target::Element(_)) && w.stride == draft.cols);
    let nodes = draft.nodes.iter().all(|n| !matches!(n, Node::Reduce(..) | Node::LoadAt(..) | Node::Column));
    reads && writes && nodes
}

/// Without nodes that no write needs, and operands that no node reads.
fn live(mut kernel: RowKernel, places: Vec<Place>) -> (RowKernel, Vec<Place>) {
    let mut needed = vec![false; kernel.nodes.len()];
    for write in &kernel.writes {
        let (Target::Element(id) | Target::Row(id) | Target::ColumnSum(id)) = write.what;
        mark(&kernel.nodes, id.0 as usize, &mut needed);
    }
    let read = reads_needed(&kernel, &needed);
    let renumber = |kept: &[bool]| {
        let below = |i: usize| kept[..i].iter().filter(|k| **k).count() as u32;
        (0..kept.len()).map(below).collect::<Vec<u32>>()
    };
    let (node_ids, input_ids) = (renumber(&needed), renumber(&read));
    let at = |id: NodeId| NodeId(node_ids[id.0 as usize]);
    let input = |id: InputId| InputId(input_ids[id.0 as usize]);
    let kept = kernel.nodes.iter().zip(&needed).filter(|(_, needed)| **needed);
    kernel.nodes = kept.map(|(node, _)| rename(node, &at, &input)).collect();
    let keep = |i: &usize| read[*i];
    let places = (0..places.len()).filter(keep).map(|i| places[i]).collect();
    let bound = |read: &Read| Read { access: renamed(&read.access, &input), ..read.clone() };
    kernel.reads = (0..kernel.reads.len()).filter(keep).map(|i| bound(&kernel.reads[i])).collect();
    for write in &mut kernel.writes {
        write.what = match write.what {
            Target::Element(id) => Target::Element(at(id)),
            Target::Row(id) => Target::Row(at(id)),
            Target::ColumnSum(id) => Target::ColumnSum(at(id)),
        };
    }
    (kernel, places)
}

fn reads_needed(kernel: &RowKernel, needed: &[bool]) -> Vec<bool> {
    let mut read = vec![false; kernel.reads.len()];
    for (node, _) in kernel.nodes.iter().zip(needed).filter(|(_, needed)| **needed) {
        if let Node::Load(id) | Node::LoadAt(id, _) | Node::Uniform { rng: id, .. } = node {
            read[id.0 as usize] = true;
            if let Some(RowMap::Gather(ids)) = row_map(&kernel.reads[id.0 as usize].access) {
                read[ids.0 as usize] = true;
            }
        }
    }
    read
}

/// An access with its ids operand renumbered.
fn renamed(access: &Access, input: &dyn Fn(InputId) -> InputId) -> Access {
    let map = |map: &RowMap| match map {
        RowMap::Gather(ids) => RowMap::Gather(input(*ids)),
        RowMap::Affine { .. } => map.clone(),
    };
    match access {
        Access::Element(m) => Access::Element(map(m)),
        Access::HalfRotated(m) => Access::HalfRotated(map(m)),
        Access::Row(m) => Access::Row(map(m)),
        Access::Table(m) => Access::Table(map(m)),
        Access::Scalar => Access::Scalar,
    }
}

/// A node with its operands renumbered.
fn rename(node: &Node, at: &dyn Fn(NodeId) -> NodeId, input: &dyn Fn(InputId) -> InputId) -> Node {
    match node {
        Node::Load(id) => Node::Load(input(*id)),
        Node::LoadAt(id, col) => Node::LoadAt(input(*id), at(*col)),
        Node::Unary(f, a) => Node::Unary(*f, at(*a)),
        Node::Binary(f, a, b) => Node::Binary(*f, at(*a), at(*b)),
        Node::Select(c, a, b) => Node::Select(at(*c), at(*a), at(*b)),
        Node::Reduce(f, a) => Node::Reduce(*f, at(*a)),
        Node::Uniform { rng, site, sample_elements } => {
            Node::Uniform { rng: input(*rng), site: *site, sample_elements: *sample_elements }
        }
        Node::Const(_) | Node::ConstInt(_) | Node::Column => node.clone(),
    }
}

fn mark(nodes: &[Node], i: usize, needed: &mut [bool]) {
    if std::mem::replace(&mut needed[i], true) {
        return;
    }
    let operands = match &nodes[i] {
        Node::LoadAt(_, a) | Node::Unary(_, a) | Node::Reduce(_, a) => vec![*a],
        Node::Binary(_, a, b) => vec![*a, *b],
        Node::Select(c, a, b) => vec![*c, *a, *b],
        Node::Load(_) | Node::Const(_) | Node::ConstInt(_) | Node::Column | Node::Uniform { .. } => vec![],
    };
    for id in operands {
        mark(nodes, id.0 as usize, needed);
    }
}

/// `add_layer_norm`: the ops' names, the first three.
fn stem(ops: &[&OpNode]) -> String {
    let mut names: Vec<&str> = vec![];
    for op in ops {
        if names.last() != Some(&op.op.name()) {
            names.push(op.op.name());
        }
    }
    names.truncate(3);
    names.join("_")
}
