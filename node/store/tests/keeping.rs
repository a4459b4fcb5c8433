//! What a collection keeps and what it takes.

#![allow(clippy::unwrap_used)]

mod samples;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;

use samples::{home_entries, path, source, store, text, write_sample};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::path_info::Origin;
use tvix_node_protocol::tree::BlobDigest;
use tvix_node_store::{GcOptions, PinError, RootError, ScratchOutput, Store, Text};

fn collect(store: &Store) -> BTreeSet<StorePath> {
    let report = store.gc(&GcOptions::default()).unwrap();
    assert!(report.failures.is_empty());
    report.removed.into_iter().collect()
}

fn valid(store: &Store, texts: &[&Text]) -> Vec<bool> {
    store.is_valid_many(texts.iter().map(|text| &text.path)).unwrap()
}

#[test]
fn what_nothing_reaches_goes_and_what_is_reached_stays() {
    let (folder, store) = store();
    let leaf = text("leaf", b"leaf", &[]);
    let rooted = text("rooted", b"rooted", &[&leaf]);
    let leased = text("leased", b"leased", &[]);
    let user = text("user", b"user", &[&rooted]);
    let all = [leaf.clone(), rooted.clone(), leased.clone(), user.clone()];
    let adding = store.lease();
    store.add_texts(&all, &adding).unwrap();
    assert!(collect(&store).is_empty(), "everything is leased");

    store
        .add_root(&folder.path().join("result"), &rooted.path)
        .unwrap();
    let lease = store.lease();
    assert!(lease.hold_one(&leased.path).unwrap().is_some());
    drop(adding);
    assert_eq!(collect(&store), BTreeSet::from([user.path.clone()]));
    assert_eq!(
        valid(&store, &[&leaf, &rooted, &leased, &user]),
        [true, true, true, false]
    );
    assert!(!store.physical(&user.path).exists());
    assert_eq!(store.referrers(&rooted.path).unwrap(), []);

    drop(lease);
    fs::remove_file(folder.path().join("result")).unwrap();
    let report = store.gc(&GcOptions::default()).unwrap();
    assert_eq!(report.stale_roots, [folder.path().join("result")]);
    assert_eq!(report.removed.len(), 3);
    assert_eq!((report.kept, store.count().unwrap()), (0, 0));
    assert_eq!(home_entries(&store), Vec::<String>::new());
    assert!(store.open_blob(&BlobDigest::of(b"leaf")).unwrap().is_none());
    assert_eq!(store.roots().unwrap(), []);
}

#[test]
fn what_is_pinned_stays_with_what_it_refers_to_until_it_is_unpinned() {
    let (folder, store) = store();
    let leaf = text("leaf", b"leaf", &[]);
    let pinned = text("pinned", b"pinned", &[&leaf]);
    let other = text("other", b"other", &[]);
    let all = [leaf.clone(), pinned.clone(), other.clone()];
    store.add_texts(&all, &store.lease()).unwrap();
    assert_eq!(store.pins().unwrap(), []);
    let absent = path("absent");
    // One that is refused refuses all.
    let error = store.pin(&[pinned.path.clone(), absent.clone()]).unwrap_err();
    assert!(
        matches!(&error, PinError::NotValid(path) if *path == absent),
        "{error}"
    );
    assert_eq!(store.pins().unwrap(), []);
    // Twice is once.
    let twice = [pinned.path.clone(), pinned.path.clone()];
    store.pin(&twice).unwrap();
    store.pin(&twice).unwrap();
    drop(store);

    let store = Store::open(&folder.path().join("home")).unwrap();
    let pins = store.pins().unwrap();
    assert_eq!(
        pins.iter().map(|pin| &pin.path).collect::<Vec<_>>(),
        [&pinned.path]
    );
    let dry_run = GcOptions {
        dry_run: true,
        ..GcOptions::default()
    };
    for options in [dry_run, GcOptions::default()] {
        let report = store.gc(&options).unwrap();
        assert_eq!(report.removed, std::slice::from_ref(&other.path));
        assert_eq!(report.pins, std::slice::from_ref(&pinned.path));
    }
    let error = store
        .unpin(&[pinned.path.clone(), leaf.path.clone()])
        .unwrap_err();
    assert!(
        matches!(&error, PinError::NotPinned(path) if *path == leaf.path),
        "{error}"
    );
    assert!(collect(&store).is_empty());
    store.unpin(&twice).unwrap();
    assert_eq!(collect(&store), BTreeSet::from([leaf.path, pinned.path]));
    assert_eq!(store.pins().unwrap(), []);
}

