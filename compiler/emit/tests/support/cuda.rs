//! A GPU through its driver, found at run time: enough to load PTX and call it. Or none, and calls are written down instead, for a host
//! that has one.

use super::operand::Operand;
use super::record::Recorder;
use dspc_emit::GpuChip;
use dspc_graph::ir::DType;
use dspc_program::{GpuLaunch, TensorMap};
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;

/// The first GPU, with its context current, or the folder that stands for it.
pub struct Gpu {
    place: Place,
    /// The newest generation of ours that it runs.
    pub chip: GpuChip,
}

enum Place {
    Card(Card),
    Folder(Recorder),
}

struct Card {
    driver: libloading::Library,
}

/// Loaded PTX.
pub struct Module<'g> {
    place: Loaded<'g>,
}

enum Loaded<'g> {
    Card(&'g Card, *mut c_void),
    Folder(&'g Recorder, usize),
}

macro_rules! call {
    ($driver:expr, $name:literal, ($($ty:ty),*), ($($arg:expr),*)) => {{
        // SAFETY: the driver's own signature; pointers are to live locals of the caller.
        let code = unsafe {
            let function = $driver.get::<unsafe extern "C" fn($($ty),*) -> c_int>($name).unwrap();
            function($($arg),*)
        };
        assert_eq!(code, 0, "{}", $name);
    }};
}

/// A tensor map as the driver writes it.
#[repr(C, align(64))]
struct Encoded([u8; 128]);

const CANARY: u8 = 0xA5;
const AFTER: usize = 256;

impl Gpu {
    /// The folder in `DSPC_GPU_CASES` where there is one; else None without a driver or a GPU that we write PTX for.
    pub fn find() -> Option<Self> {
        if let Some(recorder) = Recorder::from_environment() {
            return Some(Gpu { chip: recorder.chip, place: Place::Folder(recorder) });
        }
        // SAFETY: NVIDIA's driver, which initialises nothing until asked to.
        let driver = unsafe { libloading::Library::new("libcuda.so.1").ok()? };
        // SAFETY: the driver's own signature.
        let started = unsafe { driver.get::<unsafe extern "C" fn(c_uint) -> c_int>("cuInit").ok()?(0) };
        if started != 0 {
            return None;
        }
        let (mut device, mut context) = (0 as c_int, null_mut::<c_void>());
        let (mut major, mut minor) = (0 as c_int, 0 as c_int);
        call!(driver, "cuDeviceGet", (*mut c_int, c_int), (&mut device, 0));
        call!(driver, "cuDeviceGetAttribute", (*mut c_int, c_int, c_int), (&mut major, 75, device));
        call!(driver, "cuDeviceGetAttribute", (*mut c_int, c_int, c_int), (&mut minor, 76, device));
        call!(driver, "cuDevicePrimaryCtxRetain", (*mut *mut c_void, c_int), (&mut context, device));
        call!(driver, "cuCtxSetCurrent", (*mut c_void), (context));
        let chip = match (major, minor) {
            (12.., _) => GpuChip::Sm120,
            (9, 0) => GpuChip::Sm90a,
            (8.., _) => GpuChip::Sm80,
            _ => return None,
        };
        Some(Gpu { place: Place::Card(Card { driver }), chip })
    }

    /// Whether calls are only written down: what they give then says nothing.
    pub fn only_records(&self) -> bool {
        matches!(self.place, Place::Folder(_))
    }

    /// Loads PTX.
    pub fn load(&self, ptx: &str) -> Module<'_> {
        let place = match &self.place {
            Place::Card(card) => Loaded::Card(card, card.load(ptx)),
            Place::Folder(recorder) => Loaded::Folder(recorder, recorder.load(ptx)),
        };
        Module { place }
    }
}

impl Module<'_> {
    /// Calls a kernel with operands copied in and results copied out; a canary follows each. `repeats` calls, and the best of their times in seconds.
    pub fn run(
        &self,
        launches: &[GpuLaunch],
        inputs: &[Operand],
        outputs: &[Operand],
        turn: Option<u64>,
        repeats: u32,
    ) -> (Vec<Operand>, f64) {
        match &self.place {
            Loaded::Card(card, module) => card.run(*module, launches, inputs, outputs, turn, repeats),
            Loaded::Folder(recorder, module) => {
                recorder.call(*module, launches, inputs, outputs, turn);
                let numbers =
                    |o: &Operand| o.values.iter().map(|x| if x.is_nan() { 0.0 } else { *x }).collect();
                (outputs.iter().map(|o| Operand { dtype: o.dtype, values: numbers(o) }).collect(), 0.0)
            }
        }
    }
}

impl Card {
    fn load(&self, ptx: &str) -> *mut c_void {
        let text = CString::new(ptx).unwrap();
        let mut handle = null_mut();
        call!(
            self.driver,
            "cuModuleLoadData",
            (*mut *mut c_void, *const c_char),
            (&mut handle, text.as_ptr())
        );
        handle
    }

