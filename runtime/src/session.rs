//! A program on a device, ready to step: the door for those who bring their own ids.
//!
//! Knows what each buffer is for; reads no file and writes none. Of several ranks each has a session, and all call the same functions with the same
//! values: a step takes the whole batch, and each rank works on its own micro-batches, of which number i of rank r is number i · ranks + r of the batch.

mod stored;

pub(crate) use stored::Stored;

use crate::communicator::{Communicator, Solo, Team, teams};
use crate::device::cpu::check_world;
use crate::device::{Device, EntryKind, Word, element_bytes};
use crate::error::Error;
use crate::{initial, tables};
use dspc_program::{
    Action, Arg, BufferId, ElementType, Entry, Formula, GRADIENT_GRID, Instruction, Param, Place, Program,
    Role,
};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What a step did.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct StepStats {
    /// Steps attempted so far, this one counted.
    pub step: u64,
    /// Mean loss of the batch's targets, before the update.
    pub loss: f32,
    /// Gradient norm before clipping, where the program keeps it.
    pub grad_norm: Option<f32>,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Loss and gradients were finite, and the update was made.
    pub finite: bool,
    /// What the next step's loss is scaled by, in half precision.
    pub loss_scale: Option<f32>,
    /// An overflow at the lowest loss scale: no further step can do better.
    pub scale_exhausted: bool,
    /// The first row of [`dspc_program::GRADIENT_GRID`] gradient elements that has no finite sum of squares; [`Session::at_grid_row`] names what lies there.
    pub first_bad: Option<u64>,
}

/// A program on a device.
pub struct Session {
    program: Program,
    device: Box<dyn Device + Send>,
    communicator: Arc<dyn Communicator>,
    teams: Vec<Team>,
    /// Ranks that share the batch, and this one's place among them.
    ranks: (u64, u64),
    train: Buffers,
    evaluate: Buffers,
    logits: Buffers,
    attempted: u64,
    applied: u64,
    /// Steps begun and not ended.
    under_way: u64,
    /// What a step leaves for the host: the losses, the norm, the flag.
    words: Vec<Word>,
    /// The last applied step that every table has an element for.
    planned: u64,
    /// Parameters were set, and what ops read of them is older.
    stale: bool,
}

/// The buffers of each role that an entry uses.
#[derive(Default, Debug)]
struct Buffers {
    tokens: Vec<BufferId>,
    targets: Vec<BufferId>,
    inverse_targets: Vec<BufferId>,
    rng: Vec<BufferId>,
    applied_steps: Vec<BufferId>,
    loss: Option<BufferId>,
    grad_norm: Option<BufferId>,
    finite: Option<BufferId>,
    loss_scale: Option<BufferId>,
    scale_exhausted: Option<BufferId>,
    first_bad: Option<BufferId>,
    logits: Option<BufferId>,
}

impl Session {
    /// With initial weights, at step 0.
    ///
    /// # Errors
    /// R0202 for a program whose buffers do not fit its numbers.
    pub fn new(program: &Program, device: impl Device + Send + 'static) -> Result<Self, Error> {
        Self::of_rank(program, device, Arc::new(Solo::default()))
    }

    /// One rank of several, with its own part of the initial weights, at step 0.
    ///
    /// # Errors
    /// Those of [`Self::new`]; R0802.
    pub fn of_rank(
        program: &Program,
        device: impl Device + Send + 'static,
        communicator: Arc<dyn Communicator>,
    ) -> Result<Self, Error> {
        let mut session = Self::blank(program, device, communicator)?;
        let (params, seed) = (session.program.params.clone(), session.program.training.seed);
        let places: Vec<Stored> = params.iter().map(|p| Stored::of_param(&session.program, p)).collect();
        let ranges: Vec<_> = places.iter().map(|stored| session.held(stored).0).collect();
        let values = |index: usize, out: &mut Vec<f32>| {
            if let (Some(param), Some(range)) = (params.get(index), ranges.get(index)) {
                initial::values(param.init, seed, param.site, range.clone(), out);
            }
        };
        // Two for all: the allocator would keep what many of many sizes leave.
        let most = ranges.iter().map(|range| (range.end - range.start) as usize).max().unwrap_or(0);
        let [mut current, mut next] = [(); 2].map(|()| Vec::with_capacity(most));
        values(0, &mut next);
        // One is written while the following is computed.
        for (index, stored) in places.iter().enumerate() {
            std::mem::swap(&mut current, &mut next);
            let (written, ()) = rayon::join(
                || session.write_held(stored, bytemuck::cast_slice(&current)),
                || values(index + 1, &mut next),
            );
            written?;
        }
        Ok(session)
    }

