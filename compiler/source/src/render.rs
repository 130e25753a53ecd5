//! Reports for people (rustc's look, through annotate-snippets) and for programs (JSON lines).

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::Serialize;

use crate::{Diagnostic, FileId, Label, Severity, SourceMap, Span};

/// Whether the text carries terminal colours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Colour {
    /// ANSI escapes.
    Ansi,
    /// Plain text.
    Plain,
}

/// All diagnostics as text for people, one blank line between two; ends with a line end unless there are none.
pub fn render_text(diagnostics: &[Diagnostic], sources: &SourceMap, colour: Colour) -> String {
    let renderer = match colour {
        Colour::Ansi => Renderer::styled(),
        Colour::Plain => Renderer::plain(),
    };
    let reports: Vec<String> =
        diagnostics.iter().map(|diagnostic| renderer.render(&[group(diagnostic, sources)]) + "\n").collect();
    reports.join("\n")
}

/// The title, a snippet for each file that has a label (the primary's first), the notes, the helps.
fn group<'a>(diagnostic: &'a Diagnostic, sources: &'a SourceMap) -> Group<'a> {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let mut files: Vec<FileId> = vec![diagnostic.primary.span.file];
    for label in &diagnostic.labels {
        if !files.contains(&label.span.file) {
            files.push(label.span.file);
        }
    }
    level
        .primary_title(printable(&diagnostic.title))
        .id(diagnostic.code)
        .elements(files.into_iter().map(|file| snippet(diagnostic, sources, file)))
        .elements(diagnostic.notes.iter().map(|note| Level::NOTE.message(printable(note))))
        .elements(diagnostic.help.iter().map(|help| Level::HELP.message(printable(help))))
}

/// The lines of one file that the diagnostic speaks of. Only those from the first to the last are handed on: a long
/// file costs no more than a short one.
fn snippet<'a>(
    diagnostic: &'a Diagnostic,
    sources: &'a SourceMap,
    file: FileId,
) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
    let text = sources.text(file);
    let primary = std::iter::once((AnnotationKind::Primary, &diagnostic.primary));
    let others = diagnostic.labels.iter().map(|label| (AnnotationKind::Context, label));
    let labels: Vec<(AnnotationKind, &Label, Span)> = primary
        .chain(others)
        .filter(|(_, label)| label.span.file == file)
        .map(|(kind, label)| (kind, label, inside(text, label.span)))
        .collect();

    let first = labels.iter().map(|(.., span)| span.start as usize).min().unwrap_or(0);
    let last = labels.iter().map(|(.., span)| span.end as usize).max().unwrap_or(0);
    let begin = text[..first].rfind('\n').map_or(0, |at| at + 1);
    let end = text[last..].find('\n').map_or(text.len(), |length| last + length + 1);
    let annotations = labels.into_iter().map(|(kind, label, span)| {
        let annotation = kind.span(span.start as usize - begin..span.end as usize - begin);
        match label.text.is_empty() {
            true => annotation,
            false => annotation.label(printable(&label.text)),
        }
    });
    Snippet::source(&text[begin..end])
        .line_start(text[..begin].matches('\n').count() + 1)
        .path(sources.name(file))
        .annotations(annotations)
}

/// A span cut to its text and to whole characters.
fn inside(text: &str, span: Span) -> Span {
    let start = text.floor_char_boundary(span.start as usize);
    let end = text.ceil_char_boundary(span.end as usize).max(start);
    Span::new(span.file, start, end)
}

/// Words of a report may quote the user's file; a terminal must not obey them.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// One JSON object a line, keys in a fixed order. Lines and columns count from 1, columns in characters; `start` and `end`
/// of a patch are bytes of its file.
pub fn render_json(diagnostics: &[Diagnostic], sources: &SourceMap) -> String {
    let mut out = String::new();
    for diagnostic in diagnostics {
        // Strings and numbers always serialise.
        if let Ok(line) = serde_json::to_string(&Report::new(diagnostic, sources)) {
            out.push_str(&line);
            out.push('\n');
        }
    }
    out
}

#[derive(Serialize)]
struct Report<'a> {
    code: &'a str,
    severity: &'static str,
    title: &'a str,
    #[serde(flatten)]
    primary: Place<'a>,
    labels: Vec<Place<'a>>,
    notes: &'a [String],
    help: &'a [String],
    patches: Vec<Edit<'a>>,
}

#[derive(Serialize)]
struct Place<'a> {
    file: &'a str,
    line: usize,
    column: usize,
    end_line: usize,
    end_column: usize,
    label: &'a str,
}

#[derive(Serialize)]
struct Edit<'a> {
    file: &'a str,
    start: u32,
    end: u32,
    text: &'a str,
}

