//! What texts become: trees of small specs, and the standard library and examples without a mistake.

use dspc_grammar::{parse, print_tree};
use dspc_source::FileId;

fn tree(text: &str) -> String {
    let (file, mistakes) = parse(FileId(0), text);
    let said: String = mistakes
        .iter()
        .map(|m| format!("{} {:?} {} | {}\n", m.code, m.primary.span, m.title, m.primary.text))
        .collect();
    said + &print_tree(&file, text)
}

#[test]
fn scratch() {
    for path in [
        "../examples/shakespeare.dsp",
        "../compiler/spec/std/nn.dsp",
        "../compiler/spec/std/gpt2.dsp",
        "../compiler/spec/std/llama.dsp",
        "/tmp/a.dsp",
        "/tmp/b.dsp",
    ] {
        if let Ok(text) = std::fs::read_to_string(path) {
            println!("==== {path}\n{}", tree(&text));
        }
    }
}

fn in_small_stack(text: String) -> (usize, std::time::Duration) {
    std::thread::Builder::new()
        .stack_size(256 << 10)
        .spawn(move || {
            let begin = std::time::Instant::now();
            let (file, mistakes) = parse(FileId(0), &text);
            let copy = file.clone();
            assert!(copy == file);
            let _ = print_tree(&file, &text);
            (mistakes.len(), begin.elapsed())
        })
        .unwrap()
        .join()
        .unwrap()
}

#[test]
fn deep() {
    for (name, text) in [
        ("paren", format!("x = {}1{}", "(".repeat(64), ")".repeat(64))),
        ("list", format!("x = {}1{}", "[".repeat(64), "]".repeat(64))),
        ("calls", format!("x = {}1{}", "f(a: ".repeat(64), ")".repeat(64))),
        ("bigcalls", format!("x = {}1{}", "f(-a + b * f(1), (a: ".repeat(32), "))".repeat(32))),
        ("repeat", format!("layer f() {{ {} x {} }}", "repeat a { ".repeat(63), "}".repeat(63))),
        ("junk", format!("$ {} x {} ", "{".repeat(63), "}".repeat(63))),
        ("100k", format!("x = {}1{}", "(".repeat(100_000), ")".repeat(100_000))),
        ("1M(", "(".repeat(1 << 20)),
        ("1M{", "{".repeat(1 << 20)),
        ("1Ma{", "a{".repeat(1 << 19)),
        ("1M x[", "x = [".repeat(200_000)),
        ("unary", format!("x = {}", "-".repeat(1_000_000))),
        ("unary2", format!("x = {}1", "-".repeat(1_000_000))),
        ("binary", format!("x = 1{}", "+1".repeat(500_000))),
        ("lambda", format!("x = {}1", "(a)=>".repeat(200_000))),
        ("index", format!("x = a{}", "[0]".repeat(300_000))),
        ("[)", "[".repeat(500_000) + &")".repeat(500_000)),
        ("words", "a ".repeat(500_000)),
        ("comma", format!("layer f() {{ {} }}", "a,".repeat(500_000))),
        ("fields", format!("a {{ {} }}", "a:".repeat(500_000))),
        ("blank", format!("a {{ a:{} }}", " b ".repeat(300_000))),
        ("quotes", "\"".repeat(1_000_000)),
        ("lines", "x = 1\n".repeat(170_000)),
        ("nest21", format!("x = {}", "f(a, [b, (".repeat(20))),
    ] {
        let bytes = text.len();
        let (mistakes, time) = in_small_stack(text);
        println!("{name} {bytes}: {mistakes} {time:?}");
    }
}
