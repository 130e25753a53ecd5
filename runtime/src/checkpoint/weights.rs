//! Tensors in safetensors files, whole whatever the ranks: what the host can see is written from where it lies; else one tensor at a time
//! is copied, or gathered from the ranks that share it out. Reading takes the elements that a rank holds.

use crate::checkpoint::config;
use crate::error::Error;
use crate::session::{Session, Stored};
use dspc_program::{Buffer, BufferId, ElementType, Program, Role};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensorError, SafeTensors, View};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// A tensor of a file and the memory that it comes from.
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) stored: Stored,
}

/// The weights, in the program's order.
pub(crate) fn params(program: &Program) -> Vec<Tensor> {
    let tensor = |param: &dspc_program::Param| Tensor {
        name: config::tensor_name(program, &param.name),
        shape: shape(&param.dims),
        stored: Stored::of_param(program, param),
    };
    program.params.iter().map(tensor).collect()
}

/// The optimizer's state: what it keeps for each parameter, and the loss scale's counters.
pub(crate) fn moments(program: &Program) -> Vec<Tensor> {
    let of_params = program.params.iter().flat_map(|param| {
        param.moments.iter().map(|moment| Tensor {
            name: format!("{}.{}", config::tensor_name(program, &param.name), moment.name),
            shape: shape(&moment.dims),
            stored: Stored::of_moment(program, moment),
        })
    });
    let mut tensors: Vec<Tensor> = of_params.collect();
    let mut roles = vec![Role::LossScale, Role::CleanSteps, Role::Hysteresis];
    if tensors.is_empty() {
        // Programs that do not say what is kept for which parameter.
        roles.push(Role::Moment);
    }
    let of_role = |b: &Buffer| roles.contains(&b.role);
    let whole =
        |b: &Buffer| b.within.and_then(|id| program.buffers.get(id.0 as usize)).is_none_or(|w| !of_role(w));
    for (i, buffer) in program.buffers.iter().enumerate().filter(|(_, b)| of_role(b) && whole(b)) {
        let stored = |slot| Stored {
            buffer: BufferId(i as u32),
            slot,
            shard: None,
            elements: buffer.elements,
            dtype: buffer.dtype,
        };
        tensors.extend((0..buffer.slots).map(|slot| Tensor {
            name: if buffer.slots == 1 { buffer.name.clone() } else { format!("{}.{slot}", buffer.name) },
            shape: vec![buffer.elements as usize],
            stored: stored(slot),
        }));
    }
    tensors
}

fn shape(dims: &[u64]) -> Vec<usize> {
    dims.iter().map(|&d| d as usize).collect()
}

impl Tensor {
    fn file_dtype(&self) -> Dtype {
        match self.stored.dtype {
            ElementType::F32 => Dtype::F32,
            ElementType::Bf16 => Dtype::BF16,
            ElementType::F16 => Dtype::F16,
            ElementType::I32 => Dtype::I32,
        }
    }
}

/// A tensor that is read when it is written; `number` is what the other ranks know it by.
struct Lazy<'a> {
    tensor: &'a Tensor,
    number: usize,
    session: &'a Session,
    fault: &'a RefCell<Option<Error>>,
}

impl Lazy<'_> {
    fn read(&self) -> Result<Cow<'_, [u8]>, Error> {
        let stored = &self.tensor.stored;
        if stored.shard.is_none() {
            return self.session.held_bytes(stored);
        }
        self.session.communicator().broadcast(0, &(self.number as u64).to_le_bytes())?;
        self.session.whole_on_first(stored).map(Cow::Owned)
    }
}

impl View for Lazy<'_> {
    fn dtype(&self) -> Dtype {
        self.tensor.file_dtype()
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // What cannot be read gives too few bytes, and the file does not count.
        self.read().unwrap_or_else(|error| {
            self.fault.borrow_mut().get_or_insert(error);
            Cow::Borrowed(&[])
        })
    }

    fn data_len(&self) -> usize {
        self.tensor.stored.bytes()
    }
}

