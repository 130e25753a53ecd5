//! The CPU: kernels from a shared object, memory in this process, threads of its own.

use super::arena::Arenas;
use super::call::{Address, Call, CollectiveCall, Counters, KernelFn};
use super::lower::{self, Lowering};
use super::pool::Pool;
use super::{Device, EntryKind, Word};
use crate::communicator::{Communicator, Exchange, Piece, Solo, teams};
use crate::error::Error;
use dspc_program::{Buffer, BufferId, Program};
use libloading::Library;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

/// Bytes to zero that are worth a thread of their own.
const ZERO_WORTH: usize = 1 << 18;

/// A program on this machine's cores.
pub struct Cpu {
    train: Vec<Call>,
    evaluate: Vec<Call>,
    logits: Option<Vec<Call>>,
    refresh: Vec<Call>,
    buffers: Vec<Buffer>,
    arenas: Arenas,
    machine: Machine,
    /// Words of entries that were started, and so have ended.
    ended: VecDeque<Vec<[u8; 4]>>,
    /// The functions in the calls come from it: it must not go before them.
    _library: Library,
}

struct Machine {
    pool: Pool,
    /// Operand addresses of the running instruction.
    values: Vec<*mut u8>,
    /// Ranges of the running collective.
    pieces: Vec<Piece>,
    communicator: Arc<dyn Communicator>,
}

// SAFETY: `values` holds addresses into the arenas that move with it, and is written anew by every instruction.
unsafe impl Send for Machine {}

impl Cpu {
    /// Takes memory, loads the kernels and looks up everything that the instructions name.
    ///
    /// `kernels` is code that will run in this process: read it through [`crate::artifact::read`], which checks its hash.
    ///
    /// # Errors
    /// R0202 for a program that reaches outside its memory, R0207, R0601.
    pub fn new(program: &Program, kernels: &Path, threads: usize) -> Result<Self, Error> {
        Self::of_rank(program, kernels, threads, Arc::new(Solo::default()))
    }

    /// As [`Self::new`], for one rank of several.
    ///
    /// # Errors
    /// Those of [`Self::new`]; R0802 for a program of another number of ranks, R0801.
    pub fn of_rank(
        program: &Program,
        kernels: &Path,
        threads: usize,
        communicator: Arc<dyn Communicator>,
    ) -> Result<Self, Error> {
        check_world(program, &*communicator)?;
        let malformed = |reason| Error::ArtifactMalformed { path: program.name.clone().into(), reason };
        lower::check_memory(program).map_err(malformed)?;
        let teams = teams(program, communicator.rank());
        let arenas = Arenas::new(program, &*communicator)?;
        communicator.attach(&teams, arenas.ranges(), arenas.keep())?;
        let (library, functions) = load(program, kernels)?;
        let mut lowering = Lowering { program, arenas: &arenas, functions: &functions, teams: &teams };
        let train = lowering.entry(&program.train).map_err(malformed)?;
        let evaluate = lowering.entry(&program.evaluate).map_err(malformed)?;
        let logits = program.logits.as_ref().map(|e| lowering.entry(e)).transpose().map_err(malformed)?;
        let none = dspc_program::Entry::default();
        let refresh = lowering.entry(program.refresh.as_ref().unwrap_or(&none)).map_err(malformed)?;
        let most = program.kernels.iter().map(|k| k.operands.len() + 1).max().unwrap_or(0);
        Ok(Self {
            train,
            evaluate,
            logits,
            refresh,
            buffers: program.buffers.clone(),
            arenas,
            machine: Machine {
                pool: Pool::new(threads),
                values: Vec::with_capacity(most),
                pieces: Vec::new(),
                communicator,
            },
            ended: VecDeque::new(),
            _library: library,
        })
    }

    fn buffer(&self, id: BufferId) -> Result<&Buffer, Error> {
        self.buffers.get(id.0 as usize).ok_or_else(|| outside(&format!("buffer {}", id.0)))
    }
}

