//! Which tiles a block visits: a table in global memory, made from the mask when the kernel is written.
//!
//! A row a tile that blocks own, most visits first: the tile, where its visits begin in the table, how many of them need the mask's
//! predicate, how many there are. Visits that need it come first. A tile that the mask leaves without any visits one, whose predicate
//! holds nowhere: results are then written as everywhere else. Where keys are owned, each query head that shares them is visited; such a
//! visit's number holds the head's in its upper bits.

use crate::mask::{Class, classify};
use dspc_kernel::describe::AttentionKernel;
use std::fmt::Write;

/// Numbers of a row.
pub(super) const ROW: u64 = 4;

/// Bits of a visit's number below the head's.
pub(super) const HEAD: u32 = 20;

/// The table.
pub(super) struct Visits {
    /// Tiles that are owned.
    pub owners: u64,
    /// Whether any visit needs the predicate.
    pub any_partial: bool,
    numbers: Vec<u32>,
}

/// Whose tiles are owned; the other side's are visited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    Queries,
    Keys,
}

impl Visits {
    /// For tiles of these sizes.
    pub fn new(kernel: &AttentionKernel, query_tile: u64, key_tile: u64, owner: Owner) -> Self {
        let (queries, keys) = (kernel.queries, kernel.keys);
        let classes = classify(&kernel.mask, queries, keys, query_tile, key_tile);
        let (rows, cols) = (queries.div_ceil(query_tile) as usize, keys.div_ceil(key_tile) as usize);
        let (owners, others) = if owner == Owner::Queries { (rows, cols) } else { (cols, rows) };
        let class = |own: usize, other: usize| match owner {
            Owner::Queries => classes[own * cols + other],
            Owner::Keys => classes[other * cols + own],
        };
        let heads = if owner == Owner::Keys { (kernel.heads / kernel.kv_heads) as usize } else { 1 };
        let mut lists: Vec<(usize, Vec<usize>, usize)> = (0..owners)
            .map(|own| {
                let of = |wanted: Class| {
                    let of_head = move |other: &usize| class(own, *other) == wanted;
                    (0..heads).flat_map(move |head| {
                        (0..others).filter(of_head).map(move |other| head << HEAD | other)
                    })
                };
                let mut list: Vec<usize> = of(Class::Partial).collect();
                let mut partial = list.len();
                list.extend(of(Class::Full));
                if list.is_empty() {
                    (list, partial) = (vec![0], 1);
                }
                (own, list, partial)
            })
            .collect();
        lists.sort_by_key(|(_, list, _)| std::cmp::Reverse(list.len()));
        let any_partial = lists.iter().any(|(.., partial)| *partial > 0);
        let mut numbers = vec![];
        let mut begin = owners * ROW as usize;
        for (own, list, partial) in &lists {
            numbers.extend([*own, begin, *partial, list.len()].map(|n| n as u32));
            begin += list.len();
        }
        numbers.extend(lists.iter().flat_map(|(_, list, _)| list.iter().map(|&other| other as u32)));
        Visits { owners: owners as u64, any_partial, numbers }
    }

    /// As a global.
    pub fn text(&self, symbol: &str) -> String {
        let mut list = String::new();
        for number in &self.numbers {
            for byte in number.to_le_bytes() {
                let _ = write!(list, "{byte:02X}");
            }
        }
        let n = self.numbers.len();
        format!(
            "  llvm.mlir.global internal constant @{symbol}(dense<\"0x{list}\"> : tensor<{n}xi32>) {{addr_space = 1 : i32, alignment = 16 : i64}} : !llvm.array<{n} x i32>\n"
        )
    }
}
