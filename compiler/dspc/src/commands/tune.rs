//! `dspc tune`

use std::path::Path;

use dspc_runtime::device::{Algorithms, Device, DeviceOptions, Wanted};

use super::run;
use crate::build;
use crate::cli::When;
use crate::exit::Exit;

/// Measures the matrix products of a job again, and writes what it found beside the spec or artifact.
pub fn tune(file: &Path, when: When) -> Exit {
    let artifact = match run::artifact_of(file, Wanted::Cuda, None, when) {
        Ok(artifact) => artifact,
        Err(exit) => return exit,
    };
    let lock = super::lock_beside(file);
    let options = DeviceOptions {
        threads: 1,
        cache_dir: build::cache_dir(),
        lock: lock.clone(),
        algorithms: Algorithms::Again,
    };
    match artifact.cuda(&options) {
        Ok(device) => {
            eprintln!("{}; see {}", device.describe(), lock.display());
            Exit::Success
        }
        Err(error) => super::fault(&error),
    }
}
