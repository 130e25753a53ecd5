//! Masks with a name; they combine with `&`, `|` and `!`.

use std::sync::Arc;

use dspc_spec::body::Builtin;

use super::function::{Build, Expects, Function, Parameter};
use crate::mask::{Mask, MaskExpr, MaskOp};

pub(crate) const CAUSAL: Function = Function {
    builtin: Builtin {
        name: "causal",
        signature: "causal",
        doc: "A query looks at its own position and those before.",
    },
    params: &[],
    build: Build::Mask(|_| Mask::causal()),
};

pub(crate) const FULL: Function = Function {
    builtin: Builtin { name: "full", signature: "full", doc: "Every query looks at every key." },
    params: &[],
    build: Build::Mask(|_| Mask::Full),
};

pub(crate) const WINDOW: Function = Function {
    builtin: Builtin {
        name: "window",
        signature: "window(width)",
        doc: "A query looks at keys less than `width` positions away: `causal & window(256)`.",
    },
    params: &[Parameter::required("width", Expects::Size)],
    build: Build::Mask(|args| window(args.size(0).map_or(1, |d| d.size))),
};

/// `q - k < width & k - q < width`
fn window(width: u64) -> Mask {
    let width = Arc::new(MaskExpr::Const(i64::try_from(width).unwrap_or(i64::MAX)));
    let near = |a: MaskExpr, b: MaskExpr| {
        let distance = MaskExpr::Binary(MaskOp::Subtract, Arc::new(a), Arc::new(b));
        Arc::new(MaskExpr::Binary(MaskOp::Less, Arc::new(distance), width.clone()))
    };
    let behind = near(MaskExpr::Query, MaskExpr::Key);
    let ahead = near(MaskExpr::Key, MaskExpr::Query);
    Mask::Where(Arc::new(MaskExpr::Binary(MaskOp::And, behind, ahead)))
}
