//! LAMB on a class: sums of each row of the grid, a ratio a tensor and turn, then the rows again.

use dspc_plan::Plan;
use dspc_spec::settings::Adam;
use dspc_train::optimizer::element::Copies;
use dspc_train::optimizer::lamb;

use super::apply::Scalars;
use super::tensors::{GridRows, tensors};
use super::{NORM_COLS, launch, launch_by};
use crate::exchange::collective;
use crate::piece::Piece;
use crate::pool::Pool;
use crate::steps::{CollectiveKind, Place, Step};

pub(super) fn apply(
    plan: &Plan,
    piece: &Piece,
    (adam, ratio): (Adam, (f64, f64)),
    scalars: &Scalars,
    pool: &mut Pool,
) -> Vec<Step> {
    let pace = piece.update.pace;
    let at = piece.operands();
    let (m, v) = (at.moments[0], at.moments[1]);
    let bias = scalars.of(&piece.update.rule);
    let [p_squares, u_squares, ratios] =
        ["lamb.p", "lamb.u", "lamb.ratio"].map(|name| GridRows::new(piece, name, pool));
    let mut places = vec![at.masters, at.gradients, m, v];
    let own = [p_squares, u_squares].map(|rows| rows.own(&places, pool));
    places.extend(own);
    let mut steps = piece.over_turns(places, piece.updated(), |rows, at| {
        let function = lamb::sums(rows, NORM_COLS, adam, pace);
        let numbers = [scalars.factor].into_iter().chain(bias.iter().copied()).chain([scalars.finite]);
        let operands = at[..4].iter().copied().chain(numbers).chain(at[2..].iter().copied());
        launch(pool, "lamb_sums", function, operands.collect())
    });
    let parts = [p_squares.parts(), u_squares.parts()].concat();
    if !parts.is_empty() {
        steps.push(collective(CollectiveKind::AllGather, parts, &piece.name));
    }
    steps.push(ratios.zero());
    for tensor in tensors(plan, piece) {
        let function = lamb::ratios(piece.turns, tensor.grid_rows(), ratio);
        let operands = [p_squares, u_squares, ratios].map(|rows| rows.of(&tensor)).to_vec();
        steps.push(launch_by(pool, "lamb_ratio", function, operands, ratios.stride()));
    }
    let own_ratios = ratios.updated(pool);
    let places: Vec<Place> = [at.masters, m, v, own_ratios].into_iter().chain(at.copy).collect();
    steps.extend(piece.over_turns(places, piece.updated(), |rows, at| {
        let copies = if at.len() > 4 { Copies::Yes } else { Copies::No };
        let function = lamb::update(rows, NORM_COLS, adam, pace, copies);
        let numbers = [scalars.lr].into_iter().chain(bias.iter().copied()).chain([scalars.finite]);
        let written = [at[0]].into_iter().chain(at.get(4).copied());
        launch(pool, "lamb", function, at[..4].iter().copied().chain(numbers).chain(written).collect())
    }));
    steps
}
