//! Texts to test on: those of the repository, and generated ones.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]
#![allow(dead_code, reason = "each test file uses a part")]

use proptest::prelude::*;

/// The library's and the examples' sources, by their file names.
pub fn texts() -> Vec<(String, String)> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let mut texts = vec![];
    for folder in ["compiler/spec/std", "examples", "grammar/tests/corpus"] {
        let mut paths: Vec<_> = std::fs::read_dir(format!("{root}/{folder}"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "dsp"))
            .collect();
        paths.sort();
        for path in paths {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            texts.push((name, std::fs::read_to_string(path).unwrap()));
        }
    }
    assert!(texts.len() > 4);
    texts
}

/// Blanks between two words inside round or square brackets: any line ends and comments.
fn gap() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => Just(""), 4 => Just(" "), 1 => Just("\n"), 1 => Just("\n\n\n "), 1 => Just(" # a\n"), 1 => Just("# b\n  # c\r\n"),
    ]
    .prop_map(str::to_owned)
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("x"),
        Just("heads"),
        Just("T"),
        Just("a_rather_long_name_of_a_value"),
        Just("model"),
        Just("layer")
    ]
    .prop_map(str::to_owned)
}

fn leaf() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => name(),
        2 => prop_oneof![Just("1"), Just("200M"), Just("3e-4"), Just("2%"), Just("1_000.5"), Just("31GiB")].prop_map(str::to_owned),
        1 => prop_oneof![Just("true"), Just("\"a\\\"b # no\""), Just("std::gpt2"), Just("data.vocab"), Just("f()")].prop_map(str::to_owned),
    ]
}

fn elements(item: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    let element = (gap(), item, gap()).prop_map(|(before, item, after)| before + &item + &after);
    (prop::collection::vec(element, 0..5), any::<bool>(), gap()).prop_map(|(elements, trailing, gap)| {
        let comma = if trailing && !elements.is_empty() { "," } else { "" };
        elements.join(",") + comma + &gap
    })
}

/// Any expression.
pub fn expr() -> impl Strategy<Value = String> {
    leaf().prop_recursive(5, 40, 5, |inner| {
        let op = prop_oneof![
            Just("+"), Just("-"), Just("*"), Just("/"), Just("%"), Just("@"), Just("&"), Just("||"), Just("<="), Just("!=")
        ];
        let after_op = prop_oneof![4 => Just(" "), 1 => Just("\n"), 1 => Just("# d\n\n")];
        let arg = (prop::option::of(name()), inner.clone()).prop_map(|(name, value)| match name {
            Some(name) => format!("{name}: {value}"),
            None => value,
        });
        let range = (prop::option::of(inner.clone()), prop::option::of(inner.clone()))
            .prop_map(|(a, b)| a.unwrap_or_default() + ".." + &b.unwrap_or_default());
        prop_oneof![
            3 => (name(), elements(arg)).prop_map(|(name, args)| format!("{name}({args})")),
            3 => (inner.clone(), op, after_op, inner.clone()).prop_map(|(a, op, gap, b)| format!("{a} {op}{gap}{b}")),
            1 => elements(inner.clone()).prop_map(|list| format!("[{list}]")),
            1 => elements(inner.clone()).prop_map(|list| format!("({list})")),
            1 => (name(), elements(range)).prop_map(|(name, list)| format!("{name}[{list}]")),
            1 => inner.clone().prop_map(|value| format!("-({value})")),
            1 => (elements(inner.clone()), name()).prop_map(|(args, name)| format!("f({args}) as {name}.y")),
            1 => (elements(name()), inner).prop_map(|(names, body)| format!("(({names}) => {body})")),
        ]
    })
}

fn line_end() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => Just("\n"), 1 => Just("\n\n\n"), 1 => Just("  # on the line\n"), 1 => Just("\n# alone\n"), 1 => Just("\n\n  # apart\n\n"),
    ]
    .prop_map(str::to_owned)
}

fn statement() -> impl Strategy<Value = String> {
    let simple = prop_oneof![
        3 => (name(), expr()).prop_map(|(name, value)| format!("{name} = {value}")),
        1 => expr(),
        1 => (name(), elements(leaf()), expr()).prop_map(|(name, dims, init)| format!("param {name}: [{dims}] ~ {init}")),
        1 => (name(), name(), expr()).prop_map(|(a, b, value)| format!("{a}, {b} = {value}")),
    ];
    simple.prop_recursive(2, 8, 4, |inner| {
        let body = prop::collection::vec((inner.clone(), line_end()), 0..4)
            .prop_map(|rows| rows.into_iter().map(|(row, end)| row + &end).collect::<String>());
        prop_oneof![
            (leaf(), inner).prop_map(|(count, one)| format!("repeat {count} as h {{ {one} }}")),
            (leaf(), line_end(), body)
                .prop_map(|(count, end, body)| format!("repeat {count} {{{end}{body}}}")),
        ]
    })
}

fn definition() -> impl Strategy<Value = String> {
    let param = prop_oneof![
        name(),
        (name(), elements(leaf())).prop_map(|(name, dims)| format!("{name}: [{dims}]")),
        (name(), elements(leaf())).prop_map(|(name, dims)| format!("{name}: ids[{dims}]")),
        (name(), leaf()).prop_map(|(name, value)| format!("{name}: H = {value}")),
    ];
    let body = prop::collection::vec((statement(), line_end()), 0..5)
        .prop_map(|rows| rows.into_iter().map(|(row, end)| row + &end).collect::<String>());
    let result =
        prop_oneof![Just(""), Just("-> loss"), Just(" -> [.., D]"), Just("->([B], [T])"), Just("\n")];
    prop_oneof![
        3 => (name(), elements(param.clone()), result, line_end(), body).prop_map(|(name, params, result, end, body)| {
            format!("layer {name}({params}){result} {{{end}{body}}}")
        }),
        1 => (name(), elements(param), expr()).prop_map(|(name, params, value)| format!("model {name}({params}) = {value}")),
    ]
}

fn block() -> impl Strategy<Value = String> {
    let end = prop_oneof![2 => line_end(), 1 => Just("  ".to_owned()), 1 => Just(" , ".to_owned())];
    let field = (name(), expr(), end).prop_map(|(name, value, end)| format!("{name}: {value}{end}"));
    (name(), line_end(), prop::collection::vec(field, 0..5))
        .prop_map(|(name, end, fields)| format!("{name} {{{end}{}}}", fields.concat()))
}

/// A whole file without mistakes.
pub fn any_file() -> impl Strategy<Value = String> {
    let item = prop_oneof![
        1 => Just("use std::gpt2".to_owned()),
        3 => (name(), expr()).prop_map(|(name, value)| format!("{name} = {value}")),
        2 => block(),
        2 => definition(),
    ];
    prop::collection::vec((item, line_end()), 0..5)
        .prop_map(|rows| rows.into_iter().map(|(row, end)| row + &end).collect::<String>())
}