/// A program runs with as many ranks as it was built for.
pub(crate) fn check_world(program: &Program, communicator: &dyn Communicator) -> Result<(), Error> {
    let (built, found) = (program.world(), communicator.world());
    if built == found {
        return Ok(());
    }
    Err(Error::WorldMismatch { built, found, name: program.name.clone() })
}

fn outside(what: &str) -> Error {
    Error::ArtifactMalformed {
        path: "program.json".into(),
        reason: format!("{what} is used outside its bounds"),
    }
}

fn load(program: &Program, path: &Path) -> Result<(Library, Vec<KernelFn>), Error> {
    let unloadable =
        |e: libloading::Error| Error::KernelsUnloadable { path: path.into(), reason: e.to_string() };
    // A bare name would be looked for in the system's folders.
    let absolute = std::path::absolute(path)
        .map_err(|source| Error::ArtifactUnreadable { path: path.into(), source })?;
    // SAFETY: kernel files are made by our compiler and define no initialisers; the caller checked the file's hash.
    let library = unsafe { Library::new(&absolute) }.map_err(unloadable)?;
    let functions = program
        .kernels
        .iter()
        // SAFETY: symbols of a kernel file have this type; the hash ties the file to the program.
        .map(|kernel| unsafe { library.get::<KernelFn>(kernel.symbol.as_bytes()) }.map(|symbol| *symbol))
        .collect::<Result<_, _>>()
        .map_err(unloadable)?;
    Ok((library, functions))
}

impl Device for Cpu {
    fn run(&mut self, entry: EntryKind) -> Result<(), Error> {
        let calls = match entry {
            EntryKind::Train => &self.train,
            EntryKind::Evaluate => &self.evaluate,
            EntryKind::Logits => self.logits.as_ref().ok_or(Error::NoLogits)?,
            EntryKind::Refresh => &self.refresh,
        };
        self.machine.block(calls, Counters::default())
    }

    fn start(&mut self, entry: EntryKind, words: &[Word]) -> Result<(), Error> {
        self.run(entry)?;
        let word = |&Word { buffer, slot, start }: &Word| {
            let mut word = [0; 4];
            self.read(buffer, slot, start, &mut word).map(|()| word)
        };
        let words = words.iter().map(word).collect::<Result<_, _>>()?;
        self.ended.push_back(words);
        Ok(())
    }

    fn finish(&mut self) -> Result<Vec<[u8; 4]>, Error> {
        Ok(self.ended.pop_front().unwrap_or_default())
    }

    fn write_at(&mut self, buffer: BufferId, slot: u64, start: u64, bytes: &[u8]) -> Result<(), Error> {
        let buffer = self.buffer(buffer)?.clone();
        let end = usize::try_from(start).ok().and_then(|start| start.checked_add(bytes.len()));
        let target = end.and_then(|end| self.arenas.slot_mut(&buffer, slot, end));
        target.ok_or_else(|| outside(&buffer.name))?[start as usize..].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, buffer: BufferId, slot: u64, start: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let buffer = self.buffer(buffer)?;
        let end = usize::try_from(start).ok().and_then(|start| start.checked_add(bytes.len()));
        let source =
            end.and_then(|end| self.arenas.slot(buffer, slot, end)).ok_or_else(|| outside(&buffer.name))?;
        bytes.copy_from_slice(&source[start as usize..]);
        Ok(())
    }

    fn lent(&self, buffer: BufferId, slot: u64, bytes: usize) -> Option<&[u8]> {
        self.arenas.slot(self.buffer(buffer).ok()?, slot, bytes)
    }

    fn describe(&self) -> String {
        match self.machine.pool.threads() {
            1 => "cpu, 1 thread".into(),
            n => format!("cpu, {n} threads"),
        }
    }
}

impl Machine {
    fn block(&mut self, calls: &[Call], counters: Counters) -> Result<(), Error> {
        calls.iter().try_for_each(|call| self.one(call, counters))
    }

