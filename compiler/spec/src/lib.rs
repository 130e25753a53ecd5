//! What the user means: names resolved, units applied, every default explicit; bodies stay expressions with spans.
//!
//! Never reads a file or the clock: what the compiler must know of the data is handed in as [`settings::DataFacts`]. Never sees a tensor's size: that is the
//! graph's business.

#![forbid(unsafe_code)]

pub mod body;
mod check;
mod errors;
#[cfg(test)]
mod fixture;
mod keys;
mod library;
mod numbers;
mod print;
mod read;
mod resolve;
pub mod settings;
mod supported;
mod units;

pub use check::check;
pub use keys::{explain, explainable, reference_markdown};
pub use print::print;
