//! Ranks meet once, before the first step: each says what it is, rank 0 compares, and all get one answer.
//!
//! The answer is what rank 0 gives all ranks (ids of NCCL's groups, the name of shared memory), or the one fault that ends them all. Whoever is no
//! rank of this launch is turned away: frames are short, and carry a code that only those who know the launch's token can make. Nothing is kept
//! open afterwards. It is no store and no data plane.

mod folder;
mod frame;
mod judge;
mod link;

use super::discover::Place;
use super::error::LaunchError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

pub use frame::Token;

/// Time for all ranks to come, if nothing else is said.
pub const TIMEOUT: Duration = Duration::from_secs(600);
/// From one line about who is missing to the next.
const PROGRESS: Duration = Duration::from_secs(10);
/// How long something that is no rank of ours may answer in rank 0's place: it may be on its way out.
const STRANGER: Duration = Duration::from_secs(10);
/// How long rank 0 stays to tell late ranks why it ends.
const LINGER: Duration = Duration::from_secs(2);
/// From one look at whether somebody came to the next.
const POLL: Duration = Duration::from_millis(10);

/// What a rank says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Hello {
    /// The compiler's version.
    pub version: String,
    /// Hash of the program and its kernels, hex.
    pub program: String,
    /// Hash of `dspc.lock`, hex; empty without one.
    pub lock: String,
    /// Hash of the text, hex.
    pub data: String,
    /// From 0.
    pub rank: u64,
    /// Ranks in all, as this one was told.
    pub world: u64,
    /// The host's name.
    pub host: String,
    /// The process.
    pub process: u32,
    /// How often the launcher has started the job again.
    pub restarts: u64,
}

impl Hello {
    /// `process 4711 on n1`
    pub fn who(&self) -> String {
        format!("process {} on {}", self.process, self.host)
    }
}

/// Whether ranks that met in another way belong together.
///
/// # Errors
/// R0826.
pub(crate) fn agree(ranks: &[Hello]) -> Result<(), LaunchError> {
    judge::agree(ranks)
}

/// How ranks meet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Where.
    pub place: Place,
    /// Known to this launch's ranks alone.
    pub token: Token,
    /// Time for all to come.
    pub timeout: Duration,
}

/// What all ranks know once they have met.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Met {
    /// By rank.
    pub ranks: Vec<Hello>,
    /// What rank 0 gives.
    pub gift: Vec<u8>,
}

impl Met {
    /// Hosts that the ranks are on.
    pub fn hosts(&self) -> u64 {
        let names: std::collections::BTreeSet<&str> = self.ranks.iter().map(|r| r.host.as_str()).collect();
        names.len() as u64
    }
}

/// Rank 0's word to all.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Met(Met),
    Fault(LaunchError),
}

impl Answer {
    /// Once rank 0 knows whether all came: they must agree, and get its gift.
    fn of(
        all_came: Result<(), LaunchError>,
        first: &Hello,
        others: BTreeMap<u64, Hello>,
        gift: impl FnOnce(&[Hello]) -> Result<Vec<u8>, LaunchError>,
    ) -> Self {
        let met = all_came.and_then(|()| {
            let ranks: Vec<Hello> = std::iter::once(first.clone()).chain(others.into_values()).collect();
            judge::agree(&ranks)?;
            Ok(Met { gift: gift(&ranks)?, ranks })
        });
        met.map_or_else(Self::Fault, Self::Met)
    }
}

impl From<Answer> for Result<Met, LaunchError> {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Met(met) => Ok(met),
            Answer::Fault(fault) => Err(fault),
        }
    }
}

/// Meets the other ranks. Rank 0 makes the `gift` once all have come and agree; `say` takes lines about who is missing.
///
/// # Errors
/// R0821 to R0827 and R0836; what `gift` fails with, on all ranks.
pub fn meet(
    hello: &Hello,
    options: &Options,
    gift: impl FnOnce(&[Hello]) -> Result<Vec<u8>, LaunchError>,
    say: &mut dyn FnMut(&str),
) -> Result<Met, LaunchError> {
    let deadline = Instant::now() + options.timeout;
    match (&options.place, hello.rank) {
        _ if hello.world == 1 => {
            gift(std::slice::from_ref(hello)).map(|gift| Met { ranks: vec![hello.clone()], gift })
        }
        (Place::File(folder), 0) => folder::host(folder, hello, options, deadline, gift, say),
        (Place::File(folder), _) => folder::visit(folder, hello, options, deadline, say),
        (_, 0) => link::host(hello, options, deadline, gift, say),
        (_, _) => link::visit(hello, options, deadline, say),
    }
}

