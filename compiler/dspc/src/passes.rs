//! The list of passes: from a text to a program.

use dspc_grammar::ast;
use dspc_graph::ir::Graph;
use dspc_graph::{Elaborate, elaborate};
use dspc_kernel::steps::Kernels;
use dspc_plan::{Batch, Graphs, Mesh, Plan};
use dspc_program::{Family, Program};
use dspc_source::{Diagnostic, FileId, Severity, SourceMap};
use dspc_spec::settings::{self, DataFacts, Spec};
use dspc_train::{NotTrainable, Recompute, TrainGraph};

use crate::fit::{self, Device};
use crate::job;

/// A spec that has been read.
pub struct Front {
    /// All texts, the library's included.
    pub sources: SourceMap,
    /// The spec's own file.
    pub file: FileId,
    /// As written.
    pub tree: ast::File,
    /// What it means; absent if something is wrong.
    pub spec: Option<Spec>,
    /// Everything that is wrong or odd.
    pub diagnostics: Vec<Diagnostic>,
}

impl Front {
    /// Whether something is wrong.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|d| d.severity == Severity::Error)
    }
}

/// Text to syntax tree.
pub fn read(name: &str, text: &str) -> Front {
    let mut sources = SourceMap::default();
    let file = sources.add(name, text);
    let (tree, diagnostics) = dspc_grammar::parse(file, text);
    Front { sources, file, tree, spec: None, diagnostics }
}

/// Syntax tree to spec, and on to the graph so that shapes are checked too.
pub fn check(front: &mut Front, stem: &str, facts: &DataFacts) {
    let builtins = dspc_graph::ops::builtins();
    let (spec, diagnostics) = dspc_spec::check(stem, &front.tree, facts, &builtins, &mut front.sources);
    front.diagnostics.extend(diagnostics);
    if let Some(spec) = &spec
        && !front.has_errors()
        && let Err(diagnostics) = train(spec, &front.sources, Choices::of(spec))
    {
        front.diagnostics.extend(diagnostics);
    }
    front.diagnostics.sort_by_key(|d| (d.primary.span.file, d.primary.span.start, d.code));
    front.spec = if front.has_errors() { None } else { spec };
}

/// What a graph is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// A micro-batch, with dropout.
    Train,
    /// A micro-batch without.
    Evaluate,
    /// One sequence without.
    Generate,
}

/// What decides how much memory a program takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choices {
    /// Sequences at once.
    pub micro_batch: u64,
    /// Micro-batches a step.
    pub accumulation: u64,
    /// How much the backward pass computes again.
    pub recompute: Recompute,
}

impl Choices {
    /// What the spec says; `auto` begins with the cheapest.
    pub fn of(spec: &Spec) -> Self {
        let settings = &spec.settings;
        let recompute = match settings.recompute.value {
            settings::Recompute::None | settings::Recompute::Auto => Recompute::None,
            settings::Recompute::Norms => Recompute::Norms,
            settings::Recompute::Block => Recompute::Block,
        };
        let (micro_batch, accumulation) =
            (settings.train.micro_batch.value, settings.train.accumulation.value);
        Self { micro_batch, accumulation, recompute }
    }
}

/// Spec to graph.
pub fn graph(
    spec: &Spec,
    sources: &SourceMap,
    purpose: Use,
    micro_batch: u64,
) -> Result<Graph, Vec<Diagnostic>> {
    let batch = if purpose == Use::Generate { 1 } else { micro_batch };
    let options = Elaborate { train: purpose == Use::Train };
    let graph = elaborate(spec, sources, batch, spec.settings.data.sequence.value, options)?;
    Ok(match purpose {
        Use::Train => graph, // stored with its gradients, in `train`
        Use::Evaluate | Use::Generate => {
            let stored =
                dspc_train::store_forward(graph, &spec.settings.precision.value, purpose == Use::Generate);
            verified("graph", dspc_graph::verify(&stored).map_err(first_fault));
            stored
        }
    })
}

fn first_fault(faults: Vec<dspc_graph::Fault>) -> String {
    faults.into_iter().next().map_or(String::new(), |fault| fault.message)
}

/// Every layer from the graph on.
pub struct Lowered {
    /// Forward and backward, spread over the mesh.
    pub plan: Plan,
    /// Fused kernels.
    pub kernels: Kernels,
    /// Instructions and memory; its targets are empty until the back end has run.
    pub program: Program,
}

/// Spec to training graph.
pub fn train(spec: &Spec, sources: &SourceMap, choices: Choices) -> Result<TrainGraph, Vec<Diagnostic>> {
    let graph = graph(spec, sources, Use::Train, choices.micro_batch)?;
    let settings = &spec.settings;
    let optimizer = &settings.optimizer.value;
    let precision = settings.precision.value.clone();
    let train = dspc_train::differentiate(graph, optimizer, settings.train.clip.value, precision);
    let train = train.map_err(|reason| match reason {
        NotTrainable::Groups(mistakes) => mistakes,
        NotTrainable::NoLoss | NotTrainable::NoParameters => {
            let help = "give the model a `param` that its loss depends on";
            vec![Diagnostic::error("E0450", reason.to_string(), spec.model.span, "this model").help(help)]
        }
    })?;
    let stored = dspc_train::store(train);
    verified("train", dspc_graph::verify(&stored.graph).map_err(first_fault));
    Ok(dspc_train::recompute(stored, choices.recompute))
}

/// Spec to program for one device, without machine code.
pub fn lower(
    spec: &Spec,
    sources: &SourceMap,
    characters: Option<String>,
    device: impl Into<Device>,
) -> Result<Lowered, Vec<Diagnostic>> {
    let lowered = fit::fit(spec, sources, characters.as_deref(), device.into())?;
    let audited = dspc_audit::audit(&lowered.program).into_iter().next();
    verified("schedule", audited.map_or(Ok(()), |finding| Err(finding.to_string())));
    Ok(lowered)
}

/// Spec to program with every choice made.
pub(crate) fn lower_as(
    spec: &Spec,
    sources: &SourceMap,
    characters: Option<&str>,
    family: Family,
    choices: Choices,
) -> Result<Lowered, Vec<Diagnostic>> {
    let settings = &spec.settings;
    let Choices { micro_batch, accumulation, .. } = choices;
    let train = train(spec, sources, choices)?;
    let evaluate = graph(spec, sources, Use::Evaluate, micro_batch)?;
    let logits = graph(spec, sources, Use::Generate, micro_batch)?;
    let batch = Batch { batch: settings.train.batch.value, micro_batch, accumulation };
    let mesh = Mesh::of(&settings.parallel.value);
    let graphs = Graphs { train, evaluate, logits };
    let (zero, deterministic) = (settings.zero.value, settings.deterministic.value);
    let spread = dspc_plan::Spread { zero, deterministic };
    let plan = dspc_plan::plan(&spec.name, mesh, batch, settings.train.steps.value, graphs, spread);
    verified("plan", dspc_plan::verify(&plan));
    let kernels = dspc_kernel::kernels(&plan, family);
    let program =
        dspc_schedule::schedule(&plan, &kernels, job::job(spec, &plan, characters.map(String::from)));
    Ok(Lowered { plan, kernels, program })
}

/// A verifier's finding is a bug of ours and says so.
fn verified(layer: &str, result: Result<(), String>) {
    if let Err(finding) = result {
        panic!(
            "internal error in the {layer} layer: {finding}\nplease report this with the spec that shows it"
        );
    }
}
