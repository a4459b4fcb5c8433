//! Records, logs and known sources.

#![allow(clippy::unwrap_used)]

mod samples;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;

use samples::{path, source, store, text, write_sample};
use tvix_node_protocol::build::{BuildKey, BuildRecord, BuiltOutput};
use tvix_node_protocol::envelope::{Envelope, NodeSecret, seal};
use tvix_node_protocol::path_info::{NarHash, Origin, PathInfo};
use tvix_node_store::limits::{FINGERPRINT_BYTES, RECORDS_PER_KEY};
use tvix_node_store::{AddError, Audience, GcOptions, LogError, RecordError, ScratchOutput, Store};

fn record(info: &PathInfo, secret: &NodeSecret, builder: &NodeSecret) -> Envelope {
    let output = BuiltOutput {
        path: info.path.clone(),
        tree: info.tree,
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: info.references.iter().cloned().collect(),
    };
    let record = BuildRecord {
        build_key: BuildKey([3; 32]),
        request: None,
        derivation: path("it.drv"),
        inputs: Vec::new(),
        outputs: BTreeMap::from([("out".to_owned(), output)]),
        builder: builder.key(),
        started: 1,
        finished: 2,
        sandbox: "none".to_owned(),
    };
    seal(&record, secret).unwrap()
}

fn secret(number: u8) -> NodeSecret {
    NodeSecret::from_bytes(&[number; 32])
}

#[test]
fn a_record_is_registered_with_its_outputs_and_goes_with_them() {
    let (folder, store) = store();
    write_sample(&folder.path().join("scratch"));
    let scratch = folder.path().join("scratch");
    let output = ScratchOutput {
        path: path("it"),
        scratch: &scratch,
        ca: None,
        scanned: true,
    };
    let prepared = store
        .prepare_built(&[output], &BTreeSet::new(), &path("it.drv"), &Origin::Built)
        .unwrap();
    let mine = record(prepared[0].info(), &secret(1), &secret(1));
    let lease = store.lease();
    let info = store.register_built(prepared, &mine, &lease).unwrap().remove(0);
    let theirs = record(&info, &secret(2), &secret(2));
    store.put_record(&theirs, &Audience::Everyone).unwrap();
    let of_key = store.records(&BuildKey([3; 32])).unwrap();
    assert_eq!(of_key.len(), 2);
    assert!(of_key.contains(&mine) && of_key.contains(&theirs));
    assert_eq!(store.records_of(&info.path).unwrap().len(), 2);
    assert_eq!(store.records_of(&path("other")).unwrap(), []);
    store.gc(&GcOptions::default()).unwrap();
    assert_eq!(store.records_of(&info.path).unwrap().len(), 2);
    drop(lease);
    store.gc(&GcOptions::default()).unwrap();
    assert_eq!(store.records(&BuildKey([3; 32])).unwrap(), []);
    assert_eq!(store.records_of(&info.path).unwrap(), []);
}

#[test]
fn several_are_registered_together_and_each_for_itself() {
    let (folder, store) = store();
    let prepare = |name: &str, refers_to: &str| {
        let scratch = folder.path().join(name);
        fs::write(&scratch, path(refers_to).to_string()).unwrap();
        let output = ScratchOutput {
            path: path(name),
            scratch: &scratch,
            ca: None,
            scanned: true,
        };
        let candidates = BTreeSet::from([path(refers_to)]);
        store
            .prepare_built(&[output], &candidates, &path("it.drv"), &Origin::Built)
            .unwrap()
    };
    let [first, refers, spoken_for, recorded] = [
        ("first", "first"),
        ("refers", "nothing"),
        ("spoken-for", "first"),
        ("recorded", "first"),
    ]
    .map(|(name, refers_to)| prepare(name, refers_to));
    let by_another = record(spoken_for[0].info(), &secret(1), &secret(2));
    let own = record(recorded[0].info(), &secret(1), &secret(1));
    let several = vec![
        (first, None),
        (refers, None),
        (spoken_for, Some(by_another)),
        (recorded, Some(own.clone())),
    ];
    let results = store.register_each(several, &store.lease());
    let missing = path("nothing");
    assert!(
        matches!(&results[..], [
            Ok(_),
            Err(RecordError::Add(AddError::MissingReference { reference, .. })),
            Err(RecordError::Signer { .. }),
            Ok(_),
        ] if *reference == missing),
        "{results:?}"
    );
    let there = |name: &str| store.query(&path(name)).unwrap().is_some();
    let names = ["first", "refers", "spoken-for", "recorded"];
    assert_eq!(names.map(there), [true, false, false, true]);
    assert_eq!(store.records_of(&path("recorded")).unwrap(), [own]);
    assert!(store.register_each(Vec::new(), &store.lease()).is_empty());
}

#[test]
fn a_build_has_records_of_so_many_builders_and_no_more() {
    let (folder, store) = store();
    let lease = store.lease();
    write_sample(&folder.path().join("sample"));
    let info = store
        .add_source(&folder.path().join("sample"), source("sample"), &lease)
        .unwrap();
    let of = |number: usize| {
        let secret = secret(u8::try_from(number).unwrap());
        store.put_record(&record(&info, &secret, &secret), &Audience::Everyone)
    };
    for number in 0..RECORDS_PER_KEY {
        of(number).unwrap();
    }
    assert!(matches!(of(RECORDS_PER_KEY), Err(RecordError::TooMany)));
    // One that is there is not one more.
    of(0).unwrap();
    assert_eq!(store.records(&BuildKey([3; 32])).unwrap().len(), RECORDS_PER_KEY);
}

