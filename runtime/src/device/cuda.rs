//! An NVIDIA GPU: kernels from PTX, products from cuBLASLt or our own kernels, a graph an entry.
//!
//! Memory is taken once; nothing is taken while training. An entry is recorded when it first runs, and replayed from then on. Whatever the
//! driver or a library does not have is an error of [`libraries`], before it is called.

mod call;
mod context;
mod fault;
mod graph;
mod inputs;
mod launch;
pub mod libraries;
mod lower;
mod memory;
mod module;
mod product;
mod results;
#[cfg(test)]
mod tests;

pub use context::Card;

use super::call::Counters;
use super::cpu::check_world;
use super::{Device, DeviceOptions, EntryKind, Word, element_bytes};
use crate::communicator::{Communicator, Exchange, Kind, Solo, teams};
use crate::error::{Error, bytes};
use call::Call;
use context::Gpu;
use cudarc::driver::result as driver;
use dspc_program::{Buffer, BufferId, Program, Target};
use graph::Graph;
use inputs::{Inputs, Layout};
use lower::Lowering;
use memory::{Block, DeviceArenas};
use module::Module;
use product::Key;
use product::choose::{Products, Sample};
use results::Results;
use std::sync::Arc;

/// An entry whose loops make more instructions than this is not recorded. A node takes 2.2 KB of device memory and 12 µs once; started one
/// by one, an instruction takes the host 5 µs (H100), which is less than kernels of models take that have so many.
const GRAPH_MAX: u64 = 100_000;

/// Kernels that take so long to load were compiled, and that is said.
const COMPILED_S: f64 = 0.5;

/// A program on a GPU. Fields go in this order: what uses the context goes before it.
pub struct Cuda {
    entries: [Option<EntryState>; 4],
    products: Products,
    inputs: Inputs,
    results: Results,
    _module: Module,
    arenas: DeviceArenas,
    /// For what other ranks send.
    scratch: Option<Block>,
    communicator: Arc<dyn Communicator>,
    buffers: Vec<Buffer>,
    /// One instruction at a time, so that a fault is found where it happens.
    careful: bool,
    free_before: u64,
    notes: Vec<String>,
    gpu: Gpu,
}

struct EntryState {
    calls: Vec<Call>,
    graph: Option<Graph>,
}

// SAFETY: handles of the driver may be used from any thread, one at a time, once the context is made current there, which every method does.
unsafe impl Send for Cuda {}

impl Cuda {
    /// Takes memory, loads the kernels, chooses the algorithms of the products. `ptx` are the target's kernels.
    ///
    /// # Errors
    /// R0202 for a program that reaches outside its memory, R0606 to R0610, R0701 to R0705.
    pub fn new(
        program: &Program,
        target: &Target,
        ptx: &[u8],
        options: &DeviceOptions,
    ) -> Result<Self, Error> {
        Self::of_rank(program, target, ptx, options, Arc::new(Solo::default()))
    }

