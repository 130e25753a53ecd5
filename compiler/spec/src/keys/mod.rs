//! Every setting, defined once: its name, type, default, words, and what other trainers call it.
//!
//! The checker's known names, `explain`, the reference page and "did you mean" all come from these tables. A new setting is a
//! line in [`table`]; a function that may stand in one is a line in [`functions`].

mod explain;
mod functions;
mod optimizers;
mod reference;
mod table;

pub use explain::{explain, explainable};
pub use reference::reference_markdown;
pub(crate) use table::{BLOCKS, KEYS};

/// One setting.
pub(crate) struct Key {
    /// `train.batch`: a block's field, or `optimizer`: a setting of its own.
    pub path: &'static str,
    /// What may stand there.
    pub ty: Type,
    /// What holds if nobody says anything.
    pub fallback: Fallback,
    /// A line a user could write.
    pub example: &'static str,
    /// What it does.
    pub doc: &'static str,
    /// Its name in a DeepSpeed JSON, or empty.
    pub deepspeed: &'static str,
    /// Its name in Hugging Face's `TrainingArguments`, or empty.
    pub hf: &'static str,
}

/// What holds where nothing is written.
#[derive(Clone, Copy)]
pub(crate) enum Fallback {
    /// It must be written.
    Required,
    /// This, as it would be written.
    Text(&'static str),
    /// It follows from other settings, in these words.
    Derived(&'static str),
}

/// What may stand in a setting or an argument: a plain value, or one of some functions.
#[derive(Clone, Copy)]
pub(crate) struct Type {
    /// A plain value, if one is allowed.
    pub plain: Option<Plain>,
    /// Functions and words by name.
    pub functions: &'static [&'static Function],
}

/// The plain values.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Plain {
    /// A whole number; it may carry K, M or B.
    Whole {
        /// The least allowed.
        least: u64,
        /// The most allowed.
        most: u64,
        /// What is counted: `sequences`.
        of: &'static str,
    },
    /// A number.
    Real {
        /// The bound below.
        above: Bound,
        /// The bound above.
        below: Bound,
    },
    /// A part of a whole, from 0 up to but not including 1; it may carry `%`.
    Share,
    /// Bytes, with their unit.
    Bytes,
    /// `true` or `false`.
    Flag,
    /// A text in quotes.
    Text,
    /// Texts in brackets.
    Texts,
    /// Two numbers from 0 up to but not including 1, in parentheses.
    Shares,
    /// Calls of the type's functions, in brackets.
    Calls,
    /// A model's call.
    Model,
}

/// An end of a range.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Bound {
    /// The value itself is allowed.
    Closed(f64),
    /// The value itself is not allowed.
    Open(f64),
}

/// A function that may stand in a setting; without arguments, a word.
pub(crate) struct Function {
    /// Its name.
    pub name: &'static str,
    /// What it says.
    pub doc: &'static str,
    /// How many arguments may stand without their name.
    pub positional: usize,
    /// Its arguments.
    pub args: &'static [Argument],
}

/// An argument of a [`Function`].
pub(crate) struct Argument {
    /// Its name.
    pub name: &'static str,
    /// What may stand there.
    pub ty: Type,
    /// What holds without it; never [`Fallback::Derived`].
    pub fallback: Fallback,
    /// What it does.
    pub doc: &'static str,
    /// Its name in a DeepSpeed JSON, or empty.
    pub deepspeed: &'static str,
    /// Its name in Hugging Face's `TrainingArguments`, or empty.
    pub hf: &'static str,
}

impl Key {
    /// The key of a path.
    pub fn find(path: &str) -> Option<&'static Key> {
        KEYS.iter().find(|key| key.path == path)
    }

    /// The key that another trainer calls so: `train_batch_size`.
    pub fn find_foreign(name: &str) -> Option<&'static Key> {
        let says = |names: &str| names.split(", ").any(|n| n == name || n.rsplit('.').next() == Some(name));
        KEYS.iter().find(|key| says(key.deepspeed) || says(key.hf))
    }

    /// `train` of `train.batch`, if it stands in a block.
    pub fn block(&self) -> Option<&'static str> {
        self.path.split_once('.').map(|(block, _)| block)
    }

    /// `batch` of `train.batch`.
    pub fn name(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or(self.path)
    }

    /// The example as a line of its block or of the file.
    pub fn line(&self) -> String {
        match self.block() {
            Some(_) => format!("{}: {}", self.name(), self.example),
            None => format!("{} = {}", self.name(), self.example),
        }
    }
}

