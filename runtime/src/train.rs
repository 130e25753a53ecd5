//! The training loop: samples in, steps, evaluations, checkpoints, numbers out.

mod evaluate;
mod loader;
mod log;

pub use crate::metrics::Summary;

use crate::artifact::{self, Artifact};
use crate::checkpoint::{self, Checkpoint};
use crate::communicator::{Communicator, guarded, local};
use crate::data;
use crate::device::{Algorithms, Device, DeviceOptions, share, threads_wanted};
use crate::durable;
use crate::error::Error;
use crate::generate;
use crate::metrics::{Metrics, Record, peak_memory_bytes};
use crate::report::{Reporter, Silent, Terminal};
use crate::sampler::{self, Holdout, Sampler};
use crate::session::{Session, StepStats, Stored};
use crate::tokens::TokenStream;
use dspc_program::Program;
use evaluate::Evaluation;
use loader::Loader;
use log::Meter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Where a run reads and writes, and how far it goes.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Checkpoints, `metrics.jsonl` and `summary.json` go here.
    pub run_dir: PathBuf,
    /// Folder that the data patterns are relative to.
    pub data_root: PathBuf,
    /// Token streams are kept here from run to run.
    pub cache_dir: PathBuf,
    /// Go on from the newest whole checkpoint in `run_dir`.
    pub resume: bool,
    /// Stop after this step, if it comes before the program's last.
    pub max_steps: Option<u64>,
    /// Write checkpoints; without, a run leaves its numbers alone.
    pub save: bool,
    /// `dspc.lock`: algorithms of matrix products, on a GPU.
    pub lock: PathBuf,
    /// How it is used.
    pub algorithms: Algorithms,
}

impl RunOptions {
    fn last_step(&self, program: &Program) -> u64 {
        let steps = program.training.steps;
        self.max_steps.map_or(steps, |max| max.min(steps))
    }
}

/// Trains, and reports to standard error. Once `stop` is set, the step at hand is finished and saved.
///
/// # Errors
/// Any [`Error`] but R0604 and R0605.
pub fn run(artifact: &Artifact, options: &RunOptions, stop: &AtomicBool) -> Result<Summary, Error> {
    run_reported(artifact, options, stop, &mut Terminal::new())
}

/// Trains, and reports to `reporter`: all ranks of the program, each on a thread of this process.
///
/// # Errors
/// Those of [`run`].
pub fn run_reported(
    artifact: &Artifact,
    options: &RunOptions,
    stop: &AtomicBool,
    reporter: &mut dyn Reporter,
) -> Result<Summary, Error> {
    check_new(options)?;
    let corpus = Corpus::load(&artifact.program, options)?;
    let one = |communicator: Arc<dyn Communicator>, reporter: &mut dyn Reporter| {
        of_rank(artifact, options, stop, reporter, &corpus, communicator)
    };
    local::run(artifact.program.world(), |first| one(first, reporter), |other| one(other, &mut Silent))
}

/// Trains as one rank of several, each of which calls this with a communicator of its own. The first one reports, and writes the run's files.
///
/// # Errors
/// Those of [`run`]; R0801 with the cause of another rank, R0802.
pub fn run_rank(
    artifact: &Artifact,
    options: &RunOptions,
    stop: &AtomicBool,
    reporter: &mut dyn Reporter,
    communicator: Arc<dyn Communicator>,
) -> Result<Summary, Error> {
    guarded(&*communicator, || {
        if communicator.rank() != 0 {
            let corpus = Corpus::load(&artifact.program, options)?;
            return of_rank(artifact, options, stop, &mut Silent, &corpus, Arc::clone(&communicator));
        }
        check_new(options)?;
        let corpus = Corpus::load(&artifact.program, options)?;
        of_rank(artifact, options, stop, reporter, &corpus, Arc::clone(&communicator))
    })
}

fn check_new(options: &RunOptions) -> Result<(), Error> {
    match options.resume || checkpoint::commits(&options.run_dir).is_empty() {
        true => Ok(()),
        false => Err(Error::RunExists { path: options.run_dir.clone() }),
    }
}

/// The ids of a run, which ranks of one process share.
struct Corpus {
    stream: TokenStream,
    train_tokens: u64,
    held: u64,
}

