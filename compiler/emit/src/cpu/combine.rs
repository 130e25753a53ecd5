//! From vectors of partial results to one number, always as the same tree.

use crate::mlir::{Function, Value};
use crate::row::reduce_pair;
use dspc_graph::rowfn::ReduceFn;

/// One value of some vectors: a tree over the vectors, then over the lanes.
pub(super) fn combine(f: &mut Function, function: ReduceFn, vectors: &[Value]) -> Value {
    let mut vectors = vectors.to_vec();
    while vectors.len() > 1 {
        let half = vectors.len().div_ceil(2);
        for i in half..vectors.len() {
            vectors[i - half] = reduce_pair(f, function, vectors[i - half], vectors[i]);
        }
        vectors.truncate(half);
    }
    let mut value = vectors[0];
    while value.lanes() > 2 {
        let half = value.lanes() / 2;
        let low: Vec<_> = (0..half).collect();
        let high: Vec<_> = (half..2 * half).collect();
        let (a, b) = (f.shuffle(value, value, &low), f.shuffle(value, value, &high));
        value = reduce_pair(f, function, a, b);
    }
    if value.lanes() == 2 {
        let (a, b) = (f.extract(value, 0), f.extract(value, 1));
        value = reduce_pair(f, function, a, b);
    }
    value
}
