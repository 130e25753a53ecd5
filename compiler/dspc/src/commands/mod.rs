//! One command, one file.

mod bindings;
mod build;
mod check;
mod doctor;
mod explain;
mod fmt;
mod generate;
mod plan;
mod ranks;
mod run;
mod tune;

use std::path::{Path, PathBuf};

use dspc_runtime::device::Wanted;

use crate::cli::{Cli, Command, DeviceName, Format};
use crate::exit::Exit;
use crate::facts::{self, Facts};
use crate::passes::{self, Front};
use crate::report;

/// Runs the command that was asked for.
pub fn dispatch(cli: &Cli) -> Exit {
    dspc_runtime::device::cuda::libraries::keep_images(crate::build::cache_dir().join("images"));
    match &cli.command {
        Command::Check { files, format } => check::check(files, *format, cli.color),
        Command::Explain { key } => explain::explain(key.as_deref()),
        Command::Fmt { files, check } => fmt::fmt(files, *check, cli.color),
        Command::Plan { file, target, ranks, format } => plan::plan(file, target, *ranks, *format, cli.color),
        Command::Build { file, output, emit, crate_dir, runtime_path, target, ranks } => {
            let place = bindings::Place { directory: crate_dir.as_deref(), runtime: runtime_path.as_deref() };
            build::build(
                file,
                output.as_deref(),
                *emit,
                &place,
                build::For { targets: target, ranks: *ranks },
                cli.color,
            )
        }
        Command::Run {
            file,
            out,
            resume,
            max_steps,
            no_save,
            data,
            device,
            locked,
            ranks,
            rank_mode,
            comm,
        } => {
            let options = run::Options {
                out,
                resume: *resume,
                max_steps: *max_steps,
                save: !no_save,
                data,
                device: wanted(*device),
                locked: *locked,
                ranks: *ranks,
                rank_mode: *rank_mode,
                comm: *comm,
            };
            run::run(file, &options, cli.color)
        }
        Command::Tune { file } => tune::tune(file, cli.color),
        Command::Doctor { format } => doctor::doctor(*format),
        Command::Generate { checkpoint, prompt, max_new_tokens, temperature, top_k, seed, device } => {
            let options = dspc_runtime::generate::Options {
                max_new_tokens: *max_new_tokens,
                temperature: *temperature,
                top_k: *top_k,
                seed: *seed,
            };
            generate::generate(checkpoint, prompt, &options, wanted(*device))
        }
    }
}

fn wanted(device: DeviceName) -> Wanted {
    match device {
        DeviceName::Auto => Wanted::Auto,
        DeviceName::Cpu => Wanted::Cpu,
        DeviceName::Cuda => Wanted::Cuda,
    }
}

/// `dspc.lock` in the folder that a spec, an artifact or a checkpoint lies in.
fn lock_beside(path: &Path) -> PathBuf {
    facts::root(path).join("dspc.lock")
}

/// A text from disk; says what is wrong and how the command ends if there is none.
fn read_text(path: &Path) -> Result<String, Exit> {
    let bytes = std::fs::read(path).map_err(|error| {
        let remedy = "check the path; `dspc` reads one `.dsp` file and the library that comes with it";
        report::fault("E0506", &format!("cannot read `{}`: {error}", path.display()), remedy);
        Exit::InputErrors
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let title = format!("`{}` is not UTF-8: byte {at} begins no character", path.display());
        report::fault("E0507", &title, "save the file as UTF-8");
        Exit::InputErrors
    })
}

/// `train` for `specs/train.dsp`.
fn stem(path: &Path) -> String {
    path.file_stem().map_or_else(|| "spec".into(), |s| s.to_string_lossy().into_owned())
}

/// Reads and checks a spec, for so many ranks if that was said.
fn front(path: &Path, ranks: Option<u64>) -> Result<(Front, Facts), Exit> {
    let text = read_text(path)?;
    let mut front = passes::read(&path.display().to_string(), &text);
    let mut facts = facts::gather(&front.tree, &facts::root(path));
    facts.data.ranks = ranks;
    passes::check(&mut front, &stem(path), &facts.data);
    Ok((front, facts))
}

/// The same, reported; a spec with errors, or whose text cannot be read, ends the command.
fn checked(path: &Path, ranks: Option<u64>, when: crate::cli::When) -> Result<(Front, Facts), Exit> {
    let (front, facts) = front(path, ranks)?;
    report::print(&front.diagnostics, &front.sources, Format::Text, when);
    if let Some(fault) = &facts.fault {
        return Err(self::fault(fault));
    }
    if front.spec.is_none() { Err(Exit::InputErrors) } else { Ok((front, facts)) }
}

/// Reports a fault of the runtime.
fn fault(error: &dspc_runtime::Error) -> Exit {
    report::fault(error.code(), &error.to_string(), &error.remedy());
    Exit::Code(error.exit_code() as u8)
}
