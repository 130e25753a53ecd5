//! Own products: a kernel of ours beside every matrix product of a GPU, for hosts without NVIDIA's library and where it is faster.
//!
//! Reads   steps with their products.
//! Writes  for each product its kernel, and a workspace where the product is cut into parts.
//! Keeps   everything else: the runtime chooses which of the two runs.
//! Leaves  alone products of whole numbers, of factors of different types, and fused ones whose result is stored by columns.
//! Cost    one walk over the steps.

use dspc_graph::ir::DType;

use crate::describe::{Kernel, ProductFused, ProductKernel, ProductMatrix};
use crate::pool::Pool;
use crate::steps::{Fused, Gemm, Matrix, Own, Place, Step, StorageKind};

/// Terms that are summed in one go.
const DEPTH: u64 = 64;
/// Multiprocessors of the cards that products are cut up for: H100 and H200.
const PROCESSORS: u64 = 132;
/// Rows and columns of a tile.
const TILE: [u64; 2] = [128, 256];
/// Microseconds of [`DEPTH`] terms of a tile, and of a tile's begin and end.
const DEPTH_US: f64 = 0.62;
const TILE_US: f64 = 2.0;
/// Bytes that the second kernel of a product in parts moves in a microsecond, and what its launch takes.
const COMBINE_BYTES_PER_US: f64 = 2.5e6;
const COMBINE_US: f64 = 3.0;
/// Parts at most, and terms of each at least.
const PARTS_MAX: u64 = 16;
const PART_TERMS_MIN: u64 = 512;

/// Gives every product its kernel.
pub(crate) fn give_own_products(steps: &mut [Step], pool: &mut Pool) {
    for step in steps {
        match step {
            Step::Loop(inner) => give_own_products(&mut inner.body, pool),
            Step::Gemm(gemm) => gemm.own = own(gemm, pool),
            Step::Launch(_) | Step::Zero(..) => {}
        }
    }
}

fn own(gemm: &Gemm, pool: &mut Pool) -> Option<Own> {
    let kernel = describe(gemm, pool)?;
    let elements = kernel.workspace_elements();
    let workspace = (elements > 0).then(|| {
        Place::start(pool.storage("product.workspace", DType::F32, elements, 1, StorageKind::Activation))
    });
    Some(Own { kernel: pool.kernel("product", Kernel::Product(kernel)), workspace })
}

fn describe(gemm: &Gemm, pool: &Pool) -> Option<ProductKernel> {
    let matrix = |m: &Matrix| ProductMatrix {
        dtype: dtype(pool, &m.place),
        stride: m.stride,
        transposed: m.transposed,
    };
    let (a, b, c) = (matrix(&gemm.a), matrix(&gemm.b), matrix(&gemm.c));
    if a.dtype != b.dtype || [a.dtype, c.dtype].contains(&DType::I32) {
        return None;
    }
    let fused = gemm.fused.as_ref().map(|fused| match fused {
        Fused::Bias { bias } => ProductFused::Bias(dtype(pool, bias)),
        Fused::BiasGelu { bias, pre } => ProductFused::BiasGelu { bias: dtype(pool, bias), pre: matrix(pre) },
        Fused::GeluGradient { pre } => ProductFused::GeluGradient { pre: matrix(pre) },
        Fused::BiasGradient { sum } => ProductFused::BiasGradient(dtype(pool, sum)),
    });
    let by_columns = match &fused {
        None | Some(ProductFused::BiasGradient(_)) => false,
        Some(ProductFused::Bias(_)) => c.transposed,
        Some(ProductFused::BiasGelu { pre, .. } | ProductFused::GeluGradient { pre }) => {
            c.transposed || pre.transposed
        }
    };
    if by_columns {
        return None;
    }
    let others = gemm.fused.iter().flat_map(Fused::places);
    let aligned =
        [gemm.a.place, gemm.b.place, gemm.c.place].into_iter().chain(others).all(|p| is_aligned(pool, &p));
    let Gemm { m, n, k, accumulate, .. } = *gemm;
    let splits = parts(m, n, k);
    Some(ProductKernel { m, n, k, a, b, c, accumulate, tf32: false, fused, splits, aligned })
}

fn dtype(pool: &Pool, place: &Place) -> DType {
    pool.storages[place.storage.0 as usize].dtype
}

/// Whether a place begins at 16 bytes, whatever its slot: storages do, ranges of them need not.
fn is_aligned(pool: &Pool, place: &Place) -> bool {
    let storage = &pool.storages[place.storage.0 as usize];
    let whole = |elements: u64| (elements * storage.dtype.bytes()).is_multiple_of(16);
    whole(place.offset)
        && storage.within.is_none_or(|w| whole(w.offset) && (storage.slots == 1 || whole(w.stride)))
}

/// Into how many parts the summed dim is cut, so that few tiles fill the card: the number that is done first.
fn parts(m: u64, n: u64, k: u64) -> u64 {
    let pieces = k.div_ceil(DEPTH);
    let tiles = m.div_ceil(TILE[0]) * n.div_ceil(TILE[1]);
    let microseconds = |parts: u64| {
        let rounds = (tiles * parts).div_ceil(PROCESSORS) as f64;
        let products = rounds * (pieces.div_ceil(parts) as f64 * DEPTH_US + TILE_US);
        match parts {
            1 => products,
            _ => products + (parts * m * n * 8) as f64 / COMBINE_BYTES_PER_US + COMBINE_US,
        }
    };
    // No part is empty.
    let whole = |&parts: &u64| {
        let share = pieces.div_ceil(parts);
        parts == 1 || (share * DEPTH >= PART_TERMS_MIN && share * (parts - 1) < pieces)
    };
    let candidates = (1..=PARTS_MAX).filter(whole);
    candidates.min_by(|&a, &b| microseconds(a).total_cmp(&microseconds(b))).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn few_tiles_are_cut_into_parts() {
        // Weight gradients of GPT-2: 768 to 768 and 1024 to 1024 have few tiles, 1024 to 4096 fills the card.
        assert!(parts(768, 768, 32_768) >= 4);
        assert!(parts(1024, 1024, 16_384) >= 3);
        assert_eq!(parts(1024, 4096, 16_384), 1);
    }

    #[test]
    fn many_tiles_or_few_terms_stay_whole() {
        assert_eq!(parts(16_384, 3072, 1024), 1);
        assert_eq!(parts(50_304, 1024, 16_384), 1);
        assert_eq!(parts(64, 64, 64), 1);
        assert_eq!(parts(1, 1, 1), 1);
    }
}
