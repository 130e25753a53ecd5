//! The tensor program: typed SSA with named dimensions, forward and backward alike.
//!
//! Never sees a mesh, a device or a byte offset. Accepts only a checked spec; a shape that does not fit is a
//! [`dspc_source::Diagnostic`] that names both places.

#![forbid(unsafe_code)]

mod elaborate;
mod errors;
pub mod form;
pub mod interpret;
pub mod ir;
pub mod mask;
pub mod ops;
pub mod philox;
mod print;
mod prune;
pub mod row_builder;
mod row_evaluate;
pub mod rowfn;
mod verify;

pub use elaborate::{Elaborate, elaborate};
pub use ops::builtins;
pub use print::{print_block, print_graph, print_params};
pub use prune::prune;

pub use row_evaluate::evaluate_row_fn;
pub use verify::{Fault, verify};
