//! What is wrong with a program, as data.

use crate::EntryKind;
use crate::walk::Step;
use std::collections::HashSet;
use std::fmt;

/// One fault of a program: always a bug of the compiler, or an artifact that someone changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What must hold and does not.
    pub rule: Rule,
    /// Where: an entry and the instruction's path in it, or the name of a buffer, arena or parameter.
    pub at: String,
    /// The facts.
    pub facts: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.at, self.rule.sentence(), self.facts)
    }
}

/// What must hold of a program.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Rule {
    /// The format is the one that this audit knows.
    FormatVersion,
    /// Names of arenas, buffers and parameters are unique.
    NameTaken,
    /// Every index names something.
    IdOutOfRange,
    /// A buffer lies in its arena.
    BufferOutsideArena,
    /// A buffer begins on a 64-byte boundary.
    BufferMisaligned,
    /// A buffer has slots, apart from each other.
    BufferSlots,
    /// What the runtime owns shares no byte with another buffer.
    RuntimeBufferShared,
    /// A view lies in its buffer, apart from the other views.
    View,
    /// A parameter names a slot that is its own and has its size.
    ParamSlot,
    /// A table fills a buffer of that role.
    TableBuffer,
    /// Micro-batches outside, turns inside, each at most once, each at least one turn.
    LoopNesting,
    /// Arguments are what the kernel declares.
    Arguments,
    /// An operand's element type is its buffer's.
    ElementType,
    /// A place follows a loop that surrounds it.
    LoopVariable,
    /// All that is touched lies in the buffer.
    OutsideBuffer,
    /// A slot that follows a loop holds all that is touched through it.
    OutsideSlot,
    /// Rows of an operand do not run into each other.
    RowsOverlap,
    /// What is read was written.
    ReadBeforeWritten,
    /// What is read was not overwritten by other data.
    ReadAfterOverwritten,
    /// A slot still holds the turn that is read.
    SlotReused,
    /// An entry leaves what the runtime reads after it.
    ResultMissing,
    /// Only `train` changes learned state, and nothing changes what the runtime fills in.
    WriteForbidden,
    /// A written operand is apart from the others of its instruction.
    OperandsOverlap,
    /// A wait has a record before it.
    WaitWithoutRecord,
    /// Two streams are ordered where they touch the same bytes.
    Race,
    /// An entry's peak covers what it uses.
    PeakUnderstated,
}

impl Rule {
    fn sentence(self) -> &'static str {
        match self {
            Self::FormatVersion => "the program's format is another",
            Self::NameTaken => "a name stands twice",
            Self::IdOutOfRange => "an index names nothing",
            Self::BufferOutsideArena => "a buffer leaves its arena",
            Self::BufferMisaligned => "a buffer is not on a 64-byte boundary",
            Self::BufferSlots => "a buffer's slots are wrong",
            Self::RuntimeBufferShared => "bytes that the runtime owns are shared",
            Self::View => "a view is wrong",
            Self::ParamSlot => "a parameter's slot is wrong",
            Self::TableBuffer => "a table's buffer is wrong",
            Self::LoopNesting => "a loop is nested wrongly",
            Self::Arguments => "the arguments are not the kernel's",
            Self::ElementType => "the element type is not the buffer's",
            Self::LoopVariable => "a place follows a loop that it is not in",
            Self::OutsideBuffer => "an operand leaves its buffer",
            Self::OutsideSlot => "an operand leaves its slot",
            Self::RowsOverlap => "an operand's rows overlap",
            Self::ReadBeforeWritten => "it reads what nothing wrote",
            Self::ReadAfterOverwritten => "it reads what was overwritten",
            Self::SlotReused => "it reads a slot that another turn took over",
            Self::ResultMissing => "the runtime reads what is not there",
            Self::WriteForbidden => "it writes what it may not",
            Self::OperandsOverlap => "operands of one instruction overlap",
            Self::WaitWithoutRecord => "it waits for an event that nothing recorded",
            Self::Race => "two streams race",
            Self::PeakUnderstated => "the peak is understated",
        }
    }
}

/// Collects findings; an instruction in a loop answers once for a rule, not once a turn.
#[derive(Default)]
pub(crate) struct Findings {
    list: Vec<Finding>,
    seen: HashSet<(EntryKind, usize, Rule)>,
}

impl Findings {
    pub(crate) fn add(&mut self, rule: Rule, at: impl Into<String>, facts: impl Into<String>) {
        self.list.push(Finding { rule, at: at.into(), facts: facts.into() });
    }

    pub(crate) fn add_at(&mut self, rule: Rule, kind: EntryKind, step: &Step<'_>, facts: impl Into<String>) {
        if self.seen.insert((kind, step.number, rule)) {
            self.add(rule, format!("{}{step}", kind.name()), facts);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn into_vec(self) -> Vec<Finding> {
        self.list
    }
}
