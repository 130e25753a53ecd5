//! `dspc doctor`

use dspc_runtime::device::cuda::{Card, libraries};
use dspc_runtime::launch::nccl;
use dspc_runtime::{Error, artifact};
use serde_json::json;

use crate::build;
use crate::cli::Format;
use crate::exit::Exit;

/// One thing that was looked for.
struct Finding {
    what: &'static str,
    /// What was found, or why not.
    said: Result<String, Error>,
}

/// Says what was found where. What is missing is no fault of the command: a host without a GPU is a host too.
pub fn doctor(format: Format) -> Exit {
    let findings = [
        Finding { what: "driver", said: libraries::driver().map(driver) },
        Finding { what: "card", said: Card::find().map(card) },
        Finding { what: "kernels", said: Card::find().and_then(|card| Ok(card.targets()?.join(", "))) },
        Finding { what: "cuBLASLt", said: cublaslt() },
        Finding { what: "NCCL", said: nccl() },
        Finding { what: "launcher", said: super::ranks::found().map(|found| found.describe()) },
        Finding { what: "CPU", said: Ok(cpu()) },
        Finding { what: "cache", said: Ok(build::cache_dir().display().to_string()) },
    ];
    for Finding { what, said } in &findings {
        match (format, said) {
            (Format::Text, Ok(said)) => println!("{what:<10} {said}"),
            (Format::Text, Err(error)) => println!("{what:<10} none: {error} [{}]", error.code()),
            (Format::Json, Ok(said)) => println!("{}", json!({ "what": what, "found": true, "is": said })),
            (Format::Json, Err(error)) => println!(
                "{}",
                json!({ "what": what, "found": false, "why": error.to_string(), "code": error.code() })
            ),
        }
    }
    Exit::Success
}

fn driver(found: libraries::Found) -> String {
    let version = format!("CUDA {}.{}", found.version / 1000, found.version % 1000 / 10);
    at(version, &found)
}

fn card(card: Card) -> String {
    let (major, minor) = card.capability;
    let gib = card.bytes as f64 / f64::from(1 << 30);
    format!("{}, compute capability {major}.{minor}, {gib:.1} GiB", card.name)
}

fn cublaslt() -> Result<String, Error> {
    let found = libraries::cublaslt()?;
    let (major, rest) = (found.version / 10_000, found.version % 10_000);
    Ok(at(format!("{major}.{}.{}", rest / 100, rest % 100), &found))
}

fn nccl() -> Result<String, Error> {
    let found = nccl::library().map_err(|error| Error::Launch(Box::new(error)))?;
    Ok(format!("{}, {}", found.version(), found.file.display()))
}

fn at(version: String, found: &libraries::Found) -> String {
    match &found.path {
        Some(path) => format!("{version}, {}", path.display()),
        None => version,
    }
}

fn cpu() -> String {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let level = artifact::cpu_level().unwrap_or("another architecture than x86-64");
    format!("{level}, {threads} threads")
}
