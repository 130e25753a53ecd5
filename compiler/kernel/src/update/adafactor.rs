//! Adafactor on a class: a bucket's gradients, made whole; each tensor's moments and update from them; then the bucket again; turn by turn.

use dspc_graph::ir::{DType, ParamId};
use dspc_plan::Plan;
use dspc_spec::settings::Adafactor;
use dspc_train::optimizer::element::{self, Copies};
use dspc_train::optimizer::{Moment, adafactor, norm};

use super::apply::Scalars;
use super::tensors::{Bucket, GridRows, Tensor, tensors};
use super::{NORM_COLS, launch, launch_by, parts_of_columns};
use crate::exchange::collective;
use crate::piece::Piece;
use crate::pool::Pool;
use crate::state::State;
use crate::steps::{CollectiveKind, Place, Step, StorageKind};

pub(super) fn apply(
    (plan, state): (&Plan, &State),
    piece: &Piece,
    rule: Adafactor,
    scalars: &Scalars,
    pool: &mut Pool,
) -> Vec<Step> {
    let at = piece.operands();
    let rows = piece.updated() / NORM_COLS;
    let all = tensors(plan, piece);
    let (mut steps, lengths) = match rule.scale_parameter {
        true => lengths(piece, &all, &rule, pool),
        false => (vec![], None),
    };
    let bucket = Bucket::new(piece, "adafactor", DType::F32, pool);
    let function = adafactor::gradient(rows, NORM_COLS);
    let mut body =
        vec![launch(pool, "adafactor_gradient", function, vec![at.gradients, scalars.factor, bucket.own()])];
    body.extend(bucket.gather(piece));
    let beta = scalars.of(&piece.update.rule);
    for tensor in &all {
        let numbers = [beta[0], scalars.finite];
        body.extend(direction(state, tensor, bucket.at(tensor.offset), &rule, numbers, pool));
    }
    let copies = if at.copy.is_some() { Copies::Yes } else { Copies::No };
    let function = adafactor::update(rows, NORM_COLS, &rule, piece.update.pace, copies);
    let reads = [at.masters, bucket.own()].into_iter().chain(lengths).chain([scalars.lr, scalars.finite]);
    let operands = reads.chain([at.masters]).chain(at.copy).collect();
    body.push(launch(pool, "adafactor", function, operands));
    steps.extend(piece.by_turn(body));
    steps
}

/// How long each tensor is, once for each row of the grid; where those are that the rank updates, at the turn.
fn lengths(piece: &Piece, all: &[Tensor], rule: &Adafactor, pool: &mut Pool) -> (Vec<Step>, Option<Place>) {
    let [squares, lengths] = ["adafactor.p", "adafactor.length"].map(|name| GridRows::new(piece, name, pool));
    let masters = piece.operands().masters;
    let places = vec![masters, squares.own(&[masters], pool)];
    let mut steps = piece.over_turns(places, piece.updated(), |rows, at| {
        launch(pool, "sum_of_squares", norm::sum_of_squares(rows, NORM_COLS), at)
    });
    if !squares.parts().is_empty() {
        steps.push(collective(CollectiveKind::AllGather, squares.parts(), &piece.name));
    }
    steps.push(lengths.zero());
    for tensor in all {
        let function = adafactor::lengths(piece.turns, tensor.grid_rows(), tensor.elements(), rule);
        let operands = vec![squares.of(tensor), lengths.of(tensor)];
        steps.push(launch_by(pool, "adafactor_length", function, operands, lengths.stride()));
    }
    let own = lengths.at_each_turn(pool);
    (steps, Some(own))
}

/// The moments of a tensor, and its gradient at `g` turned into its update.
fn direction(
    state: &State,
    tensor: &Tensor,
    g: Place,
    rule: &Adafactor,
    [beta, finite]: [Place; 2],
    pool: &mut Pool,
) -> Vec<Step> {
    let (n, m) = (tensor.rows, tensor.cols);
    let scratch = |pool: &mut Pool, name: &str, elements| {
        let name = format!("adafactor.{name}.{}", tensor.name);
        Place::start(pool.storage(&name, DType::F32, elements, 1, StorageKind::Activation))
    };
    let (squares, by) = (scratch(pool, "squares", n), scratch(pool, "shortening", 1));
    let mut steps = match own_moments(state, tensor.param)[..] {
        [r, c] => {
            let (parts, sums) = column_sums(tensor, pool);
            let mean = scratch(pool, "mean", 1);
            let mut steps = vec![launch(
                pool,
                "adafactor_rows",
                adafactor::rows(n, m, rule),
                vec![g, r, beta, finite, r, parts[0]],
            )];
            steps.extend(sums);
            let total = parts[parts.len() - 1];
            steps.push(launch(
                pool,
                "adafactor_columns",
                adafactor::columns(n, m),
                vec![c, total, beta, finite, c],
            ));
            steps.push(launch(pool, "adafactor_mean", adafactor::mean_of_rows(n), vec![r, mean]));
            let function = adafactor::direction(n, m);
            steps.push(launch(pool, "adafactor_direction", function, vec![g, r, c, mean, g, squares]));
            steps
        }
        [v] => {
            let function = adafactor::whole(n, m, rule);
            vec![launch(pool, "adafactor_whole", function, vec![g, v, beta, finite, v, g, squares])]
        }
        _ => vec![],
    };
    let function = adafactor::shortening(n, tensor.elements(), rule);
    steps.push(launch(pool, "adafactor_shortening", function, vec![squares, by]));
    steps.push(launch(pool, "adafactor_shortened", element::scaled(n, m), vec![g, by, g]));
    steps
}

/// A tensor's moments, at the turn.
fn own_moments(state: &State, param: ParamId) -> Vec<Place> {
    let moments = state.own_moments.get(&param).map_or(&[][..], |all| &all[..]);
    moments
        .iter()
        .map(|&(_, storage, turns): &(Moment, _, u64)| Place { turn: turns > 1, ..Place::start(storage) })
        .collect()
}

/// Where the column sums go, in parts if there are several, and last their total; and what adds the parts up.
fn column_sums(tensor: &Tensor, pool: &mut Pool) -> (Vec<Place>, Option<Step>) {
    let parts = parts_of_columns(tensor.rows, pool.family);
    let mut sums = |name: &str, rows: u64| {
        let name = format!("adafactor.{name}.{}", tensor.name);
        Place::start(pool.storage(&name, DType::F32, rows * tensor.cols, 1, StorageKind::Activation))
    };
    let total = sums("columns", 1);
    if parts == 1 {
        return (vec![total], None);
    }
    let in_parts = sums("columns.parts", parts);
    let function = adafactor::column_sums(parts, tensor.cols);
    (vec![in_parts, total], Some(launch(pool, "adafactor_column_sums", function, vec![in_parts, total])))
}
