//! A rule on a piece of the training state: its masters, gradients, moments and the scalars of the step to steps.

use dspc_graph::rowfn::RowFn;
use dspc_plan::Plan;
use dspc_spec::settings::Rule;
use dspc_train::optimizer::adam::Decay;
use dspc_train::optimizer::element::Copies;
use dspc_train::optimizer::{StepTable, adam, lion, name, sgd, tables};

use super::{NORM_COLS, adafactor, lamb, launch, muon};
use crate::piece::Piece;
use crate::pool::Pool;
use crate::state::State;
use crate::steps::{Place, Step};

/// The scalars of a step.
pub(super) struct Scalars {
    /// What gradients are multiplied by.
    pub factor: Place,
    /// The learning rate.
    pub lr: Place,
    /// 1 if the step is applied.
    pub finite: Place,
    /// What follows from the applied steps.
    pub tables: Vec<(StepTable, Place)>,
}

impl Scalars {
    /// Those of the tables that a rule reads, in its order.
    pub fn of(&self, rule: &Rule) -> Vec<Place> {
        let place = |table: &StepTable| self.tables.iter().find(|(t, _)| t == table).map(|(_, place)| *place);
        tables(rule).iter().filter_map(place).collect()
    }
}

/// Applies a piece's rule to what the rank updates of it.
pub(super) fn apply(
    (plan, state): (&Plan, &State),
    piece: &Piece,
    scalars: &Scalars,
    pool: &mut Pool,
) -> Vec<Step> {
    match piece.update.rule {
        Rule::Lamb { adam, ratio } => lamb::apply(plan, piece, (adam, ratio), scalars, pool),
        Rule::Adafactor(rule) => adafactor::apply((plan, state), piece, rule, scalars, pool),
        Rule::Muon(rule) => muon::apply(plan, piece, rule, scalars, pool),
        Rule::AdamW(rule) => elements(piece, scalars, pool, |rows, copies| {
            adam::update(rows, NORM_COLS, rule, Decay::Decoupled, piece.update.pace, copies)
        }),
        Rule::Adam(rule) => elements(piece, scalars, pool, |rows, copies| {
            adam::update(rows, NORM_COLS, rule, Decay::InGradient, piece.update.pace, copies)
        }),
        Rule::Sgd { momentum, nesterov } => elements(piece, scalars, pool, |rows, copies| {
            sgd::update(rows, NORM_COLS, (momentum, nesterov), piece.update.pace, copies)
        }),
        Rule::Lion { betas } => elements(piece, scalars, pool, |rows, copies| {
            lion::update(rows, NORM_COLS, betas, piece.update.pace, copies)
        }),
    }
}

/// A rule that changes each element by itself.
fn elements(
    piece: &Piece,
    scalars: &Scalars,
    pool: &mut Pool,
    function: impl Fn(u64, Copies) -> RowFn,
) -> Vec<Step> {
    let rule = &piece.update.rule;
    let at = piece.operands();
    let kept = at.moments.len();
    let places: Vec<Place> =
        [at.masters, at.gradients].into_iter().chain(at.moments).chain(at.copy).collect();
    piece.over_turns(places, piece.updated(), |rows, at| {
        let copies = if at.len() > kept + 2 { Copies::Yes } else { Copies::No };
        let numbers = [scalars.factor, scalars.lr].into_iter().chain(scalars.of(rule));
        let written = [at[0]].into_iter().chain(at[2..].iter().copied());
        let reads = at[..kept + 2].iter().copied().chain(numbers).chain([scalars.finite]);
        launch(pool, name(rule), function(rows, copies), reads.chain(written).collect())
    })
}
