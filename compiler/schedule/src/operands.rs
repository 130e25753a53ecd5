//! What a kernel touches through each pointer: facts that `audit` proves the program with.

use dspc_graph::ir::DType;
use dspc_graph::rowfn::{Access, Node, RowMap};
use dspc_kernel::describe::{
    AttentionKernel, Kernel, ProductFused, ProductKernel, ProductMatrix, Read, RowKernel, Target, Write,
};
use dspc_program::{Extent, Family, Operand, OperandAccess};

use crate::write::element_type;

/// The operands of a kernel for a kind of device, in the order of its arguments.
pub(crate) fn operands(kernel: &Kernel, family: Family) -> Vec<Operand> {
    match kernel {
        Kernel::Row(k) => {
            let reads = k.reads.iter().enumerate().map(|(i, r)| read(k, i as u32, r));
            reads.chain(k.writes.iter().map(|w| write(k, kernel.items(), w))).collect()
        }
        Kernel::Attention(k) => {
            let [q, kv, statistics] = attention(k);
            let operand = |access, shape: (u64, u64), i: usize| {
                of(access, k.dtype, rows(shape.0, shape.1, k.strides[i]))
            };
            vec![
                operand(OperandAccess::Read, q, 0),
                operand(OperandAccess::Read, kv, 1),
                operand(OperandAccess::Read, kv, 2),
                operand(OperandAccess::Write, q, 3),
                of(OperandAccess::Write, DType::F32, rows(1, statistics.0, statistics.0)),
            ]
        }
        Kernel::AttentionBackward(k) => {
            let [q, kv, statistics] = attention(k);
            let shapes = [q, kv, kv, q, q, q, kv, kv]; // q k v y dy dq dk dv
            let mut all: Vec<Operand> = shapes
                .iter()
                .zip(&k.strides)
                .enumerate()
                .map(|(i, (shape, stride))| {
                    let access = if i < 5 { OperandAccess::Read } else { OperandAccess::Write };
                    of(access, k.dtype, rows(shape.0, shape.1, *stride))
                })
                .collect();
            all.insert(4, of(OperandAccess::Read, DType::F32, rows(1, statistics.0, statistics.0)));
            if family == Family::Cuda {
                let elements = k.workspace_elements();
                all.push(of(OperandAccess::Write, DType::F32, rows(1, elements, elements)));
            }
            all
        }
        Kernel::ScatterAdd(k) => vec![
            of(OperandAccess::Read, DType::I32, rows(1, k.rows, k.rows)),
            of(OperandAccess::Read, k.dtype, rows(k.rows, k.cols, k.stride)),
            of(OperandAccess::Update, DType::F32, rows(1, k.out_rows * k.cols, k.out_rows * k.cols)),
        ],
        Kernel::Product(k) => product(k),
    }
}

fn product(k: &ProductKernel) -> Vec<Operand> {
    let matrix = |access, matrix: &ProductMatrix, shape: (u64, u64)| {
        let (count, cols) = if matrix.transposed { (shape.1, shape.0) } else { shape };
        of(access, matrix.dtype, rows(count, cols, matrix.stride))
    };
    let row = |access, dtype, elements| of(access, dtype, rows(1, elements, elements));
    let (read, write) = (OperandAccess::Read, OperandAccess::Write);
    let to_c = if k.accumulate { OperandAccess::Update } else { write };
    let mut all =
        vec![matrix(read, &k.a, (k.m, k.k)), matrix(read, &k.b, (k.k, k.n)), matrix(to_c, &k.c, (k.m, k.n))];
    match &k.fused {
        None => {}
        Some(ProductFused::Bias(dtype)) => all.push(row(read, *dtype, k.n)),
        Some(ProductFused::BiasGelu { bias, pre }) => {
            all.push(row(read, *bias, k.n));
            all.push(matrix(write, pre, (k.m, k.n)));
        }
        Some(ProductFused::GeluGradient { pre }) => all.push(matrix(read, pre, (k.m, k.n))),
        Some(ProductFused::BiasGradient(dtype)) => all.push(row(write, *dtype, k.n)),
    }
    if k.workspace_elements() > 0 {
        all.push(row(write, DType::F32, k.workspace_elements()));
    }
    all
}

fn of(access: OperandAccess, dtype: DType, extent: Extent) -> Operand {
    Operand { access, dtype: element_type(dtype), extent }
}

fn rows(rows: u64, cols: u64, stride: u64) -> Extent {
    Extent::Rows { rows, cols, stride }
}

/// Rows and columns of queries, of keys, and the elements of the statistics.
fn attention(k: &AttentionKernel) -> [(u64, u64); 3] {
    let (q, kv) = (k.heads * k.head_dim, k.kv_heads * k.head_dim);
    [(k.batch * k.queries, q), (k.batch * k.keys, kv), (k.batch * k.heads * k.queries, 1)]
}

fn read(kernel: &RowKernel, index: u32, read: &Read) -> Operand {
    let is_rng = |n: &Node| matches!(n, Node::Uniform { rng, .. } if rng.0 == index);
    let extent = match &read.access {
        Access::Element(map) | Access::HalfRotated(map) => match rows_of(map, kernel.rows) {
            Some(count) => rows(count, kernel.cols, read.stride),
            None => Extent::Slot,
        },
        Access::Row(map) => {
            rows_of(map, kernel.rows).map_or(Extent::Slot, |count| rows(count, 1, read.stride))
        }
        Access::Scalar if kernel.nodes.iter().any(is_rng) => rows(1, 4, 4),
        Access::Scalar => rows(1, 1, 1),
        Access::Table(_) => Extent::Slot,
    };
    of(OperandAccess::Read, read.dtype, extent)
}

/// The operand's rows that a map reaches; `None` where ids decide.
fn rows_of(map: &RowMap, count: u64) -> Option<u64> {
    match map {
        RowMap::Affine { divide, modulo } => {
            let reached = count.div_ceil(*divide);
            Some(modulo.map_or(reached, |m| m.min(reached)))
        }
        RowMap::Gather(_) => None,
    }
}

fn write(kernel: &RowKernel, items: u64, write: &Write) -> Operand {
    let access = if write.accumulate { OperandAccess::Update } else { OperandAccess::Write };
    let extent = match write.what {
        Target::Element(_) => rows(kernel.rows, kernel.cols, write.stride),
        Target::Row(_) => rows(kernel.rows, 1, write.stride),
        Target::ColumnSum(_) => rows(items, kernel.cols, write.stride),
    };
    of(access, write.dtype, extent)
}
