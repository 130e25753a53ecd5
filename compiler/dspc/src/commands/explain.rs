//! `dspc explain`

use dspc_source::nearest;

use crate::exit::Exit;
use crate::report;

/// Prints what a setting or a code means.
pub fn explain(word: Option<&str>) -> Exit {
    let Some(word) = word else {
        print!("{}", dspc_spec::reference_markdown());
        return Exit::Success;
    };
    if let Some(page) = dspc_spec::explain(word) {
        println!("{}", page.trim_end());
        return Exit::Success;
    }
    let near = nearest(word, dspc_spec::explainable()).map(|k| format!("did you mean `dspc explain {k}`?"));
    let help = near.unwrap_or_else(|| "`dspc explain` alone lists all settings".into());
    report::fault("E0508", &format!("no setting and no code is called `{word}`"), &help);
    Exit::InputErrors
}
