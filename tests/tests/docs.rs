//! What the layers' pages print is what the compiler prints. `UPDATE_DOCS=1` writes the blocks anew; read the change.

use dspc_tests::{compile, file};

#[test]
fn the_layers_pages_show_what_is_printed() {
    for layer in ["plan", "kernels", "schedule"] {
        let path = file(&format!("../docs/layers/{layer}.md"));
        let page = std::fs::read_to_string(&path).unwrap();
        let (before, rest) = page.split_once(&format!("<!-- emit {layer} ")).unwrap();
        let (name, rest) = rest.split_once(" -->\n```text\n").unwrap();
        let (_, after) = rest.split_once("```\n").unwrap();
        let compiled = compile(&format!("suite/layers/{name}.dsp"));
        let text = match layer {
            "plan" => dspc_plan::print(&compiled.lowered.plan),
            "kernels" => dspc_kernel::print(&compiled.lowered.kernels),
            _ => dspc_schedule::print(&compiled.lowered.program),
        };
        let fresh = format!("{before}<!-- emit {layer} {name} -->\n```text\n{}\n```\n{after}", text.trim_end());
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, &fresh).unwrap();
        }
        let shown = std::fs::read_to_string(&path).unwrap();
        assert!(shown == fresh, "docs/layers/{layer}.md is not what `--emit {layer}` prints: UPDATE_DOCS=1 writes it anew");
    }
}
