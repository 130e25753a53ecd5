//! What the tests here stand on: builtins as the graph brings them, and a check of a text.

use dspc_source::{Diagnostic, SourceMap};

use crate::body::Builtin;
use crate::settings::{DataFacts, Spec};

const fn builtin(name: &'static str, signature: &'static str) -> Builtin {
    Builtin { name, signature, doc: "" }
}

/// As many as the tests need.
pub(crate) const BUILTINS: &[Builtin] = &[
    builtin("attend", "attend(q, k, v, heads: H, kv_heads: heads, mask: full)"),
    builtin("causal", "causal"),
    builtin("cross_entropy", "cross_entropy(logits, targets)"),
    builtin("dropout", "dropout(x, share)"),
    builtin("full", "full"),
    builtin("gelu", "gelu(x)"),
    builtin("layer_norm", "layer_norm(x, weight, bias, eps: 1e-5)"),
    builtin("normal", "normal(deviation)"),
    builtin("ones", "ones"),
    builtin("rms_norm", "rms_norm(x, weight, eps: 1e-5)"),
    builtin("rope", "rope(x, heads: H, base: 10000)"),
    builtin("silu", "silu(x)"),
    builtin("split", "split(x, n)"),
    builtin("sqrt", "sqrt(x)"),
    builtin("transpose", "transpose(x)"),
    builtin("window", "window(size)"),
    builtin("zeros", "zeros"),
];

/// Parses and checks a text against data of 65 characters.
pub(crate) fn check(text: &str) -> (Option<Spec>, Vec<Diagnostic>) {
    let mut sources = SourceMap::default();
    let id = sources.add("train.dsp", text);
    let (file, mut found) = dspc_grammar::parse(id, text);
    let facts = DataFacts { vocab: Some(65), ranks: None };
    let (spec, more) = crate::check("train", &file, &facts, BUILTINS, &mut sources);
    found.extend(more);
    (spec, found)
}

/// What reading one setting alone reports.
pub(crate) fn read_alone(path: &str, value: &str) -> Vec<Diagnostic> {
    let text = match path.split_once('.') {
        Some((block, field)) => format!("{block} {{ {field}: {value} }}"),
        None => format!("{path} = {value}"),
    };
    let (file, mut found) = dspc_grammar::parse(dspc_source::FileId(0), &text);
    let mut mistakes = crate::errors::Mistakes::default();
    let written = crate::read::Written::collect(&file, &mut mistakes);
    let facts = DataFacts::default();
    let mut reader = crate::read::Reader::new(&written, &facts, &mut mistakes);
    let key = crate::keys::Key::find(path).unwrap();
    assert!(reader.held(key).is_some(), "{text}");
    found.extend(mistakes.into_sorted());
    found
}

/// The definitions of a text, resolved from `model = …` on, whatever else is wrong with it.
pub(crate) fn definitions(text: &str) -> Vec<crate::body::Definition> {
    let mut sources = SourceMap::default();
    let id = sources.add("train.dsp", text);
    let (file, _) = dspc_grammar::parse(id, text);
    let (loaded, _) = crate::library::load(&file, &mut sources);
    let mut mistakes = crate::errors::Mistakes::default();
    let modules = crate::resolve::Modules::collect(&file, &loaded, &mut mistakes);
    let written = crate::read::Written::collect(&file, &mut mistakes);
    let mut resolver = crate::resolve::Resolver::new(&modules, BUILTINS, &mut mistakes);
    if let Some(entry) = written.get("model") {
        resolver.model(entry.value);
    }
    resolver.finish()
}

/// The `train` settings of a text, and the codes of the mistakes in them and in what they need.
pub(crate) fn train(text: &str) -> (Option<crate::settings::Train>, Vec<&'static str>) {
    let whole = format!(
        "use std::gpt2\nmodel = gpt2::tiny(vocab: data.vocab)\noptimizer = adamw(lr: 1e-3)\n\
         data {{ text: [\"a\"], tokenizer: \"chars\", sequence: 64 }}\n{text}"
    );
    let (file, _) = dspc_grammar::parse(dspc_source::FileId(0), &whole);
    let mut mistakes = crate::errors::Mistakes::default();
    let written = crate::read::Written::collect(&file, &mut mistakes);
    written.report_missing(&mut mistakes);
    let facts = DataFacts { vocab: Some(65), ranks: None };
    let settings = crate::read::read_settings(&mut crate::read::Reader::new(&written, &facts, &mut mistakes));
    (settings.map(|settings| settings.train), mistakes.into_sorted().iter().map(|d| d.code).collect())
}
