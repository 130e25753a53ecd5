//! From a program to an artifact: the back end, the linker, the cache.

use std::path::{Path, PathBuf};

use dspc_kernel::describe::Kernel;
use dspc_program::{Family, Program};
use dspc_runtime::artifact::{self, KernelFile};

use crate::cli::When;
use crate::exit::Exit;
use crate::fit::Device;
use crate::passes::{self, Front, Lowered};
use crate::report;

/// Widest head that the attention kernels of GPUs hold.
const HEAD_MAX: u64 = 128;

/// Where built artifacts and encoded texts are kept: `$DSPC_CACHE`, or `dspc` in the user's cache folder.
pub fn cache_dir() -> PathBuf {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let user = || var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|home| home.join(".cache")));
    var("DSPC_CACHE").unwrap_or_else(|| user().unwrap_or_else(std::env::temp_dir).join("dspc"))
}

/// The families of devices that targets belong to, each once.
pub fn families(targets: &[String]) -> Vec<Family> {
    let is_gpu = |name: &String| name.starts_with("sm_");
    let cpu = (!targets.iter().all(is_gpu)).then_some(Family::Cpu);
    cpu.into_iter().chain(targets.iter().any(is_gpu).then_some(Family::Cuda)).collect()
}

/// The family that a target belongs to.
pub fn family(target: &str) -> Family {
    if target.starts_with("sm_") { Family::Cuda } else { Family::Cpu }
}

/// Says so if no target has that name, as far as that can be known without the back end.
pub fn known(target: &str) -> Result<(), Exit> {
    let cpu = target == "cpu" || target.starts_with("cpu:");
    if cpu || ["sm_80", "sm_90a", "sm_120"].contains(&target) { Ok(()) } else { Err(unknown(target)) }
}

/// E0501
fn unknown(target: &str) -> Exit {
    let help = "targets are cpu (this machine's), cpu:x86-64-v2, cpu:x86-64-v3, cpu:x86-64-v4, sm_80, sm_90a and sm_120";
    report::fault("E0501", &format!("no target is called `{target}`"), help);
    Exit::InputErrors
}

/// What an artifact is built for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wish<'a> {
    /// The target.
    pub target: &'a str,
    /// Bytes of its device, where that is at hand.
    pub bytes: Option<u64>,
    /// Take the CPU for a program that the GPU has no kernels for.
    pub or_cpu: bool,
}

/// The artifact of a checked spec for one target, built if the cache has none, and the family that it is for.
pub fn cached(
    front: &Front,
    characters: Option<String>,
    wish: Wish,
    when: When,
) -> Result<(PathBuf, Family), Exit> {
    let Some(spec) = &front.spec else { return Err(Exit::InputErrors) };
    let Wish { target, bytes, or_cpu } = wish;
    let device = Device { family: family(target), bytes };
    let lowered = passes::lower(spec, &front.sources, characters.clone(), device).map_err(|diagnostics| {
        report::print(&diagnostics, &front.sources, crate::cli::Format::Text, when);
        Exit::InputErrors
    })?;
    if let Some(reason) = refused_by_gpu(&lowered).filter(|_| or_cpu) {
        eprintln!("note: {reason} [E0531]; this runs on the CPU");
        return cached(front, characters, Wish { target: "cpu", bytes: None, or_cpu: false }, when);
    }
    let key = key(&lowered, target);
    let directory = cache_dir().join("artifacts").join(format!("{}-{key}.dspx", spec.name));
    let is_whole = || {
        let artifact = artifact::read(&directory, family(target));
        artifact.and_then(|artifact| artifact.kernels(target).map(|_| ())).is_ok()
    };
    if !is_whole() {
        // Ranks that a launcher starts come here together: one builds, and the others find what it built.
        let _turn = lock(&directory.with_extension("lock"));
        if !is_whole() {
            write(&[lowered], &[target.to_string()], &directory)?;
        }
    }
    Ok((directory, family(target)))
}

/// Holds a file until it is dropped; where it cannot be had, whoever writes beside it says why.
fn lock(path: &Path) -> Option<std::fs::File> {
    std::fs::create_dir_all(path.parent()?).ok()?;
    let file = std::fs::File::create(path).ok()?;
    file.lock().ok().map(|()| file)
}

/// Why there are no kernels for a GPU, if it is for one.
fn refused_by_gpu(lowered: &Lowered) -> Option<String> {
    if lowered.program.family != Family::Cuda {
        return None;
    }
    lowered.kernels.kernels.iter().find_map(|named| match &named.kernel {
        Kernel::Attention(k) | Kernel::AttentionBackward(k) => (k.head_dim > HEAD_MAX).then(|| {
            format!("a GPU has no kernel for attention heads of {}, only up to {HEAD_MAX}", k.head_dim)
        }),
        Kernel::Row(_) | Kernel::ScatterAdd(_) | Kernel::Product(_) => None,
    })
}

/// Everything that the kernels of this machine follow from.
fn key(lowered: &Lowered, target: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    let program = serde_json::to_vec(&lowered.program).unwrap_or_default();
    hasher.update(&program);
    for kernel in &lowered.kernels.kernels {
        hasher.update(format!("{:?}", kernel.kernel).as_bytes());
    }
    hasher.update(target.as_bytes());
    hasher.update(backend::host().as_bytes());
    hasher.finalize().to_hex()[..16].to_string()
}

