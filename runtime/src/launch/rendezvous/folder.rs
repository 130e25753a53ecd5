//! Meeting in a folder that all hosts share, where no port is open.
//!
//! Rank 0 writes a number used once; a rank writes its hello for that number; rank 0 writes its word for all of the ranks' own numbers. Every file
//! appears whole or not at all, and what is left of an earlier meeting is for other numbers, so nobody heeds it.

use super::frame::{self, BYTES_MAX, HELLO_MAX, Token};
use super::{Answer, Hello, Met, Options, Progress, judge};
use crate::launch::error::LaunchError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// A shared folder shows a new file late; looking more often helps nobody.
const LOOK: Duration = Duration::from_millis(50);
const OPEN: &str = "open";
const WORD: &str = "word";
/// Nobody's number: these files say themselves whom they are for.
const NOBODY: [u8; 32] = [0; 32];

#[derive(Serialize, Deserialize)]
struct Note {
    /// The meeting's number.
    meeting: [u8; 32],
    /// The rank's own.
    nonce: [u8; 32],
    hello: Hello,
}

#[derive(Serialize, Deserialize)]
struct Word {
    /// Those of the ranks it is for.
    nonces: BTreeMap<u64, [u8; 32]>,
    answer: Answer,
}

fn put<T: Serialize>(folder: &Path, name: &str, token: &Token, message: &T) -> io::Result<()> {
    let bytes = frame::write(token, &NOBODY, message)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&bytes)?;
    file.as_file().sync_all()?;
    file.persist(folder.join(name)).map(|_| ()).map_err(|e| e.error)
}

fn get<T: serde::de::DeserializeOwned>(
    folder: &Path,
    name: &str,
    token: &Token,
    most: usize,
) -> io::Result<T> {
    frame::read(&mut std::fs::File::open(folder.join(name))?, token, &NOBODY, most)
}

fn hello_file(rank: u64) -> String {
    format!("rank-{rank}")
}

/// Waits for all ranks, and answers them.
pub(super) fn host(
    folder: &Path,
    hello: &Hello,
    options: &Options,
    deadline: Instant,
    gift: impl FnOnce(&[Hello]) -> Result<Vec<u8>, LaunchError>,
    say: &mut dyn FnMut(&str),
) -> Result<Met, LaunchError> {
    let (place, token) = (options.place.to_string(), &options.token);
    let closed = |e: io::Error| LaunchError::PortTaken { place: place.clone(), reason: e.to_string() };
    let meeting = frame::nonce().map_err(closed)?;
    std::fs::create_dir_all(folder).map_err(closed)?;
    put(folder, OPEN, token, &meeting).map_err(closed)?;
    let mut there = BTreeMap::new();
    let mut nonces = BTreeMap::new();
    let mut progress = Progress::new();
    let all_came = 'come: loop {
        let missing: Vec<u64> = (1..hello.world).filter(|rank| !there.contains_key(rank)).collect();
        for &rank in &missing {
            let Ok(note) = get::<Note>(folder, &hello_file(rank), token, HELLO_MAX) else { continue };
            if note.meeting != meeting || note.hello.restarts != hello.restarts {
                continue;
            }
            let admitted = judge::admits(hello, &there, &note.hello);
            nonces.insert(rank, note.nonce);
            there.insert(rank, note.hello);
            if let Err(fault) = admitted {
                break 'come Err(fault);
            }
        }
        if there.len() as u64 + 1 == hello.world {
            break Ok(());
        }
        if Instant::now() >= deadline {
            let missing = (1..hello.world).filter(|rank| !there.contains_key(rank)).collect();
            let (place, seconds) = (place.clone(), options.timeout.as_secs());
            break Err(LaunchError::RanksMissing { world: hello.world, missing, place, seconds });
        }
        progress.due(say, || format!("waiting at {place} for ranks {missing:?}"));
        std::thread::sleep(LOOK);
    };
    let answer = Answer::of(all_came, hello, there, gift);
    put(folder, WORD, token, &Word { nonces, answer: answer.clone() }).map_err(closed)?;
    answer.into()
}

/// Goes to rank 0 until it answers.
pub(super) fn visit(
    folder: &Path,
    hello: &Hello,
    options: &Options,
    deadline: Instant,
    say: &mut dyn FnMut(&str),
) -> Result<Met, LaunchError> {
    let (place, token, rank) = (options.place.to_string(), &options.token, hello.rank);
    let unreachable = |reason: String| {
        let seconds = options.timeout.as_secs();
        LaunchError::MasterUnreachable { rank, place: place.clone(), seconds, reason }
    };
    let nonce = frame::nonce().map_err(|e| unreachable(e.to_string()))?;
    let mut written: Option<[u8; 32]> = None;
    let mut progress = Progress::new();
    loop {
        let reason = match get::<[u8; 32]>(folder, OPEN, token, HELLO_MAX) {
            Ok(meeting) if written != Some(meeting) => {
                let note = Note { meeting, nonce, hello: hello.clone() };
                match put(folder, &hello_file(rank), token, &note) {
                    Ok(()) => {
                        written = Some(meeting);
                        String::new()
                    }
                    Err(e) => e.to_string(),
                }
            }
            Ok(_) => "rank 0 has written no word for this rank".into(),
            Err(e) => e.to_string(),
        };
        if let Ok(word) = get::<Word>(folder, WORD, token, BYTES_MAX)
            && word.nonces.get(&rank) == Some(&nonce)
        {
            return word.answer.into();
        }
        // Once rank 0 has opened the meeting, it has all its own time.
        let until = if written.is_some() { deadline + options.timeout } else { deadline };
        if Instant::now() >= until {
            return Err(unreachable(reason));
        }
        progress.due(say, || format!("rank {rank} looks for rank 0 at {place}: {reason}"));
        std::thread::sleep(LOOK);
    }
}