#[test]
fn a_dry_run_says_the_same_and_takes_nothing() {
    let (folder, store) = store();
    write_sample(&folder.path().join("sample"));
    let info = store
        .add_source(&folder.path().join("sample"), source("sample"), &store.lease())
        .unwrap();
    let dry = GcOptions {
        dry_run: true,
        ..GcOptions::default()
    };
    let foreseen = store.gc(&dry).unwrap();
    assert_eq!(store.query(&info.path).unwrap(), Some(info.clone()));
    assert_eq!(
        store.dump_nar(&info.path, &mut Vec::new()).unwrap(),
        info.nar_size
    );
    let done = store.gc(&GcOptions::default()).unwrap();
    assert_eq!((foreseen.removed, foreseen.bytes), (done.removed, done.bytes));
    assert_eq!(done.bytes, info.nar_size);
}

#[test]
fn what_went_is_told_though_old_logs_cannot_be_looked_at() {
    let (_folder, store) = store();
    let gone = text("gone", b"gone", &[]);
    store
        .add_texts(std::slice::from_ref(&gone), &store.lease())
        .unwrap();
    let logs = store.home().join("log");
    fs::write(&logs, "not the folder of logs").unwrap();
    let report = store.gc(&GcOptions::default()).unwrap();
    assert_eq!(report.removed, [gone.path]);
    let [failure] = &report.failures[..] else {
        panic!("{:?}", report.failures);
    };
    assert_eq!(failure.path, logs);
}

#[test]
fn a_collection_that_stops_early_leaves_whole_closures() {
    let (_folder, store) = store();
    let a = text("a", &[b'a'; 5000], &[]);
    let b = text("b", &[b'b'; 5000], &[&a]);
    let c = text("c", &[b'c'; 5000], &[&b]);
    let infos = store
        .add_texts(&[a.clone(), b.clone(), c.clone()], &store.lease())
        .unwrap();
    let some = GcOptions {
        most: Some(infos[0].nar_size + 1),
        ..GcOptions::default()
    };
    let report = store.gc(&some).unwrap();
    assert_eq!(report.removed, [c.path.clone(), b.path.clone()]);
    assert_eq!(valid(&store, &[&a, &b, &c]), [true, false, false]);
    assert_eq!(report.kept, 1);
}

#[test]
fn a_file_shared_with_a_tree_that_goes_is_still_found() {
    let (folder, store) = store();
    let lease = store.lease();
    for name in ["one", "two"] {
        write_sample(&folder.path().join(name));
        fs::write(folder.path().join(name).join("own"), name).unwrap();
    }
    let one = store
        .add_source(&folder.path().join("one"), source("one"), &store.lease())
        .unwrap();
    let two = store
        .add_source(&folder.path().join("two"), source("two"), &lease)
        .unwrap();
    assert_eq!(collect(&store), BTreeSet::from([one.path.clone()]));
    assert!(store.open_blob(&BlobDigest::of(b"one")).unwrap().is_none());
    assert!(
        store
            .open_blob(&BlobDigest::of(b"some text\n"))
            .unwrap()
            .is_some()
    );
    assert_eq!(store.dump_nar(&two.path, &mut Vec::new()).unwrap(), two.nar_size);
    assert!(store.tree(&one.tree).unwrap().is_none());
    assert!(store.tree(&two.tree).unwrap().is_some());
    // And what went can come again.
    let again = store
        .add_source(&folder.path().join("one"), source("one"), &lease)
        .unwrap();
    assert_eq!(again.tree, one.tree);
    assert_eq!(store.dump_nar(&one.path, &mut Vec::new()).unwrap(), one.nar_size);
}

#[test]
fn trees_kept_beside_last_as_long_as_a_lease_on_their_path() {
    let (folder, store) = store();
    write_sample(&folder.path().join("sample"));
    let sample = folder.path().join("sample");
    let output = ScratchOutput {
        path: path("out"),
        scratch: &sample,
        ca: None,
        scanned: true,
    };
    let prepared = store
        .prepare_built(&[output], &BTreeSet::new(), &path("out.drv"), &Origin::Built)
        .unwrap();
    let lease = store.lease();
    let info = store.register_unaccepted(prepared, &lease).unwrap().remove(0);
    assert!(collect(&store).is_empty());
    assert_eq!(store.unaccepted(&info.path).unwrap().len(), 1);
    drop(lease);
    let report = store.gc(&GcOptions::default()).unwrap();
    assert_eq!(report.removed_unaccepted, [(info.path.clone(), info.tree)]);
    assert_eq!(home_entries(&store), Vec::<String>::new());
}

/// A lease may be taken before there is anything: then there is no moment in which it could go.
#[test]
fn a_path_leased_before_it_is_added_is_not_collected() {
    let (_folder, store) = store();
    let it = text("it", b"it", &[]);
    let lease = store.lease();
    assert_eq!(lease.hold_one(&it.path).unwrap(), None);
    store
        .add_texts(std::slice::from_ref(&it), &store.lease())
        .unwrap();
    assert!(collect(&store).is_empty());
    drop(lease);
    assert_eq!(collect(&store), BTreeSet::from([it.path]));
}

