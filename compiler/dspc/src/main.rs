//! The `dspc` binary.

#![forbid(unsafe_code)]

use clap::Parser;

fn main() -> std::process::ExitCode {
    dspc::dispatch(&dspc::cli::Cli::parse()).into()
}
