//! Functions of f32: polynomials of our own, the same bits on every CPU level.
//!
//! Largest errors in units of the last place, over the whole range: exp 1.5, log 1.5, tanh 5, erf 5 (mean of the last two 0.7). Subnormals are
//! not flushed; infinities give limits; a NaN stays. The polynomials are minimax fits of the relative error (Lawson's weights); the
//! rational ones of tanh and erf are one division and no branch, so that GELU runs at the rate of memory.
//!
//! On the GPU exp and log are the machine's `ex2` and `lg2` (2 units of their scaled argument), square roots and divisions rounded as on a CPU.

use crate::mlir::{Function, Value};

/// Whose instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    /// A CPU's vector unit.
    Cpu,
    /// A GPU's threads.
    Gpu,
}

/// (eʳ − 1 − r) / r² for |r| ≤ ln 2 / 2; relative error of eʳ 3.1e-9.
const EXP: [f32; 5] = [0.49999994, 0.1666652, 0.0416684, 0.008368852, 0.0013814318];
/// (ln(1 + t) − t + t²/2) / t³ for √½ ≤ 1 + t ≤ √2; relative error of the logarithm 6e-9.
const LOG: [f32; 8] =
    [0.333_333_3, -0.25000837, 0.20001292, -0.16622764, 0.141997, -0.13164198, 0.12779088, -0.07646038];
/// tanh x / x as a quotient in x² up to |x| = 8.8; relative error 5.2e-9.
const TANH_ABOVE: [f32; 7] =
    [1.3271149, 0.17375182, 0.004131854, 1.4935756e-5, -2.739_086_6e-8, 7.276_741e-11, -1.198_825_8e-13];
const TANH_BELOW: [f32; 4] = [1.3271149, 0.6161234, 0.032557767, 0.000_339_737_9];
const TANH_MAX: f32 = 8.8;
/// erf x / x as a quotient in x² up to |x| = 3.92; relative error 9.3e-9.
const ERF_ABOVE: [f32; 8] = [
    1.4816052,
    0.18340586,
    0.057926107,
    0.0020125557,
    0.00017770947,
    -4.879_685e-6,
    1.080_289_5e-7,
    -1.117_136_3e-9,
];
const ERF_BELOW: [f32; 5] = [1.3130383, 0.60021824, 0.12010703, 0.013_054_739, 0.000_716_966_2];
const ERF_MAX: f32 = 3.92;

/// ln 2 in two parts, the first short enough for n · HIGH to be exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Added to a small number, it leaves that number's nearest integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Σ coefficients[i] xⁱ by Horner's rule.
fn polynomial(f: &mut Function, x: Value, coefficients: &[f32]) -> Value {
    let mut terms = coefficients.iter().rev().map(|&c| (c, x.lanes()));
    let Some((first, lanes)) = terms.next() else {
        return f.float(x.lanes(), 0.0);
    };
    let mut sum = f.float(lanes, first);
    for (c, lanes) in terms {
        let c = f.float(lanes, c);
        sum = f.fma(sum, x, c);
    }
    sum
}

/// eˣ
pub(crate) fn exp(f: &mut Function, target: Target, x: Value) -> Value {
    if target == Target::Gpu {
        return exp_gpu(f, x);
    }
    let lanes = x.lanes();
    let constant = |f: &mut Function, c: f32| f.float(lanes, c);
    // Beyond these the result is 0 or infinite whatever the rest does.
    let (low, high) = (constant(f, -104.0), constant(f, 89.0));
    let x = f.at_most(x, high);
    let x = f.at_least(x, low);
    let (log2e, round) = (constant(f, std::f32::consts::LOG2_E), constant(f, ROUND));
    let shifted = f.fma(x, log2e, round);
    let n = f.sub(shifted, round);
    let (high, low) = (constant(f, -LN2_HIGH), constant(f, -LN2_LOW));
    let r = f.fma(n, high, x);
    let r = f.fma(n, low, r);
    let tail = polynomial(f, r, &EXP);
    let square = f.mul(r, r);
    let rest = f.fma(tail, square, r);
    let one = constant(f, 1.0);
    let e = f.add(rest, one);
    // 2ⁿ in two factors, as n reaches from −150 to 128. Exponents are read off the shifted number's bits: a conversion would be undefined for NaN.
    let bits = f.bits(shifted);
    let zero_bits = f.int(bits.ty, ROUND.to_bits().into());
    let n = f.subi(bits, zero_bits);
    let half = f.shr_signed(n, 1);
    let rest = f.subi(n, half);
    let half = power_of_two(f, half);
    let rest = power_of_two(f, rest);
    let e = f.mul(e, half);
    f.mul(e, rest)
}

