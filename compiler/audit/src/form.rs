//! Ids in range, loops nested as they may be, arguments as their kernels declare them.

use crate::{EntryKind, Rule, entries, finding::Findings};
use dspc_program::{
    Action, Arg, Family, Fused, Gemm, Instruction, KernelId, Over, OwnProduct, Place, Program,
};

/// No model repeats a layer more often; beyond it, an unrolled walk would be no service.
const TURNS_MAX: u64 = 4096;

pub(crate) fn check(program: &Program, findings: &mut Findings) {
    for (kind, entry) in entries(program) {
        block(&Context { program, kind, micro: false, turn: false }, &entry.body, kind.name(), findings);
    }
}

#[derive(Clone, Copy)]
struct Context<'a> {
    program: &'a Program,
    kind: EntryKind,
    micro: bool,
    turn: bool,
}

fn block(context: &Context<'_>, body: &[Instruction], parent: &str, findings: &mut Findings) {
    for (index, instruction) in body.iter().enumerate() {
        let at = format!("{parent}.{index}");
        match &instruction.action {
            Action::Loop { over, count, body, .. } => {
                let inside = enter(context, *over, *count, &at, findings);
                if inside.micro != context.micro || inside.turn != context.turn {
                    block(&inside, body, &at, findings);
                }
            }
            Action::Launch { kernel, args } => launch(context, *kernel, args, &at, findings),
            Action::Gemm(gemm) => matrix_product(context, gemm, &at, findings),
            Action::Zero { at: target } => place(context, target, &at, findings),
            Action::Collective(collective) => {
                for part in &collective.parts {
                    place(context, &part.from, &at, findings);
                    place(context, &part.to, &at, findings);
                }
            }
        }
    }
}

/// The context of a loop's body; the same as before where the loop may not stand here.
fn enter<'a>(
    context: &Context<'a>,
    over: Over,
    count: u64,
    at: &str,
    findings: &mut Findings,
) -> Context<'a> {
    let mut inside = *context;
    let mut fault = |facts: String| findings.add(Rule::LoopNesting, at, facts);
    if count == 0 {
        fault("a loop of no turns".into());
    }
    match over {
        Over::MicroBatches if context.turn || context.micro => {
            fault("micro-batches inside another loop".into());
        }
        Over::MicroBatches => {
            let planned = context.program.training.accumulation;
            if context.kind == EntryKind::Train && count != planned {
                fault(format!("{count} micro-batches, and a step has {planned}"));
            }
            inside.micro = true;
        }
        Over::Turns if context.turn => fault("turns inside turns".into()),
        Over::Turns if count > TURNS_MAX => fault(format!("{count} turns, and {TURNS_MAX} is the most")),
        Over::Turns => inside.turn = true,
    }
    inside
}

fn launch(context: &Context<'_>, kernel: KernelId, args: &[Arg], at: &str, findings: &mut Findings) {
    for arg in args {
        if let Arg::At(target) = arg {
            place(context, target, at, findings);
        }
    }
    let Some(entry) = context.program.kernels.get(kernel.0 as usize) else {
        findings.add(Rule::IdOutOfRange, at, format!("there is no kernel {}", kernel.0));
        return;
    };
    let pointers = args.iter().take_while(|arg| matches!(arg, Arg::At(_))).count();
    let turns = args.len() - pointers;
    let shape = pointers == entry.operands.len() && turns == usize::from(entry.uses_turn);
    if !shape || args[pointers..].iter().any(|arg| *arg != Arg::Turn) {
        let facts = format!(
            "{pointers} pointers and {turns} more for `{}`, which takes {}{}",
            entry.symbol,
            entry.operands.len(),
            if entry.uses_turn { " and the turn" } else { "" }
        );
        findings.add(Rule::Arguments, at, facts);
    }
}

fn matrix_product(context: &Context<'_>, gemm: &Gemm, at: &str, findings: &mut Findings) {
    for matrix in [&gemm.a, &gemm.b, &gemm.c] {
        place(context, &matrix.at, at, findings);
    }
    if let Some(fused) = &gemm.fused {
        match fused {
            Fused::Bias { bias: row } | Fused::BiasGradient { sum: row } => {
                place(context, row, at, findings);
            }
            Fused::BiasGelu { bias, pre } => {
                place(context, bias, at, findings);
                place(context, &pre.at, at, findings);
            }
            Fused::GeluGradient { pre } => place(context, &pre.at, at, findings),
        }
        if context.program.family == Family::Cpu {
            findings.add(Rule::Arguments, at, "a product on a CPU does nothing besides");
        }
    }
    if let Some(own) = &gemm.own {
        own_product(context, gemm, own, at, findings);
    }
    let Some(epilogue) = &gemm.epilogue else { return };
    launch(context, epilogue.kernel, &epilogue.args, at, findings);
    let Some(kernel) = context.program.kernels.get(epilogue.kernel.0 as usize) else { return };
    let rows = epilogue.rows_per_item;
    if rows == 0 || gemm.m.div_ceil(rows) != kernel.items {
        let facts = format!("{} items of {rows} rows for {} rows of the product", kernel.items, gemm.m);
        findings.add(Rule::Arguments, at, facts);
    }
}

/// The kernel takes what the product names, in its order.
fn own_product(context: &Context<'_>, gemm: &Gemm, own: &OwnProduct, at: &str, findings: &mut Findings) {
    if context.program.family == Family::Cpu {
        findings.add(Rule::Arguments, at, "a product on a CPU has no kernel of its own");
    }
    if let Some(workspace) = &own.workspace {
        place(context, workspace, at, findings);
    }
    let Some(entry) = context.program.kernels.get(own.kernel.0 as usize) else {
        findings.add(Rule::IdOutOfRange, at, format!("there is no kernel {}", own.kernel.0));
        return;
    };
    let fused = match &gemm.fused {
        None => 0,
        Some(Fused::BiasGelu { .. }) => 2,
        Some(Fused::Bias { .. } | Fused::GeluGradient { .. } | Fused::BiasGradient { .. }) => 1,
    };
    let pointers = 3 + fused + usize::from(own.workspace.is_some());
    if pointers != entry.operands.len() || entry.uses_turn {
        let facts =
            format!("{pointers} pointers for `{}`, which takes {}", entry.symbol, entry.operands.len());
        findings.add(Rule::Arguments, at, facts);
    }
}

fn place(context: &Context<'_>, target: &Place, at: &str, findings: &mut Findings) {
    if context.program.buffers.get(target.buffer.0 as usize).is_none() {
        findings.add(Rule::IdOutOfRange, at, format!("there is no buffer {}", target.buffer.0));
    }
    // Evaluation and generation are one micro-batch, the first.
    let micro_missing = target.micro && !context.micro && context.kind == EntryKind::Train;
    let turn_missing = target.turn && !context.turn;
    if turn_missing || micro_missing {
        let which = if turn_missing { "turn" } else { "micro-batch" };
        findings.add(Rule::LoopVariable, at, format!("no loop around it gives a {which}"));
    }
}
