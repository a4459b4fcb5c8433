//! `build --check`: built again, and compared.

use std::fs;
use std::path::Path;

use crate::harness::{Machine, sandbox_works};

/// `id` is another one each time it is built, `all` needs it, `same` is always the same.
const EXPRESSION: &str = r#"rec {
  same = build "same" { outputs = [ "out" "doc" ]; } "mkdir $out\nwrite $out/text hello\nwrite $doc manual";
  id = build "id" { } "mkdir $out\nwrite $out/equal text\ncopy /proc/sys/kernel/random/uuid $out/id";
  all = build "all" { id = id; } "echo $id\nwrite $out done";
}"#;

fn id_of(folder: &Path) -> String {
    let id = fs::read_to_string(folder.join("id")).expect("an id");
    assert_eq!(id.trim().len(), 36, "{id}");
    id
}

#[test]
fn what_is_there_is_built_again_and_compared() {
    if !sandbox_works("what_is_there_is_built_again_and_compared") {
        return;
    }
    let machine = Machine::new();
    machine.expression(EXPRESSION);
    let path = machine.run(&["build", "-A", "same"]).ok().to_owned();
    let checked = machine.run(&["build", "--check", "-A", "same", "-A", "same.doc"]);
    assert!(checked.ok().starts_with(&path), "{}", checked.stdout);
    assert!(checked.stderr.contains("checked same in"), "{}", checked.stderr);
    assert!(!machine.home().join("scratch-kept").exists());
    // Only what was asked for: `id` is not built again, though it would differ.
    machine.run(&["build", "-A", "all"]).ok();
    let checked = machine.run(&["build", "--check", "-A", "all"]);
    checked.ok();
    assert!(!checked.stderr.contains("building id"), "{}", checked.stderr);
}

#[test]
fn a_difference_is_shown_and_the_output_is_kept() {
    if !sandbox_works("a_difference_is_shown_and_the_output_is_kept") {
        return;
    }
    let machine = Machine::new();
    machine.expression(EXPRESSION);
    let path = machine.run(&["build", "-A", "id"]).ok().to_owned();
    let before = id_of(&machine.physical(&path));
    let checked = machine.run(&["build", "--check", "-k", "-A", "id", "-A", "same"]);
    checked.failed(
        1,
        &[
            "id is not the same when built again",
            "\"id\" differs from byte",
            "nothing to compare with",
        ],
    );
    assert!(!checked.stderr.contains("\"equal\""), "{}", checked.stderr);
    let kept = checked.stderr.split("as built now: ").nth(1).expect("a place");
    let kept = Path::new(kept.lines().next().expect("a path"));
    assert!(
        kept.starts_with(machine.home().canonicalize().expect("a home")) || kept.starts_with(machine.home())
    );
    assert_ne!(id_of(kept), before);
    // The store keeps what it had.
    assert_eq!(id_of(&machine.physical(&path)), before);
    let told = machine.run(&["build", "--check", "-A", "id", "--log-format", "internal-json"]);
    told.failed(1, &["\"event\":\"checked\"", "\"outcome\":\"build-failed\""]);
}

#[test]
fn what_cannot_be_checked_is_named() {
    if !sandbox_works("what_cannot_be_checked_is_named") {
        return;
    }
    let machine = Machine::new();
    machine.expression(EXPRESSION);
    let checked = machine.run(&["build", "--check", "-A", "all"]);
    checked.failed(1, &["nothing to compare with: build it first"]);
    // Not even what it would need was built.
    assert!(!checked.stderr.contains("building"), "{}", checked.stderr);
    machine.run(&["build", "-A", "same"]).ok();
    let checked = machine.run(&["build", "--check", "-j", "0", "-A", "same"]);
    checked.failed(1, &["may build nothing"]);
    // One of its outputs has gone since: what is compared would not be all of it.
    machine.run(&["store", "gc"]).ok();
    let checked = machine.run(&["build", "--check", "-A", "same"]);
    checked.failed(1, &["of its outputs, doc is not in the store", "build it first"]);
    assert!(!checked.stderr.contains("the same"), "{}", checked.stderr);
    machine
        .run(&["build", "--check", "--dry-run"])
        .failed(2, &["--dry-run"]);
    machine
        .run(&["build", "--check", "--to", "file:///srv"])
        .failed(2, &["--to"]);
}
