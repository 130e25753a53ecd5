//! What the kernel layer yields: steps over storages, before any byte offset is known.

use dspc_graph::ir::{DType, ParamId, Table};
use dspc_program::{Family, When};

use crate::describe::Kernel;

/// Index in [`Kernels::storages`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct StorageId(pub u32);

/// Index in [`Kernels::kernels`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct KernelIndex(pub u32);

/// The kernel layer's result: distinct kernels, storages, and the programs over them.
#[derive(Clone, Debug, Default)]
pub struct Kernels {
    /// The spec's name.
    pub name: String,
    /// The kind of device they are for.
    pub family: Family,
    /// Distinct kernels, in the order of their first use.
    pub kernels: Vec<NamedKernel>,
    /// All storages.
    pub storages: Vec<Storage>,
    /// One optimizer step.
    pub train: Vec<Step>,
    /// The loss of one micro-batch.
    pub evaluate: Vec<Step>,
    /// The logits of one sequence.
    pub logits: Vec<Step>,
    /// Parameters as ops read them, from masters that were set from outside.
    pub refresh: Vec<Step>,
    /// Where each parameter and its moments lie.
    pub params: Vec<ParamPlace>,
}

/// Where what training changes of a parameter lies: of the masters where there are any.
#[derive(Clone, PartialEq, Debug)]
pub struct ParamPlace {
    /// Which.
    pub param: ParamId,
    /// Its storage, a slot a turn; that of its class where ranks share it out.
    pub at: ShardedPlace,
    /// Rows of the grid of gradients before its first turn's.
    pub grid_row: u64,
    /// Rows of the grid from one turn to the next.
    pub grid_rows: u64,
    /// The optimizer's.
    pub moments: Vec<MomentPlace>,
}

/// Where something lies that the optimizer keeps for a parameter.
#[derive(Clone, PartialEq, Debug)]
pub struct MomentPlace {
    /// What PyTorch calls it: `exp_avg`.
    pub name: String,
    /// Of one turn, outermost first.
    pub dims: Vec<u64>,
    /// Its storage, a slot a turn.
    pub at: ShardedPlace,
}

/// A tensor in a storage of its own shape, or in a rank's shard of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShardedPlace {
    /// Which storage.
    pub storage: StorageId,
    /// Elements of a shard, and of the range before the tensor.
    pub shard: Option<(u64, u64)>,
}

/// A kernel and the words it was named after.
#[derive(Clone, Debug)]
pub struct NamedKernel {
    /// A readable stem, made from the ops fused in it: `add_layer_norm`.
    pub stem: String,
    /// What it does.
    pub kernel: Kernel,
}

/// Memory that one thing fills: `slots` pieces of `elements` each.
#[derive(Clone, PartialEq, Debug)]
pub struct Storage {
    /// For people; unique.
    pub name: String,
    /// Of its elements.
    pub dtype: DType,
    /// Elements of a slot.
    pub elements: u64,
    /// Pieces: turns of a repeat, or micro-batches.
    pub slots: u64,
    /// What it is for.
    pub kind: StorageKind,
    /// A range of another storage: elements into its first slot, and from one slot to the next.
    pub within: Option<Within>,
}

/// A storage as a range of another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Within {
    /// The other.
    pub storage: StorageId,
    /// Elements before the first slot.
    pub offset: u64,
    /// Elements from one slot to the next.
    pub stride: u64,
}

/// What a storage is for: where the schedule puts it and what the runtime does with it.
#[derive(Clone, PartialEq, Debug)]
pub enum StorageKind {
    /// Lives inside one entry; shares memory with others.
    Activation,
    /// A group of parameters, flat.
    Parameters,
    /// A group of f32 masters, flat, where the parameters are of another type.
    Masters,
    /// One parameter in its group: of the masters where there are any.
    Param(ParamId),
    /// A rank's shards of a class of parameters that are their own masters.
    ParamShards,
    /// A rank's shards of a class of masters.
    MasterShards,
    /// A group of gradients, flat, or one in it.
    Gradients,
    /// A range of first or second moments.
    Moments,
    /// One parameter's in it.
    MomentPart,
    /// Filled by the runtime before a step.
    Tokens,
    /// Likewise.
    Targets,
    /// Likewise.
    InvTargets,
    /// Likewise.
    Rng,
    /// Steps applied so far.
    AppliedSteps,
    /// The loss's own gradient, in half precision where it adapts.
    LossScale {
        /// First value.
        start: f64,
    },
    /// Clean steps since the last overflow or doubling of the loss scale; begins at 0.
    CleanSteps,
    /// Overflows left before the loss scale halves.
    Hysteresis {
        /// First value.
        full: i32,
    },
    /// 1 after an overflow that ends the run.
    ScaleExhausted,
    /// The first row of the grid of gradients whose squares have no finite sum, −1 for none.
    FirstBad,
    /// Read by the runtime after a step.
    Loss,
    /// Likewise.
    GradNorm,
    /// Likewise.
    Finite,
    /// Read by generation.
    Logits,
    /// A formula's values.
    Table(TableKind),
    /// Small values of the optimizer step.
    State,
}

