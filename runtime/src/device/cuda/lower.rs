//! From a program's instructions to calls on the card: every name is looked up and every bound is checked, once.

use super::super::call::{Address, Operand};
use super::super::element_bytes;
use super::super::lower::{Reason, address_of, check_sum, parts, span};
use super::call::{Call, Launch, Part, Shared};
use super::memory::DeviceArenas;
use super::product::{Extra, Key, Product, Shape, Side};
use crate::communicator::{Kind, Team};
use cudarc::driver::sys;
use dspc_program::{
    Action, Arg, Buffer, BufferId, Collective, CollectiveKind, ElementType, Entry, Extent, Fused, Gemm,
    GpuLaunch, Instruction, KernelId, Matrix, Over, OwnProduct, Place, Program,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Gives the function of a launch.
pub(super) type Functions<'a> = dyn FnMut(&GpuLaunch) -> Result<sys::CUfunction, crate::error::Error> + 'a;

/// Looks up what instructions name.
pub(super) struct Lowering<'a> {
    program: &'a Program,
    address: &'a dyn Fn(&Buffer) -> u64,
    /// This rank's teams.
    teams: &'a [Team],
    /// The parts of each kernel.
    parts: Vec<Arc<[Part]>>,
    /// Distinct products, and the number of each.
    pub(super) keys: BTreeMap<Key, usize>,
}

/// Where buffers lie on the card.
pub(super) fn in_arenas(arenas: &DeviceArenas) -> impl Fn(&Buffer) -> u64 + '_ {
    |buffer| arenas.address(buffer)
}

impl<'a> Lowering<'a> {
    /// Over the launches of a target: one list a kernel.
    pub(super) fn new(
        program: &'a Program,
        launches: &[Vec<GpuLaunch>],
        address: &'a dyn Fn(&Buffer) -> u64,
        teams: &'a [Team],
        function: &mut Functions<'_>,
    ) -> Result<Result<Self, Reason>, crate::error::Error> {
        if launches.len() != program.kernels.len() {
            return Ok(Err(format!("{} kernels and launches of {}", program.kernels.len(), launches.len())));
        }
        let mut parts = Vec::with_capacity(launches.len());
        for (kernel, launches) in program.kernels.iter().zip(launches) {
            let mut all = Vec::with_capacity(launches.len());
            for launch in launches {
                let maps = launch.maps.iter().map(|map| {
                    let operand = kernel.operands.get(map.operand as usize);
                    let dims = map.dims.len();
                    let fits = (1..=5).contains(&dims)
                        && map.strides.len() + 1 == dims
                        && map.tile.len() == dims
                        && [0, 32, 64, 128].contains(&map.swizzle);
                    let dtype = operand.filter(|_| fits).map(|operand| operand.dtype);
                    dtype
                        .map(|dtype| (map.clone(), dtype))
                        .ok_or(format!("`{}` has a wrong tensor map", launch.symbol))
                });
                let maps = match maps.collect::<Result<Vec<_>, _>>() {
                    Ok(maps) => maps.into(),
                    Err(reason) => return Ok(Err(reason)),
                };
                if launch.grid.contains(&0) || !(1..=1024).contains(&launch.block) {
                    return Ok(Err(format!("`{}` is launched on nothing", launch.symbol)));
                }
                all.push(Part {
                    function: function(launch)?,
                    symbol: launch.symbol.as_str().into(),
                    grid: launch.grid,
                    block: launch.block,
                    shared: launch.shared,
                    maps,
                });
            }
            parts.push(all.into());
        }
        Ok(Ok(Self { program, address, teams, parts, keys: BTreeMap::new() }))
    }

    pub(super) fn entry(&mut self, entry: &Entry) -> Result<Vec<Call>, Reason> {
        self.block(&entry.body)
    }

    fn block(&mut self, body: &[Instruction]) -> Result<Vec<Call>, Reason> {
        body.iter()
            .map(|instruction| {
                let call = self.action(instruction).and_then(|call| match instruction.when {
                    None => Ok(call),
                    Some(when) if when.at < when.every => Ok(Call::At { when, call: Box::new(call) }),
                    Some(_) => Err("turns that there are none of".into()),
                });
                call.map_err(|reason| format!("{}: {reason}", instruction.origin))
            })
            .collect()
    }

