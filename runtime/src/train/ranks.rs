//! Tests of whole runs on several ranks: the same numbers as on one, files that any number of ranks reads, and one end for all.

use super::tests::{Notes, options, state, train};
use super::*;
use crate::fixture::{bigram_of_ranks, changed};
use crate::generate;

/// Losses as they were logged, to the last digit.
fn losses(run: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let field = |line: &str| {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        format!("{} {} {}", record["loss"], record["grad_norm"], record["eval_loss"])
    };
    text.lines().map(field).collect()
}

#[test]
fn one_two_and_four_ranks_come_to_the_same_bits_and_files() {
    let runs = [1, 2, 4].map(|world| {
        let dir = tempfile::tempdir().unwrap();
        let artifact = bigram_of_ranks(dir.path(), world);
        let options = options(dir.path(), "run");
        let (summary, notes) = train(&artifact, &options);
        let summary = summary.unwrap();
        assert!(summary.eval_loss.unwrap() < 4.0, "{summary:?}");
        let line = format!("fingerprint {}", summary.fingerprint);
        assert!(notes.lines.contains(&line), "{:?}", notes.lines);
        assert_eq!(notes.lines[0].contains(&format!("{world} ranks, threads of one process")), world > 1);
        let eval = summary.eval_loss.unwrap().to_bits();
        let on = generate::On {
            device: crate::device::Wanted::Cpu,
            cache_dir: dir.path().join("cache"),
            lock: dir.path().join("dspc.lock"),
        };
        let how = generate::Options { max_new_tokens: 8, temperature: 1.0, top_k: 0, seed: 1 };
        let mut heard = String::new();
        let out = generate::generate(&options.run_dir, "to", &how, &on, &mut |text| heard += text).unwrap();
        assert_eq!(out.text, heard);
        assert_eq!(notes.sample, format!("to{heard}"));
        (summary.fingerprint, eval, losses(&options.run_dir), state(&options.run_dir, 20), notes.sample)
    });
    assert!(runs[0] == runs[1] && runs[0] == runs[2]);
}

#[test]
fn a_checkpoint_of_any_number_of_ranks_goes_on_with_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = bigram_of_ranks(dir.path(), 1);
    let whole = train(&artifact, &options(dir.path(), "whole")).0.unwrap();
    let mut options = options(dir.path(), "part");
    for (world, step) in [(4, 5), (1, 9), (2, 14), (4, 20)] {
        let artifact = bigram_of_ranks(dir.path(), world);
        options.max_steps = Some(step);
        assert_eq!(train(&artifact, &options).0.unwrap().global_step, step);
        options.resume = true;
    }
    let artifact = bigram_of_ranks(dir.path(), 2);
    let summary = train(&artifact, &options).0.unwrap();
    assert_eq!(summary.fingerprint, whole.fingerprint);
    assert!(state(&dir.path().join("whole"), 20) == state(&options.run_dir, 20));
}

#[test]
fn checkpoints_on_the_way_name_their_fingerprints() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = bigram_of_ranks(dir.path(), 2);
    let artifact = changed(dir.path(), &artifact, |p| p.training.checkpoint_every = 8);
    let mut options = options(dir.path(), "run");
    let (_, notes) = train(&artifact, &options);
    let saved: Vec<&String> = notes.lines.iter().filter(|line| line.contains("  saved in ")).collect();
    assert_eq!(saved.len(), 3, "{:?}", notes.lines);
    assert!(saved[0].starts_with("step 8  saved in ") && saved[0].contains("checkpoint-8  fingerprint "));
    let seen = saved[1].rsplit(' ').next().unwrap().to_string();
    std::fs::remove_file(options.run_dir.join("commit-20.json")).unwrap();
    options.resume = true;
    options.max_steps = Some(16);
    let summary = train(&artifact, &options).0.unwrap();
    assert_eq!((summary.global_step, summary.fingerprint), (16, seen), "what was loaded is what was saved");
}

#[test]
fn a_request_to_stop_stops_all_ranks_after_the_same_step() {
    static STOP: AtomicBool = AtomicBool::new(false);
    let dir = tempfile::tempdir().unwrap();
    let artifact = bigram_of_ranks(dir.path(), 4);
    let options = options(dir.path(), "run");
    let mut notes = Notes { stop_after: Some((6, &STOP)), ..Notes::default() };
    let summary = run_reported(&artifact, &options, &STOP, &mut notes).unwrap();
    assert_eq!((summary.global_step, summary.interrupted), (6, true));
    assert!(options.run_dir.join("commit-6.json").exists());
}

#[test]
fn a_fault_of_one_rank_ends_the_run_with_that_fault() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = bigram_of_ranks(dir.path(), 4);
    let mut options = options(dir.path(), "run");
    options.resume = true;
    let error = train(&artifact, &options).0.unwrap_err();
    assert_eq!(error.code(), "R0401", "the first rank looks for a checkpoint, and the others wait for it");
    options.resume = false;
    let diverges = changed(dir.path(), &artifact, |p| {
        p.training.schedule =
            dspc_program::LrSchedule::Linear { peak: 0.1, warmup: 0, floor: 1e39, steps: 20 };
    });
    let error = train(&diverges, &options).0.unwrap_err();
    assert_eq!((error.code(), error.exit_code()), ("R0501", 6));
}

/// A reporter that panics takes the first rank with it.
#[test]
fn a_panic_in_one_rank_ends_all() {
    struct Panics;
    impl Reporter for Panics {
        fn line(&mut self, _text: &str) {}
        fn progress(&mut self, done: u64, _of: u64) {
            assert!(done < 3, "on purpose");
        }
        fn sample(&mut self, _piece: &str) {}
    }
    let dir = tempfile::tempdir().unwrap();
    let artifact = bigram_of_ranks(dir.path(), 4);
    let stop = AtomicBool::new(false);
    let error = run_reported(&artifact, &options(dir.path(), "run"), &stop, &mut Panics).unwrap_err();
    assert_eq!(error.to_string(), "rank 0 failed: it panicked: on purpose");
    assert_eq!(error.exit_code(), 8);
}

#[test]
fn a_last_checkpoint_that_cannot_be_written_ends_all_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = bigram_of_ranks(dir.path(), 2);
    let options = options(dir.path(), "run");
    // A file where the last checkpoint's folder belongs.
    std::fs::create_dir_all(&options.run_dir).unwrap();
    std::fs::write(options.run_dir.join("checkpoint-20.tmp"), b"in the way").unwrap();
    assert_eq!(train(&artifact, &options).0.unwrap_err().code(), "R0302");
}