    /// As [`Self::new`], for one rank of several.
    ///
    /// # Errors
    /// Those of [`Self::new`]; R0802 for a program of another number of ranks, R0801, R0832.
    pub fn of_rank(
        program: &Program,
        target: &Target,
        ptx: &[u8],
        options: &DeviceOptions,
        communicator: Arc<dyn Communicator>,
    ) -> Result<Self, Error> {
        check_world(program, &*communicator)?;
        let malformed = |reason| Error::ArtifactMalformed { path: program.name.clone().into(), reason };
        super::lower::check_memory(program).map_err(malformed)?;
        // Of use to those who asked the driver for nothing before.
        libraries::keep_images(options.cache_dir.join("images"));
        let gpu = Gpu::open(communicator.card())?;
        let free_before = gpu.free_bytes()?;
        let arenas = DeviceArenas::new(program, &gpu)?;
        let teams = teams(program, communicator.rank());
        communicator.attach(&teams, &arenas.ranges(), Arc::new(()))?;
        let mut module = Module::load(ptx, &gpu.card)?;
        let address = lower::in_arenas(&arenas);
        let mut function = |launch: &dspc_program::GpuLaunch| module.function(&launch.symbol, launch.shared);
        let mut lowering =
            Lowering::new(program, &target.launches, &address, &teams, &mut function)?.map_err(malformed)?;
        let mut lower = |entry| lowering.entry(entry).map_err(malformed);
        let calls = [
            Some(lower(&program.train)?),
            Some(lower(&program.evaluate)?),
            program.logits.as_ref().map(&mut lower).transpose()?,
            program.refresh.as_ref().map(&mut lower).transpose()?,
        ];
        let keys = std::mem::take(&mut lowering.keys);
        let products = Products::new(&gpu, &samples(&keys, &calls), &arenas, options)?;
        let inputs = Inputs::new(Layout::new(program, &address))?;
        let mut notes = Vec::new();
        let seconds = module.took.as_secs_f64();
        notes.extend(
            (seconds >= COMPILED_S).then(|| format!("kernels compiled by the driver in {seconds:.1} s")),
        );
        notes.extend(products.note.clone());
        drop(address);
        let scratch = match communicator.needs_scratch() {
            true => scratch_bytes(&calls).map(Block::new).transpose()?,
            false => None,
        };
        Ok(Self {
            scratch,
            communicator,
            entries: calls.map(|calls| calls.map(|calls| EntryState { calls, graph: None })),
            products,
            inputs,
            results: Results::default(),
            _module: module,
            arenas,
            buffers: program.buffers.clone(),
            careful: std::env::var_os("DSPC_CUDA_SYNC")
                .is_some_and(|value| value != "0" && !value.is_empty()),
            free_before,
            notes,
            gpu,
        })
    }

    /// Starts an entry, with the inputs that were written.
    fn issue(&mut self, entry: EntryKind) -> Result<(), Error> {
        self.gpu.bind()?;
        self.inputs.send(&self.gpu)?;
        let state = self.entries[entry as usize].as_mut().ok_or(Error::NoLogits)?;
        if let Some(cause) = self.communicator.failed() {
            return Err(cause.error());
        }
        let scratch = self.scratch.as_ref().map_or(0, |block| block.at as usize);
        let on = On { gpu: &self.gpu, products: &self.products, communicator: &*self.communicator, scratch };
        let (gpu, careful) = (&self.gpu, self.careful);
        if careful || call::unrolled(&state.calls) > GRAPH_MAX {
            return start(&on, &state.calls, careful);
        }
        let graph = match &mut state.graph {
            Some(graph) => graph,
            empty => empty.insert(Graph::record(gpu, || start(&on, &state.calls, false))?),
        };
        graph.launch(gpu)
    }

    fn slot(&self, id: BufferId, slot: u64, end: u64) -> Result<(&Buffer, u64), Error> {
        let outside = |what: String| Error::ArtifactMalformed {
            path: crate::artifact::program_file(dspc_program::Family::Cuda).into(),
            reason: format!("{what} is used outside its bounds"),
        };
        let buffer = self.buffers.get(id.0 as usize).ok_or_else(|| outside(format!("buffer {}", id.0)))?;
        if slot >= buffer.slots || end > buffer.elements * element_bytes(buffer.dtype) {
            return Err(outside(buffer.name.clone()));
        }
        Ok((buffer, self.arenas.address(buffer) + slot * buffer.stride))
    }
}

/// Each distinct product with its first place in the program, in the order of their numbers.
fn samples<'c>(
    keys: &std::collections::BTreeMap<Key, usize>,
    entries: &'c [Option<Vec<Call>>],
) -> Vec<Sample<'c>> {
    let mut found = std::collections::BTreeMap::new();
    for calls in entries.iter().flatten() {
        collect(calls, &mut found);
    }
    let mut numbered: Vec<(usize, Key)> = keys.iter().map(|(key, &number)| (number, *key)).collect();
    numbered.sort_unstable_by_key(|(number, _)| *number);
    numbered.into_iter().filter_map(|(number, key)| Some((key, *found.get(&number)?))).collect()
}

