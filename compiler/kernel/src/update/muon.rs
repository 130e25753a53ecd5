//! Muon on a class: momentum of a bucket, its matrices made orthogonal one by one, then the bucket again; turn by turn.

use dspc_graph::ir::DType;
use dspc_plan::Plan;
use dspc_program::Family;
use dspc_spec::settings::Muon;
use dspc_train::optimizer::element::{self, Copies};
use dspc_train::optimizer::{muon, norm};

use super::apply::Scalars;
use super::tensors::{Bucket, Tensor, tensors};
use super::{NORM_COLS, launch};
use crate::piece::Piece;
use crate::pool::Pool;
use crate::steps::{Gemm, Matrix, Place, Step, StorageKind};

pub(super) fn apply(plan: &Plan, piece: &Piece, rule: Muon, scalars: &Scalars, pool: &mut Pool) -> Vec<Step> {
    let at = piece.operands();
    let rows = piece.updated() / NORM_COLS;
    // The reference multiplies in bfloat16, and so does a GPU here.
    let dtype = if pool.family == Family::Cuda { DType::Bf16 } else { DType::F32 };
    let bucket = Bucket::new(piece, "muon", dtype, pool);
    let moment = at.moments[0];
    let operands = vec![at.gradients, moment, scalars.factor, scalars.finite, moment, bucket.own()];
    let mut body = vec![launch(pool, "muon_momentum", muon::momentum(rows, NORM_COLS, &rule), operands)];
    body.extend(bucket.gather(piece));
    for tensor in tensors(plan, piece) {
        body.extend(orthogonal(&tensor, bucket.at(tensor.offset), (rule, dtype), pool));
    }
    let copies = if at.copy.is_some() { Copies::Yes } else { Copies::No };
    let function = muon::update(rows, NORM_COLS, piece.update.pace, copies);
    let operands =
        [at.masters, bucket.own(), scalars.lr, scalars.finite, at.masters].into_iter().chain(at.copy);
    body.push(launch(pool, "muon", function, operands.collect()));
    piece.by_turn(body)
}

/// Newton–Schulz in place: the momentum of a matrix at `x` becomes scale · X.
fn orthogonal(tensor: &Tensor, x: Place, (rule, dtype): (Muon, DType), pool: &mut Pool) -> Vec<Step> {
    let (n, m) = (tensor.rows, tensor.cols);
    let size = n.min(m);
    let mut scratch = |name: &str, dtype, elements| {
        let name = format!("muon.{name}.{}", tensor.name);
        Place::start(pool.storage(&name, dtype, elements, 1, StorageKind::Activation))
    };
    let squares = scratch("squares", DType::F32, n);
    let inverse = scratch("inverse_length", DType::F32, 1);
    let [a, square] = ["a", "a_squared"].map(|name| scratch(name, dtype, size * size));
    let y = scratch("y", dtype, n * m);
    let product = |(m, n, k), (a, b, c)| {
        let origin = "update".to_string();
        let (accumulate, fused, own, epilogue) = (false, None, None, None);
        Step::Gemm(Gemm { m, n, k, a, b, c, accumulate, fused, own, epilogue, origin })
    };
    let matrix = |place, stride, transposed| Matrix { place, stride, transposed };
    let (whole, turned) = (matrix(x, m, false), matrix(x, m, true));
    let (a_matrix, square_matrix) = (matrix(a, size, false), matrix(square, size, false));
    let y_matrix = matrix(y, m, false);
    let mut steps = vec![
        launch(pool, "muon_squares", norm::sum_of_squares(n, m), vec![x, squares]),
        launch(pool, "muon_length", muon::inverse_length(n), vec![squares, inverse]),
        launch(pool, "muon_normalize", element::scaled(n, m), vec![x, inverse, x]),
    ];
    for step in 1..=rule.steps {
        let scale = if step == rule.steps { muon::scale(n, m, rule.scale) } else { 1.0 };
        let by_columns = n > m;
        steps.push(match by_columns {
            true => product((m, m, n), (turned, whole, a_matrix)),
            false => product((n, n, m), (whole, turned, a_matrix)),
        });
        steps.push(product((size, size, size), (a_matrix, a_matrix, square_matrix)));
        steps.push(launch(pool, "muon_polynomial", muon::polynomial(size), vec![a, square, square]));
        steps.push(match by_columns {
            true => product((n, m, m), (whole, square_matrix, y_matrix)),
            false => product((n, m, n), (square_matrix, whole, y_matrix)),
        });
        steps.push(launch(pool, "muon_step", muon::next(n, m, scale), vec![x, y, x]));
    }
    steps
}
