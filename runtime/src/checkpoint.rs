//! `checkpoint-N/` and `commit-N.json`: a run's state after step N, whole or not at all.
//!
//! ```text
//! checkpoint-N/model.safetensors            weights, names as Hugging Face has them
//! checkpoint-N/config.json                  the model, for Hugging Face
//! checkpoint-N/dspc/optimizer.safetensors   the optimizer's moments
//! checkpoint-N/dspc/state.json              counters, seed, hashes
//! checkpoint-N/dspc/program.dspx/           the program, so that generation needs nothing else
//! commit-N.json                             every file with its BLAKE3; written last
//! ```
//!
//! The files are written to `checkpoint-N.tmp/` and synced, the folder is renamed, then the commit is written. A folder without
//! a commit does not count.

mod commit;
mod config;
mod weights;

use crate::artifact::{self, Artifact};
use crate::device::Wanted;
use crate::durable;
use crate::error::Error;
use crate::session::Session;
use commit::Commit;
use dspc_program::{Family, Program};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
pub(crate) use weights::Tensor;

const MODEL_FILE: &str = "model.safetensors";
const CONFIG_FILE: &str = "config.json";
const OPTIMIZER_FILE: &str = "dspc/optimizer.safetensors";
const STATE_FILE: &str = "dspc/state.json";
const PROGRAM_FOLDER: &str = "dspc/program.dspx";
const STATE_FORMAT: u32 = 1;

/// What a run must know to go on, besides its tensors.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    format: u32,
    /// Steps attempted.
    pub(crate) step: u64,
    /// Steps applied.
    pub(crate) applied: u64,
    /// Sequences trained on; the next sample's number.
    pub(crate) samples: u64,
    seed: u64,
    name: String,
    spec_hash: String,
    /// Hash of the text and the tokenizer.
    pub(crate) data_hash: String,
    /// Of the state, for people who compare runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
    dspc: String,
}

/// A checkpoint whose files are all there and unchanged.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// Its step.
    pub step: u64,
}

/// The commits of a run, newest first.
pub(crate) fn commits(run_dir: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(run_dir).into_iter().flatten().flatten();
    let mut steps: Vec<u64> =
        entries.filter_map(|e| commit::step_of(&e.file_name().to_string_lossy())).collect();
    steps.sort_unstable_by(|a, b| b.cmp(a));
    steps
}

fn folder(run_dir: &Path, step: u64) -> PathBuf {
    run_dir.join(format!("checkpoint-{step}"))
}

/// The checkpoint of a step that somebody else has checked.
pub(crate) fn at(run_dir: &Path, step: u64) -> Checkpoint {
    Checkpoint { path: folder(run_dir, step), step }
}

/// Checks every file of a checkpoint.
///
/// # Errors
/// R0402.
pub(crate) fn verify(run_dir: &Path, step: u64) -> Result<Checkpoint, Error> {
    let path = folder(run_dir, step);
    match Commit::read(run_dir, step).and_then(|commit| commit.verify(&path)) {
        Ok(()) => Ok(Checkpoint { path, step }),
        Err(reason) => Err(Error::CheckpointDamaged { path, reason }),
    }
}

/// The newest whole checkpoint of a run, and the damaged ones that were newer.
///
/// # Errors
/// R0401 where there is no commit, R0402 where none is whole.
pub(crate) fn newest(run_dir: &Path) -> Result<(Checkpoint, Vec<Error>), Error> {
    let mut damaged = Vec::new();
    for step in commits(run_dir) {
        match verify(run_dir, step) {
            Ok(checkpoint) => return Ok((checkpoint, damaged)),
            Err(error) => damaged.push(error),
        }
    }
    if damaged.is_empty() {
        return Err(Error::CheckpointMissing { path: run_dir.into() });
    }
    Err(damaged.remove(0))
}

/// The checkpoint that a path means: a `checkpoint-N` folder, or a run's folder for its newest.
///
/// # Errors
/// R0401, R0402.
pub fn open(path: &Path) -> Result<Checkpoint, Error> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let step = name.strip_prefix("checkpoint-").and_then(|n| n.parse().ok());
    match (step, path.parent()) {
        (Some(step), Some(run_dir)) if path.is_dir() => verify(run_dir, step),
        _ => newest(path).map(|(checkpoint, _)| checkpoint),
    }
}

