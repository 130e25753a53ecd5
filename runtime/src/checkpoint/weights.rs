//! Tensors in safetensors files. What the host can see is written from where it lies; else one tensor at a time is copied.

use crate::checkpoint::config;
use crate::device::element_bytes;
use crate::error::Error;
use crate::session::Session;
use dspc_program::{Buffer, BufferId, ElementType, Program, Role};
use safetensors::{Dtype, SafeTensorError, SafeTensors, View};
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// A tensor of a file and the memory that it comes from.
pub(super) struct Tensor {
    name: String,
    shape: Vec<usize>,
    dtype: ElementType,
    buffer: BufferId,
    /// First slot and number of slots.
    slots: (u64, u64),
    slot_bytes: usize,
}

/// The weights, in the program's order.
pub(super) fn params(program: &Program) -> Vec<Tensor> {
    program
        .params
        .iter()
        .map(|param| Tensor {
            name: config::tensor_name(program, &param.name),
            shape: param.dims.iter().map(|&d| d as usize).collect(),
            dtype: ElementType::F32,
            buffer: param.buffer,
            slots: (param.slot, 1),
            slot_bytes: param.dims.iter().product::<u64>() as usize * 4,
        })
        .collect()
}

/// The optimizer's state: its moments and the loss scale's counters, slot after slot; a view is saved with what it is a view of.
pub(super) fn moments(program: &Program) -> Vec<Tensor> {
    let roles = [Role::Moment, Role::LossScale, Role::CleanSteps, Role::Hysteresis];
    let is_moment = |b: &Buffer| roles.contains(&b.role);
    let whole =
        |b: &Buffer| b.within.and_then(|id| program.buffers.get(id.0 as usize)).is_none_or(|w| !is_moment(w));
    let buffers = program.buffers.iter().enumerate().filter(|(_, b)| is_moment(b) && whole(b));
    buffers
        .map(|(i, b)| Tensor {
            name: b.name.clone(),
            shape: vec![b.slots as usize, b.elements as usize],
            dtype: b.dtype,
            buffer: BufferId(i as u32),
            slots: (0, b.slots),
            slot_bytes: (b.elements * element_bytes(b.dtype)) as usize,
        })
        .collect()
}

impl Tensor {
    fn file_dtype(&self) -> Dtype {
        match self.dtype {
            ElementType::F32 => Dtype::F32,
            ElementType::Bf16 => Dtype::BF16,
            ElementType::F16 => Dtype::F16,
            ElementType::I32 => Dtype::I32,
        }
    }

    fn bytes(&self) -> usize {
        self.slot_bytes * self.slots.1 as usize
    }

    fn read_from(&self, session: &Session) -> Result<Vec<u8>, Error> {
        let mut out = vec![0; self.bytes()];
        for (i, chunk) in out.chunks_mut(self.slot_bytes.max(1)).enumerate() {
            session.read_slot(self.buffer, self.slots.0 + i as u64, chunk)?;
        }
        Ok(out)
    }

    pub(super) fn write_to(&self, session: &mut Session, bytes: &[u8]) -> Result<(), Error> {
        let chunks = bytes.chunks(self.slot_bytes.max(1)).enumerate();
        chunks
            .into_iter()
            .try_for_each(|(i, chunk)| session.write_slot(self.buffer, self.slots.0 + i as u64, chunk))
    }
}

/// A tensor that is read when it is written.
struct Lazy<'a> {
    tensor: &'a Tensor,
    session: &'a Session,
}

impl View for Lazy<'_> {
    fn dtype(&self) -> Dtype {
        self.tensor.file_dtype()
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let tensor = self.tensor;
        if let (first, 1) = tensor.slots
            && let Some(bytes) = self.session.lent(tensor.buffer, first, tensor.slot_bytes)
        {
            return Cow::Borrowed(bytes);
        }
        // A buffer that cannot be read gives too few bytes, and the file's size is checked below.
        Cow::Owned(self.tensor.read_from(self.session).unwrap_or_default())
    }

    fn data_len(&self) -> usize {
        self.tensor.bytes()
    }
}

/// Writes a file and waits until the disk has it.
pub(super) fn write(path: &Path, session: &Session, tensors: &[Tensor]) -> Result<(), Error> {
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let views = tensors.iter().map(|tensor| (tensor.name.as_str(), Lazy { tensor, session }));
    let io = |e: SafeTensorError| match e {
        SafeTensorError::IoError(e) => e,
        other => std::io::Error::other(other),
    };
    safetensors::serialize_to_file(views, Some(metadata), path)
        .map_err(io)
        .and_then(|()| std::fs::File::open(path)?.sync_all())
        .and_then(|()| {
            let payload: u64 = tensors.iter().map(|t| t.bytes() as u64).sum();
            let short = std::fs::metadata(path)?.len() < payload;
            if short { Err(std::io::ErrorKind::WriteZero.into()) } else { Ok(()) }
        })
        .map_err(|e| Error::write(path, e))
}

/// A file that was read.
pub(super) struct File {
    checkpoint: PathBuf,
    name: &'static str,
    bytes: Vec<u8>,
}

impl File {
    pub(super) fn read(checkpoint: &Path, name: &'static str) -> Result<Self, Error> {
        match std::fs::read(checkpoint.join(name)) {
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

    /// Checks that the file has these tensors and no other.
    pub(super) fn check_names(&self, wanted: &[Tensor]) -> Result<(), Error> {
        let file = self.tensors()?;
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

    /// A tensor's bytes, its type and shape checked.
    pub(super) fn bytes(&self, tensor: &Tensor) -> Result<&[u8], Error> {
        let file = self.tensors()?;
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
        Ok(view.data())
    }

    /// A tensor's elements.
    pub(super) fn values(&self, tensor: &Tensor) -> Result<Vec<f32>, Error> {
        // The file's bytes need not be aligned.
        Ok(self
            .bytes(tensor)?
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect())
    }

    fn mismatch<T>(&self, reason: String) -> Result<T, Error> {
        Err(Error::CheckpointMismatch { path: self.checkpoint.clone(), reason })
    }
}
