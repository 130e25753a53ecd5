//! Which algorithm each product takes: what the lock file says, else the fastest of those that the library proposes and of our own kernel,
//! measured once on the card.
//!
//! Products run on the program's own memory, before anything is kept there; it is zeroed afterwards.

use super::super::super::call::Counters;
use super::super::context::Gpu;
use super::super::launch;
use super::super::libraries;
use super::super::memory::{Block, DeviceArenas, Event};
use super::lock::{Choice, Lock};
use super::plan::{Algorithm, Lt, Plan};
use super::{Key, Product, Side};
use crate::device::{Algorithms, DeviceOptions};
use crate::error::Error;
use cudarc::driver::result;
use std::time::Instant;

/// Algorithms of the library that are tried.
const CANDIDATES: usize = 24;
/// Microseconds that a candidate is run for.
const MEASURE_US: f64 = 1500.0;
const RUNS_MAX: f64 = 20.0;
const NOISE_BYTES: usize = 4 << 20;

/// All distinct products of a program, ready to run.
pub(in super::super) struct Products {
    lt: Option<Lt>,
    plans: Vec<(Option<Plan>, Choice)>,
    /// What was measured, for people.
    pub(in super::super) note: Option<String>,
}

/// One distinct product, and the first place where the program has it.
pub(in super::super) type Sample<'a> = (Key, &'a Product);

impl Products {
    /// Chooses for each of the products, which come in the order of their numbers.
    ///
    /// # Errors
    /// R0608 where neither the library nor a kernel of ours is there, R0703 where neither can do it, R0704 for a lock that lacks one, R0705.
    pub(in super::super) fn new(
        gpu: &Gpu,
        samples: &[Sample<'_>],
        arenas: &DeviceArenas,
        options: &DeviceOptions,
    ) -> Result<Self, Error> {
        let mut products = Self { lt: None, plans: Vec::with_capacity(samples.len()), note: None };
        if samples.is_empty() {
            return Ok(products);
        }
        match libraries::cublaslt() {
            Ok(found) => {
                products.lt = Some(Lt::new()?);
                let host = format!("{}, cuBLASLt {}", gpu.card.name, found.version);
                products.choose(gpu, samples, arenas, options, &host)?;
            }
            Err(missing) if samples.iter().any(|(_, product)| product.own.is_none()) => return Err(missing),
            // Our own kernels are all there is: nothing to measure.
            Err(_) => products.plans.extend(samples.iter().map(|_| (None, Choice::Own))),
        }
        Ok(products)
    }

    fn choose(
        &mut self,
        gpu: &Gpu,
        samples: &[Sample<'_>],
        arenas: &DeviceArenas,
        options: &DeviceOptions,
        host: &str,
    ) -> Result<(), Error> {
        let Some(lt) = &self.lt else { return Ok(()) };
        let mut lock = Lock::read(&options.lock)?;
        let plans = samples.iter().map(|(key, _)| Plan::new(key)).collect::<Result<Vec<_>, _>>()?;
        let known = samples.iter().zip(&plans).map(|((key, product), plan)| {
            let choice = lock.get(host, key).filter(|_| options.algorithms != Algorithms::Again)?;
            let good = match &choice {
                Choice::Own => product.own.is_some(),
                Choice::Library(algorithm) => plan.accepts(lt, product, algorithm),
            };
            good.then_some(choice)
        });
        let known: Vec<Option<Choice>> = known.collect();
        let missing = known.iter().filter(|choice| choice.is_none()).count();
        if missing > 0 && options.algorithms == Algorithms::Locked {
            return Err(Error::LockIncomplete { path: options.lock.clone(), missing });
        }
        let begun = Instant::now();
        let bench = if missing > 0 { Some(Bench::new(gpu, lt)?) } else { None };
        let mut choices = Vec::with_capacity(samples.len());
        for (((key, product), plan), known) in samples.iter().zip(&plans).zip(known) {
            choices.push(match (known, &bench) {
                (Some(choice), _) => {
                    // The first run of an algorithm loads its code, which must not happen while a graph is recorded.
                    _ = run(gpu, lt, plan, product, &choice);
                    choice
                }
                (None, Some(bench)) => {
                    let (choice, us) = bench.fastest(key, plan, product)?;
                    lock.set(host, key, choice, us);
                    choice
                }
                (None, None) => continue,
            });
        }
        gpu.wait()?;
        if missing > 0 {
            arenas.zero()?;
            let seconds = begun.elapsed().as_secs_f64();
            self.note = Some(format!("{missing} products measured in {seconds:.1} s"));
            if let Err(error) = lock.write(&options.lock) {
                self.note = Some(format!("{missing} products measured in {seconds:.1} s, not kept: {error}"));
            }
        }
        self.plans = plans.into_iter().map(Some).zip(choices).collect();
        Ok(())
    }

    /// Starts a product.
    pub(in super::super) fn run(
        &self,
        gpu: &Gpu,
        product: &Product,
        counters: Counters,
        origin: &str,
    ) -> Result<(), Error> {
        let failed = |reason: String| Error::CudaFailed {
            call: format!("a matrix product of `{origin}`"),
            reason,
            located: true,
        };
        match (&self.plans[product.plan], &self.lt, &product.own) {
            ((Some(plan), Choice::Library(algorithm)), Some(lt), _) => plan
                .run(lt, gpu, product, algorithm, counters)
                .map_err(|error| failed(format!("{:?}", error.0))),
            ((_, Choice::Own), _, Some(own)) => launch::launch(gpu, own, counters, origin),
            _ => Err(failed("it has no algorithm".into())),
        }
    }
}

fn run(gpu: &Gpu, lt: &Lt, plan: &Plan, product: &Product, choice: &Choice) -> Result<(), Error> {
    match (choice, &product.own) {
        (Choice::Library(algorithm), _) => plan
            .run(lt, gpu, product, algorithm, Counters::default())
            .map_err(super::super::fault::cublas("trying a matrix product")),
        (Choice::Own, Some(own)) => launch::launch(gpu, own, Counters::default(), "a product"),
        (Choice::Own, None) => Ok(()),
    }
}

/// What measuring needs.
struct Bench<'a> {
    gpu: &'a Gpu,
    lt: &'a Lt,
    noise: Block,
    begin: Event,
    end: Event,
}

impl<'a> Bench<'a> {
    fn new(gpu: &'a Gpu, lt: &'a Lt) -> Result<Self, Error> {
        let noise = Block::new(NOISE_BYTES)?;
        // Zeros cost less power than numbers do. These 16-bit words are small numbers as bf16, as f16, and by two as f32.
        let stream = crate::philox::Stream { seed: 1, step: 0, site: 0 };
        let word = |bits: u32| (0x3e80 + (bits & 0xff) as u16) | ((bits >> 16) as u16 & 0x8000);
        let words: Vec<u16> = (0..NOISE_BYTES as u64 / 2)
            .map(|i| word((stream.uniform(i) * f64::from(u32::MAX)) as u32))
            .collect();
        // SAFETY: the block is as long as the words.
        unsafe { result::memcpy_htod_sync(noise.at, &words) }
            .map_err(super::super::fault::driver("copying noise"))?;
        Ok(Self { gpu, lt, noise, begin: Event::new(true)?, end: Event::new(true)? })
    }

