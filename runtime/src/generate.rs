//! Text from a trained model: the logits of the last ids, a choice, and again.

use crate::checkpoint;
use crate::communicator::{Communicator, local};
use crate::device::{Algorithms, DeviceOptions, Wanted, share, threads_wanted};
use crate::error::Error;
use crate::philox::{SITE_SAMPLE, Stream};
use crate::session::Session;
use crate::tokenizer::TextTokenizer;
use crate::tokenizer::decode_stream::DecodeStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How to choose.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Options {
    /// Tokens to add.
    pub max_new_tokens: u64,
    /// 0 takes the likeliest token; 1 samples as trained.
    pub temperature: f64,
    /// Sample from this many likeliest tokens; 0 from all.
    pub top_k: u64,
    /// Of the random numbers.
    pub seed: u64,
}

/// Where to run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct On {
    /// Which device.
    pub device: Wanted,
    /// Images of kernels are kept here, for GPUs.
    pub cache_dir: PathBuf,
    /// `dspc.lock`, for GPUs.
    pub lock: PathBuf,
}

/// What came out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Generated {
    /// The new text, without the prompt.
    pub text: String,
    /// New tokens.
    pub tokens: u64,
}

/// Goes on with `prompt`, from a `checkpoint-N` folder or the newest one of a run's folder; hands out text as it comes.
///
/// # Errors
/// Those of [`checkpoint::open`], [`artifact::open`](crate::artifact::open) and [`Artifact::device`](crate::Artifact::device); R0106, R0502, R0603, R0605.
pub fn generate(
    path: &Path,
    prompt: &str,
    options: &Options,
    on: &On,
    text: &mut dyn FnMut(&str),
) -> Result<Generated, Error> {
    let checkpoint = checkpoint::open(path)?;
    let artifact = checkpoint.artifact(on.device)?;
    let world = artifact.program.world();
    let threads = threads_wanted(std::env::var("DSPC_THREADS").ok().as_deref())?;
    let options_of_rank = DeviceOptions {
        threads: share(threads, world),
        cache_dir: on.cache_dir.clone(),
        lock: on.lock.clone(),
        algorithms: Algorithms::Measure,
    };
    // A program of several ranks runs as it was built; all of them come to the same ids.
    let one = |communicator: Arc<dyn Communicator>, text: &mut dyn FnMut(&str)| {
        let device = artifact.device(&options_of_rank, Arc::clone(&communicator))?;
        let mut session = Session::blank(&artifact.program, device, communicator)?;
        checkpoint.load_weights(&mut session)?;
        continue_text(&mut session, prompt, options, text)
    };
    local::run(world, |first| one(first, text), |other| one(other, &mut |_| {}))
}

/// Goes on with `prompt`, from a session's weights; of several ranks all call it, and all come to the same text.
///
/// # Errors
/// R0106, R0502, R0603, R0605.
pub fn continue_text(
    session: &mut Session,
    prompt: &str,
    options: &Options,
    text: &mut dyn FnMut(&str),
) -> Result<Generated, Error> {
    let tokenizer = TextTokenizer::new(&session.program().data.tokenizer);
    let sequence = session.program().data.sequence as usize;
    let mut ids: Vec<i32> = tokenizer.encode(prompt, "the prompt")?.into_iter().map(|id| id as i32).collect();
    if ids.is_empty() {
        return Err(Error::PromptEmpty);
    }
    let mut stream = DecodeStream::new(&tokenizer);
    let mut out = String::new();
    let mut hand_out = |piece: &str| {
        if !piece.is_empty() {
            out.push_str(piece);
            text(piece);
        }
    };
    for n in 0..options.max_new_tokens {
        let logits = session.logits(&ids[ids.len().saturating_sub(sequence)..])?;
        // A model may have more ids than its tokenizer, to make its dims round.
        let known = &logits[..logits.len().min(tokenizer.vocab() as usize)];
        let random = Stream { seed: options.seed, step: 0, site: SITE_SAMPLE }.uniform(n);
        let id = choose(known, options, random).ok_or(Error::LogitsNotFinite)?;
        ids.push(id as i32);
        hand_out(&stream.push(id));
    }
    hand_out(stream.finish());
    Ok(Generated { text: out, tokens: options.max_new_tokens })
}

/// The id that `random`, in [0, 1), falls on. Nothing where a logit is not finite.
fn choose(logits: &[f32], options: &Options, random: f64) -> Option<u32> {
    if logits.is_empty() || logits.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let likelier = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let best = ids.iter().copied().min_by(likelier)?;
    // NaN and numbers below 0 have no meaning; they take the likeliest too.
    if options.temperature.is_nan() || options.temperature <= 0.0 || options.top_k == 1 {
        return Some(best);
    }
    if options.top_k > 0 && (options.top_k as usize) < ids.len() {
        ids.select_nth_unstable_by(options.top_k as usize - 1, likelier);
        ids.truncate(options.top_k as usize);
        ids.sort_unstable();
    }
    let top = f64::from(logits[best as usize]);
    let weight = |id: u32| libm::exp((f64::from(logits[id as usize]) - top) / options.temperature);
    let total: f64 = ids.iter().map(|&id| weight(id)).sum();
    let mut left = random * total;
    for &id in &ids {
        left -= weight(id);
        if left < 0.0 {
            return Some(id);
        }
    }
    Some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(temperature: f64, top_k: u64) -> Options {
        Options { max_new_tokens: 1, temperature, top_k, seed: 0 }
    }

    #[test]
    fn temperature_zero_takes_the_likeliest_and_the_first_of_equals() {
        for random in [0.0, 0.5, 0.999] {
            assert_eq!(choose(&[1.0, 3.0, 3.0, 2.0], &options(0.0, 0), random), Some(1));
            assert_eq!(choose(&[1.0, 3.0, 3.0, 2.0], &options(f64::NAN, 0), random), Some(1));
            assert_eq!(choose(&[1.0, 3.0, 3.0, 2.0], &options(1.0, 1), random), Some(1));
        }
    }

    #[test]
    fn shares_follow_the_probabilities() {
        let logits = [0f32, 2f32.ln(), f32::MIN, 5f32.ln()];
        let mut counts = [0; 4];
        let n = 80_000;
        for i in 0..n {
            let id = choose(&logits, &options(1.0, 0), (f64::from(i) + 0.5) / f64::from(n)).unwrap();
            counts[id as usize] += 1;
        }
        assert!((counts[0] - 10_000i32).abs() <= 1 && (counts[1] - 20_000).abs() <= 1, "{counts:?}");
        assert_eq!(counts[2], 0);
    }

    #[test]
    fn top_k_leaves_the_others_out() {
        let logits = [0.0, 1.0, 0.5, 1.0, -1.0];
        let seen: std::collections::BTreeSet<u32> =
            (0..1000).filter_map(|i| choose(&logits, &options(2.0, 3), f64::from(i) / 1000.0)).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [1, 2, 3]);
        assert!(choose(&logits, &options(2.0, 99), 0.9999).is_some());
    }

    #[test]
    fn logits_that_are_not_finite_give_nothing() {
        for bad in [f32::NAN, f32::INFINITY] {
            assert_eq!(choose(&[0.0, bad], &options(1.0, 0), 0.5), None);
        }
        assert_eq!(choose(&[], &options(1.0, 0), 0.5), None);
    }
}
