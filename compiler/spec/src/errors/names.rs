//! Names of settings and modules.

use dspc_source::{Diagnostic, Span};

use crate::body::Name;
use crate::errors::{near, suggest};
use crate::keys::{BLOCKS, KEYS, Key};

/// E0101. No setting or field has this name.
pub(crate) struct UnknownSetting {
    pub name: Name,
    /// The block it stands in.
    pub block: Option<&'static str>,
}

impl From<UnknownSetting> for Diagnostic {
    fn from(it: UnknownSetting) -> Diagnostic {
        let word = &it.name;
        let title = match it.block {
            Some(block) => format!("`{block}` has no field `{}`", word.value),
            None => format!("there is no setting `{}`", word.value),
        };
        let d = Diagnostic::error("E0101", title, word.span, "unknown");
        if let Some(key) = Key::find_foreign(&word.value) {
            return d.note(format!("here it is called `{}`", key.path)).help(match key.block() {
                Some(block) => format!("{block} {{ {} }}", key.line()),
                None => key.line(),
            });
        }
        let here: Vec<&str> = match it.block {
            Some(_) => KEYS.iter().filter(|key| key.block() == it.block).map(Key::name).collect(),
            None => {
                let settings = KEYS.iter().filter(|key| key.block().is_none()).map(Key::name);
                settings.chain(BLOCKS.iter().map(|(block, _)| *block)).collect()
            }
        };
        if near(&word.value, here.iter().copied()).is_none()
            && let Some(key) = KEYS.iter().find(|key| key.name() == word.value)
        {
            return d.help(match key.block() {
                Some(block) => {
                    format!("`{}` is a field of `{block}`: {block} {{ {} }}", key.name(), key.line())
                }
                None => format!("`{}` is a setting of its own: {}", key.name(), key.line()),
            });
        }
        suggest(d, word, here, "known are")
    }
}

/// E0102. A setting, field or block is given twice.
pub(crate) struct SettingTwice {
    pub name: Name,
    pub first: Span,
}

impl From<SettingTwice> for Diagnostic {
    fn from(it: SettingTwice) -> Diagnostic {
        Diagnostic::error("E0102", format!("`{}` is given twice", it.name.value), it.name.span, "here again")
            .label(it.first, "first here")
            .help("keep one of the two")
    }
}

/// E0103. A block was written as `name = value`, or a setting as `name { … }`.
pub(crate) struct WrongForm {
    pub name: Name,
    /// True if it should have been a block.
    pub is_block: bool,
}

impl From<WrongForm> for Diagnostic {
    fn from(it: WrongForm) -> Diagnostic {
        let name = &it.name.value;
        let (is, help) = match (it.is_block, Key::find(name)) {
            (true, _) => ("a block of fields", format!("{name} {{ … }}")),
            (false, Some(key)) => ("one value, not a block", key.line()),
            (false, None) => ("one value, not a block", format!("{name} = …")),
        };
        Diagnostic::error("E0103", format!("`{name}` is {is}"), it.name.span, "written the other way")
            .help(help)
    }
}

/// E0104. Settings without a default are missing.
pub(crate) struct MissingSettings {
    /// Those of one block, or one setting.
    pub keys: Vec<&'static Key>,
    /// Where they should stand: the block's name, or the end of the file.
    pub place: Span,
    /// True if the block itself is there.
    pub block_written: bool,
}

impl From<MissingSettings> for Diagnostic {
    fn from(it: MissingSettings) -> Diagnostic {
        let block = it.keys.first().and_then(|key| key.block());
        let names = crate::errors::listed(it.keys.iter().map(|key| key.name()));
        let lines: Vec<_> = it.keys.iter().map(|key| to_add(key)).collect();
        let it_is = if it.keys.len() == 1 { "it has" } else { "they have" };
        let (title, label, help) = match block {
            Some(block) if it.block_written => {
                (format!("`{block}` lacks {names}"), format!("{it_is} no default"), lines.join("\n"))
            }
            Some(block) => (
                format!("there is no `{block}` block"),
                format!("{names} must be given"),
                format!("{block} {{\n  {}\n}}", lines.join("\n  ")),
            ),
            None => (format!("{names} must be given"), format!("{it_is} no default"), lines.join("\n")),
        };
        Diagnostic::error("E0104", title, it.place, label).help(help)
    }
}

/// The line to add for a key; a model comes with the module that it is of.
fn to_add(key: &Key) -> String {
    match key.path {
        "model" => format!("use std::gpt2\n{}", key.line()),
        _ => key.line(),
    }
}

/// E0109. `use` of a module that is not there.
pub(crate) struct UnknownModule {
    /// The segment that is wrong.
    pub segment: Name,
    pub known: &'static [&'static str],
}

impl From<UnknownModule> for Diagnostic {
    fn from(it: UnknownModule) -> Diagnostic {
        let title = format!("there is no module `{}`", it.segment.value);
        let d = Diagnostic::error("E0109", title, it.segment.span, "not found")
            .note("modules are those of the library: `use std::gpt2`");
        if it.known.contains(&it.segment.value.as_str()) {
            return d.help(format!("use std::{}", it.segment.value));
        }
        suggest(d, &it.segment, it.known.iter().copied(), "`std` holds")
    }
}

/// E0110. A module has no such definition.
pub(crate) struct NotInModule {
    pub name: Name,
    pub module: String,
    pub known: Vec<String>,
}

impl From<NotInModule> for Diagnostic {
    fn from(it: NotInModule) -> Diagnostic {
        let title = format!("`{}` has no layer or model `{}`", it.module, it.name.value);
        let d = Diagnostic::error("E0110", title, it.name.span, "not found");
        suggest(d, &it.name, it.known.iter().map(String::as_str), "it has")
    }
}

/// E0111. A module is named that was not brought in.
pub(crate) struct ModuleNotUsed {
    pub segment: Name,
    /// Modules brought in.
    pub used: Vec<String>,
    /// True if the library has it.
    pub in_library: bool,
}

impl From<ModuleNotUsed> for Diagnostic {
    fn from(it: ModuleNotUsed) -> Diagnostic {
        let name = &it.segment.value;
        let d = Diagnostic::error(
            "E0111",
            format!("`{name}` is not in scope"),
            it.segment.span,
            "no such module here",
        );
        if it.in_library {
            return d.help(format!("use std::{name}"));
        }
        suggest(d, &it.segment, it.used.iter().map(String::as_str), "in scope are")
    }
}

/// E0113. Two layers or models of one name, or one that has the name of something brought in by `use`.
pub(crate) struct DefinitionTwice {
    pub name: Name,
    pub first: Span,
    /// True if the first is a `use`.
    pub first_is_use: bool,
}

impl From<DefinitionTwice> for Diagnostic {
    fn from(it: DefinitionTwice) -> Diagnostic {
        let name = &it.name.value;
        let first = if it.first_is_use { "brought in here" } else { "first here" };
        Diagnostic::error("E0113", format!("`{name}` is defined twice"), it.name.span, "here again")
            .label(it.first, first)
            .help(format!("give this one another name, such as `my_{name}`"))
    }
}

/// E0114. Two parameters of a definition have one name.
pub(crate) struct ParameterTwice {
    pub name: Name,
    pub first: Span,
}

impl From<ParameterTwice> for Diagnostic {
    fn from(it: ParameterTwice) -> Diagnostic {
        Diagnostic::error(
            "E0114",
            format!("two parameters are called `{}`", it.name.value),
            it.name.span,
            "here again",
        )
        .label(it.first, "first here")
        .help("give one of them another name")
    }
}
