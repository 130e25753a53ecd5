//! Operands of row kernels, drawn.

use super::operand::{Numbers, Operand};
use dspc_graph::rowfn::{Access, RowMap};
use dspc_kernel::describe::{Kernel, RowKernel, Target};

/// How an operand's numbers are drawn.
pub type Draw = fn(&str, &mut Numbers) -> f64;

/// What most kernels want.
pub fn usual(name: &str, numbers: &mut Numbers) -> f64 {
    match name {
        "rstd" | "c1" | "c2" | "v" => 0.5 + numbers.unit(),
        "finite" => 1.0,
        "seed" => 0.125,
        "lr" => 0.01,
        "targets" => numbers.below(5) as f64 - 1.0,
        "ids" => numbers.below(7) as f64,
        "rng" => f64::from(numbers.below(1 << 20) as u32),
        _ => numbers.normal() * 1.5,
    }
}

/// Elements that an operand must have.
fn elements(kernel: &RowKernel, index: usize) -> u64 {
    let read = &kernel.reads[index];
    let rows = |map: &RowMap| match map {
        RowMap::Affine { divide, modulo } => {
            let rows = (kernel.rows - 1) / divide + 1;
            modulo.map_or(rows, |m| m.min(rows))
        }
        RowMap::Gather(_) => 7,
    };
    match &read.access {
        Access::Scalar if read.name == "rng" => 4,
        Access::Scalar => 1,
        Access::Row(map) => (rows(map) - 1) * read.stride + 1,
        Access::Element(map) | Access::HalfRotated(map) | Access::Table(map) => {
            (rows(map) - 1) * read.stride + kernel.cols
        }
    }
}

/// Operands, and what results hold before.
pub fn operands(kernel: &RowKernel, numbers: &mut Numbers, draw: Draw) -> (Vec<Operand>, Vec<Operand>) {
    let mut inputs: Vec<Operand> = vec![];
    for (i, read) in kernel.reads.iter().enumerate() {
        // A name that comes twice is one operand, read in two ways.
        let same = kernel.reads[..i].iter().position(|other| other.name == read.name);
        inputs.push(match same {
            Some(same) => inputs[same].clone(),
            None => Operand::new(read.dtype, (0..elements(kernel, i)).map(|_| draw(&read.name, numbers))),
        });
    }
    let outputs = kernel.writes.iter().map(|write| {
        let (rows, cols) = match write.what {
            Target::Element(_) => (kernel.rows, kernel.cols),
            Target::Row(_) => (kernel.rows, 1),
            Target::ColumnSum(_) => (Kernel::Row(kernel.clone()).items(), kernel.cols),
        };
        Operand::new(write.dtype, (0..(rows - 1) * write.stride + cols).map(|_| numbers.normal()))
    });
    let outputs = outputs.collect();
    (inputs, outputs)
}
