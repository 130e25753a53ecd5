//! Block layouts: which inner tiles each outer tile meets, as data beside the kernel.
//!
//! A mask is asked when the kernel is compiled. Tiles without a pair are left out, tiles of all pairs run no predicate. Where every outer
//! tile meets neighbours only (full, causal, window), a block of threads reads one record, and tiles follow from it by arithmetic; else each
//! tile is read from a list. Outer tiles come longest first, so that the last blocks to start are the shortest.

use crate::mask::{Class, classify};
use crate::mlir::{Element, Function, INT, Order, Space, Type, Value};
use dspc_kernel::describe::AttentionKernel;
use std::fmt::Write;

/// Which positions are a block's own; it walks over the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::gpu) enum Outer {
    /// Queries: y and dq.
    Queries,
    /// Keys: dk and dv.
    Keys,
}

/// The layout of one kernel.
#[derive(Debug)]
pub(in crate::gpu) struct Blocks {
    symbol: String,
    rows: Vec<Row>,
    /// Of all rows, one after the other: tile × 2 + 1 if the predicate is needed. None where rows are runs.
    list: Option<Vec<u32>>,
}

/// What one outer tile meets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Row {
    tile: u32,
    /// The first inner tile, or where its part of the list begins.
    first: u32,
    count: u32,
    /// Of a run: the inner tiles without a predicate.
    full_first: u32,
    full_count: u32,
}

/// A block's walk over its inner tiles.
#[derive(Clone, Copy, Debug)]
pub(in crate::gpu) struct Walk {
    /// The outer tile.
    pub tile: Value,
    /// Inner tiles it meets.
    pub count: Value,
    path: Path,
}

#[derive(Clone, Copy, Debug)]
enum Path {
    Run { first: Value, full_first: Value, full_count: Value, partial: Partial },
    List { entries: Value },
}

/// Whether any tile of a layout needs the predicate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Partial {
    None,
    Some,
}

/// An inner tile.
#[derive(Clone, Copy, Debug)]
pub(in crate::gpu) struct Inner {
    /// Its number.
    pub tile: Value,
    /// Whether it needs the predicate; none if no tile does.
    pub is_partial: Option<Value>,
}

impl Blocks {
    /// For tiles of these sizes. The symbol is the function's.
    pub fn new(symbol: &str, kernel: &AttentionKernel, outer: Outer, (own, inner): (u64, u64)) -> Self {
        let (query_tile, key_tile) = if outer == Outer::Queries { (own, inner) } else { (inner, own) };
        let classes = classify(&kernel.mask, kernel.queries, kernel.keys, query_tile, key_tile);
        let (query_tiles, key_tiles) = (kernel.queries.div_ceil(query_tile), kernel.keys.div_ceil(key_tile));
        let (outer_tiles, inner_tiles) =
            if outer == Outer::Queries { (query_tiles, key_tiles) } else { (key_tiles, query_tiles) };
        let class = |o: u64, i: u64| {
            let (q, k) = if outer == Outer::Queries { (o, i) } else { (i, o) };
            classes[(q * key_tiles + k) as usize]
        };
        let lines: Vec<Vec<Class>> =
            (0..outer_tiles).map(|o| (0..inner_tiles).map(|i| class(o, i)).collect()).collect();
        let runs: Option<Vec<Row>> = (0..).zip(&lines).map(|(tile, line)| run(tile, line)).collect();
        let (mut rows, list) = match runs {
            Some(rows) => (rows, None),
            None => listed(&lines),
        };
        rows.sort_by_key(|row| std::cmp::Reverse(row.count));
        Blocks { symbol: format!("{symbol}.blocks"), rows, list }
    }

    /// How many outer tiles there are.
    pub fn outer_tiles(&self) -> u64 {
        self.rows.len() as u64
    }

    /// What all rows are but for their tile, if they come in order.
    fn uniform(&self) -> Option<Row> {
        let first = self.rows[0];
        let same = (0..).zip(&self.rows).all(|(tile, row)| *row == Row { tile, ..first });
        (same && self.list.is_none()).then_some(first)
    }

    /// The globals that [`Blocks::walk`] reads; they precede the function.
    pub fn globals(&self) -> String {
        if self.uniform().is_some() {
            return String::new();
        }
        let records = self
            .rows
            .iter()
            .flat_map(|row| [row.tile, row.first, row.count, row.full_first, row.full_count, 0, 0, 0]);
        let records = global(&self.symbol, &records.collect::<Vec<_>>());
        match &self.list {
            None => records,
            Some(list) => records + &global(&format!("{}.list", self.symbol), list),
        }
    }

    /// The walk of the outer tile of this rank.
    pub fn walk(&self, f: &mut Function, rank: Value) -> Walk {
        let has_partial = self.rows.iter().any(|row| row.full_count < row.count);
        let partial = if has_partial { Partial::Some } else { Partial::None };
        if let Some(row) = self.uniform() {
            let [first, count, full_first, full_count] =
                [row.first, row.count, row.full_first, row.full_count].map(|x| f.int32(x.into()));
            return Walk { tile: rank, count, path: Path::Run { first, full_first, full_count, partial } };
        }
        let table = f.address_in(Space::Global, &self.symbol);
        let at = f.shl(rank, 3);
        let at = f.offset(table, at, Element::I32);
        let [tile, first, count, full_first] = record(f, at);
        let path = match &self.list {
            Some(_) => {
                let list = f.address_in(Space::Global, &format!("{}.list", self.symbol));
                Path::List { entries: f.offset(list, first, Element::I32) }
            }
            None => {
                let rest = f.bytes_after(at, 16);
                let [full_count, ..] = record(f, rest);
                Path::Run { first, full_first, full_count, partial }
            }
        };
        Walk { tile, count, path }
    }
}

