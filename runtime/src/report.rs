//! Where the log goes. The runtime itself never prints.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};

/// Takes what a run has to say.
pub trait Reporter {
    /// A line of the log, without its end.
    fn line(&mut self, text: &str);

    /// How far the run is; comes after every step.
    fn progress(&mut self, done: u64, of: u64);

    /// A piece of text that the model wrote; an empty piece ends it.
    fn sample(&mut self, piece: &str);
}

/// Says nothing.
pub struct Silent;

impl Reporter for Silent {
    fn line(&mut self, _text: &str) {}
    fn progress(&mut self, _done: u64, _of: u64) {}
    fn sample(&mut self, _piece: &str) {}
}

/// Standard error: lines, and a bar below them where it is a terminal.
pub struct Terminal {
    bar: Option<ProgressBar>,
}

impl Terminal {
    /// The bar appears with the first step.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
            if let Ok(style) = ProgressStyle::with_template("{bar:32} {pos}/{len} steps, {eta} left") {
                bar.set_style(style);
            }
            bar
        });
        Self { bar }
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl Reporter for Terminal {
    fn line(&mut self, text: &str) {
        match &self.bar {
            Some(bar) if !bar.is_finished() => bar.println(text),
            // A closed pipe must not stop a training run.
            _ => _ = writeln!(std::io::stderr(), "{text}"),
        }
    }

    fn progress(&mut self, done: u64, of: u64) {
        let Some(bar) = &self.bar else { return };
        bar.set_length(of);
        bar.set_position(done);
        if done >= of {
            bar.finish_and_clear();
        }
    }

    fn sample(&mut self, piece: &str) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let mut out = std::io::stderr();
        _ = out.write_all(if piece.is_empty() { b"\n" } else { piece.as_bytes() });
        _ = out.flush();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
