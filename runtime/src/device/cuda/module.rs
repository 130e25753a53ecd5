//! The kernels of a program: PTX, compiled once by the driver and kept on disk, loaded as one module.
//!
//! The image's name in the cache is a hash of all that it follows from: the PTX, the card and the driver.

use super::context::Card;
use super::fault;
use crate::error::Error;
use crate::{artifact, durable};
use cudarc::driver::{result, sys};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_void};
use std::path::{Path, PathBuf};

const LOG_BYTES: usize = 16 << 10;
/// More dynamic shared memory than this a function must ask for.
const SHARED_FREE: u32 = 48 << 10;

/// A loaded module.
pub(super) struct Module {
    handle: sys::CUmodule,
    functions: BTreeMap<String, sys::CUfunction>,
    /// The driver compiled it now, rather than finding it in the cache.
    pub(super) compiled: bool,
}

impl Module {
    /// Loads PTX, from the image in `cache` if there is one.
    ///
    /// # Errors
    /// R0702 with the driver's log, R0607 where the driver does not know this PTX. A cache that cannot be written is no error.
    pub(super) fn load(ptx: &[u8], card: &Card, cache: &Path) -> Result<Self, Error> {
        let path = image_path(ptx, card, cache);
        if let Some(handle) = read_image(&path).and_then(|image| load_image(&image).ok()) {
            return Ok(Self { handle, functions: BTreeMap::new(), compiled: false });
        }
        let image = compile(ptx, card)?;
        let handle = load_image(&image).map_err(fault::driver("loading the kernels"))?;
        _ = write_image(&path, &image);
        Ok(Self { handle, functions: BTreeMap::new(), compiled: true })
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

fn image_path(ptx: &[u8], card: &Card, cache: &Path) -> PathBuf {
    let mut hasher = blake3::Hasher::new();
    hasher.update(ptx);
    hasher.update(format!("{} {:?} {}", card.name, card.capability, card.driver).as_bytes());
    cache.join("images").join(format!("{}.cubin", &hasher.finalize().to_hex()[..32]))
}

/// An image whose hash, in front of it, is right.
fn read_image(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(path).ok()?;
    let image = bytes.get(64..)?;
    (artifact::hash(image).as_bytes() == &bytes[..64]).then(|| bytes.split_off(64))
}

fn write_image(path: &Path, image: &[u8]) -> Result<(), Error> {
    if let Some(folder) = path.parent() {
        durable::make_folder(folder)?;
    }
    durable::replace(path, &[artifact::hash(image).as_bytes(), image])
}

fn load_image(image: &[u8]) -> Result<sys::CUmodule, result::DriverError> {
    // SAFETY: a whole image: just made by the driver, or one whose hash is right.
    unsafe { result::module::load_data(image.as_ptr().cast()) }
}

/// PTX to an image for the card at hand.
fn compile(ptx: &[u8], card: &Card) -> Result<Vec<u8>, Error> {
    let text =
        CString::new(ptx).map_err(|_| Error::ImageFailed { reason: "the PTX holds a zero byte".into() })?;
    let mut log = vec![0u8; LOG_BYTES];
    let mut options = [
        sys::CUjit_option_enum::CU_JIT_ERROR_LOG_BUFFER,
        sys::CUjit_option_enum::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
    ];
    let mut values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(LOG_BYTES)];
    let mut state = std::ptr::null_mut();
    // SAFETY: options and values are of the same length and outlive the link, which ends below.
    unsafe { sys::cuLinkCreate_v2(2, options.as_mut_ptr(), values.as_mut_ptr(), &mut state) }
        .result()
        .map_err(fault::driver("beginning to compile the kernels"))?;
    let bytes = text.as_bytes_with_nul();
    let (mut image, mut size) = (std::ptr::null_mut(), 0usize);
    // SAFETY: the link was begun; the text ends with a zero and outlives it.
    let linked = unsafe {
        sys::cuLinkAddData_v2(
            state,
            sys::CUjitInputType_enum::CU_JIT_INPUT_PTX,
            bytes.as_ptr().cast_mut().cast(),
            bytes.len(),
            c"kernels".as_ptr(),
            0,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
        .result()
        .and_then(|()| sys::cuLinkComplete(state, &mut image, &mut size).result())
    };
    let made = linked.map(|()| {
        // SAFETY: the driver says where the image is and how long; it lives until the link is destroyed.
        unsafe { std::slice::from_raw_parts(image.cast::<u8>(), size) }.to_vec()
    });
    // SAFETY: begun above, ended once.
    _ = unsafe { sys::cuLinkDestroy(state) };
    made.map_err(|error| refused(error, &log, ptx, card))
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

    fn card(name: &str, driver: u64) -> Card {
        Card { name: name.into(), capability: (9, 0), bytes: 0, driver }
    }

    #[test]
    fn an_image_belongs_to_its_ptx_card_and_driver() {
        let of = |ptx: &[u8], card: &Card| image_path(ptx, card, Path::new("cache"));
        let first = of(b"a", &card("x", 13_000));
        assert_eq!(first, of(b"a", &card("x", 13_000)));
        for other in
            [of(b"b", &card("x", 13_000)), of(b"a", &card("y", 13_000)), of(b"a", &card("x", 12_080))]
        {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn a_damaged_image_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("images/x.cubin");
        write_image(&path, b"image").unwrap();
        assert_eq!(read_image(&path).unwrap(), b"image");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[66] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read_image(&path), None);
        std::fs::write(&path, b"short").unwrap();
        assert_eq!(read_image(&path), None);
    }

    #[test]
    fn the_version_of_ptx_is_found() {
        assert_eq!(ptx_version(b"//\n.version 8.4\n.target sm_90a\n").unwrap(), "8.4");
        assert_eq!(ptx_version(b"nothing"), None);
    }
}
