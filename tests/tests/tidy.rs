//! What must hold of the repository itself: directions between crates, headers, names, pages. Reads files and `cargo metadata`; runs nothing of ours.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Which crate of ours each may use. Arrows point down: a layer sees those before it, only `spec` sees the grammar.
const MAY_USE: &[(&str, &[&str])] = &[
    ("source", &[]),
    ("grammar", &["source"]),
    ("spec", &["source", "grammar"]),
    ("graph", &["source", "spec"]),
    ("train", &["source", "spec", "graph"]),
    ("plan", &["source", "spec", "graph", "train"]),
    ("kernel", &["source", "spec", "graph", "train", "plan", "program"]),
    ("program", &[]),
    ("schedule", &["source", "spec", "graph", "train", "plan", "kernel", "program"]),
    ("emit", &["source", "spec", "graph", "train", "plan", "kernel", "schedule", "program"]),
    ("audit", &["program"]),
    ("runtime", &["program"]),
];

/// Crates that may use all of ours.
const MAY_USE_ALL: &[&str] = &["dspc", "tests"];

/// Libraries that one crate alone names.
const ALONE: &[(&str, &str)] = &[
    ("annotate-snippets", "source"),
    ("pest", "grammar"),
    ("pest_derive", "grammar"),
    ("melior", "emit"),
    ("mlir-sys", "emit"),
    ("quote", "emit"),
    ("prettyplease", "emit"),
    ("cudarc", "runtime"),
    ("gemm", "runtime"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the workspace").to_path_buf()
}

/// Files of the repository with one of these endings, by their path from the root; what builds and runs leave behind is not seen.
fn files(endings: &[&str]) -> BTreeMap<String, String> {
    fn walk(folder: &Path, root: &Path, endings: &[&str], found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).expect("a folder of the repository can be read") {
            let path = entry.expect("its entries too").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let left_behind = ["target", "runs", "node_modules", "cache"].contains(&name.as_str());
            if path.is_dir() && !left_behind && !name.starts_with('.') && !name.ends_with(".dspx") {
                walk(&path, root, endings, found);
            } else if path.is_file() && endings.iter().any(|ending| name.ends_with(ending)) {
                let key = path.strip_prefix(root).expect("it lies below").to_string_lossy().into_owned();
                found.insert(
                    key,
                    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())),
                );
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&root(), &root(), endings, &mut found);
    found
}

fn assert_none(faults: Vec<String>) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

fn metadata() -> Value {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo writes JSON")
}

/// Every crate of ours by short name, with the names of all that it depends on. What its tests alone use does not count.
fn crates() -> BTreeMap<String, Vec<String>> {
    let text = |value: &Value| value.as_str().expect("a name").to_string();
    let of = |package: &Value| {
        let all = package["dependencies"].as_array().expect("a list");
        let built = all.iter().filter(|d| d["kind"] != "dev");
        (short(&text(&package["name"])), built.map(|d| text(&d["name"])).collect())
    };
    metadata()["packages"].as_array().expect("a list").iter().map(of).collect()
}

fn short(name: &str) -> String {
    name.strip_prefix("dspc-").unwrap_or(name).to_string()
}

#[test]
fn crates_use_only_those_below_them() {
    let mut faults = vec![];
    for (name, uses) in crates() {
        if MAY_USE_ALL.contains(&name.as_str()) {
            continue;
        }
        let Some((_, allowed)) = MAY_USE.iter().find(|(one, _)| *one == name) else {
            faults.push(format!("{name}: a new crate is a new row in MAY_USE first: what may it use?"));
            continue;
        };
        for used in uses.iter().filter_map(|used| used.strip_prefix("dspc-")) {
            if !allowed.contains(&used) {
                faults.push(format!("{name} uses {used}, and may use {allowed:?}"));
            }
        }
    }
    assert_none(faults);
}

#[test]
fn some_libraries_are_named_by_one_crate_alone() {
    let mut faults = vec![];
    for (name, uses) in crates() {
        for (library, owner) in ALONE {
            if name != *owner && uses.iter().any(|used| used == library) {
                faults.push(format!("{name} names `{library}`, and {owner} alone may"));
            }
        }
    }
    assert_none(faults);
}

#[test]
fn every_source_file_opens_by_saying_what_it_is() {
    let opens = |text: &str| text.starts_with("//! ") && !text.starts_with("//! placeholder");
    let silent = files(&[".rs"]).into_iter().filter(|(_, text)| !opens(text));
    assert_none(silent.map(|(path, _)| format!("{path}: does not open with `//!`")).collect());
}

#[test]
fn no_file_is_a_drawer() {
    let drawers = ["utils.rs", "util.rs", "helpers.rs", "helper.rs", "common.rs", "misc.rs"];
    let names = files(&[".rs"]).into_keys();
    assert_none(names.filter(|path| drawers.iter().any(|d| path.ends_with(&format!("/{d}")))).collect());
}

#[test]
fn nothing_is_left_to_do_in_silence() {
    // Put together, so that this file does not name them.
    let macros = [
        concat!("to", "do!("),
        concat!("un", "implemented!("),
        concat!("db", "g!("),
        concat!("#[ig", "nore"),
    ];
    let mut faults = vec![];
    for (path, text) in files(&[".rs"]) {
        // Timings are no tests: they are run by hand, and say so.
        let by_hand = |line: &str| {
            ["= \"timings", "= \"a measurement", "= \"slow"].iter().any(|why| line.contains(why))
        };
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !by_hand(line)) {
            let found = macros.iter().filter(|m| line.contains(*m));
            faults.extend(found.map(|m| format!("{path}:{}: {m}", number + 1)));
        }
    }
    assert_none(faults);
}

