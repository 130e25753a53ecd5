//! `dspc generate`

use std::io::Write;
use std::path::Path;

use dspc_runtime::device::Wanted;
use dspc_runtime::generate::{self, On, Options};

use crate::build;
use crate::exit::Exit;

/// Prints the prompt and what follows, as it comes.
pub fn generate(checkpoint: &Path, prompt: &str, options: &Options, device: Wanted) -> Exit {
    let on = On { device, cache_dir: build::cache_dir(), lock: super::lock_beside(checkpoint) };
    print!("{prompt}");
    let mut print = |text: &str| {
        print!("{text}");
        // A closed pipe ends the command at the next write; there is nothing to save.
        let _ = std::io::stdout().flush();
    };
    match generate::generate(checkpoint, prompt, options, &on, &mut print) {
        Ok(_) => {
            println!();
            Exit::Success
        }
        Err(error) => {
            println!();
            super::fault(&error)
        }
    }
}
