//! Real processes: ranks that work, and ranks that are killed, stopped, abort, panic or fail at some time.
//!
//! A rank is this test binary, started again for one test that does a rank's work when its variables are set. The trials in number are slow:
//! `cargo test -p dspc-runtime --lib -- --ignored two_hundred`

use super::*;
use crate::communicator::{Communicator, guarded};
use crate::launch::discover::{Discovered, Environment, Flags, discover};
use crate::launch::join::{Facts, On, join_host};
use rustix::process::test_kill_process;
use std::sync::Mutex;

/// What goes wrong, on which rank, after how many milliseconds.
const FAULT: &str = "DSPC_TEST_FAULT";
const ROLE: &str = "DSPC_TEST_ROLE";

/// Processes take cores from one another; one world at a time keeps the limits on time meaningful.
static ONE: Mutex<()> = Mutex::new(());

fn again(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "launch::process::tests::a_process_of_these_tests", "--nocapture", "--quiet"]);
    command.env(ROLE, role);
    command
}

/// Not a test: what the processes of the others do.
#[test]
fn a_process_of_these_tests() {
    match std::env::var(ROLE).as_deref() {
        Ok("rank") => std::process::exit(rank()),
        Ok("supervisor") => {
            let crew = Crew { first: 0, local: 3, world: 3, place: None };
            let stop = AtomicBool::new(false);
            let ended = supervise(&crew, &mut |_| again("rank"), &stop, &mut |line| println!("{line}"));
            std::process::exit(ended.unwrap().code);
        }
        _ => {}
    }
}

fn report(error: &Error) -> i32 {
    eprintln!("error[{}]: {error}\n  = help: {}", error.code(), error.remedy());
    error.exit_code()
}

fn rank() -> i32 {
    if let Err(error) = bind_to_supervisor() {
        return report(&error);
    }
    let environment: Environment = std::env::vars().collect();
    let parent = rustix::process::getppid().map_or(0, |p| p.as_raw_nonzero().get() as u32);
    let Ok(Discovered::Rank(rank)) = discover(&Flags::default(), &environment, parent) else { return 2 };
    eprintln!("process {}", std::process::id());
    let fault = environment.get(FAULT).cloned().unwrap_or_default();
    let fault: Vec<&str> = fault.split(':').collect();
    let fault = match fault[..] {
        [how, whose, after] if whose == rank.rank.to_string() => Some((how, after.parse::<u64>().unwrap())),
        _ => None,
    };
    let mut facts = Facts { version: "1".into(), program: "4ae1".into(), ..Facts::default() };
    if let Some(("odd", _)) = fault {
        facts.program = "beef".into();
    }
    let give_up = |cause: &Cause| {
        report(&cause.error());
        std::process::exit(8)
    };
    let joined = join_host(&rank, On::Cpu, &facts, &environment, "dspc run x.dspx", give_up, &mut |_| ());
    let communicator = match joined {
        Ok(communicator) => communicator,
        Err(error) => return report(&error),
    };
    match guarded(&*communicator, || work(&*communicator, fault)) {
        Ok(()) => 0,
        Err(error) => report(&error),
    }
}

/// Some steps of gates, or endlessly many where something is to go wrong.
fn work(communicator: &dyn Communicator, fault: Option<(&str, u64)>) -> Result<(), Error> {
    let begun = Instant::now();
    let signal = |signal| _ = kill_process(rustix::process::getpid(), signal);
    for step in 1.. {
        communicator.at_step(step);
        let all = communicator.all_gather(&step.to_le_bytes())?;
        assert!(all.iter().all(|one| one == &step.to_le_bytes()));
        let Some((how, after)) = fault else {
            if std::env::var_os(FAULT).is_none() && step == 200 {
                break;
            }
            continue;
        };
        if begun.elapsed() < Duration::from_millis(after) {
            continue;
        }
        match how {
            "kill" => signal(Signal::KILL),
            "stop" => signal(Signal::STOP),
            "abort" => std::process::abort(),
            "panic" => panic!("on purpose"),
            "leave" => return Ok(()),
            "busy" => std::thread::sleep(Duration::from_secs(60)),
            _ => return Err(Error::PromptEmpty),
        }
    }
    Ok(())
}

