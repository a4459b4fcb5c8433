//! Collections by age, with entries that were made long ago.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;

use tvix_node_protocol::subtrees::{SUBTREE_BYTES, digest_of};
use tvix_node_protocol::tree::BlobDigest;

use super::*;
use crate::index::{SUBTREES, insert_path};
use crate::{ContentName, Naming, Text};

fn text(name: &str, content: &str, references: BTreeSet<StorePath>) -> Text {
    let path = tvix_node_protocol::nix::store_path::build_text_path(name, content.as_bytes(), &references);
    Text {
        path: path.unwrap(),
        references,
        content: content.as_bytes().to_vec(),
    }
}

/// As if everything had been added so many seconds ago.
fn make_older(store: &Store, seconds: u64) {
    let index = &store.inner.index;
    let all = index.paths_after(None, usize::MAX).unwrap();
    let rewritten = index.write(|transaction| {
        for mut record in all {
            record.info.registered -= seconds;
            insert_path(transaction, &record)?;
        }
        Ok(())
    });
    rewritten.unwrap();
}

#[test]
fn what_was_added_or_used_lately_stays() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let open = || Store::open(&home).unwrap();
    let store = open();
    let leaf = text("leaf", "leaf", BTreeSet::new());
    let user = text("user", "user", [leaf.path.clone()].into());
    let others = [
        text("one", "1", BTreeSet::new()),
        text("two", "2", BTreeSet::new()),
    ];
    let all = [&others[..], &[leaf.clone(), user.clone()]].concat();
    store.add_texts(&all, &store.lease()).unwrap();
    let young = GcOptions {
        younger_than: Some(3600),
        ..GcOptions::default()
    };
    assert_eq!(store.gc(&young).unwrap().removed, []);
    drop(store);

    let store = open();
    make_older(&store, 10_000);
    assert!(store.lease().hold_one(&user.path).unwrap().is_some());
    let dry_run = true;
    let plan = store
        .gc(&GcOptions {
            dry_run,
            ..young.clone()
        })
        .unwrap();
    assert_eq!(plan.removed.len(), 2);
    // Its use is remembered, also after the next start.
    drop(store);
    let store = open();
    assert_eq!(store.gc(&young).unwrap().removed.len(), 2);
    let paths = [&leaf.path, &user.path];
    assert_eq!(store.is_valid_many(paths).unwrap(), [true, true]);
    assert_eq!(store.gc(&GcOptions::default()).unwrap().removed.len(), 2);
}

/// Both the accepted tree of a path and one that lies beside it.
#[test]
fn a_path_is_leased_by_what_is_in_it_and_that_is_no_use() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("home")).unwrap();
    let (accepted, other) = (
        text("it", "accepted", BTreeSet::new()),
        text("it", "other", BTreeSet::new()),
    );
    store
        .add_texts(&[accepted.clone(), other], &store.lease())
        .unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "beside").unwrap();
    let beside = {
        let naming = Naming::Content(ContentName::source("beside"));
        let prepared = store.prepare_source(&file, naming).unwrap();
        store.register_unaccepted(vec![prepared], &store.lease())
    };
    let beside = beside.unwrap().remove(0);
    let tree = store.query(&accepted.path).unwrap().unwrap().tree;
    let lease = store.lease();
    assert!(lease.hold_tree(tree).unwrap() && lease.hold_tree(beside.tree).unwrap());
    assert!(!lease.hold_tree(TreeDigest([7; 32])).unwrap());
    assert!(store.inner.leases.take_uses().is_empty());
    let report = store.gc(&GcOptions::default()).unwrap();
    assert_eq!((report.removed.len(), report.removed_unaccepted.len()), (1, 0));
    drop(lease);
    let report = store.gc(&GcOptions::default()).unwrap();
    assert_eq!((report.removed.len(), report.removed_unaccepted.len()), (1, 1));
    assert!(!store.lease().hold_tree(beside.tree).unwrap());
}

