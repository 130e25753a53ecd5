//! The checker: from a syntax tree to a spec, or to all its mistakes.

use std::collections::BTreeMap;

use dspc_grammar::ast::File;
use dspc_source::{Diagnostic, SourceMap, Span};

use crate::body::{Builtin, ModelCall};
use crate::errors::Mistakes;
use crate::library;
use crate::read::{ModelSizes, Reader, Written, check_against_model, read_model_arguments, read_settings};
use crate::resolve::{Modules, Resolver};
use crate::settings::{DataFacts, Spec};
use crate::supported::check_supported;

/// Checks a file; all its mistakes come back in one run, in the order of the text. No spec if one is an error.
///
/// `name` is the file's stem. `builtins` are the functions that the graph brings; [`crate::body::Callee::Builtin`] counts in them. The
/// library's modules that the file uses become files of `sources`. There is also no spec, and then no diagnostic for it, if `data.vocab`
/// is named and [`DataFacts::vocab`] is unknown: why the data could not be read is reported by whoever reads it.
pub fn check(
    name: &str,
    file: &File,
    facts: &DataFacts,
    builtins: &[Builtin],
    sources: &mut SourceMap,
) -> (Option<Spec>, Vec<Diagnostic>) {
    let mut mistakes = Mistakes::default();
    let (loaded, found) = library::load(file, sources);
    found.into_iter().for_each(|diagnostic| mistakes.add(diagnostic));

    let written = Written::collect(file, &mut mistakes);
    written.report_missing(&mut mistakes);

    let modules = Modules::collect(file, &loaded, &mut mistakes);
    let mut resolver = Resolver::new(&modules, builtins, &mut mistakes);
    let target = written.get("model").and_then(|entry| resolver.model(entry.value));
    let definitions = resolver.finish();

    let mut reader = Reader::new(&written, facts, &mut mistakes);
    let settings = read_settings(&mut reader);
    reader.check_consistency();
    let model = target.and_then(|target| {
        let spans: BTreeMap<String, Span> =
            target.args.iter().map(|(name, expr)| (name.value.clone(), expr.span)).collect();
        let args = read_model_arguments(&mut reader, &target.args)?;
        Some((ModelCall { definition: target.definition, args, span: target.span }, spans))
    });
    if let (Some(settings), Some((model, spans))) = (&settings, &model) {
        check_against_model(settings, ModelSizes::of(model, &definitions, spans), &mut reader);
    }
    if let Some(settings) = &settings {
        check_supported(settings, written.end, &mut mistakes);
    }

    let spec = match (settings, model, mistakes.has_errors()) {
        (Some(settings), Some((model, _)), false) => {
            Some(Spec { name: name.to_string(), settings, model, definitions })
        }
        _ => None,
    };
    (spec, mistakes.into_sorted())
}

#[cfg(test)]
mod tests {
    use dspc_source::{Severity, SourceMap};
    use proptest::prelude::*;

    use crate::fixture::check;
    use crate::settings::{Adam, DataFacts, Origin, ParamGroup, Rule, Schedule};

    const EXAMPLE: &str = include_str!("../../../examples/shakespeare.dsp");

    #[test]
    fn the_example_is_right() {
        let (spec, found) = check(EXAMPLE);
        assert_eq!(found, vec![]);
        let spec = spec.unwrap();
        assert_eq!(spec.settings.train.batch.value, 12);
        assert_eq!(spec.settings.train.micro_batch.value, 12);
        assert_eq!(spec.settings.train.micro_batch.origin, Origin::Derived);
        assert_eq!(spec.settings.data.holdout.value, 0.1);
        let optimizer = &spec.settings.optimizer.value;
        assert_eq!(optimizer.lr, Schedule::Cosine { peak: 1e-3, warmup: 100, floor: 1e-4 });
        assert_eq!(optimizer.rule, Rule::AdamW(Adam { betas: (0.9, 0.99), eps: 1e-8 }));
        assert_eq!(optimizer.groups, []);
        let names: Vec<_> =
            spec.definitions.iter().map(|d| format!("{}::{}", d.module, d.name.value)).collect();
        assert_eq!(
            names,
            [
                "std::gpt2::gpt2",
                "std::gpt2::block",
                "std::nn::norm",
                "std::gpt2::attention",
                "std::nn::linear"
            ]
        );
    }

