//! Faults of CUDA as ours: what was called, and where it came from.

use crate::error::Error;
use cudarc::cublaslt::result::CublasError;
use cudarc::driver::result::DriverError;

/// A driver's call that failed. `call` says what it was, for people.
pub(super) fn driver(call: impl Into<String>) -> impl FnOnce(DriverError) -> Error {
    let call = call.into();
    move |error| Error::CudaFailed { call, reason: words(error), located: true }
}

/// A wait that failed: the fault lies in something that was started before.
pub(super) fn waiting(what: &str) -> impl FnOnce(DriverError) -> Error {
    move |error| Error::CudaFailed { call: what.into(), reason: words(error), located: false }
}

/// A call of cuBLASLt that failed.
pub(super) fn cublas(call: impl Into<String>) -> impl FnOnce(CublasError) -> Error {
    let call = call.into();
    move |error| Error::CudaFailed { call, reason: format!("{:?}", error.0), located: true }
}

fn words(error: DriverError) -> String {
    let text = error.error_string().ok().map(|text| text.to_string_lossy().into_owned());
    match text {
        Some(text) => format!("{text} ({:?})", error.0),
        None => format!("{:?}", error.0),
    }
}
