//! Embeds the pages of the error codes, `docs/errors/*.md`, for `dspc explain`: a new page needs no list to be edited.

use std::{env, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../docs/errors");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut pages: Vec<(String, PathBuf)> = vec![];
    for entry in fs::read_dir(&folder).into_iter().flatten() {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if path.extension().is_some_and(|e| e == "md") && stem.len() == 5 && stem.starts_with(['E', 'R', 'W'])
        {
            pages.push((stem.to_string(), path.canonicalize()?));
        }
    }
    pages.sort();
    let lines: String =
        pages.iter().map(|(code, path)| format!("    ({code:?}, include_str!({path:?})),\n")).collect();
    let table = format!("/// Pages by code.\nconst PAGES: &[(&str, &str)] = &[\n{lines}];\n");
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("pages.rs"), table)?;
    Ok(())
}
