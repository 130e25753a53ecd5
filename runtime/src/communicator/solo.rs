//! One rank alone: nothing waits, and a collective moves its own shard at most.

use super::{Cause, Communicator, Exchange, Kind, Range, Team};
use crate::error::Error;
use std::any::Any;
use std::sync::{Arc, OnceLock};

/// The rank of a world of one.
#[derive(Default)]
pub struct Solo {
    failed: OnceLock<Cause>,
}

impl Communicator for Solo {
    fn rank(&self) -> u64 {
        0
    }

    fn world(&self) -> u64 {
        1
    }

    fn describe(&self) -> String {
        "one rank".into()
    }

    fn barrier(&self) -> Result<(), Error> {
        Ok(())
    }

    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        Ok(vec![bytes.to_vec()])
    }

    fn attach(
        &self,
        _teams: &[Team],
        _arenas: &[Range],
        _keep: Arc<dyn Any + Send + Sync>,
    ) -> Result<(), Error> {
        Ok(())
    }

    fn exchange(&self, exchange: &Exchange<'_>, sum: &mut dyn FnMut(&[*mut u8])) -> Result<(), Error> {
        for piece in exchange.pieces {
            let address = std::ptr::with_exposed_provenance_mut::<u8>;
            let (from, to) = (address(piece.from.address), address(piece.to.address));
            match exchange.kind {
                Kind::ReduceScatter { .. } => sum(&[from, to]),
                // SAFETY: both ranges were checked to lie in the device's memory; they may be the same.
                Kind::AllGather => unsafe { std::ptr::copy(from, to, piece.bytes) },
            }
        }
        Ok(())
    }

    fn abort(&self, cause: &Cause) {
        _ = self.failed.set(cause.clone());
    }

    fn failed(&self) -> Option<Cause> {
        self.failed.get().cloned()
    }
}
