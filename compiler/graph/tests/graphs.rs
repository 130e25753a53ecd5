//! What the elaborator makes of small specs, and the pages that show it.

use std::fs;

use dspc_graph::ir::Graph;
use dspc_graph::{Elaborate, builtins, elaborate, print_graph, verify};
use dspc_source::{Colour, Severity, SourceMap, render_text};
use dspc_spec::settings::DataFacts;

/// What every spec here leaves out.
const SETTINGS: &str = "
data { text: [\"a.txt\"], tokenizer: \"chars\", sequence: 32 }
optimizer = adamw(lr: 1e-3)
train { batch: 4, steps: 1 }
";

fn graph(text: &str) -> Graph {
    let mut sources = SourceMap::default();
    let text = format!("{text}{SETTINGS}");
    let id = sources.add("train.dsp", text.clone());
    let (file, mut found) = dspc_grammar::parse(id, &text);
    let facts = DataFacts { vocab: Some(65), ranks: None };
    let (spec, more) = dspc_spec::check("example", &file, &facts, &builtins(), &mut sources);
    found.extend(more);
    assert!(
        found.iter().all(|d| d.severity == Severity::Warning),
        "{}",
        render_text(&found, &sources, Colour::Plain)
    );
    let Some(spec) = spec else { panic!("{}", render_text(&found, &sources, Colour::Plain)) };
    let graph = elaborate(&spec, &sources, 4, 32, Elaborate { train: true })
        .unwrap_or_else(|found| panic!("{}", render_text(&found, &sources, Colour::Plain)));
    verify(&graph).expect("a right graph");
    graph
}

#[test]
fn small_specs_print_as_reviewed() {
    insta::glob!("../../../tests/suite/graph", "*.dsp", |path| {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.starts_with("# "), "{}: open with a comment that says what is shown", path.display());
        let claim = path.file_stem().unwrap().to_string_lossy().into_owned();
        insta::with_settings!({
            snapshot_path => "../../../tests/suite/graph",
            prepend_module_to_snapshot => false,
            snapshot_suffix => "",
            omit_expression => true,
        }, {
            insta::assert_snapshot!(claim, print_graph(&graph(&text)));
        });
    });
}

#[test]
fn the_layers_page_shows_what_its_example_prints() {
    let page = include_str!("../../../docs/layers/graph.md");
    let block = |fence: &str| page.split_once(fence).unwrap().1.split_once("```").unwrap().0;
    assert_eq!(block("```text\n"), print_graph(&graph(block("```dsp\n"))));
}

#[test]
fn the_same_spec_gives_the_same_text() {
    let text = "use std::llama\nmodel = llama::tiny(vocab: data.vocab)\n";
    assert_eq!(print_graph(&graph(text)), print_graph(&graph(text)));
}

/// A model that is another's call has that one's numbers: `config.json` is made of them.
#[test]
fn numbers_are_those_of_the_innermost_model() {
    let graph = graph("use std::gpt2\nmodel = gpt2::small(context: 64)\n");
    let number = |name: &str| graph.numbers.get(name).copied();
    let names = ["layers", "heads", "width", "context", "vocab", "dropout"];
    assert_eq!(names.map(number), [12.0, 12.0, 768.0, 64.0, 50257.0, 0.0].map(Some));
}
