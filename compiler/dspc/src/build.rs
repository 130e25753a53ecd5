//! From a program to an artifact: the back end, the linker, the cache.

use std::path::{Path, PathBuf};

use dspc_program::Program;
use dspc_runtime::artifact::{self, KernelFile};

use crate::cli::When;
use crate::exit::Exit;
use crate::passes::{self, Front, Lowered};
use crate::report;

/// Where built artifacts and encoded texts are kept: `$DSPC_CACHE`, or `dspc` in the user's cache folder.
pub fn cache_dir() -> PathBuf {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let user = || var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|home| home.join(".cache")));
    var("DSPC_CACHE").unwrap_or_else(|| user().unwrap_or_else(std::env::temp_dir).join("dspc"))
}

/// The artifact of a checked spec for this machine's CPU, built if the cache has none.
pub fn cached(front: &Front, characters: Option<String>, when: When) -> Result<PathBuf, Exit> {
    let Some(spec) = &front.spec else { return Err(Exit::InputErrors) };
    let lowered = passes::lower(spec, &front.sources, characters).map_err(|diagnostics| {
        report::print(&diagnostics, &front.sources, crate::cli::Format::Text, when);
        Exit::InputErrors
    })?;
    let directory = cache_dir().join("artifacts").join(format!("{}-{}.dspx", spec.name, key(&lowered)));
    let whole = artifact::read(&directory).and_then(|artifact| artifact.kernels("cpu").map(|_| ()));
    if whole.is_err() {
        write(&lowered, &["cpu".to_string()], &directory)?;
    }
    Ok(directory)
}

/// Everything that the kernels of this machine follow from.
fn key(lowered: &Lowered) -> String {
    let mut hasher = blake3::Hasher::new();
    let program = serde_json::to_vec(&lowered.program).unwrap_or_default();
    hasher.update(&program);
    for kernel in &lowered.kernels.kernels {
        hasher.update(format!("{:?}", kernel.kernel).as_bytes());
    }
    hasher.update(backend::host().as_bytes());
    hasher.finalize().to_hex()[..16].to_string()
}

/// A program and the files of its kernels: what an artifact holds.
pub struct Compiled {
    /// With its targets.
    pub program: Program,
    /// In the order of the targets.
    pub files: Vec<Vec<u8>>,
}

impl Compiled {
    /// Writes the artifact.
    pub fn write(&self, directory: &Path) -> Result<(), Exit> {
        let targets = self.program.targets.iter().zip(&self.files);
        let files: Vec<KernelFile> =
            targets.map(|(target, bytes)| KernelFile { name: &target.file, bytes }).collect();
        artifact::write(directory, &self.program, &files).map_err(|error| {
            report::fault(error.code(), &error.to_string(), &error.remedy());
            Exit::Code(error.exit_code() as u8)
        })
    }
}

/// Compiles the kernels for each target.
pub fn compiled(lowered: &Lowered, targets: &[String]) -> Result<Compiled, Exit> {
    let (targets, files) = backend::compile(lowered, targets)?.into_iter().unzip();
    Ok(Compiled { program: Program { targets, ..lowered.program.clone() }, files })
}

/// Compiles the kernels for each target and writes the artifact.
pub fn write(lowered: &Lowered, targets: &[String], directory: &Path) -> Result<(), Exit> {
    compiled(lowered, targets)?.write(directory)
}

pub use backend::{assembly, bindings, mlir, ptx};

#[cfg(feature = "compiler")]
mod backend {
    //! With MLIR.

    use std::process::Command;

    use dspc_emit::{Code, CompileTarget, CpuLevel, EmitError, GpuChip};
    use dspc_kernel::describe::Kernel;
    use dspc_program::{Program, Target};

    use crate::exit::Exit;
    use crate::passes::Lowered;
    use crate::report;

    /// The CPU that `cpu` stands for.
    pub fn host() -> String {
        let level = CpuLevel::host();
        format!("{} {}", level.name, level.features)
    }

    /// Kernel files, one a target.
    pub fn compile(lowered: &Lowered, names: &[String]) -> Result<Vec<(Target, Vec<u8>)>, Exit> {
        names.iter().map(|name| file(lowered, parse(name)?)).collect()
    }