/// 2 to the power of x / ln 2 in two parts: the first by `ex2`, the second, below 2⁻¹⁷, by its first-order term.
fn exp_gpu(f: &mut Function, x: Value) -> Value {
    let [low, high] = [-104.0, 89.0].map(|c| f.float(1, c));
    let x = f.at_most(x, high);
    let x = f.at_least(x, low);
    let [log2e, rest, ln2, one] =
        [std::f32::consts::LOG2_E, 1.925_963e-8, std::f32::consts::LN_2, 1.0].map(|c| f.float(1, c));
    let first = f.mul(x, log2e);
    let minus = f.neg(first);
    let second = f.fma(x, log2e, minus);
    let second = f.fma(x, rest, second);
    let e = f.intrinsic("llvm.nvvm.ex2.approx.f32", &[first], x.ty);
    let correction = f.fma(second, ln2, one);
    f.mul(e, correction)
}

/// eˣ for softmax on a GPU: x at most 0, the error a unit of 1 times |x| eˣ, which is less than half of one. A NaN stays.
pub(crate) fn exp_of_distance(f: &mut Function, x: Value) -> Value {
    let log2e = f.float(1, std::f32::consts::LOG2_E);
    let scaled = f.mul(x, log2e);
    f.fast_exp2(scaled)
}

/// eˣ for softmax on a CPU: x hardly above 0, and 0 below −87.3, where eˣ is no normal number. A NaN stays.
pub(crate) fn exp_of_score(f: &mut Function, x: Value) -> Value {
    let lanes = x.lanes();
    let constant = |f: &mut Function, c: f32| f.float(lanes, c);
    let (log2e, round) = (constant(f, std::f32::consts::LOG2_E), constant(f, ROUND));
    let shifted = f.fma(x, log2e, round);
    let n = f.sub(shifted, round);
    let (high, low) = (constant(f, -LN2_HIGH), constant(f, -LN2_LOW));
    let r = f.fma(n, high, x);
    let r = f.fma(n, low, r);
    let one = constant(f, 1.0);
    let tail = polynomial(f, r, &EXP);
    let e = f.fma(tail, r, one);
    let e = f.fma(e, r, one);
    // The shifted number's low bits are n, and its high ones leave by the shift.
    let bits = f.bits(e);
    let n = f.bits(shifted);
    let n = f.shl(n, 23);
    let bits = f.addi(bits, n);
    let e = f.float_of_bits(bits);
    let (lowest, zero) = (constant(f, -87.3), constant(f, 0.0));
    let is_low = f.compare("olt", x, lowest);
    f.select(is_low, zero, e)
}

/// 2ⁿ for −126 ≤ n ≤ 127.
fn power_of_two(f: &mut Function, n: Value) -> Value {
    let n = f.plus(n, 127);
    let bits = f.shl(n, 23);
    f.float_of_bits(bits)
}

