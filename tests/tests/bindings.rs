//! `dspc build --emit rust`: the crate it writes compiles, and trains as the runtime itself does.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use clap::Parser;
use dspc::cli::Cli;
use dspc_runtime::{Session, artifact};
use dspc_tests::file;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const STEPS: usize = 20;

/// Runs the command on the smallest spec, and says how it ended.
fn emit(crate_dir: &Path, more: &[&str]) -> dspc::exit::Exit {
    let spec = file("suite/layers/bigram.dsp");
    let words = ["dspc", "build", spec.to_str().unwrap(), "--emit", "rust", "--crate-dir"];
    let words = words.into_iter().chain([crate_dir.to_str().unwrap()]).chain(more.iter().copied());
    dspc::dispatch(&Cli::parse_from(words))
}

fn emitted() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let crate_dir = folder.path().join("bigram-bindings");
    assert_eq!(emit(&crate_dir, &[]), dspc::exit::Exit::Success);
    (folder, crate_dir)
}

/// The service: a user's own program. It prints bits, so that nothing is rounded on the way.
const SERVICE: &str = r#"//! Trains on one batch.
use bigram_bindings::{BATCH, MICRO_BATCH, PARAMETERS, SEQUENCE, Trainer, VOCAB, params};

fn main() -> Result<(), bigram_bindings::Error> {
    let mut trainer = Trainer::with_threads(2)?;
    let mut rows = [[0; SEQUENCE + 1]; BATCH];
    for (i, id) in rows.as_flattened_mut().iter_mut().enumerate() {
        *id = (i * i % VOCAB) as i32;
    }
    for _ in 0..20 {
        let stats = trainer.step(&rows)?;
        assert!(stats.applied && stats.grad_norm.is_none_or(f32::is_finite));
        println!("{}", stats.loss.to_bits());
    }
    assert_eq!(trainer.steps(), (20, 20));

    let table = trainer.read(params::TABLE)?;
    let [rows_of_table, columns] = params::TABLE.dims();
    assert_eq!((rows_of_table, columns, table.len()), (VOCAB, VOCAB, PARAMETERS));
    assert_eq!((params::TABLE.name(), params::TABLE.elements()), ("table", PARAMETERS));
    assert_eq!(trainer.logits(&[1])?, &table[VOCAB..2 * VOCAB], "a row of the table");

    let tokens = rows.map(|row| [row[0], row[1], row[2], row[3]]);
    let before = trainer.evaluate(&[rows[0]; MICRO_BATCH])?;
    let nothing = trainer.step_on(&tokens, &[[-100; SEQUENCE]; BATCH])?;
    assert_eq!(nothing.loss, 0.0, "no target counts");
    trainer.write(params::TABLE, &table)?;
    assert_eq!(trainer.evaluate(&[rows[0]; MICRO_BATCH])?, before);

    let mut wrong = tokens;
    wrong[1][2] = VOCAB as i32;
    assert_eq!(trainer.step_on(&wrong, &tokens).unwrap_err().code(), "R0107");
    assert_eq!(trainer.write(params::TABLE, &table[1..]).unwrap_err().code(), "R0202");
    Ok(())
}
"#;

/// A crate with these examples. Dependencies are built once for all runs, with the versions that this workspace is locked to.
fn with_examples(crate_dir: &Path, examples: &[(&str, &str)]) {
    fs::create_dir(crate_dir.join("examples")).unwrap();
    fs::copy(file("../Cargo.lock"), crate_dir.join("Cargo.lock")).unwrap();
    for (name, text) in examples {
        fs::write(crate_dir.join(format!("examples/{name}.rs")), text).unwrap();
    }
}

/// What an example prints.
fn run(crate_dir: &Path, example: &str) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["run", "--offline", "--quiet", "--example", example])
        .current_dir(crate_dir)
        .env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("bindings"))
        .env_remove("RUSTFLAGS")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("warning"), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

/// The program that the page shows, for this crate.
fn page_example() -> String {
    let page = fs::read_to_string(file("../docs/bindings.md")).unwrap();
    let block = page.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    block.replace("train_bindings", "bigram_bindings")
}

/// The same steps, by the runtime, on the artifact that lies in the crate.
fn by_session(crate_dir: &Path) -> Vec<f32> {
    let artifact = artifact::read(&crate_dir.join("program.dspx"), Default::default()).unwrap();
    let (training, data) = (&artifact.program.training, &artifact.program.data);
    let (batch, sequence) = (training.batch as usize, data.sequence as usize);
    let row = sequence + 1;
    let id = |i: usize| (i * i % data.vocab as usize) as i32;
    let ids = |first: usize| -> Vec<i32> {
        (0..batch).flat_map(|r| (0..sequence).map(move |c| id(r * row + c + first))).collect()
    };
    let mut session = Session::new(&artifact.program, artifact.cpu(1).unwrap()).unwrap();
    (0..STEPS).map(|_| session.step(&ids(0), &ids(1)).unwrap().loss).collect()
}

#[test]
fn a_service_trains_as_the_runtime_does() {
    let (_folder, crate_dir) = emitted();
    with_examples(&crate_dir, &[("service", SERVICE), ("page", &page_example())]);
    let printed = run(&crate_dir, "service");
    let losses: Vec<f32> = printed.lines().map(|line| f32::from_bits(line.parse().unwrap())).collect();
    assert_eq!(losses, by_session(&crate_dir));
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{losses:?}");
    assert_eq!(run(&crate_dir, "page").lines().count(), STEPS + 1, "twenty steps and the table");
}

#[test]
fn the_crate_reads_as_its_program() {
    let (_folder, crate_dir) = emitted();
    let text = fs::read_to_string(crate_dir.join("src/lib.rs")).unwrap();
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(file("suite/bindings"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!("bigram", text));
}

#[test]
fn a_crate_is_made_anew_but_never_written_over_another() {
    let (_folder, crate_dir) = emitted();
    let read = |path: &str| fs::read_to_string(crate_dir.join(path)).unwrap();
    let before = (read("Cargo.toml"), read("src/lib.rs"), read("program.dspx/program.json"));
    assert_eq!(emit(&crate_dir, &[]), dspc::exit::Exit::Success);
    assert_eq!((read("Cargo.toml"), read("src/lib.rs"), read("program.dspx/program.json")), before);
    for path in ["Cargo.toml", "src/lib.rs"] {
        let ours = read(path);
        fs::write(crate_dir.join(path), "# somebody's own\n").unwrap();
        assert_eq!(emit(&crate_dir, &[]), dspc::exit::Exit::InputErrors, "{path}");
        assert_eq!(read(path), "# somebody's own\n");
        fs::write(crate_dir.join(path), ours).unwrap();
    }
}

#[test]
fn what_the_crate_would_lack_is_said_before_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let crate_dir = folder.path().join("x");
    let nowhere = folder.path().to_str().unwrap();
    assert_eq!(emit(&crate_dir, &["--runtime-path", nowhere]), dspc::exit::Exit::Environment);
    assert_eq!(emit(&crate_dir, &["--target", "sm_80"]), dspc::exit::Exit::InputErrors);
    assert!(!crate_dir.exists());
}
