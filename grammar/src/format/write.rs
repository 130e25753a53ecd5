//! Lays documents out in lines, and puts the comments back.
//!
//! A comment stands in one of four places: after the row it shares a line with, after the bracket that opens its line,
//! on its own above the row that follows it, or above the closing bracket. One that stands inside a row and in none of
//! its brackets goes above that row.

use dspc_source::Spanned;

use super::document::{Bracket, Doc, DocKind, Row, Style};

const WIDTH_MAX: usize = 100;
const INDENT: usize = 2;

/// The text of a file.
pub(super) fn write(text: &str, comments: &[Spanned<String>], rows: &[Row]) -> String {
    let mut writer =
        Writer { text, comments, used: vec![false; comments.len()], out: String::new(), column: 0 };
    writer.rows(rows, 0, 0, text.len(), Separator::LineEnd);
    writer.end_line();
    writer.out
}

/// What stands between two rows.
#[derive(Clone, Copy, PartialEq)]
enum Separator {
    /// Blank lines of the source are kept.
    LineEnd,
    Comma,
    Nothing,
}

struct Writer<'t> {
    text: &'t str,
    comments: &'t [Spanned<String>],
    /// Which comments are written.
    used: Vec<bool>,
    out: String,
    /// Characters on the line begun.
    column: usize,
}

impl Writer<'_> {
    /// Rows one below the other, and the comments between the bytes `open` and `close`. Leaves the last line begun.
    fn rows(&mut self, rows: &[Row], indent: usize, open: usize, close: usize, separator: Separator) {
        let mut is_first = true;
        let mut written = open;
        for (index, row) in rows.iter().enumerate() {
            self.comments_between(written, row.start, indent, separator, &mut is_first);
            self.begin_row(row.start, indent, separator, &mut is_first);
            for comment in self.stray_comments(row) {
                self.push(&self.comments[comment].value.clone());
                self.used[comment] = true;
                self.new_line(indent);
            }
            let comma = usize::from(separator == Separator::Comma);
            self.doc(&row.doc, indent, comma);
            if separator == Separator::Comma {
                self.push(",");
            }
            written = row.end;
            let next = rows.get(index + 1).map_or(close, |next| next.start);
            self.comment_after(row.end, next);
        }
        self.comments_between(written, close, indent, separator, &mut is_first);
    }

    /// Comments that nothing before has written, each on a line of its own.
    fn comments_between(
        &mut self,
        start: usize,
        end: usize,
        indent: usize,
        separator: Separator,
        is_first: &mut bool,
    ) {
        let mut index = self.first_comment(start);
        while let Some(comment) =
            self.comments.get(index).filter(|comment| (comment.span.start as usize) < end)
        {
            if !self.used[index] {
                self.used[index] = true;
                self.begin_row(comment.span.start as usize, indent, separator, is_first);
                self.push(&comment.value);
            }
            index += 1;
        }
    }

    /// A new line, and an empty one before it where the source has one before the byte `at`.
    fn begin_row(&mut self, at: usize, indent: usize, separator: Separator, is_first: &mut bool) {
        let before = &self.text[..at];
        let blanks = &before[before.trim_end().len()..];
        if separator == Separator::LineEnd && !*is_first && blanks.matches('\n').count() > 1 {
            self.end_line();
            self.out.push('\n');
        }
        *is_first = false;
        self.new_line(indent);
    }

    /// The comment on the source's same line as the byte `after`, if nothing but blanks and a comma lies between.
    fn comment_after(&mut self, after: usize, limit: usize) {
        let index = self.first_comment(after);
        let Some(comment) = self.comments.get(index) else { return };
        let start = comment.span.start as usize;
        if !self.used[index] && start < limit && !self.text[after..start].contains('\n') {
            self.used[index] = true;
            self.push("  ");
            self.push(&comment.value);
        }
    }

    /// Comments inside a row that lie in none of its brackets.
    fn stray_comments(&self, row: &Row) -> Vec<usize> {
        let first = self.first_comment(row.start);
        let count = self.comments[first..]
            .iter()
            .take_while(|comment| (comment.span.start as usize) < row.end)
            .count();
        if count == 0 {
            return vec![];
        }
        let mut brackets = vec![];
        collect_brackets(&row.doc, &mut brackets);
        (first..first + count)
            .filter(|index| {
                let at = self.comments[*index].span.start as usize;
                !self.used[*index] && !brackets.iter().any(|(open, close)| (*open..*close).contains(&at))
            })
            .collect()
    }

    fn first_comment(&self, from: usize) -> usize {
        self.comments.partition_point(|comment| (comment.span.start as usize) < from)
    }

    /// A piece, of which `reserve` more columns follow on its last line.
    fn doc(&mut self, doc: &Doc, indent: usize, reserve: usize) {
        if !doc.forced && self.column + doc.width + reserve <= WIDTH_MAX {
            return self.flat(doc);
        }
        match &doc.kind {
            DocKind::Text(text) => self.push(text),
            DocKind::Seq(parts) => {
                for (index, part) in parts.iter().enumerate() {
                    let (lead, ends) = lead_of(&parts[index + 1..]);
                    self.doc(part, indent, if ends { lead } else { lead + reserve });
                }
            }
            DocKind::Bracket(bracket) => self.bracket(doc, bracket, indent),
            DocKind::Operand(value) => {
                let here = self.column + 1 + value.width + reserve <= WIDTH_MAX;
                let below = (indent + 1) * INDENT + value.width + reserve <= WIDTH_MAX;
                match !value.forced && !here && below {
                    true => self.new_line(indent + 1),
                    false => self.push(" "),
                }
                self.doc(value, indent, reserve);
            }
        }
    }

    fn bracket(&mut self, doc: &Doc, bracket: &Bracket, indent: usize) {
        if !doc.forced && (bracket.style == Style::Dims || bracket.rows.is_empty()) {
            return self.flat(doc);
        }
        let (open, close) = bracket.style.brackets();
        let separator = match bracket.style {
            Style::Body => Separator::LineEnd,
            Style::Paren => Separator::Nothing,
            Style::Round | Style::OneTuple | Style::List | Style::Dims => Separator::Comma,
        };
        self.push(open.trim_end());
        let first = bracket.rows.first().map_or(bracket.close, |row| row.start);
        self.comment_after(bracket.open + 1, first);
        self.rows(&bracket.rows, indent + 1, bracket.open, bracket.close, separator);
        self.new_line(indent);
        self.push(close.trim_start_matches([' ', ',']));
    }

    /// A piece on one line.
    fn flat(&mut self, doc: &Doc) {
        match &doc.kind {
            DocKind::Text(text) => self.push(text),
            DocKind::Seq(parts) => parts.iter().for_each(|part| self.flat(part)),
            DocKind::Operand(value) => {
                self.push(" ");
                self.flat(value);
            }
            DocKind::Bracket(bracket) => {
                let (open, close) = bracket.style.brackets();
                self.push(open);
                for (index, row) in bracket.rows.iter().enumerate() {
                    if index > 0 {
                        self.push(", ");
                    }
                    self.flat(&row.doc);
                }
                self.push(close);
            }
        }
    }

    fn push(&mut self, text: &str) {
        self.out.push_str(text);
        self.column += text.chars().count();
    }

    fn end_line(&mut self) {
        if self.column > 0 {
            self.out.push('\n');
            self.column = 0;
        }
    }

    fn new_line(&mut self, indent: usize) {
        self.end_line();
        self.push(&" ".repeat(indent * INDENT));
    }
}

