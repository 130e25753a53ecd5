//! Locations: where a value's elements lie, as a strided view of a storage.

use crate::steps::{Matrix, Place};

/// A value's elements: `place + Σ index · stride`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Location {
    pub place: Place,
    pub dims: Vec<u64>,
    pub strides: Vec<u64>,
}

impl Location {
    /// Row-major without gaps.
    pub fn dense(place: Place, dims: &[u64]) -> Self {
        let mut strides = vec![1; dims.len()];
        for i in (1..dims.len()).rev() {
            strides[i - 1] = strides[i] * dims[i];
        }
        Self { place, dims: dims.to_vec(), strides }
    }

    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Row-major without gaps: any other dims of the same product see the same elements.
    pub fn is_dense(&self) -> bool {
        let mut expected = 1;
        for (dim, stride) in self.dims.iter().zip(&self.strides).rev() {
            if *dim != 1 && *stride != expected {
                return false;
            }
            expected *= dim;
        }
        true
    }

    /// `start..start + size` along a dim.
    pub fn slice(&self, dim: usize, start: u64, size: u64) -> Self {
        let mut out = self.clone();
        out.place.offset += start * self.strides[dim];
        out.dims[dim] = size;
        out
    }

    /// Two dims exchanged.
    pub fn transpose(&self, a: usize, b: usize) -> Self {
        let mut out = self.clone();
        out.dims.swap(a, b);
        out.strides.swap(a, b);
        out
    }

    /// The same elements under other dims, if that needs no move: dims of size 1 come and go, dense runs split and join.
    pub fn reshape(&self, dims: &[u64]) -> Option<Self> {
        if self.is_dense() {
            return Some(Self::dense(self.place, dims));
        }
        let kept = |d: &[u64]| d.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>();
        if kept(&self.dims) != kept(dims) {
            return None;
        }
        let mut strides = self.dims.iter().zip(&self.strides).filter(|(d, _)| **d != 1).map(|(_, s)| *s);
        let strides = dims.iter().map(|&d| if d == 1 { 1 } else { strides.next().unwrap_or(1) }).collect();
        Some(Self { place: self.place, dims: dims.to_vec(), strides })
    }

    /// As rows of `cols` elements: the distance from one row to the next; `None` if rows are not evenly spaced or have gaps inside.
    pub fn row_stride(&self, cols: u64) -> Option<u64> {
        if self.is_dense() {
            return Some(cols);
        }
        let (last, leading) = self.dims.split_last()?;
        if *last != cols || *self.strides.last()? != 1 {
            return None;
        }
        let strides = &self.strides[..leading.len()];
        let mut spacing: Option<(u64, u64)> = None; // stride of the innermost dim that moves, rows below the current one
        for (dim, stride) in leading.iter().zip(strides).rev().filter(|(d, _)| **d != 1) {
            match spacing {
                None => spacing = Some((*stride, *dim)),
                Some((inner, rows)) if *stride == inner * rows => spacing = Some((inner, rows * dim)),
                Some(_) => return None,
            }
        }
        Some(spacing.map_or(cols, |(stride, _)| stride))
    }

    /// As a matrix `[product of leading dims, last dim]`, perhaps stored the other way round.
    pub fn matrix(&self) -> Option<Matrix> {
        let cols = *self.dims.last()?;
        if let Some(stride) = self.row_stride(cols) {
            return Some(Matrix { place: self.place, stride, transposed: false });
        }
        match (self.dims.as_slice(), self.strides.as_slice()) {
            ([_, _], [1, stride]) => Some(Matrix { place: self.place, stride: *stride, transposed: true }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steps::StorageId;

    fn packed() -> Location {
        Location::dense(Place::start(StorageId(0)), &[2, 3, 12])
    }

    #[test]
    fn a_slice_of_columns_keeps_its_row_stride() {
        let k = packed().slice(2, 4, 4);
        assert_eq!((k.place.offset, k.row_stride(4), k.is_dense()), (4, Some(12), false));
    }

    #[test]
    fn a_slice_of_an_inner_dim_has_no_even_rows() {
        assert_eq!(packed().slice(1, 0, 2).row_stride(12), None);
        assert_eq!(packed().slice(0, 1, 1).slice(1, 0, 2).row_stride(12), Some(12));
    }

    #[test]
    fn a_transposed_matrix_says_so() {
        let w = Location::dense(Place::start(StorageId(0)), &[5, 7]).transpose(0, 1);
        let matrix = w.matrix().unwrap();
        assert_eq!((matrix.stride, matrix.transposed), (7, true));
    }

    #[test]
    fn a_dense_value_reshapes_and_a_gapped_one_only_by_ones() {
        assert!(packed().reshape(&[6, 12]).is_some());
        let k = packed().slice(2, 4, 4);
        assert!(k.reshape(&[6, 4]).is_none());
        assert_eq!(k.reshape(&[2, 1, 3, 4]).unwrap().strides, [36, 1, 12, 1]);
    }
}
