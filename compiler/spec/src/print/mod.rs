//! The spec as text: `--emit spec`.
//!
//! Every setting in the table's order, marked `default` or `derived` where nobody wrote it; then every definition that the model reaches, in
//! the order of first use, callees by their full names. The same spec gives the same text.

mod body;
mod optimizer;
mod settings;

use crate::settings::Spec;

/// The canonical form of a spec.
pub fn print(spec: &Spec) -> String {
    let mut text = format!("spec {}\n\n", spec.name);
    settings::push(&mut text, spec);
    for definition in &spec.definitions {
        text.push('\n');
        body::push(&mut text, definition, &spec.definitions);
    }
    text
}

/// A text in quotes.
fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\t', "\\t");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::print;
    use crate::fixture::check;
    use crate::settings::Spec;

    /// The example of `docs/layers/spec.md`.
    const EXAMPLE: &str = include_str!("../../../../examples/shakespeare.dsp");

    #[test]
    fn the_page_shows_the_example_as_it_prints() {
        let spec = check(EXAMPLE).0.map(|spec| Spec { name: "shakespeare".into(), ..spec });
        let printed = print(&spec.unwrap());
        let page = include_str!("../../../../docs/layers/spec.md");
        assert!(
            page.contains(&format!("```text\n{printed}```\n")),
            "docs/layers/spec.md is stale; it should show\n{printed}"
        );
    }

    #[test]
    fn operators_keep_their_grouping() {
        let text = "layer f(x: [B, D], g: G = (1 + 2) * 3 - (4 - 5)) -> [B, D] { (x - (x - x)) * -(x + x) }\nmodel = f(x)";
        let definitions = crate::fixture::definitions(text);
        let mut printed = String::new();
        super::body::push(&mut printed, &definitions[0], &definitions);
        assert_eq!(
            printed,
            "layer f(x: [B, D], g: G = (1 + 2) * 3 - (4 - 5)) -> [B, D] {\n  (x - (x - x)) * -(x + x)\n}\n"
        );
    }
}
