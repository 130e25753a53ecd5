//! Rust bindings: a small crate around a compiled program, with its shapes as types.
//!
//! Writes text alone: the artifact beside it, `program.dspx`, is the driver's to write. The crate needs no compiler, only the runtime's source.

mod manifest;
mod params;

use dspc_program::Program;
use proc_macro2::TokenStream;
use quote::quote;

/// The artifact's folder in the crate.
pub const ARTIFACT_FOLDER: &str = "program.dspx";

/// The first words of both files: who finds them may write the file anew.
pub const MADE_BY: &str = "Made by `dspc build --emit rust`";

/// The crate's files but for its artifact: path and text, `Cargo.toml` and `src/lib.rs`.
///
/// `runtime` is the folder of the `dspc-runtime` crate, as `Cargo.toml` should name it. Only the kernels for the CPU are embedded.
pub fn bindings(program: &Program, runtime: &str) -> Vec<(String, String)> {
    vec![("Cargo.toml".into(), manifest::manifest(program, runtime)), ("src/lib.rs".into(), library(program))]
}

fn library(program: &Program) -> String {
    let mut text = opening(program);
    let parts = [uses(), artifact(program), shapes(program), params::reference(), params::list(program)];
    for part in parts.into_iter().chain([stats(), trainer(), access(), generation(program)]) {
        let file: syn::File = syn::parse2(part).expect("what is quoted here is Rust");
        for items in file.items.chunk_by(stand_together) {
            text.push('\n');
            let file = syn::File { items: items.to_vec(), ..file.clone() };
            text.push_str(&prettyplease::unparse(&file));
        }
    }
    text
}

/// Uses, and constants, are lists; between other items there is an empty line.
fn stand_together(one: &syn::Item, next: &syn::Item) -> bool {
    use syn::Item::{Const, Use};
    matches!((one, next), (Use(_), Use(_)) | (Const(_), Const(_)))
}

fn opening(program: &Program) -> String {
    let stem = manifest::stem(&program.name);
    let library = manifest::library(program);
    format!(
        "\
//! The training program `{stem}`, compiled, and a [`Trainer`] that steps it.
//!
//! {MADE_BY}: make it again instead of editing it. Spec {hash}.
//!
//! ```no_run
//! use {library}::{{BATCH, SEQUENCE, Trainer}};
//!
//! let mut trainer = Trainer::new()?;
//! let batch = Box::new([[0; SEQUENCE + 1]; BATCH]); // ids of your text
//! for _ in 0..100 {{
//!     println!(\"{{}}\", trainer.step(&batch)?.loss);
//! }}
//! # Ok::<(), {library}::Error>(())
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]
",
        hash = program.spec_hash.get(..16).unwrap_or(&program.spec_hash),
    )
}

fn uses() -> TokenStream {
    quote! {
        pub use dspc_runtime::Error;
        use dspc_runtime::Session;
        use dspc_runtime::artifact::{Embedded, KernelFile};
    }
}

