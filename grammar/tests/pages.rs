//! The pages say what the code does: `docs/layers/syntax.md`, and the page of each code.

#![allow(clippy::unwrap_used, reason = "a panic is the report")]

use dspc_grammar::{parse, print_tree};
use dspc_source::{Colour, Diagnostic, SourceMap, render_text};

/// The texts fenced as `kind`, in order.
fn fenced<'p>(page: &'p str, kind: &str) -> Vec<&'p str> {
    let fence = format!("```{kind}\n");
    page.split(fence.as_str()).skip(1).map(|rest| rest.split_once("```").unwrap().0).collect()
}

fn read(text: &str) -> (String, Vec<Diagnostic>, String) {
    let mut sources = SourceMap::default();
    let (tree, mistakes) = parse(sources.add("train.dsp", text), text);
    let report = render_text(&mistakes, &sources, Colour::Plain);
    (print_tree(&tree, text), mistakes, report)
}

#[test]
fn the_layer_s_page_shows_what_is_printed() {
    let page = include_str!("../../docs/layers/syntax.md");
    let (tree, mistakes, _) = read(fenced(page, "dsp")[0]);
    assert!(mistakes.is_empty());
    assert_eq!(fenced(page, "text")[0], tree);
}

#[test]
fn the_page_of_a_code_shows_its_report_and_its_cure() {
    for number in 1..=12 {
        let code = format!("E{number:04}");
        let path = format!("{}/../docs/errors/{code}.md", env!("CARGO_MANIFEST_DIR"));
        let page = std::fs::read_to_string(&path).unwrap();
        assert!(page.starts_with(&format!("# {code}: ")), "{code}");
        let [wrong, right] = fenced(&page, "dsp")[..] else {
            assert!(["E0004", "E0007"].contains(&code.as_str()), "{code}: its example can be shown");
            continue;
        };
        let (_, mistakes, report) = read(wrong);
        assert_eq!(mistakes.iter().map(|mistake| mistake.code).collect::<Vec<_>>(), [code.as_str()]);
        assert_eq!(fenced(&page, "text")[0], report, "{code}");
        assert!(read(right).1.is_empty(), "{code}");
    }
}
