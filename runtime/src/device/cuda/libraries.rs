//! NVIDIA's libraries: which are here, and where. Nothing else of this folder may be reached before the library it calls was found.
//!
//! `cudarc` panics in the first call of a library that is absent, so each is probed once, here. Search order: the folders of
//! `DSPC_CUDA_LIBS`, a Python environment's `nvidia/*/lib`, `CUDA_HOME`, the loader's own path.

use crate::error::Error;
use cudarc::{cublaslt, driver};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Oldest driver, as `cuDriverGetVersion` has it: 12.0, the first with Hopper's tensor maps.
const DRIVER_MIN: u32 = 12_000;
/// Oldest cuBLASLt, as it states itself: 12.0.
const CUBLASLT_MIN: usize = 120_000;
const CUBLASLT: &str = "libcublasLt";
const CUBLASLT_FILES: [&str; 3] = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];

/// A library that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Its own number: 13000 is the driver's 13.0, 130002 is cuBLASLt's 13.0.2.
    pub version: u64,
    /// The file, where the system says.
    pub path: Option<PathBuf>,
}

/// Where the driver keeps images.
static IMAGES: OnceLock<PathBuf> = OnceLock::new();

/// Has the driver keep the images that it compiles in this folder, unless the environment names one (`CUDA_CACHE_PATH`). Heard by the first
/// call for the driver: to be called before, and before there are other threads.
pub fn keep_images(folder: PathBuf) {
    _ = IMAGES.set(folder);
}

/// The driver asks the environment for its cache when it is started.
fn name_images() {
    const NAME: &str = "CUDA_CACHE_PATH";
    let Some(folder) = IMAGES.get().filter(|_| std::env::var_os(NAME).is_none()) else { return };
    // The driver makes one folder, not those above it. Without a cache it compiles each time.
    if crate::durable::make_folder(folder).is_ok() {
        // SAFETY: `keep_images` was called, whose caller has no other threads before the driver is asked for.
        unsafe { std::env::set_var(NAME, folder) };
    }
}

/// The driver.
///
/// # Errors
/// R0606 without one, R0607 for one that is too old.
pub fn driver() -> Result<Found, Error> {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    let present = || {
        name_images();
        // SAFETY: opens NVIDIA's driver library, which does nothing before `cuInit`.
        unsafe { driver::sys::is_culib_present() }
    };
    if !*PRESENT.get_or_init(present) {
        return Err(Error::GpuMissing { reason: "there is no NVIDIA driver (libcuda.so.1)".into() });
    }
    let mut version = 0;
    // SAFETY: the library is there, every driver has this function, and the pointer is to a local.
    let code = unsafe { driver::sys::cuDriverGetVersion(&mut version) };
    if code != driver::sys::CUresult::CUDA_SUCCESS {
        return Err(Error::GpuMissing { reason: format!("the driver does not answer: {code:?}") });
    }
    let version = u32::try_from(version).unwrap_or(0);
    if version < DRIVER_MIN {
        return Err(Error::DriverOld { found: dotted(version), needed: dotted(DRIVER_MIN) });
    }
    Ok(Found { version: version.into(), path: mapped("libcuda.so") })
}

/// `13.0` for 13000
pub(super) fn dotted(version: u32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// cuBLASLt.
///
/// # Errors
/// R0608 with the places that were searched.
pub fn cublaslt() -> Result<Found, Error> {
    static FOUND: OnceLock<Result<Found, Vec<String>>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let places = Places::of_environment();
        open_cublaslt(&places).ok_or_else(|| places.searched())
    });
    found.clone().map_err(|searched| Error::LibraryMissing { name: "cuBLASLt".into(), searched })
}

