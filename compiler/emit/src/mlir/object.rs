//! A lowered module to machine code in memory, through LLVM's C interface.

use crate::error::EmitError;
use melior::ir::Module;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::Once;

/// What LLVM writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Output {
    /// Text.
    Assembly = 0,
    /// A relocatable file.
    Object = 1,
}

/// Passes over code that is vector code already: clean-up, no vectoriser.
const PASSES: &CStr =
    c"function(sroa,early-cse,instcombine<no-verify-fixpoint>,simplifycfg,loop-mssa(licm),early-cse<memssa>,\
    instcombine<no-verify-fixpoint>,simplifycfg)";

// Declared here because mlir-sys binds MLIR's C interface alone; the symbols are in the LLVM archives it links.
unsafe extern "C" {
    fn LLVMInitializeX86TargetInfo();
    fn LLVMInitializeX86Target();
    fn LLVMInitializeX86TargetMC();
    fn LLVMInitializeX86AsmPrinter();
    fn LLVMContextDispose(context: *mut c_void);
    fn LLVMDisposeModule(module: *mut c_void);
    fn LLVMDisposeMessage(message: *mut c_char);
    fn LLVMGetHostCPUName() -> *mut c_char;
    fn LLVMGetHostCPUFeatures() -> *mut c_char;
    fn LLVMGetTargetFromTriple(
        triple: *const c_char,
        target: *mut *mut c_void,
        error: *mut *mut c_char,
    ) -> c_int;
    fn LLVMCreateTargetMachine(
        target: *mut c_void,
        triple: *const c_char,
        cpu: *const c_char,
        features: *const c_char,
        level: c_int,
        relocation: c_int,
        code_model: c_int,
    ) -> *mut c_void;
    fn LLVMDisposeTargetMachine(machine: *mut c_void);
    fn LLVMCreateTargetDataLayout(machine: *mut c_void) -> *mut c_void;
    fn LLVMDisposeTargetData(layout: *mut c_void);
    fn LLVMSetTarget(module: *mut c_void, triple: *const c_char);
    fn LLVMSetModuleDataLayout(module: *mut c_void, layout: *mut c_void);
    fn LLVMCreatePassBuilderOptions() -> *mut c_void;
    fn LLVMDisposePassBuilderOptions(options: *mut c_void);
    fn LLVMRunPasses(
        module: *mut c_void,
        passes: *const c_char,
        machine: *mut c_void,
        options: *mut c_void,
    ) -> *mut c_void;
    fn LLVMGetErrorMessage(error: *mut c_void) -> *mut c_char;
    fn LLVMDisposeErrorMessage(message: *mut c_char);
    fn LLVMTargetMachineEmitToMemoryBuffer(
        machine: *mut c_void,
        module: *mut c_void,
        output: c_int,
        error: *mut *mut c_char,
        buffer: *mut *mut c_void,
    ) -> c_int;
    fn LLVMGetBufferStart(buffer: *mut c_void) -> *const c_char;
    fn LLVMGetBufferSize(buffer: *mut c_void) -> usize;
    fn LLVMDisposeMemoryBuffer(buffer: *mut c_void);
}

const TRIPLE: &CStr = c"x86_64-unknown-linux-gnu";
const LEVEL_AGGRESSIVE: c_int = 3;
const RELOCATION_PIC: c_int = 2;
const CODE_MODEL_DEFAULT: c_int = 0;

fn initialise() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: plain registrations without arguments; `Once` keeps them to one thread.
        unsafe {
            LLVMInitializeX86TargetInfo();
            LLVMInitializeX86Target();
            LLVMInitializeX86TargetMC();
            LLVMInitializeX86AsmPrinter();
        }
    });
}

/// This machine's CPU and its features, as LLVM spells them.
pub(crate) fn host_cpu() -> (String, String) {
    // SAFETY: both return a fresh NUL-terminated string that `take` frees once.
    unsafe { (take(LLVMGetHostCPUName()), take(LLVMGetHostCPUFeatures())) }
}

/// Copies a message of LLVM's and frees it.
///
/// # Safety
/// `text` is null or a NUL-terminated string that LLVM gave away.
unsafe fn take(text: *mut c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe {
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        LLVMDisposeMessage(text);
        copy
    }
}

fn error(stage: &'static str, message: String) -> EmitError {
    EmitError::Lowering { stage, message: message.lines().next().unwrap_or_default().to_string() }
}

/// Frees what it holds when dropped.
struct Owned(*mut c_void, unsafe extern "C" fn(*mut c_void));

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: made only from a pointer that LLVM gave away, together with its own function to free it.
        unsafe { (self.1)(self.0) }
    }
}

/// Machine code of a module in the `llvm` dialect.
pub(crate) fn emit_cpu(
    module: &Module,
    cpu: &str,
    features: &str,
    output: Output,
) -> Result<Vec<u8>, EmitError> {
    initialise();
    let (Ok(cpu), Ok(features)) = (CString::new(cpu), CString::new(features)) else {
        return Err(error("naming the CPU", "a NUL in its name".to_string()));
    };
    // SAFETY: every handle comes from the call just before, is checked for null where the interface may return it, and is freed
    // by `Owned` after its last use (locals drop in reverse order: buffer, machine, module, then the context they live in).
    unsafe {
        let context = mlir_sys::LLVMContextCreate();
        let _context = Owned(context.cast(), LLVMContextDispose);
        let llvm: *mut c_void =
            mlir_sys::mlirTranslateModuleToLLVMIR(module.as_operation().to_raw(), context).cast();
        if llvm.is_null() {
            return Err(error("translating to LLVM", "no reason was given".to_string()));
        }
        let _module = Owned(llvm, LLVMDisposeModule);
        let (mut target, mut message) = (null_mut(), null_mut());
        if LLVMGetTargetFromTriple(TRIPLE.as_ptr(), &mut target, &mut message) != 0 {
            return Err(error("finding the target", take(message)));
        }
        let machine = LLVMCreateTargetMachine(
            target,
            TRIPLE.as_ptr(),
            cpu.as_ptr(),
            features.as_ptr(),
            LEVEL_AGGRESSIVE,
            RELOCATION_PIC,
            CODE_MODEL_DEFAULT,
        );
        let machine = Owned(machine, LLVMDisposeTargetMachine);
        LLVMSetTarget(llvm, TRIPLE.as_ptr());
        let layout = Owned(LLVMCreateTargetDataLayout(machine.0), LLVMDisposeTargetData);
        LLVMSetModuleDataLayout(llvm, layout.0);
        let options = Owned(LLVMCreatePassBuilderOptions(), LLVMDisposePassBuilderOptions);
        let failed = LLVMRunPasses(llvm, PASSES.as_ptr(), machine.0, options.0);
        if !failed.is_null() {
            let text = LLVMGetErrorMessage(failed);
            let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
            LLVMDisposeErrorMessage(text);
            return Err(error("optimising", copy));
        }
        let mut buffer = null_mut();
        let failed =
            LLVMTargetMachineEmitToMemoryBuffer(machine.0, llvm, output as c_int, &mut message, &mut buffer);
        if failed != 0 {
            return Err(error("writing machine code", take(message)));
        }
        let buffer = Owned(buffer, LLVMDisposeMemoryBuffer);
        let bytes = std::slice::from_raw_parts(
            LLVMGetBufferStart(buffer.0).cast::<u8>(),
            LLVMGetBufferSize(buffer.0),
        );
        Ok(bytes.to_vec())
    }
}
