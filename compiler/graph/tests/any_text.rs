//! No text makes the elaborator panic, or work without end; what it accepts, the verifier accepts.

use std::time::{Duration, Instant};

use dspc_graph::{Elaborate, builtins, elaborate, verify};
use dspc_source::SourceMap;
use dspc_spec::settings::DataFacts;
use proptest::prelude::*;

/// Elaborates a text if the checker lets it; mistakes are fine, panics are not.
fn elaborates(text: &str) {
    let mut sources = SourceMap::default();
    let id = sources.add("train.dsp", text);
    let (file, _) = dspc_grammar::parse(id, text);
    let facts = DataFacts { vocab: Some(65), ranks: None };
    let (spec, _) = dspc_spec::check("any", &file, &facts, &builtins(), &mut sources);
    let Some(spec) = spec else { return };
    match elaborate(&spec, &sources, 2, 8, Elaborate { train: true }) {
        Ok(graph) => assert_eq!(verify(&graph), Ok(())),
        Err(mistakes) => assert!(!mistakes.is_empty()),
    }
}

/// A job around a body: `x` is `[B, T, D]`.
fn job(body: &str, width: &str) -> String {
    format!(
        "layer f(x: [B, T, D], n: N = 2) -> [B, T, D] {{\n{body}\n}}
model m(tokens: ids[B, T], targets: ids[B, T], width: D, vocab: V) -> loss {{
  param wte: [V, D] ~ normal(0.02)
  x = f(wte[tokens], 2)
  cross_entropy(x @ transpose(wte), targets)
}}
model = m(width: {width}, vocab: data.vocab)
data {{ text: [\"a.txt\"], tokenizer: \"chars\", sequence: 8 }}
optimizer = adamw(lr: 1e-3)
train {{ batch: 2, steps: 1 }}
"
    )
}

fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        12 => (1u64..5).prop_map(|n| n.to_string()),
        3 => (0u64..9).prop_map(|n| n.to_string()),
        1 => Just("0.5".to_owned()),
        1 => Just("1e300".to_owned()),
        1 => Just("9007199254740992".to_owned()),
        1 => Just("4611686018427387904".to_owned()),
        1 => Just("1e-300".to_owned()),
        1 => Just("-3".to_owned()),
        4 => Just("D".to_owned()),
        4 => Just("T".to_owned()),
        4 => Just("N".to_owned()),
    ]
}

/// Lines that are right on their own.
const PLAIN: &[&str] = &[
    "x = x + gelu(x)",
    "x = linear(norm(x), D)",
    "x = attend(x, x, gelu(x), heads: 2, mask: causal | (q, k) => q == k)",
    "repeat 3 as g {\n x = x * tanh(x)\n }",
    "repeat 2 as i {\n param w: [D] ~ ones\n x = x * w\n repeat 2 as j { x = x - 1 }\n }",
    "a, b = split(x @ transpose(reshape(x, [B*T, D])), 2)",
    "x = dropout(x, 0.5)[0..B, 0..T]",
];

fn width() -> impl Strategy<Value = String> {
    let sizes = ["4", "4", "4", "4", "8", "8", "8", "2", "6", "12", "1", "1099511627776"];
    prop::sample::select(sizes.to_vec()).prop_map(str::to_owned)
}

fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        12 => Just("x".to_owned()),
        2 => number(),
        1 => Just("causal".to_owned()),
        1 => Just("full".to_owned()),
        1 => Just("true".to_owned()),
        1 => Just("zeros".to_owned()),
        1 => Just("(q, k) => q - k < 3".to_owned()),
    ];
    leaf.prop_recursive(3, 10, 3, |inner| {
        let two = (inner.clone(), inner.clone());
        prop_oneof![
            (two, prop::sample::select(vec!["+", "-", "*", "/", "@", "%", "&", "|", "<", "=="]))
                .prop_map(|((a, b), op)| format!("({a}) {op} ({b})")),
            (
                inner.clone(),
                prop::sample::select(vec![
                    "gelu",
                    "sqrt",
                    "exp",
                    "transpose",
                    "sum",
                    "mean",
                    "abs",
                    "linear",
                    "norm"
                ])
            )
                .prop_map(|(a, f)| if f == "linear" {
                    format!("linear({a}, D)")
                } else {
                    format!("{f}({a})")
                }),
            (inner.clone(), number()).prop_map(|(a, n)| format!("split({a}, {n})")),
            (inner.clone(), number()).prop_map(|(a, n)| format!("dropout({a}, {n})")),
            (inner.clone(), number()).prop_map(|(a, n)| format!("rope({a}, heads: {n})")),
            (inner.clone(), number(), number()).prop_map(|(a, n, m)| format!("({a})[{n}..{m}]")),
            (inner.clone(), number(), number()).prop_map(|(a, n, m)| format!("reshape({a}, [{n}, {m}])")),
            (inner.clone(), inner.clone(), number())
                .prop_map(|(a, b, n)| format!("concat({a}, {b}, dim: {n})")),
            (inner.clone(), inner.clone(), number(), number()).prop_map(|(a, m, n, k)| format!(
                "attend({a}, {a}, {a}, heads: {n}, kv_heads: {k}, mask: {m})"
            )),
            inner.prop_map(|a| format!("-({a})")),
        ]
    })
}

fn statement() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => prop::sample::select(PLAIN.to_vec()).prop_map(str::to_owned),
        3 => value().prop_map(|v| format!("x = {v}")),
        1 => value().prop_map(|v| format!("x, y = {v}")),
        1 => (number(), value()).prop_map(|(n, v)| format!("repeat {n} as h {{\n x = {v}\n }}")),
        1 => (number(), number(), value()).prop_map(|(n, m, v)| format!("repeat {n} as h {{\n repeat {m} as g {{\n x = {v}\n }}\n }}")),
        1 => (number(), value()).prop_map(|(n, v)| format!("param w: [{n}, D] ~ normal(0.1)\n x = ({v}) * w")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_body_is_a_graph_or_a_report(lines in prop::collection::vec(statement(), 1..4), width in width()) {
        elaborates(&job(&format!("{}\n x", lines.join("\n")), &width));
    }
}

#[test]
fn calls_that_double_at_every_level_come_to_an_end() {
    let mut text = String::from("layer f0(x: [B, T, D]) -> [B, T, D] {\n x\n}\n");
    for level in 1..40 {
        text += &format!("layer f{level}(x: [B, T, D]) -> [B, T, D] {{\n f{0}(f{0}(x))\n}}\n", level - 1);
    }
    let text = text + &job("f39(x)", "4");
    let start = Instant::now();
    elaborates(&text);
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[test]
fn repeats_in_repeats_come_to_an_end() {
    let start = Instant::now();
    elaborates(&job(
        "repeat 10 as a {\n repeat 99999 as b {\n repeat 99999 as c {\n y = 1\n }\n }\n }\n x",
        "4",
    ));
    assert!(start.elapsed() < Duration::from_secs(60));
}
