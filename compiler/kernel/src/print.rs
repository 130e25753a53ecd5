//! `--emit kernels`: every distinct kernel as an expression, then the three programs over storages.

use std::fmt::Write;

use dspc_graph::rowfn::{Access, BinaryFn, Node, NodeId, ReduceFn, RowMap, UnaryFn};

use crate::describe::{
    AttentionKernel, Kernel, ProductFused, ProductKernel, ProductMatrix, RowKernel, Split, Target,
};
use crate::steps::{Collective, CollectiveKind, Fused, Kernels, Launch, Matrix, Part, Place, Step};

/// The kernel layer as text.
pub fn print(kernels: &Kernels) -> String {
    let mut out = format!("kernels {}\n", kernels.name);
    for (index, named) in kernels.kernels.iter().enumerate() {
        let _ = write!(out, "\nk{index} {}", named.stem);
        match &named.kernel {
            Kernel::Row(kernel) => print_row(kernel, &mut out),
            Kernel::Attention(kernel) | Kernel::AttentionBackward(kernel) => {
                print_attention(kernel, &mut out)
            }
            Kernel::ScatterAdd(k) => {
                let _ = writeln!(out, "   x {}×{} into {} rows", k.rows, k.cols, k.out_rows);
            }
            Kernel::Product(k) => print_product(k, &mut out),
        }
    }
    let refresh = (!kernels.refresh.is_empty()).then_some(("refresh", &kernels.refresh));
    for (name, steps) in
        [("train", &kernels.train), ("evaluate", &kernels.evaluate), ("logits", &kernels.logits)]
            .into_iter()
            .chain(refresh)
    {
        let _ = writeln!(out, "\n{name}");
        print_steps(kernels, steps, 1, &mut out);
    }
    out
}

fn print_attention(k: &AttentionKernel, out: &mut String) {
    let _ = writeln!(
        out,
        "   {} × {} heads ({} of keys) × {}   {} queries, {} keys   where {}   scale {:.6}{}",
        k.batch,
        k.heads,
        k.kv_heads,
        k.head_dim,
        k.queries,
        k.keys,
        k.mask,
        k.scale,
        if k.tf32 { "   tf32" } else { "" }
    );
}

fn print_product(k: &ProductKernel, out: &mut String) {
    let matrix =
        |m: &ProductMatrix| format!("{}{} stride {}", m.dtype, if m.transposed { "ᵀ" } else { "" }, m.stride);
    let _ = write!(out, "   {}×{}×{}", k.m, k.n, k.k);
    if k.splits > 1 {
        let _ = write!(out, " in {} parts", k.splits);
    }
    let _ = write!(out, "   a {}, b {}, c {}", matrix(&k.a), matrix(&k.b), matrix(&k.c));
    let _ = match &k.fused {
        None => Ok(()),
        Some(ProductFused::Bias(dtype)) => write!(out, ", bias {dtype}"),
        Some(ProductFused::BiasGelu { bias, pre }) => write!(out, ", bias {bias}, gelu of {}", matrix(pre)),
        Some(ProductFused::GeluGradient { pre }) => write!(out, ", gelu′ of {}", matrix(pre)),
        Some(ProductFused::BiasGradient(dtype)) => write!(out, ", column sums of b {dtype}"),
    };
    let flags = [(k.accumulate, "adds"), (k.tf32, "tf32"), (!k.aligned, "unaligned")];
    for (_, word) in flags.iter().filter(|(holds, _)| *holds) {
        let _ = write!(out, ", {word}");
    }
    out.push('\n');
}

fn print_row(k: &RowKernel, out: &mut String) {
    let split = match k.split {
        Split::Elements => "by element".to_string(),
        Split::Rows => "by row".to_string(),
        Split::Chunks(rows) => format!("by {rows} rows"),
    };
    let _ = writeln!(out, "   {}×{} {split}", k.rows, k.cols);
    for (i, read) in k.reads.iter().enumerate() {
        let _ = writeln!(
            out,
            "  r{i} = {}{}   {} stride {}",
            read.name,
            access(&read.access),
            read.dtype,
            read.stride
        );
    }
    for (i, node) in k.nodes.iter().enumerate() {
        if !matches!(node, Node::Const(_) | Node::ConstInt(_)) {
            let _ = writeln!(out, "  n{i} = {}", expression(k, node));
        }
    }
    for write in &k.writes {
        let (to, node) = match write.what {
            Target::Element(node) => ("[row, col]", node),
            Target::Row(node) => ("[row]", node),
            Target::ColumnSum(node) => ("[col] Σ", node),
        };
        let sign = if write.accumulate { "+=" } else { "=" };
        let _ = writeln!(
            out,
            "  {}{to} {sign} {}   {} stride {}",
            write.name,
            name(k, node),
            write.dtype,
            write.stride
        );
    }
}

