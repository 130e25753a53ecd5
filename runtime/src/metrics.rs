//! `metrics.jsonl`: a line an event, with the key names that Hugging Face's trainer uses.

use crate::durable;
use crate::error::Error;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// One line.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) step: u64,
    pub(crate) epoch: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) loss: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) grad_norm: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) learning_rate: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) loss_scale: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tokens_per_second: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) eval_loss: Option<f64>,
}

/// The file, open at its end.
pub(crate) struct Metrics {
    file: File,
    path: PathBuf,
}

impl Metrics {
    /// Opens the file of a run that goes on after `step`: lines of later steps, and a cut last line, are dropped.
    pub(crate) fn open(path: &Path, step: u64) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let kept: String = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .filter(|line| serde_json::from_str::<Record>(line).is_ok_and(|record| record.step <= step))
            .collect();
        if kept.len() != text.len() || !path.exists() {
            durable::replace(path, &[kept.as_bytes()])?;
        }
        let file = OpenOptions::new().append(true).open(path).map_err(|e| Error::write(path, e))?;
        Ok(Self { file, path: path.into() })
    }

    /// Adds a line, in one write.
    pub(crate) fn add(&mut self, record: &Record) -> Result<(), Error> {
        let json = serde_json::to_string(record).map_err(|e| Error::write(&self.path, e.into()))?;
        self.file.write_all(format!("{json}\n").as_bytes()).map_err(|e| Error::write(&self.path, e))
    }
}

/// `summary.json`, and what a run returns.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Summary {
    /// Seconds of training, evaluations and checkpoints included.
    pub train_runtime: f64,
    /// Sequences a second.
    pub train_samples_per_second: f64,
    /// Steps a second.
    pub train_steps_per_second: f64,
    /// Tokens a second.
    pub train_tokens_per_second: f64,
    /// Mean loss over the steps of this run.
    pub train_loss: f64,
    /// Loss on the holdout at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_loss: Option<f64>,
    /// e to that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// Last step.
    pub global_step: u64,
    /// Passes over the training text.
    pub epoch: f64,
    /// Highest memory of the process, where the system says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// Memory of the GPU that the run took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_bytes: Option<u64>,
    /// Seconds of a step once the first few were over, evaluations and checkpoints left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steady_step_seconds: Option<f64>,
    /// Of parameters and optimizer state after the last step, 32 hex digits; the same for every number of ranks.
    pub fingerprint: String,
    /// Ended before its steps, by request.
    pub interrupted: bool,
    /// The last checkpoint.
    #[serde(skip)]
    pub checkpoint: Option<PathBuf>,
}

/// Highest memory of this process so far.
pub(crate) fn peak_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_after_the_step_and_a_cut_line_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut metrics = Metrics::open(&path, 0).unwrap();
        for step in 1..=3 {
            metrics.add(&Record { step, loss: Some(0.5), ..Record::default() }).unwrap();
        }
        drop(metrics);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().next().unwrap(), r#"{"step":1,"epoch":0.0,"loss":0.5}"#);
        std::fs::write(&path, text.clone() + r#"{"step":2,"ep"#).unwrap();
        Metrics::open(&path, 2).unwrap().add(&Record { step: 3, ..Record::default() }).unwrap();
        let lines = std::fs::read_to_string(&path).unwrap();
        assert_eq!(lines.lines().map(|l| l.as_bytes()[8]).collect::<Vec<_>>(), b"123");
        assert!(lines.ends_with("{\"step\":3,\"epoch\":0.0}\n"));
    }
}
