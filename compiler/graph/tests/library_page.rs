//! `docs/language/library.md` says what may be called: the graph's functions, and the layers and models of the library's own sources.

use std::fmt::Write;

/// The library's modules, in the order of the page.
const MODULES: &[(&str, &str, &str)] = &[
    ("Layers that need no `use`", "std::nn", include_str!("../../spec/std/nn.dsp")),
    ("`use std::gpt2`", "std::gpt2", include_str!("../../spec/std/gpt2.dsp")),
    ("`use std::llama`", "std::llama", include_str!("../../spec/std/llama.dsp")),
];

/// What the comments above a definition say.
fn sentence(comments: &[&str]) -> String {
    comments.iter().map(|c| c.trim_start_matches('#').trim()).collect::<Vec<_>>().join(" ")
}

/// A definition's lines, from the first, without its body: up to the brace, or to the end of the call that it stands for.
fn heading(lines: &[&str]) -> String {
    let mut depth = 0i32;
    let mut text = vec![];
    for line in lines {
        depth += line.matches('(').count() as i32 - line.matches(')').count() as i32;
        let end = if depth == 0 { line.rfind(" {").unwrap_or(line.len()) } else { line.len() };
        text.push(&line[..end]);
        if depth == 0 {
            break;
        }
    }
    text.join("\n")
}

fn library(source: &str) -> String {
    let mut page = String::new();
    let mut comments: Vec<&str> = vec![];
    let mut first = true;
    let lines: Vec<&str> = source.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        if line.starts_with('#') {
            comments.push(line);
        } else if line.starts_with("layer ") || line.starts_with("model ") {
            let said = sentence(&comments);
            comments.clear();
            let text = if said.is_empty() { String::new() } else { format!("{said}\n\n") };
            let _ = write!(page, "{text}```\n{}\n```\n\n", heading(&lines[number..]));
        } else if line.is_empty() && first && !comments.is_empty() {
            let _ = write!(page, "{}\n\n", sentence(&comments));
            comments.clear();
        }
        first &= line.starts_with('#');
    }
    page
}

fn page() -> String {
    let mut page = String::from(
        "# Library\n\nWhat a body may call. This page is made from the code: the graph's functions, and the library's own sources in \
         `compiler/spec/std`,\nwhich are written in the language.\n\n## Functions\n\n| call | what it does |\n|---|---|\n",
    );
    for builtin in dspc_graph::builtins() {
        let _ = writeln!(page, "| `{}` | {} |", builtin.signature, builtin.doc);
    }
    page.push_str(
        "\nOperators: `+ - * /` element by element, an operand without the leading dims of the other being repeated over them; `@` is the matrix\n\
         product; `table[ids]` picks rows; `x[0..T]` is a part of the first dim. Numbers and sizes are reckoned at compile time. Masks combine with\n\
         `&`, `|` and `!`, and a predicate such as `(q, k) => k <= q & q - k < 256` is one too.\n",
    );
    for (title, module, source) in MODULES {
        let _ = write!(page, "\n## {title}\n\n`{module}`: {}", library(source).trim_end());
        page.push('\n');
    }
    page
}

#[test]
fn the_page_is_what_the_code_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/language/library.md");
    let made = page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &made).expect("the page can be written");
    }
    let written = std::fs::read_to_string(path).expect("the page is there");
    assert!(written == made, "docs/language/library.md should read:\n{made}<end>");
}
