//! Functions of one float over their whole range, against f64: the bounds that the table in `docs/layers/emit.md` states.

#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use dspc_emit::CpuLevel;
use dspc_graph::ir::DType::F32;
use dspc_graph::rowfn::UnaryFn;
use dspc_kernel::describe::{Kernel, RowKernel, Split, Target};
use std::ffi::c_void;
use support::kernels::Builder;
use support::native::Native;

fn function(function: UnaryFn, elements: u64) -> RowKernel {
    let mut k = Builder::new(1, elements, Split::Elements);
    let x = k.element("x", F32, elements);
    let y = k.un(function, x);
    k.write("y", F32, Target::Element(y), elements);
    k.0
}

/// Every 769th float, both signs, and the edges of everything.
fn inputs() -> Vec<f32> {
    let mut all: Vec<f32> = (0..=u32::MAX).step_by(769).map(f32::from_bits).collect();
    let edges = [
        0.0,
        1.0,
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        f32::from_bits(0x007F_FFFF),
        f32::MAX,
        f32::INFINITY,
        f32::NAN,
        88.722_83,
        88.722_84,
        87.336_54,
        103.278_92,
        103.972_08,
        103.972_09,
        8.8,
        9.0,
        3.92,
        3.93,
        std::f32::consts::SQRT_2,
        std::f32::consts::FRAC_1_SQRT_2,
    ];
    for edge in edges {
        for step in -3i32..=3 {
            let near = f32::from_bits((f32::to_bits(edge) as i32).wrapping_add(step) as u32);
            all.extend([near, -near]);
        }
    }
    // The range in which tanh and erf bend, densely.
    all.extend((-1_000_000..1_000_000).map(|i| i as f32 * 9.1e-6));
    all
}

/// |y − want| in units of the last place of want.
fn ulps(y: f32, want: f64) -> f64 {
    let rounded = want as f32;
    if f64::from(y) == want || y == rounded {
        return 0.0;
    }
    if !rounded.is_finite() || !y.is_finite() {
        // Overflow one step early or late is one unit.
        return if y.is_infinite() && want.abs() > f64::from(f32::MAX) * (1.0 - 1e-7) {
            1.0
        } else {
            f64::INFINITY
        };
    }
    let exponent = want.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor();
    (f64::from(y) - want).abs() / (exponent - 23.0).exp2()
}

/// A function, its bound, and its f64 form.
type Case = (UnaryFn, f64, fn(f64) -> f64);

#[test]
fn errors_are_below_the_stated_bounds() {
    let inputs = inputs();
    let cases: [Case; 6] = [
        (UnaryFn::Exp, 1.5, f64::exp),
        (UnaryFn::Log, 1.5, f64::ln),
        (UnaryFn::Tanh, 5.0, f64::tanh),
        (UnaryFn::Erf, 5.0, libm::erf),
        (UnaryFn::Rsqrt, 1.5, |x| 1.0 / x.sqrt()),
        (UnaryFn::Sqrt, 0.5, f64::sqrt),
    ];
    let kernels: Vec<Kernel> =
        cases.iter().map(|(f, ..)| Kernel::Row(function(*f, inputs.len() as u64))).collect();
    let named: Vec<_> = kernels.iter().enumerate().map(|(i, k)| (format!("k{i}"), k)).collect();
    for level in ["host", "x86-64-v3"] {
        let level = CpuLevel::named(level).unwrap();
        let native = Native::new(&named, &level);
        for ((symbol, _), (function, bound, exact)) in named.iter().zip(&cases) {
            let mut outputs = vec![0f32; inputs.len()];
            let args = [inputs.as_ptr() as *mut c_void, outputs.as_mut_ptr().cast()];
            native.call(symbol, &args, 0, inputs.len() as u64);
            let (mut worst, mut at, mut sum) = (0.0, 0.0, 0.0);
            for (&x, &y) in inputs.iter().zip(&outputs) {
                let want = exact(f64::from(x));
                if want.is_nan() {
                    assert!(y.is_nan(), "{function:?}({x}) is {y}, not NaN");
                    continue;
                }
                let error = ulps(y, want);
                sum += error;
                if error > worst {
                    (worst, at) = (error, x);
                }
            }
            println!(
                "{:10} {function:?}: at most {worst:.2} ulp at {at:e}, mean {:.2}",
                level.name,
                sum / inputs.len() as f64
            );
            assert!(worst <= *bound, "{function:?}: {worst} ulp at {at:e}");
        }
    }
}

#[test]
fn philox_gives_the_known_answers() {
    // Random123's kat_vectors for philox4x32-10.
    let reading = support::reading::philox;
    assert_eq!(reading([0, 0], [0; 4]), [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8]);
    assert_eq!(reading([u32::MAX; 2], [u32::MAX; 4]), [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD]);
    assert_eq!(
        reading([0xA409_3822, 0x299F_31D0], [0x243F_6A88, 0x85A3_08D3, 0x1319_8A2E, 0x0370_7344]),
        [0xD16C_FE09, 0x94FD_CCEB, 0x5001_E420, 0x2412_6EA1]
    );
}
