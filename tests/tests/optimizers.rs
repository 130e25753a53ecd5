//! Every optimizer learns on a CPU: real text, a loss that it must reach, the same bits again and after a resume.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::path::Path;
use std::sync::atomic::AtomicBool;

use dspc_runtime::train::{RunOptions, Summary};
use dspc_runtime::{Artifact, Silent};
use dspc_tests::optimizers::{CASES, STEPS, path, spec, spread};
use dspc_tests::{compile_text, file};

fn artifact(text: &str, folder: &Path) -> Artifact {
    let compiled = compile_text(&path(), text);
    let directory = folder.join("optimizer.dspx");
    dspc::build::write(std::slice::from_ref(&compiled.lowered), &["cpu".to_string()], &directory).unwrap();
    dspc_runtime::artifact::read(&directory, Default::default()).unwrap()
}

fn train(artifact: &Artifact, folder: &Path, name: &str, resume: bool, max_steps: Option<u64>) -> Summary {
    let options = RunOptions {
        run_dir: folder.join(name),
        data_root: file("../examples"),
        cache_dir: folder.join("cache"),
        resume,
        max_steps,
        save: true,
        lock: folder.join("dspc.lock"),
        algorithms: Default::default(),
    };
    dspc_runtime::train::run_reported(artifact, &options, &AtomicBool::new(false), &mut Silent).unwrap()
}

#[test]
fn every_optimizer_learns_repeats_and_resumes() {
    let mut found = vec![];
    for case in CASES {
        let folder = tempfile::tempdir().unwrap();
        let artifact = artifact(&spec(case.optimizer, "fp32"), folder.path());
        let loss = train(&artifact, folder.path(), "whole", false, None).eval_loss.unwrap();
        train(&artifact, folder.path(), "again", false, None);
        train(&artifact, folder.path(), "parts", false, Some(25));
        train(&artifact, folder.path(), "parts", true, None);
        let read = |run: &str, name: &str| {
            std::fs::read(folder.path().join(run).join(format!("checkpoint-{STEPS}")).join(name)).unwrap()
        };
        for name in ["model.safetensors", "dspc/optimizer.safetensors"] {
            assert_eq!(read("whole", name), read("again", name), "{}: {name}, again", case.name);
            assert_eq!(read("whole", name), read("parts", name), "{}: {name}, resumed", case.name);
        }
        found.push((case.name, loss, case.loss));
    }
    assert!(found.iter().all(|(_, loss, at_most)| loss <= at_most), "{found:?}");
}

#[test]
fn every_optimizer_updates_masters_in_sixteen_bits() {
    for case in CASES {
        let folder = tempfile::tempdir().unwrap();
        let artifact = artifact(&spec(case.optimizer, "bf16"), folder.path());
        let loss = train(&artifact, folder.path(), "run", false, None).eval_loss.unwrap();
        assert!(loss <= case.loss + 0.1, "{}: {loss}", case.name);
    }
}

/// The fingerprint of parameters and of all that the optimizer keeps.
fn fingerprint(optimizer: &str, ranks: u64, stage: u64) -> String {
    let folder = tempfile::tempdir().unwrap();
    let artifact = artifact(&spread(optimizer, ranks, stage), folder.path());
    train(&artifact, folder.path(), "run", false, None).fingerprint
}

#[test]
fn every_layout_trains_to_the_same_bits_under_every_optimizer() {
    let scaled = "adafactor(lr: 3e-3, scale_parameter: true, weight_decay: 0.1)";
    for optimizer in CASES.iter().map(|case| case.optimizer).chain([scaled]) {
        let alone = fingerprint(optimizer, 1, 0);
        for (ranks, stage) in [(2, 1), (4, 2), (2, 3)] {
            assert_eq!(
                fingerprint(optimizer, ranks, stage),
                alone,
                "{optimizer} on {ranks} ranks, stage {stage}"
            );
        }
    }
}
