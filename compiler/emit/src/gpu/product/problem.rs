//! A matrix product as its kernels see it: a result in rows, two factors, and which of their directions lies side by side in memory.

use dspc_graph::ir::DType;
use dspc_kernel::describe::{ProductFused, ProductKernel, ProductMatrix};

/// A product whose result lies in rows.
pub(super) struct Problem<'k> {
    /// The description.
    pub kernel: &'k ProductKernel,
    /// Rows of the result.
    pub m: u64,
    /// Columns of it.
    pub n: u64,
    /// Terms of each sum.
    pub k: u64,
    /// Gives the rows.
    pub left: Factor,
    /// Gives the columns.
    pub right: Factor,
    /// The result's elements in memory.
    pub result: ProductMatrix,
}

/// A factor of a product.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Factor {
    /// Which operand of the kernel.
    pub operand: usize,
    /// Of its elements.
    pub dtype: DType,
    /// Elements from one stored row to the next.
    pub stride: u64,
    /// Rows (or columns) that it gives the result.
    pub length: u64,
    /// Neighbours in memory.
    pub neighbours: Neighbours,
}

/// Which elements of a factor lie side by side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Neighbours {
    /// Those that a sum runs over.
    Terms,
    /// Those of different sums.
    Sums,
}

impl<'k> Problem<'k> {
    /// Turned round where the result is stored by columns.
    pub fn of(kernel: &'k ProductKernel) -> Result<Self, String> {
        let ProductKernel { m, n, k, a, b, c, .. } = *kernel;
        if m == 0 || n == 0 || k == 0 {
            return Err("a product without elements".to_string());
        }
        if [a.dtype, b.dtype, c.dtype].contains(&DType::I32) || a.dtype != b.dtype {
            return Err(format!("a product of {} and {} into {}", a.dtype, b.dtype, c.dtype));
        }
        let factor = |operand: usize, matrix: ProductMatrix, length: u64, is_by_terms: bool| Factor {
            operand,
            dtype: matrix.dtype,
            stride: matrix.stride,
            length,
            neighbours: if is_by_terms { Neighbours::Terms } else { Neighbours::Sums },
        };
        let (a, b) = (factor(0, a, m, !a.transposed), factor(1, b, n, b.transposed));
        if !c.transposed {
            return Ok(Problem { kernel, m, n, k, left: a, right: b, result: c });
        }
        match kernel.fused {
            None | Some(ProductFused::BiasGradient(_)) => {
                Ok(Problem { kernel, m: n, n: m, k, left: b, right: a, result: c })
            }
            Some(_) => Err("what is fused goes by columns, and the result is stored by columns".to_string()),
        }
    }

    /// Whether a factor's, the result's and the epilogue's rows can be read 16 bytes at a time.
    pub fn is_regular(&self) -> bool {
        let whole = |dtype: DType, elements: u64| (elements * dtype.bytes()).is_multiple_of(16);
        let factor = |f: &Factor| {
            let across = if f.neighbours == Neighbours::Terms { self.k } else { f.length };
            whole(f.dtype, f.stride) && whole(f.dtype, across)
        };
        let matrix = |m: &ProductMatrix| whole(m.dtype, m.stride) && whole(m.dtype, self.n);
        self.kernel.aligned
            && factor(&self.left)
            && factor(&self.right)
            && matrix(&self.result)
            && match &self.kernel.fused {
                Some(ProductFused::BiasGelu { pre, .. } | ProductFused::GeluGradient { pre }) => {
                    !pre.transposed && matrix(pre)
                }
                Some(ProductFused::Bias(_) | ProductFused::BiasGradient(_)) | None => true,
            }
    }

    /// Pieces of `depth` terms, and how many of them a part has.
    pub fn pieces(&self, depth: u64) -> (u64, u64) {
        let pieces = self.k.div_ceil(depth);
        (pieces, pieces.div_ceil(self.kernel.splits))
    }

    /// Elements before the partial sums of a bias gradient in the workspace.
    pub fn parts_elements(&self) -> u64 {
        if self.kernel.splits > 1 { self.kernel.splits * self.m * self.n } else { 0 }
    }
}