/// ln x
pub(crate) fn log(f: &mut Function, target: Target, x: Value) -> Value {
    if target == Target::Gpu {
        let scale = f.float(1, std::f32::consts::LN_2);
        let log2 = f.intrinsic("llvm.nvvm.lg2.approx.f", &[x], x.ty);
        return f.mul(log2, scale);
    }
    let lanes = x.lanes();
    let constant = |f: &mut Function, c: f32| f.float(lanes, c);
    // Subnormals: scaled by 2²³ first.
    let (smallest, scale) = (constant(f, f32::MIN_POSITIVE), constant(f, 8_388_608.0));
    let is_small = f.compare("olt", x, smallest);
    let scaled = f.mul(x, scale);
    let normal = f.select(is_small, scaled, x);
    // x = 2ⁿ · m with m from √½ to √2.
    let bits = f.bits(normal);
    let int = |f: &mut Function, c: i64| f.int(bits.ty, c);
    let root_half = int(f, std::f32::consts::FRAC_1_SQRT_2.to_bits().into());
    let above = f.subi(bits, root_half);
    let n = f.shr_signed(above, 23);
    let exponent = f.shl(n, 23);
    let m = f.subi(bits, exponent);
    let m = f.float_of_bits(m);
    let (none, shift) = (int(f, 0), int(f, -23));
    let correction = f.select(is_small, shift, none);
    let n = f.addi(n, correction);
    let n = f.float_of_int(n);
    let one = constant(f, 1.0);
    let t = f.sub(m, one);
    let tail = polynomial(f, t, &LOG);
    let square = f.mul(t, t);
    let cube = f.mul(square, t);
    let (minus_half, low, high) = (constant(f, -0.5), constant(f, LN2_LOW), constant(f, LN2_HIGH));
    let y = f.mul(tail, cube);
    let y = f.fma(n, low, y);
    let y = f.fma(square, minus_half, y);
    let y = f.add(t, y);
    let y = f.fma(n, high, y);
    let (zero, infinity) = (constant(f, 0.0), constant(f, f32::INFINITY));
    let (nan, minus_infinity) = (constant(f, f32::NAN), constant(f, f32::NEG_INFINITY));
    let is_infinite = f.compare("oeq", x, infinity);
    let y = f.select(is_infinite, infinity, y);
    let is_zero = f.compare("oeq", x, zero);
    let y = f.select(is_zero, minus_infinity, y);
    // Not (x ≥ 0) is true of NaN too.
    let is_outside = f.compare("ult", x, zero);
    f.select(is_outside, nan, y)
}

/// √x, correctly rounded on both targets.
pub(crate) fn sqrt(f: &mut Function, target: Target, x: Value) -> Value {
    match target {
        Target::Cpu => f.sqrt(x),
        Target::Gpu => f.intrinsic("llvm.nvvm.sqrt.rn.f", &[x], x.ty),
    }
}

/// 1/√x
pub(crate) fn rsqrt(f: &mut Function, target: Target, x: Value) -> Value {
    match target {
        Target::Cpu => {
            let root = f.sqrt(x);
            let one = f.float(x.lanes(), 1.0);
            f.div(one, root)
        }
        Target::Gpu => f.intrinsic("llvm.nvvm.rsqrt.approx.f", &[x], x.ty),
    }
}

/// tanh x
pub(crate) fn tanh(f: &mut Function, x: Value) -> Value {
    odd_quotient(f, x, TANH_MAX, &TANH_ABOVE, &TANH_BELOW)
}

/// erf x
pub(crate) fn erf(f: &mut Function, x: Value) -> Value {
    odd_quotient(f, x, ERF_MAX, &ERF_ABOVE, &ERF_BELOW)
}

/// x · above(x²) / below(x²) for |x| up to `max`, and no further from 0 than 1. The quotient comes first: x may be subnormal.
fn odd_quotient(f: &mut Function, x: Value, max: f32, above: &[f32], below: &[f32]) -> Value {
    let lanes = x.lanes();
    let (high, low) = (f.float(lanes, max), f.float(lanes, -max));
    let x = f.at_most(x, high);
    let x = f.at_least(x, low);
    let square = f.mul(x, x);
    let above = polynomial(f, square, above);
    let below = polynomial(f, square, below);
    let quotient = f.div(above, below);
    let y = f.mul(x, quotient);
    let (one, minus_one) = (f.float(lanes, 1.0), f.float(lanes, -1.0));
    let y = f.at_most(y, one);
    f.at_least(y, minus_one)
}