fn open_cublaslt(places: &Places) -> Option<Found> {
    // Once it is loaded from its own folder, the loader gives the same library to whoever asks for its name.
    if let Some(file) = places.find(&CUBLASLT_FILES)
        // SAFETY: NVIDIA's library, whose initialisers touch nothing of ours.
        && let Ok(library) = unsafe { libloading::Library::new(&file) }
    {
        std::mem::forget(library);
    }
    // SAFETY: as above.
    if !unsafe { cublaslt::sys::is_culib_present() } {
        return None;
    }
    // SAFETY: the library is there, and every version of it has this function.
    let version = unsafe { cublaslt::sys::cublasLtGetVersion() };
    (version >= CUBLASLT_MIN).then(|| Found { version: version as u64, path: mapped(CUBLASLT) })
}

/// The first of these files in the folders that are looked in before the loader's own path, and all places that were or will be searched.
pub(crate) fn find(names: &[&str]) -> (Option<PathBuf>, Vec<String>) {
    let places = Places::of_environment();
    (places.find(names), places.searched())
}

/// The file that a loaded library came from.
fn mapped(stem: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mut paths = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    paths
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(stem)))
        .map(Path::to_path_buf)
}

/// Folders to look in before the loader's own path, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Places {
    folders: Vec<PathBuf>,
}

impl Places {
    fn of_environment() -> Self {
        Self::of(|name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
    }

    fn of(variable: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let mut folders: Vec<PathBuf> = Vec::new();
        if let Some(list) = variable("DSPC_CUDA_LIBS") {
            folders.extend(std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()));
        }
        for environment in ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|name| variable(name)) {
            folders.extend(wheels(&environment));
        }
        for toolkit in ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(|name| variable(name)) {
            folders.extend(["lib64", "lib", "targets/x86_64-linux/lib"].map(|inner| toolkit.join(inner)));
        }
        Self { folders }
    }

    fn find(&self, names: &[&str]) -> Option<PathBuf> {
        let files = self.folders.iter().flat_map(|folder| names.iter().map(|name| folder.join(name)));
        files.into_iter().find(|file| file.is_file())
    }

    fn searched(&self) -> Vec<String> {
        let own = self.folders.iter().map(|folder| folder.display().to_string());
        own.chain(["the loader's path".to_string()]).collect()
    }
}

/// `lib/python*/site-packages/nvidia/*/lib` of a Python environment, sorted.
fn wheels(environment: &Path) -> Vec<PathBuf> {
    let inside = |folder: &Path| -> Vec<PathBuf> {
        let mut entries: Vec<PathBuf> =
            std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        entries.sort();
        entries
    };
    let pythons = inside(&environment.join("lib"));
    let packages = pythons.iter().map(|python| python.join("site-packages/nvidia"));
    packages.flat_map(|nvidia| inside(&nvidia)).map(|package| package.join("lib")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_searched_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let wheel = at("venv/lib/python3.12/site-packages/nvidia/cublas/lib");
        for folder in [&at("own"), &wheel, &at("cuda/lib64")] {
            std::fs::create_dir_all(folder).unwrap();
        }
        let places = Places::of(|name| match name {
            "DSPC_CUDA_LIBS" => Some(std::env::join_paths([at("none"), at("own")]).unwrap().into()),
            "VIRTUAL_ENV" => Some(at("venv")),
            "CUDA_HOME" => Some(at("cuda")),
            _ => None,
        });
        assert_eq!(places.folders[..4], [at("none"), at("own"), wheel.clone(), at("cuda/lib64")]);
        assert_eq!(places.find(&CUBLASLT_FILES), None);
        let files =
            [at("cuda/lib64/libcublasLt.so"), wheel.join("libcublasLt.so.12"), at("own/libcublasLt.so")];
        for file in files {
            std::fs::write(&file, b"").unwrap();
            assert_eq!(places.find(&CUBLASLT_FILES), Some(file));
        }
        let newer = at("own/libcublasLt.so.13");
        std::fs::write(&newer, b"").unwrap();
        assert_eq!(places.find(&CUBLASLT_FILES), Some(newer));
        assert_eq!(places.searched().last().unwrap(), "the loader's path");
    }

    #[test]
    fn versions_for_people() {
        assert_eq!(dotted(13_000), "13.0");
        assert_eq!(dotted(12_080), "12.8");
    }
}
