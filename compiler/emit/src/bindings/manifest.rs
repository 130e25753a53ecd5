//! The crate's `Cargo.toml`, and what the crate is called.

use super::MADE_BY;
use dspc_program::Program;

pub(super) fn manifest(program: &Program, runtime: &str) -> String {
    let stem = stem(&program.name);
    let runtime = quoted(runtime);
    format!(
        "\
# {MADE_BY}: make it again instead of editing it.
[package]
name = \"{stem}-bindings\"
description = \"The training program `{stem}`, compiled, with typed bindings\"
version = \"0.1.0\"
edition = \"2024\"
publish = false

[dependencies]
dspc-runtime = {{ path = {runtime} }}
"
    )
}

/// The library's name in `use`.
pub(super) fn library(program: &Program) -> String {
    format!("{}_bindings", stem(&program.name).replace('-', "_"))
}

/// A file's stem as the beginning of a package's name: `My model` is `my-model`.
pub(super) fn stem(name: &str) -> String {
    let word = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c.to_ascii_lowercase() } else { '-' };
    let words: String = name.chars().map(word).collect();
    let words = words.trim_matches('-');
    match words.chars().next() {
        Some(first) if first.is_ascii_alphabetic() => words.into(),
        Some(_) => format!("program-{words}"),
        None => "program".into(),
    }
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let escaped = text.chars().map(|c| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() => format!("\\u{:04X}", u32::from(c)),
        c => c.to_string(),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_file_name_gives_a_package_name() {
        for (name, expected) in [
            ("bigram", "bigram"),
            ("gpt2_small", "gpt2_small"),
            ("My model", "my-model"),
            ("1st", "program-1st"),
            ("_x", "program-_x"),
            ("größe", "gr--e"),
            ("模型", "program"),
            ("", "program"),
        ] {
            assert_eq!(stem(name), expected, "{name}");
        }
    }

    #[test]
    fn a_path_stays_one_string() {
        assert_eq!(quoted("a \"b\" \\ c\n\u{7f}"), r#""a \"b\" \\ c\u000A\u007F""#);
    }
}
