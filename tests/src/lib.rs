//! The suite: what spans crates, and what must hold of the repository itself. Each crate's own tests stand beside its code.
//!
//! Here is what its tests share: compiling a spec of the suite, and the integer hash that tensors and ids are made with.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its own files says so by a panic")]

pub mod optimizers;

use std::path::{Path, PathBuf};

use dspc::passes::{self, Front, Lowered};
use dspc_program::{Family, Program};
use dspc_schedule::Machine;
use dspc_source::{Colour, render_text};
use dspc_spec::settings::Spec;

/// A spec of the suite and every layer below it.
pub struct Compiled {
    /// Texts and tree.
    pub front: Front,
    /// Plan, kernels, program.
    pub lowered: Lowered,
}

impl Compiled {
    /// The checked spec.
    pub fn spec(&self) -> &Spec {
        self.front.spec.as_ref().unwrap()
    }
}

/// A file of this folder.
pub fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Compiles `path`, relative to this folder, down to a program; a mistake in it is shown as the user would see it.
pub fn compile(path: &str) -> Compiled {
    let path = file(path);
    let text = std::fs::read_to_string(&path).unwrap();
    compile_text(&path, &text)
}

/// Compiles a text as if it stood at `path`.
pub fn compile_text(path: &Path, text: &str) -> Compiled {
    compile_for(Family::Cpu, path, text)
}

/// Compiles a text as if it stood at `path`, for a kind of device.
pub fn compile_for(family: Family, path: &Path, text: &str) -> Compiled {
    let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
    let mut front = passes::read(&format!("{stem}.dsp"), text);
    let facts = dspc::facts::gather(&front.tree, &dspc::facts::root(path));
    passes::check(&mut front, &stem, &facts.data);
    let report = render_text(&front.diagnostics, &front.sources, Colour::Plain);
    let spec = front.spec.as_ref().unwrap_or_else(|| panic!("{report}"));
    let lowered = passes::lower(spec, &front.sources, facts.characters, family).unwrap();
    Compiled { front, lowered }
}

/// The hash of `tests/parity/reference.py`: element and site to 32 bits.
pub fn hash(element: u64, site: u64) -> u32 {
    let x = (element.wrapping_mul(2_654_435_761).wrapping_add(site * 40503)) as u32;
    let x = x ^ (x >> 16);
    let x = x.wrapping_mul(2_246_822_519);
    x ^ (x >> 13)
}

/// A number in offset ± scale / 2 from that hash, rounded to f32 once.
pub fn hashed(element: u64, site: u64, scale: f64, offset: f64) -> f32 {
    (offset + (f64::from(hash(element, site)) / 4_294_967_296.0 - 0.5) * scale) as f32
}

/// Scale and offset that keep a small model lively: norms near one, all else near zero.
pub fn scale_and_offset(name: &str) -> (f64, f64) {
    let is_norm = name.contains("ln_") || name.contains("norm");
    match (is_norm, name.ends_with("weight")) {
        (true, true) => (0.2, 1.0),
        (false, true) => (0.6, 0.0),
        (_, false) => (0.4, 0.0),
    }
}

/// A program's parameters filled by `value(param index, element)`.
pub fn fill_params(machine: &mut Machine, program: &Program, value: impl Fn(usize, u64) -> f64) {
    for (i, param) in program.params.iter().enumerate() {
        let start = machine.cell(param.buffer.0 as usize, param.slot);
        for e in 0..param.dims.iter().product::<u64>() {
            machine.cells[start + e as usize] = value(i, e);
        }
    }
}

/// Fills a buffer's slot.
pub fn fill(machine: &mut Machine, name: &str, slot: u64, values: &[f64]) {
    let buffer = machine.buffer(name).unwrap_or_else(|| panic!("no buffer `{name}`"));
    let start = machine.cell(buffer, slot);
    machine.cells[start..start + values.len()].copy_from_slice(values);
}

/// Reads a buffer's slot.
pub fn read(machine: &Machine, name: &str, slot: u64) -> Vec<f64> {
    let buffer = machine.buffer(name).unwrap_or_else(|| panic!("no buffer `{name}`"));
    let start = machine.cell(buffer, slot);
    machine.cells[start..start + machine.program().buffers[buffer].elements as usize].to_vec()
}

/// Fills the tables that a graph brings (rotary angles).
pub fn fill_tables(machine: &mut Machine, program: &Program) {
    use dspc_program::Formula;
    for table in &program.tables {
        let buffer = &program.buffers[table.buffer.0 as usize];
        let angle = |base: f64, cols: u64, e: u64| {
            let (row, col) = (e / cols, e % cols);
            (row as f64 * base.powf(-2.0 * (col % (cols / 2)) as f64 / cols as f64), col < cols / 2)
        };
        let value = |e: u64| match table.formula {
            Formula::RopeCos { base, cols } => Some(angle(base, cols, e).0.cos()),
            Formula::RopeSin { base, cols } => {
                let (angle, first) = angle(base, cols, e);
                Some(if first { -angle.sin() } else { angle.sin() })
            }
            Formula::Constant(x) => Some(x),
            Formula::LearningRate | Formula::BiasCorrection { .. } | Formula::Decay { .. } => None,
        };
        let values: Option<Vec<f64>> = (0..buffer.elements).map(value).collect();
        if let Some(values) = values {
            fill(machine, &buffer.name, 0, &values);
        }
    }
}
