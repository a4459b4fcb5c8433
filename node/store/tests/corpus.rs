//! Inputs that a fuzzer has found to reach something of their own (`tests/fuzz`), read once more.

#![allow(clippy::unwrap_used)]

mod parsers;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn everything_the_fuzzer_kept_is_read_or_refused() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus-store");
    let mut kinds = BTreeSet::new();
    for entry in fs::read_dir(&corpus).expect("the corpus is committed") {
        let input = fs::read(entry.expect("an entry").path()).expect("a file");
        kinds.extend(input.first().map(|kind| usize::from(*kind)));
        parsers::read(&input);
    }
    let all: BTreeSet<usize> = (0..parsers::KINDS.len()).collect();
    assert!(kinds.is_superset(&all), "not every kind has an input: {kinds:?}");
}
