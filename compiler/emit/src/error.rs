//! What can go wrong between a description and code.

/// A kernel that could not be emitted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EmitError {
    /// The description is not one that the emitter takes; the layer that made it has a bug.
    #[error("kernel `{kernel}`: {reason}")]
    Description {
        /// Its symbol.
        kernel: String,
        /// What is wrong.
        reason: String,
    },
    /// MLIR refused text of ours, or LLVM the module: a bug of ours.
    #[error("{stage}: {message}")]
    Lowering {
        /// Where.
        stage: &'static str,
        /// Its first line.
        message: String,
    },
    /// No such CPU level or GPU.
    #[error("unknown target `{name}`: it is one of {known}")]
    Target {
        /// As asked for.
        name: String,
        /// Those there are.
        known: &'static str,
    },
}
