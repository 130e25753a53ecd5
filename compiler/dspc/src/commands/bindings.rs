//! `dspc build --emit rust`: where the crate goes, where it finds the runtime, and the files themselves.

use std::path::{Path, PathBuf};

use dspc_program::{Family, Program};
use dspc_runtime::artifact;

use crate::build::{self, Compiled};
use crate::exit::Exit;
use crate::report;

/// The artifact's folder in the crate, as its text names it.
const ARTIFACT_FOLDER: &str = "program.dspx";

/// Stands in every file of text that `dspc-emit` writes for a crate.
const MADE_BY: &str = "Made by `dspc build --emit rust`";

/// What the command line said.
pub struct Place<'a> {
    /// Where the crate goes.
    pub directory: Option<&'a Path>,
    /// The folder of `dspc-runtime`.
    pub runtime: Option<&'a Path>,
}

/// Writes the crate and says where.
pub fn write(spec: &Path, place: &Place, compiled: &Compiled) -> Result<PathBuf, Exit> {
    let runtime = runtime(place.runtime)?;
    let default = || PathBuf::from(format!("{}-bindings", spec.with_extension("").display()));
    let directory = place.directory.map_or_else(default, Path::to_path_buf);
    let files = build::bindings(cpu_program(compiled)?, &runtime)?;
    check_owned(&directory, &files)?;
    compiled.write(&directory.join(ARTIFACT_FOLDER))?;
    for (path, text) in files {
        let path = directory.join(path);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| unwritable(folder, &error))?;
        }
        artifact::replace_file(&path, text.as_bytes()).map_err(|error| super::fault(&error))?;
    }
    Ok(directory)
}

/// The absolute folder of the runtime's source: as given, or beside this compiler's own.
fn runtime(given: Option<&Path>) -> Result<String, Exit> {
    let built_from = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../runtime");
    let folder = given.map_or_else(built_from, Path::to_path_buf);
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
    let absolute = folder.canonicalize().ok().and_then(|path| path.to_str().map(String::from));
    match absolute {
        Some(path) if manifest.contains("name = \"dspc-runtime\"") => Ok(path),
        _ => {
            let title = format!("the crate `dspc-runtime` is not in `{}`", folder.display());
            report::fault("E0520", &title, "name its folder in dspc's source: `--runtime-path dspc/runtime`");
            Err(Exit::Environment)
        }
    }
}

fn cpu_program(compiled: &Compiled) -> Result<&Program, Exit> {
    if let Some((program, _)) = compiled.programs.iter().find(|(program, _)| program.family == Family::Cpu) {
        return Ok(program);
    }
    let title = "bindings run on the CPU, and no target is one";
    report::fault("E0521", title, "add one: `--target cpu`, or `--target cpu:x86-64-v3` for other machines");
    Err(Exit::InputErrors)
}

/// A crate that somebody wrote is not written over.
fn check_owned(directory: &Path, files: &[(String, String)]) -> Result<(), Exit> {
    let is_ours = |(path, _): &(String, String)| match std::fs::read_to_string(directory.join(path)) {
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        Ok(text) => text.contains(MADE_BY),
    };
    if files.iter().all(is_ours) {
        return Ok(());
    }
    let title = format!("`{}` holds another crate", directory.display());
    report::fault("E0522", &title, "name a folder of its own: `--crate-dir DIR`");
    Err(Exit::InputErrors)
}

fn unwritable(folder: &Path, error: &std::io::Error) -> Exit {
    let title = format!("cannot write `{}`: {error}", folder.display());
    report::fault("R0302", &title, "check the folder's permissions and the disk");
    Exit::Environment
}
