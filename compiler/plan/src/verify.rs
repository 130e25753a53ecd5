//! The plan's verifier.
//!
//! Checks: the batch equation; every parameter has one place in the partition, inside its group, disjoint from all others; every value has a
//! placement of its number of dims. What is partial is completed before it is used, and what is shared out is gathered before it is read ([`complete`]); a gradient is
//! that of the loss, scaled by nothing ([`factors`]). Does not check the graph itself (`dspc_graph::verify`).

mod complete;
mod factors;

use crate::{AxisId, Plan};

/// The first thing that is wrong, as a bug of ours.
pub fn verify(plan: &Plan) -> Result<(), String> {
    let b = plan.batch;
    if b.batch != b.micro_batch * b.accumulation * plan.mesh.size(AxisId::Data) {
        return Err(format!("batch {} is not {} × {} × data ranks", b.batch, b.micro_batch, b.accumulation));
    }
    let graph = &plan.train.graph;
    if plan.placements.len() != graph.values.len() {
        return Err(format!("{} placements for {} values", plan.placements.len(), graph.values.len()));
    }
    for (placement, value) in plan.placements.iter().zip(&graph.values) {
        if placement.dims.len() != value.ty.dims.len() {
            return Err(format!(
                "`{}` has {} dims and a placement of {}",
                value.name,
                value.ty.dims.len(),
                placement.dims.len()
            ));
        }
    }
    verify_partition(plan)?;
    complete::verify(plan)?;
    factors::verify(plan)
}

fn verify_partition(plan: &Plan) -> Result<(), String> {
    let mut ranges = vec![];
    for (param, member) in plan.train.graph.params.iter().zip(&plan.partition.members) {
        for turn in 0..member.turns {
            let start = member.offset + turn * member.stride;
            ranges.push((member.group, start, start + member.elements, &param.name));
        }
        let group = &plan.partition.groups[member.group.0 as usize];
        let end = member.offset + (member.turns - 1) * member.stride + member.elements;
        if end > group.elements {
            return Err(format!(
                "`{}` ends at {end}, past group `{}` of {}",
                param.name, group.name, group.elements
            ));
        }
    }
    ranges.sort();
    for pair in ranges.windows(2) {
        if pair[0].0 == pair[1].0 && pair[0].2 > pair[1].1 {
            return Err(format!("`{}` and `{}` overlap in the partition", pair[0].3, pair[1].3));
        }
    }
    Ok(())
}