    fn one(&mut self, call: &Call, counters: Counters) -> Result<(), Error> {
        match call {
            Call::Launch(launch) => {
                let parts = launch.parts(self.pool.threads());
                let bound = launch.bind(counters, &mut self.values);
                self.pool.run(parts, &|part| bound.call_part(part, parts));
            }
            Call::Gemm(gemm) => gemm.run(&mut self.pool, counters, &mut self.values),
            Call::Zero { at, bytes } => self.zero(at, *bytes, counters),
            Call::Collective(collective) => self.collective(collective, counters)?,
            Call::At { when, call } => {
                if when.holds(counters.turn, counters.micro) {
                    self.one(call, counters)?;
                }
            }
            Call::Turns { count, reverse, body } => {
                for i in 0..*count {
                    let turn = if *reverse { count - 1 - i } else { i };
                    self.block(body, Counters { turn, ..counters })?;
                }
            }
            Call::MicroBatches { count, reverse, body } => {
                for i in 0..*count {
                    let micro = if *reverse { count - 1 - i } else { i };
                    self.block(body, Counters { micro, ..counters })?;
                }
            }
        }
        Ok(())
    }

    fn collective(&mut self, collective: &CollectiveCall, counters: Counters) -> Result<(), Error> {
        let Self { pool, pieces, communicator, .. } = self;
        collective.bind(counters, pieces);
        let (kind, group) = (collective.kind, collective.group);
        let exchange = Exchange { kind, group, pieces, stream: 0, scratch: 0 };
        communicator.exchange(&exchange, &mut |operands| {
            if let Some(sum) = &collective.sum {
                let (bound, parts) = (sum.on(operands), sum.parts(pool.threads()));
                pool.run(parts, &|part| bound.call_part(part, parts));
            }
        })
    }

