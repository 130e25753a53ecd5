//! A program on a GPU against the same program on the CPU, step by step.

use dspc_program::Program;
use dspc_runtime::device::cuda::{Card, libraries};
use dspc_runtime::device::{Algorithms, DeviceOptions};
use dspc_runtime::{Artifact, Session};
use std::path::Path;

/// The card, where there is one with cuBLASLt; else says loudly that nothing ran.
pub fn card() -> Option<Card> {
    let found = Card::find().and_then(|card| libraries::cublaslt().map(|_| card));
    found.inspect_err(|error| eprintln!("SKIPPED: {error}")).ok()
}

/// The hash of `tests/parity/reference.py`.
fn hash(element: u64, site: u64) -> u32 {
    let x = (element.wrapping_mul(2_654_435_761).wrapping_add(site * 40503)) as u32;
    let x = x ^ (x >> 16);
    let x = x.wrapping_mul(2_246_822_519);
    x ^ (x >> 13)
}

/// Ids of a step and their targets, some of which do not count.
fn ids(program: &Program, step: u64) -> (Vec<i32>, Vec<i32>) {
    let count = program.training.batch * program.data.sequence;
    let id = |i: u64| (u64::from(hash(i, step)) % program.data.vocab) as i32;
    let target = |i: u64| if i % 7 == 3 { -100 } else { id(i + 1) };
    ((0..count).map(id).collect(), (0..count).map(target).collect())
}

/// Steps on both devices: losses within `tolerance` of each other, relative; and two sessions on the GPU with the same bits.
/// Measured algorithms go to `folder`.
pub fn agree(cpu: &Artifact, gpu: &Artifact, folder: &Path, tolerance: f32) {
    let options = DeviceOptions {
        threads: 1,
        cache_dir: folder.into(),
        lock: folder.join("dspc.lock"),
        algorithms: Algorithms::Measure,
    };
    let program = &cpu.program;
    let mut cpu = Session::new(program, cpu.cpu(2).unwrap()).unwrap();
    let mut gpus = [0, 1].map(|_| Session::new(&gpu.program, gpu.cuda(&options).unwrap()).unwrap());
    let mut worst = [0f32; 2];
    for step in 0..40 {
        let (tokens, targets) = ids(program, step % 5);
        let want = cpu.step(&tokens, &targets).unwrap();
        let got = gpus.each_mut().map(|session| session.step(&tokens, &targets).unwrap());
        assert_eq!(got[0], got[1], "the same bits on the same card");
        let apart = |got: f32, want: f32| (got - want).abs() / want.abs();
        let norms = [&got[0], &want].map(|stats| stats.grad_norm.unwrap());
        let now = [apart(got[0].loss, want.loss), apart(norms[0], norms[1])];
        worst = [0, 1].map(|i| now[i].max(worst[i]));
        assert!(got[0].finite && got[0].learning_rate == want.learning_rate);
        assert_eq!(got[0].loss_scale, want.loss_scale, "step {step}");
    }
    eprintln!(
        "losses apart by {:.1e} at most, norms by {:.1e}; the bound is {tolerance:.0e} for losses",
        worst[0], worst[1]
    );
    assert!(worst[0] <= tolerance, "losses");
    // A norm follows the weights more closely than a loss does, and ids that come again are learnt by heart.
    assert!(worst[1] <= 20.0 * tolerance, "norms");
    let (tokens, targets) = ids(program, 0);
    let micro = (program.training.micro_batch * program.data.sequence) as usize;
    let want = cpu.evaluate(&tokens[..micro], &targets[..micro]).unwrap();
    let got = gpus[0].evaluate(&tokens[..micro], &targets[..micro]).unwrap();
    assert!((got - want).abs() <= 10.0 * tolerance * want, "evaluation: {got}, not {want}");
    let (want, got) = (cpu.logits(&tokens[..5]).unwrap(), gpus[0].logits(&tokens[..5]).unwrap());
    let largest = want.iter().fold(0f32, |most, x| most.max(x.abs()));
    for (got, want) in got.iter().zip(&want) {
        assert!((got - want).abs() <= 30.0 * tolerance * largest, "a logit: {got}, not {want}");
    }
}
