//! From a program's instructions to calls: ids become addresses and functions, and every bound is checked, once.

use super::arena::{Arenas, element_bytes};
use super::call::{Address, Call, CollectiveCall, KernelFn, LaunchCall, Operand, PartCall, SharedPlace};
use super::gemm::{Epilogue, GemmCall, Side, Stored};
use crate::communicator::{Kind, Team};
use dspc_program::{
    Action, Arg, Buffer, BufferId, Collective, CollectiveKind, ElementType, Entry, Extent, Gemm, Instruction,
    KernelEntry, KernelId, Matrix, Over, Part, Place, Program, When,
};

/// Why a program cannot run.
pub(super) type Reason = String;

/// Checks that buffers lie in their arenas, and that the numbers that the runtime divides by are not 0.
pub(super) fn check_memory(program: &Program) -> Result<(), Reason> {
    for buffer in &program.buffers {
        let inside = buffer_bytes(buffer)
            .and_then(|bytes| bytes.checked_add(buffer.offset))
            .zip(program.arenas.get(buffer.arena as usize))
            .is_some_and(|(end, arena)| end <= arena.bytes);
        if !inside || buffer.slots == 0 || buffer.offset % 64 != 0 {
            return Err(format!("buffer `{}` does not lie in its arena", buffer.name));
        }
    }
    Ok(())
}

/// Bytes from the first slot's start to the last one's end.
fn buffer_bytes(buffer: &Buffer) -> Option<u64> {
    let slot = buffer.elements.checked_mul(element_bytes(buffer.dtype))?;
    buffer.slots.checked_sub(1)?.checked_mul(buffer.stride)?.checked_add(slot)
}

/// Looks up what instructions name.
pub(super) struct Lowering<'a> {
    pub(super) program: &'a Program,
    pub(super) arenas: &'a Arenas,
    pub(super) functions: &'a [KernelFn],
    /// This rank's teams.
    pub(super) teams: &'a [Team],
}

impl<'a> Lowering<'a> {
    pub(super) fn entry(&mut self, entry: &Entry) -> Result<Vec<Call>, Reason> {
        self.block(&entry.body)
    }

    fn block(&mut self, body: &[Instruction]) -> Result<Vec<Call>, Reason> {
        body.iter()
            .map(|instruction| {
                let call = self.action(&instruction.action);
                let call = call.and_then(|call| at(instruction.when, call));
                call.map_err(|reason| format!("{}: {reason}", instruction.origin))
            })
            .collect()
    }

    fn action(&mut self, action: &Action) -> Result<Call, Reason> {
        match action {
            Action::Launch { kernel, args } => self.launch(*kernel, args).map(Call::Launch),
            Action::Gemm(gemm) => self.gemm(gemm).map(|call| Call::Gemm(Box::new(call))),
            Action::Zero { at } => {
                let (buffer, at) = (self.buffer(at.buffer)?, *at);
                let rest = buffer.elements.checked_sub(at.elements).ok_or("zeroes nothing")?;
                let elements = at.shard.map_or(rest, |shard| shard.elements);
                let bytes = elements * element_bytes(buffer.dtype);
                Ok(Call::Zero { at: self.address(at, elements)?, bytes: bytes as usize })
            }
            Action::Collective(collective) => {
                self.collective(collective).map(|call| Call::Collective(Box::new(call)))
            }
            Action::Loop { over, count, reverse, body } => {
                let (count, reverse, body) = (*count, *reverse, self.block(body)?);
                Ok(match over {
                    Over::Turns => Call::Turns { count, reverse, body },
                    Over::MicroBatches => Call::MicroBatches { count, reverse, body },
                })
            }
        }
    }

    fn launch(&mut self, id: KernelId, args: &[Arg]) -> Result<LaunchCall, Reason> {
        let (kernel, function) = self.kernel(id)?;
        let (items, grain) = (whole(kernel.items)?, whole(kernel.grain)?);
        let expected = kernel.operands.len() + usize::from(kernel.uses_turn);
        if args.len() != expected {
            return Err(format!("`{}` takes {expected} operands, not {}", kernel.symbol, args.len()));
        }
        let declared = &kernel.operands;
        let operands = args
            .iter()
            .enumerate()
            .map(|(i, arg)| match (arg, declared.get(i)) {
                (Arg::At(place), Some(operand)) => {
                    let buffer = self.buffer(place.buffer)?;
                    if buffer.dtype != operand.dtype {
                        return Err(format!("`{}` has another element type than its kernel", buffer.name));
                    }
                    let elements = match operand.extent {
                        Extent::Rows { rows: 0, .. } => 0,
                        Extent::Rows { rows, cols, stride } => {
                            span(rows, cols, stride).ok_or("an operand without end")?
                        }
                        Extent::Slot => 0,
                    };
                    self.address(*place, elements).map(Operand::At)
                }
                (Arg::Turn, None) => Ok(Operand::Turn),
                (Arg::At(_), None) | (Arg::Turn, Some(_)) => Err("the turn is the last operand".to_string()),
            })
            .collect::<Result<_, Reason>>()?;
        Ok(LaunchCall { function, items, grain, operands })
    }