    fn zero(&mut self, at: &Address, bytes: usize, counters: Counters) {
        let start = at.at(counters).expose_provenance();
        let parts = (bytes / ZERO_WORTH).clamp(1, self.pool.threads());
        self.pool.run(parts, &|part| {
            let edge = |i: usize| if i == parts { bytes } else { (bytes / parts * i) & !63 };
            let (begin, end) = (edge(part), edge(part + 1));
            // SAFETY: the slot was checked to lie in its arena, and the parts are disjoint.
            unsafe { std::ptr::with_exposed_provenance_mut::<u8>(start + begin).write_bytes(0, end - begin) };
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Builder, at, instruction, launch, repeat};
    use dspc_program::{
        Action, Arg, ElementType::Bf16, ElementType::F16, ElementType::F32, ElementType::I32, Entry,
        Epilogue, Gemm, Matrix, Over, Place, Role,
    };

    fn device(builder: &Builder, threads: usize) -> Cpu {
        let dir = tempfile::tempdir().unwrap();
        Cpu::new(&builder.program, &builder.compile(dir.path()), threads).unwrap()
    }

    fn floats(device: &Cpu, buffer: BufferId, slot: u64, count: usize) -> Vec<f32> {
        let mut out = vec![0f32; count];
        device.read(buffer, slot, 0, bytemuck::cast_slice_mut(&mut out)).unwrap();
        out
    }

    /// Each visit multiplies by ten and adds its turn and a digit from the slot it was pointed at.
    #[test]
    fn loops_visit_turns_and_micro_batches_in_their_order() {
        let mut b = Builder::new();
        let log = b.buffer("log", F32, 16, 1, Role::Inner);
        let slots = b.buffer("slots", F32, 1, 3, Role::Inner);
        let visit = b.kernel(
            "visit",
            1,
            &[F32, F32],
            true,
            "float *log = args[0]; log[1 + (int)log[0]++] = 10 * *(float *)args[1] + (float)(int64_t)args[2];",
        );
        let slot = |add, turn, micro| Arg::At(Place { add, turn, micro, ..Place::of(slots) });
        let see = |place| launch(visit, &[at(log), place, Arg::Turn]);
        b.program.train = Entry {
            body: vec![
                see(slot(1, false, false)),
                repeat(
                    Over::MicroBatches,
                    2,
                    false,
                    vec![
                        repeat(Over::Turns, 3, true, vec![see(slot(1, true, false))]),
                        see(slot(2, false, true)),
                    ],
                ),
            ],
            peak_bytes: 0,
        };
        let mut d = device(&b, 2);
        for (i, x) in [5f32, 6.0, 7.0].into_iter().enumerate() {
            d.write(slots, i as u64, bytemuck::bytes_of(&x)).unwrap();
        }
        d.run(EntryKind::Train).unwrap();
        let seen = floats(&d, log, 0, 10);
        assert_eq!(seen, [9.0, 60.0, 52.0, 71.0, 60.0, 70.0, 52.0, 71.0, 60.0, 50.0]);
    }

    #[test]
    fn items_are_shared_out_and_none_runs_twice() {
        let mut b = Builder::new();
        let out = b.buffer("out", F32, 5000, 1, Role::Inner);
        let step = b.kernel(
            "step",
            5000,
            &[F32],
            false,
            "for (int64_t i = begin; i < end; i++) ((float *)args[0])[i] += 1;",
        );
        b.program.train.body = vec![launch(step, &[at(out)])];
        for threads in [1, 2, 3, 7] {
            let mut d = device(&b, threads);
            d.run(EntryKind::Train).unwrap();
            d.run(EntryKind::Train).unwrap();
            assert_eq!(floats(&d, out, 0, 5000), [2.0; 5000]);
        }
    }

    #[test]
    fn zero_clears_one_slot_from_its_place_on() {
        let mut b = Builder::new();
        let out = b.buffer("out", F32, 300_000, 2, Role::Inner);
        let place = Place { add: 1, elements: 2, ..Place::of(out) };
        b.program.train.body = vec![instruction(Action::Zero { at: place })];
        let mut d = device(&b, 3);
        for slot in 0..2 {
            d.write(out, slot, bytemuck::cast_slice(&vec![1f32; 300_000])).unwrap();
        }
        d.run(EntryKind::Train).unwrap();
        assert!(floats(&d, out, 0, 300_000).iter().all(|&x| x == 1.0));
        let second = floats(&d, out, 1, 300_000);
        assert_eq!(second[..2], [1.0; 2]);
        assert!(second[2..].iter().all(|&x| x == 0.0));
    }

    /// A product of small whole numbers is exact, whatever the order of its sums.
    fn product(m: u64, n: u64, k: u64, transposed: (bool, bool, bool), epilogue: bool, threads: usize) {
        let mut b = Builder::new();
        let matrix = |b: &mut Builder, name: &str, rows: u64, cols: u64, transposed: bool| {
            let (r, c) = if transposed { (cols, rows) } else { (rows, cols) };
            let stride = c + 3;
            let buffer = b.buffer(name, F32, r * stride + 5, 1, Role::Inner);
            Matrix { at: Place { elements: 5, ..Place::of(buffer) }, stride, transposed }
        };
        let a = matrix(&mut b, "a", m, k, transposed.0);
        let w = matrix(&mut b, "b", k, n, transposed.1);
        let c = matrix(&mut b, "c", m, n, transposed.2);
        let double = b.kernel(
            "twice",
            m,
            &[F32],
            false,
            &format!(
                "for (int64_t i = begin; i < end; i++) for (int64_t j = 0; j < {n}; j++) \
                 ((float *)args[0])[{}] *= 2;",
                if transposed.2 { format!("j * {} + i", c.stride) } else { format!("i * {} + j", c.stride) }
            ),
        );
        let gemm = Gemm {
            m,
            n,
            k,
            a,
            b: w,
            c,
            accumulate: true,
            tf32: false,
            fused: None,
            own: None,
            epilogue: epilogue.then(|| Epilogue {
                kernel: double,
                args: vec![Arg::At(c.at)],
                rows_per_item: 1,
            }),
        };
        b.program.train.body = vec![instruction(Action::Gemm(gemm))];
        let mut d = device(&b, threads);
        let value = |i: usize| ((i * 7919 + 13) % 17) as f32 - 8.0;
        for (buffer, shift) in [(a.at.buffer, 1), (w.at.buffer, 2), (c.at.buffer, 3)] {
            let count = b.program.buffers[buffer.0 as usize].elements as usize;
            let xs: Vec<f32> = (0..count).map(|i| value(i + shift)).collect();
            d.write(buffer, 0, bytemuck::cast_slice(&xs)).unwrap();
        }
        let read = |d: &Cpu, x: &Matrix| {
            let count = b.program.buffers[x.at.buffer.0 as usize].elements as usize;
            floats(d, x.at.buffer, 0, count)
        };
        let index = |x: &Matrix, r: u64, c: u64| {
            let (r, c) = if x.transposed { (c, r) } else { (r, c) };
            (5 + r * x.stride + c) as usize
        };
        let (av, wv, cv) = (read(&d, &a), read(&d, &w), read(&d, &c));
        d.run(EntryKind::Train).unwrap();
        let out = read(&d, &c);
        for i in 0..m {
            for j in 0..n {
                let sum: f32 = (0..k).map(|l| av[index(&a, i, l)] * wv[index(&w, l, j)]).sum();
                let factor = if epilogue { 2.0 } else { 1.0 };
                let at = index(&c, i, j);
                assert_eq!(out[at], factor * (cv[at] + sum), "{m}×{n}×{k} {transposed:?} at {i}, {j}");
            }
        }
    }

    #[test]
    fn products_of_any_shape_and_layout() {
        let both = [false, true];
        for (m, n, k) in
            [(1, 1, 1), (1, 65, 9), (65, 1, 40), (3, 5, 0), (33, 47, 600), (300, 130, 70), (70, 1100, 520)]
        {
            for a in both {
                for b in both {
                    for c in both {
                        product(m, n, k, (a, b, c), a ^ b, 1 + (m as usize % 3));
                    }
                }
            }
        }
    }

    /// Factors and results of 16 bits against f64: the factors are what is stored, and the result is rounded once.
    fn sixteen(
        types: [dspc_program::ElementType; 3],
        (m, n, k): (u64, u64, u64),
        transposed: (bool, bool, bool),
        accumulate: bool,
    ) {
        let mut b = Builder::new();
        let matrix = |b: &mut Builder, name: &str, dtype, rows: u64, cols: u64, transposed: bool| {
            let (r, c) = if transposed { (cols, rows) } else { (rows, cols) };
            let buffer = b.buffer(name, dtype, r * (c + 3) + 5, 1, Role::Inner);
            Matrix { at: Place { elements: 5, ..Place::of(buffer) }, stride: c + 3, transposed }
        };
        let a = matrix(&mut b, "a", types[0], m, k, transposed.0);
        let w = matrix(&mut b, "b", types[1], k, n, transposed.1);
        let c = matrix(&mut b, "c", types[2], m, n, transposed.2);
        let gemm =
            Gemm { m, n, k, a, b: w, c, accumulate, tf32: false, fused: None, own: None, epilogue: None };
        b.program.train.body = vec![instruction(Action::Gemm(gemm))];
        let mut d = device(&b, 2);
        let stream = crate::philox::Stream { seed: m, step: 0, site: 0 };
        let stored = |i: u64, dtype| match dtype {
            F32 => f64::from(stream.uniform(i) as f32 - 0.5),
            Bf16 => half::bf16::from_f64(stream.uniform(i) - 0.5).to_f64(),
            _ => half::f16::from_f64(stream.uniform(i) - 0.5).to_f64(),
        };
        let bytes = |values: &[f64], dtype| -> Vec<u8> {
            let each = |x: &f64| match dtype {
                F32 => (*x as f32).to_le_bytes().to_vec(),
                Bf16 => half::bf16::from_f64(*x).to_le_bytes().to_vec(),
                _ => half::f16::from_f64(*x).to_le_bytes().to_vec(),
            };
            values.iter().flat_map(each).collect()
        };
        let values = [a, w, c].map(|x| {
            let buffer = &b.program.buffers[x.at.buffer.0 as usize];
            let values: Vec<f64> =
                (0..buffer.elements).map(|i| stored(i + u64::from(x.at.buffer.0), buffer.dtype)).collect();
            d.write(x.at.buffer, 0, &bytes(&values, buffer.dtype)).unwrap();
            values
        });
        d.run(EntryKind::Train).unwrap();
        let buffer = &b.program.buffers[c.at.buffer.0 as usize];
        let mut out = vec![0; values[2].len() * super::super::element_bytes(buffer.dtype) as usize];
        d.read(c.at.buffer, 0, 0, &mut out).unwrap();
        let found: Vec<f64> = match buffer.dtype {
            F32 => bytemuck::cast_slice::<u8, f32>(&out).iter().map(|x| f64::from(*x)).collect(),
            Bf16 => bytemuck::cast_slice::<u8, half::bf16>(&out).iter().map(|x| x.to_f64()).collect(),
            _ => bytemuck::cast_slice::<u8, half::f16>(&out).iter().map(|x| x.to_f64()).collect(),
        };
        let index = |x: &Matrix, r: u64, c: u64| {
            let (r, c) = if x.transposed { (c, r) } else { (r, c) };
            (5 + r * x.stride + c) as usize
        };
        // Half a unit in the last place of the result's type, and the f32 sum's own error.
        let unit = match buffer.dtype {
            F32 => 0.0,
            Bf16 => 1.0 / 256.0,
            _ => 1.0 / 2048.0,
        };
        let mut touched = vec![false; found.len()];
        for i in 0..m {
            for j in 0..n {
                let at = index(&c, i, j);
                touched[at] = true;
                let term = |l: u64| values[0][index(&a, i, l)] * values[1][index(&w, l, j)];
                let sum: f64 = (0..k).map(term).sum::<f64>() + if accumulate { values[2][at] } else { 0.0 };
                let bound = unit * sum.abs() + 1e-6 * k as f64 + 1e-7;
                assert!(
                    (found[at] - sum).abs() <= bound,
                    "{types:?} {m}×{n}×{k} at {i}, {j}: {} for {sum}",
                    found[at]
                );
            }
        }
        for (at, _) in touched.iter().enumerate().filter(|(_, touched)| !**touched) {
            assert_eq!(found[at], values[2][at], "what is not c's stays");
        }
    }

    #[test]
    fn products_of_sixteen_bits() {
        let both = [false, true];
        for (m, n, k) in [(1, 1, 1), (3, 5, 0), (33, 47, 600), (300, 130, 70), (70, 1100, 520)] {
            for types in [[Bf16, Bf16, Bf16], [Bf16, Bf16, F32], [F16, F16, F16], [F16, F16, F32]] {
                for layout in 0..4 {
                    let transposed = (layout & 1 == 1, layout & 2 == 2, (m + layout) % 3 == 0);
                    sixteen(types, (m, n, k), transposed, both[(layout as usize + 1) % 2]);
                }
            }
        }
    }

    #[test]
    fn a_wide_product_runs_its_epilogue_after_all_columns() {
        product(16, 3000, 64, (false, true, false), true, 3);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]
        #[test]
        fn bits_do_not_depend_on_the_number_of_threads(
            m in 1u64..200, n in 1u64..200, k in 1u64..1200, layout in 0u8..4, threads in 2usize..9,
        ) {
            let mut b = Builder::new();
            let side = |b: &mut Builder, name: &str, r: u64, c: u64, transposed: bool| {
                let buffer = b.buffer(name, F32, r * c, 1, Role::Inner);
                Matrix { at: Place::of(buffer), stride: if transposed { r } else { c }, transposed }
            };
            let a = side(&mut b, "a", m, k, layout & 1 == 1);
            let w = side(&mut b, "b", k, n, layout & 2 == 2);
            let c = side(&mut b, "c", m, n, false);
            let gemm = Gemm { m, n, k, a, b: w, c, accumulate: false, tf32: false, fused: None, own: None, epilogue: None };
            b.program.train.body = vec![instruction(Action::Gemm(gemm))];
            let stream = crate::philox::Stream { seed: m, step: 0, site: 0 };
            let results = [1, threads].map(|threads| {
                let mut d = device(&b, threads);
                for (x, count) in [(a, m * k), (w, k * n)] {
                    let xs: Vec<f32> = (0..count).map(|i| stream.uniform(i) as f32 - 0.5).collect();
                    d.write(x.at.buffer, 0, bytemuck::cast_slice(&xs)).unwrap();
                }
                d.run(EntryKind::Train).unwrap();
                floats(&d, c.at.buffer, 0, (m * n) as usize)
            });
            proptest::prop_assert!(results[0].iter().zip(&results[1]).all(|(x, y)| x.to_bits() == y.to_bits()));
        }
    }

    #[test]
    fn a_product_of_a_gpu_is_refused() {
        let mut b = Builder::new();
        let x =
            Matrix { at: Place::of(b.buffer("x", F32, 64, 1, Role::Inner)), stride: 8, transposed: false };
        let fused = Some(dspc_program::Fused::Bias { bias: x.at });
        let gemm = Gemm {
            m: 8,
            n: 8,
            k: 8,
            a: x,
            b: x,
            c: x,
            accumulate: false,
            tf32: false,
            fused,
            own: None,
            epilogue: None,
        };
        b.program.train.body = vec![instruction(Action::Gemm(gemm))];
        let dir = tempfile::tempdir().unwrap();
        let error = Cpu::new(&b.program, &b.compile(dir.path()), 1).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("what only a GPU's does"), "{error}");
    }