    /// With weights still to be set; tables are there.
    pub(crate) fn blank(
        program: &Program,
        device: impl Device + Send + 'static,
        communicator: Arc<dyn Communicator>,
    ) -> Result<Self, Error> {
        let program = program.clone();
        check_world(&program, &*communicator)?;
        check(&program).map_err(malformed)?;
        let teams = teams(&program, communicator.rank());
        let data = program.groups.iter().position(|group| group.axes == ["data"]);
        let ranks = data.map_or((1, 0), |group| (program.groups[group].size, teams[group].index as u64));
        let empty = Entry::default();
        let mut session = Self {
            train: Buffers::of(&program, &program.train),
            evaluate: Buffers::of(&program, &program.evaluate),
            logits: Buffers::of(&program, program.logits.as_ref().unwrap_or(&empty)),
            planned: planned(&program),
            words: Vec::new(),
            under_way: 0,
            stale: program.refresh.is_some(),
            device: Box::new(device),
            communicator,
            teams,
            ranks,
            program,
            attempted: 0,
            applied: 0,
        };
        session.words = session.train.words(&session.program);
        session.fill_tables()?;
        Ok(session)
    }

    fn fill_tables(&mut self) -> Result<(), Error> {
        for table in &self.program.tables {
            let elements = self.program.buffers[table.buffer.0 as usize].elements;
            let contents = tables::contents(&table.formula, &self.program.training.schedule, elements);
            match self.program.buffers[table.buffer.0 as usize].dtype {
                ElementType::I32 => {
                    let whole: Vec<i32> = contents.iter().map(|&x| x as i32).collect();
                    self.device.write(table.buffer, 0, bytemuck::cast_slice(&whole))?;
                }
                _ => self.device.write(table.buffer, 0, bytemuck::cast_slice(&contents))?,
            }
        }
        Ok(())
    }

    /// Brings what ops read of the parameters up to date.
    fn refresh(&mut self) -> Result<(), Error> {
        if std::mem::take(&mut self.stale) && self.program.refresh.is_some() {
            self.device.run(EntryKind::Refresh)?;
        }
        Ok(())
    }

    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The other ranks.
    pub fn communicator(&self) -> &dyn Communicator {
        &*self.communicator
    }

    /// The device, for people.
    pub fn describe(&self) -> String {
        self.device.describe()
    }

    /// Steps attempted and applied so far.
    pub fn steps(&self) -> (u64, u64) {
        (self.attempted, self.applied)
    }

    pub(crate) fn set_steps(&mut self, attempted: u64, applied: u64) {
        (self.attempted, self.applied) = (attempted, applied);
    }

    /// One optimizer step on `batch · sequence` ids and the ids that follow each; a target below 0 is not counted.
    ///
    /// Steps beyond those that the program plans keep the last one's learning rate.
    ///
    /// # Errors
    /// R0107, R0604; R0701 on a GPU.
    pub fn step(&mut self, tokens: &[i32], targets: &[i32]) -> Result<StepStats, Error> {
        self.begin_step(tokens, targets)?;
        self.end_step()
    }

