//! The program means what the graph means: fusion, storages, writing in place and packing change no number beyond f64 rounding.
//!
//! Both run in f64 on the same weights and ids: the graph by its interpreter, the program by the kernels' descriptions on its own arenas, where what was
//! never written is NaN.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use dspc_graph::interpret::{Inputs, Tensor, interpret};
use dspc_program::{BufferId, Family};
use dspc_schedule::Machine;
use dspc_tests::{Compiled, compile_for, file, fill, fill_params, hash, hashed, read, scale_and_offset};

const IDS: u64 = 1000;
/// The first loss scale of half precision.
const SCALE: f64 = 65536.0;

struct Batch {
    tokens: Vec<Vec<f64>>,
    targets: Vec<Vec<f64>>,
    inv_targets: f64,
}

/// One slot a micro-batch; every seventh target is ignored.
fn batch(compiled: &Compiled) -> Batch {
    let program = &compiled.lowered.program;
    let (micro, slots) =
        (program.training.micro_batch * program.data.sequence, program.training.accumulation);
    let id = |i: u64| f64::from(hash(i, IDS) % program.data.vocab as u32);
    let target = |i: u64| if i % 7 == 3 { -100.0 } else { id(i + 1) };
    let by_slot =
        |f: &dyn Fn(u64) -> f64| (0..slots).map(|s| (0..micro).map(|i| f(s * micro + i)).collect()).collect();
    let (tokens, targets): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (by_slot(&id), by_slot(&target));
    let count = targets.iter().flatten().filter(|t| **t >= 0.0).count();
    Batch { tokens, targets, inv_targets: 1.0 / count as f64 }
}

fn weight(compiled: &Compiled, name: &str, site: u64, element: u64) -> f64 {
    let _ = compiled;
    let (scale, offset) = scale_and_offset(name);
    f64::from(hashed(element, site, scale, offset))
}

/// Loss and gradients by the graph's interpreter, summed over micro-batches; gradients by parameter name.
fn by_graph(compiled: &Compiled, batch: &Batch) -> (f64, Vec<(String, Vec<f64>)>) {
    let (train, program) = (&compiled.lowered.plan.train, &compiled.lowered.program);
    let site = |name: &str| program.params.iter().position(|p| p.name == name).unwrap() as u64;
    let of_turn = |param: &dspc_graph::ir::Param, turn: u64| {
        let dims: Vec<usize> = param.ty.dims.iter().map(|d| d.size as usize).collect();
        let name = param.name_in(turn);
        Tensor::from_fn(&dims, |e| weight(compiled, &name, site(&name), e as u64))
    };
    let params: Vec<Vec<Tensor>> = train
        .graph
        .params
        .iter()
        .map(|p| (0..p.turns.unwrap_or(1)).map(|t| of_turn(p, t)).collect())
        .collect();
    let dims = [program.training.micro_batch as usize, program.data.sequence as usize];
    let mut loss = 0.0;
    let mut gradients: Vec<(String, Vec<f64>)> = vec![];
    for (micro, (tokens, targets)) in batch.tokens.iter().zip(&batch.targets).enumerate() {
        let inputs = Inputs {
            tokens: Tensor { dims: dims.to_vec(), data: tokens.clone() },
            targets: Tensor { dims: dims.to_vec(), data: targets.clone() },
            inv_targets: batch.inv_targets,
            rng: [7, 0, 3, micro as u32 * dims[0] as u32],
            loss_scale: SCALE,
            params: params.clone(),
        };
        let results = interpret(&train.graph, &inputs);
        loss += results.get(train.graph.loss.unwrap()).unwrap().data[0];
        let mut next = 0;
        for gradient in &train.gradients {
            let param = train.graph.param(gradient.param);
            for turn in 0..param.turns.unwrap_or(1) {
                let mut sum = vec![0.0; param.ty.elements() as usize];
                for value in &gradient.contributions {
                    let term = if param.turns.is_some() {
                        results.get_in(*value, turn)
                    } else {
                        results.get(*value)
                    };
                    sum.iter_mut().zip(&term.unwrap().data).for_each(|(s, t)| *s += t);
                }
                if micro == 0 {
                    gradients.push((param.name_in(turn), sum));
                } else {
                    gradients[next].1.iter_mut().zip(sum).for_each(|(s, t)| *s += t);
                }
                next += 1;
            }
        }
    }
    (loss, gradients)
}

