//! From names in bodies to the definitions and functions that they mean.

mod body;
mod call;
mod circle;
mod modules;
mod ownership;
mod scope;

pub(crate) use modules::Modules;

use std::collections::{BTreeMap, BTreeSet};

use dspc_grammar::ast;
use dspc_source::Span;

use crate::body::{Builtin, Callee, Definition, DefinitionId, Kind, Name};
use crate::errors::*;
use modules::{Found, Place};

/// Mistakes after which no more names are suggested.
const SUGGESTIONS_MAX: usize = 200;

/// A definition that was reached and waits for its turn.
#[derive(Clone, Copy)]
struct Pending<'a> {
    place: Place,
    kind: Kind,
    definition: &'a ast::Definition,
}

/// Resolves definitions from the model on.
pub(crate) struct Resolver<'a, 'm> {
    modules: &'a Modules<'a>,
    builtins: &'a [Builtin],
    mistakes: &'m mut Mistakes,
    ids: BTreeMap<(Place, &'a str), DefinitionId>,
    reached: Vec<Pending<'a>>,
    resolved: Vec<Definition>,
    /// Modules and names of `use` items that something was found through, by the item's place.
    used: BTreeSet<Span>,
}

/// The call in `model = …`, resolved but for its arguments' values.
pub(crate) struct ModelTarget<'a> {
    pub definition: DefinitionId,
    pub args: Vec<(Name, &'a ast::Expr)>,
    pub span: Span,
}

impl<'a, 'm> Resolver<'a, 'm> {
    /// A resolver that has reached nothing yet.
    pub fn new(modules: &'a Modules<'a>, builtins: &'a [Builtin], mistakes: &'m mut Mistakes) -> Self {
        let (ids, reached, resolved) = (BTreeMap::new(), vec![], vec![]);
        Self { modules, builtins, mistakes, ids, reached, resolved, used: BTreeSet::new() }
    }

    /// Resolves the call in `model = …` and all that it reaches.
    pub fn model(&mut self, value: &'a ast::Expr) -> Option<ModelTarget<'a>> {
        let target = self.model_target(value);
        self.drain();
        target
    }

    /// Resolves what the model does not reach too, so that its mistakes are found; returns the reachable definitions.
    pub fn finish(mut self) -> Vec<Definition> {
        let reachable = self.resolved.len();
        let mut unused = vec![];
        for (name, kind, definition) in self.modules.own() {
            // One that an unused one calls is reached by then: only the first of them is reported.
            if !self.ids.contains_key(&(Place::Own, name)) {
                let what = if kind == Kind::Model { "model" } else { "layer" };
                unused.push(NeverUsed { name: definition.name.clone(), what });
                self.reach(Place::Own, kind, definition);
                self.drain();
            }
        }
        let through = |(span, _): &(Span, Name)| !self.used.contains(span);
        unused.extend(
            self.modules
                .uses()
                .into_iter()
                .filter(through)
                .map(|(_, name)| NeverUsed { name, what: "module" }),
        );
        circle::report(&self.resolved, self.mistakes);
        ownership::report(&self.resolved, self.mistakes);
        // A name that could not be found may have been the use that is missed.
        if !self.mistakes.has_errors() {
            unused.into_iter().for_each(|unused| self.mistakes.add(unused));
        }
        self.resolved.truncate(reachable);
        self.resolved
    }

    fn reach(&mut self, place: Place, kind: Kind, definition: &'a ast::Definition) -> DefinitionId {
        let next = DefinitionId(self.reached.len() as u32);
        let id = *self.ids.entry((place, definition.name.value.as_str())).or_insert(next);
        if id == next {
            self.reached.push(Pending { place, kind, definition });
        }
        id
    }

    fn drain(&mut self) {
        while let Some(pending) = self.reached.get(self.resolved.len()).copied() {
            let definition = self.definition(pending);
            self.resolved.push(definition);
        }
    }

    fn model_target(&mut self, value: &'a ast::Expr) -> Option<ModelTarget<'a>> {
        let (path, args): (_, &'a [ast::Arg]) = match &value.kind {
            ast::ExprKind::Paren(inner) => return self.model_target(inner),
            ast::ExprKind::Bad => return None,
            ast::ExprKind::Call { callee, args } => (callee, args),
            ast::ExprKind::Path(path) => (path, &[]),
            other => {
                let expected = crate::keys::Plain::Model.expected();
                let found = crate::read::describe(other);
                self.mistakes.add(WrongValue {
                    value: value.span,
                    found,
                    place: "model".into(),
                    expected,
                    meant: None,
                });
                return None;
            }
        };
        let name = path_name(path, value.span);
        let Found::Definition(place, kind, definition) = self.find(Place::Own, path, &name)? else {
            let known = self.modules.models();
            self.mistakes.add(UnknownFunction { name, known, elsewhere: None, many: false });
            return None;
        };
        let id = self.reach(place, kind, definition);
        if kind != Kind::Model {
            self.mistakes.add(WrongKind { callee: name, is_model: false, defined: definition.name.span });
            return None;
        }
        let before = self.mistakes.count();
        let args = self.model_arguments(&name, definition, args);
        (self.mistakes.count() == before).then_some(ModelTarget { definition: id, args, span: value.span })
    }

    /// What a path means in a place; what means nothing is reported.
    fn find(&mut self, place: Place, path: &ast::Path, name: &Name) -> Option<Found<'a>> {
        match self.modules.find(place, path, self.builtins) {
            Ok((found, through)) => {
                self.used.extend(through);
                Some(found)
            }
            Err(mistake) => {
                match *mistake {
                    modules::NotFound::Module(mistake) => self.mistakes.add(mistake),
                    modules::NotFound::InModule(mistake) => self.mistakes.add(mistake),
                    modules::NotFound::Name { elsewhere } => {
                        let known = self.suggestions(|it| {
                            let functions =
                                it.builtins.iter().filter(|b| is_function(b)).map(|b| b.name.to_string());
                            it.modules.in_scope(place).into_iter().chain(functions).collect()
                        });
                        self.mistakes.add(UnknownFunction {
                            name: name.clone(),
                            known,
                            elsewhere,
                            many: true,
                        });
                    }
                }
                None
            }
        }
    }

    /// Names to suggest; none once there are very many mistakes, so that a hostile text takes no longer than a long one.
    fn suggestions(&self, names: impl FnOnce(&Self) -> Vec<String>) -> Vec<String> {
        if self.mistakes.count() < SUGGESTIONS_MAX { names(self) } else { vec![] }
    }

    fn callee(&mut self, found: Found<'a>) -> Callee {
        match found {
            Found::Definition(place, kind, definition) => {
                Callee::Definition(self.reach(place, kind, definition))
            }
            Found::Builtin(index) => Callee::Builtin(index),
        }
    }
}

/// True for a builtin that is called; false for a word such as `causal`.
fn is_function(builtin: &Builtin) -> bool {
    builtin.signature.contains('(')
}

/// A path as one name.
fn path_name(path: &ast::Path, otherwise: Span) -> Name {
    let span = match (path.segments.first(), path.segments.last()) {
        (Some(first), Some(last)) => first.span.to(last.span),
        _ => otherwise,
    };
    Name { value: crate::read::written(path), span }
}