fn access(access: &Access) -> String {
    let row = |map: &RowMap| match map {
        RowMap::Affine { divide: 1, modulo: None } => "row".to_string(),
        RowMap::Affine { modulo: Some(1), .. } => "0".to_string(),
        RowMap::Affine { divide: 1, modulo: Some(m) } => format!("row % {m}"),
        RowMap::Affine { divide, modulo: None } => format!("row / {divide}"),
        RowMap::Affine { divide, modulo: Some(m) } => format!("row / {divide} % {m}"),
        RowMap::Gather(ids) => format!("r{}[row]", ids.0),
    };
    match access {
        Access::Element(map) => format!("[{}, col]", row(map)),
        Access::HalfRotated(map) => format!("[{}, other half]", row(map)),
        Access::Row(map) => format!("[{}]", row(map)),
        Access::Table(map) => format!("[{}, ·]", row(map)),
        Access::Scalar => String::new(),
    }
}

fn name(k: &RowKernel, id: NodeId) -> String {
    match &k.nodes[id.0 as usize] {
        Node::Const(x) => format!("{x}"),
        Node::ConstInt(x) => format!("{x}"),
        _ => format!("n{}", id.0),
    }
}

fn expression(k: &RowKernel, node: &Node) -> String {
    let n = |id: &NodeId| name(k, *id);
    match node {
        Node::Load(id) => format!("r{}", id.0),
        Node::LoadAt(id, col) => format!("r{}[{}]", id.0, n(col)),
        Node::Const(x) => format!("{x}"),
        Node::ConstInt(x) => format!("{x}"),
        Node::Column => "col".into(),
        Node::Unary(f, a) => format!("{} {}", unary(*f), n(a)),
        Node::Binary(f @ (BinaryFn::Min | BinaryFn::Max), a, b) => {
            format!("{}({}, {})", binary(*f), n(a), n(b))
        }
        Node::Binary(f, a, b) => format!("{} {} {}", n(a), binary(*f), n(b)),
        Node::Select(c, a, b) => format!("{} ? {} : {}", n(c), n(a), n(b)),
        Node::Reduce(ReduceFn::Sum, a) => format!("Σ {}", n(a)),
        Node::Reduce(ReduceFn::Max, a) => format!("max over the row of {}", n(a)),
        Node::Uniform { rng, site, .. } => format!("uniform r{} site {site}", rng.0),
    }
}

fn unary(f: UnaryFn) -> &'static str {
    match f {
        UnaryFn::Negate => "-",
        UnaryFn::Exp => "exp",
        UnaryFn::Log => "log",
        UnaryFn::Sqrt => "sqrt",
        UnaryFn::Rsqrt => "rsqrt",
        UnaryFn::Reciprocal => "1 /",
        UnaryFn::Tanh => "tanh",
        UnaryFn::Erf => "erf",
        UnaryFn::Abs => "abs",
        UnaryFn::IsFinite => "is_finite",
        UnaryFn::ToFloat => "float",
        UnaryFn::Not => "not",
        UnaryFn::RoundBf16 => "bf16",
    }
}

fn binary(f: BinaryFn) -> &'static str {
    match f {
        BinaryFn::Add => "+",
        BinaryFn::Subtract => "-",
        BinaryFn::Multiply => "·",
        BinaryFn::Divide => "/",
        BinaryFn::Min => "min",
        BinaryFn::Max => "max",
        BinaryFn::Less => "<",
        BinaryFn::LessEqual => "≤",
        BinaryFn::Equal => "=",
        BinaryFn::And => "and",
        BinaryFn::Or => "or",
    }
}

