//! Fitting: how much is computed again, so that a program fits the memory it may use.
//!
//! Reads   a checked spec; what is known of the device.
//! Writes  the program of the cheapest choice that `recompute` allows and that fits; E0530 if there is none, before anything is built or run.
//! Keeps   the spec's batch: a smaller micro-batch is offered, never taken.
//! Cost    a lowering a choice, and more to say what would fit.

use std::collections::VecDeque;

use dspc_program::{Family, Program};
use dspc_source::{Diagnostic, SourceMap, Span};
use dspc_spec::settings::{self, Spec};
use dspc_train::Recompute;

use crate::passes::{self, Choices, Lowered};

/// What a GPU holds besides a program's arenas: a context, the images of a program's kernels and of a matrix library's, graphs, the library's
/// workspace. A bound, not a measure; the runtime asks the card for what it has left before it takes anything.
const CUDA_BYTES: u64 = 640 << 20;

/// What a program is made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Device {
    /// The kind.
    pub family: Family,
    /// The memory it has, where the device is at hand.
    pub bytes: Option<u64>,
}

impl From<Family> for Device {
    /// One that is not at hand: only the spec says what may be used.
    fn from(family: Family) -> Self {
        Self { family, bytes: None }
    }
}

/// Bytes by what they are for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Memory {
    /// The program's arenas, in its order.
    pub arenas: Vec<(String, u64)>,
    /// What the device's driver takes.
    pub driver: u64,
}

impl Memory {
    /// Of a program.
    pub fn of(program: &Program) -> Self {
        let driver = match program.family {
            Family::Cpu => 0,
            Family::Cuda => CUDA_BYTES,
        };
        Self { arenas: program.arenas.iter().map(|a| (a.name.clone(), a.bytes)).collect(), driver }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.arenas.iter().map(|(_, bytes)| bytes).sum::<u64>() + self.driver
    }
}

/// Lowers a spec with the cheapest recomputation that fits.
pub(crate) fn fit(
    spec: &Spec,
    sources: &SourceMap,
    characters: Option<&str>,
    device: Device,
) -> Result<Lowered, Vec<Diagnostic>> {
    let fitting = Fitting { spec, sources, characters, device };
    let budget = fitting.budget();
    let mut choices = VecDeque::from(fitting.allowed());
    let mut last: Option<Lowered> = None;
    while let Some(recompute) = choices.pop_front() {
        let lowered = fitting.lower(Choices { recompute, ..Choices::of(spec) })?;
        let total = Memory::of(&lowered.program).total();
        if budget.is_none_or(|budget| total <= budget) {
            return Ok(lowered);
        }
        if recompute == Recompute::Norms && !choices.is_empty() {
            // Before whole turns, ever more of their products.
            let count = dspc_train::products_of_turns(&lowered.plan.train);
            (1..=count).rev().for_each(|count| choices.push_front(Recompute::Products(count)));
        }
        last = Some(lowered);
    }
    let Some(lowered) = last else { return Err(vec![]) };
    Err(vec![fitting.too_large(&lowered, budget.unwrap_or(0))?])
}

struct Fitting<'a> {
    spec: &'a Spec,
    sources: &'a SourceMap,
    characters: Option<&'a str>,
    device: Device,
}

impl Fitting<'_> {
    fn lower(&self, choices: Choices) -> Result<Lowered, Vec<Diagnostic>> {
        passes::lower_as(self.spec, self.sources, self.characters, self.device.family, choices)
    }

    /// The least of what the spec allows and what the device has.
    fn budget(&self) -> Option<u64> {
        [self.spec.settings.memory.value, self.device.bytes].into_iter().flatten().min()
    }

    /// Cheapest first.
    fn allowed(&self) -> Vec<Recompute> {
        match self.spec.settings.recompute.value {
            settings::Recompute::None => vec![Recompute::None],
            settings::Recompute::Norms => vec![Recompute::Norms],
            settings::Recompute::Block => vec![Recompute::Block],
            settings::Recompute::Auto => ALL.to_vec(),
        }
    }

    /// E0530.
    fn too_large(&self, lowered: &Lowered, budget: u64) -> Result<Diagnostic, Vec<Diagnostic>> {
        let memory = Memory::of(&lowered.program);
        let title =
            format!("this needs {} of memory, and {} may be used", size(memory.total()), size(budget));
        let arenas = memory.arenas.iter().filter(|(_, bytes)| *bytes > 0);
        let mut kinds: Vec<String> = arenas.map(|(name, bytes)| format!("{name} {}", size(*bytes))).collect();
        if memory.driver > 0 {
            kinds.push(format!("driver {}", size(memory.driver)));
        }
        let d = match self.limit() {
            Some(span) => Diagnostic::error("E0530", title, span, "what may be used"),
            None => {
                let span = self.spec.model.span;
                Diagnostic::error("E0530", title, span, format!("the device has {}", size(budget)))
            }
        };
        let d = d.note(kinds.join(", "));
        let d = d.note(format!("that is with `recompute = {}`", lowered.plan.train.recompute));
        Ok(d.help(self.remedy(budget)?))
    }

    /// Where the limit that counts is written.
    fn limit(&self) -> Option<Span> {
        let written = self.spec.settings.memory.value?;
        if self.device.bytes.is_some_and(|bytes| bytes < written) {
            None
        } else {
            self.spec.settings.memory.span()
        }
    }

    /// The first change that makes it fit: more recomputation, then smaller micro-batches, then more memory.
    fn remedy(&self, budget: u64) -> Result<String, Vec<Diagnostic>> {
        let own = Choices::of(self.spec);
        let most = self.allowed().into_iter().max().unwrap_or_default();
        let needs = |choices| self.lower(choices).map(|lowered| Memory::of(&lowered.program).total());
        let mut least = needs(Choices { recompute: Recompute::Block, ..own })?;
        for recompute in ALL.into_iter().filter(|r| *r > most) {
            let total = needs(Choices { recompute, ..own })?;
            if total <= budget {
                return Ok(format!("`recompute = {recompute}` needs {}", size(total)));
            }
        }
        for part in (2..=own.micro_batch).filter(|part| own.micro_batch.is_multiple_of(*part)) {
            let (micro_batch, accumulation) = (own.micro_batch / part, own.accumulation * part);
            for recompute in ALL.into_iter().filter(|r| *r >= most) {
                let total = needs(Choices { micro_batch, accumulation, recompute })?;
                least = least.min(total);
                if total > budget {
                    continue;
                }
                let with =
                    if recompute == most { String::new() } else { format!(" and `recompute = {recompute}`") };
                return Ok(format!(
                    "`micro_batch: {micro_batch}` with `accumulation: {accumulation}`{with} needs {}",
                    size(total)
                ));
            }
        }
        let least = least.div_ceil(1 << 20);
        Ok(format!("no micro-batch and no recomputation makes it fit: the least is `memory = {least}MiB`"))
    }
}

const ALL: [Recompute; 3] = [Recompute::None, Recompute::Norms, Recompute::Block];

/// `7.45 GiB`, `817.26 MiB`
pub(crate) fn size(bytes: u64) -> String {
    let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.2} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} bytes"),
    }
}
