//! Arenas, buffers, parameters and tables: what can be said without looking at an instruction.

use crate::{Rule, finding::Findings};
use dspc_program::{Buffer, ElementType, FORMAT_VERSION, Program, Role};
use std::collections::HashSet;

const ALIGNMENT: u64 = 64;

pub(crate) fn check(program: &Program, findings: &mut Findings) {
    if program.format_version != FORMAT_VERSION {
        let facts = format!("it is {}, and {FORMAT_VERSION} is known", program.format_version);
        findings.add(Rule::FormatVersion, "program", facts);
    }
    names(program.arenas.iter().map(|a| &a.name), "arena", findings);
    names(program.buffers.iter().map(|b| &b.name), "buffer", findings);
    names(program.params.iter().map(|p| &p.name), "parameter", findings);
    for buffer in &program.buffers {
        check_buffer(program, buffer, findings);
    }
    check_sharing(program, findings);
    check_params(program, findings);
    check_tables(program, findings);
}

fn names<'a>(all: impl Iterator<Item = &'a String>, what: &str, findings: &mut Findings) {
    let mut seen = HashSet::new();
    for name in all.filter(|name| !seen.insert(*name)) {
        findings.add(Rule::NameTaken, name, format!("the second {what} of that name"));
    }
}

/// Bytes of one element.
pub(crate) fn element_bytes(dtype: ElementType) -> u64 {
    match dtype {
        ElementType::F32 | ElementType::I32 => 4,
        ElementType::Bf16 | ElementType::F16 => 2,
    }
}

/// Bytes of one slot's elements. Buffers that passed [`check`] do not overflow.
pub(crate) fn slot_bytes(buffer: &Buffer) -> u64 {
    buffer.elements.saturating_mul(element_bytes(buffer.dtype))
}

/// One past the last byte, if it fits 64 bits.
fn end(buffer: &Buffer) -> Option<u64> {
    let slot = buffer.elements.checked_mul(element_bytes(buffer.dtype))?;
    let last = buffer.slots.checked_sub(1)?.checked_mul(buffer.stride)?;
    buffer.offset.checked_add(last)?.checked_add(slot)
}

/// One past the last byte of a buffer that passed [`check`].
pub(crate) fn buffer_end(buffer: &Buffer) -> u64 {
    end(buffer).unwrap_or(u64::MAX)
}

fn check_buffer(program: &Program, buffer: &Buffer, findings: &mut Findings) {
    let name = &buffer.name;
    if !buffer.offset.is_multiple_of(ALIGNMENT) {
        findings.add(Rule::BufferMisaligned, name, format!("it begins at byte {}", buffer.offset));
    }
    let closer = buffer.slots > 1 && buffer.stride < slot_bytes(buffer);
    if buffer.slots == 0 || buffer.elements == 0 || closer {
        let facts =
            format!("{} slots of {} bytes, {} apart", buffer.slots, slot_bytes(buffer), buffer.stride);
        findings.add(Rule::BufferSlots, name, facts);
    }
    let Some(arena) = program.arenas.get(buffer.arena as usize) else {
        findings.add(Rule::IdOutOfRange, name, format!("there is no arena {}", buffer.arena));
        return;
    };
    if end(buffer).is_none_or(|end| end > arena.bytes) {
        let facts =
            format!("it begins at byte {} of `{}`, which has {}", buffer.offset, arena.name, arena.bytes);
        findings.add(Rule::BufferOutsideArena, name, facts);
    }
}

/// Whether the bytes of a buffer of this role mean something from one entry to the next.
pub(crate) fn outlives_entries(role: Role) -> bool {
    match role {
        Role::Param | Role::Moment | Role::Table | Role::AppliedSteps => true,
        Role::Tokens | Role::Targets | Role::InvTargets | Role::Rng => true,
        Role::Inner | Role::Loss | Role::GradNorm | Role::Finite | Role::Logits => false,
    }
}

/// Whether two buffers have a byte in common.
pub(crate) fn share(a: &Buffer, b: &Buffer) -> bool {
    let empty = slot_bytes(a) == 0 || slot_bytes(b) == 0;
    a.arena == b.arena && !empty && a.offset < buffer_end(b) && b.offset < buffer_end(a)
}

fn check_sharing(program: &Program, findings: &mut Findings) {
    for (index, a) in program.buffers.iter().enumerate() {
        for b in &program.buffers[index + 1..] {
            if share(a, b) && (outlives_entries(a.role) || outlives_entries(b.role)) {
                findings.add(Rule::RuntimeBufferShared, &a.name, format!("`{}` has bytes of it", b.name));
            }
        }
    }
}

fn check_params(program: &Program, findings: &mut Findings) {
    let mut taken = HashSet::new();
    for param in &program.params {
        let mut fault = |facts: String| findings.add(Rule::ParamSlot, &param.name, facts);
        let Some(buffer) = program.buffers.get(param.buffer.0 as usize) else {
            fault(format!("there is no buffer {}", param.buffer.0));
            continue;
        };
        if buffer.role != Role::Param {
            fault(format!("`{}` has the role {:?}", buffer.name, buffer.role));
        }
        if param.slot >= buffer.slots {
            fault(format!("slot {} of `{}`, which has {}", param.slot, buffer.name, buffer.slots));
        }
        let elements = param.dims.iter().try_fold(1, |product: u64, dim| product.checked_mul(*dim));
        if elements != Some(buffer.elements) {
            fault(format!("{:?} elements in slots of {}", param.dims, buffer.elements));
        }
        if !taken.insert((param.buffer, param.slot)) {
            fault(format!("slot {} of `{}` is another's", param.slot, buffer.name));
        }
    }
}

fn check_tables(program: &Program, findings: &mut Findings) {
    let mut filled = HashSet::new();
    for table in &program.tables {
        match program.buffers.get(table.buffer.0 as usize) {
            None => {
                findings.add(Rule::TableBuffer, "tables", format!("there is no buffer {}", table.buffer.0))
            }
            Some(buffer) if buffer.role != Role::Table => {
                findings.add(Rule::TableBuffer, &buffer.name, format!("its role is {:?}", buffer.role));
            }
            Some(_) => drop(filled.insert(table.buffer.0 as usize)),
        }
    }
    for (index, buffer) in program.buffers.iter().enumerate() {
        if buffer.role == Role::Table && !filled.contains(&index) {
            findings.add(Rule::TableBuffer, &buffer.name, "no table fills it");
        }
    }
}