impl Walk {
    /// The n-th inner tile.
    pub fn inner(&self, f: &mut Function, n: Value) -> Inner {
        match self.path {
            Path::Run { first, full_first, full_count, partial } => {
                let tile = f.addi(first, n);
                let is_partial = (partial == Partial::Some).then(|| {
                    let within = f.subi(tile, full_first);
                    let is_full = f.order(Order::Below, within, full_count);
                    let yes = f.int(is_full.ty, 1);
                    f.xor(is_full, yes)
                });
                Inner { tile, is_partial }
            }
            Path::List { entries } => {
                let at = f.offset(entries, n, Element::I32);
                let entry = f.load(at, INT, 4);
                let (one, zero) = (f.int32(1), f.int32(0));
                let bit = f.and(entry, one);
                let is_partial = f.order(Order::NotEqual, bit, zero);
                Inner { tile: f.shr(entry, 1), is_partial: Some(is_partial) }
            }
        }
    }
}

/// A line as one run with its full tiles in one run; none if it has gaps.
fn run(tile: u32, line: &[Class]) -> Option<Row> {
    let span = |is_in: fn(Class) -> bool| {
        let first = line.iter().position(|&c| is_in(c)).unwrap_or(0);
        let end = line.iter().rposition(|&c| is_in(c)).map_or(first, |last| last + 1);
        line[first..end].iter().all(|&c| is_in(c)).then_some((first as u32, (end - first) as u32))
    };
    let (first, count) = span(|c| c != Class::Skip)?;
    let (full_first, full_count) = span(|c| c == Class::Full)?;
    Some(Row { tile, first, count, full_first, full_count })
}

fn listed(lines: &[Vec<Class>]) -> (Vec<Row>, Option<Vec<u32>>) {
    let (mut rows, mut list) = (vec![], vec![]);
    for (tile, line) in (0..).zip(lines) {
        let first = list.len() as u32;
        for (inner, class) in (0u32..).zip(line) {
            match class {
                Class::Skip => {}
                Class::Partial => list.push(inner * 2 + 1),
                Class::Full => list.push(inner * 2),
            }
        }
        rows.push(Row { tile, first, count: list.len() as u32 - first, full_first: 0, full_count: 0 });
    }
    (rows, Some(list))
}

fn global(symbol: &str, numbers: &[u32]) -> String {
    let mut hex = String::new();
    for byte in numbers.iter().flat_map(|x| x.to_le_bytes()) {
        let _ = write!(hex, "{byte:02X}");
    }
    let n = numbers.len();
    format!(
        "  llvm.mlir.global internal constant @{symbol}(dense<\"0x{hex}\"> : tensor<{n}xi32>) {{addr_space = 1 : i32, alignment = 16 : i64}} : !llvm.array<{n} x i32>\n"
    )
}

/// Four numbers that follow one another.
fn record(f: &mut Function, at: Value) -> [Value; 4] {
    let all = f.load(at, Type::vector(Element::I32, 4), 16);
    [0, 1, 2, 3].map(|i| f.extract(all, i))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dspc_graph::ir::DType;
    use dspc_graph::mask::{Mask, MaskExpr, MaskOp};
    use std::sync::Arc;

    fn kernel(queries: u64, keys: u64, mask: Mask) -> AttentionKernel {
        let strides = vec![64; 4];
        let (batch, heads, kv_heads, head_dim) = (1, 1, 1, 64);
        let (dtype, tf32, scale) = (DType::Bf16, false, 0.125);
        AttentionKernel { batch, heads, kv_heads, head_dim, queries, keys, dtype, tf32, scale, mask, strides }
    }

    fn row(tile: u32, run: (u32, u32), full: (u32, u32)) -> Row {
        Row { tile, first: run.0, count: run.1, full_first: full.0, full_count: full.1 }
    }

    #[test]
    fn causal_tiles_are_runs_and_the_longest_come_first() {
        let k = kernel(192, 192, Mask::causal());
        let blocks = Blocks::new("k", &k, Outer::Queries, (64, 64));
        assert_eq!(blocks.list, None);
        assert_eq!(blocks.rows, [row(2, (0, 3), (0, 2)), row(1, (0, 2), (0, 1)), row(0, (0, 1), (0, 0))]);
        let blocks = Blocks::new("k", &k, Outer::Keys, (64, 64));
        assert_eq!(blocks.rows[0], row(0, (0, 3), (1, 2)));
    }

    #[test]
    fn a_layout_without_a_mask_needs_no_table() {
        let blocks = Blocks::new("k", &kernel(192, 130, Mask::Full), Outer::Queries, (64, 64));
        assert_eq!(blocks.uniform(), Some(row(0, (0, 3), (0, 2))));
        assert_eq!(blocks.globals(), "");
    }

    #[test]
    fn tiles_with_gaps_are_a_list() {
        use MaskExpr::{Const, Key};
        let binary = |op, a, b| MaskExpr::Binary(op, Arc::new(a), Arc::new(b));
        let block = binary(MaskOp::Divide, Key, Const(64));
        let even = binary(MaskOp::Equal, binary(MaskOp::Remainder, block, Const(2)), Const(0));
        let blocks =
            Blocks::new("k", &kernel(64, 200, Mask::Where(Arc::new(even))), Outer::Queries, (64, 64));
        assert_eq!(blocks.list, Some(vec![0, 4]));
    }
}