/// Writes a file and waits until the disk has it. The others [`follow`]; the first tensor is number `first` to them.
pub(super) fn write(path: &Path, session: &Session, tensors: &[Tensor], first: usize) -> Result<(), Error> {
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let fault = RefCell::new(None);
    let views = (first..)
        .zip(tensors)
        .map(|(number, tensor)| (tensor.name.as_str(), Lazy { tensor, number, session, fault: &fault }));
    let io = |e: SafeTensorError| match e {
        SafeTensorError::IoError(e) => e,
        other => std::io::Error::other(other),
    };
    let written = safetensors::serialize_to_file(views, Some(metadata), path)
        .map_err(io)
        .and_then(|()| std::fs::File::open(path)?.sync_all())
        .map_err(|e| Error::write(path, e));
    match fault.into_inner() {
        Some(error) => Err(error),
        None => written,
    }
}

/// Gives what the first rank asks for, tensor by tensor, until [`release`] says that it is done.
pub(super) fn follow(session: &Session, tensors: &[Tensor]) -> Result<(), Error> {
    loop {
        let asked = session.communicator().broadcast(0, &[])?;
        let Ok(number) = <[u8; 8]>::try_from(asked.as_slice()).map(u64::from_le_bytes) else { return Ok(()) };
        let tensor = usize::try_from(number).ok().and_then(|number| tensors.get(number));
        if let Some(tensor) = tensor {
            session.whole_on_first(&tensor.stored)?;
        }
    }
}

/// Lets those who follow go.
pub(super) fn release(session: &Session) -> Result<(), Error> {
    session.communicator().broadcast(0, &[]).map(|_| ())
}

/// A file that is read where it lies; its hash was checked.
pub(super) struct File {
    checkpoint: PathBuf,
    name: &'static str,
    bytes: Mmap,
}

impl File {
    pub(super) fn read(checkpoint: &Path, name: &'static str) -> Result<Self, Error> {
        let map = |path: PathBuf| {
            let file = std::fs::File::open(path)?;
            // SAFETY: nobody changes the files of a checkpoint; who cuts one short while it is read ends the process.
            unsafe { Mmap::map(&file) }
        };
        match map(checkpoint.join(name)) {
            Ok(bytes) => {
                let file = Self { checkpoint: checkpoint.into(), name, bytes };
                file.tensors().map(|_| ())?;
                Ok(file)
            }
            Err(e) => {
                Err(Error::CheckpointDamaged { path: checkpoint.into(), reason: format!("{name}: {e}") })
            }
        }
    }

    fn tensors(&self) -> Result<SafeTensors<'_>, Error> {
        SafeTensors::deserialize(&self.bytes).map_err(|e| Error::CheckpointDamaged {
            path: self.checkpoint.clone(),
            reason: format!("{}: {e}", self.name),
        })
    }

    /// Sets what a session holds of tensors, each checked; the file has these and no other.
    pub(super) fn load(&self, session: &mut Session, wanted: &[Tensor]) -> Result<(), Error> {
        let file = self.tensors()?;
        self.check_names(&file, wanted)?;
        for tensor in wanted {
            let Ok(view) = file.tensor(&tensor.name) else {
                return self.mismatch(format!("{} has no tensor `{}`", self.name, tensor.name));
            };
            if view.dtype() != tensor.file_dtype() || view.shape() != tensor.shape {
                return self.mismatch(format!(
                    "`{}` is {:?} {:?}, and the program's is {:?} {:?}",
                    tensor.name,
                    view.dtype(),
                    view.shape(),
                    tensor.file_dtype(),
                    tensor.shape
                ));
            }
            let (range, _) = session.held(&tensor.stored);
            let size = tensor.stored.bytes() / tensor.stored.elements.max(1) as usize;
            let part = view.data().get(range.start as usize * size..range.end as usize * size);
            session.write_held(&tensor.stored, part.unwrap_or_default())?;
        }
        Ok(())
    }

    fn check_names(&self, file: &SafeTensors<'_>, wanted: &[Tensor]) -> Result<(), Error> {
        let found: BTreeSet<&str> = file.names().into_iter().collect();
        let wanted: BTreeSet<&str> = wanted.iter().map(|t| t.name.as_str()).collect();
        if let Some(name) = wanted.difference(&found).next() {
            return self.mismatch(format!("{} has no tensor `{name}`", self.name));
        }
        if let Some(name) = found.difference(&wanted).next() {
            return self.mismatch(format!("{} has a tensor `{name}`, and the program has none", self.name));
        }
        Ok(())
    }

    fn mismatch<T>(&self, reason: String) -> Result<T, Error> {
        Err(Error::CheckpointMismatch { path: self.checkpoint.clone(), reason })
    }
}
