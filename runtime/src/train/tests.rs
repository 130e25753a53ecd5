//! Tests of whole runs on one rank: what a run writes, stops at, goes on from and refuses.

use super::*;
use crate::fixture::{bigram, changed};
use dspc_program::LrSchedule;

/// Keeps what was said, and sets a flag after a step.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) lines: Vec<String>,
    pub(super) sample: String,
    pub(super) stop_after: Option<(u64, &'static AtomicBool)>,
}

impl Reporter for Notes {
    fn line(&mut self, text: &str) {
        self.lines.push(text.into());
    }
    fn progress(&mut self, done: u64, _of: u64) {
        if let Some((step, flag)) = self.stop_after
            && step == done
        {
            flag.store(true, Ordering::Relaxed);
        }
    }
    fn sample(&mut self, piece: &str) {
        self.sample += piece;
    }
}

pub(super) fn options(dir: &Path, name: &str) -> RunOptions {
    RunOptions {
        run_dir: dir.join(name),
        data_root: dir.into(),
        cache_dir: dir.join("cache"),
        resume: false,
        max_steps: None,
        save: true,
        lock: dir.join("dspc.lock"),
        algorithms: Algorithms::Measure,
    }
}

pub(super) fn train(artifact: &Artifact, options: &RunOptions) -> (Result<Summary, Error>, Notes) {
    let mut notes = Notes::default();
    let result = run_reported(artifact, options, &AtomicBool::new(false), &mut notes);
    (result, notes)
}

pub(super) fn state(run: &Path, step: u64) -> [Vec<u8>; 2] {
    ["model.safetensors", "dspc/optimizer.safetensors"]
        .map(|name| std::fs::read(run.join(format!("checkpoint-{step}")).join(name)).unwrap())
}

#[test]
fn a_run_learns_and_writes_what_it_promises() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = bigram(dir.path());
    let artifact = changed(dir.path(), &artifact, |p| p.training.eval_every = 10);
    let options = options(dir.path(), "run");
    let (summary, notes) = train(&artifact, &options);
    let summary = summary.unwrap();
    assert!(summary.eval_loss.unwrap() < 4.0, "{summary:?}");
    assert_eq!((summary.global_step, summary.interrupted), (20, false));
    assert_eq!(summary.checkpoint, Some(options.run_dir.join("checkpoint-20")));
    assert!(
        notes.lines[0].starts_with("tiny  tiny  0 parameters  465 tokens  51 held out  cpu, "),
        "{:?}",
        notes.lines
    );
    assert!(notes.lines[1].starts_with("step 5/20  loss "), "{:?}", notes.lines);
    assert!(notes.lines[3].starts_with("step 10  eval loss "), "{:?}", notes.lines);
    assert!(notes.sample.starts_with("to") && notes.sample.len() >= 10, "{:?}", notes.sample);

    let metrics = std::fs::read_to_string(options.run_dir.join("metrics.jsonl")).unwrap();
    let records: Vec<serde_json::Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(records.len(), 6, "four readings, two evaluations");
    for key in ["loss", "grad_norm", "learning_rate", "epoch", "step", "tokens_per_second"] {
        assert!(records[0][key].is_number(), "{key}");
    }
    assert!(records[5]["eval_loss"].is_number());
    let summary: serde_json::Value =
        serde_json::from_slice(&std::fs::read(options.run_dir.join("summary.json")).unwrap()).unwrap();
    for key in [
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
        "train_loss",
        "train_tokens_per_second",
    ] {
        assert!(summary[key].is_number(), "{key}");
    }
}

#[test]
fn the_same_run_gives_the_same_bits_and_another_seed_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = bigram(dir.path());
    for name in ["a", "b"] {
        train(&artifact, &options(dir.path(), name)).0.unwrap();
    }
    let artifact = changed(dir.path(), &artifact, |p| p.training.seed = 2);
    train(&artifact, &options(dir.path(), "c")).0.unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| state(&dir.path().join(name), 20));
    assert!(a == b);
    assert!(a != c);
}