fn assert_close(what: &str, got: &[f64], expected: &[f64]) {
    let size = (expected.iter().map(|x| x * x).sum::<f64>() / expected.len() as f64).sqrt();
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= 1e-10 * size.max(1e-3), "{what}[{i}] is {g}, not {e}");
    }
}

fn program_means_graph(compiled: &Compiled) {
    let program = &compiled.lowered.program;
    let batch = batch(compiled);
    let (loss, gradients) = by_graph(compiled, &batch);
    let machine = after_a_step(compiled, &batch);
    let slots = program.training.accumulation;
    let sum: f64 = (0..slots).map(|s| read(&machine, "loss", s)[0]).sum();
    assert_close("loss", &[sum], &[loss]);
    for (name, expected) in &gradients {
        let param = program.params.iter().find(|p| p.name == *name).unwrap();
        let buffer = format!("{}.grad", program.buffers[param.buffer.0 as usize].name);
        assert_close(name, &read(&machine, &buffer, param.slot), expected);
    }
    let norm = gradients.iter().flat_map(|(_, g)| g).map(|x| x * x).sum::<f64>().sqrt();
    let scale = if machine.buffer("loss_scale").is_some() { SCALE } else { 1.0 };
    assert_close("norm", &read(&machine, "grad_norm", 0), &[norm / scale]);
    assert_eq!(read(&machine, "first_bad", 0), [-1.0]);
    assert_gaps_are_zero(&machine);
}

/// The program's arenas after one optimizer step on the batch.
fn after_a_step<'c>(compiled: &'c Compiled, batch: &Batch) -> Machine<'c> {
    let (program, kernels) = (&compiled.lowered.program, &compiled.lowered.kernels);
    let mut machine = Machine::new(program, &kernels.kernels);
    fill_params(&mut machine, program, |i, e| weight(compiled, &program.params[i].name, i as u64, e));
    for (slot, (tokens, targets)) in batch.tokens.iter().zip(&batch.targets).enumerate() {
        fill(&mut machine, "tokens", slot as u64, tokens);
        fill(&mut machine, "targets", slot as u64, targets);
        let first = slot as f64 * program.training.micro_batch as f64;
        fill(&mut machine, "rng", slot as u64, &[7.0, 0.0, 3.0, first]);
    }
    fill(&mut machine, "inv_targets", 0, &[batch.inv_targets]);
    for table in ["table.lr", "table.bias1", "table.bias2"] {
        fill(&mut machine, table, 0, &vec![0.5; program.training.steps as usize]);
    }
    dspc_tests::fill_tables(&mut machine, program);
    if let Some(refresh) = &program.refresh {
        machine.run(&refresh.body, 0, 0);
    }
    machine.run(&program.train.body, 0, 0);
    machine
}

/// What lies behind a parameter in its flat range stays zero through the update, as do its gradient and moments.
fn assert_gaps_are_zero(machine: &dspc_schedule::Machine) {
    let program = machine.program();
    for (at, root) in program.buffers.iter().enumerate() {
        let Some(group) = root.name.strip_prefix("params.") else { continue };
        let mut gap = vec![true; root.elements as usize];
        let within = Some(BufferId(at as u32));
        for (view, buffer) in program.buffers.iter().enumerate().filter(|(_, b)| b.within == within) {
            for slot in 0..buffer.slots {
                let first = machine.cell(view, slot) - machine.cell(at, 0);
                gap[first..first + buffer.elements as usize].fill(false);
            }
        }
        for kind in ["params", "grads", "m", "v"] {
            let values = read(machine, &format!("{kind}.{group}"), 0);
            let changed = gap.iter().zip(values).position(|(gap, value)| *gap && value != 0.0);
            assert_eq!(changed, None, "of {kind}.{group}");
        }
    }
}

