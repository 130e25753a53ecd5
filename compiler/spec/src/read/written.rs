//! What the file's settings half says, by path; unknown, doubled and missing names are found here.

use std::collections::{BTreeMap, BTreeSet};

use dspc_grammar::ast::{Expr, Field, File, ItemKind, Name};
use dspc_source::{FileId, Span};

use crate::errors::{MissingSettings, Mistakes, SettingTwice, UnknownSetting, WrongForm, near};
use crate::keys::{BLOCKS, Fallback, KEYS, Key};

/// One setting as written.
pub(crate) struct Entry<'a> {
    /// Its name.
    pub name: Span,
    /// Its value.
    pub value: &'a Expr,
}

/// All settings as written.
pub(crate) struct Written<'a> {
    entries: BTreeMap<&'static str, Entry<'a>>,
    blocks: BTreeMap<&'static str, Span>,
    /// Paths and blocks that were meant by something misspelt: reported once, not as missing too.
    meant: BTreeSet<&'static str>,
    /// Where a missing setting would stand: after the last item.
    pub end: Span,
}

impl<'a> Written<'a> {
    /// Collects a file's settings.
    pub fn collect(file: &'a File, mistakes: &mut Mistakes) -> Self {
        let end = end_of(file);
        let mut written =
            Written { entries: BTreeMap::new(), blocks: BTreeMap::new(), meant: BTreeSet::new(), end };
        for item in &file.items {
            match &item.kind {
                ItemKind::Setting { name, value } => written.add_setting(name, value, mistakes),
                ItemKind::Block { name, fields } => written.add_block(name, fields, mistakes),
                ItemKind::Use(_) | ItemKind::Layer(_) | ItemKind::Model(_) | ItemKind::Bad => {}
            }
        }
        written
    }

    /// The entry of a path.
    pub fn get(&self, path: &str) -> Option<&Entry<'a>> {
        self.entries.get(path)
    }

    /// Reports every setting that has no default and is not written.
    pub fn report_missing(&self, mistakes: &mut Mistakes) {
        let missing = |key: &&'static Key| matches!(key.fallback, Fallback::Required) && !self.stands_in(key);
        for key in KEYS.iter().filter(|key| key.block().is_none()).filter(missing) {
            mistakes.add(MissingSettings { keys: vec![key], place: self.end, block_written: false });
        }
        for (block, _) in BLOCKS {
            let keys: Vec<_> =
                KEYS.iter().filter(|key| key.block() == Some(*block)).filter(missing).collect();
            if !keys.is_empty() {
                let written = self.blocks.get(block);
                let place = written.copied().unwrap_or(self.end);
                mistakes.add(MissingSettings { keys, place, block_written: written.is_some() });
            }
        }
    }

    /// True if a key or what makes up for it is written.
    fn stands_in(&self, key: &Key) -> bool {
        self.entries.contains_key(key.path)
            || self.meant.contains(key.path)
            || key.path == "train.batch" && self.entries.contains_key("train.micro_batch")
    }

    fn add_setting(&mut self, name: &Name, value: &'a Expr, mistakes: &mut Mistakes) {
        if BLOCKS.iter().any(|(block, _)| *block == name.value) {
            self.meant.extend(KEYS.iter().filter(|key| key.block() == Some(&name.value)).map(|key| key.path));
            mistakes.add(WrongForm { name: name.clone(), is_block: true });
        } else {
            self.add(name, None, &name.value, value, mistakes);
        }
    }

    fn add_block(&mut self, name: &Name, fields: &'a [Field], mistakes: &mut Mistakes) {
        let Some((block, _)) = BLOCKS.iter().find(|(block, _)| *block == name.value) else {
            match Key::find(&name.value) {
                Some(key) => {
                    self.meant.insert(key.path);
                    mistakes.add(WrongForm { name: name.clone(), is_block: false });
                }
                None => mistakes.add(UnknownSetting { name: name.clone(), block: None }),
            }
            return;
        };
        match self.blocks.get(block) {
            Some(first) => mistakes.add(SettingTwice { name: name.clone(), first: *first }),
            None => {
                self.blocks.insert(block, name.span);
            }
        }
        for field in fields {
            let path = format!("{block}.{}", field.name.value);
            self.add(&field.name, Some(block), &path, &field.value, mistakes);
        }
    }

    fn add(
        &mut self,
        name: &Name,
        block: Option<&'static str>,
        path: &str,
        value: &'a Expr,
        mistakes: &mut Mistakes,
    ) {
        let Some(key) = Key::find(path) else {
            let same_block = KEYS.iter().filter(|key| key.block() == block);
            let near = near(&name.value, same_block.map(Key::name));
            let key =
                near.and_then(|near| KEYS.iter().find(|key| key.name() == near && key.block() == block));
            self.meant.extend(key.or_else(|| Key::find_foreign(&name.value)).map(|key| key.path));
            return mistakes.add(UnknownSetting { name: name.clone(), block });
        };
        match self.entries.get(key.path) {
            Some(first) => mistakes.add(SettingTwice { name: name.clone(), first: first.name }),
            None => {
                self.entries.insert(key.path, Entry { name: name.span, value });
            }
        }
    }
}

/// The place after the last item, or the start of an empty file.
fn end_of(file: &File) -> Span {
    match (file.items.last(), file.comments.last()) {
        (Some(item), _) => Span { start: item.span.end, ..item.span },
        (None, Some(comment)) => Span { start: comment.span.end, ..comment.span },
        (None, None) => Span::new(FileId(0), 0, 0),
    }
}
