//! Ranks that are processes, of our own supervisor and of other launchers: the same bits as one rank, and no rank left over when one is killed.
//!
//! What needs a launcher that is not here is skipped by name. For MPI's data plane the plug-in is built first, once for each MPI:
//! `MPICC=mpicc.openmpi cargo build --manifest-path runtime/mpi/Cargo.toml --target-dir target/mpi-openmpi`, and the same for `mpich`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a panic is the report, a line says what did not run or what a child measured"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dspc_tests::file;

fn dspc() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("dspc");
    assert!(path.exists(), "{} is not there: `cargo build -p dspc` first, or run ./test", path.display());
    path
}

/// A small GPT-2 that is the same on all layouts.
fn spec(steps: u64) -> String {
    format!(
        "use std::gpt2\n\
         model = gpt2::gpt2(layers: 2, heads: 2, width: 32, vocab: data.vocab, context: 24, dropout: 10%)\n\
         data {{\n  text: [\"text.txt\"]\n  tokenizer: \"bytes\"\n  sequence: 16\n}}\n\
         optimizer = adamw(lr: 3e-3, weight_decay: 0.1)\n\
         precision = fp32\nparallel = mesh(data: auto)\nzero = stage(2)\ndeterministic = true\n\
         train {{\n  batch: 8\n  micro_batch: 1\n  steps: {steps}\n  clip: 1.0\n}}\n"
    )
}

fn folder(steps: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("train.dsp"), spec(steps)).unwrap();
    std::fs::copy(file("../examples/data/shakespeare.txt"), folder.path().join("text.txt")).unwrap();
    folder
}

/// A command in a folder, which has a cache of its own and knows nothing of a launcher around the tests.
fn command(folder: &Path, program: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).env("DSPC_CACHE", folder.join("cache")).args(words);
    for name in ["RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "PMI_RANK", "OMPI_COMM_WORLD_SIZE"] {
        command.env_remove(name);
    }
    command
}

/// The exit code, and what was said.
fn run(mut command: Command) -> (i32, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn fingerprint(talk: &str) -> &str {
    let line = talk.lines().find(|line| line.starts_with("fingerprint "));
    line.unwrap_or_else(|| panic!("no fingerprint:\n{talk}"))
}

const RUN: [&str; 5] = ["run", "train.dsp", "--device", "cpu", "--no-save"];

/// The fingerprint of one rank alone.
fn alone(folder: &Path) -> String {
    let (code, talk) = run(command(folder, &dspc(), &[&RUN[..], &["--ranks", "1"]].concat()));
    assert_eq!(code, 0, "{talk}");
    fingerprint(&talk).to_string()
}

fn in_path(name: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&paths).map(|folder| folder.join(name)).collect::<Vec<_>>();
    found.into_iter().find(|file| file.is_file())
}

#[test]
fn processes_have_the_bits_of_threads_and_of_one_rank() {
    let folder = folder(4);
    let expected = alone(folder.path());
    for mode in ["thread", "process"] {
        let words = [&RUN[..], &["--ranks", "4", "--rank-mode", mode]].concat();
        let (code, talk) = run(command(folder.path(), &dspc(), &words));
        assert_eq!(code, 0, "{mode}: {talk}");
        assert_eq!(fingerprint(&talk), expected, "{mode}");
    }
}

/// Processes whose command line or parent says that they belong to this folder's run.
fn ranks_of(folder: &Path) -> Vec<i32> {
    let own = |pid: i32| {
        let variables = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let text = String::from_utf8_lossy(&variables);
        text.contains(&format!("DSPC_CACHE={}", folder.join("cache").display()))
            && text.contains("DSPC_SUPERVISOR=")
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).filter(|&pid| own(pid)).collect()
}

fn kill(signal: &str, pid: i32) {
    assert!(Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status().unwrap().success());
}