impl Corpus {
    fn load(program: &Program, options: &RunOptions) -> Result<Self, Error> {
        let texts = data::read(&options.data_root, &program.data.text)?;
        let (tokenizer, vocab) = (&program.data.tokenizer, program.data.vocab);
        let stream = TokenStream::load(&texts, tokenizer, vocab, Some(&options.cache_dir))?;
        let (train_tokens, held) = sampler::divide(stream.len(), program.data.holdout);
        Ok(Self { stream, train_tokens, held })
    }
}

fn of_rank(
    artifact: &Artifact,
    options: &RunOptions,
    stop: &AtomicBool,
    reporter: &mut dyn Reporter,
    corpus: &Corpus,
    communicator: Arc<dyn Communicator>,
) -> Result<Summary, Error> {
    let program = &artifact.program;
    let threads = threads_wanted(std::env::var("DSPC_THREADS").ok().as_deref())?;
    let Corpus { stream, train_tokens, held } = corpus;
    let sampler = Sampler::new(stream, *train_tokens, program.data.sequence, program.training.seed)?;
    let holdout = match program.data.holdout > 0.0 {
        true => Some(Holdout::new(stream, *train_tokens, program.data.sequence)?),
        false => None,
    };
    let device = artifact.device(
        &DeviceOptions {
            threads: share(threads, communicator.ranks_on_host()),
            cache_dir: options.cache_dir.clone(),
            lock: options.lock.clone(),
            algorithms: options.algorithms,
        },
        Arc::clone(&communicator),
    )?;
    let session = match options.resume {
        true => resumed(artifact, device, &communicator, &options.run_dir, &stream.hash(), reporter)?,
        false => Session::of_rank(program, device, Arc::clone(&communicator))?,
    };
    let metrics = match communicator.rank() {
        0 => Some(opened(options, session.steps().0)?),
        _ => None,
    };
    let ranks =
        if communicator.world() > 1 { format!(", {}", communicator.describe()) } else { String::new() };
    reporter.line(&format!(
        "{}  {}  {} parameters  {} tokens  {held} held out  {}{ranks}",
        program.name,
        program.model.architecture,
        log::count(program.model.parameters),
        log::count(*train_tokens),
        session.describe(),
    ));
    std::thread::scope(|scope| {
        let steps = session.steps().0..options.last_step(program);
        let threaded = (session.ahead() > 0).then_some(scope);
        let run = Run {
            artifact,
            options,
            stop,
            reporter,
            data_hash: stream.hash(),
            windows: sampler.windows(),
            loader: Loader::new(sampler, program, steps, threaded),
            evaluation: holdout.map(|holdout| Evaluation::new(program, holdout)),
            session,
            metrics,
            saved: None,
            evaluated: None,
            fingerprint: None,
        };
        run.finish()
    })
}

/// Makes the run's folder, without what an earlier run left half-written.
fn opened(options: &RunOptions, step: u64) -> Result<Metrics, Error> {
    durable::make_folder(&options.run_dir)?;
    checkpoint::remove_debris(&options.run_dir);
    Metrics::open(&options.run_dir.join("metrics.jsonl"), step)
}

fn resumed(
    artifact: &Artifact,
    device: Box<dyn Device + Send>,
    communicator: &Arc<dyn Communicator>,
    run_dir: &Path,
    data_hash: &str,
    reporter: &mut dyn Reporter,
) -> Result<Session, Error> {
    let checkpoint = newest_for_all(&**communicator, run_dir, reporter)?;
    checkpoint.check_same_run(&artifact.program)?;
    let mut session = Session::blank(&artifact.program, device, Arc::clone(communicator))?;
    checkpoint.load_weights(&mut session)?;
    let state = checkpoint.load_state(&mut session)?;
    if state.data_hash != data_hash {
        return Err(Error::DataChanged { path: checkpoint.path });
    }
    reporter.line(&format!("going on from {} after step {}", checkpoint.path.display(), state.step));
    Ok(session)
}