/// Formulas that the runtime evaluates once.
#[derive(Clone, PartialEq, Debug)]
pub enum TableKind {
    /// Learning rate by applied step.
    LearningRate,
    /// 1 − βᵗ⁺¹ by applied step.
    BiasCorrection(f64),
    /// 1 − (t + 1)^−power by applied step.
    Decay(f64),
    /// One number everywhere.
    Constant(f64),
    /// A table of the graph, with its columns.
    Graph(Table, u64),
}

/// An address in a storage: slot = (add + turn + micro-batch) mod slots, then elements.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Place {
    /// Which storage.
    pub storage: StorageId,
    /// Added to the slot.
    pub add: u64,
    /// The slot follows the turn.
    pub turn: bool,
    /// The slot follows the micro-batch.
    pub micro: bool,
    /// Elements into the slot.
    pub offset: u64,
    /// The rank's own of equal shards, of so many elements, of what lies there.
    pub shard: Option<u64>,
}

impl Place {
    /// The start of a storage's first slot.
    pub fn start(storage: StorageId) -> Self {
        Self { storage, add: 0, turn: false, micro: false, offset: 0, shard: None }
    }
}

/// A step.
#[derive(Clone, PartialEq, Debug)]
#[expect(clippy::large_enum_variant, reason = "a program has hundreds of steps")]
pub enum Step {
    /// A kernel on its operands, reads first.
    Launch(Launch),
    /// A library matrix product.
    Gemm(Gemm),
    /// Zeroes a slot.
    Zero(Place, String),
    /// Ranks exchange data.
    Collective(Collective),
    /// A step of some turns alone; not a loop.
    Only(When, Box<Step>),
    /// A block, again and again.
    Loop(Loop),
}

impl Step {
    /// All operands, reads first; those of a loop's body.
    pub fn places(&self) -> Vec<Place> {
        match self {
            Step::Launch(launch) => launch.operands.clone(),
            Step::Gemm(gemm) => gemm.places(),
            Step::Zero(place, _) => vec![*place],
            Step::Collective(collective) => {
                let (from, to) =
                    (collective.parts.iter().map(|p| p.from), collective.parts.iter().map(|p| p.to));
                from.chain(to).collect()
            }
            Step::Only(_, step) => step.places(),
            Step::Loop(inner) => inner.body.iter().flat_map(Step::places).collect(),
        }
    }
}

/// What the ranks of the data axis tell one another.
#[derive(Clone, PartialEq, Debug)]
pub struct Collective {
    /// What.
    pub kind: CollectiveKind,
    /// Ranges that travel together.
    pub parts: Vec<Part>,
    /// For people.
    pub origin: String,
}

/// Kinds of collectives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CollectiveKind {
    /// Every rank gets its shard of the sum.
    ReduceScatter {
        /// Adds a shard of every rank.
        sum: KernelIndex,
        /// In that kernel's order.
        tree: bool,
    },
    /// Every rank gets all shards.
    AllGather,
}

/// A range of a collective.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// Read.
    pub from: Place,
    /// Written.
    pub to: Place,
    /// Elements of one shard.
    pub elements: u64,
}

impl Step {
    /// Changes every operand, those of a loop's body too.
    pub(crate) fn change_places(&mut self, change: &mut dyn FnMut(&mut Place)) {
        match self {
            Step::Launch(launch) => launch.operands.iter_mut().for_each(change),
            Step::Gemm(gemm) => gemm.change_places(change),
            Step::Zero(place, _) => change(place),
            Step::Collective(collective) => {
                collective.parts.iter_mut().flat_map(|p| [&mut p.from, &mut p.to]).for_each(change);
            }
            Step::Only(_, step) => step.change_places(change),
            Step::Loop(inner) => inner.body.iter_mut().for_each(|step| step.change_places(change)),
        }
    }
}

