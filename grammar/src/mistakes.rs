//! The mistakes a text can hold, E0001 to E0099, and their words.

use dspc_source::{Diagnostic, FileId, Span};

use crate::layout::DEPTH_MAX;

/// Longest text, in bytes.
pub(crate) const FILE_BYTES_MAX: usize = 1 << 20;

/// Operators, indices and brackets above one value, at most.
pub(crate) const EXPRESSION_DEPTH_MAX: u32 = 128;

/// All mistakes of a file; the first hundred are kept, the others counted.
#[derive(Default)]
pub(crate) struct Mistakes {
    kept: Vec<Diagnostic>,
    hidden: usize,
}

impl Mistakes {
    const KEPT_MAX: usize = 100;

    /// Adds one; it is not even made if it would not be kept.
    pub(crate) fn add(&mut self, make: impl FnOnce() -> Diagnostic) {
        match self.kept.len() < Self::KEPT_MAX {
            true => self.kept.push(make()),
            false => self.hidden += 1,
        }
    }

    /// In the order of the text; the last one says how many are not shown.
    pub(crate) fn into_diagnostics(mut self) -> Vec<Diagnostic> {
        self.kept.sort_by_key(|mistake| mistake.primary.span.start);
        if let (1.., Some(last)) = (self.hidden, self.kept.last_mut()) {
            last.notes.push(format!("{} more mistakes in this file are not shown", self.hidden));
        }
        self.kept
    }
}