    /// Starts a step, as [`Self::step`] does, and comes back before it is done where the device works on its own.
    ///
    /// # Errors
    /// R0107, R0604; R0701 on a GPU.
    pub(crate) fn begin_step(&mut self, tokens: &[i32], targets: &[i32]) -> Result<(), Error> {
        let training = &self.program.training;
        let (rows, accumulation, seed) = (training.micro_batch, training.accumulation, training.seed);
        let (ranks, own) = self.ranks;
        let micro = (rows * self.program.data.sequence) as usize;
        self.check_ids(tokens, targets, micro * (accumulation * ranks) as usize)?;
        self.refresh()?;
        let step = self.attempted + 1;
        let counted = targets.iter().filter(|&&t| t >= 0).count();
        let device = &mut self.device;
        for slot in 0..accumulation {
            let number = slot * ranks + own;
            let range = number as usize * micro..(number as usize + 1) * micro;
            write_all(device, &self.train.tokens, slot, &tokens[range.clone()])?;
            write_all(device, &self.train.targets, slot, &targets[range])?;
            let first = (number * rows) as u32;
            let rng = [seed as u32, (seed >> 32) as u32, step as u32, first].map(|word| word as i32);
            write_all(device, &self.train.rng, slot, &rng)?;
        }
        write_all(device, &self.train.inverse_targets, 0, &[inverse(counted)])?;
        if self.under_way == 0 {
            // While steps are under way the device alone knows how many were applied, and counts on itself.
            write_all(device, &self.train.applied_steps, 0, &[self.applied.min(self.planned) as i32])?;
        }
        device.start(EntryKind::Train, &self.words)?;
        self.attempted = step;
        self.under_way += 1;
        Ok(())
    }

    /// Waits for the oldest step that was begun and not ended, and says what it did.
    ///
    /// # Errors
    /// R0701 on a GPU.
    pub(crate) fn end_step(&mut self) -> Result<StepStats, Error> {
        let step = self.attempted + 1 - self.under_way;
        let words = self.device.finish()?;
        self.under_way = self.under_way.saturating_sub(1);
        Ok(self.stats(step, &words))
    }

    /// Steps begun and not ended.
    pub(crate) fn under_way(&self) -> u64 {
        self.under_way
    }

    /// Steps to begin before the first is ended, so that the device never waits.
    pub(crate) fn ahead(&self) -> u64 {
        self.device.ahead() as u64
    }

    /// Device memory that the program takes, where it is not the host's.
    pub fn device_bytes(&self) -> Option<u64> {
        self.device.device_bytes()
    }

    fn stats(&mut self, step: u64, words: &[[u8; 4]]) -> StepStats {
        let one = |buffer: Option<BufferId>| {
            let at = self.words.iter().position(|word| Some(word.buffer) == buffer)?;
            words.get(at).map(|&word| f32::from_le_bytes(word))
        };
        // In the order of the batch's micro-batches, whichever rank had which.
        let losses = self.words.iter().zip(words).filter(|(word, _)| Some(word.buffer) == self.train.loss);
        let loss = losses.map(|(_, &word)| f64::from(f32::from_le_bytes(word))).sum::<f64>() as f32;
        let grad_norm = one(self.train.grad_norm);
        let flag = one(self.train.finite).unwrap_or(1.0);
        let applied = flag != 0.0;
        let learning_rate =
            tables::learning_rate(&self.program.training.schedule, self.applied.min(self.planned));
        self.applied += u64::from(applied);
        let finite = applied && f32::is_finite(loss) && grad_norm.is_none_or(f32::is_finite);
        let first_bad = one(self.train.first_bad).filter(|row| *row >= 0.0).map(|row| row as u64);
        StepStats {
            step,
            loss,
            grad_norm,
            learning_rate,
            finite,
            loss_scale: one(self.train.loss_scale),
            scale_exhausted: one(self.train.scale_exhausted).is_some_and(|flag| flag != 0.0),
            first_bad,
        }
    }