    fn file(lowered: &Lowered, target: CompileTarget) -> Result<(Target, Vec<u8>), Exit> {
        match target {
            CompileTarget::Cpu(level) => {
                let threads = std::thread::available_parallelism().map_or(1, usize::from);
                let name = level.name.clone();
                let features =
                    level.features.split(',').filter_map(|f| f.strip_prefix('+')).map(String::from);
                let features: Vec<String> = features.collect();
                let target = [CompileTarget::Cpu(level)];
                let units = dspc_emit::compile(&named(lowered), &target, threads).map_err(failed)?;
                let objects = units.into_iter().flatten().filter_map(|unit| match unit.code {
                    Code::Object(bytes) => Some(bytes),
                    Code::Ptx(..) => None,
                });
                let library = link(&objects.collect::<Vec<_>>())?;
                Ok((described("cpu", "kernels.cpu.so", &library, &name, features), library))
            }
            CompileTarget::Gpu(chip) => {
                let text = gpu_text(lowered, chip)?;
                let file = format!("kernels.{}.ptx", chip.name());
                Ok((described(chip.name(), &file, text.as_bytes(), "", vec![]), text.into_bytes()))
            }
        }
    }

    /// One module with every kernel that the GPU emitter has: attention comes with the device.
    fn gpu_text(lowered: &Lowered, chip: GpuChip) -> Result<String, Exit> {
        let (module, _) = dspc_emit::gpu_module(&gpu_kernels(lowered)).map_err(failed)?;
        dspc_emit::compile_ptx(&module, chip).map_err(failed)
    }

    fn gpu_kernels(lowered: &Lowered) -> Vec<(String, &Kernel)> {
        let emitted = |kernel: &Kernel| matches!(kernel, Kernel::Row(_) | Kernel::ScatterAdd(_));
        named(lowered).into_iter().filter(|(_, kernel)| emitted(kernel)).collect()
    }

    fn described(name: &str, file: &str, bytes: &[u8], level: &str, features: Vec<String>) -> Target {
        let hash = blake3::hash(bytes).to_hex().to_string();
        Target { name: name.into(), file: file.into(), hash, level: level.into(), features }
    }

    fn named(lowered: &Lowered) -> Vec<(String, &Kernel)> {
        let symbols = lowered.program.kernels.iter().map(|k| k.symbol.clone());
        symbols.zip(lowered.kernels.kernels.iter().map(|k| &k.kernel)).collect()
    }

    /// `cpu`, `cpu:x86-64-v3`, `sm_90a`
    fn parse(name: &str) -> Result<CompileTarget, Exit> {
        let target = match name.strip_prefix("cpu") {
            Some("") => Ok(CompileTarget::Cpu(CpuLevel::host())),
            Some(level) => CpuLevel::named(level.trim_start_matches(':')).map(CompileTarget::Cpu),
            None => GpuChip::named(name).map(CompileTarget::Gpu),
        };
        target.map_err(|_| {
            let help = "targets are cpu (this machine's), cpu:x86-64-v2, cpu:x86-64-v3, cpu:x86-64-v4, sm_80, sm_90a and sm_120";
            report::fault("E0501", &format!("no target is called `{name}`"), help);
            Exit::InputErrors
        })
    }

    /// One shared object without dependencies, through the C compiler's driver.
    fn link(objects: &[Vec<u8>]) -> Result<Vec<u8>, Exit> {
        let linked = || -> std::io::Result<Result<Vec<u8>, String>> {
            let folder = tempfile::tempdir()?;
            let names: Vec<String> = (0..objects.len()).map(|i| format!("{i}.o")).collect();
            for (name, object) in names.iter().zip(objects) {
                std::fs::write(folder.path().join(name), object)?;
            }
            let linker = std::env::var("CC").unwrap_or_else(|_| "cc".into());
            let mut command = Command::new(&linker);
            command.current_dir(folder.path()).args([
                "-shared",
                "-nostdlib",
                "-Wl,--build-id=none",
                "-o",
                "kernels.so",
            ]);
            let output = command.args(&names).output()?;
            if !output.status.success() {
                return Ok(Err(String::from_utf8_lossy(&output.stderr).into_owned()));
            }
            Ok(Ok(std::fs::read(folder.path().join("kernels.so"))?))
        };
        let reason = match linked() {
            Ok(Ok(library)) => return Ok(library),
            Ok(Err(text)) => text,
            Err(error) => error.to_string(),
        };
        report::fault(
            "E0502",
            &format!("the kernels could not be linked: {}", reason.trim()),
            "install gcc, or name a C compiler in CC",
        );
        Err(Exit::Environment)
    }

