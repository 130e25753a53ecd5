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
use crate::tiles::Shape;

/// Parts at most, and terms of each at least.
const PARTS_MAX: u64 = 16;
const PART_TERMS_MIN: u64 = 512;

/// Gives every product its kernel.
pub(crate) fn give_own_products(steps: &mut [Step], pool: &mut Pool) {
    for step in steps {
        match step {
            Step::Loop(inner) => give_own_products(&mut inner.body, pool),
            Step::Gemm(gemm) => gemm.own = own(gemm, pool),
            Step::Launch(_) | Step::Zero(..) | Step::Collective(_) | Step::Only(..) => {}
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
    let tf32 = pool.tf32 && a.dtype == DType::F32;
    let splits = Shape { m, n, k }.best_parts(PARTS_MAX, PART_TERMS_MIN);
    Some(ProductKernel { m, n, k, a, b, c, accumulate, tf32, fused, splits, aligned })
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
