//! Whole runs on several ranks of this machine: every way of sharing a model out trains to the same bits where the spec says so, any number of
//! ranks reads any other's checkpoints, and memory is what was planned.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a panic is the report, a line says what did not run or what a child measured"
)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use dspc_runtime::communicator::{Communicator, local};
use dspc_runtime::train::{RunOptions, Summary, run_reported};
use dspc_runtime::{Artifact, Reporter, Session, Silent};
use dspc_tests::{compile_text, file};

/// How a job is spread.
#[derive(Clone, Copy, Debug)]
struct Layout {
    ranks: u64,
    stage: u64,
    batch: u64,
    micro_batch: u64,
    deterministic: bool,
    precision: &'static str,
}

const ALONE: Layout =
    Layout { ranks: 1, stage: 0, batch: 8, micro_batch: 1, deterministic: true, precision: "fp32" };
const STEPS: u64 = 5;

/// A GPT-2 with tied weights, a repeat, dropout, clipping, small parameters and a group without decay, on Shakespeare.
fn spec(layout: Layout) -> String {
    let Layout { ranks, stage, batch, micro_batch, deterministic, precision } = layout;
    format!(
        "use std::gpt2\n\
         model = gpt2::gpt2(layers: 4, heads: 2, width: 32, vocab: data.vocab, context: 24, dropout: 10%)\n\
         data {{\n  text: [\"data/shakespeare.txt\"]\n  tokenizer: \"bytes\"\n  sequence: 24\n  holdout: 0.1%\n}}\n\
         optimizer = adamw(lr: 3e-3, weight_decay: 0.1)\n\
         precision = {precision}\n\
         parallel = mesh(data: {ranks})\nzero = stage({stage}, keep_below: 100)\ndeterministic = {deterministic}\n\
         train {{\n  batch: {batch}\n  micro_batch: {micro_batch}\n  steps: {STEPS}\n  clip: 1.0\n  eval: every(3)\n}}\n"
    )
}

fn artifact(layout: Layout, folder: &Path) -> Artifact {
    let compiled = compile_text(&file("../examples/train.dsp"), &spec(layout));
    let directory = folder.join(format!("{}-{}.dspx", layout.ranks, layout.stage));
    dspc::build::write(std::slice::from_ref(&compiled.lowered), &["cpu".to_string()], &directory).unwrap();
    dspc_runtime::artifact::read(&directory, Default::default()).unwrap()
}

fn options(folder: &Path, name: &str) -> RunOptions {
    RunOptions {
        run_dir: folder.join(name),
        data_root: file("../examples"),
        cache_dir: folder.join("cache"),
        resume: false,
        max_steps: None,
        save: true,
        lock: folder.join("dspc.lock"),
        algorithms: Default::default(),
    }
}

fn train(artifact: &Artifact, options: &RunOptions) -> Summary {
    run_reported(artifact, options, &AtomicBool::new(false), &mut Silent).unwrap()
}

/// The bits that a run left: losses and norms of its log, the evaluation's, the state's fingerprint.
fn bits(layout: Layout) -> (Vec<String>, String) {
    let folder = tempfile::tempdir().unwrap();
    let options = RunOptions { save: false, ..options(folder.path(), "run") };
    let summary = train(&artifact(layout, folder.path()), &options);
    let text = std::fs::read_to_string(options.run_dir.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        format!("{} {} {}", record["loss"], record["grad_norm"], record["eval_loss"])
    };
    (text.lines().map(line).collect(), summary.fingerprint)
}

#[test]
fn every_layout_trains_to_the_same_bits_where_the_spec_says_so() {
    let alone = bits(ALONE);
    assert!(!alone.0.is_empty());
    for ranks in [2, 4, 8] {
        for stage in 0..=3 {
            let layout = Layout { ranks, stage, ..ALONE };
            assert_eq!(bits(layout), alone, "{layout:?}");
        }
    }
}

#[test]
fn every_layout_trains_to_the_same_bits_in_half_precision() {
    let alone = Layout { precision: "bf16", ..ALONE };
    let expected = bits(alone);
    for (ranks, stage) in [(2, 3), (4, 1), (4, 2), (8, 0)] {
        let layout = Layout { ranks, stage, ..alone };
        assert_eq!(bits(layout), expected, "{layout:?}");
    }
}

/// Stages 0 and 1 add a rank's micro-batches up before they ask the others, stages 2 and 3 after; with one micro-batch that is the same.
#[test]
fn on_one_number_of_ranks_stages_agree_without_being_told() {
    for (ranks, batch, micro_batch, alike) in [
        (2, 8, 4, vec![0..=3]),
        (3, 9, 3, vec![0..=3]),
        (3, 9, 1, vec![0..=1, 2..=3]),
        (4, 16, 2, vec![0..=1, 2..=3]),
    ] {
        let layout =
            |stage| Layout { ranks, stage, batch, micro_batch, deterministic: false, precision: "fp32" };
        for stages in alike {
            let first = bits(layout(*stages.start()));
            for stage in stages.skip(1) {
                assert_eq!(bits(layout(stage)), first, "{:?}", layout(stage));
            }
        }
    }
}

