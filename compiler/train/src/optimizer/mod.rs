//! The update of one step: the gradient's norm, what follows from it, and the optimizer's own rule; each as a row function over flat ranges.

pub mod adamw;
pub mod norm;
pub mod reference;
pub mod scaler;
