//! Hostile texts: in a quarter megabyte of stack, without a panic, with places that lie in the text.

#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod corpus;

use dspc_grammar::{ast, format, parse, print_tree};
use dspc_source::{Colour, FileId, SourceMap, render_json, render_text};

fn in_small_stack(work: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap().join().unwrap();
}

/// All that is done with a text: read, copied, compared, printed, reported, formatted.
fn exercise(text: &str) {
    let mut sources = SourceMap::default();
    let file = sources.add("train.dsp", text);
    let (tree, mistakes) = parse(file, text);
    assert!(tree.clone() == tree);
    print_tree(&tree, text);
    for mistake in &mistakes {
        let spans = std::iter::once(&mistake.primary).chain(&mistake.labels).map(|label| label.span);
        for span in spans.chain(mistake.patches.iter().map(|patch| patch.span)) {
            assert!(text.get(span.start as usize..span.end as usize).is_some(), "{mistake:?} of {text:?}");
        }
    }
    assert!(mistakes.is_sorted_by_key(|mistake| mistake.primary.span.start));
    let few = &mistakes[..mistakes.len().min(1)];
    assert_eq!(render_json(few, &sources).lines().count(), few.len());
    render_text(few, &sources, Colour::Plain);
    match format(text) {
        Ok(once) => {
            assert!(mistakes.is_empty());
            assert_eq!(format(&once).as_ref(), Ok(&once), "of {text:?}");
        }
        Err(_) => assert!(!mistakes.is_empty()),
    }
}

/// `open` and `close` around a value, `n` deep.
fn nest(open: &str, n: usize, close: &str) -> String {
    format!("x = {}1{}\n", open.repeat(n), close.repeat(n))
}

#[test]
fn what_nests_to_the_limit_is_read_in_a_small_stack() {
    let brackets = [
        ("(", ")"),
        ("[", "]"),
        ("f(", ")"),
        ("f(a: ", ")"),
        ("-a*(", ")"),
        ("f(x, [a], y: ", ") as n"),
        ("w[", "][0]"),
    ];
    for (open, close) in brackets {
        let text = nest(open, if open.starts_with("-a") { 42 } else { 63 }, close);
        assert!(parse(FileId(0), &text).1.is_empty(), "{text}");
        in_small_stack(move || exercise(&text));
    }
    for text in [
        nest("-", 120, ""),
        nest("1 + ", 120, ""),
        nest("(a) => ", 60, ""),
        format!(
            "layer f(x: X) {{ {} x = {} {} }}\n",
            "repeat L { ".repeat(62),
            "1 + ".repeat(120) + "1",
            "}".repeat(62)
        ),
    ] {
        assert!(parse(FileId(0), &text).1.is_empty(), "{text}");
        in_small_stack(move || exercise(&text));
    }
}

#[test]
fn what_nests_deeper_is_one_mistake() {
    for n in [65, 1_000, 100_000] {
        for (open, close) in [("(", ")"), ("[", "]"), ("f(a: ", ")")] {
            let text = nest(open, n, close);
            in_small_stack(move || {
                let (_, mistakes) = parse(FileId(0), &text);
                assert_eq!(
                    mistakes.iter().map(|mistake| mistake.code).collect::<Vec<_>>(),
                    ["E0003"],
                    "{n} {open}"
                );
            });
        }
    }
    for text in [nest("-", 100_000, ""), nest("1 + ", 100_000, ""), nest("(a) => ", 100_000, "")] {
        in_small_stack(move || {
            let (_, mistakes) = parse(FileId(0), &text);
            assert_eq!(mistakes.iter().map(|mistake| mistake.code).collect::<Vec<_>>(), ["E0003"]);
        });
    }
}

#[test]
fn the_inside_of_what_is_too_deep_is_given_up_alone() {
    let text = nest("(", 70, ")") + "y = 2\n";
    let (file, _) = parse(FileId(0), &text);
    assert!(matches!(&file.items[1].kind, ast::ItemKind::Setting { name, .. } if name.value == "y"));
}

#[test]
fn much_of_anything_is_read_in_a_small_stack() {
    for unit in [
        "(", ")", "{", "}", "[(", "a{", "a(", "x = [\n", "\"", "\\", "#", "-", "1+", "a ", "a,", "a:", "[0]",
        "\u{1}", "\u{2}", "é", "\n", "x=1\n", "[)",
    ] {
        let text = unit.repeat((1 << 18) / unit.len());
        in_small_stack(move || {
            let (file, mistakes) = parse(FileId(0), &text);
            assert!(mistakes.len() <= 100);
            print_tree(&file, &text);
        });
    }
}

/// Marsaglia's xorshift: the same cases in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}

/// A few lines of some text, damaged in a few places.
fn damaged(texts: &[(String, String)], dice: &mut Dice) -> String {
    const PIECES: [&str; 40] = [
        "(", ")", "[", "]", "{", "}", "\"", "#", "\n", "\n\n", ",", ":", "::", "=", "==", "=>", "->", "..",
        ".", "~", "-", "!", "&&", "as ", "layer ", "model x ", "use ", "repeat ", "param ", "1e9", "2%", "é",
        "\u{1}", "\u{2}", "\r", "\\", "'", "f(", "x = ", "a { b: ",
    ];
    let text = &texts[dice.below(texts.len())].1;
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let first = dice.below(lines.len());
    let mut out: String = lines[first..].iter().take(1 + dice.below(4)).copied().collect();
    for _ in 0..1 + dice.below(4) {
        let at = out.floor_char_boundary(dice.below(out.len() + 1));
        match dice.below(3) {
            0 => out.insert_str(at, PIECES[dice.below(PIECES.len())]),
            1 => {
                let end = out.ceil_char_boundary((at + dice.below(12)).min(out.len()));
                out.replace_range(at..end, "");
            }
            _ => {
                let end = out.ceil_char_boundary((at + dice.below(30)).min(out.len()));
                let copy = out[at..end].to_owned();
                let to = out.floor_char_boundary(dice.below(out.len() + 1));
                out.insert_str(to, &copy);
            }
        }
    }
    out
}

#[test]
fn twenty_thousand_damaged_texts() {
    let texts = corpus::texts();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for _ in 0..20_000 {
        exercise(&damaged(&texts, &mut dice));
    }
}