/// What an artifact holds.
pub struct Compiled {
    /// A program a family, with its targets, and the files of its kernels in their order.
    pub programs: Vec<(Program, Vec<Vec<u8>>)>,
}

impl Compiled {
    /// Writes the artifact.
    pub fn write(&self, directory: &Path) -> Result<(), Exit> {
        let targets = self.programs.iter().flat_map(|(program, files)| program.targets.iter().zip(files));
        let files: Vec<KernelFile> =
            targets.map(|(target, bytes)| KernelFile { name: &target.file, bytes }).collect();
        let programs: Vec<&Program> = self.programs.iter().map(|(program, _)| program).collect();
        artifact::write(directory, &programs, &files).map_err(|error| {
            report::fault(error.code(), &error.to_string(), &error.remedy());
            Exit::Code(error.exit_code() as u8)
        })
    }
}

/// Compiles the kernels for each target, each from the program of its family.
pub fn compiled(lowered: &[Lowered], targets: &[String]) -> Result<Compiled, Exit> {
    let program = |lowered: &Lowered| {
        if let Some(reason) = refused_by_gpu(lowered) {
            let help = "take more and narrower heads, or the CPU: `--target cpu`, `--device cpu`";
            report::fault("E0531", &reason, help);
            return Err(Exit::InputErrors);
        }
        let own: Vec<String> =
            targets.iter().filter(|t| family(t) == lowered.program.family).cloned().collect();
        let (targets, files) = backend::compile(lowered, &own)?.into_iter().unzip();
        Ok((Program { targets, ..lowered.program.clone() }, files))
    };
    Ok(Compiled { programs: lowered.iter().map(program).collect::<Result<_, Exit>>()? })
}

/// Compiles the kernels for each target and writes the artifact.
pub fn write(lowered: &[Lowered], targets: &[String], directory: &Path) -> Result<(), Exit> {
    compiled(lowered, targets)?.write(directory)
}

pub use backend::{assembly, bindings, mlir, ptx};

#[cfg(feature = "compiler")]
mod backend {
    //! With MLIR.

    use std::process::Command;

    use dspc_emit::{Code, CompileTarget, CpuLevel, EmitError, GpuChip};
    use dspc_kernel::describe::Kernel;
    use dspc_program::{Family, GpuLaunch, Program, Target};

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
                let (text, launches) = gpu_text(lowered, chip)?;
                let file = format!("kernels.{}.ptx", chip.name());
                let target = described(chip.name(), &file, text.as_bytes(), "", vec![]);
                Ok((Target { launches, ..target }, text.into_bytes()))
            }
        }
    }

    /// One module with every kernel.
    fn gpu_text(lowered: &Lowered, chip: GpuChip) -> Result<(String, Vec<Vec<GpuLaunch>>), Exit> {
        let (module, launches) = dspc_emit::gpu_module(&named(lowered), chip).map_err(failed)?;
        Ok((dspc_emit::compile_ptx(&module, chip).map_err(failed)?, launches))
    }

    fn described(name: &str, file: &str, bytes: &[u8], level: &str, features: Vec<String>) -> Target {
        let hash = blake3::hash(bytes).to_hex().to_string();
        Target { name: name.into(), file: file.into(), hash, level: level.into(), features, launches: vec![] }
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
        target.map_err(|_| super::unknown(name))
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
    pub fn mlir(lowered: &[Lowered], targets: &[String]) -> Result<String, Exit> {
        let text = |name: &String| {
            let kernels = of_family(lowered, name);
            match parse(name)? {
                CompileTarget::Cpu(level) => dspc_emit::cpu_module(&kernels, &level).map_err(failed),
                CompileTarget::Gpu(chip) => {
                    dspc_emit::gpu_module(&kernels, chip).map(|(text, _)| text).map_err(failed)
                }
            }
        };
        targets.iter().map(text).collect()
    }

    /// The kernels of the program that a target belongs to.
    fn of_family<'l>(lowered: &'l [Lowered], target: &str) -> Vec<(String, &'l Kernel)> {
        let family = super::family(target);
        lowered.iter().find(|l| l.program.family == family).map(named).unwrap_or_default()
    }

    /// The kernels as PTX, for the GPUs among the targets.
    pub fn ptx(lowered: &[Lowered], targets: &[String]) -> Result<String, Exit> {
        let text = |name: &String| match parse(name)? {
            CompileTarget::Cpu(_) => Ok(String::new()),
            CompileTarget::Gpu(chip) => {
                let cuda = lowered.iter().find(|l| l.program.family == Family::Cuda);
                cuda.map_or(Ok(String::new()), |l| gpu_text(l, chip).map(|(text, _)| text))
            }
        };
        targets.iter().map(text).collect()
    }

    /// The kernels as assembly of the CPU.
    pub fn assembly(lowered: &[Lowered], targets: &[String]) -> Result<String, Exit> {
        let text = |name: &String| match parse(name)? {
            CompileTarget::Cpu(level) => {
                let module = dspc_emit::cpu_module(&of_family(lowered, name), &level).map_err(failed)?;
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
    pub fn mlir(_: &[Lowered], _: &[String]) -> Result<String, Exit> {
        absent()
    }

    /// E0505
    pub fn ptx(_: &[Lowered], _: &[String]) -> Result<String, Exit> {
        absent()
    }

    /// E0505
    pub fn assembly(_: &[Lowered], _: &[String]) -> Result<String, Exit> {
        absent()
    }
}