/// How a world ended, what it said, how long it took from the fault on, and that nobody is left of it.
fn world(ranks: u64, fault: Option<(&str, u64, u64)>) -> (Ended, Vec<String>, Duration) {
    let crew = Crew { first: 0, local: ranks, world: ranks, place: None };
    let mut lines = Vec::new();
    let begun = Instant::now();
    let start = &mut |_| {
        let mut command = again("rank");
        if let Some((how, whose, after)) = fault {
            command.env(FAULT, format!("{how}:{whose}:{after}"));
        }
        command
    };
    let ended = supervise(&crew, start, &AtomicBool::new(false), &mut |line| lines.push(line.into()));
    let took = begun.elapsed().saturating_sub(Duration::from_millis(fault.map_or(0, |f| f.2)));
    let processes =
        lines.iter().filter_map(|line: &String| line.split("process ").nth(1)?.parse::<i32>().ok());
    for process in processes {
        let left = Pid::from_raw(process).is_some_and(|pid| test_kill_process(pid).is_ok());
        assert!(!left, "process {process} is left");
    }
    (ended.unwrap(), lines, took)
}

fn said(lines: &[String], words: &str) -> bool {
    lines.iter().any(|line| line.contains(words))
}

#[test]
fn ranks_work_and_end() {
    let _one = ONE.lock();
    let (ended, lines, _) = world(3, None);
    assert_eq!(ended, Ended { code: 0, cause: None }, "{lines:#?}");
    // The first rank speaks for all; what another says has its number.
    for start in ["process ", "rank 1: process ", "rank 2: process "] {
        assert!(lines.iter().any(|line| line.starts_with(start)), "{lines:#?}");
    }
}

#[test]
fn a_rank_that_is_killed_or_crashes_ends_all_within_seconds() {
    let _one = ONE.lock();
    for (how, whose, words) in [
        ("kill", 2, "it was killed by signal 9 (SIGKILL) (process "),
        ("abort", 0, "it was killed by signal 6 (SIGABRT) (process "),
        ("panic", 1, "it panicked: on purpose"),
    ] {
        let (ended, lines, took) = world(3, Some((how, whose, 120)));
        let cause = ended.cause.unwrap();
        assert_eq!((ended.code, cause.rank), (8, whose), "{lines:#?}");
        assert!(cause.what.starts_with(words), "{cause:?}");
        assert!(took < Duration::from_secs(5), "{how}: {took:?}");
        let others: Vec<u64> = (0..3).filter(|&rank| rank != whose).collect();
        let because = format!(
            "rank {} ended because rank {whose} failed: {words}",
            crate::launch::error::ranks(&others)
        );
        assert!(said(&lines, &because), "{because}\n{lines:#?}");
    }
}

