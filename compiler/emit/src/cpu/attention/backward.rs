//! Attention, backward: gradients of q, k and v from that of y.
//!
//! p = exp(s − lse);  dv = pᵀ dy;  dp = dy vᵀ;  ds = p · (dp − δ) with δ the row sum of dy · y;  dq = scale · ds k;  dk = scale · dsᵀ q.
//! Source: Dao 2023 (FlashAttention-2), algorithm 2.
//!
//! An item is a head of keys with all query heads that share it. A walk with keys outermost gives dk and dv, which stay in tiles, and adds
//! to dq in memory. Where memory is narrower than f32 that would round at each tile: there dq has a walk of its own, queries outermost.

use super::tile::{Onto, Start, Tile, multiply, pack, transpose, unpack};
use super::{ARGUMENTS, Geometry, Part, open};
use crate::cpu::combine::combine;
use crate::cpu::memory::{Mask, address, load, store};
use crate::mlir::{Element, Function, Value};
use crate::row::exp_of_score;
use dspc_graph::ir::DType;
use dspc_graph::rowfn::ReduceFn;
use dspc_kernel::describe::AttentionKernel;

/// Where operands and results begin.
struct Operands {
    q: Value,
    k: Value,
    v: Value,
    y: Value,
    lse: Value,
    dy: Value,
    dq: Value,
    dk: Value,
    dv: Value,
}

/// Strides, in the kernel's order.
struct Strides {
    q: u64,
    k: u64,
    v: u64,
    y: u64,
    dy: u64,
    dq: u64,
    dk: u64,
    dv: u64,
}

struct Tiles {
    /// Scaled queries, as rows and as lanes.
    q: Tile,
    q_lanes: Tile,
    /// The gradient of y, as rows and as lanes.
    dy: Tile,
    dy_lanes: Tile,
    k: Tile,
    v: Tile,
    /// Keys as rows, queries as lanes: scores, then p.
    p: Tile,
    /// dp, then ds.
    ds: Tile,
    dq: Tile,
    dk: Tile,
    dv: Tile,
    /// A lane a query.
    lse: Tile,
    delta: Tile,
}

/// One kernel while it is written.
struct Backward<'k> {
    g: Geometry<'k>,
    at: Operands,
    strides: Strides,
    tiles: Tiles,
}

/// Writes a kernel; operands are q, k, v, y, log-sum-exp, dy, dq, dk, dv.
pub(in crate::cpu) fn emit(symbol: &str, kernel: &AttentionKernel, lanes: u32) -> Result<String, String> {
    let g = Geometry::new(symbol, kernel, lanes, 8)?;
    let (mut f, operands, begin, end) = open(9);
    let &[q, k, v, y, lse, dy, dq, dk, dv] = operands.as_slice() else {
        return Err("nine operands".to_string());
    };
    let at = Operands { q, k, v, y, lse, dy, dq, dk, dv };
    let &[q, k, v, y, dy, dq, dk, dv] = kernel.strides.as_slice() else {
        return Err("eight strides".to_string());
    };
    let strides = Strides { q, k, v, y, dy, dq, dk, dv };
    let tiles = Tiles::new(&mut f, &g);
    let this = Backward { g, at, strides, tiles };
    let one = f.index(1);
    f.fold((begin, end, one), &[], |f, item, _| {
        let heads = f.index(kernel.kv_heads);
        let (batch, head) = (f.divu(item, heads), f.remu(item, heads));
        match kernel.dtype {
            DType::F32 => {
                this.zero_dq(f, batch, head);
                this.walk_keys(f, batch, head);
            }
            DType::Bf16 | DType::F16 | DType::I32 => {
                this.walk_keys(f, batch, head);
                this.walk_queries(f, batch, head);
            }
        }
        vec![]
    });
    Ok(this.g.table_text() + &f.finish(symbol, &ARGUMENTS, ""))
}

impl Tiles {
    fn new(f: &mut Function, g: &Geometry) -> Self {
        let mut tile = |rows, cols| Tile::new(f, rows, cols);
        let (queries, keys, width) = (g.query_tile, g.key_tile, g.width);
        Tiles {
            q: tile(queries, width),
            q_lanes: tile(width, queries),
            dy: tile(queries, width),
            dy_lanes: tile(width, queries),
            k: tile(keys, width),
            v: tile(keys, width),
            p: tile(keys, queries),
            ds: tile(keys, queries),
            dq: tile(queries, width),
            dk: tile(keys, width),
            dv: tile(keys, width),
            lse: tile(1, queries),
            delta: tile(1, queries),
        }
    }
}

