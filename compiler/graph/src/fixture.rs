//! What the tests here stand on: graphs from text.

use dspc_source::{Colour, Diagnostic, SourceMap, render_text};
use dspc_spec::settings::{DataFacts, Spec};

use crate::ir::Graph;
use crate::{Elaborate, elaborate, ops, verify};

const SETTINGS: &str = "
data { text: [\"a.txt\"], tokenizer: \"chars\", sequence: 5 }
optimizer = adamw(lr: 1e-3)
train { batch: 2, steps: 1 }
";

/// The spec of layers and models, the last model being the job's; `model = …` may be written out.
pub(crate) fn spec(text: &str) -> (Option<Spec>, Vec<Diagnostic>, SourceMap) {
    let mut sources = SourceMap::default();
    let text = format!("{}\n{SETTINGS}", text.trim());
    let id = sources.add("train.dsp", text.clone());
    let (file, mut found) = dspc_grammar::parse(id, &text);
    let facts = DataFacts { vocab: Some(7), ranks: None };
    let (spec, more) = dspc_spec::check("train", &file, &facts, &ops::builtins(), &mut sources);
    found.extend(more);
    (spec, found, sources)
}

/// The verified graph of a text, dropout on; the report of its mistakes otherwise.
pub(crate) fn graph(text: &str) -> Result<Graph, String> {
    let (spec, found, sources) = spec(text);
    let Some(spec) = spec else { return Err(render_text(&found, &sources, Colour::Plain)) };
    let graph = elaborate(&spec, &sources, 2, 5, Elaborate { train: true })
        .map_err(|mistakes| render_text(&mistakes, &sources, Colour::Plain))?;
    verify(&graph).unwrap();
    Ok(graph)
}

/// The codes of a text's mistakes.
pub(crate) fn codes(text: &str) -> Vec<&'static str> {
    let (spec, found, sources) = spec(text);
    let Some(spec) = spec else { return found.iter().map(|d| d.code).collect() };
    match elaborate(&spec, &sources, 2, 5, Elaborate { train: true }) {
        Ok(_) => vec![],
        Err(mistakes) => mistakes.iter().map(|d| d.code).collect(),
    }
}
