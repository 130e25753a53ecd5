//! What the language can say and this version cannot run yet: one line each, deleted when it can.

use dspc_source::Span;

use crate::errors::{Mistakes, NotYet};
use crate::settings::Settings;

/// Where something is asked for, if that was written, and in which words.
type Asked = (Option<Span>, String);

/// A thing that cannot run yet.
struct Missing {
    code: &'static str,
    /// The setting that asks for it.
    key: &'static str,
    /// `None` if it is not asked for.
    asked: fn(&Settings) -> Option<Asked>,
    /// What to write instead.
    instead: &'static str,
    /// Nothing else can be written.
    sole: bool,
}

const MISSING: &[Missing] = &[
    Missing {
        code: "E0320",
        key: "parallel",
        asked: other_axes,
        instead: "parallel = mesh(data: 4)",
        sole: false,
    },
    Missing { code: "E0322", key: "init", asked: weights_from_disk, instead: "init = random", sole: true },
];

/// What a setting must be in this version, if it has no choice, and the code that says so.
pub(crate) fn only_choice(key: &str) -> Option<(&'static str, &'static str)> {
    MISSING
        .iter()
        .find(|missing| missing.key == key && missing.sole)
        .map(|missing| (missing.instead, missing.code))
}

/// Reports everything that is asked for and cannot run yet.
pub(crate) fn check_supported(settings: &Settings, end: Span, mistakes: &mut Mistakes) {
    for missing in MISSING {
        if let Some((place, what)) = (missing.asked)(settings) {
            let place = place.unwrap_or(end);
            // What is wrong in itself is said first; that it could not run anyway would only distract.
            if !mistakes.has_error_within(place) {
                mistakes.add(NotYet { code: missing.code, place, what, instead: missing.instead });
            }
        }
    }
}

fn other_axes(settings: &Settings) -> Option<Asked> {
    let mesh = settings.parallel.value;
    let axes = [mesh.tensor, mesh.pipeline, mesh.sequence, mesh.expert];
    axes.iter()
        .any(|axis| *axis > 1)
        .then(|| (settings.parallel.span(), "a mesh with an axis besides `data`".into()))
}

fn weights_from_disk(settings: &Settings) -> Option<Asked> {
    settings.init.as_ref().map(|init| (Some(init.span), "from a directory of weights".into()))
}
