//! A text without mistakes keeps its tree and its comments when formatted, and formatting twice is formatting once.
#![no_main]

use dspc_grammar::{format, parse, print_tree};
use dspc_source::FileId;

/// The tree without places and the comments without order.
fn meaning(text: &str) -> (Vec<String>, Vec<String>) {
    let (file, mistakes) = parse(FileId(0), text);
    assert!(mistakes.is_empty(), "{mistakes:?}");
    let mut comments: Vec<String> = file.comments.iter().map(|comment| comment.value.clone()).collect();
    comments.sort();
    let without = dspc_grammar::ast::File { comments: vec![], ..file };
    let tree = print_tree(&without, text);
    let lines = tree.lines().map(|line| line.rsplit_once("  @").map_or(line, |(node, _)| node).to_owned());
    (lines.collect(), comments)
}

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(once) = format(text) else { return };
    assert_eq!(meaning(text), meaning(&once));
    assert_eq!(format(&once).as_ref(), Ok(&once));
});
