//! Exit codes: one table, documented in `docs/exit-codes.md`. 2 is clap's, for a command line it cannot read.

use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// 0
    Success,
    /// 1: the spec or another input has errors; they were reported.
    InputErrors,
    /// 3: `fmt --check` found a difference.
    Difference,
    /// 5: the environment lacks something (a file, a linker, a device).
    Environment,
    /// 75: stopped by a signal after saving; run again with `--resume`.
    Interrupted,
    /// Another code, from the runtime's faults.
    Code(u8),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(match exit {
            Exit::Success => 0,
            Exit::InputErrors => 1,
            Exit::Difference => 3,
            Exit::Environment => 5,
            Exit::Interrupted => 75,
            Exit::Code(code) => code,
        })
    }
}