#[test]
fn a_rank_that_is_killed_ends_a_run_within_seconds() {
    let folder = folder(1_000_000);
    let words = [&RUN[..], &["--ranks", "4", "--rank-mode", "process"]].concat();
    let (code, talk) = run(command(folder.path(), &dspc(), &[&words[..], &["--max-steps", "1"]].concat()));
    assert_eq!(code, 0, "{talk}");
    let supervisor =
        command(folder.path(), &dspc(), &words).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while ranks_of(folder.path()).len() < 4 {
        assert!(Instant::now() < until, "the ranks do not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_secs(2));
    let ranks = ranks_of(folder.path());
    kill("KILL", ranks[1]);
    let begun = Instant::now();
    let output = supervisor.wait_with_output().unwrap();
    let talk = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}\n{talk}", begun.elapsed());
    assert_eq!(output.status.code(), Some(8), "{talk}");
    assert!(talk.contains("it was killed by signal 9 (SIGKILL)"), "{talk}");
    assert_eq!(ranks_of(folder.path()), Vec::<i32>::new());
}

#[test]
fn a_signal_stops_all_ranks_after_the_same_step_and_saves() {
    let folder = folder(1_000_000);
    let words =
        ["run", "train.dsp", "--device", "cpu", "--ranks", "2", "--rank-mode", "process", "--out", "runs/x"];
    let supervisor =
        command(folder.path(), &dspc(), &words).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(90);
    let log = folder.path().join("runs/x/metrics.jsonl");
    while std::fs::metadata(&log).map_or(0, |file| file.len()) == 0 {
        assert!(Instant::now() < until, "the run does not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    kill("TERM", supervisor.id() as i32);
    let output = supervisor.wait_with_output().unwrap();
    let talk = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(75), "{talk}");
    assert!(talk.contains("saved in runs/x/checkpoint-"), "{talk}");
}

struct Mpi {
    launcher: PathBuf,
    plug_in: Option<PathBuf>,
    words: &'static [&'static str],
    /// Ranks over the plug-in. MPICH's wait without giving way, so more of them than cores take turns for ever.
    over_mpi: &'static str,
}

/// The MPIs of this host.
fn mpis() -> Vec<Mpi> {
    type Row = (&'static str, &'static [&'static str], &'static str);
    let known: [Row; 2] = [("openmpi", &["--oversubscribe"], "8"), ("mpich", &[], "2")];
    let of = |(name, words, over_mpi): Row| {
        let launcher = in_path(&format!("mpirun.{name}"))?;
        let plug_in = file(&format!("../target/mpi-{name}/debug/libdspc_comm_mpi.so"));
        Some(Mpi { launcher, plug_in: plug_in.is_file().then_some(plug_in), words, over_mpi })
    };
    let found: Vec<Mpi> = known.into_iter().filter_map(of).collect();
    if found.is_empty() {
        eprintln!("SKIPPED: neither mpirun.openmpi nor mpirun.mpich is here");
    }
    found
}

fn under_mpi(folder: &Path, mpi: &Mpi, ranks: &str, more: &[&str]) -> (i32, String) {
    let own = dspc();
    let words = [mpi.words, &["-np", ranks, own.to_str().unwrap()], &RUN, more].concat();
    let mut command = command(folder, &mpi.launcher, &words);
    // Open MPI asks whoever is root whether that is meant.
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    if let Some(plug_in) = &mpi.plug_in {
        command.env("DSPC_COMM_MPI", plug_in);
    }
    run(command)
}

#[test]
fn eight_ranks_under_mpirun_have_the_bits_of_one() {
    let mpis = mpis();
    if mpis.is_empty() {
        return;
    }
    let folder = folder(3);
    let expected = alone(folder.path());
    for mpi in &mpis {
        let (code, talk) = under_mpi(folder.path(), mpi, "8", &[]);
        assert_eq!(code, 0, "{}: {talk}", mpi.launcher.display());
        assert_eq!(fingerprint(&talk), expected, "{}", mpi.launcher.display());
        assert!(talk.contains("processes of one host"), "{talk}");
        if mpi.plug_in.is_none() {
            eprintln!("SKIPPED: no plug-in for {}", mpi.launcher.display());
            continue;
        }
        let (code, talk) = under_mpi(folder.path(), mpi, mpi.over_mpi, &["--comm", "mpi"]);
        assert_eq!(code, 0, "{}: {talk}", mpi.launcher.display());
        assert_eq!(fingerprint(&talk), expected, "{}", mpi.launcher.display());
        assert!(talk.contains(&format!("{} ranks over MPI", mpi.over_mpi)), "{talk}");
    }
}

#[test]
fn ranks_of_torchrun_have_the_bits_of_one() {
    let Some(torchrun) = in_path("torchrun") else {
        eprintln!("SKIPPED: no torchrun is here");
        return;
    };
    let folder = folder(3);
    let expected = alone(folder.path());
    let own = dspc();
    let launch = ["--standalone", "--nproc-per-node", "4", "--no-python", own.to_str().unwrap()];
    let (code, talk) = run(command(folder.path(), &torchrun, &[&launch[..], &RUN].concat()));
    assert_eq!(code, 0, "{talk}");
    assert!(talk.contains("rank 0 of 4, 0 of 4 on this host, by torchrun (RANK)"), "{talk}");
    assert_eq!(fingerprint(&talk), expected);
}

#[test]
fn what_a_launcher_says_wrongly_is_told_before_anything_is_built() {
    let folder = folder(1);
    let refuse = |variables: &[(&str, &str)]| {
        let mut command = command(folder.path(), &dspc(), &RUN);
        command.envs(variables.iter().copied()).env("DSPC_RENDEZVOUS_TIMEOUT", "1");
        run(command)
    };
    let (code, talk) = refuse(&[("DSPC_RANK", "4"), ("DSPC_WORLD", "4")]);
    assert_eq!(code, 5);
    assert!(talk.starts_with("error[R0820]: DSPC_RANK is \"4\", which is not below DSPC_WORLD=4"), "{talk}");
    let alone = [("DSPC_RANK", "1"), ("DSPC_WORLD", "2"), ("DSPC_RENDEZVOUS", "tcp://127.0.0.1:9")];
    let (code, talk) = refuse(&alone);
    assert_eq!(code, 8, "{talk}");
    assert!(
        talk.contains("error[R0822]: rank 1 cannot reach rank 0 at tcp://127.0.0.1:9 within 1 s"),
        "{talk}"
    );
    let hosts =
        [("DSPC_RANK", "1"), ("DSPC_WORLD", "4"), ("DSPC_LOCAL_RANK", "1"), ("DSPC_LOCAL_WORLD", "2")];
    let (code, talk) = refuse(&hosts);
    assert_eq!(code, 5, "{talk}");
    assert!(talk.contains("error[R0830]: 4 ranks on 2 hosts"), "{talk}");
    assert!(talk.contains("mpirun -np 4 --hostfile hosts dspc run train.dsp --comm mpi"), "{talk}");
}
