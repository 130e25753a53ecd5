//! `dspc generate`

use std::io::Write;
use std::path::Path;

use dspc_runtime::generate::{self, Options};

use crate::exit::Exit;

/// Prints the prompt and what follows, as it comes.
pub fn generate(checkpoint: &Path, prompt: &str, options: &Options) -> Exit {
    print!("{prompt}");
    let mut print = |text: &str| {
        print!("{text}");
        // A closed pipe ends the command at the next write; there is nothing to save.
        let _ = std::io::stdout().flush();
    };
    match generate::generate(checkpoint, prompt, options, &mut print) {
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