fn collect<'c>(calls: &'c [Call], found: &mut std::collections::BTreeMap<usize, &'c product::Product>) {
    for call in calls {
        match call {
            Call::Product(product, _) => _ = found.entry(product.plan).or_insert(product),
            Call::Turns { body, .. } | Call::MicroBatches { body, .. } => collect(body, found),
            Call::At { call, .. } => collect(std::slice::from_ref(&**call), found),
            Call::Launch(..) | Call::Zero { .. } | Call::Collective(..) => {}
        }
    }
}

/// Bytes for a shard of every rank, for the largest sum in the order of a tree; nothing if there is none.
fn scratch_bytes(entries: &[Option<Vec<Call>>]) -> Option<usize> {
    fn most(calls: &[Call]) -> usize {
        let of = |call: &Call| match call {
            Call::Turns { body, .. } | Call::MicroBatches { body, .. } => most(body),
            Call::At { call, .. } => most(std::slice::from_ref(&**call)),
            Call::Collective(shared, _) if shared.kind == (Kind::ReduceScatter { tree: true }) => {
                let shards = shared.sum.as_ref().map_or(0, |_| shared.members);
                let largest = shared.parts.iter().map(|part| part.bytes.next_multiple_of(256)).max();
                shards * largest.unwrap_or(0)
            }
            Call::Launch(..) | Call::Product(..) | Call::Zero { .. } | Call::Collective(..) => 0,
        };
        calls.iter().map(of).max().unwrap_or(0)
    }
    entries.iter().flatten().map(|calls| most(calls)).max().filter(|&bytes| bytes > 0)
}

/// What instructions run on.
struct On<'a> {
    gpu: &'a Gpu,
    products: &'a Products,
    communicator: &'a dyn Communicator,
    scratch: usize,
}

/// Starts every instruction of an entry, in order.
fn start(on: &On<'_>, calls: &[Call], careful: bool) -> Result<(), Error> {
    let gpu = on.gpu;
    call::walk(calls, Counters::default(), &mut |call, counters| {
        one(on, call, counters)?;
        if !careful {
            return Ok(());
        }
        // SAFETY: the stream is ours and alive.
        unsafe { driver::stream::synchronize(gpu.stream) }.map_err(fault::driver(named(call, counters)))
    })
}

fn one(on: &On<'_>, call: &Call, counters: Counters) -> Result<(), Error> {
    let (gpu, products) = (on.gpu, on.products);
    match call {
        Call::Launch(kernel, origin) => launch::launch(gpu, kernel, counters, origin),
        Call::Product(product, origin) => {
            products.run(gpu, product, counters, origin)?;
            product.after.as_ref().map_or(Ok(()), |after| launch::launch(gpu, after, counters, origin))
        }
        Call::Zero { at, bytes, origin } => {
            let start = at.at(counters).addr() as u64;
            // SAFETY: the slot was checked to lie in its arena.
            unsafe { driver::memset_d8_async(start, 0, *bytes, gpu.stream) }
                .map_err(fault::driver(format!("zeroing a buffer of `{origin}`")))
        }
        Call::Collective(shared, origin) => exchange(on, shared, counters, origin),
        // `walk` visits what is in them.
        Call::At { .. } | Call::Turns { .. } | Call::MicroBatches { .. } => Ok(()),
    }
}

/// Queues what the ranks tell one another.
fn exchange(on: &On<'_>, shared: &call::Shared, counters: Counters, origin: &str) -> Result<(), Error> {
    let pieces = shared.pieces(counters);
    let (kind, group, stream) = (shared.kind, shared.group, on.gpu.stream.expose_provenance());
    let exchange = Exchange { kind, group, pieces: &pieces, stream, scratch: on.scratch };
    let mut summed = Ok(());
    on.communicator.exchange(&exchange, &mut |operands| {
        if let (Some(parts), Ok(())) = (&shared.sum, &summed) {
            let values = operands.iter().map(|operand| operand.addr() as u64).collect();
            summed = launch::launch_on(on.gpu, parts, values, origin);
        }
    })?;
    summed
}

