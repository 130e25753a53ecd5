//! The file and the library's modules: who sees which names.
//!
//! A name means, in this order: a definition of the same file, one brought in by `use std::m::name`, one of the prelude, a builtin.

use std::collections::BTreeMap;

use dspc_grammar::ast::{self, File, ItemKind};
use dspc_source::Span;

use crate::body::{Builtin, Kind, Name};
use crate::errors::*;
use crate::library::{Loaded, MODULES, PRELUDE, module_of};

/// Where a definition stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Place {
    /// The user's file.
    Own,
    /// A module of the library, by its place among those loaded.
    Library(usize),
}

/// What a name means.
#[derive(Clone, Copy)]
pub(crate) enum Found<'a> {
    /// A layer or model.
    Definition(Place, Kind, &'a ast::Definition),
    /// A builtin, by its index.
    Builtin(u32),
}

/// Why a path means nothing.
pub(crate) enum NotFound {
    /// Its module is not in scope.
    Module(ModuleNotUsed),
    /// Its module has no such name.
    InModule(NotInModule),
    /// Nothing in scope has the name.
    Name {
        /// A module that has it.
        elsewhere: Option<String>,
    },
}

/// One file's names.
#[derive(Default)]
struct Names<'a> {
    definitions: BTreeMap<&'a str, (Kind, &'a ast::Definition)>,
    /// In the order written.
    order: Vec<&'a str>,
    /// Modules in scope by their last name, and the `use` that brought each in.
    modules: BTreeMap<&'a str, (usize, Option<&'a Name>)>,
    /// Definitions brought in: the module, and the `use`.
    items: BTreeMap<&'a str, (usize, &'a Name)>,
}

/// All files of a compilation.
pub(crate) struct Modules<'a> {
    own: Names<'a>,
    library: Vec<Names<'a>>,
    loaded: &'a [Loaded],
}

impl<'a> Modules<'a> {
    /// Collects the names of the user's file and of the modules it uses; unknown and doubled ones are reported.
    pub fn collect(file: &'a File, loaded: &'a [Loaded], mistakes: &mut Mistakes) -> Self {
        let library = loaded.iter().map(|module| names(&module.file, loaded, mistakes)).collect();
        let own = names(file, loaded, mistakes);
        let modules = Modules { own, library, loaded };
        modules.check_uses(mistakes);
        modules
    }

    /// The user's definitions in the order written.
    pub fn own(&self) -> impl Iterator<Item = (&'a str, Kind, &'a ast::Definition)> + use<'a> {
        let found = self.own.order.iter().filter_map(|name| Some((*name, *self.own.definitions.get(name)?)));
        found.map(|(name, (kind, definition))| (name, kind, definition)).collect::<Vec<_>>().into_iter()
    }

    /// The user's `use` items: place and last name.
    pub fn uses(&self) -> Vec<(Span, Name)> {
        let modules = self.own.modules.values().filter_map(|(_, name)| *name);
        let items = self.own.items.values().map(|(_, name)| *name);
        modules.chain(items).map(|name| (name.span, name.clone())).collect()
    }

    /// Models that a `model = …` may call, as written there.
    pub fn models(&self) -> Vec<String> {
        let of = |names: &Names<'a>, prefix: &str| {
            let models = names.definitions.iter().filter(|(_, (kind, _))| *kind == Kind::Model);
            models.map(|(name, _)| format!("{prefix}{name}")).collect::<Vec<_>>()
        };
        let mut all = of(&self.own, "");
        for (name, (module, _)) in &self.own.modules {
            all.extend(
                self.library.get(*module).map(|names| of(names, &format!("{name}::"))).unwrap_or_default(),
            );
        }
        all
    }

    /// `std::gpt2`, or empty for the user's file.
    pub fn path(&self, place: Place) -> String {
        match place {
            Place::Own => String::new(),
            Place::Library(i) => self.loaded.get(i).map(|m| format!("std::{}", m.name)).unwrap_or_default(),
        }
    }

    /// What a path means in a file, and the `use` that it was found through.
    pub fn find(
        &self,
        place: Place,
        path: &ast::Path,
        builtins: &[Builtin],
    ) -> Result<(Found<'a>, Option<Span>), Box<NotFound>> {
        match path.segments.as_slice() {
            [name] => self.find_plain(place, &name.value, builtins),
            [module, name] if path.scoped.first() == Some(&true) => self.find_in_module(place, module, name),
            [std, module, ..] if std.value == "std" => Err(self.not_used(place, module)),
            [first, ..] => Err(self.not_used(place, first)),
            [] => Err(Box::new(NotFound::Name { elsewhere: None })),
        }
    }

    fn find_plain(
        &self,
        place: Place,
        name: &str,
        builtins: &[Builtin],
    ) -> Result<(Found<'a>, Option<Span>), Box<NotFound>> {
        let names = self.names(place);
        if let Some((kind, definition)) = names.definitions.get(name) {
            return Ok((Found::Definition(place, *kind, definition), None));
        }
        if let Some((module, through)) = names.items.get(name)
            && let Some(found) = self.definition(*module, name)
        {
            return Ok((found, Some(through.span)));
        }
        let prelude = self.loaded.iter().position(|module| module.name == PRELUDE);
        if let Some(found) = prelude.and_then(|module| self.definition(module, name)) {
            return Ok((found, None));
        }
        if let Some(index) = builtins.iter().position(|builtin| builtin.name == name) {
            return Ok((Found::Builtin(index as u32), None));
        }
        let elsewhere =
            names.modules.iter().find(|(_, (module, _))| self.definition(*module, name).is_some());
        Err(Box::new(NotFound::Name { elsewhere: elsewhere.map(|(module, _)| module.to_string()) }))
    }

    /// Layers and models that a file may call by their bare names.
    pub fn in_scope(&self, place: Place) -> Vec<String> {
        let names = self.names(place);
        let prelude = self.loaded.iter().position(|module| module.name == PRELUDE);
        let prelude =
            prelude.and_then(|module| self.library.get(module)).into_iter().flat_map(|names| &names.order);
        names
            .definitions
            .keys()
            .chain(names.items.keys())
            .chain(prelude)
            .map(|name| name.to_string())
            .collect()
    }

    fn find_in_module(
        &self,
        place: Place,
        module: &Name,
        name: &Name,
    ) -> Result<(Found<'a>, Option<Span>), Box<NotFound>> {
        let names = self.names(place);
        let prelude =
            || Some((self.loaded.iter().position(|m| m.name == PRELUDE && m.name == module.value)?, None));
        let Some((index, through)) = names.modules.get(module.value.as_str()).copied().or_else(prelude)
        else {
            return Err(self.not_used(place, module));
        };
        match self.definition(index, &name.value) {
            Some(found) => Ok((found, through.map(|name| name.span))),
            None => {
                let known = self.library.get(index).map(|n| n.order.iter().map(|n| n.to_string()).collect());
                let module = self.path(Place::Library(index));
                Err(Box::new(NotFound::InModule(NotInModule {
                    name: name.clone(),
                    module,
                    known: known.unwrap_or_default(),
                })))
            }
        }
    }

    fn not_used(&self, place: Place, module: &Name) -> Box<NotFound> {
        let used = self.names(place).modules.keys().map(|name| name.to_string()).collect();
        let in_library = MODULES.contains(&module.value.as_str());
        Box::new(NotFound::Module(ModuleNotUsed { segment: module.clone(), used, in_library }))
    }

    fn names(&self, place: Place) -> &Names<'a> {
        match place {
            Place::Library(i) => self.library.get(i).unwrap_or(&self.own),
            Place::Own => &self.own,
        }
    }

    fn definition(&self, module: usize, name: &str) -> Option<Found<'a>> {
        let (kind, definition) = self.library.get(module)?.definitions.get(name)?;
        Some(Found::Definition(Place::Library(module), *kind, definition))
    }

    /// `use std::gpt2::blok`: only now that all modules are read can the last name be looked up.
    fn check_uses(&self, mistakes: &mut Mistakes) {
        for (name, (module, through)) in &self.own.items {
            if self.definition(*module, name).is_none() {
                let known =
                    self.library.get(*module).map(|n| n.order.iter().map(|n| n.to_string()).collect());
                let module = self.path(Place::Library(*module));
                mistakes.add(NotInModule {
                    name: (*through).clone(),
                    module,
                    known: known.unwrap_or_default(),
                });
            }
        }
    }
}

