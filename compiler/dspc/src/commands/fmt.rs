//! `dspc fmt`

use std::io::Read;
use std::path::{Path, PathBuf};

use dspc_source::SourceMap;

use crate::cli::{Format, When};
use crate::exit::Exit;
use crate::report;

/// Formats files in place, or says which are not formatted.
pub fn fmt(files: &[PathBuf], check: bool, when: When) -> Exit {
    let mut exit = Exit::Success;
    for file in files {
        let result = if file == Path::new("-") { standard_input(when) } else { one(file, check, when) };
        match result {
            Ok(Exit::Success) => {}
            Ok(other) if exit == Exit::Success => exit = other,
            Ok(_) => {}
            Err(failed) => exit = failed,
        }
    }
    exit
}

fn one(path: &Path, check: bool, when: When) -> Result<Exit, Exit> {
    let text = super::read_text(path)?;
    let formatted = format(&path.display().to_string(), &text, when)?;
    if formatted == text {
        return Ok(Exit::Success);
    }
    if check {
        eprintln!("{} is not formatted; `dspc fmt {}` does it", path.display(), path.display());
        return Ok(Exit::Difference);
    }
    dspc_runtime::artifact::replace_file(path, formatted.as_bytes()).map_err(|error| super::fault(&error))?;
    Ok(Exit::Success)
}

fn standard_input(when: When) -> Result<Exit, Exit> {
    let mut text = String::new();
    if let Err(error) = std::io::stdin().read_to_string(&mut text) {
        report::fault("E0506", &format!("cannot read standard input: {error}"), "pipe a spec in");
        return Err(Exit::InputErrors);
    }
    print!("{}", format("standard input", &text, when)?);
    Ok(Exit::Success)
}

fn format(name: &str, text: &str, when: When) -> Result<String, Exit> {
    dspc_grammar::format(text).map_err(|diagnostics| {
        let mut sources = SourceMap::default();
        sources.add(name, text);
        report::print(&diagnostics, &sources, Format::Text, when);
        Exit::InputErrors
    })
}