/// E0001. Text where something else, or nothing, belongs; its first word may be a slip for one of `words`.
pub(crate) fn unreadable(span: Span, found: &str, expected: &str, words: &[&'static str]) -> Diagnostic {
    let first = first_word(found);
    let title = format!("cannot read `{first}` here");
    let mistake = Diagnostic::error("E0001", title, span, format!("expected {expected}"));
    if let Some(word) = dspc_source::nearest(&first, words.iter().copied()) {
        let place = Span { end: span.start + first.len() as u32, ..span };
        return mistake.help(format!("did you mean `{word}`?")).patch(place, word);
    }
    let is_word = found.starts_with(|c: char| c.is_alphanumeric() || "_\"([".contains(c));
    match advice(found) {
        Some(text) => mistake.help(text),
        None if is_word && expected == crate::items::A_COMMA => {
            let before = Span { end: span.start, ..span };
            mistake.help("put a comma between the two").patch(before, ", ")
        }
        None => mistake,
    }
}

/// What a reader most likely meant by text that cannot be read.
fn advice(found: &str) -> Option<String> {
    let first = found.chars().next()?;
    let second = found.chars().nth(1);
    let operators = "+-*/%@&|<>";
    Some(match (first, second) {
        ('/', Some('/' | '*')) => "a comment begins with `#`".into(),
        ('\'' | '`' | '“' | '”' | '‘' | '’', _) => {
            "text is written in double quotes: `\"like this\"`".into()
        }
        (';', _) => "a line ends by itself: leave out `;`".into(),
        ('.', Some('0'..='9')) => "a number has a digit before its point: `0.5`".into(),
        ('=', Some('=')) => "a value must stand on both sides of `==`".into(),
        ('=', _) => "left of `=` stands a name, or several with commas between".into(),
        ('{', _) => "a block `name { … }` stands at the top of a file, not inside a value".into(),
        ('-', Some('>')) => "`->` stands between the parameters of a layer and what it yields".into(),
        ('×' | '·', _) => "multiply with `*`".into(),
        ('−' | '–', _) => "subtract with `-`".into(),
        ('≤', _) => "compare with `<=`".into(),
        ('≥', _) => "compare with `>=`".into(),
        ('≠', _) => "compare with `!=`".into(),
        (c, _) if operators.contains(c) => format!("a value must stand on both sides of `{c}`"),
        _ => return None,
    })
}

/// The first word of unreadable text, or its first character.
fn first_word(found: &str) -> String {
    let word: String = found.chars().take_while(|c| c.is_alphanumeric() || *c == '_').take(24).collect();
    match (word.is_empty(), found.chars().next()) {
        (true, Some(first)) => first.to_string(),
        _ => word,
    }
}

/// E0002. A bracket that nothing closes before `end`.
pub(crate) fn never_closed(file: FileId, text: &str, open: usize, end: Option<usize>) -> Diagnostic {
    let bracket = text.as_bytes()[open] as char;
    let close = match bracket {
        '(' => ')',
        '[' => ']',
        _ => '}',
    };
    let mistake = Diagnostic::error(
        "E0002",
        format!("`{bracket}` is never closed"),
        Span::new(file, open, open + 1),
        "opened here",
    );
    let mistake = match end.and_then(|end| Some((end, *text.as_bytes().get(end)? as char))) {
        Some((end, found)) if ")]}".contains(found) => {
            mistake.label(Span::new(file, end, end + 1), format!("this `{found}` came before any `{close}`"))
        }
        Some((end, _)) => mistake
            .label(Span::new(file, end, end + 1), format!("the next item begins, and no `{close}` came")),
        None => mistake.note("the file ends before it"),
    };
    mistake.help(format!("close it with `{close}`"))
}

/// E0002. A bracket that nothing opened.
pub(crate) fn never_opened(file: FileId, text: &str, close: usize) -> Diagnostic {
    let bracket = text.as_bytes()[close] as char;
    let span = Span::new(file, close, close + 1);
    Diagnostic::error(
        "E0002",
        format!("`{bracket}` closes nothing"),
        span,
        "nothing is open here that it could close",
    )
    .help(format!("leave out this `{bracket}`, or open it before"))
}

/// E0003. Brackets in brackets, too many.
pub(crate) fn brackets_too_deep(file: FileId, start: usize) -> Diagnostic {
    let label = format!("{DEPTH_MAX} brackets are open here already");
    Diagnostic::error("E0003", "brackets nest too deep", Span::new(file, start, start + 1), label)
        .help("give the inner part a name: `name = …`")
}

/// E0003. An expression of too many parts.
pub(crate) fn expression_too_deep(span: Span) -> Diagnostic {
    let label = format!("more than {EXPRESSION_DEPTH_MAX} operators lie one above the other");
    Diagnostic::error("E0003", "expression nests too deep", span, label)
        .help("give a part of it a name: `name = …`")
}

/// E0004. A text longer than [`FILE_BYTES_MAX`].
pub(crate) fn file_too_large(file: FileId, bytes: usize) -> Diagnostic {
    let title = format!("file is too large: {bytes} bytes");
    Diagnostic::error(
        "E0004",
        title,
        Span::new(file, 0, 0),
        format!("at most {FILE_BYTES_MAX} bytes are read"),
    )
    .help("is this a `.dsp` file? data and weights are named in it by their paths")
}

/// E0005. A string that its line does not close.
pub(crate) fn string_not_closed(file: FileId, text: &str, start: usize, end: usize) -> Diagnostic {
    let span = Span::new(file, start, end);
    let mistake = Diagnostic::error("E0005", "text is not closed", span, "no `\"` follows on this line");
    match text[start..end].ends_with('\\') {
        true => mistake.help("a backslash is written `\\\\`"),
        false => mistake.help("close it with `\"`; a line end inside text is written `\\n`"),
    }
}

/// E0006. A number that no 64-bit float holds.
pub(crate) fn number_too_large(span: Span, digits: &str) -> Diagnostic {
    let shown: String = digits.chars().take(24).collect();
    Diagnostic::error("E0006", format!("number `{shown}` is too large"), span, "the largest is about 1.8e308")
}

/// E0007. Bytes below a blank.
pub(crate) fn control_characters(file: FileId, text: &str, start: usize, end: usize) -> Diagnostic {
    let byte = text.as_bytes()[start];
    let title = format!("control character U+{byte:04X} in the text");
    Diagnostic::error("E0007", title, Span::new(file, start, end), "this cannot be shown").help("delete it")
}

/// E0008. `\q` in a string.
pub(crate) fn bad_escape(span: Span, escaped: char) -> Diagnostic {
    Diagnostic::error("E0008", format!("`\\{escaped}` means nothing in text"), span, "not an escape")
        .note("the escapes are `\\\"`, `\\\\`, `\\n` and `\\t`")
        .help(format!("for a backslash write `\\\\{escaped}`"))
        .patch(span, format!("\\\\{escaped}"))
}

/// E0009. `(a + 1) => …`
pub(crate) fn lambda_needs_names(span: Span) -> Diagnostic {
    Diagnostic::error("E0009", "left of `=>` stand names only", span, "not a list of names in parentheses")
        .help("write it like `(q, k) => k <= q`")
}

/// E0010. `lr = 3e-4` in a call or block.
pub(crate) fn colon_expected(op: Span, name: &str, place: &str) -> Diagnostic {
    Diagnostic::error("E0010", format!("`{name}` is named with `:` {place}"), op, "expected `:`")
        .help(format!("write `{name}: …`; `=` binds a name at the top of a file or in a body"))
        .patch(op, ":")
}

/// E0011. `zero: stage(2)` at top level or in a body.
pub(crate) fn equals_expected(op: Span, name: &str) -> Diagnostic {
    Diagnostic::error("E0011", format!("`{name}` is bound with `=` here"), op, "expected `=`")
        .help(format!("write `{name} = …`; `:` names a field in a block or an argument in a call"))
        .patch(op, "=")
}

/// E0012. Nothing where something belongs.
pub(crate) fn missing(span: Span, what: &str, after: &str) -> Diagnostic {
    Diagnostic::error("E0012", format!("{what} is missing"), span, format!("expected {what} after {after}"))
}
