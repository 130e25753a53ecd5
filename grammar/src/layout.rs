//! Layout: what must be known of a text before the rules can read it.
//!
//! Writes a shadow of the text, byte for byte as long. In it a comment is blank, a line end inside `( )` or `[ ]` is
//! blank, every bracket has its partner and none nests deeper than [`DEPTH_MAX`]. Whatever breaks those promises is
//! reported once and becomes a hole (bytes of [`HOLE`]), which the rules read as an unreadable value; a `{` that is never
//! closed ends at a [`STOP`] or with the file.
//! Knows nothing of items, fields or expressions. Linear time; no recursion.

use dspc_source::{FileId, Span, Spanned};

use crate::mistakes::{self, Mistakes};

/// Brackets inside brackets, at most.
pub(crate) const DEPTH_MAX: usize = 64;

/// The byte that holes are made of.
pub(crate) const HOLE: u8 = 1;

/// The byte in place of a line end that ends every open `{`.
pub(crate) const STOP: u8 = 2;

/// The laid-out text.
pub(crate) struct Layout {
    /// As long as the text; spans are the same in both.
    pub shadow: String,
    /// Every comment, `#` included, in order.
    pub comments: Vec<Spanned<String>>,
    /// What was given up.
    pub mistakes: Mistakes,
}

/// Something the second half of the work looks at.
#[derive(Clone, Copy, PartialEq)]
enum Mark {
    Open(u8),
    Close(u8),
    LineEnd,
    /// A word at the very start of a line: where brackets are left open, this is where they are taken to end.
    Margin,
}

/// Lays `text` out.
pub(crate) fn lay_out(file: FileId, text: &str) -> Layout {
    let mut scan = Scan {
        file,
        text,
        shadow: text.as_bytes().to_vec(),
        marks: vec![],
        comments: vec![],
        mistakes: Mistakes::default(),
    };
    scan.run();
    let Scan { mut shadow, marks, comments, mut mistakes, .. } = scan;

    let mut pairs = pair(&marks, false);
    if pairs.left_open {
        pairs = pair(&marks, true);
    }
    for (open, end) in &pairs.unclosed {
        match (shadow[*open], end) {
            (b'{', Some(margin)) => shadow[margin - 1] = STOP,
            (b'{', None) => {}
            _ => shadow[*open] = HOLE,
        }
        mistakes.add(|| mistakes::never_closed(file, text, *open, *end));
    }
    for close in &pairs.unopened {
        shadow[*close] = HOLE;
        mistakes.add(|| mistakes::never_opened(file, text, *close));
    }
    settle_lines(file, &marks, &pairs.partner, &mut shadow, &mut mistakes);

    // Only whole characters were overwritten, each by as many ASCII bytes; the other branch is never taken.
    let shadow = String::from_utf8(shadow).unwrap_or_else(|_| " ".repeat(text.len()));
    Layout { shadow, comments, mistakes }
}

/// The walk over characters: comments, strings, control characters, and the marks.
struct Scan<'t> {
    file: FileId,
    text: &'t str,
    shadow: Vec<u8>,
    marks: Vec<(usize, Mark)>,
    comments: Vec<Spanned<String>>,
    mistakes: Mistakes,
}