#[test]
fn a_root_is_a_link_to_the_tree_and_follows_it() {
    let (folder, store) = store();
    let (a, b) = (text("a", b"a", &[]), text("b", b"b", &[]));
    let lease = store.lease();
    store.add_texts(&[a.clone(), b.clone()], &lease).unwrap();
    let link = folder.path().join("result");
    store.add_root(&link, &a.path).unwrap();
    assert_eq!(fs::read(&link).unwrap(), b"a");
    store.add_root(&link, &b.path).unwrap();
    assert_eq!(fs::read(&link).unwrap(), b"b");
    let roots = store.roots().unwrap();
    assert_eq!(roots.len(), 1);
    assert_eq!((&roots[0].link, &roots[0].path), (&link, &b.path));
    drop(lease);
    assert_eq!(collect(&store), BTreeSet::from([a.path.clone()]));
    // A user may point the link elsewhere; what counts is where it points.
    let lease = store.lease();
    store.add_texts(std::slice::from_ref(&a), &lease).unwrap();
    drop(lease);
    fs::remove_file(&link).unwrap();
    symlink(a.path.to_absolute_path(), &link).unwrap();
    assert_eq!(collect(&store), BTreeSet::from([b.path]));
}

#[test]
fn a_link_that_a_killed_process_left_is_in_nobodys_way() {
    let (folder, store) = store();
    let (a, b) = (text("a", b"a", &[]), text("b", b"b", &[]));
    store.add_texts(&[a.clone(), b.clone()], &store.lease()).unwrap();
    let link = folder.path().join("result");
    store.add_root(&link, &a.path).unwrap();
    let left = folder.path().join("result.new-root");
    symlink(store.physical(&a.path), &left).unwrap();
    store.add_root(&link, &b.path).unwrap();
    assert_eq!(fs::read(&link).unwrap(), b"b");
    assert!(fs::symlink_metadata(&left).is_err());
    // What is not such a link is not removed.
    fs::write(&left, "mine").unwrap();
    let result = store.add_root(&link, &a.path);
    assert!(matches!(result, Err(RootError::File(_))), "{result:?}");
    let error = result.unwrap_err().to_string();
    assert!(error.contains("result.new-root"), "{error}");
    assert_eq!(fs::read(&left).unwrap(), b"mine");
    assert_eq!(fs::read(&link).unwrap(), b"b");
}

#[test]
fn nothing_of_the_users_is_replaced_by_a_root() {
    let (folder, store) = store();
    let a = text("a", b"a", &[]);
    let lease = store.lease();
    store.add_texts(std::slice::from_ref(&a), &lease).unwrap();
    let (file, foreign) = (folder.path().join("file"), folder.path().join("foreign"));
    fs::write(&file, "mine").unwrap();
    symlink("/usr", &foreign).unwrap();
    for occupied in [&file, &foreign] {
        let result = store.add_root(occupied, &a.path);
        assert!(matches!(result, Err(RootError::Occupied(_))), "{result:?}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    let result = store.add_root(std::path::Path::new("relative"), &a.path);
    assert!(matches!(result, Err(RootError::Relative(_))));
    let result = store.add_root(&folder.path().join("gone"), &path("gone"));
    assert!(matches!(result, Err(RootError::NotValid(_))));
    assert!(fs::symlink_metadata(folder.path().join("gone")).is_err());
    assert_eq!(store.roots().unwrap(), []);
}

/// Sources of 1,000 bytes and more, each larger than the one before.
fn numbered(store: &Store, count: usize) -> Vec<tvix_node_protocol::path_info::PathInfo> {
    let texts: Vec<Text> = (0..count)
        .map(|number| text("text", &vec![b'x'; 1000 + number], &[]))
        .collect();
    store.add_texts(&texts, &store.lease()).unwrap()
}

#[test]
fn a_collection_stops_at_the_size_it_is_to_reach() {
    let (_folder, store) = store();
    let infos = numbered(&store, 6);
    let total: u64 = infos.iter().map(|info| info.nar_size).sum();
    let sized = |target, dry_run| GcOptions {
        target: Some(target),
        dry_run,
        ..GcOptions::default()
    };
    assert_eq!(store.gc(&sized(total, false)).unwrap().removed, []);
    let target = total / 2;
    let planned = store.gc(&sized(target, true)).unwrap();
    assert_eq!(store.count().unwrap(), 6, "a dry run takes nothing");
    let report = store.gc(&sized(target, false)).unwrap();
    assert_eq!((&report.removed, report.bytes), (&planned.removed, planned.bytes));
    let left = total - report.bytes;
    let last = infos
        .iter()
        .find(|info| report.removed.last() == Some(&info.path));
    assert!(
        left <= target && left + last.unwrap().nar_size > target,
        "no more than needed"
    );
    assert_eq!(report.kept, 6 - report.removed.len() as u64);
}
