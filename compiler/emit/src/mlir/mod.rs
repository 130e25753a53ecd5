//! MLIR and LLVM as this crate needs them: a text builder, contexts, pipelines, objects. The only place with `unsafe`.

mod assembly;
mod builder;
mod context;
mod gpu;
mod hopper;
mod object;
mod ops;
mod pairs;
mod ptx;
mod types;

pub(crate) use builder::Function;
pub(crate) use context::{lower_cpu, lower_gpu, with_context};
pub(crate) use gpu::{INT, Quad, Turned};
pub(crate) use hopper::{Factor, Onto, Product, Registers, SharedMatrix, Summed};
pub(crate) use object::{Output, emit_cpu, host_cpu};
pub(crate) use ops::Order;
pub(crate) use types::{Element, Space, Type, Value};
