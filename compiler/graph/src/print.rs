//! The printed form: the user's names, one op a line, repeats as indented blocks.
//!
//! ```text
//! h.x1 = add h.x, h.attn      f32 [B, T, D]      h.*
//! ```
//! A line is: results, op, operands, attributes; the first result's type; the layer call it came from.

use std::fmt::Write;

use crate::ir::{Graph, Init, OpNode, Param, Repeat, Step, ValueId};

/// The whole graph.
pub fn print_graph(graph: &Graph) -> String {
    let mut out = format!("graph {}\n\nparams\n", graph.name);
    out.push_str(&print_params(graph, 2));
    out.push_str("\nforward\n");
    out.push_str(&print_block(graph, &graph.body.steps, 2));
    let name = |v: Option<ValueId>| v.map_or("none", |v| graph.value(v).name.as_str());
    let _ = write!(out, "\nloss {}   logits {}\n", name(graph.loss), name(graph.logits));
    out
}

/// Parameters, indented by `indent` blanks: name, type and turns, how it starts.
pub fn print_params(graph: &Graph, indent: usize) -> String {
    let rows: Vec<[String; 3]> = graph.params.iter().map(param_row).collect();
    let mut out = String::new();
    write_rows(&mut out, &rows, indent);
    out
}

fn param_row(param: &Param) -> [String; 3] {
    let init = match param.init {
        Init::Zeros => "zeros".to_owned(),
        Init::Ones => "ones".to_owned(),
        Init::Normal(s) => format!("normal({s})"),
        Init::Uniform(a) => format!("uniform({a})"),
    };
    let turns = param.turns.map_or_else(String::new, |n| format!(" × {n}"));
    [param.name.clone(), format!("{}{turns}", param.ty), init]
}

/// Steps of a block, indented by `indent` blanks.
pub fn print_block(graph: &Graph, steps: &[Step], indent: usize) -> String {
    let mut out = String::new();
    let mut rows = Vec::new();
    for step in steps {
        match step {
            Step::Op(node) => rows.push(op_row(graph, node)),
            Step::Repeat(repeat) => {
                write_rows(&mut out, &std::mem::take(&mut rows), indent);
                write_repeat(&mut out, graph, repeat, indent);
            }
        }
    }
    write_rows(&mut out, &rows, indent);
    out
}

fn names(graph: &Graph, values: &[ValueId]) -> String {
    values.iter().map(|v| graph.value(*v).name.as_str()).collect::<Vec<_>>().join(", ")
}

fn op_row(graph: &Graph, node: &OpNode) -> [String; 3] {
    let mut text = format!("{} = {}", names(graph, &node.outputs), node.op.name());
    if !node.inputs.is_empty() {
        let _ = write!(text, " {}", names(graph, &node.inputs));
    }
    let attributes = node.op.attributes();
    if !attributes.is_empty() {
        let _ = write!(text, "  {attributes}");
    }
    let ty = node.outputs.first().map_or_else(String::new, |v| graph.ty(*v).to_string());
    [text, ty, node.origin.clone()]
}

fn write_repeat(out: &mut String, graph: &Graph, repeat: &Repeat, indent: usize) {
    let pad = " ".repeat(indent);
    let order = if repeat.reverse { " backwards" } else { "" };
    let _ = writeln!(out, "{pad}repeat {} times{order} as {}", repeat.count, repeat.name);
    for c in &repeat.carried {
        let name = |v: ValueId| graph.value(v).name.as_str();
        let _ = writeln!(
            out,
            "{pad}  carry {} from {}, next {}, yields {}",
            name(c.arg),
            name(c.init),
            name(c.result),
            name(c.out)
        );
    }
    out.push_str(&print_block(graph, &repeat.body.steps, indent + 2));
}

/// Three columns, the last without blanks behind it.
fn write_rows(out: &mut String, rows: &[[String; 3]], indent: usize) {
    let width = |i: usize| rows.iter().map(|r: &[String; 3]| r[i].chars().count()).max().unwrap_or(0);
    let (first, second) = (width(0), width(1));
    for [a, b, c] in rows {
        let line = format!("{:indent$}{a:first$}  {b:second$}  {c}", "");
        out.push_str(line.trim_end());
        out.push('\n');
    }
}
