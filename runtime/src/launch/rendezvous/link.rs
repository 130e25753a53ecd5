//! Meeting over sockets: TCP between hosts, a socket of the system's on one.
//!
//! Rank 0 sends a number used once; a rank answers with its hello and a number of its own, and then waits for rank 0's word to all.

use super::frame::{self, BYTES_MAX, HELLO_MAX, REFUSAL, Token};
use super::{Answer, Hello, LINGER, Met, Options, POLL, Progress, STRANGER, judge};
use crate::launch::discover::Place;
use crate::launch::error::LaunchError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

/// What rank 0 sends first, before its number.
const GREETING: [u8; 4] = *b"dspr";
/// Time for one connection to be made, and for a guest to say who it is.
const PATIENCE: Duration = Duration::from_secs(5);
/// Guests that have not said who they are, at once.
const GUESTS_MAX: usize = 256;

/// A rank's first message.
#[derive(Serialize, Deserialize)]
struct First {
    nonce: [u8; 32],
    hello: Hello,
}

/// A connection.
enum Link {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Link {
    /// How long a read waits before it says that nothing came.
    fn patience(&self, time: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(time)).and(stream.set_write_timeout(Some(PATIENCE)))
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(time)).and(stream.set_write_timeout(Some(PATIENCE)))
            }
        }
    }

    /// The other end is a process of ours: of this user, where the system says.
    fn is_own(&self) -> bool {
        match self {
            Self::Tcp(_) => true,
            Self::Unix(stream) => rustix::net::sockopt::socket_peercred(stream)
                .is_ok_and(|other| other.uid == rustix::process::getuid()),
        }
    }
}

impl Read for Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Link {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buffer),
            Self::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A name in the system's own space: it leaves no file behind, and its length does not depend on the job's.
fn address_of_job(job: &str, restarts: u64) -> io::Result<SocketAddr> {
    let user = rustix::process::getuid().as_raw();
    let name = blake3::hash(format!("{user} {restarts} {job}").as_bytes()).to_hex();
    SocketAddr::from_abstract_name(format!("dspc-{}", &name[..32]))
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, Option<PathBuf>),
}

