//! Calls of kernels written to a folder on a host without a GPU, for `bench/gpu/replay.py` to make on one.
//!
//! A call is a line of `calls.jsonl`; its PTX lies beside it, each text once. Small operands and integers are written out, for these may be
//! indices; the others are drawn again. An operand of NaN alone is workspace, which nothing fills.

use super::operand::Operand;
use dspc_emit::GpuChip;
use dspc_graph::ir::DType;
use dspc_program::GpuLaunch;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;

/// A folder that calls go to.
pub struct Recorder {
    folder: PathBuf,
    /// For which PTX is written: `DSPC_GPU_CHIP`, or Hopper's.
    pub chip: GpuChip,
    texts: Mutex<Vec<String>>,
}

/// The most elements of an operand that are written out whatever they are.
const SMALL: usize = 16;

impl Recorder {
    /// Where `DSPC_GPU_CASES` names a folder.
    pub fn from_environment() -> Option<Self> {
        let folder = PathBuf::from(std::env::var_os("DSPC_GPU_CASES")?);
        fs::create_dir_all(&folder).unwrap();
        let named = std::env::var("DSPC_GPU_CHIP").unwrap_or_else(|_| "sm_90a".into());
        let chip = GpuChip::named(&named).unwrap();
        Some(Recorder { folder, chip, texts: Mutex::default() })
    }

    /// Writes PTX, once, and gives its place among those of this recorder.
    pub fn load(&self, ptx: &str) -> usize {
        let name = format!("{:016x}.ptx", fingerprint(ptx.as_bytes()));
        fs::write(self.folder.join(&name), ptx).unwrap();
        let mut texts = self.texts.lock().unwrap();
        texts.push(name);
        texts.len() - 1
    }

    /// Writes a call.
    pub fn call(
        &self,
        module: usize,
        launches: &[GpuLaunch],
        inputs: &[Operand],
        outputs: &[Operand],
        turn: Option<u64>,
    ) {
        let operands: Vec<Value> = inputs.iter().chain(outputs).map(operand).collect();
        let module = &self.texts.lock().unwrap()[module];
        let call = json!({ "module": module, "launches": launches, "operands": operands, "turn": turn });
        let path = self.folder.join("calls.jsonl");
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(format!("{call}\n").as_bytes()).unwrap();
    }
}

fn operand(operand: &Operand) -> Value {
    let (dtype, count) = (operand.dtype, operand.values.len());
    let mut written = json!({ "dtype": dtype.to_string(), "count": count });
    if operand.values.iter().all(|x| x.is_nan()) {
        written["fill"] = json!("nothing");
    } else if dtype == DType::I32 || count <= SMALL {
        let bytes: String = operand.bytes().iter().map(|b| format!("{b:02x}")).collect();
        written["bytes"] = json!(bytes);
    }
    written
}

/// FNV-1a: names need differ only where texts do.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01B3))
}
