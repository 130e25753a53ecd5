//! The tests that want a GPU as one binary, to carry to a host that has one: `bench/gpu/prepare` packs it. `cargo test` leaves it out, as it
//! runs the same tests from their own files.

#![allow(clippy::duplicate_mod, reason = "each file brings what it shares with the others")]

#[path = "gpu_attention.rs"]
mod attention;
#[path = "product.rs"]
mod products;
#[path = "gpu_run.rs"]
mod rows;