    fn action(&mut self, instruction: &Instruction) -> Result<Call, Reason> {
        let origin: Arc<str> = instruction.origin.as_str().into();
        match &instruction.action {
            Action::Launch { kernel, args } => Ok(Call::Launch(self.launch(*kernel, args)?, origin)),
            Action::Gemm(gemm) => Ok(Call::Product(Box::new(self.product(gemm)?), origin)),
            Action::Zero { at } => {
                let buffer = self.buffer(at.buffer)?;
                let rest = buffer.elements.checked_sub(at.elements).ok_or("zeroes nothing")?;
                let elements = at.shard.map_or(rest, |shard| shard.elements);
                let bytes = (elements * element_bytes(buffer.dtype)) as usize;
                Ok(Call::Zero { at: self.address(*at, elements)?, bytes, origin })
            }
            Action::Collective(collective) => {
                self.collective(collective).map(|shared| Call::Collective(Box::new(shared), origin))
            }
            Action::Loop { over, count, reverse, body } => {
                let (count, reverse, body) = (*count, *reverse, self.block(body)?);
                Ok(match over {
                    Over::Turns => Call::Turns { count, reverse, body },
                    Over::MicroBatches => Call::MicroBatches { count, reverse, body },
                })
            }
        }
    }

    fn collective(&self, collective: &Collective) -> Result<Shared, Reason> {
        let arena = |index: u32| {
            let first = self.program.buffers.iter().find(|buffer| buffer.arena == index);
            first.map_or(0, |buffer| ((self.address)(buffer) - buffer.offset) as usize)
        };
        let parts = parts(self.program, self.teams, collective, &arena)?;
        let (kind, sum) = match collective.kind {
            CollectiveKind::AllGather => (Kind::AllGather, None),
            CollectiveKind::ReduceScatter { sum, tree } => {
                let index = sum.0 as usize;
                let kernel = self.program.kernels.get(index).ok_or_else(|| format!("no kernel {index}"))?;
                check_sum(kernel, &self.teams[collective.group as usize], &parts)?;
                (Kind::ReduceScatter { tree }, Some(Arc::clone(&self.parts[index])))
            }
        };
        let members = self.teams[collective.group as usize].members.len();
        Ok(Shared { kind, group: collective.group, members, parts, sum })
    }

    fn launch(&self, id: KernelId, args: &[Arg]) -> Result<Launch, Reason> {
        let kernel = self.program.kernels.get(id.0 as usize).ok_or_else(|| format!("no kernel {}", id.0))?;
        let expected = kernel.operands.len() + usize::from(kernel.uses_turn);
        if args.len() != expected {
            return Err(format!("`{}` takes {expected} operands, not {}", kernel.symbol, args.len()));
        }
        let operand = |(i, arg): (usize, &Arg)| match (arg, kernel.operands.get(i)) {
            (Arg::At(place), Some(operand)) => {
                let buffer = self.buffer(place.buffer)?;
                if buffer.dtype != operand.dtype {
                    return Err(format!("`{}` has another element type than its kernel", buffer.name));
                }
                let elements = match operand.extent {
                    Extent::Rows { rows: 0, .. } | Extent::Slot => 0,
                    Extent::Rows { rows, cols, stride } => {
                        span(rows, cols, stride).ok_or("an operand without end")?
                    }
                };
                self.address(*place, elements).map(Operand::At)
            }
            (Arg::Turn, None) => Ok(Operand::Turn),
            (Arg::At(_), None) | (Arg::Turn, Some(_)) => Err("the turn is the last operand".to_string()),
        };
        let operands = args.iter().enumerate().map(operand).collect::<Result<_, Reason>>()?;
        Ok(Launch { parts: Arc::clone(&self.parts[id.0 as usize]), operands })
    }