#[test]
fn every_snapshot_belongs_to_a_test() {
    let root = root();
    let mut faults = vec![];
    for (path, text) in files(&[".snap"]) {
        let header = |key: &str| {
            text.lines()
                .take(12)
                .find_map(|l| l.strip_prefix(key))
                .map(|v| v.trim().trim_matches('"').to_string())
        };
        let stem = path.trim_end_matches(".snap");
        let beside =
            [".dsp", ".rs", ".md"].iter().any(|ending| root.join(format!("{stem}{ending}")).exists());
        let input = header("input_file:").map(|input| root.join(input).exists());
        let source = header("source:").and_then(|source| fs::read_to_string(root.join(source)).ok());
        let name = stem.rsplit(['/', '.']).next().unwrap_or(stem).rsplit("__").next().unwrap_or(stem);
        let name = name.split('@').next().unwrap_or(name);
        let plain = name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('-');
        let claimed = source.is_some_and(|code| code.contains(name) || code.contains(plain));
        if !input.unwrap_or(beside || claimed) {
            faults.push(format!("{path}: no test makes this snapshot"));
        }
    }
    faults.extend(
        files(&[".snap.new", ".pending-snap"]).into_keys().map(|path| format!("{path}: not reviewed")),
    );
    assert_none(faults);
}

/// `E0312`, `W0101`, `R0201` between quotes.
fn codes(text: &str) -> impl Iterator<Item = &str> {
    text.split('"').filter(|part| {
        let (letter, digits) = part.split_at_checked(1).unwrap_or(("", ""));
        ["E", "W", "R"].contains(&letter) && digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit())
    })
}

#[test]
fn every_code_has_a_page_and_every_page_a_code() {
    let mut used = BTreeMap::<String, String>::new();
    for (path, text) in files(&[".rs"]).iter().filter(|(path, _)| !path.starts_with("tests/")) {
        // What stands below the tests' line is no use of a code.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        used.extend(codes(code).map(|c| (c.to_string(), path.clone())));
    }
    let pages: BTreeSet<String> = files(&[".md"])
        .keys()
        .filter_map(|path| path.strip_prefix("docs/errors/")?.strip_suffix(".md"))
        .filter(|name| *name != "README")
        .map(str::to_string)
        .collect();
    let unexplained = used.iter().filter(|(code, _)| !pages.contains(*code));
    let mut faults: Vec<String> = unexplained
        .map(|(code, path)| format!("{code} ({path}) has no page docs/errors/{code}.md"))
        .collect();
    let orphans = pages.iter().filter(|page| !used.contains_key(*page));
    faults.extend(orphans.map(|page| format!("docs/errors/{page}.md: nothing reports it")));
    assert_none(faults);
}

#[test]
fn no_text_names_a_place_on_someones_machine() {
    let places = ["/home/", "/root/", "/work/", "/tmp/"];
    let mut faults = vec![];
    for (path, text) in files(&[".md", ".snap", ".dsp", ".trycmd", ".json", ".toml", ".py"]) {
        for (number, line) in
            text.lines().enumerate().filter(|(_, line)| places.iter().any(|p| line.contains(p)))
        {
            faults.push(format!("{path}:{}: {line}", number + 1));
        }
    }
    assert_none(faults);
}

/// The files that a page links to.
fn links(page: &str, text: &str) -> Vec<PathBuf> {
    let folder = root().join(page).parent().expect("a file lies in a folder").to_path_buf();
    let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let files = links.filter(|link| !link.contains("://") && !link.starts_with('#'));
    files.map(|link| folder.join(link.split('#').next().unwrap_or(link))).collect()
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut faults = vec![];
    for (path, text) in files(&[".md"]) {
        let lost = links(&path, &text).into_iter().filter(|file| !file.exists());
        faults.extend(lost.map(|file| format!("{path}: {} is not there", file.display())));
    }
    assert_none(faults);
}

#[test]
fn every_page_of_the_book_is_linked_from_another() {
    let pages = files(&[".md"]);
    let linked: BTreeSet<PathBuf> = pages
        .iter()
        .flat_map(|(path, text)| links(path, text))
        .filter_map(|file| file.canonicalize().ok())
        .collect();
    // The pages of errors are found by their code.
    let book = pages.keys().filter(|path| path.starts_with("docs/") && !path.starts_with("docs/errors/"));
    let lost = book.filter(|path| !root().join(path).canonicalize().is_ok_and(|file| linked.contains(&file)));
    assert_none(lost.map(|path| format!("{path}: no page links to it")).collect());
}

#[test]
fn the_readme_shows_the_example_and_the_commands_that_exist() {
    let readme = fs::read_to_string(root().join("README.md")).expect("there is a README");
    let example = fs::read_to_string(root().join("examples/shakespeare.dsp")).expect("there is an example");
    assert!(readme.contains(&example), "README.md does not show examples/shakespeare.dsp as it is");
    for command in ["./setup run examples/shakespeare.dsp", "./test"] {
        assert!(readme.lines().any(|line| line.trim() == command), "README.md does not give `{command}`");
        let script = command.split(' ').next().expect("a first word");
        assert!(root().join(script).is_file(), "{script} is not there");
    }
}
