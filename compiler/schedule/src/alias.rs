//! Writing in place: an element-wise result takes the memory of an operand that nobody needs again.
//!
//! Reads   an entry's steps and lifetimes.
//! Writes  which storages are one; their joint lifetime.
//! Keeps   every value: the element is written by the item that read it, in the last pass over the row.
//! Cost    one walk over the steps.

use std::collections::BTreeMap;

use dspc_graph::rowfn::{Access, Node, NodeId, RowMap};
use dspc_kernel::describe::{Kernel, RowKernel, Target};
use dspc_kernel::steps::{Kernels, Launch, Place, Step, Storage, StorageId, StorageKind};

use crate::lifetime::Lifetime;

/// Storages that share memory: each to the one whose memory it uses.
pub(crate) struct Aliases {
    to: BTreeMap<StorageId, StorageId>,
}

impl Aliases {
    pub fn root(&self, id: StorageId) -> StorageId {
        self.to.get(&id).map_or(id, |&next| self.root(next))
    }
}

/// Joins what can be joined; `lives` then holds the roots' joint lifetimes alone.
pub(crate) fn reuse_in_place(
    kernels: &Kernels,
    steps: &[Step],
    lives: &mut BTreeMap<StorageId, Lifetime>,
) -> Aliases {
    let mut aliases = Aliases { to: BTreeMap::new() };
    let mut next = 0;
    walk(kernels, steps, &mut next, lives, &mut aliases);
    aliases
}

fn walk(
    kernels: &Kernels,
    steps: &[Step],
    next: &mut u32,
    lives: &mut BTreeMap<StorageId, Lifetime>,
    aliases: &mut Aliases,
) {
    for step in steps {
        let launch = match step {
            Step::Loop(inner) => {
                walk(kernels, &inner.body, next, lives, aliases);
                continue;
            }
            Step::Launch(launch) => Some(launch),
            Step::Gemm(gemm) => gemm.epilogue.as_ref(),
            Step::Zero(..) | Step::Collective(_) | Step::Only(..) => None,
        };
        if let Some(launch) = launch {
            join(kernels, step, launch, *next, lives, aliases);
        }
        *next += 1;
    }
}

fn join(
    kernels: &Kernels,
    step: &Step,
    launch: &Launch,
    at: u32,
    lives: &mut BTreeMap<StorageId, Lifetime>,
    aliases: &mut Aliases,
) {
    let Kernel::Row(kernel) = &kernels.kernels[launch.kernel.0 as usize].kernel else { return };
    let levels = levels(kernel);
    let last = levels.iter().copied().max().unwrap_or(0);
    let all = step.places();
    let (reads, writes) = launch.operands.split_at(kernel.reads.len());
    for (write, to) in kernel.writes.iter().zip(writes) {
        let Target::Element(node) = write.what else { continue };
        if levels[node.0 as usize] < last || sums_or_looks_up(kernel) {
            continue;
        }
        let candidate = kernel.reads.iter().zip(reads).find(|(read, from)| {
            let alike = read.access == Access::Element(RowMap::EACH) && read.stride == write.stride && read.dtype == write.dtype;
            let operand_of_product = matches!(step, Step::Gemm(g) if [g.a.place, g.b.place].iter().any(|p| p.storage == from.storage));
            let once = all.iter().filter(|p| p.storage == from.storage).count() == if is_result(step, from) { 2 } else { 1 };
            alike && once && !operand_of_product && whole(kernels, from) && whole(kernels, to) && same_size(kernels, from, to)
        });
        let Some((_, from)) = candidate else { continue };
        let (from, to) = (aliases.root(from.storage), to.storage);
        let (Some(&old), Some(&new)) = (lives.get(&from), lives.get(&to)) else { continue };
        if old.last == at && new.first == at && !aliases.to.contains_key(&to) && from != to {
            aliases.to.insert(to, from);
            lives.remove(&to);
            lives.insert(from, old.with(new));
        }
    }
}

/// The product's result, which the epilogue reads.
fn is_result(step: &Step, place: &Place) -> bool {
    matches!(step, Step::Gemm(g) if g.c.place == *place)
}

/// How many reductions stand, one behind the other, before each node: the pass over the row in which it is known. What is written in the last pass is
/// written when every operand's element has been read for the last time.
fn levels(kernel: &RowKernel) -> Vec<u32> {
    let mut levels: Vec<u32> = vec![];
    for node in &kernel.nodes {
        let of = |id: &NodeId| levels[id.0 as usize];
        levels.push(match node {
            Node::Reduce(_, a) => of(a) + 1,
            Node::Unary(_, a) | Node::LoadAt(_, a) => of(a),
            Node::Binary(_, a, b) => of(a).max(of(b)),
            Node::Select(c, a, b) => of(c).max(of(a)).max(of(b)),
            Node::Load(_) | Node::Const(_) | Node::ConstInt(_) | Node::Column | Node::Uniform { .. } => 0,
        });
    }
    levels
}

/// A column sum may take blocks of columns one after the other; a look-up reads elements of other columns.
fn sums_or_looks_up(kernel: &RowKernel) -> bool {
    let looks_up = kernel.nodes.iter().any(|n| matches!(n, Node::LoadAt(..)));
    looks_up || kernel.writes.iter().any(|w| matches!(w.what, Target::ColumnSum(_)))
}

fn storage<'a>(kernels: &'a Kernels, place: &Place) -> &'a Storage {
    &kernels.storages[place.storage.0 as usize]
}

/// The place is all of a storage that shares memory with nothing else.
fn whole(kernels: &Kernels, place: &Place) -> bool {
    let storage = storage(kernels, place);
    let whole = storage.within.is_none() && storage.slots == 1 && place.offset == 0;
    storage.kind == StorageKind::Activation && whole
}

fn same_size(kernels: &Kernels, a: &Place, b: &Place) -> bool {
    storage(kernels, a).elements == storage(kernels, b).elements
}
