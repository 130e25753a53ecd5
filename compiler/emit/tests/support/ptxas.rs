//! NVIDIA's assembler.

use dspc_emit::GpuChip;
use std::path::PathBuf;
use std::process::Command;

fn ptxas() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("DSPC_PTXAS") {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join("ptxas")).find(|file| file.is_file())
}

/// Assembles PTX; none without `ptxas` in `DSPC_PTXAS` or PATH. Gives what `ptxas -v` says of it.
pub fn assemble(ptx: &str, chip: GpuChip) -> Option<String> {
    let ptxas = ptxas()?;
    let folder = tempfile::tempdir().unwrap();
    let (text, out) = (folder.path().join("k.ptx"), folder.path().join("k.cubin"));
    std::fs::write(&text, ptx).unwrap();
    let result =
        Command::new(ptxas).arg("-v").arg("-arch").arg(chip.name()).arg("-o").args([&out, &text]).output();
    let result = result.unwrap();
    let said = String::from_utf8_lossy(&result.stderr).into_owned();
    assert!(result.status.success(), "{said}\n{ptx}");
    Some(said)
}