/// Says who is missing, now and then.
struct Progress {
    said: Instant,
    begun: Instant,
}

impl Progress {
    fn new() -> Self {
        Self { said: Instant::now(), begun: Instant::now() }
    }

    fn due(&mut self, say: &mut dyn FnMut(&str), line: impl FnOnce() -> String) {
        if self.said.elapsed() >= PROGRESS {
            self.said = Instant::now();
            say(&format!("{} ({} s)", line(), self.begun.elapsed().as_secs()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    fn hello(rank: u64, world: u64) -> Hello {
        Hello {
            version: "0.1.0".into(),
            program: "4ae1".into(),
            lock: "77".into(),
            data: "da7a".into(),
            rank,
            world,
            host: "n1".into(),
            process: 100 + rank as u32,
            restarts: 0,
        }
    }

    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    fn local(port: u16) -> Place {
        Place::Tcp { host: "127.0.0.1".into(), port }
    }

    fn options(place: &Place, seconds: u64) -> Options {
        Options { place: place.clone(), token: Token::of("secret"), timeout: Duration::from_secs(seconds) }
    }

    /// Every rank's result, by rank of the hellos.
    fn all(place: &Place, seconds: u64, hellos: &[Hello]) -> Vec<Result<Met, LaunchError>> {
        std::thread::scope(|scope| {
            let meet = |hello: &Hello| {
                let (hello, options) = (hello.clone(), options(place, seconds));
                scope.spawn(move || {
                    let gift = |ranks: &[Hello]| Ok(vec![ranks.len() as u8]);
                    meet(&hello, &options, gift, &mut |_| ())
                })
            };
            let threads: Vec<_> = hellos.iter().map(meet).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    fn places(dir: &std::path::Path) -> Vec<Place> {
        vec![
            local(free_port()),
            Place::Unix(dir.join("socket")),
            Place::Job(format!("test-{}", dir.display())),
            Place::File(dir.join("folder")),
        ]
    }

    #[test]
    fn all_ranks_know_all_and_have_what_rank_0_gives() {
        let dir = tempfile::tempdir().unwrap();
        for place in places(dir.path()) {
            // Again at once: nothing of the first meeting is in the way of the second.
            for world in [5, 3] {
                let hellos: Vec<Hello> = (0..world).rev().map(|rank| hello(rank, world)).collect();
                for met in all(&place, 20, &hellos) {
                    let met = met.unwrap();
                    assert_eq!(met.gift, [world as u8]);
                    assert_eq!(met.ranks, (0..world).map(|rank| hello(rank, world)).collect::<Vec<_>>());
                    assert_eq!(met.hosts(), 1);
                }
            }
        }
    }

    #[test]
    fn the_odd_rank_is_named_by_all() {
        let dir = tempfile::tempdir().unwrap();
        for place in places(dir.path()) {
            let mut hellos: Vec<Hello> = (0..4).map(|rank| hello(rank, 4)).collect();
            hellos[2].program = "beef".into();
            for met in all(&place, 20, &hellos) {
                let words =
                    "rank 2 (process 102 on n1) has another program than all others: beef, and not 4ae1";
                assert_eq!(met.unwrap_err().to_string(), words);
            }
        }
    }

    #[test]
    fn a_gift_that_cannot_be_made_ends_all() {
        let place = local(free_port());
        let results: Vec<_> = std::thread::scope(|scope| {
            let meet = |rank| {
                let options = options(&place, 20);
                let fault = LaunchError::SharedMemory { ranks: 2, reason: "no".into() };
                scope.spawn(move || meet(&hello(rank, 2), &options, |_| Err(fault), &mut |_| ()))
            };
            let threads: Vec<_> = (0..2).map(meet).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(results.iter().all(|r| r.as_ref().unwrap_err().code() == "R0833"), "{results:?}");
    }

    #[test]
    fn ranks_that_do_not_come_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for place in places(dir.path()) {
            let results = all(&place, 1, &[hello(0, 4), hello(2, 4)]);
            let words = format!("2 of 4 ranks did not come to {place} within 1 s: 1 and 3");
            assert!(results.iter().all(|r| r.as_ref().unwrap_err().to_string() == words), "{results:?}");
        }
    }

    #[test]
    fn a_rank_0_that_does_not_come_is_unreachable() {
        let dir = tempfile::tempdir().unwrap();
        for place in places(dir.path()) {
            let begun = Instant::now();
            let error = all(&place, 1, &[hello(1, 2)]).remove(0).unwrap_err();
            assert_eq!(error.code(), "R0822", "{error}");
            assert!(begun.elapsed() < Duration::from_secs(4));
        }
    }

    #[test]
    fn a_port_in_use_is_no_place_to_meet() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = local(taken.local_addr().unwrap().port());
        let error = all(&place, 5, &[hello(0, 2)]).remove(0).unwrap_err();
        assert_eq!(error.code(), "R0821");
        assert!(error.to_string().starts_with(&format!("rank 0 cannot listen at {place}: ")), "{error}");
    }

    #[test]
    fn another_world_and_a_rank_twice_end_all() {
        let mut odd = hello(1, 2);
        odd.world = 3;
        for result in all(&local(free_port()), 10, &[hello(0, 2), odd]) {
            assert_eq!(
                result.unwrap_err().to_string(),
                "rank 1 was started as one of 3 ranks, and rank 0 as one of 2"
            );
        }
        let mut twin = hello(1, 3);
        twin.process = 999;
        for result in all(&local(free_port()), 10, &[hello(0, 3), hello(1, 3), twin]) {
            let text = result.unwrap_err().to_string();
            assert!(text.starts_with("two processes are rank 1: process "), "{text}");
        }
    }

    #[test]
    fn strangers_are_turned_away_and_disturb_nobody() {
        let port = free_port();
        let place = local(port);
        let wrong_token = Options { token: Token::of("guess"), ..options(&place, 1) };
        std::thread::scope(|scope| {
            let rank0 = scope.spawn(|| all(&place, 20, &[hello(0, 2)]).remove(0));
            std::thread::sleep(Duration::from_millis(200));
            for i in 0..200u32 {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                let noise: Vec<u8> = (0..(i * 37) % 4000).map(|j| (i * 31 + j * 7) as u8).collect();
                // Who is turned away may have gone before all was written.
                _ = stream.write_all(&noise);
                if i % 50 == 0 {
                    _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
                    _ = stream.read(&mut [0; 64]);
                }
            }
            let turned_away = meet(&hello(1, 2), &wrong_token, |_| Ok(vec![]), &mut |_| ()).unwrap_err();
            assert_eq!(turned_away.code(), "R0827", "{turned_away}");
            let joined = meet(&hello(1, 2), &options(&place, 20), |_| Ok(vec![]), &mut |_| ()).unwrap();
            assert_eq!(joined.gift, [2]);
            assert_eq!(rank0.join().unwrap().unwrap().ranks.len(), 2);
        });
    }

    #[test]
    fn what_is_left_of_an_earlier_start_is_turned_away() {
        let place = local(free_port());
        std::thread::scope(|scope| {
            let mut again = hello(0, 2);
            again.restarts = 1;
            let rank0 = scope.spawn(|| all(&place, 20, &[again]).remove(0));
            let error = meet(&hello(1, 2), &options(&place, 2), |_| Ok(vec![]), &mut |_| ()).unwrap_err();
            assert_eq!(error.code(), "R0827", "{error}");
            let mut fresh = hello(1, 2);
            fresh.restarts = 1;
            meet(&fresh, &options(&place, 20), |_| Ok(vec![]), &mut |_| ()).unwrap();
            rank0.join().unwrap().unwrap();
        });
    }

    #[test]
    fn another_program_in_rank_0s_place_is_told_from_no_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = local(listener.local_addr().unwrap().port());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for stream in listener.incoming().take(2) {
                    _ = stream
                        .unwrap()
                        .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n and more than a frame's header holds");
                }
                drop(listener);
            });
            let error = meet(&hello(1, 2), &options(&place, 1), |_| Ok(vec![]), &mut |_| ()).unwrap_err();
            assert!(["R0827", "R0822"].contains(&error.code()), "{error}");
        });
    }

    #[test]
    fn a_rank_alone_waits_for_nobody() {
        let met = all(&local(1), 1, &[hello(0, 1)]).remove(0).unwrap();
        assert_eq!((met.ranks.len(), met.gift), (1, vec![1]));
    }
}
