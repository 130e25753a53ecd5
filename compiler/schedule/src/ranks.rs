//! Machines in lock step: one a rank, each on arenas of its own; a collective moves elements between them.
//!
//! The world is one group: the only axis of the mesh is that of the data.

use dspc_program::{Action, Collective, CollectiveKind, Instruction, Over, Part};

use crate::evaluate::Machine;

/// Runs instructions in order, each on every rank before the next; `machines` are all ranks of the program's world.
pub fn run_ranks(machines: &mut [Machine<'_>], body: &[Instruction], turn: u64, micro: u64) {
    for instruction in body {
        if instruction.when.is_some_and(|when| !when.holds(turn, micro)) {
            continue;
        }
        match &instruction.action {
            Action::Collective(collective) => exchange(machines, collective, turn, micro),
            Action::Loop { over, count, reverse, body } => {
                for i in 0..*count {
                    let i = if *reverse { count - 1 - i } else { i };
                    match over {
                        Over::Turns => run_ranks(machines, body, i, micro),
                        Over::MicroBatches => run_ranks(machines, body, turn, i),
                    }
                }
            }
            action => machines.iter_mut().for_each(|machine| machine.step(action, turn, micro)),
        }
    }
}

fn exchange(machines: &mut [Machine<'_>], collective: &Collective, turn: u64, micro: u64) {
    for part in &collective.parts {
        match collective.kind {
            CollectiveKind::ReduceScatter { sum, .. } => {
                for to in 0..machines.len() {
                    reduce(machines, part, to, sum.0 as usize, (turn, micro));
                }
            }
            CollectiveKind::AllGather => gather(machines, part, (turn, micro)),
        }
    }
}

/// The shard of rank `to`, by the program's own kernel on cells of its own: a copy of each rank's shard, then the sum.
fn reduce(machines: &mut [Machine<'_>], part: &Part, to: usize, sum: usize, (turn, micro): (u64, u64)) {
    let elements = part.elements as usize;
    let mut cells = vec![];
    for machine in machines.iter() {
        let start = machine.address(&part.from, turn, micro) + to * elements;
        cells.extend_from_slice(&machine.cells[start..start + elements]);
    }
    let result = cells.len();
    cells.resize(result + elements, f64::NAN);
    let operands: Vec<usize> = (0..=machines.len()).map(|rank| rank * elements).collect();
    machines[to].evaluate(sum, &operands, &mut cells);
    let start = machines[to].address(&part.to, turn, micro);
    machines[to].cells[start..start + elements].copy_from_slice(&cells[result..]);
}

fn gather(machines: &mut [Machine<'_>], part: &Part, (turn, micro): (u64, u64)) {
    let elements = part.elements as usize;
    let mut whole = vec![];
    for machine in machines.iter() {
        let start = machine.address(&part.from, turn, micro);
        whole.extend_from_slice(&machine.cells[start..start + elements]);
    }
    for machine in machines {
        let start = machine.address(&part.to, turn, micro);
        machine.cells[start..start + whole.len()].copy_from_slice(&whole);
    }
}
