//! `dspc explain KEY` and `dspc explain CODE`.

use std::collections::BTreeSet;

use super::{BLOCKS, Fallback, Function, KEYS, Key, Plain, Type};

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
    let all = functions();
    let named = all.iter().filter(|(f, _)| f.name == word).map(|(f, place)| explain_function(f, place));
    let texts: Vec<_> =
        named.chain(all.iter().flat_map(|(f, place)| explain_arguments(f, place, word))).collect();
    if texts.is_empty() { None } else { Some(texts.join("\n")) }
}

/// Every word that [`explain`] answers to, foreign names left out: for "did you mean".
pub fn explainable() -> Vec<&'static str> {
    let keys =
        KEYS.iter().flat_map(|key| [key.path, key.name()]).chain(BLOCKS.iter().map(|(block, _)| *block));
    let functions = functions();
    let arguments = functions.iter().flat_map(|(f, _)| f.args.iter().map(|arg| arg.name));
    let functions = functions.iter().map(|(f, _)| f.name);
    let mut words: Vec<_> =
        keys.chain(functions).chain(arguments).chain(PAGES.iter().map(|(code, _)| *code)).collect();
    words.sort_unstable();
    words.dedup();
    words
}

/// Every function with the setting it stands in, outermost first.
pub(super) fn functions() -> Vec<(&'static Function, String)> {
    let mut all = vec![];
    for key in KEYS {
        collect(&key.ty, key.path, &mut all);
    }
    // One that stands in the same argument of several functions is one.
    let mut known = BTreeSet::new();
    all.retain(|(function, place)| known.insert((function.name, function.doc, place.clone())));
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
    if let Some((only, code)) = crate::supported::only_choice(key.path) {
        text.push_str(&format!("  for now    only `{only}` ({code})\n"));
    }
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

/// The arguments of a function that have this name, here or in another trainer.
fn explain_arguments(function: &Function, place: &str, word: &str) -> Vec<String> {
    let says = |names: &str| {
        names.split(", ").any(|n| !n.is_empty() && (n == word || n.rsplit('.').next() == Some(word)))
    };
    let found = function.args.iter().filter(|arg| arg.name == word || says(arg.deepspeed) || says(arg.hf));
    found
        .map(|arg| {
            let mut text = format!("{}, in `{}` for `{place}`\n  {}\n\n", arg.name, function.name, arg.doc);
            text.push_str(&format!("  type       {}\n", type_of(&arg.ty)));
            text.push_str(&format!("  default    {}\n", default_of(arg.fallback)));
            push_foreign(&mut text, arg.deepspeed, arg.hf);
            text
        })
        .collect()
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
    if let (Some(Plain::Calls), [function]) = (ty.plain, ty.functions) {
        return format!("list of `{}(…)`", function.name);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Argument;

    #[test]
    fn a_key_says_its_type_default_and_names_elsewhere() {
        insta::assert_snapshot!(explain("train.clip").unwrap(), @r"
        train.clip
          Largest global L2 norm of the gradient; a longer one is scaled down to it.

          type       number above 0, or `none`
          default    `1.0`
          example    clip: 1.0
          DeepSpeed  gradient_clipping
          Trainer    max_grad_norm

          none
            No clipping.
        ");
        assert_eq!(explain("clip"), explain("train.clip"));
        assert_eq!(explain("gradient_clipping"), explain("train.clip"));
        assert_eq!(explain("max_grad_norm"), explain("train.clip"));
    }

    #[test]
    fn a_function_a_block_and_a_code_are_explained() {
        assert!(explain("adamw").unwrap().starts_with("adamw(lr: …, betas: (0.9, 0.999)"));
        assert!(explain("data").unwrap().contains("holdout"));
        assert!(explain("E0312").unwrap().starts_with("# E0312: "));
        assert_eq!(explain("e0312"), explain("E0312"));
        assert!(explain("learning_rate").unwrap().contains("lr, in `adamw` for `optimizer`"));
        assert!(explain("init").unwrap().contains("only `init = random` (E0322)"));
        assert_eq!(explain("nothing_like_it"), None);
        for word in explainable() {
            assert!(explain(word).is_some(), "{word}");
        }
    }

    #[test]
    fn every_default_and_example_can_be_read() {
        let mut texts = vec![];
        for key in KEYS.iter().filter(|key| key.ty.plain != Some(Plain::Model)) {
            let path = key.path.to_string();
            texts.push((path.clone(), key.path, key.example.to_string()));
            if let Fallback::Text(text) = key.fallback {
                texts.push((path, key.path, text.to_string()));
            }
        }
        for (what, path, text) in texts {
            let found = crate::fixture::read_alone(path, &text);
            assert_eq!(found, vec![], "{what}: {text}");
        }
    }

    /// A value of a type, as it would be written.
    fn sample(ty: &Type) -> String {
        match (ty.plain, ty.functions.first()) {
            (Some(Plain::Whole { least, .. }), _) => least.max(1).to_string(),
            (Some(Plain::Real { .. }), _) => "1e-3".into(),
            (Some(Plain::Share), _) => "10%".into(),
            (Some(Plain::Bytes), _) => "8GiB".into(),
            (Some(Plain::Flag), _) => "true".into(),
            (Some(Plain::Text), _) => "\"x\"".into(),
            (Some(Plain::Texts), _) => "[\"x\"]".into(),
            (Some(Plain::Shares), _) => "(0.9, 0.95)".into(),
            (Some(Plain::Calls), Some(function)) => format!("[{}]", call(function, None)),
            (Some(Plain::Calls), None) => "[]".into(),
            (Some(Plain::Model), _) => "gpt2::tiny()".into(),
            (None, Some(function)) => call(function, None),
            (None, None) => String::new(),
        }
    }

    /// A function with what it must be given, and one argument as said.
    fn call(function: &Function, said: Option<(&str, String)>) -> String {
        let is_said = |arg: &Argument| said.as_ref().is_some_and(|(name, _)| *name == arg.name);
        let needed =
            function.args.iter().filter(|arg| matches!(arg.fallback, Fallback::Required) && !is_said(arg));
        let mut args: Vec<_> = needed.map(|arg| format!("{}: {}", arg.name, sample(&arg.ty))).collect();
        args.extend(said.as_ref().map(|(name, value)| format!("{name}: {value}")));
        if args.is_empty() { function.name.into() } else { format!("{}({})", function.name, args.join(", ")) }
    }

    #[test]
    fn every_function_can_be_called_with_what_it_needs() {
        for key in KEYS {
            for function in key.ty.functions {
                let inner = function
                    .args
                    .iter()
                    .flat_map(|arg| arg.ty.functions.iter().map(move |inner| (arg, *inner)));
                let value = |arg: &Argument, inner| match arg.ty.plain {
                    Some(Plain::Calls) => format!("[{}]", call(inner, None)),
                    _ => call(inner, None),
                };
                let mut calls: Vec<_> =
                    inner.map(|(arg, inner)| call(function, Some((arg.name, value(arg, inner))))).collect();
                calls.push(call(function, None));
                for text in calls {
                    assert_eq!(crate::fixture::read_alone(key.path, &text), vec![], "{}: {text}", key.path);
                }
            }
        }
    }

    #[test]
    fn everything_is_documented_and_nothing_is_named_twice() {
        let sentence =
            |doc: &str| doc.ends_with('.') && doc.starts_with(|c: char| c.is_uppercase() || c.is_numeric());
        let mut paths: Vec<_> = KEYS.iter().map(|key| key.path).collect();
        paths.sort_unstable();
        paths.dedup();
        assert_eq!(paths.len(), KEYS.len());
        assert!(KEYS.iter().all(|key| sentence(key.doc)));
        for (function, place) in functions() {
            assert!(sentence(function.doc), "{place}: {}", function.name);
            assert!(
                function.args.iter().all(|arg: &Argument| sentence(arg.doc)),
                "{place}: {}",
                function.name
            );
            assert!(function.positional <= function.args.len());
        }
    }
}