/// The newest whole checkpoint, which the first rank looks for.
fn newest_for_all(
    communicator: &dyn Communicator,
    run_dir: &Path,
    reporter: &mut dyn Reporter,
) -> Result<Checkpoint, Error> {
    if communicator.rank() != 0 {
        let step = communicator.broadcast(0, &[])?;
        let step = step.try_into().map_or(0, u64::from_le_bytes);
        return Ok(checkpoint::at(run_dir, step));
    }
    let (checkpoint, damaged) = checkpoint::newest(run_dir)?;
    for error in &damaged {
        reporter.line(&format!("warning[{}]: {error}", error.code()));
    }
    communicator.broadcast(0, &checkpoint.step.to_le_bytes())?;
    Ok(checkpoint)
}

struct Run<'a> {
    artifact: &'a Artifact,
    options: &'a RunOptions,
    stop: &'a AtomicBool,
    reporter: &'a mut dyn Reporter,
    data_hash: String,
    /// Samples of an epoch.
    windows: u64,
    loader: Loader<'a>,
    evaluation: Option<Evaluation<'a>>,
    session: Session,
    /// On the first rank.
    metrics: Option<Metrics>,
    /// Step and folder of the last checkpoint of this run.
    saved: Option<(u64, PathBuf)>,
    /// Step and loss of the last evaluation.
    evaluated: Option<(u64, f64)>,
    /// Step and fingerprint of the last state that had one taken.
    fingerprint: Option<(u64, u128)>,
}

