//! Attention for Hopper: which descriptions it serves, what its launches are, and that it assembles without spills, each product of a
//! warpgroup running beside the others.
//!
//! Needs `ptxas` for the last: `DSPC_PTXAS` or PATH. Without it the text is still written, and the test says loudly what it left out.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is the report, a line says what did not run"
)]

mod support;

use dspc_emit::{GpuChip, compile_ptx, gpu_module};
use dspc_graph::ir::DType::{self, Bf16, F16, F32};
use dspc_graph::mask::{Mask, MaskExpr, MaskOp};
use dspc_kernel::describe::{AttentionKernel, Kernel};
use dspc_program::GpuLaunch;
use std::fmt::Write;
use std::sync::Arc;
use support::ptxas::assemble;

fn window(size: i64) -> Mask {
    use MaskExpr::{Const, Key, Query};
    let binary = |op, a, b| MaskExpr::Binary(op, Arc::new(a), Arc::new(b));
    let near = binary(MaskOp::Less, binary(MaskOp::Subtract, Query, Key), Const(size));
    Mask::Where(Arc::new(binary(MaskOp::And, binary(MaskOp::LessEqual, Key, Query), near)))
}

/// Every third key, but for the first queries.
fn sparse() -> Mask {
    use MaskExpr::{Const, Key, Query};
    let binary = |op, a, b| MaskExpr::Binary(op, Arc::new(a), Arc::new(b));
    let third = binary(MaskOp::Equal, binary(MaskOp::Remainder, Key, Const(3)), Const(1));
    Mask::Where(Arc::new(binary(MaskOp::And, third, binary(MaskOp::Less, Const(4), Query))))
}

fn attention(heads: (u64, u64), head_dim: u64, positions: u64, dtype: DType, mask: Mask) -> AttentionKernel {
    let (heads, kv_heads) = heads;
    let packed = (heads + 2 * kv_heads) * head_dim;
    AttentionKernel {
        batch: 2,
        heads,
        kv_heads,
        head_dim,
        queries: positions,
        keys: positions,
        dtype,
        tf32: false,
        scale: 1.0 / (head_dim as f64).sqrt(),
        mask,
        strides: vec![packed, packed, packed, heads * head_dim],
    }
}

fn gradient(kernel: &AttentionKernel) -> AttentionKernel {
    let (packed, own) = (kernel.strides[0], kernel.strides[3]);
    AttentionKernel {
        strides: vec![packed, packed, packed, own, own, packed, packed, packed],
        ..kernel.clone()
    }
}

fn both(kernel: &AttentionKernel) -> [Kernel; 2] {
    [Kernel::Attention(kernel.clone()), Kernel::AttentionBackward(gradient(kernel))]
}

fn written(kernel: &Kernel, chip: GpuChip) -> (String, Vec<GpuLaunch>) {
    let (text, mut launches) = gpu_module(&[("k".to_string(), kernel)], chip).unwrap();
    (text, launches.remove(0))
}

#[test]
fn hopper_has_its_own_form_where_rows_and_heads_fit_it() {
    let serves = |kernel: &AttentionKernel, chip| {
        both(kernel).iter().all(|k| written(k, chip).1.iter().any(|launch| !launch.maps.is_empty()))
    };
    for (dim, dtype) in [(64, Bf16), (128, Bf16), (64, F16), (128, F16)] {
        let kernel = attention((4, 2), dim, 77, dtype, Mask::causal());
        assert!(serves(&kernel, GpuChip::Sm90a), "{dim} {dtype}");
        assert!(!serves(&kernel, GpuChip::Sm80) && !serves(&kernel, GpuChip::Sm120));
    }
    let odd_row = AttentionKernel {
        strides: vec![516, 516, 516, 256],
        ..attention((4, 2), 64, 77, Bf16, Mask::causal())
    };
    let negative = AttentionKernel { scale: -1.0, ..attention((4, 2), 64, 77, Bf16, Mask::causal()) };
    for other in [odd_row, negative, attention((4, 2), 40, 77, Bf16, Mask::causal())] {
        assert!(!serves(&other, GpuChip::Sm90a), "{other:?}");
    }
}

