//! Attention for a CPU: tiles of queries and keys, never a whole matrix of scores.
//!
//! Score tiles lie with keys as rows and queries as lanes. A softmax over keys then goes down the rows, one running maximum and sum a
//! lane, with no sum across lanes; and keys and values are left factors, read element by element, so they need no transposing.
//! Queries (and the gradient of y) are transposed once a tile, in registers.
//!
//! A mask is evaluated when the kernel is compiled: a table says which pairs of tiles to skip and which need the predicate.
//! A query that may look at nothing has y = 0, log-sum-exp −∞ and no gradient.

mod backward;
mod forward;
mod tile;

pub(super) use backward::emit as emit_backward;
pub(super) use forward::emit as emit_forward;

use crate::mask::{self, Class};
use crate::mlir::{Element, Function, Order, Type, Value};
use dspc_graph::mask::Mask;
use dspc_kernel::describe::AttentionKernel;
use std::fmt::Write;
use tile::{Matrix, ROW_STEP, Tile};

/// Sizes of everything, and the class table's name.
struct Geometry<'k> {
    kernel: &'k AttentionKernel,
    lanes: u32,
    /// Queries of a tile.
    query_tile: u64,
    /// Keys of a tile.
    key_tile: u64,
    /// Head dim, padded.
    width: u64,
    table: String,
    classes: Vec<Class>,
}

/// A tile of positions: the first, and how many there are.
#[derive(Clone, Copy)]
struct Part {
    first: Value,
    count: Value,
}

/// Heads up to this wide have tiles of 64, wider ones of 32: all tiles of a kernel fit the second cache.
const NARROW_HEAD: u64 = 128;
/// Sequences up to this long have tiles of 32, so that a causal mask skips a larger share of their few tiles.
const SHORT_SEQUENCE: u64 = 128;

impl<'k> Geometry<'k> {
    fn new(symbol: &str, kernel: &'k AttentionKernel, lanes: u32, operands: usize) -> Result<Self, String> {
        let k = kernel;
        let sizes = [k.batch, k.heads, k.kv_heads, k.head_dim, k.queries, k.keys];
        if sizes.contains(&0) {
            return Err("a size of attention is 0".to_string());
        }
        if k.head_dim > 256 {
            return Err(format!("a head of {} is wider than 256", k.head_dim));
        }
        if !k.heads.is_multiple_of(k.kv_heads) {
            return Err(format!("{} query heads for {} key heads", k.heads, k.kv_heads));
        }
        if k.strides.len() != operands {
            return Err(format!("{} strides where {operands} operands have one", k.strides.len()));
        }
        if k.dtype == dspc_graph::ir::DType::I32 {
            return Err("attention over integers".to_string());
        }
        let step = u64::from(lanes).max(ROW_STEP);
        let long = k.queries.max(k.keys) > SHORT_SEQUENCE;
        let tile = if k.head_dim <= NARROW_HEAD && long { 64 } else { 32 };
        let query_tile = k.queries.next_multiple_of(step).min(tile);
        let key_tile = k.keys.next_multiple_of(step).min(tile);
        let classes = mask::classify(&k.mask, k.queries, k.keys, query_tile, key_tile);
        let width = k.head_dim.next_multiple_of(step);
        Ok(Geometry { kernel, lanes, query_tile, key_tile, width, table: format!("{symbol}.tiles"), classes })
    }

    /// The class table as a global.
    fn table_text(&self) -> String {
        let mut list = String::new();
        for class in &self.classes {
            let _ = write!(list, "{:02X}", *class as u8);
        }
        let n = self.classes.len();
        format!(
            "  llvm.mlir.global internal constant @{}(dense<\"0x{list}\"> : tensor<{n}xi8>) : !llvm.array<{n} x i8>\n",
            self.table
        )
    }

    fn query_tiles(&self) -> u64 {
        self.kernel.queries.div_ceil(self.query_tile)
    }

    fn key_tiles(&self) -> u64 {
        self.kernel.keys.div_ceil(self.key_tile)
    }

    fn query_part(&self, f: &mut Function, tile: Value) -> Part {
        part(f, tile, self.query_tile, self.kernel.queries)
    }

    fn key_part(&self, f: &mut Function, tile: Value) -> Part {
        part(f, tile, self.key_tile, self.kernel.keys)
    }