/// `kernel `x` of `h.*.attn` in turn 3`
fn named(call: &Call, counters: Counters) -> String {
    let place = format!("in turn {} of micro-batch {}", counters.turn, counters.micro);
    let kernels = |launch: &call::Launch| {
        launch.parts.iter().map(|part| format!("`{}`", part.symbol)).collect::<Vec<_>>().join(", ")
    };
    match call {
        Call::Launch(launch, origin) => format!("kernel {} of `{origin}`, {place}", kernels(launch)),
        Call::Product(product, origin) => match &product.after {
            None => format!("a matrix product of `{origin}`, {place}"),
            Some(after) => format!("a matrix product of `{origin}` or {}, {place}", kernels(after)),
        },
        Call::Zero { origin, .. } => format!("zeroing a buffer of `{origin}`, {place}"),
        Call::Collective(_, origin) => format!("a collective of `{origin}`, {place}"),
        Call::At { call, .. } => named(call, counters),
        Call::Turns { .. } | Call::MicroBatches { .. } => place,
    }
}

impl Device for Cuda {
    fn run(&mut self, entry: EntryKind) -> Result<(), Error> {
        self.issue(entry)
    }

    fn start(&mut self, entry: EntryKind, words: &[Word]) -> Result<(), Error> {
        let at = words.iter().map(|word| {
            let (_, at) = self.slot(word.buffer, word.slot, word.start.saturating_add(4))?;
            Ok::<_, Error>(at + word.start)
        });
        let at = at.collect::<Result<Vec<_>, _>>()?;
        self.issue(entry)?;
        self.results.start(&self.gpu, &at)
    }

    fn finish(&mut self) -> Result<Vec<[u8; 4]>, Error> {
        self.gpu.bind()?;
        let words = self.results.finish();
        // A collective that was broken off ends as if it were done.
        match self.communicator.failed() {
            Some(cause) => Err(cause.error()),
            None => words,
        }
    }

    fn ahead(&self) -> usize {
        1
    }

    fn write_at(&mut self, id: BufferId, slot: u64, start: u64, bytes: &[u8]) -> Result<(), Error> {
        let (buffer, at) = self.slot(id, slot, start.saturating_add(bytes.len() as u64))?;
        let buffer = buffer.clone();
        self.gpu.bind()?;
        if start == 0 && self.inputs.write(id, &buffer, slot, bytes)? {
            return Ok(());
        }
        self.gpu.wait()?;
        // SAFETY: the slot was checked, and nothing runs.
        unsafe { driver::memcpy_htod_sync(at + start, bytes) }
            .map_err(fault::driver(format!("writing `{}`", buffer.name)))
    }

    fn read(&self, id: BufferId, slot: u64, start: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let (buffer, at) = self.slot(id, slot, start.saturating_add(bytes.len() as u64))?;
        self.gpu.bind()?;
        self.gpu.wait()?;
        // SAFETY: the range was checked, and nothing runs.
        unsafe { driver::memcpy_dtoh_sync(bytes, at + start) }
            .map_err(fault::driver(format!("reading `{}`", buffer.name)))
    }

    fn device_bytes(&self) -> Option<u64> {
        self.gpu.bind().ok()?;
        Some(self.free_before.saturating_sub(self.gpu.free_bytes().ok()?))
    }

    fn describe(&self) -> String {
        let card = format!("cuda, {} {}", self.gpu.card.name, bytes(self.gpu.card.bytes));
        [card].into_iter().chain(self.notes.iter().cloned()).collect::<Vec<_>>().join(", ")
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // What follows gives memory and handles back on this thread, when the card no longer uses them.
        _ = self.gpu.bind();
        _ = self.gpu.wait();
        self.entries = [const { None }; 4];
        self.communicator.detach();
    }
}
