//! The suite: what spans crates, and what must hold of the repository itself. Each crate's own tests stand beside its code.
