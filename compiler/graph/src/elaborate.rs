//! Elaboration: a spec's model becomes a graph of known sizes.
//!
//! Reads   a checked spec, the micro-batch and the sequence length.
//! Writes  the forward graph: bodies evaluated, calls opened, names joined to dotted paths, one [`crate::ir::Repeat`] a `repeat`.
//! Keeps   the user's names and places, for every value.
//! Leaves  alone precision, gradients, devices.
//! Cost    one walk over every call; a repeat's body is walked once.

mod calls;
mod dims;
mod emission;
mod expressions;
mod functions;
mod operators;
mod predicates;
mod statements;
mod values;

use std::collections::BTreeMap;

use dspc_source::{Diagnostic, SourceMap, Span};
use dspc_spec::body::DefinitionId;
use dspc_spec::settings::Spec;

use crate::ir::{Dim, Graph, Input, RepeatId, Step, ValueId};
use values::{Number, Value};

/// Ops of a graph, unrolled repeats counted turn by turn.
const OPS_MAX: usize = 1_000_000;
/// Statements and calls, those of unrolled repeats turn by turn: what a short text may ask of the elaborator.
const WORK_MAX: usize = 1_000_000;
/// Turns of a repeat.
const TURNS_MAX: u64 = 100_000;
/// Elements of a tensor.
const ELEMENTS_MAX: u64 = 1 << 40;
/// Calls inside calls.
const DEPTH_MAX: usize = 64;

/// What the caller decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Elaborate {
    /// Dropout acts. Without it the graph is that of evaluation.
    pub train: bool,
}

/// The model of `spec` for `micro_batch` sequences of `sequence` ids.
///
/// # Errors
/// Every mistake that sizes show, codes E04xx; those of independent statements together.
pub fn elaborate(
    spec: &Spec,
    sources: &SourceMap,
    micro_batch: u64,
    sequence: u64,
    options: Elaborate,
) -> Result<Graph, Vec<Diagnostic>> {
    let mut elaborator = Elaborator::new(spec, sources, options);
    elaborator.batch = Dim::new("B", micro_batch);
    elaborator.sequence = Dim { name: "T".into(), size: sequence, place: spec.settings.data.sequence.span() };
    elaborator.model();
    elaborator.finish()
}

/// A mistake was reported; nothing more to say.
pub(super) struct Reported;

type Outcome<T> = Result<T, Reported>;

/// A name of a body.
#[derive(Clone, Debug)]
struct Bound {
    value: Value,
    place: Span,
}

/// The body being elaborated: its names, and how what it makes is called.
#[derive(Clone, Debug)]
struct Frame {
    /// Of parameters: `h.*.attn`.
    path: String,
    /// Of values: `h.attn`.
    value_path: String,
    names: BTreeMap<String, Bound>,
    /// What `..` stands for.
    leading: Option<(Vec<Dim>, Span)>,
    /// A call without `as` takes the frame's own path: the only call of a repeat's body, or the body of an alias.
    passes_path: bool,
}

impl Frame {
    fn bind(&mut self, name: &str, value: Value, place: Span) {
        self.names.insert(name.to_owned(), Bound { value, place });
    }
}

/// `a.b`, or `b` where a is empty.
fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// How a value gets its name in the end.
#[derive(Clone, Debug)]
enum Naming {
    /// The user bound it.
    Given(String),
    /// After its op, until someone binds it.
    Derived(String),
    /// A further result of the op of another value.
    Beside(ValueId, &'static str),
}

struct Elaborator<'a> {
    spec: &'a Spec,
    sources: &'a SourceMap,
    options: Elaborate,
    batch: Dim,
    sequence: Dim,
    graph: Graph,
    namings: Vec<Naming>,
    diagnostics: Vec<Diagnostic>,
    /// The block being written.
    steps: Vec<Step>,
    /// The repeat whose body is being written, and its turns.
    repeat: Option<(RepeatId, u64)>,
    repeats: u32,
    inputs: BTreeMap<u8, ValueId>,
    transposes: BTreeMap<ValueId, ValueId>,
    /// Calls that led to each parameter's statement, outermost first.
    param_calls: BTreeMap<String, Vec<Span>>,
    /// Calls that lead here.
    calls: Vec<(DefinitionId, Span)>,
    /// Where what is emitted came from.
    emission: emission::Place,
    ops: usize,
    work: usize,
    sites: u32,
}

