//! Every mistake as the user sees it: `tests/suite/errors/<claim>.dsp` and its whole report, and the example of every page in `docs/errors`.
//!
//! A spec here says only what matters for its mistake. Of `model`, `data`, `optimizer` and `train`, what it leaves out is added below it,
//! unless its first line says "whole file". A first line that says `--ranks N` is checked for that many ranks.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs;

use dspc_grammar::ast::{File, ItemKind};
use dspc_source::{Colour, Diagnostic, FileId, SourceMap, render_text};
use dspc_spec::settings::DataFacts;

/// What is added, by the item that it stands for.
const REST: &[(&str, &str)] = &[
    ("gpt2", "use std::gpt2\n"),
    ("model", "model = gpt2::tiny(vocab: data.vocab)\n"),
    ("data", "data { text: [\"a.txt\"], tokenizer: \"chars\", sequence: 64 }\n"),
    ("optimizer", "optimizer = adamw(lr: 1e-3)\n"),
    ("train", "train { batch: 8, steps: 1000 }\n"),
];

/// The number of different characters in the data that the specs are checked against.
const VOCAB: u64 = 65;

fn has(file: &File, name: &str) -> bool {
    file.items.iter().any(|item| match &item.kind {
        ItemKind::Use(path) => path.last().is_some_and(|last| last.value == name),
        ItemKind::Setting { name: it, .. } | ItemKind::Block { name: it, .. } => it.value == name,
        ItemKind::Layer(_) | ItemKind::Model(_) | ItemKind::Bad => false,
    })
}

/// The text with what it leaves out below it, and whether the model is one of those.
fn completed(text: &str) -> (String, bool) {
    let (file, _) = dspc_grammar::parse(FileId(0), text);
    let mut whole = text.to_string();
    if text.lines().next().is_some_and(|line| line.to_lowercase().contains("whole file")) {
        return (whole, false);
    }
    let model_added = !has(&file, "model");
    for (name, line) in REST {
        if !has(&file, name) && (*name != "gpt2" || model_added) {
            whole.push_str(line);
        }
    }
    (whole, model_added)
}

/// All that `dspc check` finds in a text, shapes included.
fn diagnostics(text: &str) -> (Vec<Diagnostic>, SourceMap) {
    let (whole, model_added) = completed(text);
    let mut sources = SourceMap::default();
    let id = sources.add("train.dsp", whole.as_str());
    let (file, mut found) = dspc_grammar::parse(id, &whole);
    let asked = text.split_once("--ranks ").map(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next());
    let ranks = asked.flatten().and_then(|digits| digits.parse().ok());
    let facts = DataFacts { vocab: Some(VOCAB), ranks };
    let builtins = dspc_graph::ops::builtins();
    let (spec, more) = dspc_spec::check("train", &file, &facts, &builtins, &mut sources);
    found.extend(more);
    // The model that was added reaches none of the text's own layers; that says nothing of the text.
    found.retain(|diagnostic| !(model_added && diagnostic.title.starts_with("the layer")));
    if let Some(spec) = spec {
        let (micro_batch, sequence) =
            (spec.settings.train.micro_batch.value, spec.settings.data.sequence.value);
        let options = dspc_graph::Elaborate { train: true };
        match dspc_graph::elaborate(&spec, &sources, micro_batch, sequence, options) {
            Ok(graph) => {
                let optimizer = &spec.settings.optimizer.value;
                found.extend(
                    dspc_train::optimizer::assign_updates(&graph, optimizer).err().unwrap_or_default(),
                );
            }
            Err(mistakes) => found.extend(mistakes),
        }
    }
    (found, sources)
}

#[test]
fn every_bad_spec_is_reported_as_reviewed() {
    insta::glob!("../suite/errors", "*.dsp", |path| {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.starts_with("# "), "{}: open with a comment that says what is shown", path.display());
        let (found, sources) = diagnostics(&text);
        assert!(!found.is_empty(), "{}: nothing is reported", path.display());
        let claim = path.file_stem().unwrap().to_string_lossy().into_owned();
        insta::with_settings!({
            snapshot_path => "../suite/errors",
            prepend_module_to_snapshot => false,
            snapshot_suffix => "",
            omit_expression => true,
        }, {
            insta::assert_snapshot!(claim, render_text(&found, &sources, Colour::Plain));
        });
    });
}

/// The texts of a page's `dsp` blocks.
fn examples(page: &str) -> impl Iterator<Item = &str> {
    page.split("```dsp\n").skip(1).filter_map(|rest| rest.split("```").next())
}

#[test]
fn every_page_shows_its_mistake_and_the_fix() {
    insta::glob!("../../docs/errors", "[EW]*.md", |path| {
        let code = path.file_stem().unwrap().to_string_lossy().into_owned();
        // Those of the grammar are checked beside it, without a checker; those of commands (and E0450) no spec can show.
        if code.starts_with("E00") || code.starts_with("E05") || code == "E0450" {
            return;
        }
        let page = fs::read_to_string(path).unwrap();
        assert!(
            page.starts_with(&format!("# {code}: ")),
            "{code}: the page opens with its code and its sentence"
        );
        let mut examples = examples(&page);
        let first = examples.next().unwrap_or_else(|| panic!("{code}: the page shows no spec"));
        let found: Vec<_> = diagnostics(first).0.iter().map(|diagnostic| diagnostic.code).collect();
        assert!(
            !found.is_empty() && found.iter().all(|one| *one == code),
            "{code}: its example yields {found:?}"
        );
        for fixed in examples {
            let found = diagnostics(fixed).0;
            assert!(found.is_empty(), "{code}: the fixed spec is not right: {found:?}");
        }
    });
}

#[test]
fn the_language_pages_show_right_specs() {
    insta::glob!("../../docs/language", "README.md", |path| {
        let page = fs::read_to_string(path).unwrap();
        let mut count = 0;
        for example in examples(&page) {
            let found = diagnostics(example).0;
            assert!(found.is_empty(), "{example}\n{found:#?}");
            count += 1;
        }
        assert!(count > 0, "the page shows specs");
    });
}