impl Checkpoint {
    /// The program that made it, for a device.
    ///
    /// # Errors
    /// Those of [`artifact::open`].
    pub fn artifact(&self, wanted: Wanted) -> Result<Artifact, Error> {
        artifact::open(&self.path.join(PROGRAM_FOLDER), wanted)
    }

    /// The program that made it, whatever device it is for: all have one meaning.
    fn program(&self) -> Result<Program, Error> {
        let folder = self.path.join(PROGRAM_FOLDER);
        let family = artifact::families(&folder).first().copied().unwrap_or(Family::Cpu);
        Ok(artifact::read(&folder, family)?.program)
    }

    /// Sets a session's weights: of several ranks each takes its own.
    ///
    /// # Errors
    /// R0402, R0403.
    pub(crate) fn load_weights(&self, session: &mut Session) -> Result<(), Error> {
        let tensors = weights::params(session.program());
        weights::File::read(&self.path, MODEL_FILE)?.load(session, &tensors)
    }

    /// Sets a session's moments and counters, and says where it stands.
    ///
    /// # Errors
    /// R0402, R0403.
    pub(crate) fn load_state(&self, session: &mut Session) -> Result<State, Error> {
        let state = self.state()?;
        let tensors = weights::moments(session.program());
        weights::File::read(&self.path, OPTIMIZER_FILE)?.load(session, &tensors)?;
        session.set_steps(state.step, state.applied);
        Ok(state)
    }

    fn state(&self) -> Result<State, Error> {
        let damaged = |reason: String| Error::CheckpointDamaged { path: self.path.clone(), reason };
        let bytes = std::fs::read(self.path.join(STATE_FILE)).map_err(|e| damaged(e.to_string()))?;
        let state: State =
            serde_json::from_slice(&bytes).map_err(|e| damaged(format!("{STATE_FILE}: {e}")))?;
        match state.format {
            STATE_FORMAT => Ok(state),
            other => Err(damaged(format!(
                "{STATE_FILE} has format {other}, and this runtime reads {STATE_FORMAT}"
            ))),
        }
    }

    /// Checks that a program can go on from here: what decides the weights' shapes, the ids and their order is the same.
    /// Learning rate, number of steps and the log may differ.
    ///
    /// # Errors
    /// R0403 with the first difference.
    pub(crate) fn check_same_run(&self, program: &Program) -> Result<(), Error> {
        let before = self.program()?;
        let (old, new) = (&before, program);
        let differences = [
            ("sequence", old.data.sequence.to_string(), new.data.sequence.to_string()),
            ("vocabulary", old.data.vocab.to_string(), new.data.vocab.to_string()),
            ("holdout", old.data.holdout.to_string(), new.data.holdout.to_string()),
            ("batch", old.training.batch.to_string(), new.training.batch.to_string()),
            ("seed", old.training.seed.to_string(), new.training.seed.to_string()),
        ];
        let mismatch = |reason| Err(Error::CheckpointMismatch { path: self.path.clone(), reason });
        for (name, old, new) in differences {
            if old != new {
                return mismatch(format!("its `{name}` is {old}, and the program's is {new}"));
            }
        }
        if old.data.tokenizer != new.data.tokenizer {
            return mismatch("its tokenizer differs".into());
        }
        Ok(())
    }
}

/// All that a checkpoint keeps in tensors: weights, then the optimizer's state.
pub(crate) fn state_of(program: &Program) -> Vec<Tensor> {
    let mut tensors = weights::params(program);
    tensors.extend(weights::moments(program));
    tensors
}

/// What is saved beside the tensors.
pub(crate) struct Facts<'a> {
    /// Hash of the text and the tokenizer.
    pub(crate) data_hash: &'a str,
    /// Of the state.
    pub(crate) fingerprint: u128,
    /// Checkpoints to keep; 0 keeps all.
    pub(crate) keep: u64,
}