fn print_steps(kernels: &Kernels, steps: &[Step], depth: usize, out: &mut String) {
    let pad = "  ".repeat(depth);
    for step in steps {
        match step {
            Step::Launch(launch) => {
                let _ = writeln!(out, "{pad}{}   # {}", launch_text(kernels, launch), launch.origin);
            }
            Step::Gemm(g) => {
                let sign = if g.accumulate { "+=" } else { "=" };
                let operand = |m: &Matrix| {
                    format!("{}{}", place(kernels, &m.place), if m.transposed { "ᵀ" } else { "" })
                };
                let (a, b, c) = (operand(&g.a), operand(&g.b), operand(&g.c));
                let _ = writeln!(
                    out,
                    "{pad}{c} {sign} {a} · {b}   gemm {}×{}×{}   # {}",
                    g.m, g.n, g.k, g.origin
                );
                if let Some(fused) = &g.fused {
                    let _ = writeln!(out, "{pad}  {}", fused_text(kernels, fused));
                }
                if let Some(own) = &g.own {
                    let workspace = own.workspace.iter().map(|p| format!(" with {}", place(kernels, p)));
                    let _ = writeln!(out, "{pad}  or k{}{}", own.kernel.0, workspace.collect::<String>());
                }
                if let Some(epilogue) = &g.epilogue {
                    let _ = writeln!(out, "{pad}  then {}", launch_text(kernels, epilogue));
                }
            }
            Step::Zero(at, origin) => {
                let _ = writeln!(out, "{pad}{} = 0   # {origin}", place(kernels, at));
            }
            Step::Collective(collective) => {
                let _ = writeln!(out, "{pad}{}   # {}", exchange(kernels, collective), collective.origin);
            }
            Step::Only(when, step) => {
                let _ = writeln!(out, "{pad}{}", when);
                print_steps(kernels, std::slice::from_ref(step), depth + 1, out);
            }
            Step::Loop(l) => {
                let order = if l.reverse { ", last first" } else { "" };
                let _ = writeln!(out, "{pad}{} × {}{order}", l.count, l.name);
                print_steps(kernels, &l.body, depth + 1, out);
            }
        }
    }
}

/// `x[turn], x[turn+1] = all_gather y[turn], y[turn+1]   by 4096`
fn exchange(kernels: &Kernels, collective: &Collective) -> String {
    let kind = match collective.kind {
        CollectiveKind::ReduceScatter { sum, tree } => {
            format!("reduce_scatter by k{}{}", sum.0, if tree { " as a tree" } else { "" })
        }
        CollectiveKind::AllGather => "all_gather".into(),
    };
    let part =
        |p: &Part| format!("{} = {}, {} a shard", place(kernels, &p.to), place(kernels, &p.from), p.elements);
    format!("{kind}: {}", collective.parts.iter().map(part).collect::<Vec<_>>().join("; "))
}

/// What a product does besides, after its line.
fn fused_text(kernels: &Kernels, fused: &Fused) -> String {
    let at = |p: &Place| place(kernels, p);
    match fused {
        Fused::Bias { bias } => format!("with + {}", at(bias)),
        Fused::BiasGelu { bias, pre } => format!("with {} = · + {}, then gelu", at(&pre.place), at(bias)),
        Fused::GeluGradient { pre } => format!("with ∘ gelu′({})", at(&pre.place)),
        Fused::BiasGradient { sum } => format!("with {} = Σ of the right operand's rows", at(sum)),
    }
}

fn launch_text(kernels: &Kernels, launch: &Launch) -> String {
    let kernel = &kernels.kernels[launch.kernel.0 as usize];
    let reads = match &kernel.kernel {
        Kernel::Row(k) => k.reads.len(),
        Kernel::Attention(_) => 3,
        Kernel::AttentionBackward(_) => 6,
        Kernel::ScatterAdd(_) | Kernel::Product(_) => 2,
    };
    let list = |places: &[Place]| places.iter().map(|p| place(kernels, p)).collect::<Vec<_>>().join(", ");
    let (reads, writes) = launch.operands.split_at(reads);
    format!("{} = k{} {} {}", list(writes), launch.kernel.0, kernel.stem, list(reads))
}

/// `x[turn+1]+128`
fn place(kernels: &Kernels, place: &Place) -> String {
    let storage = &kernels.storages[place.storage.0 as usize];
    let turn = place.turn.then(|| "turn".to_string());
    let micro = (place.micro && storage.slots > 1).then(|| "micro".to_string());
    let add = (place.add > 0).then(|| place.add.to_string());
    let slot: Vec<String> = [turn, micro, add].into_iter().flatten().collect();
    let slot = if slot.is_empty() { String::new() } else { format!("[{}]", slot.join("+")) };
    let offset = if place.offset > 0 { format!("+{}", place.offset) } else { String::new() };
    let shard = place.shard.map_or(String::new(), |elements| format!("/shard({elements})"));
    format!("{}{slot}{offset}{shard}", storage.name)
}
