//! The formatter: what it writes, that it keeps the tree and every comment, and that twice is once.

#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod corpus;

use dspc_grammar::{format, parse, print_tree};
use dspc_source::FileId;
use proptest::prelude::*;

/// The tree without places, and the comments without order.
fn meaning(text: &str) -> (Vec<String>, Vec<String>) {
    let (file, mistakes) = parse(FileId(0), text);
    assert!(mistakes.is_empty(), "{mistakes:#?}\n{text}");
    let tree = print_tree(&file, text);
    let lines = tree.lines().map(|line| line.rsplit_once("  @").unwrap().0.to_owned());
    let (mut comments, tree): (Vec<_>, Vec<_>) = lines.partition(|line| line.starts_with("comment "));
    comments.sort();
    (tree, comments)
}

fn check(text: &str) -> String {
    let once = format(text).unwrap_or_else(|mistakes| panic!("{mistakes:#?}\n{text}"));
    let twice = format(&once).unwrap_or_else(|mistakes| panic!("{mistakes:#?}\n{once}"));
    assert_eq!(once, twice, "formatting twice is formatting once, of\n{text}");
    assert_eq!(meaning(text), meaning(&once), "of\n{text}");
    assert!(once.lines().all(|line| line.trim_end() == line), "blanks at a line's end in\n{once}");
    once
}

#[test]
fn fields_stand_one_a_line() {
    insta::assert_snapshot!(check(
        "data { text:   [\"a\" , \"b\"]  tokenizer:\"gpt2\", holdout : 2% }\nprecision=fp16( )\n\n\n\ntrain {\n\n batch: 8\n\n\n steps: 10 }\nzero { }"
    ), @r#"
    data {
      text: ["a", "b"]
      tokenizer: "gpt2"
      holdout: 2%
    }
    precision = fp16()

    train {
      batch: 8

      steps: 10
    }
    zero {}
    "#);
}

#[test]
fn comments_stay_where_they_belong() {
    insta::assert_snapshot!(check(
        "# top\n\n\n# of use\nuse std::gpt2 # trailing\ntrain { # opens\n\n  # first\n  batch: 8    # why\n\n  # last\n}\n\n\nx = f(a, # of a\n  b\n # of nothing\n)\ny = a + # between\n  b # end\nz = [ # opens\n 1]\nlayer f(x: X, # input\n  y) # after\n{\n x }\n# over"
    ), @"
    # top

    # of use
    use std::gpt2  # trailing
    train {  # opens
      # first
      batch: 8  # why

      # last
    }

    x = f(
      a,  # of a
      b,
      # of nothing
    )
    # between
    y = a + b  # end
    z = [  # opens
      1,
    ]
    # after
    layer f(
      x: X,  # input
      y,
    ) {
      x
    }
    # over
    ");
}

#[test]
fn long_calls_wrap() {
    insta::assert_snapshot!(check(
        "optimizer = adamw(lr: warmup_cosine(peak: 3e-4, warmup: 100, floor: 3e-5), betas: (0.9, 0.95), weight_decay: 0.1)\nmodel small(vocab: V = 50257, context: C = 1024, dropout: P = 0) = gpt2(layers: 12, heads: 12, width: 768, vocab: V, context: C)\nmask = (q, k) => k <= q && q - k < 256 & first_condition_of_a_long_name == second_condition_of_a_long_name | something_else\nlayer block(x: [B, T, D], heads: H, kv_heads: K, hidden: F, base: R = 10000, eps: E = 1e-5) -> [B, T, D] {\n x = x + attention(rms(x, eps: E) as input_layernorm, heads: H, kv_heads: K, base: R, eps: E) as self_attn\n}\n"
    ), @"
    optimizer = adamw(
      lr: warmup_cosine(peak: 3e-4, warmup: 100, floor: 3e-5),
      betas: (0.9, 0.95),
      weight_decay: 0.1,
    )
    model small(vocab: V = 50257, context: C = 1024, dropout: P = 0) = gpt2(
      layers: 12,
      heads: 12,
      width: 768,
      vocab: V,
      context: C,
    )
    mask = (q, k) => k <= q & q - k < 256 &
      first_condition_of_a_long_name == second_condition_of_a_long_name | something_else
    layer block(
      x: [B, T, D],
      heads: H,
      kv_heads: K,
      hidden: F,
      base: R = 10000,
      eps: E = 1e-5,
    ) -> [B, T, D] {
      x = x + attention(
        rms(x, eps: E) as input_layernorm,
        heads: H,
        kv_heads: K,
        base: R,
        eps: E,
      ) as self_attn
    }
    ");
}

#[test]
fn a_body_on_one_line_stays_there_while_it_fits() {
    insta::assert_snapshot!(check(
        "model g() -> loss {\n repeat L as h {x=block(x,heads:H)}\n repeat L as h {\n x = block(x) }\n repeat 2 * L as a_name_that_is_long { x = a_block_with_a_long_name(x, heads: H, layers: L, dropout: P) }\n repeat L {}\n}\nlayer id(x: X) { x }\n"
    ), @"
    model g() -> loss {
      repeat L as h { x = block(x, heads: H) }
      repeat L as h {
        x = block(x)
      }
      repeat 2*L as a_name_that_is_long {
        x = a_block_with_a_long_name(x, heads: H, layers: L, dropout: P)
      }
      repeat L {}
    }
    layer id(x: X) { x }
    ");
}

#[test]
fn operators_have_blanks_and_coefficients_have_none() {
    insta::assert_snapshot!(check(
        "a = 3 * D+-x*y@z\nb = !p||q&&( r )\nc = w[0 .. T,..,2..][ i ]\nd = (1 ,)\ne = (q,k)=>k<=q\nf = linear ( x,4*D )as mlp.c_fc\ng = 7 %2 - 2%\nh = 2*x.y + 2K*D + 1_000"
    ), @"
    a = 3*D + -x * y @ z
    b = !p | q & (r)
    c = w[0..T, .., 2..][i]
    d = (1,)
    e = (q, k) => k <= q
    f = linear(x, 4*D) as mlp.c_fc
    g = 7 % 2 - 2%
    h = 2 * x.y + 2K * D + 1_000
    ");
}

#[test]
fn line_ends_and_marks_of_other_systems_go() {
    assert_eq!(check("\u{feff}x = 1 # a\r\n\r\n\r\ny = 2\r\n"), "x = 1  # a\n\ny = 2\n");
    assert_eq!(check(""), "");
    assert_eq!(check("\n\n# only\n\n"), "# only\n");
}

#[test]
fn a_text_with_mistakes_is_not_touched() {
    let mistakes = format("x = \ny = f(").unwrap_err();
    assert_eq!(mistakes.iter().map(|mistake| mistake.code).collect::<Vec<_>>(), ["E0012", "E0002"]);
}

#[test]
fn the_corpus_keeps_its_meaning() {
    for (_, text) in corpus::texts() {
        check(&text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_keeps_its_meaning(text in corpus::any_file()) {
        check(&text);
    }
}