fn artifact(program: &Program) -> TokenStream {
    let json = format!("../{ARTIFACT_FOLDER}/program.json");
    let kernels = program.targets.iter().filter(|target| target.name == "cpu").map(|target| {
        let (name, path) = (&target.file, format!("../{ARTIFACT_FOLDER}/{}", target.file));
        quote!(KernelFile { name: #name, bytes: include_bytes!(#path) })
    });
    quote! {
        const ARTIFACT: Embedded<'static> =
            Embedded { program: include_bytes!(#json), kernels: &[#(#kernels),*] };
    }
}

fn shapes(program: &Program) -> TokenStream {
    let name = &program.name;
    let (training, data) = (&program.training, &program.data);
    let sizes = [
        ("BATCH", training.batch, "Sequences a step."),
        (
            "MICRO_BATCH",
            training.micro_batch,
            "Sequences that are held at once, and that an evaluation takes.",
        ),
        ("SEQUENCE", data.sequence, "Ids a sequence."),
        ("VOCAB", data.vocab, "Ids the model knows: every id is below it."),
        ("PARAMETERS", program.model.parameters, "Trained elements."),
        (
            "STEPS",
            training.steps,
            "Steps that the learning rate is planned for; more of them keep the last rate.",
        ),
    ];
    let sizes = sizes.into_iter().map(|(name, value, doc)| {
        let name = quote::format_ident!("{name}");
        let doc = format!(" {doc}");
        let value = proc_macro2::Literal::u64_unsuffixed(value);
        quote!(#[doc = #doc] pub const #name: usize = #value;)
    });
    quote! {
        /// The name of the spec that this was compiled from.
        pub const NAME: &str = #name;
        #(#sizes)*
    }
}

fn stats() -> TokenStream {
    quote! {
        /// What a step did.
        #[derive(Clone, Copy, PartialEq, Debug)]
        pub struct StepStats {
            /// Steps attempted so far, this one counted.
            pub step: u64,
            /// Mean loss of the batch's targets, before the update.
            pub loss: f32,
            /// Norm of all gradients before clipping, where the program keeps it.
            pub grad_norm: Option<f32>,
            /// Learning rate of this step.
            pub learning_rate: f64,
            /// The update was made: all gradients were finite. Else nothing changed.
            pub applied: bool,
        }
    }
}

fn trainer() -> TokenStream {
    quote! {
        /// The program on this machine's CPU, with its weights and the state of its optimizer.
        pub struct Trainer {
            session: Session,
            tokens: Vec<i32>,
            targets: Vec<i32>,
        }

        impl Trainer {
            /// With initial weights, on every core, or as many as `DSPC_THREADS` says.
            ///
            /// # Errors
            /// A CPU without the instructions that the program was compiled for; not enough memory; `DSPC_THREADS` that is no number.
            pub fn new() -> Result<Self, Error> {
                let wanted = std::env::var("DSPC_THREADS").ok();
                Self::with_threads(dspc_runtime::device::threads_wanted(wanted.as_deref())?)
            }

            /// With initial weights, on this many threads, at least one. Results do not depend on the number.
            ///
            /// # Errors
            /// A CPU without the instructions that the program was compiled for; not enough memory.
            pub fn with_threads(threads: usize) -> Result<Self, Error> {
                let session = ARTIFACT.session(threads.max(1))?;
                Ok(Self { session, tokens: Vec::new(), targets: Vec::new() })
            }

            /// One optimizer step: each id of a row but the last is a token, and the id after it is its target.
            ///
            /// # Errors
            /// An id that is not below [`VOCAB`].
            pub fn step(&mut self, rows: &[[i32; SEQUENCE + 1]; BATCH]) -> Result<StepStats, Error> {
                self.pack(rows);
                let applied = self.session.steps().1;
                let stats = self.session.step(&self.tokens, &self.targets)?;
                Ok(self.stats(stats, applied))
            }

            /// One optimizer step on tokens and targets of their own; a target below 0 is not counted.
            ///
            /// # Errors
            /// An id that is not below [`VOCAB`].
            pub fn step_on(
                &mut self,
                tokens: &[[i32; SEQUENCE]; BATCH],
                targets: &[[i32; SEQUENCE]; BATCH],
            ) -> Result<StepStats, Error> {
                let applied = self.session.steps().1;
                let stats = self.session.step(tokens.as_flattened(), targets.as_flattened())?;
                Ok(self.stats(stats, applied))
            }

            /// Mean loss of some rows; nothing changes.
            ///
            /// # Errors
            /// An id that is not below [`VOCAB`].
            pub fn evaluate(&mut self, rows: &[[i32; SEQUENCE + 1]; MICRO_BATCH]) -> Result<f32, Error> {
                self.pack(rows);
                self.session.evaluate(&self.tokens, &self.targets)
            }

            fn pack(&mut self, rows: &[[i32; SEQUENCE + 1]]) {
                self.tokens.clear();
                self.targets.clear();
                for row in rows {
                    self.tokens.extend_from_slice(&row[..SEQUENCE]);
                    self.targets.extend_from_slice(&row[1..]);
                }
            }

            fn stats(&self, stats: dspc_runtime::StepStats, applied_before: u64) -> StepStats {
                StepStats {
                    step: stats.step,
                    loss: stats.loss,
                    grad_norm: stats.grad_norm,
                    learning_rate: stats.learning_rate,
                    applied: self.session.steps().1 > applied_before,
                }
            }
        }
    }
}

fn access() -> TokenStream {
    quote! {
        impl Trainer {
            /// The elements of a parameter, the last dim innermost.
            ///
            /// # Errors
            /// A fault of the device.
            pub fn read<const DIMS: usize>(&self, param: ParamRef<DIMS>) -> Result<Vec<f32>, Error> {
                self.session.param(param.index)
            }

            /// Sets the elements of a parameter, the last dim innermost. The optimizer's state stays as it is.
            ///
            /// # Errors
            /// Another number of elements than [`ParamRef::elements`].
            pub fn write<const DIMS: usize>(
                &mut self,
                param: ParamRef<DIMS>,
                values: &[f32],
            ) -> Result<(), Error> {
                self.session.set_param(param.index, values)
            }

            /// Steps attempted so far, and those of them that changed the weights.
            pub fn steps(&self) -> (u64, u64) {
                self.session.steps()
            }

            /// The runtime's own view of the program, for what is not typed here.
            pub fn session(&mut self) -> &mut Session {
                &mut self.session
            }
        }
    }
}

/// Only where the program can: one without logits has no such method.
fn generation(program: &Program) -> TokenStream {
    if program.logits.is_none() {
        return TokenStream::new();
    }
    quote! {
        impl Trainer {
            /// The [`VOCAB`] logits of the id that follows `ids`.
            ///
            /// # Errors
            /// No id, more than [`SEQUENCE`], or one that is not below [`VOCAB`].
            pub fn logits(&mut self, ids: &[i32]) -> Result<Vec<f32>, Error> {
                self.session.logits(ids)
            }
        }
    }
}