    fn failed(error: EmitError) -> Exit {
        report::fault(
            "E0503",
            &format!("internal error in the back end: {error}"),
            "please report this with the spec that shows it",
        );
        Exit::Environment
    }

    /// The files of a crate around a program: path and text.
    pub fn bindings(program: &Program, runtime: &str) -> Result<Vec<(String, String)>, Exit> {
        Ok(dspc_emit::bindings(program, runtime))
    }

    /// The kernels as MLIR.
    pub fn mlir(lowered: &Lowered, targets: &[String]) -> Result<String, Exit> {
        let text = |name: &String| match parse(name)? {
            CompileTarget::Cpu(level) => dspc_emit::cpu_module(&named(lowered), &level).map_err(failed),
            CompileTarget::Gpu(_) => {
                dspc_emit::gpu_module(&gpu_kernels(lowered)).map(|(text, _)| text).map_err(failed)
            }
        };
        targets.iter().map(text).collect()
    }

    /// The kernels as PTX, for the GPUs among the targets; for sm_80 if there is none.
    pub fn ptx(lowered: &Lowered, targets: &[String]) -> Result<String, Exit> {
        let gpus = targets.iter().map(|name| parse(name)).collect::<Result<Vec<_>, Exit>>()?;
        let chips: Vec<GpuChip> = gpus
            .into_iter()
            .filter_map(|target| match target {
                CompileTarget::Gpu(chip) => Some(chip),
                CompileTarget::Cpu(_) => None,
            })
            .collect();
        let chips = if chips.is_empty() { vec![GpuChip::Sm80] } else { chips };
        chips.into_iter().map(|chip| gpu_text(lowered, chip)).collect()
    }

    /// The kernels as assembly of the CPU.
    pub fn assembly(lowered: &Lowered, targets: &[String]) -> Result<String, Exit> {
        let text = |name: &String| match parse(name)? {
            CompileTarget::Cpu(level) => {
                let module = dspc_emit::cpu_module(&named(lowered), &level).map_err(failed)?;
                dspc_emit::assembly_cpu(&module, &level).map_err(failed)
            }
            CompileTarget::Gpu(_) => Ok(String::new()),
        };
        targets.iter().map(text).collect()
    }
}

#[cfg(not(feature = "compiler"))]
mod backend {
    //! Without MLIR: this binary runs artifacts and builds none.

    use dspc_program::{Program, Target};

    use crate::exit::Exit;
    use crate::passes::Lowered;
    use crate::report;

    fn absent<T>() -> Result<T, Exit> {
        let help =
            "build the artifact with a full `dspc` (`dspc build FILE`) and run it here: `dspc run NAME.dspx`";
        report::fault(
            "E0505",
            "this `dspc` was built without its back end, so it cannot compile kernels",
            help,
        );
        Err(Exit::Environment)
    }

    pub fn host() -> String {
        String::new()
    }

    pub fn compile(_: &Lowered, _: &[String]) -> Result<Vec<(Target, Vec<u8>)>, Exit> {
        absent()
    }

    /// E0505
    pub fn bindings(_: &Program, _: &str) -> Result<Vec<(String, String)>, Exit> {
        absent()
    }

    /// E0505
    pub fn mlir(_: &Lowered, _: &[String]) -> Result<String, Exit> {
        absent()
    }

    /// E0505
    pub fn ptx(_: &Lowered, _: &[String]) -> Result<String, Exit> {
        absent()
    }

    /// E0505
    pub fn assembly(_: &Lowered, _: &[String]) -> Result<String, Exit> {
        absent()
    }
}
