//! Absorption: which row ops a GPU's matrix product does itself, before it stores.
//!
//! Reads   a block, the forms of its ops, and how often each value is used.
//! Writes  for a product, by its number in the block, the ops that it does besides: a bias, a bias and GELU, GELU's gradient, a bias' gradient.
//! Keeps   every value's meaning. What is absorbed reads nothing that is made behind the product; a pre-activation that others read is still written.
//! Leaves  alone what the library has no kernel for: operands of mixed types, rows that do not begin on 16 bytes.
//! Cost    O(products × ops).

use std::collections::{BTreeMap, HashMap};

use dspc_graph::form::Form;
use dspc_graph::ir::{Block, Def, Graph, OpNode, Step, ValueId};
use dspc_graph::rowfn::{Access, RowMap};

/// Elements that rows with a saved activation are a multiple of.
const ROW_ELEMENTS: u64 = 8;

/// Rows that a bias gradient is summed over with its product, at least. The library's kernels that do so are slow below: on an H100 a
/// weight gradient over 256 rows of 1024 columns takes 18 µs with them, and 8 µs and 4 µs as a product and a sum of its own.
const SUMMED_ROWS_MIN: u64 = 4096;

/// What a product does besides. Numbers are indices into [`Block::steps`].
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) enum Absorbed {
    /// Nothing.
    #[default]
    Nothing,
    /// Adds a bias.
    Bias { add: usize },
    /// Adds a bias, keeps that, and takes GELU of it.
    BiasGelu { add: usize, gelu: usize },
    /// Multiplies with GELU's slope.
    GeluGradient { slope: usize },
    /// Sums the rows of its right operand.
    BiasGradient { sum: usize },
}

impl Absorbed {
    /// The ops that are absorbed.
    pub fn steps(self) -> impl Iterator<Item = usize> {
        let (one, two) = match self {
            Absorbed::Nothing => (None, None),
            Absorbed::Bias { add: one }
            | Absorbed::GeluGradient { slope: one }
            | Absorbed::BiasGradient { sum: one } => (Some(one), None),
            Absorbed::BiasGelu { add, gelu } => (Some(add), Some(gelu)),
        };
        one.into_iter().chain(two)
    }
}

/// What each product of a block does besides; products that do nothing more are left out.
pub(crate) fn absorb(
    graph: &Graph,
    block: &Block,
    forms: &[Option<Form>],
    uses: &HashMap<ValueId, u32>,
) -> BTreeMap<usize, Absorbed> {
    let absorption = Absorption { graph, block, forms, uses };
    let mut all = BTreeMap::new();
    for (index, form) in forms.iter().enumerate() {
        if let Some(Form::Contract { .. }) = form {
            all.extend(absorption.behind(index).map(|absorbed| (index, absorbed)));
        }
    }
    for (sum, step) in block.steps.iter().enumerate() {
        let beside = absorption.weight_gradient_beside(step, &all);
        if let Some(product) = beside.filter(|product| !all.contains_key(product)) {
            all.insert(product, Absorbed::BiasGradient { sum });
        }
    }
    all
}

struct Absorption<'a> {
    graph: &'a Graph,
    block: &'a Block,
    forms: &'a [Option<Form>],
    uses: &'a HashMap<ValueId, u32>,
}