    fn product(&mut self, gemm: &Gemm) -> Result<Product, Reason> {
        if gemm.m == 0 || gemm.n == 0 || gemm.k == 0 {
            return Err("a product of nothing".into());
        }
        let (a, b) = (self.side(&gemm.a, gemm.m, gemm.k)?, self.side(&gemm.b, gemm.k, gemm.n)?);
        let c = self.side(&gemm.c, gemm.m, gemm.n)?;
        if a.dtype != b.dtype {
            return Err("a product of two element types".into());
        }
        let extra = gemm.fused.as_ref().map(|fused| self.extra(fused, gemm)).transpose()?;
        if gemm.c.transposed && !matches!(extra, None | Some(Extra::SumOfB { .. })) {
            return Err("a fused product that is stored the other way round".into());
        }
        let after = gemm.epilogue.as_ref().map(|e| self.launch(e.kernel, &e.args)).transpose()?;
        let own = gemm.own.as_ref().map(|own| self.own(own, gemm)).transpose()?;
        let shape = Shape { m: gemm.m, n: gemm.n, k: gemm.k, tf32: gemm.tf32, accumulate: gemm.accumulate };
        let key = Key::new(shape, [&a, &b, &c], extra.as_ref());
        let next = self.keys.len();
        let plan = *self.keys.entry(key).or_insert(next);
        Ok(Product::new(plan, [a, b, c], extra, own, after))
    }

    fn extra(&self, fused: &Fused, gemm: &Gemm) -> Result<Extra, Reason> {
        let vector = |place: &Place| {
            let dtype = self.buffer(place.buffer)?.dtype;
            Ok::<_, Reason>((self.address(*place, gemm.n)?, dtype))
        };
        let like_c = |matrix: &Matrix| {
            if matrix.transposed != gemm.c.transposed {
                return Err("an auxiliary matrix that does not lie as the product does".to_string());
            }
            self.side(matrix, gemm.m, gemm.n)
        };
        Ok(match fused {
            Fused::Bias { bias } => Extra::Bias { bias: vector(bias)? },
            Fused::BiasGelu { bias, pre } => Extra::BiasGelu { bias: vector(bias)?, pre: like_c(pre)? },
            Fused::GeluGradient { pre } => Extra::GeluGradient { pre: like_c(pre)? },
            Fused::BiasGradient { sum } => Extra::SumOfB { sum: vector(sum)? },
        })
    }

    /// Its operands in their order: a, b, c, those of the fused part, the workspace.
    fn own(&self, own: &OwnProduct, gemm: &Gemm) -> Result<Launch, Reason> {
        let fused = match &gemm.fused {
            None => vec![],
            Some(Fused::Bias { bias }) => vec![*bias],
            Some(Fused::BiasGelu { bias, pre }) => vec![*bias, pre.at],
            Some(Fused::GeluGradient { pre }) => vec![pre.at],
            Some(Fused::BiasGradient { sum }) => vec![*sum],
        };
        let places = [gemm.a.at, gemm.b.at, gemm.c.at].into_iter().chain(fused).chain(own.workspace);
        self.launch(own.kernel, &places.map(Arg::At).collect::<Vec<_>>())
    }

    /// A matrix of `rows × cols` as it is used.
    fn side(&self, matrix: &Matrix, rows: u64, cols: u64) -> Result<Side, Reason> {
        let dtype = self.buffer(matrix.at.buffer)?.dtype;
        if dtype == ElementType::I32 {
            return Err("a matrix product of whole numbers".into());
        }
        let (stored_rows, stored_cols) = if matrix.transposed { (cols, rows) } else { (rows, cols) };
        let elements = span(stored_rows, stored_cols, matrix.stride).ok_or("a matrix without end")?;
        if stored_rows > 1 && matrix.stride < stored_cols {
            return Err("a matrix whose rows overlap".into());
        }
        let at = self.address(matrix.at, elements)?;
        // A single row has no next one; the library still wants a stride that could be.
        let stride = matrix.stride.max(stored_cols);
        Ok(Side { at, dtype, stride, transposed: matrix.transposed })
    }

    fn address(&self, place: Place, elements: u64) -> Result<Address, Reason> {
        let start = |buffer: &Buffer| std::ptr::without_provenance_mut((self.address)(buffer) as usize);
        address_of(self.program, self.teams, place, elements, start)
    }

    fn buffer(&self, id: BufferId) -> Result<&'a Buffer, Reason> {
        self.program.buffers.get(id.0 as usize).ok_or_else(|| format!("no buffer {}", id.0))
    }
}
