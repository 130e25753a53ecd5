//! The f64 interpreter: slow and obvious.

/// A tensor in f64, row-major; ids and flags are whole numbers in it.
#[derive(Clone, PartialEq, Debug)]
pub struct Tensor {
    /// Sizes, outermost first.
    pub dims: Vec<usize>,
    /// Elements.
    pub data: Vec<f64>,
}
