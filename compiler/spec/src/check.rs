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
    use crate::fixture::check;
    use crate::settings::{Optimizer, Origin, Schedule};

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
        let Optimizer::AdamW { lr, betas, .. } = &spec.settings.optimizer.value;
        assert_eq!(*lr, Schedule::Cosine { peak: 1e-3, warmup: 100, floor: 1e-4 });
        assert_eq!(*betas, (0.9, 0.99));
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
    fn an_empty_file_lacks_everything_without_default() {
        let (spec, found) = check("");
        assert!(spec.is_none());
        let codes: Vec<_> = found.iter().map(|d| d.code).collect();
        assert_eq!(codes, ["E0104", "E0104", "E0104", "E0104"]);
    }
}