/// The same program with its logits four rows at a time.
fn chunked(mut compiled: Compiled) -> Option<Compiled> {
    let (plan, program) = (&compiled.lowered.plan, compiled.lowered.program);
    let vocab = program.data.vocab;
    let padded = vocab.next_multiple_of(dspc_plan::VOCABULARY_ROWS);
    let row_bytes = [padded, vocab].into_iter().flat_map(|cols| [2 * cols, 4 * cols]);
    let by_columns = row_bytes.map(|row| dspc_kernel::kernels_within(plan, Family::Cuda, 4 * row));
    let mut chunked = by_columns.filter(|k| dspc_kernel::print(k).contains("× chunk"));
    let kernels = chunked.next()?;
    let dspc_program::Program { dspc, spec_hash, model, data, training, .. } = program;
    let job = dspc_schedule::Job { dspc, spec_hash, model, data, training };
    let program = dspc_schedule::schedule(plan, &kernels, job);
    assert_eq!(dspc_audit::audit(&program), []);
    (compiled.lowered.kernels, compiled.lowered.program) = (kernels, program);
    Some(compiled)
}

/// Checks a spec of the suite, with some of its text replaced, for every kind of device; gives the CPU's.
fn means(spec: &str, changes: &[(&str, &str)]) -> Compiled {
    let path = file(spec);
    let text = std::fs::read_to_string(&path).unwrap();
    let text = changes.iter().fold(text, |text, (from, to)| text.replace(from, to));
    let compiled = compile_for(Family::Cuda, &path, &text);
    program_means_graph(&compiled);
    match chunked(compiled) {
        Some(compiled) => program_means_graph(&compiled),
        None => assert!(spec.contains("bigram"), "its logits are no product"),
    }
    let compiled = compile_for(Family::Cpu, &path, &text);
    program_means_graph(&compiled);
    compiled
}

const GPT2: &str = "suite/layers/gpt2.dsp";

#[test]
fn bigram() {
    means("suite/layers/bigram.dsp", &[]);
}

#[test]
fn gpt2_with_two_micro_batches() {
    means(GPT2, &[]);
}

#[test]
fn llama() {
    means("suite/layers/llama.dsp", &[]);
}

/// In f64 nothing is rounded: what is checked is that casts, copies, masters and the loss scale stand where they must.
#[test]
fn sixteen_bits() {
    for precision in ["bf16", "bf16(accumulate: bf16)", "fp16", "fp16(loss_scale: 65536)"] {
        for path in ["suite/layers/bigram.dsp", "suite/layers/gpt2.dsp", "suite/layers/llama.dsp"] {
            means(path, &[("train {", &format!("precision = {precision}\ntrain {{"))]);
        }
    }
}

/// What a GPU may round to TF32 is marked, and means the same.
#[test]
fn tf32() {
    for path in ["suite/layers/gpt2.dsp", "suite/layers/llama.dsp"] {
        means(path, &[("train {", "precision = tf32\ntrain {")]);
    }
}

#[test]
fn dropout_in_sixteen_bits() {
    let dropout = ("context: 4)", "context: 4, dropout: 0.3)");
    means("suite/layers/gpt2.dsp", &[dropout, ("train {", "precision = bf16\ntrain {")]);
}

/// Three turns of saved and carried values, a sequence shorter than the context, one micro-batch.
#[test]
fn gpt2_on_a_part_of_its_context() {
    means(GPT2, &[("layers: 2", "layers: 3"), ("context: 4", "context: 6"), ("  micro_batch: 2\n", "")]);
}

#[test]
fn dropout_is_the_same_in_graph_and_program() {
    means(GPT2, &[("context: 4)", "context: 4, dropout: 0.3)")]);
}

/// A sequence and width at which the sum over the batch of the positions' gradient is too long for a row of partial sums.
#[test]
fn long_rows_are_added_element_by_element() {
    let wide = [
        ("context: 4)", "context: 256)"),
        ("width: 8", "width: 36"),
        ("sequence: 4", "sequence: 256"),
        ("layers: 2", "layers: 1"),
        ("batch: 4\n  micro_batch: 2", "batch: 20\n  micro_batch: 10"),
    ];
    let compiled = means(GPT2, &wide);
    assert!(dspc_kernel::print(&compiled.lowered.kernels).contains("sum_rows"));
}