    #[test]
    fn groups_are_read_in_their_order() {
        let groups = "groups: [group(\"*.bias\", weight_decay: 0), group(dims: 1, lr: 0.5), group(\"w*\", freeze: true)]";
        let job = JOB.replace("adamw(lr: 1e-3)", &format!("lion(lr: 1e-4, {groups})"));
        let (spec, found) = check(&format!("{job}{MODEL}"));
        assert_eq!(found, vec![]);
        let optimizer = spec.unwrap().settings.optimizer.value;
        assert_eq!(optimizer.rule, Rule::Lion { betas: (0.9, 0.99) });
        let said = |g: &ParamGroup| (g.names.value.clone(), g.dims, g.lr, g.weight_decay, g.freeze);
        let said: Vec<_> = optimizer.groups.iter().map(said).collect();
        assert_eq!(
            said,
            [
                ("*.bias".into(), None, 1.0, Some(0.0), false),
                ("*".into(), Some(1), 0.5, None, false),
                ("w*".into(), None, 1.0, None, true)
            ]
        );
    }

    #[test]
    fn every_optimizer_is_printed_as_it_is_read() {
        for (rule, rest) in [
            ("sgd", "momentum: 0.9, nesterov: true, weight_decay: 0.1"),
            ("lion", "betas: (0.9, 0.98), weight_decay: 0.1"),
            ("adam", "betas: (0.9, 0.95), eps: 1e-7, weight_decay: 0"),
            ("lamb", "betas: (0.9, 0.95), eps: 1e-6, min_ratio: 0.1, max_ratio: 5, weight_decay: 0.1"),
            (
                "adafactor",
                "decay_power: 0.7, eps: 1e-20, clip: 2, scale_parameter: true, eps_parameter: 1e-2, weight_decay: 0",
            ),
            (
                "muon",
                "momentum: 0.9, nesterov: false, steps: 6, scale: match_adamw, adam_lr: 1e-3, betas: (0.8, 0.9), eps: 1e-9, weight_decay: 0.1",
            ),
        ] {
            let groups = "groups: [group(\"a*\", dims: 1, lr: 2, weight_decay: 0.5, freeze: false)]";
            let text = format!("{rule}(lr: constant(1e-3, warmup: 0), {rest}, {groups})");
            let (spec, found) = check(&format!("{}{MODEL}", JOB.replace("adamw(lr: 1e-3)", &text)));
            assert_eq!(found, vec![]);
            let number = |text: &str| text.replace("1e-2", "0.01").replace("1e-1", "0.1");
            let printed = crate::print(&spec.unwrap());
            let line = printed.lines().find(|line| line.starts_with("optimizer")).unwrap();
            assert_eq!(number(line), number(&format!("optimizer = {text}")));
        }
    }

    #[test]
    fn constants_of_an_optimizer_must_agree() {
        for (optimizer, code) in [
            ("sgd(lr: 1, nesterov: true)", "E0308"),
            ("sgd(lr: 1, momentum: 0, nesterov: true)", "E0308"),
            ("lamb(lr: 1e-3, min_ratio: 20)", "E0309"),
            ("adamw(lr: 1e-3, groups: group(\"*\"))", "E0203"),
            ("adamw(lr: 1e-3, groups: [grup(\"*\")])", "E0120"),
            ("adamw(lr: 1e-3, groups: [\"*\"])", "E0203"),
            ("lion(lr: 1e-3, eps: 1e-8)", "E0105"),
        ] {
            let (_, found) = check(&format!("{}{MODEL}", JOB.replace("adamw(lr: 1e-3)", optimizer)));
            assert_eq!(found.iter().map(|d| d.code).collect::<Vec<_>>(), [code], "{optimizer}");
        }
    }

    #[test]
    fn a_file_may_define_what_the_prelude_has() {
        let text = format!("{JOB}{MODEL}layer norm(x: [.., D]) -> [.., D] {{ x + x }}\n");
        let (spec, found) = check(&text);
        assert_eq!(found, vec![]);
        let modules: Vec<_> =
            spec.unwrap().definitions.into_iter().map(|d| (d.module, d.name.value)).collect();
        assert_eq!(modules, [(String::new(), "m".to_string()), (String::new(), "norm".to_string())]);
    }

    #[test]
    fn only_what_the_model_reaches_is_kept() {
        let (spec, found) =
            check(&format!("{JOB}{MODEL}layer spare(x: [B, D]) -> [B, D] {{ linear(x, D) }}\n"));
        assert_eq!(found.iter().map(|d| d.code).collect::<Vec<_>>(), ["W0106"]);
        let names: Vec<_> = spec.unwrap().definitions.into_iter().map(|d| d.name.value).collect();
        assert_eq!(names, ["m", "norm"]);
    }

    #[test]
    fn sizes_are_followed_through_models_that_fix_them() {
        let fixed = "model = two()\nmodel two() = one(scale: 2)\n\
                     model one(scale: S) = gpt2::tiny(context: 16 * S, vocab: 65)\n";
        let (_, found) = check(&format!("use std::gpt2\n{JOB}{fixed}"));
        let shown: Vec<_> = found.iter().map(|d| (d.code, d.labels[0].text.as_str())).collect();
        assert_eq!(shown, [("E0302", "the model has 32 positions")]);
    }