fn names<'a>(file: &'a File, loaded: &[Loaded], mistakes: &mut Mistakes) -> Names<'a> {
    let mut names = Names::default();
    for item in &file.items {
        if let ItemKind::Use(path) = &item.kind {
            add_use(&mut names, path, loaded, mistakes);
        }
    }
    for item in &file.items {
        match &item.kind {
            ItemKind::Layer(definition) => add_definition(&mut names, Kind::Layer, definition, mistakes),
            ItemKind::Model(definition) => add_definition(&mut names, Kind::Model, definition, mistakes),
            ItemKind::Use(_) | ItemKind::Setting { .. } | ItemKind::Block { .. } | ItemKind::Bad => {}
        }
    }
    names
}

fn add_use<'a>(names: &mut Names<'a>, path: &'a [Name], loaded: &[Loaded], mistakes: &mut Mistakes) {
    let index = module_of(path).and_then(|module| loaded.iter().position(|m| m.name == module));
    let Some(index) = index else {
        let wrong = match path {
            [std, module, ..] if std.value == "std" => module,
            [first, ..] => first,
            [] => return,
        };
        return mistakes.add(UnknownModule { segment: wrong.clone(), known: MODULES });
    };
    let twice = |first: Span, name: &Name| SettingTwice { name: name.clone(), first };
    match path {
        [_, module] => match names.modules.get(module.value.as_str()) {
            Some((_, Some(first))) => mistakes.add(twice(first.span, module)),
            Some((_, None)) | None => {
                names.modules.insert(&module.value, (index, Some(module)));
            }
        },
        [_, _, item] => match names.items.get(item.value.as_str()) {
            Some((_, first)) => mistakes.add(twice(first.span, item)),
            None => {
                names.items.insert(&item.value, (index, item));
            }
        },
        [_, _, item, rest, ..] => {
            let module = format!("std::{}::{}", path[1].value, item.value);
            mistakes.add(NotInModule { name: rest.clone(), module, known: vec![] });
        }
        _ => {}
    }
}

fn add_definition<'a>(
    names: &mut Names<'a>,
    kind: Kind,
    definition: &'a ast::Definition,
    mistakes: &mut Mistakes,
) {
    let name = definition.name.value.as_str();
    let used = names.items.get(name).map(|(_, n)| n.span);
    let used = used.or_else(|| names.modules.get(name).and_then(|(_, n)| n.map(|n| n.span)));
    // A module may hold a model of its own name (`gpt2::gpt2`); only a user's own file brings modules in.
    if let Some(first) = used {
        mistakes.add(DefinitionTwice { name: definition.name.clone(), first, first_is_use: true });
    }
    match names.definitions.get(name) {
        Some((_, first)) => {
            let first = first.name.span;
            mistakes.add(DefinitionTwice { name: definition.name.clone(), first, first_is_use: false });
        }
        None => {
            names.definitions.insert(name, (kind, definition));
            names.order.push(name);
        }
    }
}