    /// Mean loss of one micro-batch of `micro_batch · sequence` ids, each rank's own; a target below 0 is not counted.
    ///
    /// # Errors
    /// R0107, R0604.
    pub fn evaluate(&mut self, tokens: &[i32], targets: &[i32]) -> Result<f32, Error> {
        let own = self.ranks.1 as usize;
        Ok(self.evaluate_ranks(tokens, targets)?.get(own).copied().unwrap_or(0.0))
    }

    /// The losses of the micro-batches that all ranks evaluate, by rank.
    pub(crate) fn evaluate_ranks(&mut self, tokens: &[i32], targets: &[i32]) -> Result<Vec<f32>, Error> {
        let micro = self.program.training.micro_batch * self.program.data.sequence;
        self.check_ids(tokens, targets, micro as usize)?;
        let counted = targets.iter().filter(|&&t| t >= 0).count();
        write_all(&mut self.device, &self.evaluate.tokens, 0, tokens)?;
        write_all(&mut self.device, &self.evaluate.targets, 0, targets)?;
        write_all(&mut self.device, &self.evaluate.inverse_targets, 0, &[inverse(counted)])?;
        self.refresh()?;
        self.device.run(EntryKind::Evaluate)?;
        let mut losses = vec![0f32; self.ranks.0 as usize];
        if let Some(buffer) = self.evaluate.loss {
            self.device.read(buffer, 0, 0, bytemuck::cast_slice_mut(&mut losses))?;
        }
        Ok(losses)
    }

    /// Ranks that share the batch, and this one's place among them.
    pub(crate) fn ranks(&self) -> (u64, u64) {
        self.ranks
    }

    /// Logits that follow the last of `ids`: at least one id and at most `sequence`.
    ///
    /// # Errors
    /// R0107, R0603, R0604.
    pub fn logits(&mut self, ids: &[i32]) -> Result<Vec<f32>, Error> {
        let buffer = self.logits.logits.ok_or(Error::NoLogits)?;
        let sequence = self.program.data.sequence as usize;
        if ids.is_empty() || ids.len() > sequence {
            return Err(Error::WrongLength { expected: sequence, found: ids.len() });
        }
        check_range(ids, self.program.data.vocab)?;
        // Attention looks back only, so what stands to the right of the last id does not matter.
        let mut padded = ids.to_vec();
        padded.resize(sequence, 0);
        write_all(&mut self.device, &self.logits.tokens, 0, &padded)?;
        self.refresh()?;
        self.device.run(EntryKind::Logits)?;
        let vocab = self.program.data.vocab;
        let mut out = vec![0f32; vocab as usize];
        let start = (ids.len() as u64 - 1) * vocab * 4;
        self.device.read(buffer, 0, start, bytemuck::cast_slice_mut(&mut out))?;
        Ok(out)
    }

