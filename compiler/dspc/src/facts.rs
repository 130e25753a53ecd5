//! What the checker must know of the world: the size of the tokenizer's vocabulary.

use std::path::{Path, PathBuf};

use dspc_grammar::ast::{ExprKind, File, ItemKind};
use dspc_runtime::data;
use dspc_spec::settings::DataFacts;

/// The facts, and for `chars` the characters of the text.
pub struct Facts {
    /// For the checker.
    pub data: DataFacts,
    /// Sorted characters.
    pub characters: Option<String>,
    /// Why the text could not be read.
    pub fault: Option<dspc_runtime::Error>,
}

/// Reads what the spec's `data` block names, as far as it can be read without checking it.
pub fn gather(tree: &File, root: &Path) -> Facts {
    let mut facts = Facts { data: DataFacts::default(), characters: None, fault: None };
    match tokenizer(tree).as_deref() {
        Some("bytes") => facts.data.vocab = Some(256),
        Some("gpt2") => facts.data.vocab = Some(50257),
        Some("chars") => match data::characters(&texts(tree), root) {
            Ok(characters) => {
                facts.data.vocab = Some(characters.chars().count() as u64);
                facts.characters = Some(characters);
            }
            Err(fault) => facts.fault = Some(fault),
        },
        _ => {}
    }
    facts
}

/// The folder that a spec's data patterns are relative to.
pub fn root(spec: &Path) -> PathBuf {
    match spec.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn data_field<'a>(tree: &'a File, wanted: &str) -> Option<&'a ExprKind> {
    tree.items.iter().find_map(|item| match &item.kind {
        ItemKind::Block { name, fields } if name.value == "data" => {
            fields.iter().find(|f| f.name.value == wanted).map(|f| &f.value.kind)
        }
        _ => None,
    })
}

fn tokenizer(tree: &File) -> Option<String> {
    match data_field(tree, "tokenizer")? {
        ExprKind::String(name) => Some(name.clone()),
        _ => None,
    }
}

fn texts(tree: &File) -> Vec<String> {
    let text = |kind: &ExprKind| match kind {
        ExprKind::String(text) => Some(text.clone()),
        _ => None,
    };
    match data_field(tree, "text") {
        Some(ExprKind::List(items)) => items.iter().filter_map(|e| text(&e.kind)).collect(),
        Some(kind) => text(kind).into_iter().collect(),
        None => vec![],
    }
}
