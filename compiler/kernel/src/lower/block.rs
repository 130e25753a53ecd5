//! A block: where its values go, then its units in order.

use dspc_graph::form::{Attention, Form};
use dspc_graph::ir::{Block, DType, OpNode, Step as GraphStep, ValueId};
use dspc_program::Family;

use super::{Lowering, Site};
use crate::absorb::Absorbed;
use crate::describe::{AttentionKernel, Kernel, ScatterAddKernel};
use crate::fuse::{Unit, form_of, fuse, outputs_of};
use crate::locate::Location;
use crate::steps::{Fused, Gemm, Launch, Matrix, Place, Step, StorageKind};

impl Lowering<'_> {
    pub(super) fn lower_block(&mut self, block: &Block) -> Vec<Step> {
        self.place_gradients(block);
        for step in &block.steps {
            if let GraphStep::Repeat(repeat) = step {
                self.place_carried(repeat, &block.steps);
            }
        }
        self.place_parts(block);
        let form = |step: &GraphStep| match step {
            GraphStep::Op(node) => Some(form_of(self.graph, node)),
            GraphStep::Repeat(_) => None,
        };
        let forms: Vec<Option<Form>> = block.steps.iter().map(form).collect();
        let mut steps = vec![];
        for unit in fuse(self.graph, block, &forms, &self.uses, self.pool.family) {
            steps.extend(self.lower_unit(block, &unit));
        }
        steps.extend(self.add_moved_gradients(block));
        steps
    }

    /// Gradients that an op of this block writes for nobody else go straight to the parameter's gradient.
    fn place_gradients(&mut self, block: &Block) {
        for value in block.steps.iter().flat_map(outputs_of) {
            let Some(&param) = self.contributions.get(&value) else { continue };
            let writes = self
                .sites
                .get(&value)
                .is_some_and(|s| s.writes() || !matches!(s.form, Form::View(_) | Form::Pad { .. }));
            if writes && !self.uses.contains_key(&value) && !self.locations.contains_key(&value) {
                let turn = self.graph.param(param).turns.is_some();
                let place = Place { turn, ..Place::start(self.state.gradients[param.0 as usize]) };
                self.locations.insert(value, Location::dense(place, &self.dims(value)));
                self.in_place.insert(value);
            }
        }
    }

    /// Parts of a concat are written into it. Backwards, so that a concat of concats works out.
    fn place_parts(&mut self, block: &Block) {
        for step in block.steps.iter().rev() {
            let GraphStep::Op(node) = step else { continue };
            let Form::Concat { dim } = form_of(self.graph, node) else { continue };
            let whole = self.locate(node.outputs[0]);
            let mut start = 0;
            for &part in &node.inputs {
                let dims = self.dims(part);
                let at = whole.slice(dim, start, dims[dim]);
                start += dims[dim];
                if at.row_stride(*dims.last().unwrap_or(&1)).is_some() && self.yields_elements(part) {
                    self.place(&block.steps, part, at);
                }
            }
        }
    }

    fn yields_elements(&self, value: ValueId) -> bool {
        match self.sites.get(&value) {
            Some(Site { form: Form::Row(f), result, .. }) => {
                let cols = *self.dims(value).last().unwrap_or(&1);
                matches!(f.outputs[*result], dspc_graph::rowfn::Yield::Element(_)) && f.cols == cols
            }
            Some(site) => site.writes(),
            None => false,
        }
    }

    /// Gradients that lie elsewhere (a view, a value with other readers, a repeat's result) are added where they belong.
    fn add_moved_gradients(&mut self, block: &Block) -> Vec<Step> {
        let mut steps = vec![];
        for value in block.steps.iter().flat_map(outputs_of) {
            let Some(&param) = self.contributions.get(&value) else { continue };
            if self.in_place.contains(&value) {
                continue;
            }
            let turn = self.graph.param(param).turns.is_some();
            let place = Place { turn, ..Place::start(self.state.gradients[param.0 as usize]) };
            let to = Location::dense(place, &self.dims(value));
            let accumulate = !self.begin(param);
            steps.extend(self.copy_to(value, &to, accumulate));
        }
        steps
    }

    fn lower_unit(&mut self, block: &Block, unit: &Unit) -> Vec<Step> {
        let node = |i: &usize| match &block.steps[*i] {
            GraphStep::Op(node) => Some(node),
            GraphStep::Repeat(_) => None,
        };
        let steps = match unit {
            Unit::Rows(ops) => self.lower_rows(&ops.iter().filter_map(node).collect::<Vec<_>>(), false),
            Unit::Contract { op, epilogue, absorbed } => match node(op) {
                Some(product) => {
                    let epilogue: Vec<&OpNode> = epilogue.iter().filter_map(node).collect();
                    self.lower_contract(block, product, &epilogue, *absorbed)
                }
                None => vec![],
            },
            Unit::Alone(i) => match &block.steps[*i] {
                GraphStep::Repeat(repeat) => self.lower_repeat(repeat),
                GraphStep::Op(node) => self.lower_alone(node),
            },
        };
        let mut all = std::mem::take(&mut self.pending);
        all.extend(steps);
        all
    }

    /// Whether what is written to a value's place is added: a gradient's second term.
    pub(super) fn adds(&mut self, value: ValueId) -> bool {
        match self.contributions.get(&value).copied() {
            Some(param) if self.in_place.contains(&value) => !self.begin(param),
            _ => false,
        }
    }

    fn matrix(&mut self, value: ValueId, transpose: bool) -> Matrix {
        let location = self.locate(value);
        let matrix = location.matrix().or_else(|| self.copy(value).matrix());
        let matrix = matrix.unwrap_or(Matrix { place: location.place, stride: 1, transposed: false });
        Matrix { transposed: matrix.transposed != transpose, ..matrix }
    }

    fn lower_contract(
        &mut self,
        block: &Block,
        node: &OpNode,
        epilogue: &[&OpNode],
        absorbed: Absorbed,
    ) -> Vec<Step> {
        let Form::Contract { transpose_a, transpose_b } = form_of(self.graph, node) else { return vec![] };
        let (a, b) = (node.inputs[0], node.inputs[1]);
        let ty = self.graph.ty(a);
        let (m, k) = if transpose_a { (ty.cols(), ty.rows()) } else { (ty.rows(), ty.cols()) };
        let b_ty = self.graph.ty(b);
        let n = if transpose_b { b_ty.rows() } else { b_ty.cols() };
        let factors = [self.matrix(a, transpose_a), self.matrix(b, transpose_b)];
        let mut after = vec![];
        let (c, fused) = self.fused(block, node, absorbed, &mut after);
        let accumulate = self.adds(c);
        let matrices = [factors[0], factors[1], self.matrix(c, false)];
        let ([m, n, k], [a, b, c]) = self.pad_product([a, b, c], [m, n, k], matrices);
        let mut steps = std::mem::take(&mut self.pending);
        let epilogue = (!epilogue.is_empty()).then(|| {
            let mut lowered = self.lower_rows(epilogue, true);
            let at = lowered.iter().position(|s| matches!(s, Step::Launch(_))).unwrap_or(0);
            after = lowered.split_off(at + 1);
            let launch = lowered.pop();
            steps.append(&mut lowered);
            launch
        });
        let epilogue = match epilogue.flatten() {
            Some(Step::Launch(launch)) => Some(launch),
            _ => None,
        };
        steps.append(&mut std::mem::take(&mut self.pending));
        let origin = node.origin.clone();
        steps.push(Step::Gemm(Gemm { m, n, k, a, b, c, accumulate, fused, own: None, epilogue, origin }));
        steps.extend(after);
        steps
    }

    /// What a product's result is with what the product does besides; `after` gets what must follow it.
    fn fused(
        &mut self,
        block: &Block,
        product: &OpNode,
        absorbed: Absorbed,
        after: &mut Vec<Step>,
    ) -> (ValueId, Option<Fused>) {
        let node = |i: usize| match &block.steps[i] {
            GraphStep::Op(node) => node,
            GraphStep::Repeat(_) => product,
        };
        let bias = |this: &mut Self, add: &OpNode| {
            let bias = add.inputs.iter().find(|v| **v != product.outputs[0]);
            this.locate(*bias.unwrap_or(&product.outputs[0])).place
        };
        match absorbed {
            Absorbed::Nothing => (product.outputs[0], None),
            Absorbed::Bias { add } => {
                let bias = bias(self, node(add));
                (node(add).outputs[0], Some(Fused::Bias { bias }))
            }
            Absorbed::BiasGelu { add, gelu } => {
                let (bias, pre) = (bias(self, node(add)), self.matrix(node(add).outputs[0], false));
                (node(gelu).outputs[0], Some(Fused::BiasGelu { bias, pre }))
            }
            Absorbed::GeluGradient { slope } => {
                let pre = self.matrix(node(slope).inputs[0], false);
                (node(slope).outputs[0], Some(Fused::GeluGradient { pre }))
            }
            Absorbed::BiasGradient { sum } => {
                let sum = self.bias_sum(node(sum), after);
                (product.outputs[0], Some(Fused::BiasGradient { sum }))
            }
        }
    }

    /// Where a product writes a bias' gradient: a row that is then added, where the gradient holds a term already.
    fn bias_sum(&mut self, node: &OpNode, after: &mut Vec<Step>) -> Place {
        let value = node.outputs[0];
        let to = self.locate(value);
        if !self.adds(value) {
            return to.place;
        }
        let row = self.fresh(value, false);
        let dtype = self.graph.ty(value).dtype;
        after.extend(self.copy_steps(&row, &to, dtype, true));
        row.place
    }

    fn lower_alone(&mut self, node: &OpNode) -> Vec<Step> {
        match form_of(self.graph, node) {
            Form::Attention(form) => self.lower_attention(node, &form, false),
            Form::AttentionBackward(form) => self.lower_attention(node, &form, true),
            Form::Concat { dim } => self.lower_concat(node, dim),
            Form::Pad { dim, start } => {
                let whole = self.locate(node.outputs[0]);
                let size = self.dims(node.inputs[0])[dim];
                let mut steps = vec![Step::Zero(whole.place, node.origin.clone())];
                steps.extend(self.copy_to(node.inputs[0], &whole.slice(dim, start, size), false));
                steps
            }
            Form::ScatterAdd => self.lower_scatter_add(node),
            Form::Row(_) | Form::Contract { .. } | Form::View(_) => vec![],
        }
    }

    fn lower_concat(&mut self, node: &OpNode, dim: usize) -> Vec<Step> {
        let whole = self.locate(node.outputs[0]);
        let mut start = 0;
        let mut steps = vec![];
        for &part in &node.inputs {
            let size = self.dims(part)[dim];
            let to = whole.slice(dim, start, size);
            start += size;
            if self.locate(part) != to {
                steps.extend(self.copy_to(part, &to, false));
            }
        }
        steps
    }

    fn lower_attention(&mut self, node: &OpNode, form: &Attention, backward: bool) -> Vec<Step> {
        let (q, k) = (self.dims(node.inputs[0]), self.dims(node.inputs[1]));
        let statistics = |i: usize, reads: bool| if backward { reads && i == 4 } else { !reads && i == 1 };
        let mut operands = vec![];
        let mut strides = vec![];
        let all = node.inputs.iter().enumerate().map(|(i, v)| (*v, true, i));
        for (value, reads, i) in all.chain(node.outputs.iter().enumerate().map(|(i, v)| (*v, false, i))) {
            let mut location = self.locate(value);
            if !statistics(i, reads) {
                let cols = *location.dims.last().unwrap_or(&1);
                if location.row_stride(cols).is_none() && reads {
                    location = self.copy(value);
                }
                strides.push(location.row_stride(cols).unwrap_or(cols));
            }
            operands.push(location.place);
        }
        let dtype = self.graph.ty(node.inputs[0]).dtype;
        let kernel = AttentionKernel {
            batch: q[..q.len() - 2].iter().product(),
            heads: form.heads,
            kv_heads: form.kv_heads,
            head_dim: form.head_dim,
            queries: q[q.len() - 2],
            keys: k[k.len() - 2],
            dtype,
            tf32: self.pool.tf32 && dtype == DType::F32,
            scale: form.scale,
            mask: form.mask.clone(),
            strides,
        };
        if backward && self.pool.family == Family::Cuda {
            let elements = kernel.workspace_elements();
            let name = format!("{}attention.workspace", self.prefix);
            let workspace = self.pool.storage(&name, DType::F32, elements, 1, StorageKind::Activation);
            operands.push(Place::start(workspace));
        }
        let (stem, kernel) = if backward {
            ("attention_backward", Kernel::AttentionBackward(kernel))
        } else {
            ("attention", Kernel::Attention(kernel))
        };
        vec![Step::Launch(Launch {
            kernel: self.pool.kernel(stem, kernel),
            operands,
            origin: node.origin.clone(),
        })]
    }

    /// `out[ids] += x`, on zeros unless the gradient holds a term already.
    fn lower_scatter_add(&mut self, node: &OpNode) -> Vec<Step> {
        let (ids, x, out) = (node.inputs[0], node.inputs[1], node.outputs[0]);
        let adds = self.adds(out);
        let (ids_at, mut x_at, out_at) = (self.locate(ids), self.locate(x), self.locate(out));
        let ty = self.graph.ty(x);
        let (rows, cols, dtype) = (ty.rows(), ty.cols(), ty.dtype);
        if x_at.row_stride(cols).is_none() {
            x_at = self.copy(x);
        }
        let stride = x_at.row_stride(cols).unwrap_or(cols);
        let out_rows = self.graph.ty(out).rows();
        let kernel = self.pool.kernel(
            "scatter_add",
            Kernel::ScatterAdd(ScatterAddKernel { rows, cols, out_rows, dtype, stride }),
        );
        let operands = vec![ids_at.place, x_at.place, out_at.place];
        let launch = Step::Launch(Launch { kernel, operands, origin: node.origin.clone() });
        let zero = (!adds).then(|| Step::Zero(out_at.place, node.origin.clone()));
        zero.into_iter().chain([launch]).collect()
    }
}