impl Function {
    /// How it is written: `stage(stage, reduce_bucket: …)`, or the bare word.
    pub fn usage(&self) -> String {
        let shown = |(i, arg): (usize, &Argument)| match (i < self.positional, arg.fallback) {
            (true, _) => arg.name.to_string(),
            (false, Fallback::Text(text)) => format!("{}: {text}", arg.name),
            (false, _) => format!("{}: …", arg.name),
        };
        match self.args {
            [] => self.name.to_string(),
            args => {
                let args: Vec<_> = args.iter().enumerate().map(shown).collect();
                format!("{}({})", self.name, args.join(", "))
            }
        }
    }
}

impl Type {
    /// What is expected, for a message: "a whole number, or `auto`".
    pub fn expected(&self) -> String {
        let mut ways: Vec<String> = self.plain.iter().map(Plain::expected).collect();
        let functions = if self.plain == Some(Plain::Calls) { &[] } else { self.functions };
        ways.extend(functions.iter().map(|f| match f.args {
            [] => format!("`{}`", f.name),
            _ => format!("`{}(…)`", f.name),
        }));
        match ways.pop() {
            Some(last) if !ways.is_empty() => format!("{} or {last}", ways.join(", ")),
            last => last.unwrap_or_default(),
        }
    }
}

impl Plain {
    /// What is expected, for a message.
    pub fn expected(&self) -> String {
        match self {
            Plain::Whole { of: "", .. } => "a whole number".into(),
            Plain::Whole { of, .. } => format!("a whole number of {of}"),
            Plain::Real { .. } => "a number".into(),
            Plain::Share => "a share such as `10%`".into(),
            Plain::Bytes => "bytes such as `8GiB`".into(),
            Plain::Flag => "`true` or `false`".into(),
            Plain::Text => "a text in quotes".into(),
            Plain::Texts => "texts in brackets such as `[\"data/*.txt\"]`".into(),
            Plain::Shares => "two numbers such as `(0.9, 0.95)`".into(),
            Plain::Calls => "groups in brackets such as `[group(\"*.bias\", weight_decay: 0)]`".into(),
            Plain::Model => "a model such as `gpt2::small()`".into(),
        }
    }

    /// Type and range, for the reference.
    pub fn describe(&self) -> String {
        match *self {
            Plain::Whole { least, of: "", most } => format!("whole number from {least} to {most}"),
            Plain::Whole { least, of, .. } => format!("whole number of {of}, at least {least}"),
            Plain::Real { above, below } => {
                match (above.describe("at least", "above"), below.describe("at most", "below")) {
                    (Some(a), Some(b)) => format!("number {a} and {b}"),
                    (Some(one), None) | (None, Some(one)) => format!("number {one}"),
                    (None, None) => "number".into(),
                }
            }
            Plain::Share => "share from 0% to below 100%".into(),
            Plain::Bytes => "bytes (kB, MB, GB, TB; KiB, MiB, GiB, TiB)".into(),
            Plain::Flag => "`true` or `false`".into(),
            Plain::Text => "text".into(),
            Plain::Texts => "list of texts".into(),
            Plain::Shares => "two numbers, each from 0 to below 1".into(),
            Plain::Calls => "list of calls".into(),
            Plain::Model => "a model's call".into(),
        }
    }
}

impl Bound {
    fn describe(self, closed: &str, open: &str) -> Option<String> {
        match self {
            Bound::Closed(x) if x.is_finite() => Some(format!("{closed} {x}")),
            Bound::Open(x) if x.is_finite() => Some(format!("{open} {x}")),
            Bound::Closed(_) | Bound::Open(_) => None,
        }
    }
}
