//! Squares: the sum of squares of every row of the grid of gradients, the same on every rank and for every way of sharing out.
//!
//! Each rank sums the rows of its own shards, and all ranks gather all rows; rows of a bucket's padding, whose number follows that of the ranks, are left out.

use dspc_graph::ir::DType;
use dspc_graph::rowfn::{Access, InputId, Node, NodeId, RowMap};
use dspc_plan::Plan;
use dspc_train::optimizer::norm;

use super::collective;
use super::gather::loss_parts;
use crate::describe::{Kernel, Read, RowKernel, Split, Target, Write};
use crate::piece::Piece;
use crate::pool::Pool;
use crate::state::State;
use crate::steps::{CollectiveKind, Launch, Part, Place, Step, StorageId, StorageKind, Within};
use crate::update::{NORM_COLS, launch};

/// The steps that make them, the storage that holds them, and how many there are. Losses travel with them.
pub(crate) fn squares(plan: &Plan, state: &State, pool: &mut Pool) -> (Vec<Step>, StorageId, u64) {
    let rows: u64 = state.trained().map(|p| p.rows * p.turns).sum();
    let squares = pool.storage("squares", DType::F32, rows, 1, StorageKind::Activation);
    let (mut steps, mut parts, mut copies) = (vec![], vec![], vec![]);
    for piece in state.trained() {
        let to = Place { offset: piece.first_row, ..Place::start(squares) };
        if piece.is_shared() {
            let gathered = gathered(piece, to, pool);
            steps.extend(gathered.own);
            parts.extend(gathered.parts);
            copies.extend(gathered.copy);
        } else {
            let function = norm::sum_of_squares(piece.rows * piece.turns, NORM_COLS);
            steps.push(launch(pool, "sum_of_squares", function, vec![Place::start(piece.gradients), to]));
        }
    }
    parts.extend(loss_parts(state, plan.batch.accumulation));
    if !parts.is_empty() {
        steps.push(collective(CollectiveKind::AllGather, parts, "squares and losses"));
    }
    steps.extend(copies);
    (steps, squares, rows)
}

/// How all ranks come to know the squares of a piece.
struct Gathered {
    own: Vec<Step>,
    parts: Vec<Part>,
    /// Without the rows of the padding, where there are any.
    copy: Option<Step>,
}

fn gathered(piece: &Piece, to: Place, pool: &mut Pool) -> Gathered {
    let (own_rows, all_rows) = (piece.shard / NORM_COLS, piece.elements / NORM_COLS);
    let mut flat = |name: &str, rows| {
        let name = format!("squares.{name}{}", piece.name);
        pool.storage(&name, DType::F32, rows * piece.turns, 1, StorageKind::Activation)
    };
    let own = flat("own.", own_rows);
    let padded = (all_rows > piece.rows).then(|| Place::start(flat("", all_rows)));
    let all = padded.unwrap_or(to);
    let part = |turn: u64| Part {
        from: Place { offset: turn * own_rows, ..Place::start(own) },
        to: Place { offset: all.offset + turn * all_rows, ..all },
        elements: own_rows,
    };
    let own_at = if piece.turns > 1 && piece.own_gradients().shard.is_some() {
        let within = Within { storage: own, offset: 0, stride: own_rows };
        let name = format!("squares.own.{}.turn", piece.name);
        let view = pool.part(&name, own_rows, piece.turns, StorageKind::Activation, within);
        Place { turn: true, ..Place::start(view) }
    } else {
        Place::start(own)
    };
    Gathered {
        own: piece.over_turns(vec![piece.own_gradients(), own_at], piece.shard, |rows, at| {
            launch(pool, "sum_of_squares", norm::sum_of_squares(rows, NORM_COLS), at)
        }),
        parts: (0..piece.turns).map(part).collect(),
        copy: padded.map(|from| without_padding(piece, from, to, pool)),
    }
}

/// The first rows of each bucket, one bucket's behind another's.
fn without_padding(piece: &Piece, from: Place, to: Place, pool: &mut Pool) -> Step {
    let (rows, cols) = (piece.turns, piece.rows);
    let read = Read {
        name: "all".into(),
        dtype: DType::F32,
        access: Access::Element(RowMap::EACH),
        stride: piece.elements / NORM_COLS,
    };
    let what = Target::Element(NodeId(0));
    let write = Write { name: "squares".into(), dtype: DType::F32, what, stride: cols, accumulate: false };
    let nodes = vec![Node::Load(InputId(0))];
    let kernel = RowKernel { rows, cols, reads: vec![read], nodes, writes: vec![write], split: Split::Rows };
    let kernel = pool.kernel("leave_out_padding", Kernel::Row(kernel));
    Step::Launch(Launch { kernel, operands: vec![from, to], origin: "update".into() })
}