impl Scan<'_> {
    fn run(&mut self) {
        let bytes = self.text.as_bytes();
        let mut at = 0;
        if self.text.starts_with('\u{feff}') {
            self.shadow[..3].fill(b' ');
            at = 3;
        }
        let mut line_start = at;
        while at < bytes.len() {
            match bytes[at] {
                b'#' => at = self.comment(at),
                b'"' => at = self.string(at),
                b'\n' => {
                    self.marks.push((at, Mark::LineEnd));
                    at += 1;
                    line_start = at;
                }
                b'\r' => {
                    self.shadow[at] = b' ';
                    at += 1;
                }
                open @ (b'(' | b'[' | b'{') => {
                    self.marks.push((at, Mark::Open(open)));
                    at += 1;
                }
                close @ (b')' | b']' | b'}') => {
                    self.marks.push((at, Mark::Close(close)));
                    at += 1;
                }
                b'a'..=b'z' | b'A'..=b'Z' | b'_' if at == line_start => {
                    self.marks.push((at, Mark::Margin));
                    at += 1;
                }
                control if (control < b' ' && control != b'\t') || control == 0x7f => at = self.controls(at),
                _ => at += 1,
            }
        }
    }

    /// Blanks a comment; returns where its line ends.
    fn comment(&mut self, start: usize) -> usize {
        let end = line_end(self.text, start);
        self.shadow[start..end].fill(b' ');
        let text = self.text[start..end].trim_end();
        let span = Span::new(self.file, start, start + text.len());
        self.comments.push(Spanned::new(text.to_owned(), span));
        end
    }

    /// Steps over a string; one that its line does not close becomes a hole.
    fn string(&mut self, start: usize) -> usize {
        let bytes = self.text.as_bytes();
        let mut at = start + 1;
        while at < bytes.len() && bytes[at] != b'\n' {
            match bytes[at] {
                b'"' => return at + 1,
                b'\\' if bytes.get(at + 1).is_some_and(|next| *next != b'\n') => at += 2,
                _ => at += 1,
            }
        }
        let end = start + unclosed_string(&self.text[start..at]);
        self.shadow[start..end].fill(HOLE);
        self.mistakes.add(|| mistakes::string_not_closed(self.file, self.text, start, end));
        end
    }

    /// Makes a hole of a run of control characters.
    fn controls(&mut self, start: usize) -> usize {
        let run = self.text[start..]
            .bytes()
            .take_while(|b| (*b < b' ' && !b"\t\r\n".contains(b)) || *b == 0x7f)
            .count();
        self.shadow[start..start + run].fill(HOLE);
        self.mistakes.add(|| mistakes::control_characters(self.file, self.text, start, start + run));
        start + run
    }
}

/// How much of the rest of a line an unclosed string takes: all but the commas and closing brackets at the end that
/// nothing in it opens. They are most likely what should have followed the string.
fn unclosed_string(rest: &str) -> usize {
    let mut surplus = [(')', '('), (']', '['), ('}', '{')]
        .map(|(close, open)| (close, rest.matches(close).count().saturating_sub(rest.matches(open).count())));
    let mut kept = rest.trim_end();
    while let Some(last) = kept.chars().next_back() {
        let closes = surplus.iter_mut().find(|(close, count)| *close == last && *count > 0);
        match (last, closes) {
            (',', _) => {}
            (_, Some((_, count))) => *count -= 1,
            _ => break,
        }
        kept = kept[..kept.len() - 1].trim_end();
    }
    kept.len()
}

fn line_end(text: &str, start: usize) -> usize {
    text[start..].find('\n').map_or(text.len(), |length| start + length)
}

/// Which bracket closes which.
struct Pairs {
    /// For each mark, the index of its partner.
    partner: Vec<Option<usize>>,
    /// Positions of brackets that nothing closes, and where that became certain, if before the end.
    unclosed: Vec<(usize, Option<usize>)>,
    /// Positions of brackets that nothing opened.
    unopened: Vec<usize>,
    /// Some bracket was still open at the end.
    left_open: bool,
}

/// The brackets open at some point, and how many of each kind lie above the last open `{`: a look instead of a search,
/// which keeps [`pair`] linear.
struct Open<'m> {
    marks: &'m [(usize, Mark)],
    indices: Vec<usize>,
    /// One entry for the top and one for each open `{`: open `(` and open `[` above it.
    counts: Vec<[usize; 2]>,
}

