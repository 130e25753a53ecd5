//! The reference page of the settings.

use super::explain::{default_of, type_of};
use super::{BLOCKS, Function, KEYS, Key};
use crate::supported::only_choice;

/// `docs/language/settings.md`: every setting, from the one table.
pub fn reference_markdown() -> String {
    let mut page = String::from(
        "# Settings\n\nMade from the checker's own table; `dspc explain KEY` shows the same in the terminal. \
         \"DeepSpeed\" is the key in a DeepSpeed JSON, \"Trainer\" the field of Hugging Face's `TrainingArguments` or of its example scripts.\n",
    );
    page.push_str("\n## Settings of their own\n\nWritten `name = value`.\n");
    KEYS.iter().filter(|key| key.block().is_none()).for_each(|key| push_key(&mut page, key));
    for (block, doc) in BLOCKS {
        page.push_str(&format!("\n## `{block} {{ … }}`\n\n{doc} Written `name: value`, one a line.\n"));
        KEYS.iter().filter(|key| key.block() == Some(block)).for_each(|key| push_key(&mut page, key));
    }
    page
}

fn push_key(page: &mut String, key: &Key) {
    page.push_str(&format!("\n### `{}`\n\n{}\n\n", key.path, key.doc));
    page.push_str(&format!("- Type: {}\n- Default: {}\n", type_of(&key.ty), default_of(key.fallback)));
    page.push_str(&format!("- Example: `{}`\n", key.line()));
    for (trainer, name) in [("DeepSpeed", key.deepspeed), ("Trainer", key.hf)] {
        if !name.is_empty() {
            page.push_str(&format!("- {trainer}: `{}`\n", name.replace(", ", "`, `")));
        }
    }
    if let Some((only, code)) = only_choice(key.path) {
        page.push_str(&format!("- This version runs only `{only}` ([{code}](../errors/{code}.md))\n"));
    }
    let mut shown = vec![];
    for function in key.ty.functions {
        push_function(page, function, &[], &mut shown);
    }
}

/// A function's line and table, then those of the functions in its arguments; nothing that the setting has shown already.
fn push_function(
    page: &mut String,
    function: &'static Function,
    within: &[&'static str],
    shown: &mut Vec<(Vec<&'static str>, &'static str)>,
) {
    // The same function of the same argument, whatever it is an argument of.
    let known = (within.last().copied().into_iter().collect(), function.name);
    if shown.contains(&known) {
        return;
    }
    shown.push(known);
    let place = within.iter().map(|name| format!("`{name}`: ")).collect::<String>();
    page.push_str(&format!("\n{place}`{}`. {}\n", function.usage(), function.doc));
    if function.args.is_empty() {
        return;
    }
    page.push_str(
        "\n| argument | what | type | default | DeepSpeed | Trainer |\n|---|---|---|---|---|---|\n",
    );
    for arg in function.args {
        let cells = [
            format!("`{}`", arg.name),
            arg.doc.to_string(),
            type_of(&arg.ty),
            default_of(arg.fallback),
            code(arg.deepspeed),
            code(arg.hf),
        ];
        page.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    for arg in function.args {
        let within = [within, &[arg.name]].concat();
        arg.ty.functions.iter().for_each(|function| push_function(page, function, &within, shown));
    }
}

fn code(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!("`{name}`") }
}

#[cfg(test)]
mod tests {
    use super::reference_markdown;

    /// `UPDATE_DOCS=1 cargo test -p dspc-spec` writes the page.
    #[test]
    fn the_page_is_what_the_table_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/language/settings.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, reference_markdown()).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap();
        assert!(page == reference_markdown(), "docs/language/settings.md is stale: UPDATE_DOCS=1 writes it");
    }
}