impl<'a> Report<'a> {
    fn new(diagnostic: &'a Diagnostic, sources: &'a SourceMap) -> Self {
        let place = |label: &'a Label| {
            let end = Span { start: label.span.end, ..label.span };
            let ((line, column), (end_line, end_column)) =
                (sources.line_column(label.span), sources.line_column(end));
            Place {
                file: sources.name(label.span.file),
                line,
                column,
                end_line,
                end_column,
                label: &label.text,
            }
        };
        Self {
            code: diagnostic.code,
            severity: match diagnostic.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            },
            title: &diagnostic.title,
            primary: place(&diagnostic.primary),
            labels: diagnostic.labels.iter().map(place).collect(),
            notes: &diagnostic.notes,
            help: &diagnostic.help,
            patches: diagnostic
                .patches
                .iter()
                .map(|patch| Edit {
                    file: sources.name(patch.span.file),
                    start: patch.span.start,
                    end: patch.span.end,
                    text: &patch.text,
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = "# a\nparallel = mesh(data: 3)\n\n\n\n\n\ntrain {\n  batch: 8\n  micro_batch: 2\n}\n";

    fn batch_unreachable() -> (SourceMap, Diagnostic) {
        let mut sources = SourceMap::default();
        let file = sources.add("train.dsp", SPEC);
        let at = |word: &str| {
            let start = SPEC.find(word).unwrap() + word.len() - 1;
            Span::new(file, start, start + 1)
        };
        let diagnostic = Diagnostic::error(
            "E0312",
            "`batch` cannot be reached with this many ranks",
            at("batch: 8"),
            "8 sequences a step",
        )
        .label(at("data: 3"), "3 ranks share the batch")
        .label(at("micro_batch: 2"), "2 sequences a rank at once")
        .note("2 × 3 = 6 at once, and 8 is not a multiple of 6")
        .help("the nearest that fit are `batch: 6` and `batch: 12`")
        .patch(at("batch: 8"), "6");
        (sources, diagnostic)
    }

    #[test]
    fn a_report_shows_every_place() {
        let (sources, diagnostic) = batch_unreachable();
        insta::assert_snapshot!(render_text(&[diagnostic], &sources, Colour::Plain), @"
        error[E0312]: `batch` cannot be reached with this many ranks
          --> train.dsp:9:10
           |
         2 | parallel = mesh(data: 3)
           |                       - 3 ranks share the batch
        ...
         9 |   batch: 8
           |          ^ 8 sequences a step
        10 |   micro_batch: 2
           |                - 2 sequences a rank at once
           |
           = note: 2 × 3 = 6 at once, and 8 is not a multiple of 6
           = help: the nearest that fit are `batch: 6` and `batch: 12`
        ");
    }

    #[test]
    fn reports_stand_apart() {
        let (sources, diagnostic) = batch_unreachable();
        let span = diagnostic.primary.span;
        let one = Diagnostic::warning("W0101", "`batch` is small", span, "");
        insta::assert_snapshot!(render_text(&[one.clone(), one], &sources, Colour::Plain), @"
        warning[W0101]: `batch` is small
         --> train.dsp:9:10
          |
        9 |   batch: 8
          |          ^

        warning[W0101]: `batch` is small
         --> train.dsp:9:10
          |
        9 |   batch: 8
          |          ^
        ");
        assert_eq!(render_text(&[], &sources, Colour::Plain), "");
    }

    #[test]
    fn another_file_has_its_own_snippet() {
        let (mut sources, diagnostic) = batch_unreachable();
        let std = sources.add("std/gpt2.dsp", "model gpt2(heads: H) -> loss {\n}\n");
        let one = Diagnostic::error("E0400", "no such argument", diagnostic.primary.span, "not known")
            .label(Span::new(std, 11, 16), "it takes these");
        insta::assert_snapshot!(render_text(&[one], &sources, Colour::Plain), @"
        error[E0400]: no such argument
         --> train.dsp:9:10
          |
        9 |   batch: 8
          |          ^ not known
          |
         ::: std/gpt2.dsp:1:12
          |
        1 | model gpt2(heads: H) -> loss {
          |            ----- it takes these
        ");
    }

    #[test]
    fn colour_adds_escapes_only() {
        let (sources, diagnostic) = batch_unreachable();
        let coloured = render_text(std::slice::from_ref(&diagnostic), &sources, Colour::Ansi);
        assert!(coloured.contains("\u{1b}["));
        let mut plain = String::new();
        let mut rest = coloured.as_str();
        while let Some(at) = rest.find('\u{1b}') {
            plain.push_str(&rest[..at]);
            rest = &rest[at + rest[at..].find('m').unwrap() + 1..];
        }
        plain.push_str(rest);
        assert_eq!(plain, render_text(&[diagnostic], &sources, Colour::Plain));
    }

    #[test]
    fn json_is_one_object_a_line() {
        let (sources, diagnostic) = batch_unreachable();
        let json = render_json(&[diagnostic.clone(), diagnostic], &sources);
        assert_eq!(json.lines().count(), 2);
        insta::assert_snapshot!(json.lines().next().unwrap(), @r#"{"code":"E0312","severity":"error","title":"`batch` cannot be reached with this many ranks","file":"train.dsp","line":9,"column":10,"end_line":9,"end_column":11,"label":"8 sequences a step","labels":[{"file":"train.dsp","line":2,"column":23,"end_line":2,"end_column":24,"label":"3 ranks share the batch"},{"file":"train.dsp","line":10,"column":16,"end_line":10,"end_column":17,"label":"2 sequences a rank at once"}],"notes":["2 × 3 = 6 at once, and 8 is not a multiple of 6"],"help":["the nearest that fit are `batch: 6` and `batch: 12`"],"patches":[{"file":"train.dsp","start":51,"end":52,"text":"6"}]}"#);
    }

    #[test]
    fn odd_places_do_not_panic() {
        let mut sources = SourceMap::default();
        let texts = ["", "\n", "×", "a\r\nb", "\u{1b}[31m\u{7}", "no line end", "\n\n\n"];
        for text in texts {
            let file = sources.add("odd.dsp", text);
            for start in 0..8 {
                for end in 0..9 {
                    let span = Span { file, start, end };
                    let one =
                        Diagnostic::error("E0001", "a\u{1b}b", span, text).label(span, "again").note(text);
                    let shown = render_text(std::slice::from_ref(&one), &sources, Colour::Plain);
                    assert!(shown.starts_with("error[E0001]"));
                    assert!(!shown.contains('\u{1b}') && !shown.contains('\u{7}'), "{shown:?}");
                    assert!(!render_json(&[one], &sources).is_empty());
                }
            }
        }
    }
}
