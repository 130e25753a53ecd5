//! `--emit schedule`.

use std::fmt::Write;

use dspc_program::{
    Action, Arg, Collective, CollectiveKind, Entry, Fused, Instruction, Matrix, Over, Part, Place, Program,
};

/// Arenas, buffers and the entries as text.
pub fn print(program: &Program) -> String {
    let mut out = format!("schedule {}\n\narenas\n", program.name);
    for arena in &program.arenas {
        let _ = writeln!(out, "  {:<12} {:>12} bytes", arena.name, arena.bytes);
    }
    let _ = writeln!(out, "\nbuffers");
    for b in &program.buffers {
        let arena = &program.arenas[b.arena as usize].name;
        let dtype = format!("{:?}", b.dtype).to_lowercase();
        let slots =
            if b.slots > 1 { format!(" × {} slots of {} bytes", b.slots, b.stride) } else { String::new() };
        let _ = writeln!(out, "  {:<30} {arena}+{:<10} {dtype} {}{slots}", b.name, b.offset, b.elements);
    }
    print_entry("train", &program.train, program, &mut out);
    print_entry("evaluate", &program.evaluate, program, &mut out);
    if let Some(logits) = &program.logits {
        print_entry("logits", logits, program, &mut out);
    }
    if let Some(refresh) = &program.refresh {
        print_entry("refresh", refresh, program, &mut out);
    }
    out
}

fn print_entry(name: &str, entry: &Entry, program: &Program, out: &mut String) {
    let _ = writeln!(out, "\n{name}   activations {} bytes", entry.peak_bytes);
    print_body(&entry.body, program, 1, out);
}

fn print_body(body: &[Instruction], program: &Program, depth: usize, out: &mut String) {
    let pad = "  ".repeat(depth);
    for instruction in body {
        let text = match &instruction.action {
            Action::Launch { kernel, args } => {
                format!("{} {}", program.kernels[kernel.0 as usize].symbol, arguments(args, program))
            }
            Action::Gemm(g) => {
                let plus = if g.accumulate { "+=" } else { "=" };
                let (a, b, c) = (operand(&g.a, program), operand(&g.b, program), operand(&g.c, program));
                let then = g.epilogue.as_ref().map_or(String::new(), |e| {
                    format!(
                        "\n{pad}  then {} {}",
                        program.kernels[e.kernel.0 as usize].symbol,
                        arguments(&e.args, program)
                    )
                });
                let fused = g.fused.as_ref().map_or(String::new(), |f| format!("   {}", fused(f, program)));
                let own = g.own.map_or(String::new(), |own| {
                    let workspace = own.workspace.map(|p| format!(" with {}", place(&p, program)));
                    format!(
                        "   or {}{}",
                        program.kernels[own.kernel.0 as usize].symbol,
                        workspace.unwrap_or_default()
                    )
                });
                let tf32 = if g.tf32 { " in tf32" } else { "" };
                format!("gemm {}×{}×{}{tf32}   {c} {plus} {a} · {b}{fused}{own}{then}", g.m, g.n, g.k)
            }
            Action::Zero { at } => format!("zero {}", place(at, program)),
            Action::Collective(collective) => exchange(collective, program),
            Action::Loop { over, count, reverse, body } => {
                let what = match over {
                    Over::MicroBatches => "micro-batches",
                    Over::Turns => "turns",
                };
                let order = if *reverse { ", last first" } else { "" };
                let _ = writeln!(out, "{pad}loop {}   {count} {what}{order}", instruction.origin);
                print_body(body, program, depth + 1, out);
                continue;
            }
        };
        let when = instruction.when.map_or(String::new(), |when| format!("   {when}"));
        let _ = writeln!(out, "{pad}{text}{when}{}   # {}", events(instruction), instruction.origin);
    }
}

/// `   on stream 1   after e0, e2   then e3`
fn events(instruction: &Instruction) -> String {
    let stream = match instruction.stream.0 {
        0 => String::new(),
        stream => format!("   on stream {stream}"),
    };
    let waits: Vec<String> = instruction.waits.iter().map(|event| format!("e{}", event.0)).collect();
    let after = if waits.is_empty() { String::new() } else { format!("   after {}", waits.join(", ")) };
    let then = instruction.records.map_or(String::new(), |event| format!("   then e{}", event.0));
    format!("{stream}{after}{then}")
}

/// `all-gather over data: 3 parts, x ← y of 4096 elements`
fn exchange(collective: &Collective, program: &Program) -> String {
    let kind = match collective.kind {
        CollectiveKind::ReduceScatter { .. } => "reduce-scatter",
        CollectiveKind::AllGather => "all-gather",
    };
    let group = &program.groups[collective.group as usize];
    let part =
        |p: &Part| format!("{} ← {} by {}", place(&p.to, program), place(&p.from, program), p.elements);
    let parts: Vec<String> = collective.parts.iter().map(part).collect();
    format!("{kind} over {} {}: {}", group.size, group.axes.join(", "), parts.join("; "))
}

fn arguments(args: &[Arg], program: &Program) -> String {
    let one = |arg: &Arg| match arg {
        Arg::At(at) => place(at, program),
        Arg::Turn => "turn".to_string(),
    };
    args.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// What a product does besides.
fn fused(fused: &Fused, program: &Program) -> String {
    let at = |p: &Place| place(p, program);
    match fused {
        Fused::Bias { bias } => format!("with + {}", at(bias)),
        Fused::BiasGelu { bias, pre } => format!("with {} = · + {}, then gelu", at(&pre.at), at(bias)),
        Fused::GeluGradient { pre } => format!("with ∘ gelu′({})", at(&pre.at)),
        Fused::BiasGradient { sum } => format!("with {} = Σ of the right operand's rows", at(sum)),
    }
}

fn operand(matrix: &Matrix, program: &Program) -> String {
    format!("{}{}", place(&matrix.at, program), if matrix.transposed { "ᵀ" } else { "" })
}

/// `x[turn+1]+128`
fn place(place: &Place, program: &Program) -> String {
    let buffer = &program.buffers[place.buffer.0 as usize];
    let mut slot = vec![];
    if place.turn {
        slot.push("turn".to_string());
    }
    if place.micro && buffer.slots > 1 {
        slot.push("micro".to_string());
    }
    if place.add > 0 {
        slot.push(place.add.to_string());
    }
    let slot = if slot.is_empty() { String::new() } else { format!("[{}]", slot.join("+")) };
    let offset = if place.elements > 0 { format!("+{}", place.elements) } else { String::new() };
    let shard = place.shard.map_or(String::new(), |shard| format!("/shard({})", shard.elements));
    format!("{}{slot}{offset}{shard}", buffer.name)
}
