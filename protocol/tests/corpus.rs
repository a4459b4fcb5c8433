//! Inputs that a fuzzer has found to reach something of their own (`tests/fuzz`), read once more.

mod wire;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The names that stand between these two in a text.
fn between<'a>(text: &'a str, before: &'a str, after: char) -> impl Iterator<Item = &'a str> {
    text.split(before)
        .skip(1)
        .filter_map(move |rest| Some(rest.split_once(after)?.0))
}

#[test]
fn every_message_and_every_signed_kind_is_among_what_the_fuzzer_reads() {
    let kinds = include_str!("wire/mod.rs");
    let messages: Vec<&str> = between(include_str!("../src/messages.rs"), "\nmessage!(", ',').collect();
    assert!(messages.len() > 20, "{messages:?}");
    for message in messages.into_iter().filter(|message| *message != "Envelope") {
        assert!(
            kinds.contains(&format!("message::<messages::{message}>")),
            "{message}"
        );
    }
    let sources = [
        include_str!("../src/build.rs"),
        include_str!("../src/presence.rs"),
        include_str!("../src/roster.rs"),
    ];
    let signed: Vec<&str> = sources
        .iter()
        .flat_map(|source| between(source, "\nimpl Statement for ", ' '))
        .collect();
    assert!(signed.len() > 5, "{signed:?}");
    for statement in signed {
        assert!(
            kinds.contains(&format!("statement::<{statement}>")),
            "{statement}"
        );
    }
}

#[test]
fn everything_the_fuzzer_kept_is_read_or_refused() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
    let mut kinds = BTreeSet::new();
    for entry in fs::read_dir(&corpus).expect("the corpus is committed") {
        let input = fs::read(entry.expect("an entry").path()).expect("a file");
        kinds.extend(input.first().map(|kind| usize::from(*kind)));
        wire::read(&input);
    }
    let all: BTreeSet<usize> = (0..wire::KINDS.len()).collect();
    assert!(kinds.is_superset(&all), "not every kind has an input: {kinds:?}");
}
