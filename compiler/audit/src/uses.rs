//! The bytes that one instruction reads and writes.

use crate::memory::{buffer_end, element_bytes, slot_bytes};
use crate::region::Region;
use crate::{EntryKind, Rule, finding::Findings, walk::Step};
use dspc_program::{
    Action, Arg, Buffer, Collective, CollectiveKind, ElementType, Extent, Fused, Gemm, KernelId, Matrix,
    Operand, OperandAccess, Place, Program,
};

/// One operand of one instruction at one turn.
#[derive(Clone, Debug)]
pub(crate) struct Use {
    /// Index of the buffer.
    pub buffer: usize,
    /// Of the arena that it lies in.
    pub arena: u32,
    /// The bytes of that arena.
    pub region: Region,
    /// What is done with them.
    pub access: OperandAccess,
    /// How it was addressed.
    pub place: Place,
    /// The slot.
    pub slot: u64,
    /// The part of the instruction that uses it.
    part: Part,
}

/// Parts of an instruction that see each other's operands differently.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Kernel,
    Factor,
    Product,
    Epilogue,
    Exchange,
}

impl Use {
    pub(crate) fn reads(&self) -> bool {
        matches!(self.access, OperandAccess::Read | OperandAccess::Update)
    }

    pub(crate) fn writes(&self) -> bool {
        matches!(self.access, OperandAccess::Write | OperandAccess::Update)
    }

    pub(crate) fn in_epilogue(&self) -> bool {
        self.part == Part::Epilogue
    }

    pub(crate) fn in_activations(&self, program: &Program) -> bool {
        program.arenas[self.arena as usize].name == "activations"
    }
}

/// The operands of a step, in order: those of a matrix product before its epilogue's. Leaves out what lies outside its buffer.
pub(crate) fn of(program: &Program, kind: EntryKind, step: &Step<'_>, findings: &mut Findings) -> Vec<Use> {
    let mut list = Lister { program, kind, step, findings, uses: vec![] };
    match &step.instruction.action {
        Action::Launch { kernel, args } => list.launch(*kernel, args, Part::Kernel),
        Action::Gemm(gemm) => list.matrix_product(gemm),
        Action::Zero { at } => {
            let dtype = program.buffers[at.buffer.0 as usize].dtype;
            let operand = Operand { access: OperandAccess::Write, dtype, extent: Extent::Slot };
            list.operand(at, &operand, Part::Kernel);
        }
        Action::Collective(collective) => list.collective(collective),
        Action::Loop { .. } => {}
    }
    list.uses
}

struct Lister<'a> {
    program: &'a Program,
    kind: EntryKind,
    step: &'a Step<'a>,
    findings: &'a mut Findings,
    uses: Vec<Use>,
}