/// Writes a checkpoint, and drops those beyond `keep`. What was there under the same step is replaced. All ranks call it; the first one
/// writes, and says where.
///
/// # Errors
/// On the first rank R0301, R0302; then older checkpoints are untouched and nothing of this one is left. On all R0801.
pub(crate) fn save(
    run_dir: &Path,
    session: &Session,
    artifact: &Artifact,
    facts: &Facts<'_>,
) -> Result<Option<Checkpoint>, Error> {
    if session.communicator().rank() != 0 {
        return weights::follow(session, &state_of(session.program())).map(|()| None);
    }
    let saved = write(run_dir, session, artifact, facts);
    // Also after a full disk: the others wait.
    weights::release(session)?;
    saved.map(Some)
}

fn write(
    run_dir: &Path,
    session: &Session,
    artifact: &Artifact,
    facts: &Facts<'_>,
) -> Result<Checkpoint, Error> {
    let program = session.program();
    let (step, applied) = session.steps();
    let state = State {
        format: STATE_FORMAT,
        step,
        applied,
        samples: step * program.training.batch,
        seed: program.training.seed,
        name: program.name.clone(),
        spec_hash: program.spec_hash.clone(),
        data_hash: facts.data_hash.into(),
        fingerprint: Some(format!("{:032x}", facts.fingerprint)),
        dspc: program.dspc.clone(),
    };
    let (path, temporary) = (folder(run_dir, step), run_dir.join(format!("checkpoint-{step}.tmp")));
    discard(run_dir, step)?;
    let written = durable::remove_folder(&temporary)
        .and_then(|()| fill(&temporary, session, artifact, &state))
        .and_then(|()| Commit::of(&temporary, step))
        .and_then(|commit| durable::rename(&temporary, &path).map(|()| commit))
        .and_then(|commit| commit.write(run_dir));
    if let Err(error) = written {
        _ = std::fs::remove_dir_all(&temporary);
        _ = discard(run_dir, step);
        return Err(error);
    }
    retire(run_dir, facts.keep);
    Ok(Checkpoint { path, step })
}

fn fill(dir: &Path, session: &Session, artifact: &Artifact, state: &State) -> Result<(), Error> {
    let program = session.program();
    durable::make_folder(&dir.join(PROGRAM_FOLDER))?;
    let (params, moments) = (weights::params(program), weights::moments(program));
    weights::write(&dir.join(MODEL_FILE), session, &params, 0)?;
    weights::write(&dir.join(OPTIMIZER_FILE), session, &moments, params.len())?;
    let config = dir.join(CONFIG_FILE);
    durable::write_synced(&config, &[&artifact::to_json(&config::config(program), &config)?])?;
    let path = dir.join(STATE_FILE);
    durable::write_synced(&path, &[&artifact::to_json(state, &path)?])?;
    for name in artifact.files()? {
        let source = artifact.directory.join(&name);
        let bytes =
            std::fs::read(&source).map_err(|e| Error::ArtifactUnreadable { path: source, source: e })?;
        durable::write_synced(&dir.join(PROGRAM_FOLDER).join(name), &[&bytes])?;
    }
    [PROGRAM_FOLDER, "dspc", ""].iter().try_for_each(|inner| durable::sync_folder(&dir.join(inner)))
}

/// Takes a checkpoint back: the commit first, so that there is never a commit without its files.
fn discard(run_dir: &Path, step: u64) -> Result<(), Error> {
    Commit::remove(run_dir, step)?;
    durable::remove_folder(&folder(run_dir, step))
}

/// Drops the oldest checkpoints. One that cannot be removed is in nobody's way.
fn retire(run_dir: &Path, keep: u64) {
    if keep == 0 {
        return;
    }
    for step in commits(run_dir).into_iter().skip(keep as usize) {
        _ = discard(run_dir, step);
    }
}

/// Removes what a run that was killed left half-written.
pub(crate) fn remove_debris(run_dir: &Path) {
    for entry in std::fs::read_dir(run_dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let unfinished = name.starts_with("checkpoint-") && name.ends_with(".tmp");
        if unfinished && entry.path().is_dir() {
            _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