#[test]
fn what_was_not_used_for_longest_goes_first() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("home")).unwrap();
    let texts: Vec<Text> = (0..6)
        .map(|number| text("text", &number.to_string(), BTreeSet::new()))
        .collect();
    for text in &texts {
        store
            .add_texts(std::slice::from_ref(text), &store.lease())
            .unwrap();
        make_older(&store, 10);
    }
    // The third was used since.
    assert!(store.lease().hold_one(&texts[2].path).unwrap().is_some());
    let size = store.query(&texts[0].path).unwrap().unwrap().nar_size;
    let most = Some(size * 3);
    let report = store
        .gc(&GcOptions {
            most,
            ..GcOptions::default()
        })
        .unwrap();
    let expected = [0, 1, 3].map(|number: usize| texts[number].path.clone());
    assert_eq!(report.removed, expected);
    assert_eq!(report.kept, 3);
}

#[test]
fn what_was_leased_while_programs_are_looked_at_stays_leased_until_it_is_decided() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("home")).unwrap();
    let texts = ["before", "since", "ever"].map(|name| text(name, name, BTreeSet::new()));
    let leased = |text: &Text| {
        let lease = store.lease();
        store.add_texts(std::slice::from_ref(text), &lease).unwrap();
        lease
    };
    let in_use = || InUse::new(&store.inner.leases.lock(), BTreeMap::new()).leased;
    let paths =
        |texts: &[Text]| -> HashSet<StorePath> { texts.iter().map(|text| text.path.clone()).collect() };
    let before = leased(&texts[0]);
    let watch = store.inner.leases.watch();
    drop(before);
    drop(leased(&texts[1]));
    let ever = leased(&texts[2]);
    assert_eq!(in_use(), paths(&texts));
    // Another collection does not end what this one needs.
    assert_eq!(store.gc(&GcOptions::default()).unwrap().removed, []);
    assert_eq!(in_use(), paths(&texts));
    drop(watch);
    assert_eq!(in_use(), paths(&texts[2..]));
    drop(ever);
    assert_eq!(store.gc(&GcOptions::default()).unwrap().removed.len(), 3);
}

#[test]
fn the_hashes_of_a_large_files_parts_stay_as_long_as_a_path_has_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let store = Store::open(&home).unwrap();
    let bytes: Vec<u8> = (0..SUBTREE_BYTES * 2 + 77).map(|at| (at >> 5) as u8).collect();
    let blob = BlobDigest::of(&bytes);
    assert!(store.blob_subtrees(&blob).unwrap().is_empty());
    let add = |name: &str, executable: bool| {
        let source = folder.path().join(name);
        std::fs::write(&source, &bytes).unwrap();
        let mode = if executable { 0o755 } else { 0o644 };
        std::fs::set_permissions(&source, std::fs::Permissions::from_mode(mode)).unwrap();
        let naming = Naming::Content(ContentName::source(name));
        store.add_source(&source, naming, &store.lease()).unwrap().path
    };
    let (plain, executable) = (add("plain", false), add("executable", true));
    let parts = || store.blob_subtrees(&blob).unwrap();
    assert_eq!(digest_of(&parts()), Some(blob));
    store.inner.index.assert_consistent();
    for (kept, left) in [(Some(&executable), 1), (None, 0)] {
        let lease = store.lease();
        kept.map(|path| lease.hold_one(path).unwrap());
        store.gc(&GcOptions::default()).unwrap();
        assert_eq!(store.query(&plain).unwrap(), None);
        assert_eq!(parts().len(), 3 * left);
        store.inner.index.assert_consistent();
    }
    // What is damaged or forged in the index is an error.
    let damaged = store.inner.index.write(|transaction| {
        transaction
            .open_table(SUBTREES)?
            .insert(&blob.0, [0; 33].as_slice())?;
        Ok(())
    });
    damaged.unwrap();
    let error = store.blob_subtrees(&blob).unwrap_err().to_string();
    assert!(error.contains("hashes of a file's parts"), "{error}");
}
