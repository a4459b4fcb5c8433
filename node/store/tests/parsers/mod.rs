//! What the store reads from archives, exports and its own index, from any bytes.
//!
//! The first byte says what the rest is read as. Shared by the test that replays the corpus and by the fuzzer
//! (`tests/fuzz`).

use std::sync::OnceLock;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::hash::{HashAlgorithm, NixHash, hash_bytes};
use tvix_node_protocol::path_info::Origin;
use tvix_node_store::{AddError, ContentName, GcOptions, Naming, Store, fuzzed};

/// One store for all inputs: nothing stays in it.
fn store() -> &'static Store {
    static STORE: OnceLock<(tempfile::TempDir, Store)> = OnceLock::new();
    let (_folder, store) = STORE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(&folder.path().join("home")).expect("a store");
        (folder, store)
    });
    store
}

/// How each kind is read, by the first byte.
pub const KINDS: &[fn(&[u8])] = &[
    // An archive: what is accepted is written as it came, what is not is refused at a byte.
    |bytes| {
        let naming = Naming::Content(ContentName::source("x"));
        match store().prepare_nar(&mut &*bytes, naming) {
            Ok(prepared) => {
                let info = prepared.info();
                let size = usize::try_from(info.nar_size).expect("it is in memory");
                let read = bytes.get(..size).expect("no more than there is");
                let hash = hash_bytes(HashAlgorithm::Sha256, read);
                assert_eq!(
                    hash,
                    NixHash::Sha256(info.nar_hash.0),
                    "a second archive of a tree"
                );
            }
            Err(AddError::Nar(fault)) => assert!(fault.offset <= bytes.len() as u64, "{fault}"),
            Err(error) => panic!("{error}"),
        }
    },
    // An export: what is accepted is there and whole.
    |bytes| {
        let lease = store().lease();
        if let Ok(infos) = store().import(&mut &*bytes, &Origin::Imported, &lease) {
            for info in infos {
                assert_eq!(store().verify_path(&info.path).expect("it is there"), None);
            }
            drop(lease);
            store().gc(&GcOptions::default()).expect("nothing is held");
            assert_eq!(store().count().expect("the index is read"), 0);
        }
    },
    // What the index has of a path.
    |bytes| {
        let path = StorePath::from_parts([1; 20], "x").expect("a path");
        if let Ok(written) = fuzzed::read_path_record(&path, bytes) {
            let again = fuzzed::read_path_record(&path, &written).expect("it reads what it writes");
            assert_eq!(again, written);
        }
    },
    // A key of the index: there is one for each path.
    |bytes| {
        if let Ok(written) = fuzzed::read_path_key(bytes) {
            assert_eq!(written, bytes);
        }
    },
    // Who may learn of a tree: what is written is in one order, each team once.
    |bytes| {
        if let Ok(written) = fuzzed::read_audience(bytes) {
            assert!(written.len() <= bytes.len());
            let again = fuzzed::read_audience(&written).expect("it reads what it writes");
            assert_eq!(again, written);
        }
    },
    // The hashes of a large file's parts.
    |bytes| {
        if let Ok(written) = fuzzed::read_parts(bytes) {
            assert_eq!(written, bytes);
        }
    },
    // A note of names: whatever a crash left of it.
    |bytes| {
        let written = fuzzed::read_note(bytes);
        assert_eq!(fuzzed::read_note(written.as_bytes()), written);
    },
    // What a program uses, as it is written down for a collection.
    |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Some(written) = fuzzed::read_running(&text) {
            assert_eq!(fuzzed::read_running(&written).as_ref(), Some(&written));
        }
    },
    // What a process shows of itself: every path in it is named there.
    |bytes| {
        for path in fuzzed::read_shown(bytes) {
            let name = path.to_absolute_path();
            let mut places = bytes.windows(name.len());
            assert!(places.any(|place| place == name.as_bytes()), "{name}");
        }
    },
    // An entry of any table of the index, in an index that has no other.
    |bytes| fuzzed::look_at_entry(store(), bytes).expect("an entry is put in and taken out"),
];

/// Reads an input.
pub fn read(input: &[u8]) {
    if let Some((kind, bytes)) = input.split_first()
        && let Some(read) = KINDS.get(usize::from(*kind))
    {
        read(bytes);
    }
}