    /// The elements of a parameter; all ranks call it.
    ///
    /// # Errors
    /// R0202 for an index that is not in [`Program::params`]; R0801.
    pub fn param(&self, index: usize) -> Result<Vec<f32>, Error> {
        let bytes = self.whole(&self.stored_param(index)?)?;
        Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    fn stored_param(&self, index: usize) -> Result<Stored, Error> {
        let param = self.program.params.get(index);
        let param = param.ok_or_else(|| malformed(format!("no parameter {index}")))?;
        Ok(Stored::of_param(&self.program, param))
    }

    /// The gradient of a parameter in the last step, before clipping: the buffer of its name with `.grad` behind it.
    ///
    /// # Errors
    /// R0202 for an index that is not in [`Program::params`], or a program that keeps no such buffer.
    pub fn gradient(&self, index: usize) -> Result<Vec<f32>, Error> {
        let param =
            self.program.params.get(index).ok_or_else(|| malformed(format!("no parameter {index}")))?;
        let name = format!("{}.grad", self.program.buffers[param.buffer.0 as usize].name);
        let buffer = self.program.buffers.iter().position(|b| b.name == name);
        let buffer = buffer.ok_or_else(|| malformed(format!("no buffer `{name}`")))?;
        let mut out = vec![0f32; param.dims.iter().product::<u64>() as usize];
        let id = BufferId(buffer as u32);
        if self.program.buffers[buffer].dtype == ElementType::Bf16 {
            let mut stored = vec![half::bf16::ZERO; out.len()];
            self.device.read(id, param.slot, 0, bytemuck::cast_slice_mut(&mut stored))?;
            out.iter_mut().zip(stored).for_each(|(x, stored)| *x = stored.to_f32());
        } else {
            self.device.read(id, param.slot, 0, bytemuck::cast_slice_mut(&mut out))?;
        }
        Ok(out)
    }

    /// The parameters whose gradients lie in a row of the grid on which the norm is summed, in order.
    pub fn at_grid_row(&self, row: u64) -> Vec<&str> {
        let here = self.program.params.iter().filter(|param| {
            let elements = param.dims.iter().product::<u64>();
            let last = param.grid_row + (self.grid_start(param) + elements).saturating_sub(1) / GRADIENT_GRID;
            (param.grid_row..=last).contains(&row)
        });
        let mut here: Vec<&Param> = here.collect();
        here.sort_by_key(|param| (param.grid_row, self.grid_start(param)));
        here.into_iter().map(|param| param.name.as_str()).collect()
    }

    /// Elements of its first row of the grid before a parameter.
    fn grid_start(&self, param: &Param) -> u64 {
        let buffer = |id: BufferId| self.program.buffers.get(id.0 as usize);
        let start = match param.shard {
            Some(shard) => shard.start,
            None => {
                let own = buffer(param.buffer);
                let whole = own.and_then(|own| own.within).and_then(buffer);
                own.zip(whole).map_or(0, |(own, whole)| {
                    (own.offset.saturating_sub(whole.offset) + param.slot * own.stride)
                        / element_bytes(own.dtype)
                })
            }
        };
        start % GRADIENT_GRID
    }

    /// Sets the elements of a parameter; of several ranks each keeps its own.
    ///
    /// # Errors
    /// R0202 for an index that is not in [`Program::params`], or another number of elements.
    pub fn set_param(&mut self, index: usize, values: &[f32]) -> Result<(), Error> {
        let stored = self.stored_param(index)?;
        if values.len() as u64 != stored.elements {
            let name = &self.program.params[index].name;
            return Err(malformed(format!("`{name}` does not have {} elements", values.len())));
        }
        let (range, _) = self.held(&stored);
        self.write_held(&stored, bytemuck::cast_slice(&values[range.start as usize..range.end as usize]))
    }

    /// A number for parameters and optimizer state, 128 bits, the same for every number of ranks and ZeRO stage; all ranks call it.
    ///
    /// # Errors
    /// R0801; R0701 on a GPU.
    pub fn fingerprint(&self) -> Result<u128, Error> {
        crate::fingerprint::of(self)
    }

    fn check_ids(&self, tokens: &[i32], targets: &[i32], expected: usize) -> Result<(), Error> {
        for ids in [tokens, targets] {
            if ids.len() != expected {
                return Err(Error::WrongLength { expected, found: ids.len() });
            }
        }
        let vocab = self.program.data.vocab;
        check_range(tokens, vocab)?;
        match targets.iter().find(|&&t| t >= 0 && t as u64 >= vocab) {
            Some(&id) => Err(Error::IdOutOfRange { id: id as u64, vocab }),
            None => Ok(()),
        }
    }
}

fn check_range(ids: &[i32], vocab: u64) -> Result<(), Error> {
    match ids.iter().find(|&&id| id < 0 || id as u64 >= vocab) {
        Some(&id) => Err(Error::IdOutOfRange { id: u64::from(id as u32), vocab }),
        None => Ok(()),
    }
}

/// The last applied step that every table by step has an element for: kernels read no further.
fn planned(program: &Program) -> u64 {
    let by_step = |formula: &Formula| {
        matches!(formula, Formula::LearningRate | Formula::BiasCorrection { .. } | Formula::Decay { .. })
    };
    let tables = program.tables.iter().filter(|table| by_step(&table.formula));
    let elements = tables.filter_map(|t| program.buffers.get(t.buffer.0 as usize)).map(|b| b.elements);
    elements.min().unwrap_or(i32::MAX as u64).saturating_sub(1)
}

fn inverse(targets: usize) -> f32 {
    if targets == 0 { 0.0 } else { (1.0 / targets as f64) as f32 }
}

fn write_all<T: bytemuck::NoUninit>(
    device: &mut Box<dyn Device + Send>,
    buffers: &[BufferId],
    slot: u64,
    values: &[T],
) -> Result<(), Error> {
    buffers.iter().try_for_each(|&buffer| device.write(buffer, slot, bytemuck::cast_slice(values)))
}

fn malformed(reason: String) -> Error {
    Error::ArtifactMalformed { path: crate::artifact::PROGRAM_FILE.into(), reason }
}

/// Checks that buffers hold what the runtime will put in them.
fn check(program: &Program) -> Result<(), String> {
    let (training, sequence) = (&program.training, program.data.sequence);
    let micro = training.micro_batch.checked_mul(sequence).ok_or("a micro-batch too large")?;
    let in_train = Buffers::of(program, &program.train);
    let in_evaluate = Buffers::of(program, &program.evaluate);
    let fits = |ids: &[BufferId], dtype: ElementType, elements: u64, slots: u64| {
        ids.iter().map(|id| &program.buffers[id.0 as usize]).try_for_each(|b| {
            let fits = b.dtype == dtype && b.elements >= elements && b.slots >= slots;
            if fits { Ok(()) } else { Err(format!("`{}` does not hold a batch", b.name)) }
        })
    };
    fits(&in_train.tokens, ElementType::I32, micro, training.accumulation)?;
    fits(&in_train.targets, ElementType::I32, micro, training.accumulation)?;
    fits(&in_train.rng, ElementType::I32, 4, training.accumulation)?;
    fits(&in_evaluate.tokens, ElementType::I32, micro, 1)?;
    fits(&in_evaluate.targets, ElementType::I32, micro, 1)?;
    let ranks = program.groups.iter().find(|group| group.axes == ["data"]).map_or(1, |group| group.size);
    let losses = |loss: Option<BufferId>| loss.into_iter().collect::<Vec<_>>();
    fits(&losses(in_train.loss), ElementType::F32, ranks, training.accumulation)?;
    fits(&losses(in_evaluate.loss), ElementType::F32, ranks, 1)?;
    for table in &program.tables {
        let held = program.buffers.get(table.buffer.0 as usize).is_some_and(|b| match b.dtype {
            ElementType::F32 => true,
            ElementType::I32 => matches!(table.formula, Formula::Constant(_)),
            ElementType::Bf16 | ElementType::F16 => false,
        });
        if !held {
            return Err("a table does not fit its buffer".into());
        }
    }
    for param in &program.params {
        let stored = Stored::of_param(program, param);
        let moments = param.moments.iter().map(|moment| Stored::of_moment(program, moment));
        let fits = stored.dtype == ElementType::F32 && stored.fits(program);
        if !fits || !moments.into_iter().all(|moment| moment.fits(program)) {
            return Err(format!("parameter `{}` does not fit its buffer", param.name));
        }
    }
    Ok(())
}

impl Buffers {
    /// What an entry's instructions name, by role.
    fn of(program: &Program, entry: &Entry) -> Self {
        let mut used = BTreeSet::new();
        collect(&entry.body, &mut used);
        let of = |role: Role| -> Vec<BufferId> {
            let has_role =
                |id: &&BufferId| program.buffers.get(id.0 as usize).is_some_and(|b| b.role == role);
            used.iter().filter(has_role).copied().collect()
        };
        let one = |role| of(role).first().copied();
        Self {
            tokens: of(Role::Tokens),
            targets: of(Role::Targets),
            inverse_targets: of(Role::InvTargets),
            rng: of(Role::Rng),
            applied_steps: of(Role::AppliedSteps),
            loss: one(Role::Loss),
            grad_norm: one(Role::GradNorm),
            finite: one(Role::Finite),
            loss_scale: one(Role::LossScale),
            scale_exhausted: one(Role::ScaleExhausted),
            first_bad: one(Role::FirstBad),
            logits: one(Role::Logits),
        }
    }
}

impl Buffers {
    /// The words that a step leaves for the host.
    fn words(&self, program: &Program) -> Vec<Word> {
        let ranks = program.groups.iter().find(|group| group.axes == ["data"]).map_or(1, |group| group.size);
        // The batch's micro-batches in their order: a slot a turn of the ranks.
        let losses = self.loss.iter().flat_map(|&buffer| {
            let slots = 0..program.training.accumulation;
            slots.flat_map(move |slot| (0..ranks).map(move |rank| Word { buffer, slot, start: 4 * rank }))
        });
        let scalars = [self.grad_norm, self.finite, self.loss_scale, self.scale_exhausted, self.first_bad];
        losses.chain(scalars.into_iter().flatten().map(|buffer| Word { buffer, slot: 0, start: 0 })).collect()
    }
}

fn collect(body: &[Instruction], used: &mut BTreeSet<BufferId>) {
    let mut place = |p: &Place| _ = used.insert(p.buffer);
    for instruction in body {
        match &instruction.action {
            Action::Launch { args, .. } => args.iter().for_each(|arg| of_arg(arg, &mut place)),
            Action::Gemm(gemm) => {
                [gemm.a.at, gemm.b.at, gemm.c.at].iter().for_each(&mut place);
                gemm.epilogue.iter().flat_map(|e| &e.args).for_each(|arg| of_arg(arg, &mut place));
            }
            Action::Zero { at } => place(at),
            Action::Collective(collective) => {
                collective.parts.iter().flat_map(|p| [&p.from, &p.to]).for_each(&mut place);
            }
            Action::Loop { body, .. } => {
                let mut inner = BTreeSet::new();
                collect(body, &mut inner);
                inner.iter().for_each(|&buffer| place(&Place::of(buffer)));
            }
        }
    }
}

fn of_arg(arg: &Arg, place: &mut impl FnMut(&Place)) {
    match arg {
        Arg::At(at) => place(at),
        Arg::Turn => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::bigram;

    fn session(dir: &std::path::Path) -> Session {
        let artifact = bigram(dir);
        Session::new(&artifact.program, artifact.cpu(2).unwrap()).unwrap()
    }

    /// The loss of the first step is close to ln 256, and every micro-batch counts.
    #[test]
    fn a_step_reports_the_mean_loss_of_the_whole_batch() {
        let dir = tempfile::tempdir().unwrap();
        let mut s = session(dir.path());
        let tokens: Vec<i32> = (0..16).collect();
        let mut targets: Vec<i32> = (1..17).collect();
        targets[3] = -100;
        let stats = s.step(&tokens, &targets).unwrap();
        assert!((stats.loss - 256f32.ln()).abs() < 0.05, "{stats:?}");
        // 15 targets of weight 1/15, nearly one-hot gradients: norm² ≈ 1/15.
        assert!((stats.grad_norm.unwrap() - (1f32 / 15.0).sqrt()).abs() < 0.01, "{stats:?}");
        assert_eq!((stats.step, stats.finite, s.steps()), (1, true, (1, 1)));
        assert!((stats.learning_rate - 2.0 / 3.0).abs() < 1e-9);
        let again = s.step(&tokens, &targets).unwrap();
        assert!(again.loss < stats.loss);
        assert!((again.learning_rate - 4.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_step_that_is_not_finite_is_not_applied() {
        let dir = tempfile::tempdir().unwrap();
        let mut s = session(dir.path());
        let mut values = s.param(0).unwrap();
        values[256] = f32::NAN;
        s.set_param(0, &values).unwrap();
        let stats = s.step(&[1; 16], &[1; 16]).unwrap();
        assert!(!stats.finite);
        assert_eq!(s.steps(), (1, 0));
        let after = s.param(0).unwrap();
        assert!(after.iter().zip(&values).all(|(a, b)| a.to_bits() == b.to_bits()));
    }

    /// The tables have an element a planned step, and a kernel would read past their end.
    #[test]
    fn steps_beyond_the_plan_keep_the_last_learning_rate() {
        let dir = tempfile::tempdir().unwrap();
        let mut s = session(dir.path());
        s.set_steps(1000, 1000);
        let stats = s.step(&[1; 16], &[2; 16]).unwrap();
        assert_eq!(stats.learning_rate, tables::learning_rate(&s.program.training.schedule, 63));
        let mut read = 0i32;
        s.device.read(s.train.applied_steps[0], 0, 0, bytemuck::bytes_of_mut(&mut read)).unwrap();
        assert_eq!(read, 64, "63, and the kernel counts on");
        assert_eq!((s.steps(), stats.finite), ((1001, 1001), true));
    }

    #[test]
    fn evaluation_counts_targets_once_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut s = session(dir.path());
        let before = s.param(0).unwrap();
        let one = s.evaluate(&[7; 8], &[9; 8]).unwrap();
        let mut few = [-100; 8];
        few[5] = 9;
        assert!((s.evaluate(&[7; 8], &few).unwrap() - one).abs() < 1e-6);
        assert_eq!(s.evaluate(&[7; 8], &[-100; 8]).unwrap(), 0.0);
        assert_eq!(s.param(0).unwrap(), before);
    }

    #[test]
    fn logits_belong_to_the_last_id() {
        let dir = tempfile::tempdir().unwrap();
        let mut s = session(dir.path());
        let table = s.param(0).unwrap();
        assert_eq!(s.logits(&[3, 5]).unwrap(), table[5 * 256..6 * 256]);
        assert_eq!(s.logits(&[1, 2, 3, 4]).unwrap(), table[4 * 256..5 * 256]);
    }

    #[test]
    fn wrong_ids_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut s = session(dir.path());
        let code = |r: Result<StepStats, Error>| r.unwrap_err().code();
        assert_eq!(code(s.step(&[0; 15], &[0; 16])), "R0604");
        assert_eq!(code(s.step(&[256; 16], &[0; 16])), "R0107");
        assert_eq!(code(s.step(&[-1; 16], &[0; 16])), "R0107");
        assert_eq!(code(s.step(&[0; 16], &[256; 16])), "R0107");
        assert_eq!(s.logits(&[]).unwrap_err().code(), "R0604");
        assert_eq!(s.logits(&[0; 5]).unwrap_err().code(), "R0604");
        assert_eq!(s.set_param(0, &[0.0]).unwrap_err().code(), "R0202");
        assert_eq!(s.param(1).unwrap_err().code(), "R0202");
    }

    #[test]
    fn buffers_that_do_not_fit_the_numbers_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let artifact = bigram(dir.path());
        let refuse = |change: &dyn Fn(&mut Program)| {
            let mut program = artifact.program.clone();
            change(&mut program);
            Session::new(&program, artifact.cpu(1).unwrap()).map(|_| ()).unwrap_err().to_string()
        };
        assert!(refuse(&|p| p.data.sequence = 5).contains("`tokens` does not hold a batch"));
        assert!(refuse(&|p| p.training.accumulation = 3).contains("does not hold a batch"));
        assert!(refuse(&|p| p.params[0].dims[0] = 255).contains("parameter `table` does not fit its buffer"));
        assert!(refuse(&|p| p.params[0].buffer.0 = 99).contains("does not fit"));
        assert!(refuse(&|p| p.tables[0].buffer.0 = 99).contains("a table does not fit"));
    }
}