impl Backward<'_> {
    fn kernel(&self) -> &AttentionKernel {
        self.g.kernel
    }

    /// Runs the body for each query head of a key head.
    fn each_head(&self, f: &mut Function, kv_head: Value, body: impl FnOnce(&mut Function, Value)) {
        let group = self.kernel().heads / self.kernel().kv_heads;
        let first = f.times(kv_head, group);
        f.repeat(group, 1, |f, i| {
            let head = f.addi(first, i);
            body(f, head);
        });
    }

    fn zero_dq(&self, f: &mut Function, batch: Value, kv_head: Value) {
        let (g, lanes) = (&self.g, self.g.lanes);
        self.tiles.dq.fill(f, 0.0, lanes);
        self.each_head(f, kv_head, |f, head| {
            f.repeat(g.query_tiles(), 1, |f, tile| {
                let query = g.query_part(f, tile);
                let to = g.head(f, self.at.dq, self.strides.dq, g.kernel.queries, (batch, head, query.first));
                unpack(f, &self.tiles.dq, query.count, 1.0, &to, Onto::Nothing, lanes);
            });
        });
    }

    /// dk and dv, and dq where memory is f32.
    fn walk_keys(&self, f: &mut Function, batch: Value, kv_head: Value) {
        let (g, t, lanes) = (&self.g, &self.tiles, self.g.lanes);
        f.repeat(g.key_tiles(), 1, |f, key_tile| {
            let key = g.key_part(f, key_tile);
            self.load_keys(f, batch, kv_head, key);
            t.dk.fill(f, 0.0, lanes);
            t.dv.fill(f, 0.0, lanes);
            self.each_head(f, kv_head, |f, head| {
                f.repeat(g.query_tiles(), 1, |f, query_tile| {
                    g.unless_skipped(f, query_tile, key_tile, |f, is_partial| {
                        let query = g.query_part(f, query_tile);
                        self.load_queries(f, batch, head, query);
                        self.differentiate(f, query, key, is_partial);
                        multiply(f, t.p.rows_left(), &t.dy, g.query_tile, &t.dv, Start::Result, lanes);
                        multiply(f, t.ds.rows_left(), &t.q, g.query_tile, &t.dk, Start::Result, lanes);
                        if g.kernel.dtype == DType::F32 {
                            multiply(f, t.ds.cols_left(), &t.k, g.key_tile, &t.dq, Start::Zero, lanes);
                            self.write_dq(f, batch, head, query, Onto::Sum);
                        }
                    });
                });
            });
            let place = (batch, kv_head, key.first);
            let to = g.head(f, self.at.dk, self.strides.dk, g.kernel.keys, place);
            unpack(f, &t.dk, key.count, 1.0, &to, Onto::Nothing, lanes);
            let to = g.head(f, self.at.dv, self.strides.dv, g.kernel.keys, place);
            unpack(f, &t.dv, key.count, 1.0, &to, Onto::Nothing, lanes);
        });
    }

    /// dq alone.
    fn walk_queries(&self, f: &mut Function, batch: Value, kv_head: Value) {
        let (g, t, lanes) = (&self.g, &self.tiles, self.g.lanes);
        self.each_head(f, kv_head, |f, head| {
            f.repeat(g.query_tiles(), 1, |f, query_tile| {
                let query = g.query_part(f, query_tile);
                self.load_queries(f, batch, head, query);
                t.dq.fill(f, 0.0, lanes);
                f.repeat(g.key_tiles(), 1, |f, key_tile| {
                    g.unless_skipped(f, query_tile, key_tile, |f, is_partial| {
                        let key = g.key_part(f, key_tile);
                        self.load_keys(f, batch, kv_head, key);
                        self.differentiate(f, query, key, is_partial);
                        multiply(f, t.ds.cols_left(), &t.k, g.key_tile, &t.dq, Start::Result, lanes);
                    });
                });
                self.write_dq(f, batch, head, query, Onto::Nothing);
            });
        });
    }

    fn write_dq(&self, f: &mut Function, batch: Value, head: Value, query: Part, onto: Onto) {
        let g = &self.g;
        let to = g.head(f, self.at.dq, self.strides.dq, g.kernel.queries, (batch, head, query.first));
        unpack(f, &self.tiles.dq, query.count, g.kernel.scale as f32, &to, onto, g.lanes);
    }

    fn load_keys(&self, f: &mut Function, batch: Value, kv_head: Value, key: Part) {
        let (g, place) = (&self.g, (batch, kv_head, key.first));
        let k = g.head(f, self.at.k, self.strides.k, g.kernel.keys, place);
        pack(f, &k, key.count, 1.0, &self.tiles.k, g.lanes);
        let v = g.head(f, self.at.v, self.strides.v, g.kernel.keys, place);
        pack(f, &v, key.count, 1.0, &self.tiles.v, g.lanes);
    }

    /// Queries, dy, δ and log-sum-exp. Lanes without a query, or whose query looked at nothing, get +∞: their p is 0.
    fn load_queries(&self, f: &mut Function, batch: Value, head: Value, query: Part) {
        let (g, t, lanes) = (&self.g, &self.tiles, self.g.lanes);
        let place = (batch, head, query.first);
        let q = g.head(f, self.at.q, self.strides.q, g.kernel.queries, place);
        pack(f, &q, query.count, g.kernel.scale as f32, &t.q, lanes);
        transpose(f, &t.q, &t.q_lanes, lanes);
        let dy = g.head(f, self.at.dy, self.strides.dy, g.kernel.queries, place);
        pack(f, &dy, query.count, 1.0, &t.dy, lanes);
        transpose(f, &t.dy, &t.dy_lanes, lanes);
        let statistic = g.statistic(f, self.at.lse, place);
        let zero_row = f.index(0);
        let (none, never) = (f.float(lanes, f32::NEG_INFINITY), f.float(lanes, f32::INFINITY));
        for col in g.query_vectors() {
            let first = f.index(col);
            let at = f.offset(statistic, first, Element::F32);
            let mask = g.is_query(f, query, col);
            let lse = load(f, DType::F32, at, lanes, Mask::Lanes(mask));
            let is_empty = f.compare("oeq", lse, none);
            let lse = f.select(is_empty, never, lse);
            let lse = f.select(mask, lse, never);
            t.lse.store(f, lse, zero_row, col);
        }
        self.load_delta(f, place, query);
    }

    /// δ = Σ dy · y along each row.
    fn load_delta(&self, f: &mut Function, place: (Value, Value, Value), query: Part) {
        let (g, t, lanes) = (&self.g, &self.tiles, self.g.lanes);
        t.delta.fill(f, 0.0, lanes);
        let y = g.head(f, self.at.y, self.strides.y, g.kernel.queries, place);
        let (zero, one) = (f.index(0), f.index(1));
        let columns = super::tile::vectors(f, y.cols, lanes);
        f.fold((zero, query.count, one), &[], |f, row, _| {
            let first = f.times(row, y.stride);
            let mut sum = f.float(lanes, 0.0);
            for (col, mask) in columns {
                let at = f.plus(first, col);
                let at = address(f, y.dtype, y.base, at);
                let y = load(f, y.dtype, at, lanes, mask);
                let dy = t.dy.load(f, row, col, lanes);
                sum = f.fma(y, dy, sum);
            }
            let sum = combine(f, ReduceFn::Sum, &[sum]);
            let at = t.delta.at(f, zero, row);
            store(f, DType::F32, sum, at, Mask::All);
            vec![]
        });
    }

    /// p and ds of a pair of tiles.
    fn differentiate(&self, f: &mut Function, query: Part, key: Part, is_partial: Value) {
        let (g, t, lanes) = (&self.g, &self.tiles, self.g.lanes);
        let depth = g.kernel.head_dim;
        multiply(f, t.k.rows_left(), &t.q_lanes, depth, &t.p, Start::Zero, lanes);
        multiply(f, t.v.rows_left(), &t.dy_lanes, depth, &t.ds, Start::Zero, lanes);
        f.only_if(is_partial, |f| g.apply_mask(f, &t.p, query, key));
        let zero = f.index(0);
        let columns = g.query_vectors();
        let lse: Vec<Value> = columns.iter().map(|&col| t.lse.load(f, zero, col, lanes)).collect();
        let delta: Vec<Value> = columns.iter().map(|&col| t.delta.load(f, zero, col, lanes)).collect();
        f.repeat(g.key_tile, 1, |f, row| {
            for (i, &col) in columns.iter().enumerate() {
                let score = t.p.load(f, row, col, lanes);
                let score = f.sub(score, lse[i]);
                let p = exp_of_score(f, score);
                t.p.store(f, p, row, col);
                let dp = t.ds.load(f, row, col, lanes);
                let difference = f.sub(dp, delta[i]);
                let ds = f.mul(p, difference);
                t.ds.store(f, ds, row, col);
            }
        });
    }
}