    fn collective(&mut self, collective: &Collective) -> Result<CollectiveCall, Reason> {
        let team = self.teams.get(collective.group as usize).ok_or("a collective of no group")?;
        let arena = |arena: u32| self.arenas.ranges()[arena as usize].address;
        let parts = parts(self.program, self.teams, collective, &arena)?;
        let (kind, sum) = match collective.kind {
            CollectiveKind::AllGather => (Kind::AllGather, None),
            CollectiveKind::ReduceScatter { sum, tree } => {
                (Kind::ReduceScatter { tree }, Some(self.sum(sum, team, &parts)?))
            }
        };
        Ok(CollectiveCall { kind, group: collective.group, parts, sum })
    }

    /// The kernel that adds up a shard of every member.
    fn sum(&self, id: KernelId, team: &Team, parts: &[PartCall]) -> Result<LaunchCall, Reason> {
        let (kernel, function) = self.kernel(id)?;
        check_sum(kernel, team, parts)?;
        let (items, grain) = (whole(kernel.items)?, whole(kernel.grain)?);
        Ok(LaunchCall { function, items, grain, operands: Box::default() })
    }

    fn gemm(&mut self, gemm: &Gemm) -> Result<GemmCall, Reason> {
        if gemm.fused.is_some() {
            return Err("a product that does what only a GPU's does".into());
        }
        let size = |x: u64| usize::try_from(x).map_err(|_| "a dim too large".to_string());
        let (m, n, k) = (size(gemm.m)?, size(gemm.n)?, size(gemm.k)?);
        let a = self.side(&gemm.a, gemm.m, gemm.k)?;
        let b = self.side(&gemm.b, gemm.k, gemm.n)?;
        let c = self.side(&gemm.c, gemm.m, gemm.n)?;
        let epilogue = match &gemm.epilogue {
            Some(epilogue) => {
                let launch = self.launch(epilogue.kernel, &epilogue.args)?;
                let rows_per_item = size(epilogue.rows_per_item)?.max(1);
                if launch.items as u64 != gemm.m.div_ceil(rows_per_item as u64) {
                    return Err("an epilogue whose items are not the product's rows".into());
                }
                Some(Epilogue { launch, rows_per_item })
            }
            None => None,
        };
        Ok(GemmCall { m, n, k, a, b, c, accumulate: gemm.accumulate, epilogue })
    }

    /// A matrix of `rows × cols` as it is used; its strides say how it is stored.
    fn side(&mut self, matrix: &Matrix, rows: u64, cols: u64) -> Result<Side, Reason> {
        let stored = match self.buffer(matrix.at.buffer)?.dtype {
            ElementType::F32 => Stored::F32,
            ElementType::Bf16 => Stored::Bf16,
            ElementType::F16 => Stored::F16,
            ElementType::I32 => return Err("a matrix product of whole numbers".into()),
        };
        let (stored_rows, stored_cols) = if matrix.transposed { (cols, rows) } else { (rows, cols) };
        let elements = span(stored_rows, stored_cols, matrix.stride).ok_or("a matrix without end")?;
        let at = self.address(matrix.at, elements)?;
        let stride = isize::try_from(matrix.stride).map_err(|_| "a stride too large")?;
        let (row_stride, col_stride) = if matrix.transposed { (1, stride) } else { (stride, 1) };
        Ok(Side { at, stored, row_stride, col_stride })
    }

    /// A place from which `elements` are reached.
    fn address(&mut self, place: Place, elements: u64) -> Result<Address, Reason> {
        address_of(self.program, self.teams, place, elements, |buffer| self.arenas.address(buffer))
    }

    fn buffer(&self, id: BufferId) -> Result<&'a Buffer, Reason> {
        self.program.buffers.get(id.0 as usize).ok_or_else(|| format!("no buffer {}", id.0))
    }

    fn kernel(&self, id: KernelId) -> Result<(&'a KernelEntry, KernelFn), Reason> {
        let index = id.0 as usize;
        let pair = self.program.kernels.get(index).zip(self.functions.get(index).copied());
        pair.ok_or_else(|| format!("no kernel {}", id.0))
    }
}

/// An instruction that is done at some turns alone.
fn at(when: Option<When>, call: Call) -> Result<Call, Reason> {
    match when {
        None => Ok(call),
        Some(when) if when.at < when.every => Ok(Call::At { when, call: Box::new(call) }),
        Some(_) => Err("turns that there are none of".into()),
    }
}

