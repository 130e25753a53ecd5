//! Compiles kernels, links them in a temporary folder and calls them.

use super::operand::Operand;
use dspc_emit::{CpuLevel, compile_cpu, cpu_module};
use dspc_graph::ir::DType;
use dspc_kernel::describe::Kernel;
use std::ffi::c_void;
use std::process::Command;

/// Loaded kernels.
pub struct Native {
    library: libloading::Library,
    _folder: tempfile::TempDir,
}

type Entry = unsafe extern "C" fn(*const *mut c_void, i64, i64);

impl Native {
    /// Compiles for a level, links, loads.
    pub fn new(kernels: &[(String, &Kernel)], level: &CpuLevel) -> Self {
        let text = cpu_module(kernels, level).unwrap();
        let object = compile_cpu(&text, level).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let folder = tempfile::tempdir().unwrap();
        let (object_path, path) = (folder.path().join("k.o"), folder.path().join("k.so"));
        std::fs::write(&object_path, object).unwrap();
        let linked =
            Command::new("cc").arg("-shared").arg("-o").args([&path, &object_path]).status().unwrap();
        assert!(linked.success());
        // SAFETY: our own code, without initialisers.
        let library = unsafe { libloading::Library::new(&path).unwrap() };
        Native { library, _folder: folder }
    }

    /// Calls a kernel over a run of items.
    pub fn call(&self, symbol: &str, args: &[*mut c_void], begin: u64, end: u64) {
        // SAFETY: the symbol is a kernel, and the test hands it operands as described.
        unsafe {
            let entry = self.library.get::<Entry>(symbol).unwrap();
            entry(args.as_ptr(), begin as i64, end as i64);
        }
    }

    /// Calls with operands copied in and results copied out; `outputs` hold what is there before. Items are split at `cuts`. Every operand
    /// begins at an odd multiple of its element's size and is followed by a canary.
    pub fn run(
        &self,
        symbol: &str,
        inputs: &[Operand],
        outputs: &[Operand],
        turn: Option<u64>,
        cuts: &[u64],
    ) -> Vec<Operand> {
        let buffers: Vec<_> = inputs.iter().chain(outputs).map(Buffer::of).collect();
        let mut args: Vec<*mut c_void> = buffers.iter().map(Buffer::pointer).collect();
        if let Some(turn) = turn {
            args.push(turn as *mut c_void);
        }
        for pair in cuts.windows(2) {
            self.call(symbol, &args, pair[0], pair[1]);
        }
        buffers[inputs.len()..].iter().map(Buffer::read).collect()
    }
}

const CANARY: u8 = 0xA5;
const AFTER: usize = 64;

struct Buffer {
    words: Vec<u64>,
    offset: usize,
    size: usize,
    dtype: DType,
}

impl Buffer {
    fn of(operand: &Operand) -> Self {
        let bytes = operand.bytes();
        let offset = operand.dtype.bytes() as usize;
        let mut words = vec![0u64; (offset + bytes.len() + AFTER).div_ceil(8)];
        let room = bytes_of(&mut words);
        room.fill(CANARY);
        room[offset..offset + bytes.len()].copy_from_slice(&bytes);
        Buffer { words, offset, size: bytes.len(), dtype: operand.dtype }
    }

    fn pointer(&self) -> *mut c_void {
        // Kernels write through it, so it is taken from the allocation and not from a shared slice.
        (self.words.as_ptr() as *mut u8).wrapping_add(self.offset).cast()
    }

    fn read(&self) -> Operand {
        // SAFETY: the vector's own memory, as bytes.
        let bytes =
            unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast::<u8>(), self.words.len() * 8) };
        assert!(bytes[..self.offset].iter().all(|&b| b == CANARY), "written before the first element");
        assert!(
            bytes[self.offset + self.size..].iter().all(|&b| b == CANARY),
            "written after the last element"
        );
        Operand::read(self.dtype, &bytes[self.offset..self.offset + self.size])
    }
}

fn bytes_of(words: &mut [u64]) -> &mut [u8] {
    // SAFETY: any bytes are valid words and the other way round.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len() * 8) }
}
