//! `dspc build`

use std::path::{Path, PathBuf};

use dspc_grammar::print_tree;

use super::bindings::{self, Place};
use crate::cli::{Format, Layer, When};
use crate::exit::Exit;
use crate::facts::Facts;
use crate::passes::{self, Front, Lowered};
use crate::{build, report};

/// What is built for.
#[derive(Clone, Copy)]
pub struct For<'a> {
    /// Targets.
    pub targets: &'a [String],
    /// Ranks, where the command line says how many.
    pub ranks: Option<u64>,
}

/// Writes an artifact, or prints a layer.
pub fn build(
    file: &Path,
    output: Option<&Path>,
    emit: Option<Layer>,
    place: &Place,
    For { targets, ranks }: For<'_>,
    when: When,
) -> Exit {
    if emit == Some(Layer::Ast) {
        return print_ast(file, when);
    }
    let (front, facts) = match super::checked(file, ranks, when) {
        Ok(checked) => checked,
        Err(exit) => return exit,
    };
    let done = match emit {
        None => write_artifact(file, output, targets, &front, facts),
        Some(Layer::Rust) => write_crate(file, place, targets, &front, facts),
        Some(layer) => print_layer(layer, &front, facts, targets),
    };
    match done {
        Ok(()) => Exit::Success,
        Err(Failure::Diagnostics(diagnostics)) => {
            report::print(&diagnostics, &front.sources, Format::Text, when);
            Exit::InputErrors
        }
        Err(Failure::Reported(exit)) => exit,
    }
}

enum Failure {
    Diagnostics(Vec<dspc_source::Diagnostic>),
    Reported(Exit),
}

impl From<Vec<dspc_source::Diagnostic>> for Failure {
    fn from(diagnostics: Vec<dspc_source::Diagnostic>) -> Self {
        Failure::Diagnostics(diagnostics)
    }
}

impl From<Exit> for Failure {
    fn from(exit: Exit) -> Self {
        Failure::Reported(exit)
    }
}

/// The tree of any text, with what is wrong in it.
fn print_ast(file: &Path, when: When) -> Exit {
    let text = match super::read_text(file) {
        Ok(text) => text,
        Err(exit) => return exit,
    };
    let front = passes::read(&file.display().to_string(), &text);
    report::print(&front.diagnostics, &front.sources, Format::Text, when);
    print!("{}", print_tree(&front.tree, &text));
    if front.has_errors() { Exit::InputErrors } else { Exit::Success }
}

/// A program for each family of devices among the targets.
fn lower(front: &Front, facts: &Facts, targets: &[String]) -> Result<Vec<Lowered>, Failure> {
    let spec = front.spec.as_ref().ok_or(Exit::InputErrors)?;
    let lowered = |family| passes::lower(spec, &front.sources, facts.characters.clone(), family);
    Ok(build::families(targets).into_iter().map(lowered).collect::<Result<_, _>>()?)
}

fn write_artifact(
    file: &Path,
    output: Option<&Path>,
    targets: &[String],
    front: &Front,
    facts: Facts,
) -> Result<(), Failure> {
    let lowered = lower(front, &facts, targets)?;
    let default = || PathBuf::from(format!("{}.dspx", file.with_extension("").display()));
    let directory = output.map_or_else(default, Path::to_path_buf);
    build::write(&lowered, targets, &directory)?;
    eprintln!("wrote {}", directory.display());
    Ok(())
}

fn write_crate(
    file: &Path,
    place: &Place,
    targets: &[String],
    front: &Front,
    facts: Facts,
) -> Result<(), Failure> {
    let lowered = lower(front, &facts, targets)?;
    let directory = bindings::write(file, place, &build::compiled(&lowered, targets)?)?;
    eprintln!("wrote {}", directory.display());
    Ok(())
}

fn print_layer(layer: Layer, front: &Front, facts: Facts, targets: &[String]) -> Result<(), Failure> {
    let spec = front.spec.as_ref().ok_or(Exit::InputErrors)?;
    let choices = passes::Choices::of(spec);
    let lowered = || lower(front, &facts, targets);
    let each = |print: &dyn Fn(&Lowered) -> String| Ok::<_, Failure>(lowered()?.iter().map(print).collect());
    let text: String = match layer {
        // Neither is printed here.
        Layer::Ast | Layer::Rust => String::new(),
        Layer::Spec => dspc_spec::print(spec),
        Layer::Graph => dspc_graph::print_graph(&passes::graph(
            spec,
            &front.sources,
            passes::Use::Train,
            choices.micro_batch,
        )?),
        Layer::Train => dspc_train::print(&passes::train(spec, &front.sources, choices)?),
        Layer::Plan => each(&|l| dspc_plan::print(&l.plan))?,
        Layer::Kernels => each(&|l| dspc_kernel::print(&l.kernels))?,
        Layer::Schedule => each(&|l| dspc_schedule::print(&l.program))?,
        Layer::Mlir => build::mlir(&lowered()?, targets)?,
        Layer::Ptx => build::ptx(&lowered()?, targets)?,
        Layer::Asm => build::assembly(&lowered()?, targets)?,
    };
    print!("{text}");
    Ok(())
}
