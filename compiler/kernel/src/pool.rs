//! The growing result: distinct kernels and storages.

use std::collections::HashMap;

use dspc_graph::ir::DType;
use dspc_program::Family;

use crate::describe::{Kernel, RowKernel};
use crate::steps::{KernelIndex, NamedKernel, Storage, StorageId, StorageKind, Within};

/// Kernels found equal are one; names of operands do not count.
pub(crate) struct Pool {
    /// The kind of device that they are for.
    pub family: Family,
    /// Whether factors of products that are f32 may be rounded to TF32.
    pub tf32: bool,
    pub kernels: Vec<NamedKernel>,
    pub storages: Vec<Storage>,
    by_description: HashMap<String, KernelIndex>,
    names: HashMap<String, u32>,
}

impl Pool {
    pub fn new(family: Family, tf32: bool) -> Self {
        let (kernels, storages) = (vec![], vec![]);
        Self { family, tf32, kernels, storages, by_description: HashMap::new(), names: HashMap::new() }
    }

    pub fn kernel(&mut self, stem: &str, kernel: Kernel) -> KernelIndex {
        let next = KernelIndex(self.kernels.len() as u32);
        let index = *self.by_description.entry(nameless(&kernel)).or_insert(next);
        if index == next {
            self.kernels.push(NamedKernel { stem: stem.into(), kernel });
        }
        index
    }

    /// A new storage; a name that is taken gets a number.
    pub fn storage(
        &mut self,
        name: &str,
        dtype: DType,
        elements: u64,
        slots: u64,
        kind: StorageKind,
    ) -> StorageId {
        self.add(Storage { name: name.into(), dtype, elements, slots, kind, within: None })
    }

    /// A range of another storage.
    pub fn part(
        &mut self,
        name: &str,
        elements: u64,
        slots: u64,
        kind: StorageKind,
        within: Within,
    ) -> StorageId {
        let dtype = self.storages[within.storage.0 as usize].dtype;
        self.add(Storage { name: name.into(), dtype, elements, slots, kind, within: Some(within) })
    }

    /// The storage whose memory one is: itself, or the one that it is a range of.
    pub fn root(&self, id: StorageId) -> StorageId {
        self.storages[id.0 as usize].within.map_or(id, |within| within.storage)
    }

    fn add(&mut self, mut storage: Storage) -> StorageId {
        let count = self.names.entry(storage.name.clone()).or_insert(0);
        *count += 1;
        if *count > 1 {
            storage.name = format!("{}.{count}", storage.name);
        }
        self.storages.push(storage);
        StorageId(self.storages.len() as u32 - 1)
    }
}

fn nameless(kernel: &Kernel) -> String {
    match kernel {
        Kernel::Row(k) => {
            let mut k: RowKernel = k.clone();
            k.reads.iter_mut().for_each(|r| r.name.clear());
            k.writes.iter_mut().for_each(|w| w.name.clear());
            format!("{k:?}")
        }
        other => format!("{other:?}"),
    }
}