#[test]
fn resuming_gives_the_bits_of_a_run_without_a_break() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = bigram(dir.path());
    train(&artifact, &options(dir.path(), "whole")).0.unwrap();
    let mut part = options(dir.path(), "part");
    for (step, resume) in [(7, false), (13, true), (20, true)] {
        part.resume = resume;
        part.max_steps = Some(step);
        assert_eq!(train(&artifact, &part).0.unwrap().global_step, step);
    }
    assert!(state(&dir.path().join("whole"), 20) == state(&dir.path().join("part"), 20));
    let lines = |name: &str| {
        let text = std::fs::read_to_string(dir.path().join(name).join("metrics.jsonl")).unwrap();
        text.lines().filter(|l| l.contains("\"loss\"")).count()
    };
    assert_eq!((lines("whole"), lines("part")), (4, 6), "the last step of each part is logged too");
}

#[test]
fn a_request_to_stop_saves_and_says_how_to_go_on() {
    static STOP: AtomicBool = AtomicBool::new(false);
    let dir = tempfile::tempdir().unwrap();
    let artifact = bigram(dir.path());
    let mut options = options(dir.path(), "run");
    let mut notes = Notes { stop_after: Some((6, &STOP)), ..Notes::default() };
    let summary = run_reported(&artifact, &options, &STOP, &mut notes).unwrap();
    assert_eq!((summary.global_step, summary.interrupted), (6, true));
    assert!(notes.lines.last().unwrap().starts_with("stopped after step 6; saved in "), "{:?}", notes.lines);
    assert!(notes.lines.last().unwrap().contains("--resume"));
    options.resume = true;
    let (summary, notes) = train(&artifact, &options);
    assert_eq!(summary.unwrap().global_step, 20);
    assert!(notes.lines[0].ends_with("checkpoint-6 after step 6"), "{:?}", notes.lines);
}

#[test]
fn a_new_run_does_not_write_over_an_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = bigram(dir.path());
    let mut options = options(dir.path(), "run");
    options.resume = true;
    assert_eq!(train(&artifact, &options).0.unwrap_err().code(), "R0401");
    options.resume = false;
    train(&artifact, &options).0.unwrap();
    assert_eq!(train(&artifact, &options).0.unwrap_err().code(), "R0405");
    options.resume = true;
    assert_eq!(train(&artifact, &options).0.unwrap().global_step, 20, "nothing left to do");
}

#[test]
fn checkpoints_come_when_due_and_old_ones_go() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = bigram(dir.path());
    let artifact = changed(dir.path(), &artifact, |p| {
        p.training.checkpoint_every = 4;
        p.training.checkpoint_keep = 2;
    });
    let options = options(dir.path(), "run");
    std::fs::create_dir_all(options.run_dir.join("checkpoint-8.tmp/dspc")).unwrap();
    train(&artifact, &options).0.unwrap();
    let mut names: Vec<String> = std::fs::read_dir(&options.run_dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "checkpoint-16",
            "checkpoint-20",
            "commit-16.json",
            "commit-20.json",
            "metrics.jsonl",
            "summary.json"
        ]
    );
}