    /// A view of an operand that lies at an address.
    fn encode(&self, map: &TensorMap, dtype: DType, at: u64) -> Encoded {
        let mut encoded = Encoded([0; 128]);
        let kind: c_uint = match dtype {
            DType::F16 => 6,
            DType::F32 => 7,
            DType::Bf16 => 9,
            DType::I32 => 4,
        };
        let steps = vec![1 as c_uint; map.dims.len()];
        let swizzle = [0, 32, 64, 128].iter().position(|&bytes| bytes == map.swizzle).unwrap() as c_uint;
        call!(
            self.driver,
            "cuTensorMapEncodeTiled",
            (
                *mut Encoded,
                c_uint,
                c_uint,
                u64,
                *const u64,
                *const u64,
                *const c_uint,
                *const c_uint,
                c_uint,
                c_uint,
                c_uint,
                c_uint
            ),
            (
                &mut encoded,
                kind,
                map.dims.len() as c_uint,
                at,
                map.dims.as_ptr(),
                map.strides.as_ptr(),
                map.tile.as_ptr(),
                steps.as_ptr(),
                0,
                swizzle,
                2,
                0
            )
        );
        encoded
    }

    fn upload(&self, bytes: &[u8]) -> u64 {
        let mut at = 0u64;
        call!(self.driver, "cuMemAlloc_v2", (*mut u64, usize), (&mut at, bytes.len()));
        let from = bytes.as_ptr().cast();
        call!(self.driver, "cuMemcpyHtoD_v2", (u64, *const c_void, usize), (at, from, bytes.len()));
        at
    }

    fn download(&self, at: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0u8; size];
        let to = bytes.as_mut_ptr().cast();
        call!(self.driver, "cuMemcpyDtoH_v2", (*mut c_void, u64, usize), (to, at, size));
        call!(self.driver, "cuMemFree_v2", (u64), (at));
        bytes
    }

    /// A function of a module, allowed this much dynamic shared memory.
    fn function(&self, module: *mut c_void, launch: &GpuLaunch) -> *mut c_void {
        let driver = &self.driver;
        let mut function = null_mut::<c_void>();
        let name = CString::new(launch.symbol.as_str()).unwrap();
        call!(
            driver,
            "cuModuleGetFunction",
            (*mut *mut c_void, *mut c_void, *const c_char),
            (&mut function, module, name.as_ptr())
        );
        let shared = launch.shared as c_int;
        call!(driver, "cuFuncSetAttribute", (*mut c_void, c_int, c_int), (function, 8, shared));
        function
    }

    fn run(
        &self,
        module: *mut c_void,
        launches: &[GpuLaunch],
        inputs: &[Operand],
        outputs: &[Operand],
        turn: Option<u64>,
        repeats: u32,
    ) -> (Vec<Operand>, f64) {
        let driver = &self.driver;
        let functions: Vec<*mut c_void> =
            launches.iter().map(|launch| self.function(module, launch)).collect();
        let padded = |o: &Operand| {
            let mut bytes = o.bytes();
            bytes.resize(bytes.len() + AFTER, CANARY);
            bytes
        };
        let mut values: Vec<u64> = inputs.iter().chain(outputs).map(|o| self.upload(&padded(o))).collect();
        values.extend(turn);
        let dtype = |operand: u32| inputs.iter().chain(outputs).nth(operand as usize).unwrap().dtype;
        let of_launch = |launch: &GpuLaunch| -> Vec<Encoded> {
            let encode = |m: &TensorMap| self.encode(m, dtype(m.operand), values[m.operand as usize]);
            launch.maps.iter().map(encode).collect()
        };
        let mut maps: Vec<Vec<Encoded>> = launches.iter().map(of_launch).collect();
        let pointers: Vec<*mut c_void> = values.iter_mut().map(|v| std::ptr::from_mut(v).cast()).collect();
        let mut best = f64::INFINITY;
        for _ in 0..repeats {
            let start = std::time::Instant::now();
            for ((launch, &function), maps) in launches.iter().zip(&functions).zip(&mut maps) {
                let mut args = pointers.clone();
                args.extend(maps.iter_mut().map(|map| std::ptr::from_mut(map).cast::<c_void>()));
                call!(
                    driver,
                    "cuLaunchKernel",
                    (
                        *mut c_void,
                        c_uint,
                        c_uint,
                        c_uint,
                        c_uint,
                        c_uint,
                        c_uint,
                        c_uint,
                        *mut c_void,
                        *mut *mut c_void,
                        *mut *mut c_void
                    ),
                    (
                        function,
                        launch.grid[0],
                        launch.grid[1],
                        launch.grid[2],
                        launch.block,
                        1,
                        1,
                        launch.shared,
                        null_mut(),
                        args.as_mut_ptr(),
                        null_mut()
                    )
                );
            }
            call!(driver, "cuCtxSynchronize", (), ());
            best = best.min(start.elapsed().as_secs_f64());
        }
        let mut results = vec![];
        for (operand, &at) in inputs.iter().chain(outputs).zip(&values) {
            let size = operand.bytes().len();
            let bytes = self.download(at, size + AFTER);
            assert!(
                bytes[size..].iter().all(|&b| b == CANARY),
                "{} writes after an operand's last element",
                launches[0].symbol
            );
            results.push(Operand::read(operand.dtype, &bytes[..size]));
        }
        (results.split_off(inputs.len()), best)
    }
}