impl Open<'_> {
    fn push(&mut self, index: usize, bracket: u8) {
        self.indices.push(index);
        match (bracket, self.counts.last_mut()) {
            (b'(', Some(counts)) => counts[0] += 1,
            (b'[', Some(counts)) => counts[1] += 1,
            _ => self.counts.push([0, 0]),
        }
    }

    fn pop(&mut self) -> Option<usize> {
        let index = self.indices.pop()?;
        match (self.marks[index].1, self.counts.last_mut()) {
            (Mark::Open(b'('), Some(counts)) => counts[0] -= 1,
            (Mark::Open(b'['), Some(counts)) => counts[1] -= 1,
            _ => drop(self.counts.pop()),
        }
        Some(index)
    }

    /// Whether `close` may close something: a `}` closes over forgotten `(` and `[`; the others never over a `{`.
    fn has_partner(&self, close: u8) -> bool {
        match (close, self.counts.last()) {
            (b')', Some(counts)) => counts[0] > 0,
            (b']', Some(counts)) => counts[1] > 0,
            _ => self.counts.len() > 1,
        }
    }
}

/// Pairs brackets.
///
/// With `margins`, a word at the start of a line ends whatever is open: the text is known to lack a closing bracket,
/// and what is written at the margin is most likely the next item.
fn pair(marks: &[(usize, Mark)], margins: bool) -> Pairs {
    let mut pairs =
        Pairs { partner: vec![None; marks.len()], unclosed: vec![], unopened: vec![], left_open: false };
    let mut open = Open { marks, indices: vec![], counts: vec![[0, 0]] };
    for (index, (at, mark)) in marks.iter().enumerate() {
        match mark {
            Mark::Open(bracket) => open.push(index, *bracket),
            Mark::Close(close) if open.has_partner(*close) => {
                let wanted = Mark::Open(opener_of(*close));
                while let Some(opener) = open.pop() {
                    if marks[opener].1 == wanted {
                        pairs.partner[opener] = Some(index);
                        pairs.partner[index] = Some(opener);
                        break;
                    }
                    pairs.unclosed.push((marks[opener].0, Some(*at)));
                }
            }
            Mark::Close(_) => pairs.unopened.push(*at),
            Mark::Margin if margins => {
                while let Some(opener) = open.pop() {
                    pairs.unclosed.push((marks[opener].0, Some(*at)));
                }
            }
            Mark::Margin | Mark::LineEnd => {}
        }
    }
    pairs.left_open = !open.indices.is_empty();
    while let Some(opener) = open.pop() {
        pairs.unclosed.push((marks[opener].0, None));
    }
    pairs.unclosed.sort_unstable();
    pairs
}

fn opener_of(close: u8) -> u8 {
    match close {
        b')' => b'(',
        b']' => b'[',
        _ => b'{',
    }
}

/// Blanks the line ends inside `( )` and `[ ]`, and makes holes of what nests too deep.
fn settle_lines(
    file: FileId,
    marks: &[(usize, Mark)],
    partner: &[Option<usize>],
    shadow: &mut [u8],
    mistakes: &mut Mistakes,
) {
    let mut open: Vec<u8> = vec![];
    let mut index = 0;
    while index < marks.len() {
        let (at, mark) = marks[index];
        match (mark, partner[index]) {
            (Mark::Open(_), Some(close)) if open.len() == DEPTH_MAX => {
                let end = marks[close].0 + 1;
                shadow[at..end].fill(HOLE);
                mistakes.add(|| mistakes::brackets_too_deep(file, at));
                index = close;
            }
            (Mark::Open(bracket), Some(_)) => open.push(bracket),
            (Mark::Open(b'{'), None) if open.len() == DEPTH_MAX => shadow[at] = HOLE,
            (Mark::Open(b'{'), None) => open.push(b'{'),
            (Mark::Margin, _) if at > 0 && shadow[at - 1] == STOP => open.clear(),
            (Mark::Close(_), Some(_)) => drop(open.pop()),
            (Mark::LineEnd, _) if matches!(open.last(), Some(b'(' | b'[')) => shadow[at] = b' ',
            _ => {}
        }
        index += 1;
    }
}