#[test]
fn a_loss_that_is_not_finite_stops_and_leaves_the_last_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = bigram(dir.path());
    let artifact = changed(dir.path(), &artifact, |p| {
        p.training.checkpoint_every = 1;
        p.training.schedule = LrSchedule::Linear { peak: 0.1, warmup: 0, floor: 1e39, steps: 20 };
    });
    let options = options(dir.path(), "run");
    let error = train(&artifact, &options).0.unwrap_err();
    let Error::NotFinite { step, checkpoint, .. } = &error else { panic!("{error}") };
    assert_eq!(*checkpoint, Some(options.run_dir.join(format!("checkpoint-{}", step - 1))));
    assert_eq!((error.code(), error.exit_code()), ("R0501", 6));
    assert!(error.remedy().contains("--resume"), "{}", error.remedy());
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = bigram(dir.path());
    let artifact = changed(dir.path(), &artifact, |p| p.training.checkpoint_every = 10);
    let mut options = options(dir.path(), "run");
    train(&artifact, &options).0.unwrap();
    let whole = state(&options.run_dir, 20);
    let damage = |step: u64| {
        let path = options.run_dir.join(format!("checkpoint-{step}/model.safetensors"));
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    };
    damage(20);
    options.resume = true;
    let (summary, notes) = train(&artifact, &options);
    assert_eq!(summary.unwrap().global_step, 20);
    assert!(notes.lines[0].starts_with("warning[R0402]: checkpoint `"), "{:?}", notes.lines);
    assert!(notes.lines[0].ends_with("checkpoint-20` is damaged: model.safetensors was changed"));
    assert!(notes.lines[1].ends_with("checkpoint-10 after step 10"), "{:?}", notes.lines);
    assert!(state(&options.run_dir, 20) == whole, "the damaged one was made again, with the same bits");
    damage(20);
    damage(10);
    assert_eq!(train(&artifact, &options).0.unwrap_err().code(), "R0402");
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = bigram(dir.path());
    let mut options = options(dir.path(), "run");
    options.max_steps = Some(4);
    train(&artifact, &options).0.unwrap();
    options.resume = true;
    options.max_steps = Some(8);
    let other = changed(dir.path(), &artifact, |p| p.training.seed = 9);
    let error = train(&other, &options).0.unwrap_err();
    assert_eq!((error.code(), error.exit_code()), ("R0403", 7));
    assert!(error.to_string().ends_with("its `seed` is 1, and the program's is 9"), "{error}");
    let other = changed(dir.path(), &artifact, |p| p.params[0].name = "other".into());
    let error = train(&other, &options).0.unwrap_err();
    assert!(error.to_string().ends_with("model.safetensors has no tensor `other`"), "{error}");
    let other = changed(dir.path(), &artifact, |p| p.params[0].dims = vec![128, 512]);
    let error = train(&other, &options).0.unwrap_err();
    assert!(
        error.to_string().contains("`table` is F32 [256, 256], and the program's is F32 [128, 512]"),
        "{error}"
    );

    let slower =
        changed(dir.path(), &artifact, |p| p.training.schedule = LrSchedule::Constant { lr: 0.1, warmup: 0 });
    train(&slower, &options).0.unwrap();
    std::fs::write(dir.path().join("text/a.txt"), "to be, or not to be. ".repeat(20)).unwrap();
    options.max_steps = Some(12);
    assert_eq!(train(&slower, &options).0.unwrap_err().code(), "R0404");
}

#[test]
fn a_run_that_does_not_save_leaves_its_numbers_alone() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = bigram(dir.path());
    let artifact = changed(dir.path(), &artifact, |p| p.training.checkpoint_every = 5);
    let mut options = options(dir.path(), "run");
    options.save = false;
    assert_eq!(train(&artifact, &options).0.unwrap().global_step, 20);
    let entries = std::fs::read_dir(&options.run_dir).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["metrics.jsonl", "summary.json"]);
}

#[test]
fn a_trained_model_generates_from_its_folder_alone() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = bigram(dir.path());
    let options = options(dir.path(), "run");
    let (_, notes) = train(&artifact, &options);
    std::fs::remove_dir_all(&artifact.directory).unwrap();
    let on = generate::On {
        device: crate::device::Wanted::Auto,
        cache_dir: dir.path().join("cache"),
        lock: dir.path().join("dspc.lock"),
    };
    let run = |path: &Path, seed: u64, temperature: f64| {
        let how = generate::Options { max_new_tokens: 8, temperature, top_k: 0, seed };
        let mut heard = String::new();
        let out = generate::generate(path, "to", &how, &on, &mut |text| heard += text).unwrap();
        assert_eq!((out.tokens, &out.text), (8, &heard));
        heard
    };
    let folder = options.run_dir.join("checkpoint-20");
    assert_eq!(format!("to{}", run(&folder, 1, 1.0)), notes.sample);
    assert_eq!(run(&options.run_dir, 1, 0.0), run(&folder, 2, 0.0), "greedy needs no seed");
    assert_ne!(run(&folder, 1, 5.0), run(&folder, 2, 5.0));
    let how = generate::Options { max_new_tokens: 1, temperature: 0.0, top_k: 0, seed: 0 };
    let fail = |path: &Path, prompt: &str| {
        generate::generate(path, prompt, &how, &on, &mut |_| {}).unwrap_err().code()
    };
    assert_eq!(fail(&folder, ""), "R0605");
    assert_eq!(fail(&dir.path().join("none"), "to"), "R0401");
    std::fs::remove_file(options.run_dir.join("commit-20.json")).unwrap();
    assert_eq!(fail(&folder, "to"), "R0402");
}

