//! `dspc check`

use std::path::PathBuf;

use crate::cli::{Format, When};
use crate::exit::Exit;
use crate::report;

/// Checks every file; errors in one do not hide another's.
pub fn check(files: &[PathBuf], format: Format, when: When) -> Exit {
    let mut exit = Exit::Success;
    for file in files {
        match super::front(file, None) {
            Err(failed) => exit = failed,
            Ok((front, facts)) => {
                report::print(&front.diagnostics, &front.sources, format, when);
                if front.has_errors() {
                    exit = Exit::InputErrors;
                }
                if let Some(fault) = &facts.fault {
                    exit = super::fault(fault);
                }
            }
        }
    }
    exit
}