#[test]
fn a_rank_that_is_stopped_is_missed_and_does_not_stay() {
    let _one = ONE.lock();
    let (ended, lines, took) = world(2, Some(("stop", 1, 100)));
    let cause = ended.cause.unwrap();
    assert_eq!((ended.code, cause.rank), (8, 1), "{lines:#?}");
    assert!(cause.what.starts_with("it stopped answering for 6 s (process "), "{cause:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn a_fault_of_ones_own_comes_first_and_gives_the_exit_code() {
    let _one = ONE.lock();
    let (ended, lines, _) = world(3, Some(("fail", 2, 50)));
    assert_eq!(ended.code, Error::PromptEmpty.exit_code());
    let first = lines.iter().position(|line| line.contains("error[")).unwrap();
    assert_eq!(lines[first], "rank 2: error[R0605]: the prompt is empty");
    assert!(
        said(&lines, "rank 0 and 1 ended because rank 2 failed: error[R0605]: the prompt is empty"),
        "{lines:#?}"
    );
}

#[test]
fn a_rank_that_leaves_early_ends_the_others() {
    let _one = ONE.lock();
    let (ended, lines, took) = world(2, Some(("leave", 0, 50)));
    assert_eq!(ended.cause.map(|cause| cause.rank), Some(0), "{lines:#?}");
    assert!(said(&lines, "it ended while others go on"), "{lines:#?}");
    assert!(took < Duration::from_secs(5));
}

#[test]
fn a_different_program_is_refused_and_the_rank_named() {
    let _one = ONE.lock();
    let (ended, lines, took) = world(4, Some(("odd", 2, 0)));
    assert_eq!(ended.code, 7, "{lines:#?}");
    assert!(said(&lines, "error[R0826]: rank 2 (process "), "{lines:#?}");
    assert!(said(&lines, "has another program than all others: beef, and not 4ae1"), "{lines:#?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn no_rank_outlives_its_supervisor() {
    let _one = ONE.lock();
    let mut supervisor = again("supervisor").env(FAULT, "none:9:0").stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(supervisor.stdout.take().unwrap()).lines().map_while(Result::ok);
    let ranks: Vec<i32> =
        lines.filter_map(|line| line.split("process ").nth(1)?.parse().ok()).take(3).collect();
    assert_eq!(ranks.len(), 3);
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    let until = Instant::now() + Duration::from_secs(5);
    // Whoever has no parent left is waited for by the system's first process; until then it is seen as dead.
    let alive = |pid: i32| {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
        state.is_some_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
    };
    while ranks.iter().any(|&pid| alive(pid)) {
        assert!(Instant::now() < until, "a rank is left");
        std::thread::sleep(LOOK);
    }
}

/// As torchrun and mpirun start ranks: nobody of ours waits for them.
#[test]
fn ranks_of_a_launcher_see_for_themselves_that_one_is_lost() {
    let _one = ONE.lock();
    let job = format!("test-{}", std::process::id());
    let start = |rank: u64| {
        let mut command = again("rank");
        command.env("DSPC_RANK", rank.to_string()).env("DSPC_WORLD", "3").env("DSPC_JOB", &job);
        command.env(FAULT, "kill:1:150").stderr(Stdio::piped()).stdout(Stdio::null());
        command.spawn().unwrap()
    };
    let begun = Instant::now();
    let ranks: Vec<Child> = (0..3).map(start).collect();
    for (rank, child) in ranks.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        if rank == 1 {
            assert_eq!(output.status.signal(), Some(9), "{text}");
        } else {
            assert_eq!(output.status.code(), Some(8), "{text}");
            assert!(
                text.contains("error[R0801]: rank 1 failed: it ended without a word (process "),
                "{text}"
            );
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

/// A rank in the middle of something long cannot be woken, and ends all the same.
#[test]
fn a_rank_that_is_busy_ends_too() {
    let _one = ONE.lock();
    let job = format!("busy-{}", std::process::id());
    let start = |rank: u64| {
        let mut command = again("rank");
        command.env("DSPC_RANK", rank.to_string()).env("DSPC_WORLD", "2").env("DSPC_JOB", &job);
        command.env(FAULT, "busy:0:50").stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
    };
    let begun = Instant::now();
    let mut ranks: Vec<Child> = (0..2).map(start).collect();
    std::thread::sleep(Duration::from_secs(1));
    ranks[1].kill().unwrap();
    let output = ranks.remove(0).wait_with_output().unwrap();
    ranks[0].wait().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(8), "{text}");
    assert!(text.contains("rank 1 failed: it ended without a word"), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
}

#[test]
#[ignore = "slow: minutes; 200 worlds, each with a fault at a time of its own"]
fn two_hundred_faults_at_random_times_and_nobody_hangs() {
    let _one = ONE.lock();
    let mut seed = u64::from(std::process::id());
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    for trial in 0..200 {
        let ranks = [2, 4, 8][random(3) as usize];
        let (whose, after) = (random(ranks), random(400));
        let how = match trial % 20 {
            19 => "stop",
            n if n % 5 == 1 => "abort",
            n if n % 5 == 2 => "panic",
            _ => "kill",
        };
        let (ended, lines, took) = world(ranks, Some((how, whose, after)));
        let what = format!("trial {trial}: {how} of rank {whose} of {ranks} after {after} ms: {took:?}");
        eprintln!("{what}");
        assert_eq!(ended.cause.map(|cause| cause.rank), Some(whose), "{what}\n{lines:#?}");
        assert_eq!(ended.code, 8, "{what}");
        assert!(took < Duration::from_secs(if how == "stop" { 12 } else { 7 }), "{what}");
    }
}
