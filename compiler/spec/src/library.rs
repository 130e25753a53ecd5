//! The library's sources, embedded. A module is parsed when something uses it.

use dspc_grammar::ast::{File, ItemKind, Name};
use dspc_source::{Diagnostic, SourceMap};

/// In scope everywhere without `use`.
pub(crate) const PRELUDE: &str = "nn";

/// Every module, in the order in which messages list them.
pub(crate) const MODULES: &[&str] = &["gpt2", "llama", PRELUDE];

/// A parsed module.
pub(crate) struct Loaded {
    /// `gpt2`
    pub name: &'static str,
    /// Its syntax tree.
    pub file: File,
}

/// A module's text.
pub fn text_of(module: &str) -> Option<&'static str> {
    match module {
        "nn" => Some(include_str!("../std/nn.dsp")),
        "gpt2" => Some(include_str!("../std/gpt2.dsp")),
        "llama" => Some(include_str!("../std/llama.dsp")),
        _ => None,
    }
}

/// Parses the prelude and every module that the file uses, directly or through others; each becomes a file of `sources`.
///
/// The library has no mistakes of its own (tests check it); one there would be handed out like the user's.
pub(crate) fn load(file: &File, sources: &mut SourceMap) -> (Vec<Loaded>, Vec<Diagnostic>) {
    let mut wanted = vec![PRELUDE];
    wanted.extend(used_by(file));
    let (mut loaded, mut diagnostics): (Vec<Loaded>, _) = (vec![], vec![]);
    let mut next = 0;
    while let Some(name) = wanted.get(next).copied() {
        next += 1;
        if loaded.iter().any(|module| module.name == name) {
            continue;
        }
        let text = text_of(name).unwrap_or_default();
        let id = sources.add(format!("std::{name}"), text);
        let (file, found) = dspc_grammar::parse(id, text);
        diagnostics.extend(found);
        wanted.extend(used_by(&file));
        loaded.push(Loaded { name, file });
    }
    (loaded, diagnostics)
}

/// The library's modules that a file's `use` items name.
fn used_by(file: &File) -> Vec<&'static str> {
    let paths = file.items.iter().filter_map(|item| match &item.kind {
        ItemKind::Use(path) => Some(path),
        _ => None,
    });
    paths.filter_map(|path| module_of(path)).collect()
}

/// The module that a `use` path names, if the library has it.
pub(crate) fn module_of(path: &[Name]) -> Option<&'static str> {
    match path {
        [std, module, ..] if std.value == "std" => {
            MODULES.iter().copied().find(|known| *known == module.value)
        }
        _ => None,
    }
}
