//! Tiles of operands by the copy engine.
//!
//! A tile is rows of one head; its columns come 64 at a time, each 64 a run of 128-byte rows, swizzled as products read them. Rows past an
//! operand's end are zeros.

use super::items::Items;
use super::stage::{Shared, Turn};
use crate::mlir::{Function, SharedMatrix, Summed, Value};
use dspc_kernel::describe::AttentionKernel;
use dspc_program::TensorMap;

/// Columns of a run.
const RUN: u32 = 64;

/// Tiles of one operand.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    /// The map, a parameter of the kernel.
    map: Value,
    /// Rows of a tile.
    pub rows: u32,
    pub head_dim: u32,
}

/// Where a tile is in its operand.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub batch: Value,
    pub head: Value,
    /// First row.
    pub row: Value,
}

impl Tiles {
    /// Of an operand whose map is a parameter.
    pub fn new(kernel: &AttentionKernel, map: Value, rows: u32) -> Self {
        Tiles { map, rows, head_dim: kernel.head_dim as u32 }
    }

    /// Bytes of a tile.
    pub fn bytes(&self) -> u32 {
        self.rows * self.head_dim * 2
    }

    /// Starts copying a tile.
    pub fn copy(&self, f: &mut Function, place: Place, to: Value, barrier: Value) {
        let column = f.times(place.head, self.head_dim.into());
        for run in 0..self.head_dim / RUN {
            let column = f.plus(column, (run * RUN).into());
            let to = f.plus(to, (run * self.rows * RUN * 2).into());
            f.copy_tile(self.map, &[column, place.row, place.batch], to, barrier);
        }
    }

    /// The tile at an address as a factor of products, from a row on.
    pub fn matrix(&self, f: &mut Function, at: Value, summed: Summed) -> SharedMatrix {
        SharedMatrix { descriptor: f.descriptor(at, self.rows), rows: self.rows, summed }
    }
}

/// Batch and head of a number that counts the heads of all batches, `heads` each.
pub(super) fn batch_and_head(f: &mut Function, number: Value, heads: u64) -> (Value, Value) {
    let heads = f.int32(heads);
    (f.divu(number, heads), f.remu(number, heads))
}

/// Starts copying a tile of each operand, one behind the other.
pub(super) fn copy_all(f: &mut Function, tiles: &[Tiles], place: Place, mut to: Value, barrier: Value) {
    for (i, tile) in tiles.iter().enumerate() {
        if i > 0 {
            to = f.plus(to, tiles[i - 1].bytes().into());
        }
        tile.copy(f, place, to, barrier);
    }
}

/// Bytes of a tile of each.
fn bytes_of(tiles: &[Tiles]) -> u32 {
    tiles.iter().map(Tiles::bytes).sum()
}

/// What the loading thread does where a block owns queries: an item's own tiles, then at each visit those of its key head.
pub(super) fn load_for_queries(
    f: &mut Function,
    kernel: &AttentionKernel,
    (items, shared): (&Items, &Shared),
    own: &[Tiles],
    visited: &[Tiles],
) {
    let (zero, one) = (f.int32(0), f.int32(1));
    items.each(f, &[zero; 4], |f, item, carried| {
        let (batch, head) = batch_and_head(f, item.head, kernel.heads);
        let mine = Turn::of(&carried[..2]);
        let (at, barrier) = shared.own.await_empty(f, mine, bytes_of(own));
        let row = f.times(item.tile, own[0].rows.into());
        copy_all(f, own, Place { batch, head, row }, at, barrier);
        let group = f.int32(kernel.heads / kernel.kv_heads);
        let kv_head = f.divu(head, group);
        let turn = f.fold((zero, item.visits, one), &carried[2..], |f, visit, turn| {
            let turn = Turn::of(turn);
            let tile = items.visited(f, item, visit);
            let row = f.times(tile, visited[0].rows.into());
            let (at, barrier) = shared.visited.await_empty(f, turn, bytes_of(visited));
            copy_all(f, visited, Place { batch, head: kv_head, row }, at, barrier);
            shared.visited.next(f, turn).values().to_vec()
        });
        [shared.own.next(f, mine).values(), [turn[0], turn[1]]].concat()
    });
}

/// The map of an operand with these many heads, positions and elements between positions, for tiles of `rows`.
pub(super) fn map(
    kernel: &AttentionKernel,
    operand: u32,
    (heads, positions, stride): (u64, u64, u64),
    rows: u32,
) -> TensorMap {
    TensorMap {
        operand,
        dims: vec![heads * kernel.head_dim, positions, kernel.batch],
        strides: vec![stride * 2, positions * stride * 2],
        tile: vec![RUN, rows, 1],
        swizzle: 128,
    }
}
