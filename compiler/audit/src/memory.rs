//! Arenas, buffers, parameters and tables: what can be said without looking at an instruction.

use crate::{Rule, finding::Findings, region::Region};
use dspc_program::{Buffer, ElementType, FORMAT_VERSION, ParamShard, Program, Role};
use std::collections::{BTreeMap, HashSet};

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
    if findings.is_empty() {
        check_views(program, findings);
        check_sharing(program, findings);
    }
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
        Role::LossScale | Role::CleanSteps | Role::Hysteresis => true,
        Role::Tokens | Role::Targets | Role::InvTargets | Role::Rng => true,
        Role::Inner | Role::Loss | Role::GradNorm | Role::Finite | Role::Logits => false,
        Role::ScaleExhausted | Role::FirstBad => false,
    }
}

/// The buffer whose bytes these are: itself, or the one that it is a view of.
pub(crate) fn root(program: &Program, buffer: usize) -> usize {
    program.buffers[buffer].within.map_or(buffer, |root| root.0 as usize)
}

/// The roots whose bytes, or those of a view, mean something from one entry to the next.
pub(crate) fn roots_that_outlive(program: &Program) -> HashSet<usize> {
    let outlive = |buffer: &usize| outlives_entries(program.buffers[*buffer].role);
    (0..program.buffers.len()).filter(outlive).map(|buffer| root(program, buffer)).collect()
}

/// The elements of all slots, without the gaps. Buffers that passed the first checks do not overflow.
pub(crate) fn bytes_of(buffer: &Buffer) -> Region {
    Region::rows(buffer.offset, buffer.slots, slot_bytes(buffer), buffer.stride)
        .unwrap_or_else(|| Region::run(buffer.offset, slot_bytes(buffer)))
}

/// Whether two buffers have a byte in common.
pub(crate) fn share(a: &Buffer, b: &Buffer) -> bool {
    a.arena == b.arena && bytes_of(a).meets(&bytes_of(b))
}

fn check_views(program: &Program, findings: &mut Findings) {
    let mut views: BTreeMap<usize, Vec<&Buffer>> = BTreeMap::new();
    for buffer in &program.buffers {
        let Some(within) = buffer.within else { continue };
        let mut fault = |facts: String| findings.add(Rule::View, &buffer.name, facts);
        let Some(root) = program.buffers.get(within.0 as usize) else {
            fault(format!("there is no buffer {}", within.0));
            continue;
        };
        if root.within.is_some() {
            fault(format!("`{}` is a view itself", root.name));
        }
        if root.arena != buffer.arena || root.dtype != buffer.dtype {
            fault(format!("`{}` is in another arena, or of another type", root.name));
        }
        if !bytes_of(root).covers(&bytes_of(buffer)) {
            fault(format!("it is not inside `{}`", root.name));
        }
        let siblings = views.entry(within.0 as usize).or_default();
        if let Some(other) = siblings.iter().find(|other| share(other, buffer)) {
            fault(format!("it shares bytes with `{}`", other.name));
        }
        siblings.push(buffer);
    }
}

fn check_sharing(program: &Program, findings: &mut Findings) {
    let outlive = roots_that_outlive(program);
    for (a, first) in program.buffers.iter().enumerate() {
        for (b, second) in program.buffers.iter().enumerate().skip(a + 1) {
            let (root_a, root_b) = (root(program, a), root(program, b));
            let lasting = outlive.contains(&root_a) || outlive.contains(&root_b);
            if lasting && root_a != root_b && share(first, second) {
                let facts = format!("`{}` has bytes of it", second.name);
                findings.add(Rule::RuntimeBufferShared, &first.name, facts);
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
        let fits = match &param.shard {
            None => elements == Some(buffer.elements),
            Some(shard) => fits_shards(program, shard, elements, buffer),
        };
        if !fits {
            fault(format!("{:?} elements in slots of {}", param.dims, buffer.elements));
        }
        let start = param.shard.map(|shard| shard.start);
        if !taken.insert((param.buffer, param.slot, start)) {
            fault(format!("slot {} of `{}` is another's", param.slot, buffer.name));
        }
    }
}

/// Whether a tensor lies inside the range that a slot holds a shard of.
fn fits_shards(program: &Program, shard: &ParamShard, elements: Option<u64>, buffer: &Buffer) -> bool {
    let size = program.groups.get(shard.of.group as usize).map_or(0, |group| group.size);
    let end = elements.and_then(|elements| shard.start.checked_add(elements));
    let whole = shard.of.elements.checked_mul(size);
    shard.of.elements == buffer.elements && end.zip(whole).is_some_and(|(end, whole)| end <= whole)
}

/// A table, or a counter whose first value is one.
fn begins_as_table(role: Role) -> bool {
    matches!(role, Role::Table | Role::LossScale | Role::Hysteresis)
}

fn check_tables(program: &Program, findings: &mut Findings) {
    let mut filled = HashSet::new();
    for table in &program.tables {
        match program.buffers.get(table.buffer.0 as usize) {
            None => {
                findings.add(Rule::TableBuffer, "tables", format!("there is no buffer {}", table.buffer.0))
            }
            Some(buffer) if !begins_as_table(buffer.role) => {
                findings.add(Rule::TableBuffer, &buffer.name, format!("its role is {:?}", buffer.role));
            }
            Some(_) => drop(filled.insert(table.buffer.0 as usize)),
        }
    }
    for (index, buffer) in program.buffers.iter().enumerate() {
        if begins_as_table(buffer.role) && !filled.contains(&index) {
            findings.add(Rule::TableBuffer, &buffer.name, "no table fills it");
        }
    }
}
