//! Softmax as a row kernel spells it out: exponentials of how far elements lie below their row's maximum, divided by the sum of those.

use dspc_graph::rowfn::{BinaryFn, Node, NodeId, ReduceFn, UnaryFn};

/// Whether a node is eᵈ with d = x − max x: no number above 1.
pub(crate) fn is_share(nodes: &[Node], node: NodeId) -> bool {
    let of = |id: NodeId| &nodes[id.0 as usize];
    if let Node::Unary(UnaryFn::Exp, distance) = of(node)
        && let Node::Binary(BinaryFn::Subtract, x, max) = of(*distance)
        && let Node::Reduce(ReduceFn::Max, all) = of(*max)
    {
        return x == all;
    }
    false
}

/// Whether a node is the sum of such: a number from 1 to the row's length, whose reciprocal is as good as it.
pub(crate) fn is_sum_of_shares(nodes: &[Node], node: NodeId) -> bool {
    match &nodes[node.0 as usize] {
        Node::Reduce(ReduceFn::Sum, x) => is_share(nodes, *x),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dspc_graph::rowfn::InputId;

    #[test]
    fn softmax_is_known_by_its_own_maximum() {
        let nodes = [
            Node::Load(InputId(0)),
            Node::Load(InputId(1)),
            Node::Reduce(ReduceFn::Max, NodeId(0)),
            Node::Binary(BinaryFn::Subtract, NodeId(0), NodeId(2)),
            Node::Unary(UnaryFn::Exp, NodeId(3)),
            Node::Reduce(ReduceFn::Sum, NodeId(4)),
            Node::Binary(BinaryFn::Subtract, NodeId(1), NodeId(2)),
            Node::Unary(UnaryFn::Exp, NodeId(6)),
            Node::Reduce(ReduceFn::Sum, NodeId(7)),
        ];
        let found = |is: fn(&[Node], NodeId) -> bool| -> Vec<u32> {
            (0..nodes.len() as u32).filter(|&i| is(&nodes, NodeId(i))).collect()
        };
        assert_eq!(found(is_share), [4]);
        assert_eq!(found(is_sum_of_shares), [5]);
    }
}