impl Listener {
    fn bind(place: &Place, restarts: u64) -> io::Result<Self> {
        let listener = match place {
            Place::Tcp { host, port } => {
                // A host's own name may stand for its loopback in its own table, where no other host arrives; so only a loopback is taken at its word.
                let loopback = ["localhost", "127.0.0.1", "::1"].contains(&host.as_str());
                let listener = match loopback {
                    true => TcpListener::bind((host.as_str(), *port))?,
                    false => {
                        TcpListener::bind(("::", *port)).or_else(|_| TcpListener::bind(("0.0.0.0", *port)))?
                    }
                };
                listener.set_nonblocking(true)?;
                Self::Tcp(listener)
            }
            Place::Unix(path) => {
                // A file that nobody listens behind is left of a run that was killed.
                if UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
                    std::fs::remove_file(path)?;
                }
                Self::Unix(UnixListener::bind(path)?, Some(path.clone()))
            }
            Place::Job(job) => Self::Unix(UnixListener::bind_addr(&address_of_job(job, restarts)?)?, None),
            Place::File(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        if let Self::Unix(listener, _) = &listener {
            listener.set_nonblocking(true)?;
        }
        Ok(listener)
    }

    /// Somebody who came, if there is one.
    fn accept(&self) -> Option<Link> {
        match self {
            Self::Tcp(listener) => listener.accept().ok().map(|(stream, _)| Link::Tcp(stream)),
            Self::Unix(listener, _) => listener.accept().ok().map(|(stream, _)| Link::Unix(stream)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, Some(path)) = self {
            _ = std::fs::remove_file(path);
        }
    }
}

/// A rank that said who it is, and waits.
struct Guest {
    link: Link,
    nonce: [u8; 32],
    hello: Hello,
}

impl Guest {
    fn tell(&mut self, token: &Token, answer: &Answer) {
        // A rank that is gone needs no answer; the others will miss it.
        _ = frame::write(token, &self.nonce, answer).and_then(|bytes| self.link.write_all(&bytes));
    }
}

/// Asks a guest who it is, on a thread of its own: strangers may be slow.
fn greet(mut link: Link, token: Token, arrived: Sender<Guest>, open: Arc<AtomicUsize>) {
    if open.fetch_add(1, Ordering::SeqCst) >= GUESTS_MAX || !link.is_own() {
        open.fetch_sub(1, Ordering::SeqCst);
        return;
    }
    std::thread::spawn(move || {
        let asked = || -> io::Result<First> {
            link.patience(PATIENCE)?;
            let nonce = frame::nonce()?;
            link.write_all(&[GREETING.as_slice(), &nonce].concat())?;
            frame::read(&mut link, &token, &nonce, HELLO_MAX)
        };
        match { asked }() {
            Ok(first) => _ = arrived.send(Guest { link, nonce: first.nonce, hello: first.hello }),
            Err(_) => _ = link.write_all(&REFUSAL),
        }
        open.fetch_sub(1, Ordering::SeqCst);
    });
}

fn earlier(place: &Place) -> LaunchError {
    LaunchError::Stranger {
        place: place.to_string(),
        reason: "it belongs to another start of this job, by its count of restarts".into(),
    }
}

/// Waits for all ranks, and answers them.
pub(super) fn host(
    hello: &Hello,
    options: &Options,
    deadline: Instant,
    gift: impl FnOnce(&[Hello]) -> Result<Vec<u8>, LaunchError>,
    say: &mut dyn FnMut(&str),
) -> Result<Met, LaunchError> {
    let place = &options.place;
    let listener = Listener::bind(place, hello.restarts)
        .map_err(|e| LaunchError::PortTaken { place: place.to_string(), reason: e.to_string() })?;
    let (arrived, arrivals) = mpsc::channel();
    let open = Arc::new(AtomicUsize::new(0));
    let come = |wait: Duration| {
        while let Some(link) = listener.accept() {
            greet(link, options.token, arrived.clone(), Arc::clone(&open));
        }
        arrivals.recv_timeout(wait).ok()
    };
    let mut guests: Vec<Guest> = Vec::new();
    let mut there = BTreeMap::new();
    let mut progress = Progress::new();
    let all_came = loop {
        if there.len() as u64 + 1 == hello.world {
            break Ok(());
        }
        if Instant::now() >= deadline {
            let missing = missing(hello, &there);
            let (place, seconds) = (place.to_string(), options.timeout.as_secs());
            break Err(LaunchError::RanksMissing { world: hello.world, missing, place, seconds });
        }
        progress.due(say, || format!("waiting at {place} for ranks {:?}", missing(hello, &there)));
        let Some(mut guest) = come(POLL) else { continue };
        if guest.hello.restarts != hello.restarts {
            guest.tell(&options.token, &Answer::Fault(earlier(place)));
            if guest.hello.restarts > hello.restarts {
                break Err(earlier(place));
            }
            continue;
        }
        let admitted = judge::admits(hello, &there, &guest.hello);
        there.insert(guest.hello.rank, guest.hello.clone());
        guests.push(guest);
        if let Err(fault) = admitted {
            let until = Instant::now() + LINGER;
            while Instant::now() < until {
                guests.extend(come(POLL));
            }
            break Err(fault);
        }
    };
    let answer = Answer::of(all_came, hello, there, gift);
    guests.iter_mut().for_each(|guest| guest.tell(&options.token, &answer));
    answer.into()
}

fn missing(hello: &Hello, there: &BTreeMap<u64, Hello>) -> Vec<u64> {
    (0..hello.world).filter(|rank| *rank != hello.rank && !there.contains_key(rank)).collect()
}

fn connect(place: &Place, restarts: u64) -> io::Result<Link> {
    match place {
        Place::Tcp { host, port } => {
            let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            for address in (host.as_str(), *port).to_socket_addrs()? {
                match TcpStream::connect_timeout(&address, PATIENCE) {
                    Ok(stream) => return Ok(Link::Tcp(stream)),
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
        Place::Unix(path) => UnixStream::connect(path).map(Link::Unix),
        Place::Job(job) => UnixStream::connect_addr(&address_of_job(job, restarts)?).map(Link::Unix),
        Place::File(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Reads on when nothing came for a while, until its time is up.
struct Patient<'a> {
    link: &'a mut Link,
    until: Instant,
    progress: &'a mut Progress,
    say: &'a mut dyn FnMut(&str),
    line: &'a str,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.link.read(buffer) {
                Err(e) if [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&e.kind()) => {
                    if Instant::now() >= self.until {
                        return Err(e);
                    }
                    self.progress.due(self.say, || self.line.to_string());
                }
                other => return other,
            }
        }
    }
}

/// How one try ended, if not with an answer.
enum Try {
    /// Nobody listens.
    Unreachable(io::Error),
    /// Somebody does, and is not rank 0 of this launch.
    Stranger(io::Error),
    /// Rank 0 went away.
    Lost(io::Error),
}

/// Goes to rank 0 until it answers.
pub(super) fn visit(
    hello: &Hello,
    options: &Options,
    deadline: Instant,
    say: &mut dyn FnMut(&str),
) -> Result<Met, LaunchError> {
    let place = options.place.to_string();
    let mut progress = Progress::new();
    let mut doubt: Option<Instant> = None;
    loop {
        let (fault, reason) = match attempt(hello, options, deadline, &mut progress, say) {
            Ok(Answer::Met(met)) => return Ok(met),
            Ok(Answer::Fault(fault @ LaunchError::Stranger { .. })) => {
                doubt.get_or_insert_with(Instant::now);
                let reason = fault.to_string();
                (fault, reason)
            }
            Ok(Answer::Fault(fault)) => return Err(fault),
            Err(Try::Unreachable(e)) => {
                doubt = None;
                let (reason, seconds) = (e.to_string(), options.timeout.as_secs());
                let fault = LaunchError::MasterUnreachable {
                    rank: hello.rank,
                    place: place.clone(),
                    seconds,
                    reason: reason.clone(),
                };
                (fault, reason)
            }
            Err(Try::Stranger(e)) => {
                doubt.get_or_insert_with(Instant::now);
                (LaunchError::Stranger { place: place.clone(), reason: e.to_string() }, e.to_string())
            }
            Err(Try::Lost(e)) => {
                doubt.get_or_insert_with(Instant::now);
                let (rank, reason) = (hello.rank, e.to_string());
                (LaunchError::MasterLost { rank, place: place.clone(), reason: reason.clone() }, reason)
            }
        };
        if Instant::now() >= deadline || doubt.is_some_and(|since| since.elapsed() >= STRANGER) {
            return Err(fault);
        }
        progress.due(say, || format!("rank {} looks for rank 0 at {place}: {reason}", hello.rank));
        std::thread::sleep(POLL * 5);
    }
}

fn attempt(
    hello: &Hello,
    options: &Options,
    deadline: Instant,
    progress: &mut Progress,
    say: &mut dyn FnMut(&str),
) -> Result<Answer, Try> {
    let mut link = connect(&options.place, hello.restarts).map_err(Try::Unreachable)?;
    if !link.is_own() {
        let words = "it runs as another user";
        return Err(Try::Stranger(io::Error::new(io::ErrorKind::PermissionDenied, words)));
    }
    link.patience(PATIENCE).map_err(Try::Unreachable)?;
    let mut greeting = [0; 36];
    link.read_exact(&mut greeting).map_err(Try::Stranger)?;
    let (mark, theirs) = greeting.split_at(GREETING.len());
    let theirs: [u8; 32] = match (mark == GREETING, theirs.try_into()) {
        (true, Ok(nonce)) => nonce,
        _ => {
            let words = "its first bytes are not those of `dspc`";
            return Err(Try::Stranger(io::Error::new(io::ErrorKind::InvalidData, words)));
        }
    };
    let nonce = frame::nonce().map_err(Try::Unreachable)?;
    let first = First { nonce, hello: hello.clone() };
    let sent = frame::write(&options.token, &theirs, &first).and_then(|bytes| link.write_all(&bytes));
    sent.map_err(Try::Lost)?;
    link.patience(Duration::from_millis(500)).map_err(Try::Lost)?;
    // Rank 0 may have begun later than this one, and gives the others all its time.
    let until = deadline + options.timeout;
    let line = format!("rank {} is with rank 0 at {} and waits for the others", hello.rank, options.place);
    let mut patient = Patient { link: &mut link, until, progress, say, line: &line };
    frame::read(&mut patient, &options.token, &nonce, BYTES_MAX).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => Try::Stranger(error),
        _ => Try::Lost(error),
    })
}