impl Lister<'_> {
    fn launch(&mut self, kernel: KernelId, args: &[Arg], part: Part) {
        let program = self.program;
        for (arg, operand) in args.iter().zip(&program.kernels[kernel.0 as usize].operands) {
            if let Arg::At(place) = arg {
                self.operand(place, operand, part);
            }
        }
    }

    /// The whole is the group's size times a shard.
    fn collective(&mut self, collective: &Collective) {
        let size = self.program.groups.get(collective.group as usize).map_or(1, |g| g.size);
        for part in &collective.parts {
            let (from, to) = match collective.kind {
                CollectiveKind::ReduceScatter { .. } => (part.elements * size, part.elements),
                CollectiveKind::AllGather => (part.elements, part.elements * size),
            };
            self.run(&part.from, from, OperandAccess::Read);
            self.run(&part.to, to, OperandAccess::Write);
        }
    }

    fn run(&mut self, place: &Place, elements: u64, access: OperandAccess) {
        let dtype = self.program.buffers[place.buffer.0 as usize].dtype;
        let extent = Extent::Rows { rows: 1, cols: elements, stride: elements };
        self.operand(place, &Operand { access, dtype, extent }, Part::Exchange);
    }

    fn matrix_product(&mut self, gemm: &Gemm) {
        let result = if gemm.accumulate { OperandAccess::Update } else { OperandAccess::Write };
        self.matrix(&gemm.a, gemm.m, gemm.k, OperandAccess::Read, Part::Factor);
        self.matrix(&gemm.b, gemm.k, gemm.n, OperandAccess::Read, Part::Factor);
        self.matrix(&gemm.c, gemm.m, gemm.n, result, Part::Product);
        if let Some(fused) = &gemm.fused {
            self.fused(gemm, fused);
        }
        // Our own kernel uses the same bytes, and a workspace that nothing else may have.
        if let Some(own) = &gemm.own
            && let Some(workspace) = &own.workspace
            && let Some(operand) = self.program.kernels[own.kernel.0 as usize].operands.last()
        {
            self.operand(workspace, operand, Part::Factor);
        }
        if let Some(epilogue) = &gemm.epilogue {
            self.launch(epilogue.kernel, &epilogue.args, Part::Epilogue);
        }
    }

    /// Their elements are of the result's type.
    fn fused(&mut self, gemm: &Gemm, fused: &Fused) {
        let dtype = self.program.buffers[gemm.c.at.buffer.0 as usize].dtype;
        let (m, n) = (gemm.m, gemm.n);
        let row = |access| Operand { access, dtype, extent: Extent::Rows { rows: 1, cols: n, stride: n } };
        let whole = |access, pre: &Matrix| {
            let (rows, cols) = if pre.transposed { (n, m) } else { (m, n) };
            Operand { access, dtype, extent: Extent::Rows { rows, cols, stride: pre.stride } }
        };
        let (read, write) = (OperandAccess::Read, OperandAccess::Write);
        match fused {
            Fused::Bias { bias } => self.operand(bias, &row(read), Part::Factor),
            Fused::BiasGelu { bias, pre } => {
                self.operand(bias, &row(read), Part::Factor);
                self.operand(&pre.at, &whole(write, pre), Part::Factor);
            }
            Fused::GeluGradient { pre } => self.operand(&pre.at, &whole(read, pre), Part::Factor),
            Fused::BiasGradient { sum } => self.operand(sum, &row(write), Part::Factor),
        }
    }

    fn matrix(&mut self, matrix: &Matrix, rows: u64, cols: u64, access: OperandAccess, part: Part) {
        let (rows, cols) = if matrix.transposed { (cols, rows) } else { (rows, cols) };
        let dtype = self.program.buffers[matrix.at.buffer.0 as usize].dtype;
        let extent = Extent::Rows { rows, cols, stride: matrix.stride };
        self.operand(&matrix.at, &Operand { access, dtype, extent }, part);
    }

    fn operand(&mut self, place: &Place, operand: &Operand, part: Part) {
        let buffer = &self.program.buffers[place.buffer.0 as usize];
        let slot = slot(place, buffer, self.step);
        if buffer.dtype != operand.dtype {
            let facts =
                format!("`{}` holds {:?}, and {:?} is used", buffer.name, buffer.dtype, operand.dtype);
            self.fault(Rule::ElementType, facts);
        }
        if let Extent::Rows { rows, cols, stride } = operand.extent
            && rows > 1
            && stride < cols
            && operand.access != OperandAccess::Read
        {
            self.fault(Rule::RowsOverlap, format!("rows of {cols} elements, {stride} apart, are written"));
        }
        let Some(region) = region(place, buffer, slot, operand.extent, operand.dtype) else {
            self.fault(Rule::OutsideBuffer, format!("`{}`: beyond what 64 bits address", buffer.name));
            return;
        };
        let slot_end = buffer.offset + slot * buffer.stride + slot_bytes(buffer);
        if region.end() > buffer_end(buffer) {
            let facts = format!(
                "`{}` ends at byte {} and byte {} is touched",
                buffer.name,
                buffer_end(buffer),
                region.end() - 1
            );
            self.fault(Rule::OutsideBuffer, facts);
        } else if region.end() > slot_end && (place.turn || place.micro) {
            let facts =
                format!("slot {slot} of `{}` ends {} bytes earlier", buffer.name, region.end() - slot_end);
            self.fault(Rule::OutsideSlot, facts);
        } else {
            let (index, arena) = (place.buffer.0 as usize, buffer.arena);
            let access = operand.access;
            self.uses.push(Use { buffer: index, arena, region, access, place: *place, slot, part });
        }
    }

    fn fault(&mut self, rule: Rule, facts: String) {
        self.findings.add_at(rule, self.kind, self.step, facts);
    }
}

fn slot(place: &Place, buffer: &Buffer, step: &Step<'_>) -> u64 {
    let turn = if place.turn { step.turn.unwrap_or(0) } else { 0 };
    let micro = if place.micro { step.micro.unwrap_or(0) } else { 0 };
    (place.add % buffer.slots + turn % buffer.slots + micro % buffer.slots) % buffer.slots
}

/// `None` where it does not fit 64 bits, or begins past the slot's end.
fn region(place: &Place, buffer: &Buffer, slot: u64, extent: Extent, dtype: ElementType) -> Option<Region> {
    let size = element_bytes(dtype);
    let slot_start = buffer.offset + slot * buffer.stride;
    let into = place.elements.checked_mul(size)?;
    let start = slot_start.checked_add(into)?;
    match extent {
        Extent::Slot => Some(Region::run(start, slot_bytes(buffer).checked_sub(into)?)),
        Extent::Rows { rows, cols, stride } => {
            Region::rows(start, rows, cols.checked_mul(size)?, stride.checked_mul(size)?)
        }
    }
}

/// No operand that is written meets another of the same instruction, but for work in place.
pub(crate) fn check_apart(kind: EntryKind, step: &Step<'_>, uses: &[Use], findings: &mut Findings) {
    for (index, a) in uses.iter().enumerate() {
        for b in &uses[index + 1..] {
            let meet = a.arena == b.arena && a.region.meets(&b.region);
            if meet && (a.writes() || b.writes()) && !may_share(a, b) {
                let facts = format!("bytes {} to {} of its operands", a.region.start(), b.region.end());
                findings.add_at(Rule::OperandsOverlap, kind, step, facts);
            }
        }
    }
}

/// Whether two operands may have bytes in common though one is written.
///
/// A kernel may write exactly what it reads: it handles an element after reading it. An epilogue runs on rows of the product while they
/// are in cache, so it may use any columns of it; it may not touch a factor, which later rows still need. A collective may work in place: the rank's own shard lies
/// in the whole.
fn may_share(a: &Use, b: &Use) -> bool {
    match (a.part, b.part) {
        (Part::Product, Part::Epilogue) => a.region.covers(&b.region),
        (Part::Kernel, Part::Kernel) | (Part::Epilogue, Part::Epilogue) => {
            a.region == b.region && a.writes() != b.writes()
        }
        (Part::Exchange, Part::Exchange) => {
            a.writes() != b.writes() && (a.region.covers(&b.region) || b.region.covers(&a.region))
        }
        _ => false,
    }
}
