//! From what is written to resolved settings.

mod consistent;
mod held;
mod model;
mod optimizer;
mod quantity;
mod settings;
mod solve;
mod value;
mod written;

pub(crate) use consistent::check_against_model;
pub(crate) use model::{ModelSizes, read_model_arguments};
pub(crate) use quantity::{describe, written};
pub(crate) use settings::read_settings;
pub(crate) use written::Written;

use std::collections::BTreeMap;

use crate::errors::Mistakes;
use crate::settings::DataFacts;

/// What reading a setting needs: what is written, what is known of the data, and where mistakes go.
pub(crate) struct Reader<'a> {
    pub written: &'a Written<'a>,
    pub facts: &'a DataFacts,
    pub mistakes: &'a mut Mistakes,
    /// Settings being read now: one that meets itself is a circle.
    open: Vec<&'static str>,
    /// Numbers of settings that others named, so that each is worked out once.
    numbers: BTreeMap<&'static str, Option<f64>>,
}

impl<'a> Reader<'a> {
    /// A reader that has read nothing yet.
    pub fn new(written: &'a Written<'a>, facts: &'a DataFacts, mistakes: &'a mut Mistakes) -> Self {
        Self { written, facts, mistakes, open: vec![], numbers: BTreeMap::new() }
    }
}