    #[test]
    fn programs_that_reach_outside_are_refused() {
        let refuse = |change: &dyn Fn(&mut Builder)| {
            let mut b = Builder::new();
            let out = b.buffer("out", F32, 16, 2, Role::Inner);
            let step = b.kernel("step", 1, &[F32], false, "");
            b.program.train.body = vec![launch(step, &[at(out)])];
            change(&mut b);
            let dir = tempfile::tempdir().unwrap();
            let error = Cpu::new(&b.program, &b.compile(dir.path()), 1).map(|_| ()).unwrap_err();
            assert_eq!(error.code(), "R0202", "{error}");
            error.to_string()
        };
        let place = |elements| Place { elements, ..Place::of(BufferId(0)) };
        assert!(refuse(&|b| b.program.arenas[0].bytes -= 64).contains("does not lie in its arena"));
        assert!(refuse(&|b| b.program.buffers[0].offset = 4).contains("does not lie"));
        assert!(refuse(&|b| b.program.buffers[0].slots = 0).contains("does not lie"));
        assert!(refuse(&|b| b.program.buffers[0].elements = u64::MAX).contains("does not lie"));
        assert!(refuse(&|b| b.program.buffers[0].dtype = I32).contains("another element type"));
        assert!(
            refuse(&|b| b.program.train.body = vec![launch(dspc_program::KernelId(9), &[])])
                .contains("no kernel 9")
        );
        assert!(
            refuse(&|b| b.program.train.body[0].action = Action::Zero { at: place(17) })
                .contains("zeroes nothing")
        );
        assert!(
            refuse(&|b| {
                let x = Matrix { at: place(0), stride: 8, transposed: false };
                let gemm = Gemm {
                    m: 8,
                    n: 8,
                    k: 8,
                    a: x,
                    b: x,
                    c: x,
                    accumulate: false,
                    tf32: false,
                    fused: None,
                    own: None,
                    epilogue: None,
                };
                b.program.train.body = vec![instruction(Action::Gemm(gemm))];
            })
            .contains("reaches past")
        );
        assert!(
            refuse(&|b| {
                let rows = dspc_program::Extent::Rows { rows: 3, cols: 10, stride: 12 };
                b.program.kernels[0].operands[0].extent = rows;
            })
            .contains("here: reaches past `out`")
        );
    }

    #[test]
    fn a_library_without_the_kernels_is_refused() {
        let mut b = Builder::new();
        let dir = tempfile::tempdir().unwrap();
        let object = b.compile(dir.path());
        b.kernel("later", 1, &[], false, "");
        let error = Cpu::new(&b.program, &object, 1).map(|_| ()).unwrap_err();
        assert_eq!(error.code(), "R0207");
        std::fs::write(&object, b"no library").unwrap();
        assert_eq!(Cpu::new(&b.program, &object, 1).map(|_| ()).unwrap_err().code(), "R0207");
    }
}
