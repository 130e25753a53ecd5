//! What the numerics tests share: operands in memory, compiling and loading kernels, and an f64 reading of row kernels.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod attention;
pub mod ball;
pub mod cuda;
pub mod draw;
pub mod kernels;
pub mod native;
pub mod operand;
pub mod ptxas;
pub mod random;
pub mod reading;
pub mod record;
