//! Lines of the log, and the numbers in them.

use crate::error::bytes;
use crate::metrics::Summary;
use crate::session::StepStats;
use dspc_program::Program;
use std::time::{Duration, Instant};

/// Counts steps, losses and seconds.
pub(super) struct Meter {
    tokens_per_step: u64,
    last: u64,
    done: u64,
    since: Instant,
    losses: Sum,
    interval: Sum,
    /// Seconds and steps of training since the run began, pauses left out.
    trained: (f64, u64),
    /// When the first steps had ended, moved on by pauses; and steps since.
    steady: Option<(Instant, u64)>,
    latest: Instant,
}

/// Steps before the pace is steady: the first ones record graphs and touch memory for the first time.
const WARM_UP: u64 = 3;

#[derive(Clone, Copy, Default)]
struct Sum {
    loss: f64,
    losses: u64,
    steps: u64,
}

impl Sum {
    fn mean(self) -> f64 {
        self.loss / self.losses.max(1) as f64
    }
}

/// What a line of the log shows.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Reading {
    pub(super) loss: f64,
    pub(super) tokens_per_second: f64,
    pub(super) seconds_left: f64,
}

impl Meter {
    pub(super) fn new(program: &Program, done: u64, last: u64) -> Self {
        Self {
            tokens_per_step: program.training.batch * program.data.sequence,
            last,
            done,
            since: Instant::now(),
            losses: Sum::default(),
            interval: Sum::default(),
            trained: (0.0, 0),
            steady: None,
            latest: Instant::now(),
        }
    }

    pub(super) fn add(&mut self, stats: &StepStats) {
        self.done = stats.step;
        self.latest = Instant::now();
        match &mut self.steady {
            Some((_, steps)) => *steps += 1,
            None if self.losses.steps + 1 == WARM_UP => self.steady = Some((self.latest, 0)),
            None => {}
        }
        for sum in [&mut self.losses, &mut self.interval] {
            // A forward pass that overflowed says nothing; such a step is skipped and has a line of its own.
            if stats.loss.is_finite() {
                sum.loss += f64::from(stats.loss);
                sum.losses += 1;
            }
            sum.steps += 1;
        }
    }

    /// Does something that is not training: its time does not count.
    pub(super) fn pause<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let out = work();
        let pause = begun.elapsed();
        self.since += pause;
        if let Some((since, _)) = &mut self.steady {
            *since += pause;
        }
        out
    }

    /// Seconds of a step once the first few are over, pauses left out.
    pub(super) fn steady_step_seconds(&self) -> Option<f64> {
        let (since, steps) = self.steady.filter(|(_, steps)| *steps > 0)?;
        Some(self.latest.saturating_duration_since(since).as_secs_f64() / steps as f64)
    }

    /// The numbers since the last reading.
    pub(super) fn read(&mut self) -> Reading {
        let now = Instant::now();
        let seconds = now.saturating_duration_since(self.since).max(Duration::from_nanos(1)).as_secs_f64();
        self.since = now;
        let interval = std::mem::take(&mut self.interval);
        self.trained.0 += seconds;
        self.trained.1 += interval.steps;
        let per_step = self.trained.0 / self.trained.1.max(1) as f64;
        Reading {
            loss: interval.mean(),
            tokens_per_second: (interval.steps * self.tokens_per_step) as f64 / seconds,
            seconds_left: per_step * self.last.saturating_sub(self.done) as f64,
        }
    }

    pub(super) fn mean_loss(&self) -> f64 {
        self.losses.mean()
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }
}

/// `step 120/2000  loss 3.2817  gnorm 0.84  lr 5.9e-4  412k tok/s  mem 210.0 MiB  eta 1:12:40`
pub(super) fn line(stats: &StepStats, reading: &Reading, last: u64, memory: Option<u64>) -> String {
    let mut out = format!("step {}/{last}  loss {:.4}", stats.step, reading.loss);
    if let Some(norm) = stats.grad_norm {
        out += &format!("  gnorm {norm:.2}");
    }
    if let Some(scale) = stats.loss_scale {
        out += &format!("  scale {scale}");
    }
    out += &format!("  lr {:.1e}  {} tok/s", stats.learning_rate, count(reading.tokens_per_second as u64));
    if let Some(memory) = memory {
        out += &format!("  mem {}", bytes(memory));
    }
    out + &format!("  eta {}", duration(reading.seconds_left))
}

/// `step 12  overflow in the gradient of `h.0.attn.c_attn.weight`: skipped, loss scale 32768`
pub(super) fn skipped(step: u64, tensor: Option<&str>, scale: f32) -> String {
    let tensor = tensor.map_or(String::new(), |tensor| format!(" in the gradient of {tensor}"));
    format!("step {step}  overflow{tensor}: skipped, loss scale {scale}")
}

/// Parameters that share a row of the gradients' grid: its first, and how many there are besides.
pub(super) fn names(all: &[&str]) -> Option<String> {
    match all {
        [] => None,
        [one] => Some(format!("`{one}`")),
        [first, second] => Some(format!("`{first}` or `{second}`")),
        [first, .., last] => Some(format!("`{first}`, or of one up to `{last}`")),
    }
}

/// The line after the last step.
pub(super) fn closing(summary: &Summary) -> String {
    let mut out = format!("trained {} steps in {}", summary.global_step, duration(summary.train_runtime));
    out += &format!("  loss {:.4}", summary.train_loss);
    if let Some(loss) = summary.eval_loss {
        out += &format!("  eval loss {loss:.4}");
    }
    out += &format!("  {} tok/s", count(summary.train_tokens_per_second as u64));
    if let Some(path) = &summary.checkpoint {
        out += &format!("  saved in {}", path.display());
    }
    out
}

/// `412`, `41.2k`, `412k`, `1.24M`
pub(super) fn count(n: u64) -> String {
    let (scaled, unit) = match n {
        0..1_000 => return n.to_string(),
        1_000..1_000_000 => (n as f64 / 1e3, "k"),
        1_000_000..1_000_000_000 => (n as f64 / 1e6, "M"),
        _ => (n as f64 / 1e9, "B"),
    };
    let digits = match scaled {
        x if x < 9.995 => 2,
        x if x < 99.95 => 1,
        _ => 0,
    };
    format!("{scaled:.digits$}{unit}")
}

/// `0:07`, `12:40`, `1:12:40`
fn duration(seconds: f64) -> String {
    let whole = seconds.clamp(0.0, 1e12).round() as u64;
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        for (n, text) in
            [(999, "999"), (1_000, "1.00k"), (41_230, "41.2k"), (411_800, "412k"), (1_240_000, "1.24M")]
        {
            assert_eq!(count(n), text);
        }
        for (s, text) in [(7.2, "0:07"), (760.0, "12:40"), (4360.0, "1:12:40"), (f64::NAN, "0:00")] {
            assert_eq!(duration(s), text);
        }
    }

    #[test]
    fn a_line_of_the_log() {
        let stats = StepStats {
            step: 120,
            loss: 3.0,
            grad_norm: Some(0.841),
            learning_rate: 5.9e-4,
            finite: true,
            loss_scale: None,
            scale_exhausted: false,
            first_bad: None,
        };
        let reading = Reading { loss: 3.28171, tokens_per_second: 412_300.0, seconds_left: 4360.0 };
        let line = line(&stats, &reading, 2000, Some(210 << 20));
        assert!(
            line.starts_with("step 120/2000  loss 3.2817  gnorm 0.84  lr 5.9e-4  412k tok/s  "),
            "{line}"
        );
        assert!(line.ends_with("  eta 1:12:40"), "{line}");
    }
}
