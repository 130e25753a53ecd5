//! An entry recorded once, with all its loops unrolled, and replayed.

use super::context::Gpu;
use super::fault;
use crate::error::Error;
use cudarc::driver::{result, sys};

/// A recorded entry.
pub(super) struct Graph {
    recorded: sys::CUgraph,
    ready: sys::CUgraphExec,
}

impl Graph {
    /// Records what `issue` starts on the stream; nothing runs.
    pub(super) fn record(gpu: &Gpu, issue: impl FnOnce() -> Result<(), Error>) -> Result<Self, Error> {
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is ours, and nothing else is being recorded.
        unsafe { result::stream::begin_capture(gpu.stream, mode) }
            .map_err(fault::driver("beginning to record a graph"))?;
        let issued = issue();
        // Ended even where issuing failed: the stream is of no use before that.
        // SAFETY: begun above.
        let recorded = unsafe { result::stream::end_capture(gpu.stream) };
        issued?;
        let recorded = recorded.map_err(fault::driver("recording a graph"))?;
        // SAFETY: the graph was just recorded.
        let ready = unsafe {
            let ready = result::graph::instantiate(recorded, sys::CUgraphInstantiate_flags(0));
            let ready = ready.inspect_err(|_| _ = result::graph::destroy(recorded));
            ready.map_err(fault::driver("making a graph ready"))?
        };
        let graph = Self { recorded, ready };
        // SAFETY: graph and stream are alive.
        unsafe { result::graph::upload(graph.ready, gpu.stream) }
            .map_err(fault::driver("uploading a graph"))?;
        Ok(graph)
    }

    /// Starts it.
    pub(super) fn launch(&self, gpu: &Gpu) -> Result<(), Error> {
        // SAFETY: graph and stream are alive, and what the graph names lives as long as the device.
        unsafe { result::graph::launch(self.ready, gpu.stream) }.map_err(fault::driver("starting a graph"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `record`, destroyed once, after all work has ended.
        unsafe {
            _ = result::graph::exec_destroy(self.ready);
            _ = result::graph::destroy(self.recorded);
        }
    }
}
