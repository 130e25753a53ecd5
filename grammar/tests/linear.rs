//! Linear time, counted and not timed: pest may call its rules so many times a byte, and no text makes it call more.
//!
//! The limit is one of the whole process, so this file holds one test.

use std::num::NonZeroUsize;

use dspc_grammar::parse;
use dspc_source::FileId;

const CALLS_A_BYTE: usize = 60;

#[test]
fn no_text_makes_the_rules_run_longer_than_its_length_allows() {
    let repeated = [
        "(",
        ")",
        "{",
        "}",
        "[(",
        "a{",
        "a(",
        "f(a, [b, (",
        "x = [\n",
        "\"",
        "-",
        "1+",
        "a ",
        "a,",
        "a:",
        "a = ",
        "[0]",
        "(a)=>",
        "..",
        "x as ",
        "x=1\n",
        "repeat L {",
        "layer f(",
        "layer f(x",
        "a { b: c d",
        "-(",
        "(1)(",
        "$(",
        "a: (b: ",
        "é(",
        "use ",
        "param a: ",
        "a::",
        "a.b",
        "1.",
        "1e",
        "=",
        "b  ",
    ];
    for unit in repeated {
        for length in [21, 300, 3_000, 30_000] {
            let text = unit.repeat(length / unit.len() + 1);
            for text in [
                text.clone(),
                format!("x = {text}"),
                format!("a {{ {text} }}"),
                format!("layer f({text}) {{ {text} }}"),
            ] {
                check(&text);
            }
        }
    }
    for (open, close) in [
        ("(", ")"),
        ("[", "]"),
        ("f(a: ", ")"),
        ("(a, ", ") b"),
        ("[a, f(", " b) c]"),
        ("{", "}"),
        ("a {", "}"),
    ] {
        for n in [10, 20, 40, 64, 1_000] {
            check(&format!("x = {}1{}\n", open.repeat(n), close.repeat(n)));
            check(&format!("{} $ {}\n", open.repeat(n), close.repeat(n)));
        }
    }
}

fn check(text: &str) {
    pest::set_call_limit(NonZeroUsize::new(CALLS_A_BYTE * text.len() + 5_000));
    let (file, _) = parse(FileId(0), text);
    // A parse that ran into the limit has no items at all; every text here has one.
    assert!(
        !file.items.is_empty(),
        "more than {CALLS_A_BYTE} calls a byte for {} bytes of {:?}",
        text.len(),
        &text[..text.floor_char_boundary(40)]
    );
}
