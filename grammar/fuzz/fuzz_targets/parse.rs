//! Any text is read: no panic, places that lie in it, reports that render.
#![no_main]

use dspc_grammar::{parse, print_tree};
use dspc_source::{Colour, SourceMap, render_json, render_text};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let mut sources = SourceMap::default();
    let file = sources.add("fuzz.dsp", text);
    let (tree, mistakes) = parse(file, text);
    print_tree(&tree, text);
    for mistake in &mistakes {
        let labels = std::iter::once(&mistake.primary).chain(&mistake.labels);
        let spans = labels.map(|label| label.span).chain(mistake.patches.iter().map(|patch| patch.span));
        for span in spans {
            assert!(text.get(span.start as usize..span.end as usize).is_some(), "{mistake:?}");
        }
    }
    // A few are enough: rendering is not what is looked for here, and costs more than all else.
    let few = &mistakes[..mistakes.len().min(2)];
    render_text(few, &sources, Colour::Plain);
    render_json(few, &sources);
});
