//! Contexts, parsing and pass pipelines, with diagnostics as values.

use crate::error::EmitError;
use melior::Context;
use melior::dialect::DialectRegistry;
use melior::ir::Module;
use melior::pass::PassManager;
use melior::utility;
use std::cell::RefCell;
use std::rc::Rc;

/// From `llvm` functions with `arith`, `math`, `vector` and `scf` inside to the `llvm` dialect alone.
const CPU_PIPELINE: &str = "builtin.module(convert-scf-to-cf,convert-math-to-llvm,convert-vector-to-llvm,\
     convert-arith-to-llvm,convert-cf-to-llvm,reconcile-unrealized-casts)";

thread_local! {
    /// A context costs milliseconds and cannot change threads, so each thread keeps one.
    static CONTEXT: Context = new_context();
}

fn new_context() -> Context {
    utility::register_all_passes();
    let registry = DialectRegistry::new();
    utility::register_all_dialects(&registry);
    let context = Context::new_with_threading(false);
    context.append_dialect_registry(&registry);
    utility::register_all_llvm_translations(&context);
    context
}

/// Runs something with this thread's context.
pub(crate) fn with_context<T>(run: impl FnOnce(&Context) -> T) -> T {
    CONTEXT.with(run)
}

/// Parses text and lowers it for a CPU.
pub(crate) fn lower_cpu<'c>(context: &'c Context, text: &str) -> Result<Module<'c>, EmitError> {
    lower(context, text, CPU_PIPELINE)
}

/// Parses text of a module with one `gpu.module` and gives its PTX.
pub(crate) fn lower_gpu(
    context: &Context,
    text: &str,
    chip: &str,
    features: &str,
) -> Result<String, EmitError> {
    let pipeline = format!(
        "builtin.module(nvvm-attach-target{{chip={chip} features={features} O=3}},\
         gpu.module(convert-scf-to-cf,convert-nvvm-to-llvm,convert-math-to-llvm,convert-vector-to-llvm,\
         convert-arith-to-llvm,convert-gpu-to-nvvm,canonicalize,cse,reconcile-unrealized-casts),\
         gpu-module-to-binary{{format=isa}})"
    );
    let module = lower(context, text, &pipeline)?;
    super::ptx::text_of(&module).ok_or_else(|| EmitError::Lowering {
        stage: "writing PTX",
        message: "the module holds none".to_string(),
    })
}

/// Parses text and runs a pipeline.
pub(super) fn lower<'c>(context: &'c Context, text: &str, pipeline: &str) -> Result<Module<'c>, EmitError> {
    let mut module = capture(context, "parsing MLIR", |context| Module::parse(context, text))?;
    let manager = PassManager::new(context);
    manager.enable_verifier(cfg!(debug_assertions));
    utility::parse_pass_pipeline(manager.as_operation_pass_manager(), pipeline)
        .map_err(|why| EmitError::Lowering { stage: "choosing passes", message: why.to_string() })?;
    capture(context, "lowering MLIR", |_| manager.run(&mut module).ok())?;
    Ok(module)
}

/// Runs something that says why it failed through the context's diagnostics; a failed pass adds the whole module, so the first
/// line of the first one is kept.
fn capture<'c, T>(
    context: &'c Context,
    stage: &'static str,
    run: impl FnOnce(&'c Context) -> Option<T>,
) -> Result<T, EmitError> {
    let first = Rc::new(RefCell::new(None));
    let seen = Rc::clone(&first);
    let handler = context.attach_diagnostic_handler(move |diagnostic| {
        seen.borrow_mut().get_or_insert_with(|| {
            let text = diagnostic.to_string();
            format!("{}: {}", diagnostic.location(), text.lines().next().unwrap_or_default())
        });
        true
    });
    let result = run(context);
    context.detach_diagnostic_handler(handler);
    let message = first.borrow_mut().take().unwrap_or_else(|| "no diagnostic was given".to_string());
    result.ok_or(EmitError::Lowering { stage, message })
}