#[test]
fn a_checkpoint_of_four_ranks_goes_on_alone_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let whole = train(&artifact(ALONE, folder.path()), &options(folder.path(), "whole"));
    let mut part = options(folder.path(), "part");
    for (ranks, stage, step) in [(4, 3, 2), (1, 0, 3), (2, 1, 4), (8, 2, STEPS)] {
        let artifact = artifact(Layout { ranks, stage, ..ALONE }, folder.path());
        part.max_steps = Some(step);
        let summary = train(&artifact, &part);
        assert_eq!(summary.global_step, step);
        part.resume = true;
        if step == STEPS {
            assert_eq!(summary.fingerprint, whole.fingerprint);
        }
    }
    let file = |run: &str, name: &str| {
        std::fs::read(folder.path().join(format!("{run}/checkpoint-{STEPS}")).join(name)).unwrap()
    };
    for name in ["model.safetensors", "dspc/optimizer.safetensors"] {
        assert!(file("whole", name) == file("part", name), "{name}");
    }
}

/// Panics on the first rank in the middle of training.
struct Panics;

impl Reporter for Panics {
    fn line(&mut self, _text: &str) {}
    fn progress(&mut self, done: u64, _of: u64) {
        assert!(done < 2, "on purpose");
    }
    fn sample(&mut self, _piece: &str) {}
}

#[test]
fn a_panic_in_one_rank_ends_all() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = artifact(Layout { ranks: 4, stage: 3, ..ALONE }, folder.path());
    let options = options(folder.path(), "run");
    let error = run_reported(&artifact, &options, &AtomicBool::new(false), &mut Panics).unwrap_err();
    assert_eq!((error.code(), error.exit_code()), ("R0801", 8));
    assert_eq!(error.to_string(), "rank 0 failed: it panicked: on purpose");
}

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// The test runs itself again, alone in a process, for each way of sharing out: what all ranks take is what was planned.
#[test]
fn memory_is_what_was_planned() {
    const VARIABLE: &str = "DSPC_TEST_RESIDENT";
    if let Ok(layout) = std::env::var(VARIABLE) {
        let (ranks, stage) = layout.split_once(' ').unwrap();
        let layout = Layout { ranks: ranks.parse().unwrap(), stage: stage.parse().unwrap(), ..ALONE };
        return measure(layout);
    }
    for (ranks, stage) in [(1, 0), (4, 0), (4, 1), (4, 2), (4, 3)] {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "memory_is_what_was_planned", "--nocapture"])
            .env(VARIABLE, format!("{ranks} {stage}"))
            .env("DSPC_THREADS", "1")
            // glibc's own default, which it would raise: what it holds back of freed memory follows chance, and is no part of a plan.
            .env("MALLOC_MMAP_THRESHOLD_", "131072")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        let line =
            text.lines().find_map(|line| line.strip_prefix("bytes ")).unwrap_or_else(|| panic!("{text}"));
        let numbers: Vec<u64> = line.split(' ').map(|n| n.parse().unwrap()).collect();
        let (planned, seen) = (numbers[0], numbers[1]);
        // What is padded to pages, the pools, stacks and code besides.
        let slack = 24 << 20;
        assert!(seen <= planned + slack, "{ranks} ranks, stage {stage}: {seen} bytes, planned {planned}");
        assert!(
            seen + planned / 8 + slack / 4 >= planned,
            "{ranks} ranks, stage {stage}: {seen} bytes, planned {planned}"
        );
    }
}

/// Prints what is planned for all ranks, and by how much the process grew.
fn measure(layout: Layout) {
    let text = spec(layout).replace("width: 32", "width: 256");
    let compiled = compile_text(&file("../examples/train.dsp"), &text);
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("wide.dspx");
    dspc::build::write(std::slice::from_ref(&compiled.lowered), &["cpu".to_string()], &directory).unwrap();
    drop(compiled);
    let artifact = dspc_runtime::artifact::read(&directory, Default::default()).unwrap();
    let program = &artifact.program;
    let planned = layout.ranks * program.arenas.iter().map(|arena| arena.bytes).sum::<u64>();
    let ids = (program.training.batch * program.data.sequence) as usize;
    let before = resident();
    let rank = |communicator: Arc<dyn Communicator>| {
        let device = artifact.cpu_of_rank(1, Arc::clone(&communicator))?;
        let mut session = Session::of_rank(program, device, Arc::clone(&communicator))?;
        session.step(&vec![7; ids], &vec![8; ids])?;
        communicator.barrier()?;
        let after = resident();
        communicator.barrier()?;
        Ok(after)
    };
    let after = local::run(layout.ranks, rank, rank).unwrap();
    println!("bytes {planned} {}", after.saturating_sub(before));
}
