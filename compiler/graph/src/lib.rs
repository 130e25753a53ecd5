//! The tensor program: typed SSA with named dimensions, forward and backward alike.
//!
//! Never sees a mesh, a device or a byte offset. Accepts only a checked spec; a shape that does not fit is a
//! [`dspc_source::Diagnostic`] that names both places.

#![forbid(unsafe_code)]

pub mod form;
pub mod interpret;
pub mod ir;
pub mod mask;
pub mod philox;
pub mod row_builder;
pub mod rowfn;
