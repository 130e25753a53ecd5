//! Reports to the terminal.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};

use dspc_source::{Colour, Diagnostic, SourceMap, render_json, render_text};

use crate::cli::{Format, When};

/// Whether reports on standard error carry colours.
pub fn colour(when: When) -> Colour {
    let auto = || std::env::var_os("NO_COLOR").is_none() && std::io::stderr().is_terminal();
    let yes = match when {
        When::Always => true,
        When::Never => false,
        When::Auto => auto(),
    };
    if yes { Colour::Ansi } else { Colour::Plain }
}

static HUSHED: AtomicBool = AtomicBool::new(false);

/// From now on this process prints no diagnostics: another rank of the same run says them.
pub fn hush() {
    HUSHED.store(true, Ordering::Relaxed);
}

/// Prints diagnostics: text to standard error, JSON to standard output.
pub fn print(diagnostics: &[Diagnostic], sources: &SourceMap, format: Format, when: When) {
    if diagnostics.is_empty() || HUSHED.load(Ordering::Relaxed) {
        return;
    }
    match format {
        Format::Text => eprintln!("{}", render_text(diagnostics, sources, colour(when)).trim_end()),
        Format::Json => print!("{}", render_json(diagnostics, sources)),
    }
}

/// A fault of the world, in the form of a report.
pub fn fault(code: &str, title: &str, remedy: &str) {
    eprintln!("error[{code}]: {title}\n  = help: {remedy}");
}