/// Columns until the first place where a line may end, and whether there is one.
fn lead_of(parts: &[Doc]) -> (usize, bool) {
    let mut lead = 0;
    for part in parts {
        let (columns, ends) = lead_of_one(part);
        lead += columns;
        if ends {
            return (lead, true);
        }
    }
    (lead, false)
}

fn lead_of_one(doc: &Doc) -> (usize, bool) {
    match &doc.kind {
        DocKind::Text(_) => (doc.width, false),
        DocKind::Seq(parts) => lead_of(parts),
        DocKind::Operand(_) => (0, true),
        DocKind::Bracket(bracket) if doc.forced => (bracket.style.brackets().0.trim_end().len(), true),
        DocKind::Bracket(bracket) if bracket.style == Style::Dims || bracket.rows.is_empty() => {
            (doc.width, false)
        }
        DocKind::Bracket(bracket) => (bracket.style.brackets().0.trim_end().len(), true),
    }
}

/// The outermost brackets of a piece, as they lie in the source.
fn collect_brackets(doc: &Doc, brackets: &mut Vec<(usize, usize)>) {
    match &doc.kind {
        DocKind::Text(_) => {}
        DocKind::Seq(parts) => parts.iter().for_each(|part| collect_brackets(part, brackets)),
        DocKind::Operand(value) => collect_brackets(value, brackets),
        DocKind::Bracket(bracket) => brackets.push((bracket.open, bracket.close)),
    }
}
