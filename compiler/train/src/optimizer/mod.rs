//! The update of one step: the gradient's norm, what follows from it, and each optimizer's own rule; each as a row function over flat ranges.
//!
//! A rule's file holds its row functions and, as scalar arithmetic in f64, what they are tested against.

pub mod adafactor;
pub mod adam;
mod assign;
pub mod element;
pub mod lamb;
pub mod lion;
mod mistakes;
pub mod muon;
pub mod norm;
#[cfg(test)]
mod reference;
pub mod scaler;
pub mod sgd;

pub use assign::{Update, UpdateId, assign_updates};

use dspc_spec::settings::{Adam, Rule};

/// What a group of parameters says besides the rule.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Pace {
    /// Factor on the learning rate.
    pub lr: f64,
    /// Decay of the weights.
    pub weight_decay: f64,
}

/// A number that follows from the applied steps, tabulated before the run.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum StepTable {
    /// 1 − βᵗ, t from 1.
    BiasCorrection(f64),
    /// 1 − t^−power, t from 1.
    Decay(f64),
}

/// What an optimizer keeps for a parameter from step to step.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Moment {
    /// Decayed sum of gradients, an element each.
    First,
    /// Decayed sum of their squares, an element each.
    Second,
    /// Sum of gradients of which a share is kept, an element each.
    Momentum,
    /// A matrix's squares, one a row.
    SecondRows,
    /// A matrix's squares, one a column.
    SecondColumns,
}

impl Moment {
    /// Elements of a matrix's.
    pub fn elements(self, rows: u64, cols: u64) -> u64 {
        match self {
            Moment::First | Moment::Second | Moment::Momentum => rows * cols,
            Moment::SecondRows => rows,
            Moment::SecondColumns => cols,
        }
    }

    /// As flat ranges and the printed layers have it.
    pub fn short(self) -> &'static str {
        match self {
            Moment::First => "m",
            Moment::Second => "v",
            Moment::Momentum => "momentum",
            Moment::SecondRows => "v_rows",
            Moment::SecondColumns => "v_columns",
        }
    }

    /// As PyTorch's optimizers and DeepSpeed's checkpoints have it.
    pub fn name(self) -> &'static str {
        match self {
            Moment::First => "exp_avg",
            Moment::Second => "exp_avg_sq",
            Moment::Momentum => "momentum_buffer",
            Moment::SecondRows => "exp_avg_sq_row",
            Moment::SecondColumns => "exp_avg_sq_col",
        }
    }
}

/// A rule's name, as it is written in a spec.
pub fn name(rule: &Rule) -> &'static str {
    match rule {
        Rule::AdamW(_) => "adamw",
        Rule::Adam(_) => "adam",
        Rule::Sgd { .. } => "sgd",
        Rule::Lion { .. } => "lion",
        Rule::Lamb { .. } => "lamb",
        Rule::Adafactor(_) => "adafactor",
        Rule::Muon(_) => "muon",
    }
}

/// What a rule keeps for a parameter of so many dims.
pub fn moments(rule: &Rule, dims: usize) -> &'static [Moment] {
    match rule {
        Rule::AdamW(_) | Rule::Adam(_) | Rule::Lamb { .. } => &[Moment::First, Moment::Second],
        Rule::Sgd { momentum: 0.0, .. } => &[],
        Rule::Sgd { .. } | Rule::Muon(_) => &[Moment::Momentum],
        Rule::Lion { .. } => &[Moment::First],
        Rule::Adafactor(_) if dims == 2 => &[Moment::SecondRows, Moment::SecondColumns],
        Rule::Adafactor(_) => &[Moment::Second],
    }
}

/// The tables that a rule reads, in the order of its operands.
pub fn tables(rule: &Rule) -> Vec<StepTable> {
    match rule {
        Rule::AdamW(adam) | Rule::Adam(adam) | Rule::Lamb { adam, .. } => bias_corrections(adam).into(),
        Rule::Adafactor(rule) => vec![StepTable::Decay(rule.decay_power)],
        Rule::Sgd { .. } | Rule::Lion { .. } | Rule::Muon(_) => vec![],
    }
}

fn bias_corrections(adam: &Adam) -> [StepTable; 2] {
    [StepTable::BiasCorrection(adam.betas.0), StepTable::BiasCorrection(adam.betas.1)]
}
