//! An entry's instructions in issue order, loops unrolled.

use dspc_program::{Action, Entry, Instruction, Over};
use std::fmt;

/// Micro-batches beyond these repeat what the last one did.
pub(crate) const MICRO_BATCHES_MAX: u64 = 3;

/// One instruction, once.
pub(crate) struct Step<'a> {
    /// What; never a loop.
    pub instruction: &'a Instruction,
    /// The instruction's number in the entry, the same at every turn.
    pub number: usize,
    /// The turn of the repeat around it.
    pub turn: Option<u64>,
    /// The micro-batch around it.
    pub micro: Option<u64>,
    /// Index at each depth.
    path: &'a [usize],
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path: Vec<String> = self.path.iter().map(usize::to_string).collect();
        write!(f, "[{}] {}", path.join("."), self.instruction.origin)?;
        if let Some(turn) = self.turn {
            write!(f, ", turn {turn}")?;
        }
        self.micro.map_or(Ok(()), |micro| write!(f, ", micro-batch {micro}"))
    }
}

/// Calls `visit` for every instruction of `entry`, as a device would meet them.
pub(crate) fn walk(entry: &Entry, visit: &mut dyn FnMut(&Step<'_>)) {
    let mut place = Where { path: vec![], turn: None, micro: None };
    block(&entry.body, 0, &mut place, visit);
}

struct Where {
    path: Vec<usize>,
    turn: Option<u64>,
    micro: Option<u64>,
}

/// Returns the number after the block's last instruction.
fn block(body: &[Instruction], first: usize, at: &mut Where, visit: &mut dyn FnMut(&Step<'_>)) -> usize {
    let mut number = first;
    for (index, instruction) in body.iter().enumerate() {
        at.path.push(index);
        match &instruction.action {
            Action::Loop { over, count, reverse, body } => {
                number = turns(*over, *count, *reverse, body, number, at, visit);
            }
            Action::Launch { .. } | Action::Gemm(_) | Action::Zero { .. } | Action::Collective(_) => {
                visit(&Step { instruction, number, turn: at.turn, micro: at.micro, path: &at.path });
                number += 1;
            }
        }
        at.path.pop();
    }
    number
}

fn turns(
    over: Over,
    count: u64,
    reverse: bool,
    body: &[Instruction],
    first: usize,
    at: &mut Where,
    visit: &mut dyn FnMut(&Step<'_>),
) -> usize {
    let count = if over == Over::MicroBatches { count.min(MICRO_BATCHES_MAX) } else { count };
    let mut after = first;
    for index in 0..count {
        let value = Some(if reverse { count - 1 - index } else { index });
        match over {
            Over::MicroBatches => at.micro = value,
            Over::Turns => at.turn = value,
        }
        after = block(body, first, at, visit);
    }
    match over {
        Over::MicroBatches => at.micro = None,
        Over::Turns => at.turn = None,
    }
    after
}
