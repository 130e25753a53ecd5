//! A program on a GPU against the same program on the CPU. Without a GPU this says loudly that it did not run.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is the report, a line says what did not run"
)]

use std::path::Path;

use dspc::passes;
use dspc_program::Family;
use dspc_runtime::device::cuda::{Card, libraries};
use dspc_runtime::device::{Algorithms, DeviceOptions};
use dspc_runtime::{Artifact, Session, artifact};
use dspc_tests::{compile_text, file, hash};

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

fn card() -> Option<Card> {
    let found = Card::find().and_then(|card| libraries::cublaslt().map(|_| card));
    found.inspect_err(|error| eprintln!("SKIPPED: {error}")).ok()
}

fn built(text: &str, family: Family, target: &str, folder: &Path) -> Artifact {
    let compiled = compile_text(&file("cli/commands.in/mixer.dsp"), text);
    let lowered = match family {
        Family::Cpu => compiled.lowered,
        Family::Cuda => passes::lower(compiled.spec(), &compiled.front.sources, None, family).unwrap(),
    };
    let directory = folder.join(format!("{target}.dspx"));
    dspc::build::write(&[lowered], &[target.to_string()], &directory).unwrap();
    artifact::read(&directory, family).unwrap()
}

fn ids(step: u64) -> (Vec<i32>, Vec<i32>) {
    let id = |i: u64| (hash(i, step) % 256) as i32;
    let target = |i: u64| if i % 7 == 3 { -100 } else { id(i + 1) };
    ((0..4 * 24).map(id).collect(), (0..4 * 24).map(target).collect())
}

/// Steps on both devices: losses within `tolerance` of each other, relative; and two sessions on the GPU with the same bits.
fn agree(text: &str, tolerance: f32) {
    let Some(card) = card() else { return };
    let folder = tempfile::tempdir().unwrap();
    let target = card.targets().unwrap()[0];
    let options = DeviceOptions {
        threads: 1,
        cache_dir: folder.path().into(),
        lock: folder.path().join("dspc.lock"),
        algorithms: Algorithms::Measure,
    };
    let cpu = built(text, Family::Cpu, "cpu", folder.path());
    let gpu = built(text, Family::Cuda, target, folder.path());
    let mut cpu = Session::new(&cpu.program, cpu.cpu(2).unwrap()).unwrap();
    let mut gpus = [0, 1].map(|_| Session::new(&gpu.program, gpu.cuda(&options).unwrap()).unwrap());
    for step in 0..40 {
        let (tokens, targets) = ids(step % 5);
        let want = cpu.step(&tokens, &targets).unwrap();
        let got = gpus.each_mut().map(|session| session.step(&tokens, &targets).unwrap());
        assert_eq!(got[0], got[1], "the same bits on the same card");
        let close = |got: f32, want: f32, tolerance: f32, what: &str| {
            assert!((got - want).abs() <= tolerance * want.abs(), "step {step}: {what} {got}, not {want}");
        };
        close(got[0].loss, want.loss, tolerance, "loss");
        close(got[0].grad_norm.unwrap(), want.grad_norm.unwrap(), 10.0 * tolerance, "norm");
        assert!(got[0].finite && got[0].learning_rate == want.learning_rate);
        assert_eq!(got[0].loss_scale, want.loss_scale, "step {step}");
    }
    let (tokens, targets) = ids(0);
    let half = tokens.len() / 2;
    let want = cpu.evaluate(&tokens[..half], &targets[..half]).unwrap();
    let got = gpus[0].evaluate(&tokens[..half], &targets[..half]).unwrap();
    assert!((got - want).abs() <= 10.0 * tolerance * want, "evaluation: {got}, not {want}");
    let (want, got) = (cpu.logits(&tokens[..5]).unwrap(), gpus[0].logits(&tokens[..5]).unwrap());
    let largest = want.iter().fold(0f32, |most, x| most.max(x.abs()));
    for (got, want) in got.iter().zip(&want) {
        assert!((got - want).abs() <= 30.0 * tolerance * largest, "a logit: {got}, not {want}");
    }
}

#[test]
fn a_gpu_trains_as_the_cpu_does() {
    agree(SPEC, 1e-4);
}

#[test]
fn a_gpu_trains_gpt2_in_bf16_as_the_cpu_does() {
    agree(GPT2, 2e-3);
}

#[test]
fn a_gpu_trains_gpt2_in_fp16_as_the_cpu_does() {
    let scaled = "precision = fp16(loss_scale: dynamic(start: 4096, window: 10))";
    agree(&GPT2.replace("precision = bf16", scaled), 1e-3);
}

#[test]
fn a_gpu_sums_gradients_in_bf16_as_the_cpu_does() {
    agree(&GPT2.replace("precision = bf16", "precision = bf16(accumulate: bf16)"), 4e-3);
}

/// The CPU has no TF32: its products are those of single precision.
#[test]
fn a_gpu_trains_in_tf32_as_the_cpu_does() {
    agree(&format!("{SPEC}precision = tf32\n"), 3e-3);
}