impl Gemm {
    fn change_places(&mut self, change: &mut dyn FnMut(&mut Place)) {
        for matrix in [&mut self.a, &mut self.b, &mut self.c] {
            change(&mut matrix.place);
        }
        match &mut self.fused {
            None => {}
            Some(Fused::Bias { bias: row } | Fused::BiasGradient { sum: row }) => change(row),
            Some(Fused::BiasGelu { bias, pre }) => {
                change(bias);
                change(&mut pre.place);
            }
            Some(Fused::GeluGradient { pre }) => change(&mut pre.place),
        }
        self.own.iter_mut().flat_map(|own| own.workspace.as_mut()).for_each(&mut *change);
        self.epilogue.iter_mut().flat_map(|launch| launch.operands.iter_mut()).for_each(change);
    }
}

/// A kernel and its operands.
#[derive(Clone, PartialEq, Debug)]
pub struct Launch {
    /// Which.
    pub kernel: KernelIndex,
    /// Reads, then writes.
    pub operands: Vec<Place>,
    /// For people.
    pub origin: String,
}

/// `c = op(a) · op(b) [+ c]`, then the epilogue on each block of c's rows.
#[derive(Clone, PartialEq, Debug)]
pub struct Gemm {
    /// Rows of c.
    pub m: u64,
    /// Columns of c.
    pub n: u64,
    /// Summed.
    pub k: u64,
    /// Left.
    pub a: Matrix,
    /// Right.
    pub b: Matrix,
    /// Result.
    pub c: Matrix,
    /// Add to what c holds.
    pub accumulate: bool,
    /// What the product's own kernel does besides; on a GPU only.
    pub fused: Option<Fused>,
    /// A kernel of ours that does the same; on a GPU only.
    pub own: Option<Own>,
    /// A row kernel over the same rows.
    pub epilogue: Option<Launch>,
    /// For people.
    pub origin: String,
}

impl Gemm {
    /// Its operands: factors, the result, those of what it does besides, a workspace, and the epilogue's.
    fn places(&self) -> Vec<Place> {
        let matrices = [self.a.place, self.b.place, self.c.place];
        let fused = self.fused.iter().flat_map(Fused::places);
        let workspace = self.own.iter().flat_map(|own| own.workspace);
        let epilogue = self.epilogue.iter().flat_map(|launch| launch.operands.iter().copied());
        matrices.into_iter().chain(fused).chain(workspace).chain(epilogue).collect()
    }
}

/// What a matrix product's kernel does before it stores.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Fused {
    /// `c = a · b + bias`
    Bias {
        /// A row.
        bias: Place,
    },
    /// `pre = a · b + bias; c = gelu(pre)`
    BiasGelu {
        /// A row.
        bias: Place,
        /// Written, as c is laid out.
        pre: Matrix,
    },
    /// `c = (a · b) ∘ gelu′(pre)`
    GeluGradient {
        /// Read, as c is laid out.
        pre: Matrix,
    },
    /// `sum[j] = Σ over the summed dim of b[·, j]`
    BiasGradient {
        /// A row, written.
        sum: Place,
    },
}

impl Fused {
    /// Its operands, in their order.
    pub fn places(&self) -> Vec<Place> {
        match self {
            Fused::Bias { bias } => vec![*bias],
            Fused::BiasGelu { bias, pre } => vec![*bias, pre.place],
            Fused::GeluGradient { pre } => vec![pre.place],
            Fused::BiasGradient { sum } => vec![*sum],
        }
    }
}

/// Our own kernel for a matrix product. Its operands: a, b, c, those of [`Gemm::fused`], the workspace.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Own {
    /// Which.
    pub kernel: KernelIndex,
    /// f32, where the kernel needs one.
    pub workspace: Option<Place>,
}

/// An operand of a matrix product.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Matrix {
    /// First element.
    pub place: Place,
    /// Elements from one stored row to the next.
    pub stride: u64,
    /// Stored the other way round.
    pub transposed: bool,
}

/// A repeated block.
#[derive(Clone, PartialEq, Debug)]
pub struct Loop {
    /// The repeat's name; `micro-batch` for the accumulation loop.
    pub name: String,
    /// Whether it counts micro-batches (else turns).
    pub micro: bool,
    /// How often.
    pub count: u64,
    /// From the last to the first.
    pub reverse: bool,
    /// The block.
    pub body: Vec<Step>,
}