    #[test]
    fn a_default_is_no_place_to_point_at() {
        let (spec, found) = check(&EXAMPLE.replace("steps: 2000", "steps: 5"));
        assert!(spec.is_some());
        assert_eq!(found.iter().map(|d| d.code).collect::<Vec<_>>(), ["W0101", "W0103"]);
    }

    #[test]
    fn unreadable_data_is_not_reported_again() {
        let mut sources = SourceMap::default();
        let id = sources.add("train.dsp", EXAMPLE);
        let (file, _) = dspc_grammar::parse(id, EXAMPLE);
        let facts = DataFacts::default();
        let (spec, found) = super::check("train", &file, &facts, crate::fixture::BUILTINS, &mut sources);
        assert_eq!((spec, found), (None, vec![]));
    }

    #[test]
    fn a_long_chain_of_layers_takes_no_stack() {
        let mut text = format!("{JOB}{MODEL}");
        text.extend((0..20_000).map(|i| format!("layer f{i}(x: [B]) -> [B] {{ f{}(x) }}\n", i + 1)));
        text.push_str("layer f20000(x: [B]) -> [B] { f0(x) }\n");
        let (_, found) = check(&text);
        assert_eq!(found.iter().map(|d| d.code).collect::<Vec<_>>(), ["E0116"]);
    }

    #[test]
    fn many_mistakes_take_no_longer_than_a_long_text() {
        let mut text = format!("{JOB}{MODEL}layer f(x: [B]) -> [B] {{\n");
        text.extend((0..20_000).map(|i| format!("  x{i} = g{i}(y{i})\n")));
        text.push_str("  x\n}\n");
        assert!(check(&text).1.len() >= 40_000);
    }

    proptest! {
        /// Pieces of right specs in any order: never a panic, and a spec only without errors.
        #[test]
        fn no_text_panics(pieces in prop::collection::vec(prop::sample::select(PIECES), 0..40)) {
            let (spec, found) = check(&pieces.concat());
            let wrong = found.iter().any(|d| d.severity == Severity::Error);
            prop_assert!(spec.is_none() || !wrong);
        }

        /// The example with a hole: every report has its place inside a file.
        #[test]
        fn every_place_is_in_its_file(at in 0..EXAMPLE.len(), len in 0..40usize) {
            let end = (at + len).min(EXAMPLE.len());
            let text = [&EXAMPLE.as_bytes()[..at], &EXAMPLE.as_bytes()[end..]].concat();
            let text = String::from_utf8_lossy(&text).into_owned();
            for diagnostic in check(&text).1 {
                let labels = diagnostic.labels.iter().map(|label| label.span);
                for span in std::iter::once(diagnostic.primary.span).chain(labels) {
                    prop_assert!(span.file.0 < 4 && span.start <= span.end);
                    prop_assert!(span.file.0 > 0 || span.end as usize <= text.len());
                }
            }
        }
    }

    /// All but the model.
    const JOB: &str = "data { text: [\"a.txt\"], tokenizer: \"chars\", sequence: 64 }\n\
                       optimizer = adamw(lr: 1e-3)\ntrain { batch: 8, steps: 1000 }\n";
    /// A small one.
    const MODEL: &str = "model m(tokens: ids[B, T], targets: ids[B, T], vocab: V) -> loss {\n\
                         \x20 param table: [V, V] ~ normal(0.02)\n  cross_entropy(norm(table[tokens]), targets)\n}\n\
                         model = m(vocab: data.vocab)\n";
    const PIECES: &[&str] = &[
        "model = ",
        "use std::",
        "gpt2",
        "::",
        "tiny(",
        "layer f(x: [B, D]",
        ") -> ",
        "[B, D]",
        "{",
        "}",
        "\n",
        "(",
        ")",
        "train ",
        "batch: ",
        "8",
        "data ",
        "text: ",
        "\"a\"",
        "[",
        "]",
        ",",
        " = ",
        "x",
        "linear(x, D)",
        " as ",
        "repeat 2 ",
        "param p: [D] ~ ",
        "zeros",
        "+",
        "%",
        "200M",
        "10%",
        "8GiB",
        "data.vocab",
        "train.batch",
        "parallel = mesh(data: 3)\n",
        "zero = stage(2)\n",
        "every(",
        "adamw(lr: ",
        "optimizer",
        "(q, k) => ",
        "..",
        "-",
        "1e300",
        "/",
        "0",
        "loss",
        "tokens: ids[B, T]",
        "f(x)",
        "model m(",
        "init = ",
    ];

    #[test]
    fn an_empty_file_lacks_everything_without_default() {
        let (spec, found) = check("");
        assert!(spec.is_none());
        let codes: Vec<_> = found.iter().map(|d| d.code).collect();
        assert_eq!(codes, ["E0104", "E0104", "E0104", "E0104"]);
    }
}
