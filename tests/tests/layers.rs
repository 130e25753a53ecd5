//! Every layer of three small specs, printed: the snapshots are the documentation of the forms.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use dspc::passes::{self, Choices, Use};
use dspc_tests::{compile, file};

fn snapshot(name: &str, layer: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(file("suite/layers"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(format!("{name}.{layer}"), text));
}

fn all(name: &str) {
    let compiled = compile(&format!("suite/layers/{name}.dsp"));
    let (front, lowered, spec) = (&compiled.front, &compiled.lowered, compiled.spec());
    snapshot(name, "ast", &dspc_grammar::print_tree(&front.tree, front.sources.text(front.file)));
    snapshot(name, "spec", &dspc_spec::print(spec));
    let choices = Choices::of(spec);
    let graph = passes::graph(spec, &front.sources, Use::Train, choices.micro_batch).unwrap();
    snapshot(name, "graph", &dspc_graph::print_graph(&graph));
    snapshot(name, "train", &dspc_train::print(&passes::train(spec, &front.sources, choices).unwrap()));
    snapshot(name, "plan", &dspc_plan::print(&lowered.plan));
    snapshot(name, "kernels", &dspc_kernel::print(&lowered.kernels));
    snapshot(name, "schedule", &dspc_schedule::print(&lowered.program));
}

#[test]
fn bigram() {
    all("bigram");
}

#[test]
fn gpt2() {
    all("gpt2");
}

/// The smallest model in half precision: types, casts, masters, the loss scale.
#[test]
fn half() {
    all("half");
}

#[test]
fn llama() {
    all("llama");
}
