//! `dspc explain KEY` and `dspc explain CODE`.

use super::{BLOCKS, Fallback, Function, KEYS, Key, Type};

include!(concat!(env!("OUT_DIR"), "/pages.rs"));

/// What a setting (`train.batch`, `batch`, or DeepSpeed's `train_batch_size`), a block, a function (`adamw`) or a code (`E0312`)
/// means; `None` if nothing has that name.
pub fn explain(word: &str) -> Option<String> {
    if let Some((_, page)) = PAGES.iter().find(|(code, _)| code.eq_ignore_ascii_case(word)) {
        return Some(page.to_string());
    }
    let named: Vec<&Key> = KEYS.iter().filter(|key| key.path == word || key.name() == word).collect();
    let keys = if named.is_empty() { Key::find_foreign(word).into_iter().collect() } else { named };
    if !keys.is_empty() {
        return Some(keys.into_iter().map(explain_key).collect::<Vec<_>>().join("\n"));
    }
    if let Some((block, doc)) = BLOCKS.iter().find(|(block, _)| *block == word) {
        let fields = KEYS.iter().filter(|key| key.block() == Some(block));
        let lines: Vec<_> = fields.map(|key| format!("  {:<13} {}", key.name(), key.doc)).collect();
        return Some(format!("{block} {{ … }}\n  {doc}\n\n{}\n", lines.join("\n")));
    }
    let functions: Vec<_> = functions().into_iter().filter(|(f, _)| f.name == word).collect();
    let texts: Vec<_> = functions.into_iter().map(|(f, place)| explain_function(f, &place)).collect();
    if texts.is_empty() { None } else { Some(texts.join("\n")) }
}

/// Every function with the setting it stands in, outermost first.
pub(super) fn functions() -> Vec<(&'static Function, String)> {
    let mut all = vec![];
    for key in KEYS {
        collect(&key.ty, key.path, &mut all);
    }
    all
}

fn collect(ty: &Type, place: &str, all: &mut Vec<(&'static Function, String)>) {
    for function in ty.functions {
        all.push((*function, place.to_string()));
        for arg in function.args {
            collect(&arg.ty, &format!("{place}, {}", arg.name), all);
        }
    }
}

fn explain_key(key: &Key) -> String {
    let mut text = format!("{}\n  {}\n\n", key.path, key.doc);
    text.push_str(&format!("  type       {}\n", type_of(&key.ty)));
    text.push_str(&format!("  default    {}\n", default_of(key.fallback)));
    text.push_str(&format!("  example    {}\n", key.line()));
    push_foreign(&mut text, key.deepspeed, key.hf);
    for function in key.ty.functions {
        text.push_str(&format!("\n  {}\n    {}\n", function.usage(), function.doc));
        push_arguments(&mut text, function);
    }
    text
}

fn explain_function(function: &Function, place: &str) -> String {
    let mut text = format!("{}\n  {} For `{place}`.\n", function.usage(), function.doc);
    push_arguments(&mut text, function);
    text
}

fn push_arguments(text: &mut String, function: &Function) {
    for arg in function.args {
        let (ty, default) = (type_of(&arg.ty), default_of(arg.fallback));
        text.push_str(&format!("    {:<14} {} ({ty}; default: {default})\n", arg.name, arg.doc));
    }
}

fn push_foreign(text: &mut String, deepspeed: &str, hf: &str) {
    if !deepspeed.is_empty() {
        text.push_str(&format!("  DeepSpeed  {deepspeed}\n"));
    }
    if !hf.is_empty() {
        text.push_str(&format!("  Trainer    {hf}\n"));
    }
}

/// A type in words: plain value or functions.
pub(super) fn type_of(ty: &Type) -> String {
    let mut ways: Vec<String> = ty.plain.iter().map(|plain| plain.describe()).collect();
    ways.extend(
        ty.functions
            .iter()
            .map(|f| if f.args.is_empty() { format!("`{}`", f.name) } else { format!("`{}(…)`", f.name) }),
    );
    ways.join(", or ")
}

/// A default in words.
pub(super) fn default_of(fallback: Fallback) -> String {
    match fallback {
        Fallback::Required => "none, it must be given".into(),
        Fallback::Text(text) => format!("`{text}`"),
        Fallback::Derived(how) => format!("derived: {how}"),
    }
}
