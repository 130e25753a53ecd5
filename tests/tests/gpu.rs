//! A program on a GPU against the same program on the CPU. Without a GPU this says loudly that it did not run.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is the report, a line says what did not run"
)]

#[path = "../../runtime/tests/support/agree.rs"]
mod agree;

use std::io::Write;
use std::path::{Path, PathBuf};

use dspc::passes;
use dspc_program::Family;
use dspc_runtime::{Artifact, artifact};
use dspc_tests::{compile_text, file};

/// Products, norms, GELU, embeddings, dropout, ties, accumulation; no attention.
const SPEC: &str = r#"
data { text: ["text.txt"]  tokenizer: "bytes"  sequence: 24 }

layer block(x: [B, T, D]) -> [B, T, D] {
  h = gelu(linear(norm(x) as ln, 4*D) as up)
  x + dropout(linear(h, D) as down, 0.1)
}

model mixer(tokens: ids[B, T], targets: ids[B, T], layers: L, width: D, vocab: V) -> loss {
  param wte: [V, D] ~ normal(0.02)
  param wpe: [T, D] ~ normal(0.01)
  x = wte[tokens] + wpe[0..T]
  repeat L as h { x = block(x) }
  cross_entropy((norm(x) as ln_f) @ transpose(wte), targets)
}

model = mixer(layers: 3, width: 64, vocab: 256)
optimizer = adamw(lr: 1e-3, weight_decay: 0.1)
train { batch: 4  micro_batch: 2  steps: 40  clip: 1.0 }
"#;

/// GPT-2 on tensor cores: attention, products with epilogues, masters in f32.
const GPT2: &str = r#"
use std::gpt2
data { text: ["text.txt"]  tokenizer: "bytes"  sequence: 24 }
model = gpt2::gpt2(layers: 2, heads: 2, width: 128, vocab: 256, context: data.sequence)
optimizer = adamw(lr: 1e-3, weight_decay: 0.1)
precision = bf16
train { batch: 4  micro_batch: 2  steps: 40  clip: 1.0 }
"#;

fn build(text: &str, family: Family, target: &str, directory: &Path) {
    let compiled = compile_text(&file("cli/commands.in/mixer.dsp"), text);
    let lowered = match family {
        Family::Cpu => compiled.lowered,
        Family::Cuda => passes::lower(compiled.spec(), &compiled.front.sources, None, family).unwrap(),
    };
    dspc::build::write(&[lowered], &[target.to_string()], directory).unwrap();
}

/// Builds a text for both devices and compares them; or, where `DSPC_GPU_PROGRAMS` names a folder, leaves the programs there for a host that
/// has a GPU and no compiler (`programs_on_gpu.rs` of the runtime).
fn agree(name: &str, text: &str, tolerance: f32) {
    let both = |folder: &Path, gpu_target: &str| -> [PathBuf; 2] {
        let paths = ["cpu", "gpu"].map(|kind| folder.join(format!("{name}.{kind}.dspx")));
        build(text, Family::Cpu, "cpu:x86-64-v3", &paths[0]);
        build(text, Family::Cuda, gpu_target, &paths[1]);
        paths
    };
    if let Some(folder) = std::env::var_os("DSPC_GPU_PROGRAMS").map(PathBuf::from) {
        let chip = std::env::var("DSPC_GPU_CHIP").unwrap_or_else(|_| "sm_90a".into());
        std::fs::create_dir_all(&folder).unwrap();
        both(&folder, &chip);
        let list = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("tolerances.txt"));
        list.unwrap().write_all(format!("{name} {tolerance}\n").as_bytes()).unwrap();
        return;
    }
    let Some(card) = agree::card() else { return };
    let folder = tempfile::tempdir().unwrap();
    let [cpu, gpu] = both(folder.path(), card.targets().unwrap()[0]);
    let read = |path: &Path, family| -> Artifact { artifact::read(path, family).unwrap() };
    agree::agree(&read(&cpu, Family::Cpu), &read(&gpu, Family::Cuda), folder.path(), tolerance);
}

#[test]
fn a_gpu_trains_as_the_cpu_does() {
    agree("mixer", SPEC, 1e-4);
}

#[test]
fn a_gpu_trains_gpt2_in_bf16_as_the_cpu_does() {
    agree("bf16", GPT2, 2e-3);
}

#[test]
fn a_gpu_trains_gpt2_in_fp16_as_the_cpu_does() {
    let scaled = "precision = fp16(loss_scale: dynamic(start: 4096, window: 10))";
    agree("fp16", &GPT2.replace("precision = bf16", scaled), 1e-3);
}

#[test]
fn a_gpu_sums_gradients_in_bf16_as_the_cpu_does() {
    agree("bf16_sums", &GPT2.replace("precision = bf16", "precision = bf16(accumulate: bf16)"), 4e-3);
}

/// Attention's products in f32 as three of TF32 each.
#[test]
fn a_gpu_trains_gpt2_in_fp32_as_the_cpu_does() {
    agree("gpt2_fp32", &GPT2.replace("precision = bf16", "precision = fp32"), 3e-4);
}

#[test]
fn a_gpu_trains_gpt2_in_tf32_as_the_cpu_does() {
    agree("gpt2_tf32", &GPT2.replace("precision = bf16", "precision = tf32"), 3e-3);
}

/// The CPU has no TF32: its products are those of single precision.
#[test]
fn a_gpu_trains_in_tf32_as_the_cpu_does() {
    agree("tf32", &format!("{SPEC}precision = tf32\n"), 3e-3);
}
