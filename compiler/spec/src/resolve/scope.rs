//! The names of one definition's body.

use std::collections::{BTreeMap, BTreeSet};

use dspc_source::Span;

use crate::body::Name;
use crate::errors::Elsewhere;

/// Names in scope, innermost frame last; one frame for the definition and one for each open `repeat` or function.
#[derive(Default)]
pub(super) struct Scope {
    frames: Vec<BTreeMap<String, Span>>,
    /// Names whose frame is closed.
    gone: BTreeMap<String, Span>,
    /// Names that something reads.
    read: BTreeSet<String>,
    /// Names that a statement binds, in order.
    bound: Vec<Name>,
    /// Names bound anywhere in the body, for "only later".
    pub later: BTreeMap<String, Span>,
    /// The body's name of a parameter that callers call otherwise: `heads` is `H`.
    pub known_as: BTreeMap<String, Name>,
}

impl Scope {
    /// Opens a frame.
    pub fn open(&mut self) {
        self.frames.push(BTreeMap::new());
    }

    /// Closes the innermost frame; its names are gone.
    pub fn close(&mut self) {
        self.gone.extend(self.frames.pop().unwrap_or_default());
    }

    /// Puts a name into the innermost frame, shadowing an outer one.
    pub fn declare(&mut self, name: &Name) {
        if let Some(frame) = self.frames.last_mut() {
            frame.insert(name.value.clone(), name.span);
        }
    }

    /// Binds a name: an outer one is rebound (and carried round a `repeat`), a new one is of this frame.
    pub fn bind(&mut self, name: &Name) {
        if self.find(&name.value).is_none() {
            self.declare(name);
        }
        self.bound.push(name.clone());
    }

    /// Where a name in scope was bound first.
    pub fn find(&self, name: &str) -> Option<Span> {
        self.frames.iter().rev().find_map(|frame| frame.get(name).copied())
    }

    /// Notes that a name is read.
    pub fn read(&mut self, name: &str) {
        self.read.insert(name.to_string());
    }

    /// All names in scope.
    pub fn known(&self) -> Vec<String> {
        let names: BTreeSet<&String> = self.frames.iter().flat_map(BTreeMap::keys).collect();
        names.into_iter().cloned().collect()
    }

    /// Where a name not in scope is bound after all, and why it does not count here.
    pub fn elsewhere(&self, name: &str) -> Option<(Span, Elsewhere)> {
        let gone = self.gone.get(name).map(|span| (*span, Elsewhere::Gone));
        gone.or_else(|| self.later.get(name).map(|span| (*span, Elsewhere::Later)))
    }

    /// Bound names that nothing reads.
    pub fn unread(&self) -> Vec<Name> {
        let mut seen = BTreeSet::new();
        let unread = |name: &&Name| !self.read.contains(&name.value) && !name.value.starts_with('_');
        self.bound.iter().filter(unread).filter(|name| seen.insert(name.value.clone())).cloned().collect()
    }
}
