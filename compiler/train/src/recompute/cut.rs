//! The least to save: a minimum cut between what only the forward pass can yield and what the backward pass reads.
//!
//! Reads   values with a weight each (bytes, if it can be saved at all) and what each is computed from.
//! Writes  the lightest set of values from which all that is wanted can be computed; of several the one that computes least again.
//! Source  Ford, Fulkerson 1956; as a choice of activations Chen et al. 2016 pose it, for a chain.
//! Cost    O(values²) flow searches at most, a few in practice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dspc_graph::ir::ValueId;

/// A value that the backward pass may want.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Wanted {
    /// Bytes of a turn's; `None` if it cannot be saved itself (a view).
    pub bytes: Option<u64>,
    /// Values of the turn that it is computed from again; `None` if it must be saved.
    pub from: Option<Vec<ValueId>>,
}

const UNLIMITED: u64 = u64::MAX / 4;

/// The values to save so that each of `reads` is saved or computable. `values` holds those and all that they come from.
pub(super) fn least_saved(
    values: &BTreeMap<ValueId, Wanted>,
    reads: &BTreeSet<ValueId>,
) -> BTreeSet<ValueId> {
    let index: BTreeMap<ValueId, usize> = values.keys().copied().zip(0..).collect();
    let (source, sink) = (2 * values.len(), 2 * values.len() + 1);
    let mut net = Net { edges: vec![], from: vec![vec![]; sink + 1] };
    for (value, wanted) in values {
        let own = index[value];
        net.edge(2 * own, 2 * own + 1, wanted.bytes.unwrap_or(UNLIMITED));
        match &wanted.from {
            None => net.edge(source, 2 * own, UNLIMITED),
            Some(from) => from.iter().for_each(|v| net.edge(2 * index[v] + 1, 2 * own, UNLIMITED)),
        }
        if reads.contains(value) {
            net.edge(2 * own + 1, sink, UNLIMITED);
        }
    }
    net.fill(source, sink);
    let near = net.reaching(sink);
    let cut = |own: usize| !near[2 * own] && near[2 * own + 1];
    index.iter().filter(|(_, own)| cut(**own)).map(|(value, _)| *value).collect()
}

/// Edges in pairs: an even one and its opposite, with what each can still carry.
struct Net {
    edges: Vec<(usize, u64)>,
    from: Vec<Vec<usize>>,
}

impl Net {
    fn edge(&mut self, from: usize, to: usize, capacity: u64) {
        self.from[from].push(self.edges.len());
        self.from[to].push(self.edges.len() + 1);
        self.edges.extend([(to, capacity), (from, 0)]);
    }

    /// Sends all that fits.
    fn fill(&mut self, source: usize, sink: usize) {
        while let Some(path) = self.path(source, sink) {
            let amount = path.iter().map(|&e| self.edges[e].1).min().unwrap_or(0);
            for e in path {
                self.edges[e].1 -= amount;
                self.edges[e ^ 1].1 += amount;
            }
        }
    }

    /// Edges of a shortest way that can carry more.
    fn path(&self, source: usize, sink: usize) -> Option<Vec<usize>> {
        let mut by: Vec<Option<usize>> = vec![None; self.from.len()];
        let mut queue = VecDeque::from([source]);
        while let Some(node) = queue.pop_front() {
            for &e in &self.from[node] {
                let (to, left) = self.edges[e];
                if left > 0 && to != source && by[to].is_none() {
                    by[to] = Some(e);
                    queue.push_back(to);
                }
            }
        }
        let mut path = vec![];
        let mut node = sink;
        while node != source {
            let e = by[node]?;
            path.push(e);
            node = self.edges[e ^ 1].0;
        }
        Some(path)
    }

    /// The nodes from which more could still reach the sink.
    fn reaching(&self, sink: usize) -> Vec<bool> {
        let mut near = vec![false; self.from.len()];
        near[sink] = true;
        let mut queue = VecDeque::from([sink]);
        while let Some(node) = queue.pop_front() {
            for &e in &self.from[node] {
                let before = self.edges[e].0;
                if self.edges[e ^ 1].1 > 0 && !near[before] {
                    near[before] = true;
                    queue.push_back(before);
                }
            }
        }
        near
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value, its bytes, and what it comes from.
    type Row<'a> = (u32, Option<u64>, Option<&'a [u32]>);

    fn least(values: &[Row], reads: &[u32]) -> Vec<u32> {
        let ids = |v: &[u32]| v.iter().map(|i| ValueId(*i)).collect::<Vec<_>>();
        let wanted = |&(id, bytes, from): &Row| (ValueId(id), Wanted { bytes, from: from.map(ids) });
        let values = values.iter().map(wanted).collect();
        least_saved(&values, &ids(reads).into_iter().collect()).into_iter().map(|v| v.0).collect()
    }

    #[test]
    fn an_activation_is_computed_from_what_is_saved_anyway() {
        // 0 = product, 1 = activation of 0; both are read.
        assert_eq!(least(&[(0, Some(8), None), (1, Some(8), Some(&[0]))], &[0, 1]), [0]);
    }

    #[test]
    fn nothing_is_computed_again_for_no_gain() {
        assert_eq!(least(&[(0, Some(8), None), (1, Some(8), Some(&[0]))], &[1]), [1]);
    }

    #[test]
    fn two_results_of_one_small_value_are_computed_from_it() {
        let values: [Row; 3] = [(0, Some(8), None), (1, Some(8), Some(&[0])), (2, Some(8), Some(&[0]))];
        assert_eq!(least(&values, &[1, 2]), [0]);
    }

    #[test]
    fn a_sum_of_two_is_saved_rather_than_its_terms() {
        let values: [Row; 3] = [(0, Some(8), None), (1, Some(8), None), (2, Some(8), Some(&[0, 1]))];
        assert_eq!(least(&values, &[0, 2]), [0, 2]);
        assert_eq!(least(&values, &[2]), [2]);
        assert_eq!(least(&values, &[0, 1, 2]), [0, 1]);
    }

    #[test]
    fn a_view_saves_what_it_is_a_view_of() {
        assert_eq!(least(&[(0, Some(8), None), (1, None, Some(&[0]))], &[1]), [0]);
    }

    #[test]
    fn what_comes_from_outside_costs_nothing() {
        assert_eq!(least(&[(0, Some(8), Some(&[]))], &[0]), [0; 0]);
    }
}
