//! Programs that were built elsewhere on this GPU against this CPU: `DSPC_GPU_PROGRAMS` names the folder that the suite's `gpu.rs` wrote them
//! to. This binary holds no compiler, so it is small to carry. Without a folder or a GPU it says loudly that it did not run.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is the report, a line says what did not run"
)]

#[path = "support/agree.rs"]
mod agree;

use dspc_program::Family;
use dspc_runtime::artifact;
use std::path::PathBuf;

#[test]
fn programs_built_elsewhere_agree_with_the_cpu() {
    let Some(folder) = std::env::var_os("DSPC_GPU_PROGRAMS").map(PathBuf::from) else {
        eprintln!("SKIPPED: no DSPC_GPU_PROGRAMS, so no program ran on a GPU");
        return;
    };
    let Some(_card) = agree::card() else { return };
    let tolerances = std::fs::read_to_string(folder.join("tolerances.txt")).unwrap();
    for line in tolerances.lines() {
        let (name, tolerance) = line.split_once(' ').unwrap();
        eprintln!("{name}");
        let read =
            |kind: &str, family| artifact::read(&folder.join(format!("{name}.{kind}.dspx")), family).unwrap();
        let scratch = std::env::temp_dir().join(format!("dspc-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&scratch).unwrap();
        agree::agree(
            &read("cpu", Family::Cpu),
            &read("gpu", Family::Cuda),
            &scratch,
            tolerance.parse().unwrap(),
        );
        std::fs::remove_dir_all(scratch).unwrap();
    }
}
