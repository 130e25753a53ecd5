//! Texts with mistakes: every report as its reader sees it, and what is read all the same.

use dspc_grammar::{parse, print_tree};
use dspc_source::{Colour, SourceMap, render_text};

fn reports(text: &str) -> String {
    let mut sources = SourceMap::default();
    let file = sources.add("train.dsp", text);
    let (_, mistakes) = parse(file, text);
    render_text(&mistakes, &sources, Colour::Plain)
}

fn codes(text: &str) -> Vec<&'static str> {
    let mut sources = SourceMap::default();
    let (_, mistakes) = parse(sources.add("train.dsp", text), text);
    mistakes.iter().map(|mistake| mistake.code).collect()
}

fn tree(text: &str) -> String {
    let mut sources = SourceMap::default();
    let (file, _) = parse(sources.add("train.dsp", text), text);
    print_tree(&file, text)
}

const FOUR: &str = r#"modle gpt2
optimizer = adamw(lr: 3e-4 betas: (0.9, 0.95))
train {
  batch: 8 8
  steps:
  clip: 1.0
}
zero = stage(2)
"#;

#[test]
fn four_mistakes_are_four_reports() {
    insta::assert_snapshot!(reports(FOUR), @"
    error[E0001]: cannot read `modle` here
     --> train.dsp:1:1
      |
    1 | modle gpt2
      | ^^^^^^^^^^ expected an item: `use …`, `name = …`, `name { … }`, `layer …` or `model …`
      |
      = help: did you mean `model`?

    error[E0001]: cannot read `betas` here
     --> train.dsp:2:28
      |
    2 | optimizer = adamw(lr: 3e-4 betas: (0.9, 0.95))
      |                            ^^^^^^^^^^^^^^^^^^ expected `,` or the closing bracket
      |
      = help: put a comma between the two

    error[E0001]: cannot read `8` here
     --> train.dsp:4:12
      |
    4 |   batch: 8 8
      |            ^ expected a new line, the next field or `}`

    error[E0012]: a value is missing
     --> train.dsp:5:8
      |
    5 |   steps:
      |        ^ expected a value after `steps:`
    ");
}

#[test]
fn what_is_sound_is_read() {
    insta::assert_snapshot!(tree(FOUR), @"
    <bad>  @1:1
    setting optimizer = adamw(lr: <bad>)  @2:1
    block train  @3:1
      batch: <bad>  @4:3
      steps: <bad>  @5:3
      clip: 1  @6:3
    setting zero = stage(2)  @8:1
    ");
}

#[test]
fn a_block_that_is_not_closed_ends_before_the_next_item() {
    let text = "train {\n  batch: 8\n\ndata {\n  sequence: 4\n}\n";
    insta::assert_snapshot!(reports(text), @"
    error[E0002]: `{` is never closed
     --> train.dsp:1:7
      |
    1 | train {
      |       ^ opened here
    ...
    4 | data {
      | - the next item begins, and no `}` came
      |
      = help: close it with `}`
    ");
    insta::assert_snapshot!(tree(text), @"
    block train  @1:1
      batch: 8  @2:3
    block data  @4:1
      sequence: 4  @5:3
    ");
}

#[test]
fn a_call_that_is_not_closed_costs_one_line() {
    let text = "layer f(x: X) {\n  y = g(x, [1, 2\n  z = y\n  z\n}\nx = 1\n";
    insta::assert_snapshot!(reports(text), @"
    error[E0002]: `(` is never closed
     --> train.dsp:2:8
      |
    2 |   y = g(x, [1, 2
      |        ^ opened here
    ...
    5 | }
      | - this `}` came before any `)`
      |
      = help: close it with `)`

    error[E0002]: `[` is never closed
     --> train.dsp:2:12
      |
    2 |   y = g(x, [1, 2
      |            ^ opened here
    ...
    5 | }
      | - this `}` came before any `]`
      |
      = help: close it with `]`
    ");
    insta::assert_snapshot!(tree(text), @"
    layer f  @1:1
      takes x: X  @1:9
      y = <bad>  @2:3
      z = y  @3:3
      z  @4:3
    setting x = 1  @6:1
    ");
}

#[test]
fn brackets_that_close_nothing() {
    insta::assert_snapshot!(reports("a = f(1))\nb = [1, (2]\nc = 3 }\n"), @"
    error[E0002]: `)` closes nothing
     --> train.dsp:1:9
      |
    1 | a = f(1))
      |         ^ nothing is open here that it could close
      |
      = help: leave out this `)`, or open it before

    error[E0002]: `(` is never closed
     --> train.dsp:2:9
      |
    2 | b = [1, (2]
      |         ^ - this `]` came before any `)`
      |         |
      |         opened here
      |
      = help: close it with `)`

    error[E0002]: `}` closes nothing
     --> train.dsp:3:7
      |
    3 | c = 3 }
      |       ^ nothing is open here that it could close
      |
      = help: leave out this `}`, or open it before
    ");
}

#[test]
fn brackets_that_are_open_at_the_end() {
    insta::assert_snapshot!(reports("layer f(x: X) {\n  repeat L {\n    x = 1\n"), @"
    error[E0002]: `{` is never closed
     --> train.dsp:1:15
      |
    1 | layer f(x: X) {
      |               ^ opened here
      |
      = note: the file ends before it
      = help: close it with `}`

    error[E0002]: `{` is never closed
     --> train.dsp:2:12
      |
    2 |   repeat L {
      |            ^ opened here
      |
      = note: the file ends before it
      = help: close it with `}`
    ");
}

#[test]
fn colon_and_equals_are_each_understood() {
    let text = "zero: stage(2, overlap = true)\ntrain { batch = 8 }\n";
    insta::assert_snapshot!(reports(text), @"
    error[E0011]: `zero` is bound with `=` here
     --> train.dsp:1:5
      |
    1 | zero: stage(2, overlap = true)
      |     ^ expected `=`
      |
      = help: write `zero = …`; `:` names a field in a block or an argument in a call

    error[E0010]: `overlap` is named with `:` in a call
     --> train.dsp:1:24
      |
    1 | zero: stage(2, overlap = true)
      |                        ^ expected `:`
      |
      = help: write `overlap: …`; `=` binds a name at the top of a file or in a body

    error[E0010]: `batch` is named with `:` in a block
     --> train.dsp:2:15
      |
    2 | train { batch = 8 }
      |               ^ expected `:`
      |
      = help: write `batch: …`; `=` binds a name at the top of a file or in a body
    ");
    insta::assert_snapshot!(tree(text), @"
    setting zero = stage(2, overlap: true)  @1:1
    block train  @2:1
      batch: 8  @2:9
    ");
}

#[test]
fn what_is_missing_is_named() {
    insta::assert_snapshot!(reports(
        "a =\nb = f(x:, , y)\nlayer f(x: X) -> { repeat L\n param w\n param v: [D]\n x as\n}\nlayer g(x)\nmodel h =\n"
    ), @"
    error[E0012]: a value is missing
     --> train.dsp:1:3
      |
    1 | a =
      |   ^ expected a value after `=`

    error[E0012]: a value is missing
     --> train.dsp:2:7
      |
    2 | b = f(x:, , y)
      |       ^^ expected a value after `x:`

    error[E0012]: a value is missing
     --> train.dsp:2:11
      |
    2 | b = f(x:, , y)
      |           ^ expected a value after the bracket or comma before this comma

    error[E0012]: what it yields is missing
     --> train.dsp:3:15
      |
    3 | layer f(x: X) -> { repeat L
      |               ^^ expected what it yields after `->`

    error[E0012]: a body is missing
     --> train.dsp:3:20
      |
    3 | layer f(x: X) -> { repeat L
      |                    ^^^^^^^^ expected a body after `repeat count as name`: `{ statements }`

    error[E0012]: the shape is missing
     --> train.dsp:4:8
      |
    4 |  param w
      |        ^ expected the shape after `w`: `[V, D]`

    error[E0012]: how it begins is missing
     --> train.dsp:5:8
      |
    5 |  param v: [D]
      |        ^ expected how it begins after the shape: `~ normal(0.02)`

    error[E0012]: a name is missing
     --> train.dsp:6:4
      |
    6 |  x as
      |    ^^ expected a name after `as`

    error[E0012]: a body is missing
     --> train.dsp:8:7
      |
    8 | layer g(x)
      |       ^ expected a body after `g`: `{ … }`, or `= a call`

    error[E0012]: a body is missing
     --> train.dsp:9:7
      |
    9 | model h =
      |       ^ expected a body after `h`: `{ … }`, or `= a call`
    ");
}

#[test]
fn habits_from_other_languages_get_advice() {
    insta::assert_snapshot!(reports(
        "a = 'gpt2'\nb = 1 // one\nc = 2;\nd = .5\nx[0] = 1\ne = f(a ==)\nf = { a: 1 }\ng = 2 × 3\n"
    ), @r#"
    error[E0001]: cannot read `'` here
     --> train.dsp:1:5
      |
    1 | a = 'gpt2'
      |     ^^^^^^ expected a value
      |
      = help: text is written in double quotes: `"like this"`

    error[E0001]: cannot read `/` here
     --> train.dsp:2:7
      |
    2 | b = 1 // one
      |       ^^^^^^ expected a new line
      |
      = help: a comment begins with `#`

    error[E0001]: cannot read `;` here
     --> train.dsp:3:6
      |
    3 | c = 2;
      |      ^ expected a new line
      |
      = help: a line ends by itself: leave out `;`

    error[E0001]: cannot read `.` here
     --> train.dsp:4:5
      |
    4 | d = .5
      |     ^^ expected a value
      |
      = help: a number has a digit before its point: `0.5`

    error[E0001]: cannot read `x` here
     --> train.dsp:5:1
      |
    5 | x[0] = 1
      | ^^^^^^^^ expected an item: `use …`, `name = …`, `name { … }`, `layer …` or `model …`

    error[E0001]: cannot read `=` here
     --> train.dsp:6:9
      |
    6 | e = f(a ==)
      |         ^^ expected `,` or the closing bracket
      |
      = help: a value must stand on both sides of `==`

    error[E0001]: cannot read `{` here
     --> train.dsp:7:5
      |
    7 | f = { a: 1 }
      |     ^^^^^^^^ expected a value
      |
      = help: a block `name { … }` stands at the top of a file, not inside a value

    error[E0001]: cannot read `×` here
     --> train.dsp:8:7
      |
    8 | g = 2 × 3
      |       ^^^ expected a new line
      |
      = help: multiply with `*`
    "#);
}

#[test]
fn a_slip_in_a_keyword_is_guessed() {
    insta::assert_snapshot!(reports("layre f(x: X) -> [D] {\n  x\n}\nlayer g(x: X) {\n  parm w: [D] ~ zeros\n  repaet L as h { x = x }\n  x\n}\n"), @"
    error[E0001]: cannot read `layre` here
     --> train.dsp:1:1
      |
    1 | layre f(x: X) -> [D] {
      | ^^^^^^^^^^^^^^^^^^^^^^ expected an item: `use …`, `name = …`, `name { … }`, `layer …` or `model …`
      |
      = help: did you mean `layer`?

    error[E0001]: cannot read `parm` here
     --> train.dsp:5:3
      |
    5 |   parm w: [D] ~ zeros
      |   ^^^^^^^^^^^^^^^^^^^ expected a statement: `name = …`, `param …`, `repeat …` or a value
      |
      = help: did you mean `param`?

    error[E0001]: cannot read `repaet` here
     --> train.dsp:6:3
      |
    6 |   repaet L as h { x = x }
      |   ^^^^^^^^^^^^^^^^^^^^^^^ expected a statement: `name = …`, `param …`, `repeat …` or a value
      |
      = help: did you mean `repeat`?
    ");
}

#[test]
fn odd_letters_and_numbers() {
    insta::assert_snapshot!(reports("a = \"open\nb = 1\u{7}2\nc = \"\\q\"\nd = 1e999\ne = (a + 1) => a\nf = \"ends in \\\n"), @r#"
    error[E0005]: text is not closed
     --> train.dsp:1:5
      |
    1 | a = "open
      |     ^^^^^ no `"` follows on this line
      |
      = help: close it with `"`; a line end inside text is written `\n`

    error[E0007]: control character U+0007 in the text
     --> train.dsp:2:6
      |
    2 | b = 1␇2
      |      ^ this cannot be shown
      |
      = help: delete it

    error[E0008]: `\q` means nothing in text
     --> train.dsp:3:6
      |
    3 | c = "\q"
      |      ^^ not an escape
      |
      = note: the escapes are `\"`, `\\`, `\n` and `\t`
      = help: for a backslash write `\\q`

    error[E0006]: number `1e999` is too large
     --> train.dsp:4:5
      |
    4 | d = 1e999
      |     ^^^^^ the largest is about 1.8e308

    error[E0009]: left of `=>` stand names only
     --> train.dsp:5:6
      |
    5 | e = (a + 1) => a
      |      ^^^^^ not a list of names in parentheses
      |
      = help: write it like `(q, k) => k <= q`

    error[E0005]: text is not closed
     --> train.dsp:6:5
      |
    6 | f = "ends in \
      |     ^^^^^^^^^^ no `"` follows on this line
      |
      = help: a backslash is written `\\`
    "#);
}

#[test]
fn each_place_is_reported_once() {
    for (text, expected) in [
        ("a = f(g(h(", vec!["E0002", "E0002", "E0002"]),
        ("a = b c d e f", vec!["E0001"]),
        ("a { b c d e f }", vec!["E0001"]),
        ("$ $ $\n\n$", vec!["E0001", "E0001"]),
        ("a = \"x + (1 + 2\n b", vec!["E0005", "E0001"]),
        ("a { b: [f(\"x)], c: 1 }", vec!["E0002", "E0002", "E0005"]),
        ("a { b: [f(\"x (1))] }\nd = 1", vec!["E0005"]),
        ("a = - - -", vec!["E0001"]),
        ("use", vec!["E0001"]),
        ("use a::", vec!["E0001"]),
        ("layer", vec!["E0001"]),
        ("a { b: (1) => 2, c: (x, 1) => 2 }", vec!["E0009", "E0009"]),
        ("layer f(x: foo[B]) { x }", vec!["E0001"]),
        ("layer f(1, 2) -> (B) { x }", vec!["E0001", "E0001", "E0001"]),
        ("a = [x: 1]", vec!["E0001"]),
    ] {
        assert_eq!(codes(text), expected, "{text}");
    }
}

#[test]
fn a_hundred_reports_are_enough() {
    let text = "$\n".repeat(1000);
    let shown = reports(&text);
    assert_eq!(shown.matches("error[").count(), 100);
    assert!(shown.contains("= note: 900 more mistakes in this file are not shown"));
}

#[test]
fn a_file_too_large_is_not_read() {
    insta::assert_snapshot!(reports(&"# a\n".repeat(300_000)), @"
    error[E0004]: file is too large: 1200000 bytes
     --> train.dsp:1:1
      |
    1 | # a
      | ^ at most 1048576 bytes are read
      |
      = help: is this a `.dsp` file? data and weights are named in it by their paths
    ");
}
