//! What the layers' pages show of `docs/layers/example.dsp` is what the compiler prints of it: each block of text is a part of the printed form.

use dspc_tests::{compile, file};

#[test]
fn the_layers_pages_show_what_is_printed() {
    let compiled = compile("../docs/layers/example.dsp");
    let printed = [
        ("plan", dspc_plan::print(&compiled.lowered.plan)),
        ("kernels", dspc_kernel::print(&compiled.lowered.kernels)),
        ("schedule", dspc_schedule::print(&compiled.lowered.program)),
    ];
    for (layer, printed) in printed {
        let page = std::fs::read_to_string(file(&format!("../docs/layers/{layer}.md"))).unwrap();
        let blocks = page.split("```text\n").skip(1).filter_map(|rest| rest.split_once("```")).map(|(block, _)| block);
        for block in blocks {
            assert!(printed.contains(block), "docs/layers/{layer}.md shows\n{block}\nand `--emit {layer}` prints\n{printed}");
        }
    }
}