#[test]
fn launches_and_operations_of_a_small_case() {
    let mut report = String::new();
    for kernel in both(&attention((4, 2), 64, 300, Bf16, Mask::causal())) {
        let (text, launches) = written(&kernel, GpuChip::Sm90a);
        for launch in launches {
            writeln!(
                report,
                "{} {:?} x {}, {} bytes",
                launch.symbol, launch.grid, launch.block, launch.shared
            )
            .unwrap();
            for map in launch.maps {
                writeln!(
                    report,
                    "  {} {:?} by {:?}, {:?} at once",
                    map.operand, map.dims, map.strides, map.tile
                )
                .unwrap();
            }
        }
        for line in text.lines().filter(|line| line.contains("_visits(dense")) {
            let (table, rest) = line.split_once('"').unwrap();
            let bytes = rest.split('"').next().unwrap().trim_start_matches("0x").as_bytes();
            let number = |b: &[u8]| {
                let byte =
                    |i: usize| u32::from_str_radix(std::str::from_utf8(&b[i..i + 2]).unwrap(), 16).unwrap();
                byte(0) | byte(2) << 8
            };
            let numbers: Vec<u32> = bytes.chunks(8).map(number).collect();
            writeln!(report, "{} {numbers:?}", table.trim()).unwrap();
        }
        let ptx = compile_ptx(&text, GpuChip::Sm90a).unwrap();
        let count = |what: &str| ptx.matches(what).count();
        for what in [
            "wgmma.mma_async.sync.aligned.m64n64k16",
            "wgmma.mma_async.sync.aligned.m64n128k16",
            "wgmma.wait_group",
            "cp.async.bulk.tensor.3d",
            "cp.async.bulk.shared",
            "ex2.approx.ftz.f32",
            "st.global.v4",
            "atom.",
            "red.global",
        ] {
            writeln!(report, "{what} {}", count(what)).unwrap();
        }
    }
    insta::assert_snapshot!(report);
}

#[test]
fn every_form_assembles_without_spills_or_serialized_products() {
    let mut cases = vec![];
    for dim in [64, 128] {
        cases.push(attention((2, 2), dim, 1024, Bf16, Mask::causal()));
        cases.push(attention((6, 2), dim, 333, F16, window(100)));
        cases.push(attention((3, 1), dim, 500, Bf16, Mask::Full));
        cases.push(attention((4, 1), dim, 700, Bf16, sparse()));
        cases.push(attention((2, 1), dim, 2, F16, Mask::causal()));
    }
    for kernel in cases.iter().flat_map(both) {
        let (text, _) = written(&kernel, GpuChip::Sm90a);
        let ptx = compile_ptx(&text, GpuChip::Sm90a).unwrap();
        let Some(said) = assemble(&ptx, GpuChip::Sm90a) else {
            eprintln!("SKIPPED: no ptxas in DSPC_PTXAS or PATH, so PTX for sm_90a is not assembled");
            return;
        };
        let bad = said.lines().filter(|line| {
            line.contains("serialized") || line.contains("spill") && !line.contains(", 0 bytes spill stores")
        });
        assert_eq!(bad.collect::<Vec<_>>(), Vec::<&str>::new(), "{kernel:?}");
    }
}

#[test]
fn wider_numbers_have_another_form() {
    let kernel = AttentionKernel { dtype: F32, ..attention((2, 2), 64, 64, Bf16, Mask::Full) };
    let named = Kernel::Attention(kernel);
    // What the other form says of it is its own matter.
    if let Ok((_, launches)) = gpu_module(&[("k".to_string(), &named)], GpuChip::Sm90a) {
        assert!(launches[0].iter().all(|launch| launch.maps.is_empty()));
    }
}
