//! The pages of the layers show what the code prints: every `text` block is part of it, line for line.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use dspc_tests::{Compiled, compile_text};
use std::fs;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/layers")
}

fn example() -> Compiled {
    let path = folder().join("example.dsp");
    compile_text(&path, &fs::read_to_string(&path).expect("the example is there"))
}

/// What stands between fences of that language.
fn blocks<'a>(page: &'a str, language: &'a str) -> impl Iterator<Item = &'a str> {
    let fence = format!("```{language}\n");
    let parts: Vec<&str> = page.split(&*fence).skip(1).collect();
    parts.into_iter().filter_map(|rest| rest.split("```").next())
}

/// The same on two ranks, in ZeRO stage 3.
fn example_on_ranks() -> Compiled {
    let path = folder().join("example.dsp");
    let text = fs::read_to_string(&path).expect("the example is there");
    let zero = "zero = stage(3, reduce_bucket: 4K, gather_bucket: 5K, keep_below: 1K)";
    compile_text(&path, &format!("{text}\nparallel = mesh(data: 2)\n{zero}\n"))
}

fn assert_shows(page: &str, printed: &str) {
    assert_shows_in("text", page, printed);
}

fn assert_shows_in(language: &str, page: &str, printed: &str) {
    let text = fs::read_to_string(folder().join(page)).expect("the page is there");
    let mut shown = 0;
    for block in blocks(&text, language) {
        // The fence's own line ends the block, and no line of it is a part of another.
        assert!(
            format!("\n{printed}").contains(&format!("\n{block}")),
            "docs/layers/{page} is stale. It shows\n{block}\nand the layer prints\n{printed}"
        );
        shown += 1;
    }
    assert!(shown > 0, "docs/layers/{page} shows nothing");
}

#[test]
fn the_page_of_the_plan_shows_what_is_printed() {
    assert_shows("plan.md", &dspc_plan::print(&example().lowered.plan));
}

#[test]
fn the_page_of_the_kernels_shows_what_is_printed() {
    assert_shows("kernels.md", &dspc_kernel::print(&example().lowered.kernels));
}

#[test]
fn the_page_of_the_schedule_shows_what_is_printed() {
    assert_shows("schedule.md", &dspc_schedule::print(&example().lowered.program));
}

#[test]
fn pages_show_what_several_ranks_do() {
    let example = example_on_ranks();
    assert_shows_in("text ranks", "plan.md", &dspc_plan::print(&example.lowered.plan));
    assert_shows_in("text ranks", "schedule.md", &dspc_schedule::print(&example.lowered.program));
}