#[test]
fn a_record_that_speaks_for_somebody_else_is_refused() {
    let (_folder, store) = store();
    let info = PathInfo {
        path: path("it"),
        tree: "00".repeat(32).parse().unwrap(),
        nar_hash: NarHash([0; 32]),
        nar_size: 1,
        references: BTreeSet::new(),
        deriver: None,
        ca: None,
        origin: Origin::Built,
        registered: 0,
        signatures: Vec::new(),
    };
    let forged = record(&info, &secret(1), &secret(2));
    assert!(matches!(
        store.put_record(&forged, &Audience::Everyone),
        Err(RecordError::Signer { .. })
    ));
    let mut changed = record(&info, &secret(1), &secret(1));
    changed.payload[5] ^= 1;
    assert!(matches!(
        store.put_record(&changed, &Audience::Everyone),
        Err(RecordError::Envelope(_))
    ));
    assert_eq!(store.records_of(&info.path).unwrap(), []);
}

#[test]
fn a_log_is_read_while_it_is_written_and_after() {
    let (_folder, store) = store();
    let derivation = path("it.drv");
    assert!(matches!(store.open_log(&derivation), Err(LogError::None(_))));
    let mut log = store.create_log(&derivation, None).unwrap();
    log.write(b"one\ntwo\n").unwrap();
    let read = || {
        let mut text = String::new();
        store
            .open_log(&derivation)
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    };
    assert_eq!(read(), "one\ntwo\n");
    log.write(b"three\n").unwrap();
    log.finish().unwrap();
    assert_eq!(read(), "one\ntwo\nthree\n");
    assert_eq!(store.log_tail(&derivation, 2).unwrap(), ["two", "three"]);
    // A later build's log is the one that counts, also where it did not end well.
    let mut log = store.create_log(&derivation, None).unwrap();
    log.write(b"again\xff").unwrap();
    drop(log);
    assert_eq!(store.log_tail(&derivation, 25).unwrap(), ["again\u{fffd}"]);
    // One that was given up never was.
    let mut log = store.create_log(&derivation, None).unwrap();
    log.write(b"of no use").unwrap();
    log.discard().unwrap();
    assert_eq!(store.log_tail(&derivation, 25).unwrap(), ["again\u{fffd}"]);
}

#[test]
fn a_log_that_a_killed_node_was_writing_is_kept_until_the_next_one() {
    let (folder, store) = store();
    let derivation = path("it.drv");
    let finish = |store: &Store, text: &str| {
        let mut log = store.create_log(&derivation, None).unwrap();
        log.write(text.as_bytes()).unwrap();
        log.finish().unwrap();
    };
    finish(&store, "before");
    let log = store.home().join("log");
    drop(store);
    let left = |number: u32, seconds: u64, text: &str| {
        let file = log
            .join("running")
            .join(format!("{number}-{}", derivation.to_basename()));
        fs::write(&file, text).unwrap();
        let written = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let file = fs::File::options().write(true).open(file).unwrap();
        file.set_modified(written).unwrap();
    };
    left(7, 1_000, "earlier");
    left(0, 2_000, "cut short");
    fs::write(log.join("running/what"), "is this").unwrap();
    let store = Store::open(&folder.path().join("home")).unwrap();
    assert_eq!(fs::read_dir(log.join("running")).unwrap().count(), 0);
    assert_eq!(store.log_tail(&derivation, 9).unwrap(), ["cut short"]);
    finish(&store, "after");
    assert_eq!(store.log_tail(&derivation, 9).unwrap(), ["after"]);
}

#[test]
fn a_log_ends_at_its_limit() {
    let (_folder, store) = store();
    let mut log = store.create_log(&path("it.drv"), Some(10)).unwrap();
    log.write(b"12345").unwrap();
    let result = log.write(b"6789012345");
    assert!(matches!(result, Err(LogError::Full { limit: 10 })), "{result:?}");
    assert!(matches!(log.write(b"x"), Err(LogError::Full { .. })));
    log.finish().unwrap();
    assert_eq!(store.log_tail(&path("it.drv"), 5).unwrap(), ["1234567890"]);
}

#[test]
fn a_known_source_is_found_as_long_as_it_is_valid() {
    let (folder, store) = store();
    write_sample(&folder.path().join("sample"));
    let lease = store.lease();
    assert_eq!(store.source("print", &lease).unwrap(), None);
    let info = store
        .add_source(&folder.path().join("sample"), source("sample"), &store.lease())
        .unwrap();
    store.remember_source("print", &info.path).unwrap();
    let found = store.source("print", &lease).unwrap();
    assert_eq!(found.as_ref(), Some(&info));
    assert!(
        store.gc(&GcOptions::default()).unwrap().removed.is_empty(),
        "it is leased with the answer"
    );
    drop(lease);
    store.gc(&GcOptions::default()).unwrap();
    assert_eq!(store.source("print", &store.lease()).unwrap(), None);
    store
        .remember_source(&"x".repeat(FINGERPRINT_BYTES), &info.path)
        .unwrap();
    assert!(
        store
            .remember_source(&"x".repeat(FINGERPRINT_BYTES + 1), &info.path)
            .is_err()
    );
}

#[test]
fn remembered_sources_outlast_the_process() {
    let (folder, store) = store();
    let text = text("text", b"text", &[]);
    store
        .add_texts(std::slice::from_ref(&text), &store.lease())
        .unwrap();
    store.remember_source("print", &text.path).unwrap();
    drop(store);
    let store = tvix_node_store::Store::open(&folder.path().join("home")).unwrap();
    assert!(store.source("print", &store.lease()).unwrap().is_some());
    assert!(fs::metadata(store.physical(&text.path)).is_ok());
}
