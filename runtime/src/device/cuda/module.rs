//! The kernels of a program: PTX, loaded as one module.
//!
//! The driver compiles it once, and keeps the image in its own cache, under all that it follows from. Its linker (`cuLink…`) would give us the
//! image to keep; but it compiles for linking with other modules, and so without moving registers between warpgroups (`setmaxnreg`) and with
//! their products one at a time: attention takes twice as long.

use super::context::Card;
use super::fault;
use crate::error::Error;
use cudarc::driver::{result, sys};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_void};
use std::time::{Duration, Instant};

const LOG_BYTES: usize = 16 << 10;
/// More dynamic shared memory than this a function must ask for.
const SHARED_FREE: u32 = 48 << 10;

/// A loaded module.
pub(super) struct Module {
    handle: sys::CUmodule,
    functions: BTreeMap<String, sys::CUfunction>,
    /// How long loading took: seconds where the driver compiled it, milliseconds where it was in its cache.
    pub(super) took: Duration,
}

impl Module {
    /// Loads PTX, which the driver compiles, or finds in its cache.
    ///
    /// # Errors
    /// R0702 with the driver's log, R0607 where the driver does not know this PTX.
    pub(super) fn load(ptx: &[u8], card: &Card) -> Result<Self, Error> {
        let text = CString::new(ptx)
            .map_err(|_| Error::ImageFailed { reason: "the PTX holds a zero byte".into() })?;
        let mut log = vec![0u8; LOG_BYTES];
        let begun = Instant::now();
        let handle = load(&text, &mut log).map_err(|error| refused(error, &log, ptx, card))?;
        Ok(Self { handle, functions: BTreeMap::new(), took: begun.elapsed() })
    }

    /// A function, allowed this much dynamic shared memory.
    ///
    /// # Errors
    /// R0702 for a name that the module lacks.
    pub(super) fn function(&mut self, symbol: &str, shared: u32) -> Result<sys::CUfunction, Error> {
        let function = match self.functions.get(symbol) {
            Some(&function) => function,
            None => {
                let missing =
                    |reason: String| Error::ImageFailed { reason: format!("no kernel `{symbol}`: {reason}") };
                let name = CString::new(symbol).map_err(|e| missing(e.to_string()))?;
                // SAFETY: the module is loaded.
                let function = unsafe { result::module::get_function(self.handle, name) }
                    .map_err(|e| missing(format!("{:?}", e.0)))?;
                self.functions.insert(symbol.into(), function);
                function
            }
        };
        if shared > SHARED_FREE {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let call = format!("giving kernel `{symbol}` {shared} bytes of shared memory");
            // SAFETY: the function belongs to the loaded module.
            unsafe { result::function::set_function_attribute(function, attribute, shared as i32) }
                .map_err(fault::driver(call))?;
        }
        Ok(function)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded by `load`, unloaded once, after all work has ended.
        _ = unsafe { result::module::unload(self.handle) };
    }
}

/// PTX to functions of the card at hand.
fn load(text: &CStr, log: &mut [u8]) -> Result<sys::CUmodule, result::DriverError> {
    let mut options = [
        sys::CUjit_option_enum::CU_JIT_ERROR_LOG_BUFFER,
        sys::CUjit_option_enum::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
    ];
    let mut values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(log.len())];
    let mut handle = std::ptr::null_mut();
    let (count, options, values) = (options.len() as u32, options.as_mut_ptr(), values.as_mut_ptr());
    // SAFETY: options and values are of the same length; they, the log and the text, which ends with a zero, outlive the call.
    unsafe { sys::cuModuleLoadDataEx(&mut handle, text.as_ptr().cast(), count, options, values) }.result()?;
    Ok(handle)
}

fn refused(error: result::DriverError, log: &[u8], ptx: &[u8], card: &Card) -> Error {
    if error.0 == sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION {
        let needed = ptx_version(ptx).map_or("a newer one".into(), |version| format!("PTX {version}"));
        let found = super::libraries::dotted(card.driver as u32);
        return Error::DriverOld { found, needed };
    }
    let log = CStr::from_bytes_until_nul(log).map_or(String::new(), |log| log.to_string_lossy().into_owned());
    let log =
        log.lines().map(str::trim).filter(|line| !line.is_empty()).take(4).collect::<Vec<_>>().join("; ");
    Error::ImageFailed { reason: format!("{:?}: {log}", error.0).trim_end_matches([':', ' ']).into() }
}

/// `8.4`, from `.version 8.4`
fn ptx_version(ptx: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(&ptx[..ptx.len().min(4096)]).into_owned();
    let line = text.lines().find_map(|line| line.trim().strip_prefix(".version"))?;
    Some(line.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_ptx_is_found() {
        assert_eq!(ptx_version(b"//\n.version 8.4\n.target sm_90a\n").unwrap(), "8.4");
        assert_eq!(ptx_version(b"nothing"), None);
    }
}
