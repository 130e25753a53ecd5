//! What texts become: trees of small specs, one subject each.

mod corpus;

use dspc_grammar::{parse, print_tree};
use dspc_source::FileId;

/// The tree of a text without mistakes.
fn tree(text: &str) -> String {
    let (file, mistakes) = parse(FileId(0), text);
    assert!(mistakes.is_empty(), "{mistakes:#?}");
    print_tree(&file, text)
}

#[test]
fn the_corpus_has_no_mistake() {
    for (name, text) in corpus::texts() {
        let (_, mistakes) = parse(FileId(0), &text);
        assert!(mistakes.is_empty(), "{name}: {mistakes:#?}");
    }
}

#[test]
fn settings_and_blocks() {
    insta::assert_snapshot!(tree("use std::gpt2\nmodel = gpt2::medium(context: 1024)  # a setting named `model`\n\ndata {\n  text: [\"a\"]  tokenizer: \"b\", holdout: 2%\n  memory: 31GiB\n}\n"), @r#"
    use std::gpt2  @1:1
    setting model = gpt2::medium(context: 1024)  @2:1
    block data  @4:1
      text: ["a"]  @5:3
      tokenizer: "b"  @5:16
      holdout: 2%  @5:32
      memory: 31GiB  @6:3
    comment # a setting named `model`  @2:38
    "#);
}

#[test]
fn layers_and_models() {
    insta::assert_snapshot!(tree("layer f(x: [.., T, 4*D], tokens: ids[B, T], heads: H, eps: E = 1e-5, k = 3, m) -> ([B, T], [D]) {\n  param w: [V, D] ~ normal(0.02)\n  q, k = split(x, 2)\n  repeat 2*L as h.x { x = block(x) }\n  x\n}\nmodel g(context: C = 1024) = f(k: C)\nmodel bare = g\n"), @"
    layer f -> ([B, T], [D])  @1:1
      takes x: [.., T, (* 4 D)]  @1:9
      takes tokens: ids[B, T]  @1:26
      takes heads: H  @1:45
      takes eps: E = 0.00001  @1:55
      takes k: k = 3  @1:70
      takes m: m  @1:77
      param w: [V, D] ~ normal(0.02)  @2:3
      q, k = split(x, 2)  @3:3
      repeat (* 2 L) as h.x  @4:3
        x = block(x)  @4:23
      x  @5:3
    model g  @7:1
      takes context: C = 1024  @7:9
      = f(k: C)  @7:30
    model bare  @8:1
      = g  @8:14
    ");
}

#[test]
fn precedence_from_loosest_to_tightest() {
    insta::assert_snapshot!(tree("a = (q, k) => a | b & c < d + e * -f[0] as g\nb = a - b - c\nc = a @ b * c % d / e\nd = !a & b == c || d != e\ne = -x as y\nf = x[0][1, 2](3)".trim_end_matches("(3)")), @"
    setting a = (=> (q, k) (| a (& b (< c (+ d (* e (- (as g f[0]))))))))  @1:1
    setting b = (- (- a b) c)  @2:1
    setting c = (/ (% (* (@ a b) c) d) e)  @3:1
    setting d = (| (& (! a) (== b c)) (!= d e))  @4:1
    setting e = (- (as y x))  @5:1
    setting f = x[0][1, 2]  @6:1
    ");
}

#[test]
fn tuples_parentheses_and_lambdas() {
    insta::assert_snapshot!(tree("a = (x)\nb = (x,)\nc = (x, y)\nd = ()\ne = (q) => q\nf = () => 1\ng = (a) => (b) => a + b\n"), @"
    setting a = (paren x)  @1:1
    setting b = (tuple x)  @2:1
    setting c = (tuple x, y)  @3:1
    setting d = (tuple )  @4:1
    setting e = (=> (q) q)  @5:1
    setting f = (=> () 1)  @6:1
    setting g = (=> (a) (=> (b) (+ a b)))  @7:1
    ");
}

#[test]
fn ranges_and_indices() {
    insta::assert_snapshot!(tree("a = w[0..T, ..T, 2.., ..][tokens]\nb = 0..n + 1\n"), @"
    setting a = w[0..T, ..T, 2.., ..][tokens]  @1:1
    setting b = 0..(+ n 1)  @2:1
    ");
}

#[test]
fn numbers_and_their_units() {
    insta::assert_snapshot!(tree("a = [200M, 3e-4, 2%, 31GB, 10min, 1.5e3K, 1_000, 0.5]\nb = 7 % 2\nc = 7%2\nd = 7%\ne = H%2\n"), @"
    setting a = [200M, 0.0003, 2%, 31GB, 10min, 1500K, 1000, 0.5]  @1:1
    setting b = (% 7 2)  @2:1
    setting c = (% 7 2)  @3:1
    setting d = 7%  @4:1
    setting e = (% H 2)  @5:1
    ");
}

#[test]
fn text_and_its_escapes() {
    insta::assert_snapshot!(tree(r#"a = "x \"y\" \\ \n \t # no comment { ( 'é'""#), @r#"setting a = "x \"y\" \\ \n \t # no comment { ( 'é'"  @1:1"#);
}

#[test]
fn a_line_goes_on_in_brackets_and_after_operators() {
    insta::assert_snapshot!(tree("layer f(\n  x: X,  # the input\n\n)\n{\n  y = g(\n    x\n    - 1,\n  ) +\n\n    2\n  - 3\n  a,\n    b = h(y)\n}\n"), @"
    layer f  @1:1
      takes x: X  @2:3
      y = (+ g((- x 1)) 2)  @6:3
      (- 3)  @12:3
      a, b = h(y)  @13:3
    comment # the input  @2:10
    ");
}

#[test]
fn words_are_reserved_only_where_they_introduce() {
    insta::assert_snapshot!(tree("layer = 1\nuse = 2\nmodel { param: 3  repeat: 4 }\nlayer as(as: as) { param = repeat + layer\n  repeat = as as as\n  repeat repeat as repeat { model }\n}\n"), @"
    setting layer = 1  @1:1
    setting use = 2  @2:1
    block model  @3:1
      param: 3  @3:9
      repeat: 4  @3:19
    layer as  @4:1
      takes as: as  @4:10
      param = (+ repeat layer)  @4:20
      repeat = (as as as)  @5:3
      repeat repeat as repeat  @6:3
        model  @6:29
    ");
}

#[test]
fn an_empty_file_is_a_file() {
    for text in ["", "\n", "# only a comment", "\u{feff}", " \t\r\n"] {
        let (file, mistakes) = parse(FileId(0), text);
        assert!(file.items.is_empty() && mistakes.is_empty(), "{text:?}");
    }
}
