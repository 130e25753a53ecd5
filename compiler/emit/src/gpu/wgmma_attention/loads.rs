//! Tiles of operands by the copy engine.
//!
//! A tile is rows of one head; its columns come 64 at a time, each 64 a run of 128-byte rows, swizzled as products read them. Rows past an
//! operand's end are zeros.

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