    /// Runs the body unless the mask skips this pair of tiles; it gets whether the predicate is needed.
    fn unless_skipped(
        &self,
        f: &mut Function,
        query: Value,
        key: Value,
        body: impl FnOnce(&mut Function, Value),
    ) {
        let table = f.address_of(&self.table);
        let row = f.times(query, self.key_tiles());
        let at = f.addi(row, key);
        let at = f.offset(table, at, Element::I8);
        let class = f.load(at, Type::scalar(Element::I8), 1);
        let (skip, partial) = (f.int(class.ty, Class::Skip as i64), f.int(class.ty, Class::Partial as i64));
        let is_open = f.order(Order::NotEqual, class, skip);
        let is_partial = f.order(Order::Equal, class, partial);
        f.only_if(is_open, |f| body(f, is_partial));
    }

    /// Puts −∞ where a query may not look, and where there is no key.
    fn apply_mask(&self, f: &mut Function, scores: &Tile, query: Part, key: Part) {
        let lanes = self.lanes;
        let steps: Vec<i64> = (0..lanes.into()).collect();
        let steps = f.lanes(Element::I64, &steps);
        let columns: Vec<u64> = (0..self.query_tile).step_by(lanes as usize).collect();
        let queries: Vec<Value> = columns
            .iter()
            .map(|&col| {
                let first = f.plus(query.first, col);
                let first = f.broadcast(first, lanes);
                f.addi(first, steps)
            })
            .collect();
        let keys = f.int(steps.ty, self.kernel.keys as i64);
        let nothing = f.float(lanes, f32::NEG_INFINITY);
        f.repeat(self.key_tile, 1, |f, row| {
            let k = f.addi(key.first, row);
            let k = f.broadcast(k, lanes);
            for (&col, &q) in columns.iter().zip(&queries) {
                let inside = f.order(Order::Less, k, keys);
                let allowed = match &self.kernel.mask {
                    Mask::Full => inside,
                    Mask::Where(expr) => {
                        let allowed = mask::predicate(f, expr, q, k);
                        f.and(allowed, inside)
                    }
                };
                let score = scores.load(f, row, col, lanes);
                let score = f.select(allowed, score, nothing);
                scores.store(f, score, row, col);
            }
        });
    }

    /// One head of an operand, from a position on.
    fn head(
        &self,
        f: &mut Function,
        base: Value,
        stride: u64,
        positions: u64,
        (batch, head, first): (Value, Value, Value),
    ) -> Matrix {
        let dtype = self.kernel.dtype;
        let position = f.times(batch, positions);
        let position = f.addi(position, first);
        let row = f.times(position, stride);
        let col = f.times(head, self.kernel.head_dim);
        let at = f.addi(row, col);
        let base = crate::cpu::memory::address(f, dtype, base, at);
        Matrix { base, dtype, stride, cols: self.kernel.head_dim }
    }

    /// The address of a query's log-sum-exp.
    fn statistic(&self, f: &mut Function, base: Value, (batch, head, query): (Value, Value, Value)) -> Value {
        let row = f.times(batch, self.kernel.heads);
        let row = f.addi(row, head);
        let at = f.times(row, self.kernel.queries);
        let at = f.addi(at, query);
        f.offset(base, at, Element::F32)
    }

    /// Which lanes of a tile's columns, from `col` on, are queries that there are.
    fn is_query(&self, f: &mut Function, query: Part, col: u64) -> Value {
        let steps: Vec<i64> = (col as i64..col as i64 + i64::from(self.lanes)).collect();
        let steps = f.lanes(Element::I64, &steps);
        let count = f.broadcast(query.count, self.lanes);
        f.order(Order::Less, steps, count)
    }

    /// Columns at which vectors of a tile of queries begin.
    fn query_vectors(&self) -> Vec<u64> {
        (0..self.query_tile).step_by(self.lanes as usize).collect()
    }
}

fn part(f: &mut Function, tile: Value, size: u64, all: u64) -> Part {
    let first = f.times(tile, size);
    let end = f.index(all);
    let left = f.subi(end, first);
    let size = f.index(size);
    Part { first, count: f.minu(left, size) }
}

/// The arguments of a kernel's function: operands' addresses, first item, end.
fn open(operands: u64) -> (Function, Vec<Value>, Value, Value) {
    let (mut f, args) = Function::new(&ARGUMENTS);
    let pointers = (0..operands)
        .map(|i| {
            let i = f.index(i);
            let at = f.offset(args[0], i, Element::I64);
            f.load(at, Function::pointer_type(), 8)
        })
        .collect();
    (f, pointers, args[1], args[2])
}

/// Of every kernel.
const ARGUMENTS: [Type; 3] = [
    Type::scalar(Element::Pointer(crate::mlir::Space::Generic)),
    Type::scalar(Element::I64),
    Type::scalar(Element::I64),
];