impl Run<'_> {
    fn finish(mut self) -> Result<Summary, Error> {
        let training = &self.artifact.program.training;
        let last = self.options.last_step(&self.artifact.program);
        let begun = Instant::now();
        let mut meter = Meter::new(&self.artifact.program, self.session.steps().0, last);
        let first = self.session.steps().0;
        let due = |every: u64, step: u64| every > 0 && step.is_multiple_of(every);
        // After these the state is looked at, so that no later step may be under way.
        let saves = |step: u64| self.options.save && due(training.checkpoint_every, step);
        let rests = |step: u64| step == last || due(training.eval_every, step) || saves(step);
        loop {
            let (step, under_way) = (self.session.steps().0, self.session.under_way());
            let free = under_way == 0 || (under_way <= self.session.ahead() && !rests(step));
            if free && step < last && !self.stopping()? {
                self.begin()?;
                continue;
            }
            if under_way == 0 {
                break;
            }
            let stats = self.end()?;
            meter.add(&stats);
            self.reporter.progress(stats.step, last);
            if stats.step == first + 1 && self.session.ahead() > 0 {
                self.say_first_step();
            }
            if due(training.log_every, stats.step) || stats.step == last {
                self.log(&mut meter, &stats);
            }
            if self.session.under_way() > 0 {
                continue;
            }
            if due(training.eval_every, stats.step) && stats.step < last {
                meter.pause(|| self.evaluate())?;
            }
            if saves(stats.step) && stats.step < last {
                // A full disk must not end a run whose older checkpoints are whole.
                match meter.pause(|| self.save()) {
                    Ok(()) => self.say_saved(),
                    Err(error @ (Error::NotFinite { .. } | Error::RankFailed { .. })) => return Err(error),
                    Err(error) => {
                        self.reporter.line(&format!("warning[{}]: {error}; training goes on", error.code()))
                    }
                }
            }
        }
        let step = self.session.steps().0;
        let interrupted = step < last;
        if self.options.save && (step > first || self.says_first(self.newest().is_none())?) {
            self.save()?;
        }
        let fingerprint = self.fingerprint()?;
        self.reporter.line(&format!("fingerprint {fingerprint:032x}"));
        if interrupted && !self.options.save {
            self.reporter.line(&format!("stopped after step {step}; nothing was to be saved"));
        } else if interrupted {
            self.reporter.line(&format!(
                "stopped after step {step}; saved in {}; go on with `dspc run … --resume --out {}`",
                self.saved.as_ref().map_or(String::new(), |(_, path)| path.display().to_string()),
                self.options.run_dir.display()
            ));
        } else {
            self.evaluate()?;
        }
        let summary = self.summary(&meter, first, begun.elapsed().as_secs_f64(), interrupted, fingerprint);
        if self.is_first() {
            let path = self.options.run_dir.join("summary.json");
            durable::replace(&path, &[&artifact::to_json(&summary, &path)?])?;
        }
        if !interrupted {
            self.reporter.line(&log::closing(&summary));
            self.sample()?;
        }
        // A run that ended well has ended well on all ranks.
        self.session.communicator().barrier()?;
        Ok(summary)
    }

    fn is_first(&self) -> bool {
        self.session.communicator().rank() == 0
    }

    /// What the first rank says, on all ranks.
    fn says_first(&self, says: bool) -> Result<bool, Error> {
        Ok(self.session.communicator().broadcast(0, &[u8::from(says)])? == [1])
    }

    /// Whether some rank was asked to stop: all stop after the same step.
    fn stopping(&self) -> Result<bool, Error> {
        let (own, communicator) = (self.stop.load(Ordering::Relaxed), self.session.communicator());
        if communicator.world() == 1 {
            return Ok(own);
        }
        Ok(communicator.all_gather(&[u8::from(own)])?.iter().any(|asked| asked == &[1]))
    }

    /// Of the state after the last step.
    fn fingerprint(&mut self) -> Result<u128, Error> {
        let step = self.session.steps().0;
        match self.fingerprint {
            Some((at, fingerprint)) if at == step => Ok(fingerprint),
            _ => {
                let fingerprint = self.session.fingerprint()?;
                self.fingerprint = Some((step, fingerprint));
                Ok(fingerprint)
            }
        }
    }

    fn begin(&mut self) -> Result<(), Error> {
        let step = self.session.steps().0;
        self.session.communicator().at_step(step + 1);
        let batch = self.loader.next(step);
        self.session.begin_step(&batch.tokens, &batch.targets)
    }

    fn end(&mut self) -> Result<StepStats, Error> {
        let stats = self.session.end_step()?;
        if stats.finite {
            return Ok(stats);
        }
        let (step, checkpoint) = (stats.step, self.newest());
        let tensor = stats.first_bad.and_then(|row| log::names(&self.session.at_grid_row(row)));
        match stats.loss_scale {
            Some(scale) if stats.scale_exhausted => {
                Err(Error::ScaleExhausted { step, scale, tensor, checkpoint })
            }
            Some(scale) => {
                self.reporter.line(&log::skipped(step, tensor.as_deref(), scale));
                Ok(stats)
            }
            None => {
                let what = if stats.loss.is_finite() { "gradient" } else { "loss" };
                Err(Error::NotFinite { what: what.into(), tensor, step, checkpoint })
            }
        }
    }

    fn say_saved(&mut self) {
        if let (Some((step, path)), Some((_, fingerprint))) = (&self.saved, self.fingerprint) {
            let path = path.display();
            self.reporter.line(&format!("step {step}  saved in {path}  fingerprint {fingerprint:032x}"));
        }
    }

    fn say_first_step(&mut self) {
        if let Some(seconds) = seconds_of_process() {
            self.reporter.line(&format!("first step after {seconds:.1} s"));
        }
    }

    /// The newest whole checkpoint, on the first rank.
    fn newest(&self) -> Option<PathBuf> {
        if !self.is_first() {
            return None;
        }
        checkpoint::newest(&self.options.run_dir).ok().map(|(checkpoint, _)| checkpoint.path)
    }

    fn epoch(&self) -> f64 {
        let samples = self.session.steps().0 * self.artifact.program.training.batch;
        samples as f64 / self.windows as f64
    }

    fn log(&mut self, meter: &mut Meter, stats: &StepStats) {
        let reading = meter.read();
        let memory = self.session.device_bytes().or_else(peak_memory_bytes);
        self.reporter.line(&log::line(stats, &reading, meter.last(), memory));
        let record = Record {
            step: stats.step,
            epoch: self.epoch(),
            loss: Some(reading.loss),
            grad_norm: stats.grad_norm.filter(|norm| norm.is_finite()).map(f64::from),
            loss_scale: stats.loss_scale.map(f64::from),
            learning_rate: Some(stats.learning_rate),
            tokens_per_second: Some(reading.tokens_per_second),
            eval_loss: None,
        };
        self.record(&record);
    }

    fn record(&mut self, record: &Record) {
        let Some(metrics) = &mut self.metrics else { return };
        if let Err(error) = metrics.add(record) {
            self.reporter.line(&format!("warning[{}]: {error}; training goes on", error.code()));
        }
    }

    fn evaluate(&mut self) -> Result<(), Error> {
        let step = self.session.steps().0;
        let Some(evaluation) = &mut self.evaluation else { return Ok(()) };
        let loss = evaluation.loss(&mut self.session)?;
        self.evaluated = Some((step, loss));
        self.reporter.line(&format!("step {step}  eval loss {loss:.4}  perplexity {:.2}", libm::exp(loss)));
        let record = Record { step, epoch: self.epoch(), eval_loss: Some(loss), ..Record::default() };
        self.record(&record);
        Ok(())
    }

    fn save(&mut self) -> Result<(), Error> {
        // A step with finite gradients may still overflow a weight; such weights must not replace good ones.
        if let Some(name) = self.weight_not_finite()? {
            let (what, step) = (format!("weight `{name}`"), self.session.steps().0);
            return Err(Error::NotFinite { what, tensor: None, step, checkpoint: self.newest() });
        }
        let fingerprint = self.fingerprint()?;
        let facts = checkpoint::Facts {
            data_hash: &self.data_hash,
            fingerprint,
            keep: self.artifact.program.training.checkpoint_keep,
        };
        let saved = checkpoint::save(&self.options.run_dir, &self.session, self.artifact, &facts)?;
        self.saved = saved.map(|saved| (saved.step, saved.path));
        Ok(())
    }

    /// The first weight that is not finite, whichever rank holds it.
    fn weight_not_finite(&self) -> Result<Option<String>, Error> {
        let program = self.session.program();
        let mut own = u64::MAX;
        for (index, param) in (0..).zip(&program.params) {
            let bytes = self.session.held_bytes(&Stored::of_param(program, param))?;
            let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            if own == u64::MAX && values.into_iter().any(|x| !x.is_finite()) {
                own = index;
            }
        }
        let all = self.session.communicator().all_gather(&own.to_le_bytes())?;
        let indices = all.iter().filter_map(|i| Some(u64::from_le_bytes(i.as_slice().try_into().ok()?)));
        let first = indices.min().and_then(|index| program.params.get(usize::try_from(index).ok()?));
        Ok(first.map(|param| param.name.clone()))
    }

    fn summary(
        &self,
        meter: &Meter,
        first: u64,
        seconds: f64,
        interrupted: bool,
        fingerprint: u128,
    ) -> Summary {
        let (step, training) = (self.session.steps().0, &self.artifact.program.training);
        let steps_per_second = (step - first) as f64 / seconds.max(1e-9);
        let samples_per_second = steps_per_second * training.batch as f64;
        let eval_loss = self.evaluated.filter(|(at, _)| *at == step).map(|(_, loss)| loss);
        Summary {
            train_runtime: seconds,
            train_samples_per_second: samples_per_second,
            train_steps_per_second: steps_per_second,
            train_tokens_per_second: samples_per_second * self.artifact.program.data.sequence as f64,
            train_loss: meter.mean_loss(),
            eval_loss,
            perplexity: eval_loss.map(libm::exp),
            global_step: step,
            epoch: self.epoch(),
            peak_memory_bytes: peak_memory_bytes(),
            device_bytes: self.session.device_bytes(),
            steady_step_seconds: meter.steady_step_seconds(),
            fingerprint: format!("{fingerprint:032x}"),
            interrupted,
            checkpoint: self.newest(),
        }
    }

    fn sample(&mut self) -> Result<(), Error> {
        let training = &self.artifact.program.training;
        let Some(sample) = training.sample.as_ref().filter(|_| self.artifact.program.logits.is_some()) else {
            return Ok(());
        };
        let options = generate::Options {
            max_new_tokens: sample.tokens,
            temperature: 1.0,
            top_k: 0,
            seed: training.seed,
        };
        self.reporter.sample(&sample.prompt);
        let reporter = &mut self.reporter;
        generate::continue_text(&mut self.session, &sample.prompt, &options, &mut |text| {
            reporter.sample(text)
        })?;
        self.reporter.sample("");
        Ok(())
    }
}

/// Seconds since this process began, where the system says.
fn seconds_of_process() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold anything; what follows it are numbers. The 22nd field is the start, in hundredths of a second.
    let ticks: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let now: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    Some(now - ticks / 100.0)
}

#[cfg(test)]
mod ranks;
#[cfg(test)]
mod tests;
