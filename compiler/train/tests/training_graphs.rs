//! What differentiation makes of small specs, and the page that shows it.

use std::fs;

use dspc_graph::{Elaborate, builtins, elaborate, verify};
use dspc_source::{Colour, Severity, SourceMap, render_text};
use dspc_spec::settings::DataFacts;
use dspc_train::{differentiate, print};

/// What every spec here leaves out.
const SETTINGS: &str = "
data { text: [\"a.txt\"], tokenizer: \"chars\", sequence: 32 }
optimizer = adamw(lr: 1e-3, weight_decay: 0.1)
train { batch: 4, steps: 1, clip: 1.0 }
";

fn printed(text: &str) -> String {
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
    let (optimizer, clip) = (spec.settings.optimizer.value, spec.settings.train.clip.value);
    let train = differentiate(graph, &optimizer, clip, spec.settings.precision.value)
        .expect("a loss with parameters");
    verify(&train.graph).expect("a right graph");
    print(&train)
}

#[test]
fn small_specs_print_as_reviewed() {
    insta::glob!("../../../tests/suite/train", "*.dsp", |path| {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.starts_with("# "), "{}: open with a comment that says what is shown", path.display());
        let claim = path.file_stem().unwrap().to_string_lossy().into_owned();
        insta::with_settings!({
            snapshot_path => "../../../tests/suite/train",
            prepend_module_to_snapshot => false,
            snapshot_suffix => "",
            omit_expression => true,
        }, {
            insta::assert_snapshot!(claim, printed(&text));
        });
    });
}

#[test]
fn the_layers_page_shows_what_its_example_prints() {
    let page = include_str!("../../../docs/layers/train.md");
    let block = |fence: &str| page.split_once(fence).unwrap().1.split_once("```").unwrap().0;
    assert_eq!(block("```text\n"), printed(block("```dsp\n")));
}
