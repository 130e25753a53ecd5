//! Pruning: ops whose results nothing uses go away.
//!
//! Reads   a graph and the values that must stay.
//! Writes  the same graph without the steps, and the carried values of repeats, that do not lead to one of those.
//! Keeps   every value's id: unused values stay in the list, unwritten.
//! Cost    a few walks, O(ops).

use std::collections::BTreeSet;

use crate::ir::{Block, Graph, Repeat, Step, ValueId};

/// Removes the steps from `graph.body.steps[from..]` that no root needs; earlier steps stay.
pub fn prune(graph: &mut Graph, roots: &[ValueId], from: usize) {
    let mut live: BTreeSet<ValueId> = roots.iter().copied().collect();
    loop {
        let before = live.len();
        mark(&graph.body.steps[from..], &mut live);
        if live.len() == before {
            break;
        }
    }
    let kept = graph.body.steps.split_off(from);
    graph.body.steps.extend(sweep(kept, &live));
}

fn mark(steps: &[Step], live: &mut BTreeSet<ValueId>) {
    for step in steps.iter().rev() {
        match step {
            Step::Op(node) => {
                if node.outputs.iter().any(|v| live.contains(v)) {
                    live.extend(&node.inputs);
                }
            }
            Step::Repeat(repeat) => mark_repeat(repeat, live),
        }
    }
}

/// A carried value lives if its last or any turn's is used; then so do its first and each turn's result.
fn mark_repeat(repeat: &Repeat, live: &mut BTreeSet<ValueId>) {
    loop {
        let before = live.len();
        for c in &repeat.carried {
            if live.contains(&c.out) || live.contains(&c.arg) {
                live.extend([c.init, c.result, c.arg, c.out]);
            }
        }
        mark(&repeat.body.steps, live);
        if live.len() == before {
            break;
        }
    }
}

fn sweep(steps: Vec<Step>, live: &BTreeSet<ValueId>) -> Vec<Step> {
    let mut kept = Vec::with_capacity(steps.len());
    for step in steps {
        match step {
            Step::Op(node) => {
                if node.outputs.iter().any(|v| live.contains(v)) {
                    kept.push(Step::Op(node));
                }
            }
            Step::Repeat(mut repeat) => {
                repeat.carried.retain(|c| live.contains(&c.arg));
                repeat.body = Block { steps: sweep(std::mem::take(&mut repeat.body.steps), live) };
                if !repeat.body.steps.is_empty() || !repeat.carried.is_empty() {
                    kept.push(Step::Repeat(repeat));
                }
            }
        }
    }
    kept
}