/// More rows than one chunk of a column sum holds, whose parts are f32 though the gradients are not.
#[test]
fn sums_in_parts_of_half_gradients() {
    let wide = [
        ("context: 4)", "context: 64)"),
        ("sequence: 4", "sequence: 64"),
        ("optimizer =", "precision = bf16(accumulate: bf16)\noptimizer ="),
    ];
    means(GPT2, &wide);
}

/// The library's product does what follows it, where it can.
#[test]
fn products_on_a_gpu_absorb_biases_and_gelu() {
    let path = file(GPT2);
    let text = std::fs::read_to_string(&path).unwrap();
    let kernels = dspc_kernel::print(&compile_for(Family::Cuda, &path, &text).lowered.kernels);
    let count = |what: &str| kernels.lines().filter(|line| line.contains(what)).count();
    assert_eq!((count("then gelu"), count("∘ gelu′"), count("right operand's rows")), (3, 1, 0), "{kernels}");
    let again = compile_for(Family::Cuda, &path, &format!("{text}\nrecompute = block\n"));
    let kernels = dspc_kernel::print(&again.lowered.kernels);
    let count = |what: &str| kernels.lines().filter(|line| line.contains(what)).count();
    assert_eq!((count("then gelu"), count("∘ gelu′"), count("right operand's rows")), (4, 1, 0), "{kernels}");
}

/// A weight gradient over many rows sums its bias' too, unless a row op makes those rows.
#[test]
fn products_on_a_gpu_absorb_bias_gradients_of_many_rows() {
    let many = [("batch: 4\n  micro_batch: 2", "batch: 1024\n  micro_batch: 1024")];
    means(GPT2, &many);
    let path = file(GPT2);
    let text = std::fs::read_to_string(&path).unwrap().replace(many[0].0, many[0].1);
    let kernels = dspc_kernel::print(&compile_for(Family::Cuda, &path, &text).lowered.kernels);
    assert_eq!(kernels.matches("right operand's rows").count(), 3, "{kernels}");
}

/// The same state and gradients, to the bit, whatever is computed again; and from less memory.
#[test]
fn what_is_computed_again_has_the_same_bits() {
    let path = file(GPT2);
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text
        .replace("layers: 2", "layers: 5")
        .replace("width: 8", "width: 16")
        .replace("context: 4)", "context: 4, dropout: 0.3)");
    for family in [Family::Cpu, Family::Cuda] {
        let program = |recompute: &str| {
            let compiled = compile_for(family, &path, &format!("{text}\nrecompute = {recompute}\n"));
            program_means_graph(&compiled);
            let total = dspc::fit::Memory::of(&compiled.lowered.program).total();
            (trained(&compiled), total, compiled.lowered.plan.train.recompute)
        };
        let (expected, all, _) = program("none");
        let (norms, fewer, _) = program("norms");
        let (block, fewest, _) = program("block");
        assert!(all > fewer && fewer > fewest, "{all} > {fewer} > {fewest}");
        let budget = (fewer + fewest) / 2 / 1024;
        let (products, between, chosen) = program(&format!("auto\nmemory = {budget}KiB"));
        assert!(
            between <= budget * 1024 && matches!(chosen, dspc_train::Recompute::Products(_)),
            "{chosen}: {between}"
        );
        for (recompute, found) in [("norms", norms), ("block", block), ("products", products)] {
            for ((name, found), (_, expected)) in found.iter().zip(&expected) {
                let other = found.iter().zip(expected).position(|(a, b)| a.to_bits() != b.to_bits());
                assert!(other.is_none(), "{name} at {other:?} by {recompute} on {family:?}");
            }
        }
    }
}

/// Parameters, moments and the gradient norm after a step by the program.
fn trained(compiled: &Compiled) -> Vec<(String, Vec<f64>)> {
    let program = &compiled.lowered.program;
    let machine = after_a_step(compiled, &batch(compiled));
    let state = |a: &dspc_program::Arena| {
        ["parameters", "gradients", "optimizer", "state"].contains(&a.name.as_str())
    };
    let kept = program.buffers.iter().filter(|b| state(&program.arenas[b.arena as usize]));
    kept.flat_map(|b| (0..b.slots).map(|slot| (format!("{}[{slot}]", b.name), read(&machine, &b.name, slot))))
        .collect()
}