impl Absorption<'_> {
    fn op(&self, index: usize) -> Option<&OpNode> {
        match &self.block.steps[index] {
            Step::Op(node) => Some(node),
            Step::Repeat(_) => None,
        }
    }

    /// What follows a product and is its result's only reader.
    fn behind(&self, product: usize) -> Option<Absorbed> {
        let value = self.op(product)?.outputs[0];
        if self.uses.get(&value) != Some(&1) {
            return None;
        }
        let reader = self.only_reader(value)?;
        if let Some(added) = self.bias_added(reader, value) {
            let gelu = self.readers(added).find(|&r| self.op(r).is_some_and(|n| n.op.name() == "gelu"));
            return Some(match gelu.filter(|_| self.rows_are_aligned(added)) {
                Some(gelu) => Absorbed::BiasGelu { add: reader, gelu },
                None => Absorbed::Bias { add: reader },
            });
        }
        let slope = self.is_gelu_gradient(reader, product, value) && self.rows_are_aligned(value);
        slope.then_some(Absorbed::GeluGradient { slope: reader })
    }

    fn readers(&self, value: ValueId) -> impl Iterator<Item = usize> {
        (0..self.block.steps.len()).filter(move |&i| self.op(i).is_some_and(|n| n.inputs.contains(&value)))
    }

    fn only_reader(&self, value: ValueId) -> Option<usize> {
        self.readers(value).next()
    }

    /// The result of an op that adds one of the parameters to every row of `value`.
    fn bias_added(&self, index: usize, value: ValueId) -> Option<ValueId> {
        let (node, Some(Form::Row(function))) = (self.op(index)?, &self.forms[index]) else { return None };
        if node.op.name() != "add" {
            return None;
        }
        let at = node.inputs.iter().position(|&v| v == value)?;
        let bias = *node.inputs.get(1 - at)?;
        let is_row = function.inputs[at] == Access::Element(RowMap::EACH)
            && function.inputs[1 - at] == Access::Element(RowMap::SAME);
        let is_param = matches!(self.graph.value(bias).def, Def::Param(_));
        let alike = self.same_type(&[value, bias, node.outputs[0]]);
        (is_row && is_param && alike).then_some(node.outputs[0])
    }

    fn is_gelu_gradient(&self, index: usize, product: usize, value: ValueId) -> bool {
        let Some(node) = self.op(index).filter(|n| n.op.name() == "gelu_backward") else { return false };
        let pre = node.inputs[0];
        let made_behind =
            self.block.steps[product..].iter().any(|s| crate::fuse::outputs_of(s).contains(&pre));
        node.inputs[1] == value
            && pre != value
            && !made_behind
            && self.same_type(&[value, pre, node.outputs[0]])
    }

    /// For a sum over rows that nobody here reads: the product over the same rows whose right operand it sums. A row op that makes the rows sums
    /// them for nothing.
    fn weight_gradient_beside(&self, step: &Step, absorbed: &BTreeMap<usize, Absorbed>) -> Option<usize> {
        let Step::Op(sum) = step else { return None };
        let out = sum.outputs[0];
        let is_sum = sum.op.name() == "sum_leading" && !self.uses.contains_key(&out);
        if !is_sum
            || self.graph.ty(sum.inputs[0]).rows() < SUMMED_ROWS_MIN
            || self.is_made_by_rows(sum.inputs[0], absorbed)
        {
            return None;
        }
        (0..self.block.steps.len()).find(|&index| {
            let contract = Form::Contract { transpose_a: true, transpose_b: false };
            self.forms[index].as_ref() == Some(&contract)
                && self.op(index).is_some_and(|product| {
                    product.inputs[1] == sum.inputs[0] && self.same_type(&[product.outputs[0], out])
                })
        })
    }

    fn is_made_by_rows(&self, value: ValueId, absorbed: &BTreeMap<usize, Absorbed>) -> bool {
        let maker = self.block.steps.iter().position(|s| crate::fuse::outputs_of(s).contains(&value));
        maker.is_some_and(|maker| {
            matches!(self.forms[maker], Some(Form::Row(_)))
                && !absorbed.values().any(|a| a.steps().any(|step| step == maker))
        })
    }

    fn same_type(&self, values: &[ValueId]) -> bool {
        values.windows(2).all(|pair| self.graph.ty(pair[0]).dtype == self.graph.ty(pair[1]).dtype)
    }

    fn rows_are_aligned(&self, value: ValueId) -> bool {
        self.graph.ty(value).cols().is_multiple_of(ROW_ELEMENTS)
    }
}