impl<'a> Elaborator<'a> {
    fn new(spec: &'a Spec, sources: &'a SourceMap, options: Elaborate) -> Self {
        Self {
            spec,
            sources,
            options,
            batch: Dim::of(1),
            sequence: Dim::of(1),
            graph: Graph { name: spec.name.clone(), ..Graph::default() },
            namings: vec![],
            diagnostics: vec![],
            steps: vec![],
            repeat: None,
            repeats: 0,
            inputs: BTreeMap::new(),
            transposes: BTreeMap::new(),
            param_calls: BTreeMap::new(),
            calls: vec![],
            emission: emission::Place { path: String::new(), origin: String::new(), span: spec.model.span },
            ops: 0,
            work: 0,
            sites: 0,
        }
    }

    /// Notes a mistake, once for each place.
    fn report<T>(&mut self, mistake: impl Into<Diagnostic>) -> Outcome<T> {
        let mistake = mistake.into();
        let again =
            self.diagnostics.iter().any(|d| d.code == mistake.code && d.primary.span == mistake.primary.span);
        if !again {
            self.diagnostics.push(mistake);
        }
        Err(Reported)
    }

    /// Counts a statement or a call.
    fn work(&mut self, span: Span) -> Outcome<()> {
        self.work += 1;
        if self.work <= WORK_MAX {
            return Ok(());
        }
        let limit = format!("{WORK_MAX} statements and calls, unrolled repeats turn by turn");
        self.report(crate::errors::TooLarge { what: "the model".into(), limit, span, places: vec![] })
    }

    fn model(&mut self) {
        let spec = self.spec;
        let call = &spec.model;
        let given = call.args.iter().map(|(name, value)| {
            let value = match value {
                dspc_spec::body::Value::Number(x) => Value::Number(Number::literal(*x, name.span)),
                dspc_spec::body::Value::Bool(b) => Value::Bool(*b),
                dspc_spec::body::Value::String(s) => Value::Text(s.clone()),
            };
            calls::Given { name: Some(name.clone()), value, span: name.span }
        });
        let given: Vec<calls::Given> = given.collect();
        let root = (String::new(), String::new());
        let Ok(Value::Tensor(loss)) = self.call_definition(call.definition, given, root, call.span) else {
            return;
        };
        self.rename_derived(loss, "loss".into());
        self.graph.loss = Some(loss);
    }

    fn finish(mut self) -> Result<Graph, Vec<Diagnostic>> {
        if self.diagnostics.is_empty() && self.graph.loss.is_none() {
            let definition = &self.spec.definitions[self.spec.model.definition.0 as usize];
            let (model, result) = (definition.name.value.clone(), self.spec.model.span);
            let _: Outcome<()> =
                self.report(crate::errors::NoLoss { model, found: "no scalar".into(), result });
        }
        if !self.diagnostics.is_empty() {
            return Err(self.diagnostics);
        }
        self.graph.body.steps = std::mem::take(&mut self.steps);
        let roots: Vec<ValueId> = self.graph.loss.into_iter().chain(self.graph.logits).collect();
        crate::prune(&mut self.graph, &roots, 0);
        self.name_values();
        Ok(self.graph)
    }
}

fn input_key(input: Input) -> u8 {
    match input {
        Input::Tokens => 0,
        Input::Targets => 1,
        Input::InvTargets => 2,
        Input::Rng => 3,
        Input::LossScale => 4,
    }
}