    fn fill(&self, side: &Side, rows: u64, cols: u64) -> Result<(), Error> {
        let (start, bytes) = (side.at.at(Counters::default()).addr() as u64, side.bytes(rows, cols) as usize);
        let mut done = 0;
        while done < bytes {
            let piece = (bytes - done).min(NOISE_BYTES);
            // SAFETY: the matrix was checked to lie in its arena.
            unsafe { result::memcpy_dtod_async(start + done as u64, self.noise.at, piece, self.gpu.stream) }
                .map_err(super::super::fault::driver("copying noise"))?;
            done += piece;
        }
        Ok(())
    }

    /// The fastest choice, and its microseconds.
    fn fastest(&self, key: &Key, plan: &Plan, product: &Product) -> Result<(Choice, f64), Error> {
        self.fill(&product.a, key.m, key.k)?;
        self.fill(&product.b, key.k, key.n)?;
        let library: Vec<Algorithm> = plan.candidates(self.lt, product, CANDIDATES)?;
        let own = product.own.as_ref().map(|_| Choice::Own);
        let mut best: Option<(Choice, f64)> = None;
        for choice in library.into_iter().map(Choice::Library).chain(own) {
            // What an algorithm refuses when it is run is no candidate.
            let Some(us) = self.measure(plan, product, &choice)? else { continue };
            if best.is_none_or(|(_, least)| us < least) {
                best = Some((choice, us));
            }
        }
        best.ok_or_else(|| Error::NoAlgorithm { product: key.to_string() })
    }

    fn measure(&self, plan: &Plan, product: &Product, choice: &Choice) -> Result<Option<f64>, Error> {
        if run(self.gpu, self.lt, plan, product, choice).is_err() {
            return Ok(None);
        }
        let once = self.timed(plan, product, choice, 1)?;
        let runs = (MEASURE_US / 2.0 / once).clamp(2.0, RUNS_MAX) as u32;
        let first = self.timed(plan, product, choice, runs)?;
        Ok(Some(first.min(self.timed(plan, product, choice, runs)?)))
    }

    fn timed(&self, plan: &Plan, product: &Product, choice: &Choice, runs: u32) -> Result<f64, Error> {
        self.begin.record(self.gpu)?;
        for _ in 0..runs {
            run(self.gpu, self.lt, plan, product, choice)?;
        }
        self.end.record(self.gpu)?;
        self.end.wait()?;
        Ok(self.end.since(&self.begin)? / f64::from(runs))
    }
}