/// The ranges of a collective; `arena` gives the first byte of an arena of this rank.
pub(super) fn parts(
    program: &Program,
    teams: &[Team],
    collective: &Collective,
    arena: &dyn Fn(u32) -> usize,
) -> Result<Vec<PartCall>, Reason> {
    let team = teams.get(collective.group as usize).ok_or("a collective of no group")?;
    let buffer =
        |id: BufferId| program.buffers.get(id.0 as usize).ok_or_else(|| format!("no buffer {}", id.0));
    let one = |part: &Part| {
        let whole = part.elements.checked_mul(team.members.len() as u64).ok_or("a collective without end")?;
        let (given, taken) = match collective.kind {
            CollectiveKind::ReduceScatter { .. } => (whole, part.elements),
            CollectiveKind::AllGather => (part.elements, whole),
        };
        let dtype = buffer(part.from.buffer)?.dtype;
        if buffer(part.to.buffer)?.dtype != dtype {
            return Err("a collective between element types".into());
        }
        let shared = |place: Place, elements: u64| {
            let buffer = buffer(place.buffer)?;
            let shard = place.shard.filter(|shard| shard.group == collective.group);
            let step = shard.map_or(0, |shard| shard.elements * element_bytes(buffer.dtype)) as usize;
            let base = arena(buffer.arena);
            let start =
                |buffer: &Buffer| std::ptr::with_exposed_provenance_mut(base + buffer.offset as usize);
            let at = address_of(program, teams, place, elements, start)?;
            Ok::<_, Reason>(SharedPlace { at, arena: buffer.arena, base, step, index: team.index })
        };
        let (from, to) = (shared(part.from, given)?, shared(part.to, taken)?);
        let bytes = (part.elements * element_bytes(dtype)) as usize;
        Ok(PartCall { from, to, elements: part.elements as usize, dtype, bytes })
    };
    collective.parts.iter().map(one).collect()
}

/// Whether a kernel adds up a shard of every member, for these ranges.
pub(super) fn check_sum(kernel: &KernelEntry, team: &Team, parts: &[PartCall]) -> Result<(), Reason> {
    if kernel.operands.len() != team.members.len() + 1 || kernel.uses_turn {
        return Err(format!("`{}` does not add up {} shards", kernel.symbol, team.members.len()));
    }
    for operand in &kernel.operands {
        let reached = match operand.extent {
            Extent::Rows { rows, cols, stride } => span(rows, cols, stride),
            Extent::Slot => Some(0),
        };
        let fits = |part: &PartCall| {
            part.dtype == operand.dtype && reached.is_some_and(|n| n <= part.elements as u64)
        };
        if !parts.iter().all(fits) {
            return Err(format!("`{}` does not add up shards of these sizes and types", kernel.symbol));
        }
    }
    Ok(())
}

/// A place from which `elements` are reached, on a rank with these teams.
pub(super) fn address_of(
    program: &Program,
    teams: &[Team],
    place: Place,
    elements: u64,
    start: impl FnOnce(&Buffer) -> *mut u8,
) -> Result<Address, Reason> {
    let index = place.buffer.0;
    let buffer = program.buffers.get(index as usize).ok_or_else(|| format!("no buffer {index}"))?;
    let size = element_bytes(buffer.dtype);
    let follows = place.turn || place.micro;
    let slot = if follows { buffer.slots - 1 } else { place.add % buffer.slots };
    let shard = match place.shard {
        None => Some(0),
        Some(shard) => {
            let team = teams.get(shard.group as usize).ok_or("a shard of no group")?;
            shard.elements.checked_mul(team.index as u64)
        }
    };
    let skipped = shard.and_then(|shard| shard.checked_add(place.elements));
    let end = skipped
        .and_then(|e| e.checked_add(elements))
        .and_then(|e| e.checked_mul(size))
        .and_then(|e| e.checked_add(slot.checked_mul(buffer.stride)?))
        .and_then(|e| e.checked_add(buffer.offset));
    let arena = &program.arenas[buffer.arena as usize];
    let skipped = skipped.filter(|_| end.is_some_and(|end| end <= arena.bytes));
    let skipped = skipped.ok_or_else(|| format!("reaches past `{}` and its arena", buffer.name))?;
    Ok(Address {
        base: start(buffer).wrapping_add((skipped * size) as usize),
        stride: buffer.stride as usize,
        slots: buffer.slots,
        add: place.add % buffer.slots,
        turn: place.turn,
        micro: place.micro,
    })
}

fn whole(x: u64) -> Result<i64, Reason> {
    i64::try_from(x).map_err(|_| "a count too large".to_string())
}

/// Elements from the first to the last of `rows` runs of `cols`.
pub(super) fn span(rows: u64, cols: u64, stride: u64) -> Option<u64> {
    if rows == 0 || cols == 0 {
        return Some(0);
    }
    (rows - 1).checked_mul(stride)?.checked_add(cols)
}
