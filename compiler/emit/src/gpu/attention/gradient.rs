//! What both halves of attention's gradient share: operands, and p and ds of a tile of scores.
//!
//! p = exp(s − lse);  dv = pᵀ dy;  dp = dy vᵀ;  ds = p · (dp − δ) with δ the row sum of dy · y;  dq = scale · ds k;  dk = scale · dsᵀ q.
//! Source: Dao 2023 (FlashAttention-2), algorithm 2.
//!
//! The products that make s and dp begin from −lse / scale and −δ: one multiplication and one exponential then make p, one multiplication ds.

use super::block::{Block, Masking, Plan};
use super::delta::delta_rows;
use super::operand::{Head, head, statistic};
use crate::mlir::{Function, Quad, Value};
use dspc_kernel::describe::AttentionKernel;
use std::f32::consts::LOG2_E;

/// Parameters of the gradient's functions, and strides of those that have one.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub q: (Value, u64),
    pub k: (Value, u64),
    pub v: (Value, u64),
    pub lse: Value,
    pub dy: (Value, u64),
    pub dq: (Value, u64),
    pub dk: (Value, u64),
    pub dv: (Value, u64),
    /// δ, at the workspace's begin.
    pub delta: Value,
}

impl Operands {
    /// In the kernel's order: q, k, v, y, log-sum-exp, dy, dq, dk, dv, workspace.
    pub fn new(args: &[Value], kernel: &AttentionKernel) -> Result<Self, String> {
        let &[q, k, v, _, lse, dy, dq, dk, dv, delta] = args else {
            return Err("ten operands".to_string());
        };
        let &[q_s, k_s, v_s, _, dy_s, dq_s, dk_s, dv_s] = kernel.strides.as_slice() else {
            return Err("eight strides".to_string());
        };
        Ok(Operands {
            q: (q, q_s),
            k: (k, k_s),
            v: (v, v_s),
            lse,
            dy: (dy, dy_s),
            dq: (dq, dq_s),
            dk: (dk, dk_s),
            dv: (dv, dv_s),
            delta,
        })
    }
}

/// One query head of q, dy or dq.
pub(super) fn query_head(
    f: &mut Function,
    kernel: &AttentionKernel,
    (pointer, stride): (Value, u64),
    place: (Value, Value),
) -> Head {
    head(f, kernel, (pointer, stride, kernel.queries), place)
}

/// One head of k, v or their gradients.
pub(super) fn key_head(
    f: &mut Function,
    kernel: &AttentionKernel,
    (pointer, stride): (Value, u64),
    place: (Value, Value),
) -> Head {
    head(f, kernel, (pointer, stride, kernel.keys), place)
}

/// The addresses of a query head's log-sum-exp and δ.
pub(super) fn statistics(
    f: &mut Function,
    kernel: &AttentionKernel,
    operands: &Operands,
    place: (Value, Value),
) -> [Value; 2] {
    let lse = statistic(f, kernel, (operands.lse, kernel.queries), place);
    [lse, statistic(f, kernel, (operands.delta, delta_rows(kernel)), place)]
}

/// From what the sums of s and dp of a query begin.
pub(super) fn begin(f: &mut Function, kernel: &AttentionKernel, lse: Value, delta: Value) -> [Value; 2] {
    let factor = f.float(1, (-1.0 / kernel.scale) as f32);
    [f.mul(lse, factor), f.neg(delta)]
}

/// p and ds of scores and dp that began so. Pairs that may not look have p = 0; so has a query that looks at nothing, whose log-sum-exp is −∞.
pub(super) fn differentiate(
    f: &mut Function,
    (plan, block): (&Plan, &Block),
    mask: &Masking,
    mut scores: Vec<Vec<Quad>>,
    mut dp: Vec<Vec<Quad>>,
) -> [Vec<Vec<Quad>>; 2] {
    let factor = f.float(1, plan.kernel.scale as f32 * LOG2_E);
    for x in scores.iter_mut().flatten().flatten() {
        let score = f.mul(*x, factor);
        *x = f.fast_exp2(score);
    }
    let p = plan.apply_mask(f, block, mask, 0.0, &scores);
    for (ds, &p) in dp.iter_mut().flatten().flatten().zip(p.iter().flatten().flatten()) {
        *ds = f.mul(p, *ds);
    }
    [p, dp]
}

/// Sums times a factor.
pub(super) fn scaled(f: &mut Function, mut sums: Vec<Vec<Quad>>, factor: f32) -> Vec<Vec<Quad>> {
    let factor = f.float(1, factor);
    for x in sums.iter_mut().flatten().flatten() {
        *x = f.mul(*x, factor);
    }
    sums
}