/// The test runs itself again as a child that saves after every step, and kills it at moments of no meaning.
#[test]
fn a_run_that_is_killed_goes_on_from_a_whole_checkpoint() {
    const VARIABLE: &str = "DSPC_TEST_KILLED";
    if let Ok(dir) = std::env::var(VARIABLE) {
        let artifact = artifact::read(&Path::new(&dir).join("tiny.dspx"), Default::default()).unwrap();
        let mut options = options(Path::new(&dir), "run");
        options.resume = !checkpoint::commits(&options.run_dir).is_empty();
        train(&artifact, &options).0.unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let artifact = bigram(dir.path());
    let artifact = changed(dir.path(), &artifact, |p| {
        p.training.steps = 60;
        p.training.checkpoint_every = 1;
        p.training.checkpoint_keep = 3;
    });
    train(&artifact, &options(dir.path(), "whole")).0.unwrap();
    let run_dir = options(dir.path(), "run").run_dir;
    for attempt in 0..200u64 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "train::tests::a_run_that_is_killed_goes_on_from_a_whole_checkpoint"])
            .env(VARIABLE, dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(60 + attempt * 37 % 240));
        _ = child.kill();
        let finished = child.wait().unwrap().success();
        if !checkpoint::commits(&run_dir).is_empty() {
            let (_, damaged) = checkpoint::newest(&run_dir).unwrap();
            assert!(damaged.is_empty(), "{damaged:?}");
        }
        if finished {
            assert!(state(&dir.path().join("whole"), 60) == state(&run_dir, 60));
            return;
        }
    }
    panic!("the run never ended");
}

/// The test runs itself again under a limit on the size of files, with the signal that would kill it ignored.
#[test]
fn a_full_disk_ends_the_run_and_leaves_older_checkpoints_whole() {
    const VARIABLE: &str = "DSPC_TEST_FULL_DISK";
    if let Ok(dir) = std::env::var(VARIABLE) {
        let dir = Path::new(&dir);
        let artifact = artifact::read(&dir.join("tiny.dspx"), Default::default()).unwrap();
        let mut options = options(dir, "run");
        options.resume = true;
        let (result, notes) = train(&artifact, &options);
        assert_eq!(result.unwrap_err().code(), "R0301", "{:?}", notes.lines);
        assert!(notes.lines.iter().any(|l| l.contains("warning[R0301]") && l.ends_with("training goes on")));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let artifact = bigram(dir.path());
    let artifact = changed(dir.path(), &artifact, |p| p.training.checkpoint_every = 10);
    let mut options = options(dir.path(), "run");
    options.max_steps = Some(5);
    train(&artifact, &options).0.unwrap();
    let name = "train::tests::a_full_disk_ends_the_run_and_leaves_older_checkpoints_whole";
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 128; exec \"$0\" --exact \"$1\""])
        .arg(std::env::current_exe().unwrap())
        .arg(name)
        .env(VARIABLE, dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    let mut names: Vec<String> = std::fs::read_dir(&options.run_dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["checkpoint-5", "commit-5.json", "metrics.jsonl", "summary.json"]);
    options.resume = true;
    options.max_steps = None;
    assert_eq!(train(&artifact, &options).0.unwrap().global_step, 20);
}
