//! An entry's instructions in issue order, loops unrolled.

use dspc_program::{Action, Entry, Instruction, Over, When};
use std::fmt;

/// Micro-batches beyond these repeat what the last one did, where none is special.
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

/// Micro-batches that are walked: all where an instruction is one of some alone, or ranks tell one another what each yielded.
pub(crate) fn micro_batches_max(body: &[Instruction]) -> u64 {
    let special = |instruction: &Instruction| match &instruction.action {
        Action::Collective(_) => true,
        Action::Loop { body, .. } => micro_batches_max(body) > MICRO_BATCHES_MAX,
        _ => instruction.when.is_some_and(|when| when.over == Over::MicroBatches),
    };
    if body.iter().any(special) { u64::MAX } else { MICRO_BATCHES_MAX }
}

/// Calls `visit` for every instruction of `entry`, as a device would meet them.
pub(crate) fn walk(entry: &Entry, visit: &mut dyn FnMut(&Step<'_>)) {
    let micro_batches_max = micro_batches_max(&entry.body);
    let mut place = Where { path: vec![], turn: None, micro: None, micro_batches_max };
    block(&entry.body, 0, &mut place, visit);
}

struct Where {
    path: Vec<usize>,
    turn: Option<u64>,
    micro: Option<u64>,
    micro_batches_max: u64,
}

impl Where {
    /// Whether an instruction of some turns is done at this one.
    fn holds(&self, when: Option<When>) -> bool {
        when.is_none_or(|when| when.holds(self.turn.unwrap_or(0), self.micro.unwrap_or(0)))
    }
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
                if at.holds(instruction.when) {
                    visit(&Step { instruction, number, turn: at.turn, micro: at.micro, path: &at.path });
                }
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
    let count = if over == Over::MicroBatches { count.min(at.micro_batches_max) } else { count };
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
