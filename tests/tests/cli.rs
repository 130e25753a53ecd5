//! The commands as a user types them: `tests/cli/commands.md` is a session, run and compared. `TRYCMD=overwrite` writes the outputs anew; read the change.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::path::{Path, PathBuf};
use std::process::Command;

use dspc_tests::file;

/// The binary of the same profile as this test; the test command builds it first.
fn dspc() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("dspc");
    assert!(path.exists(), "{} is not there: `cargo build -p dspc` first, or run ./test", path.display());
    path
}

fn run(folder: &Path, words: &[&str]) -> (i32, String, String) {
    let output = Command::new(dspc())
        .current_dir(folder)
        .env("DSPC_CACHE", folder.join("cache"))
        .args(words)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// A folder with a small spec and its text.
fn bigram() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["bigram.dsp", "text.txt"] {
        std::fs::copy(file(&format!("cli/commands.in/{name}")), folder.path().join(name)).unwrap();
    }
    folder
}

#[test]
fn sessions() {
    trycmd::TestCases::new().register_bin("dspc", dspc()).case("cli/*.md");
}

#[test]
fn two_builds_are_equal_byte_for_byte() {
    let folder = bigram();
    for name in ["a.dspx", "b.dspx"] {
        let (code, _, talk) = run(
            folder.path(),
            &["build", "bigram.dsp", "-o", name, "--target", "cpu:x86-64-v3,sm_80,sm_90a,sm_120"],
        );
        assert_eq!(code, 0, "{talk}");
    }
    let mut names: Vec<_> =
        std::fs::read_dir(folder.path().join("a.dspx")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "kernels.cpu.so",
            "kernels.sm_120.ptx",
            "kernels.sm_80.ptx",
            "kernels.sm_90a.ptx",
            "program.cuda.json",
            "program.json"
        ]
    );
    for name in names {
        let read = |build: &str| std::fs::read(folder.path().join(build).join(&name)).unwrap();
        assert!(read("a.dspx") == read("b.dspx"), "{name:?} differs");
    }
}

#[test]
fn a_run_saves_what_generation_and_resuming_need() {
    let folder = bigram();
    let (code, _, talk) = run(folder.path(), &["run", "bigram.dsp", "--max-steps", "5"]);
    assert_eq!(code, 0, "{talk}");
    for name in
        ["metrics.jsonl", "summary.json", "checkpoint-5/model.safetensors", "checkpoint-5/config.json"]
    {
        assert!(folder.path().join("runs/bigram").join(name).exists(), "no {name}");
    }
    let (code, text, talk) = run(
        folder.path(),
        &["generate", "runs/bigram", "-p", "to", "--max-new-tokens", "4", "--temperature", "0"],
    );
    assert_eq!((code, text.trim_end().chars().count() >= 2), (0, true), "{talk}");
    let (code, _, talk) = run(folder.path(), &["run", "bigram.dsp", "--resume"]);
    assert_eq!(code, 0, "{talk}");
    assert!(folder.path().join("runs/bigram/checkpoint-10").exists());
    let whole = bigram();
    run(whole.path(), &["run", "bigram.dsp"]);
    let weights = |f: &Path| std::fs::read(f.join("runs/bigram/checkpoint-10/model.safetensors")).unwrap();
    assert!(weights(folder.path()) == weights(whole.path()), "a resumed run ends with other weights");
}

/// Dropout included: the backward pass draws the numbers of the forward pass again.
#[test]
fn what_is_computed_again_trains_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("text.txt"), "the sun and the moon go round and round; ".repeat(40))
        .unwrap();
    let spec = "use std::gpt2
data { text: [\"text.txt\"], tokenizer: \"chars\", sequence: 24, holdout: 10% }
model = gpt2::gpt2(layers: 3, heads: 2, width: 32, vocab: data.vocab, context: data.sequence, dropout: 0.2)
optimizer = adamw(lr: 1e-2)
train { batch: 6, micro_batch: 3, steps: 4 }
";
    let trained = |recompute: &str| {
        let name = format!("{recompute}.dsp");
        std::fs::write(folder.path().join(&name), format!("{spec}recompute = {recompute}\n")).unwrap();
        let (code, _, talk) = run(folder.path(), &["run", &name, "--device", "cpu"]);
        assert_eq!(code, 0, "{talk}");
        std::fs::read(folder.path().join(format!("runs/{recompute}/checkpoint-4/model.safetensors"))).unwrap()
    };
    let expected = trained("none");
    for recompute in ["norms", "block"] {
        assert!(trained(recompute) == expected, "{recompute}: other weights");
    }
}

#[test]
fn faults_of_the_data_are_coded_and_leave_nothing_behind() {
    let cases: [(&str, &str, &str, i32); 4] = [
        ("text.txt", "", "R0", 1),
        ("text.txt", "abc", "R0", 1),
        ("bigram.dsp", "\u{0}", "E0", 1),
        ("bigram.dsp", "", "E0", 1),
    ];
    for (name, content, code_begins, _) in cases {
        let folder = bigram();
        std::fs::write(folder.path().join(name), content).unwrap();
        let (code, _, talk) = run(folder.path(), &["run", "bigram.dsp"]);
        assert!(code != 0 && code != 101, "{name} as {content:?}: exit {code}\n{talk}");
        assert!(talk.contains(&format!("error[{code_begins}")), "{name} as {content:?}: {talk}");
        assert!(!folder.path().join("runs").exists(), "{name} as {content:?} leaves a run behind");
    }
}

#[test]
fn heads_that_are_too_wide_are_refused_for_a_gpu_and_built_for_the_cpu() {
    let folder = bigram();
    let spec = "use std::gpt2\nmodel = gpt2::gpt2(layers: 1, heads: 1, width: 192, vocab: data.vocab, context: data.sequence)\n\
        data { text: [\"text.txt\"], tokenizer: \"chars\", sequence: 4 }\n\
        optimizer = adamw(lr: 1e-3)\ntrain { batch: 2, steps: 1 }\n";
    std::fs::write(folder.path().join("attends.dsp"), spec).unwrap();
    let (code, _, talk) = run(folder.path(), &["build", "attends.dsp", "--target", "sm_90a"]);
    assert_eq!(code, 1, "{talk}");
    assert!(
        talk.starts_with("error[E0531]: a GPU has no kernel for attention heads of 192, only up to 128\n"),
        "{talk}"
    );
    assert!(!folder.path().join("attends.dspx").exists());
    let (code, _, talk) = run(folder.path(), &["run", "attends.dsp", "--device", "cpu"]);
    assert_eq!(code, 0, "{talk}");
}
