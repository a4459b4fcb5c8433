//! In which order things reach the disk, and how many syncs that takes.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::io::Errno;
use tvix_node_protocol::path_info::Origin;

use super::place::{How, Peer, Place};
use super::{source, text};
use crate::faults::{Faults, Plan, Step};
use crate::{Naming, Store, Text};

/// A way for trees to come into a store that has none, and how many objects are synced one by one then: every file and
/// directory, and the one that all trees are in.
type Way = (fn(&Store, &Place), usize);

#[test]
fn trees_are_synced_before_they_are_named_and_named_before_anybody_is_told() {
    let added: Way = (
        |store, place| {
            let at = place.source("one");
            store.add_source(&at, source("one"), &store.lease()).unwrap();
        },
        10,
    );
    let imported: Way = (
        |store, place| {
            let export = peer(place, How::InMemory).export(&["low", "high", "exported"]);
            let export = export.unwrap();
            store
                .import(&mut &export[..], &Origin::Imported, &store.lease())
                .unwrap();
        },
        12,
    );
    let in_memory: Way = (|store, place| arrive(store, place, How::InMemory), 10);
    let given: Way = (|store, place| arrive(store, place, How::Given), 10);
    let in_parts: Way = (|store, place| arrive(store, place, How::InParts), 10);
    for way in [added, imported, in_memory, given, in_parts] {
        for (dirty, step) in [(0, Step::Sync), (u64::MAX, Step::SyncFile)] {
            synced_named_told(way, dirty, step);
        }
    }
}

fn peer(place: &Place, how: How) -> Peer<'_> {
    let store = place.theirs();
    Peer { store, place, how }
}

fn arrive(store: &Store, place: &Place, how: How) {
    let peer = peer(place, how);
    let info = peer.info("sent").unwrap();
    let prepared = store.prepare_arrived(info.tree, &peer, Naming::Known(info.clone()));
    store.register(vec![prepared.unwrap()], &store.lease()).unwrap();
}

fn synced_named_told((act, objects): Way, dirty: u64, sync: Step) {
    let place = Place::new();
    let faults = Faults::default();
    let store = place.open(&faults, None).unwrap();
    faults.set_dirty_bytes(dirty);
    faults.record();
    act(&store, &place);
    let log = faults.recorded();
    let first = |step| log.iter().position(|&logged| logged == step).unwrap();
    let last = |step| log.iter().rposition(|&logged| logged == step).unwrap();
    if sync == Step::SyncFile {
        let synced = log.iter().filter(|&&step| step == Step::SyncFile).count();
        assert_eq!(synced, objects, "{log:?}");
    }
    let (sync, synced) = (first(sync), last(sync));
    for step in [
        Step::MakeDirectory,
        Step::MakeFile,
        Step::MakeSymlink,
        Step::Canonicalise,
    ] {
        assert!(last(step) < sync, "{step:?} after the sync: {log:?}");
    }
    if let Some(taken) = log.iter().rposition(|&logged| logged == Step::HardLink) {
        assert!(taken < sync, "taken over after the sync: {log:?}");
    }
    // A file that was given is not written again.
    let data = |step: &&Step| matches!(step, Step::Write | Step::HardLink);
    assert!(log[..sync].iter().filter(data).count() >= 6, "{log:?}");
    let named = last(Step::Rename);
    assert!(synced < named && named < last(Step::IndexSync), "{log:?}");
    assert!(last(Step::IndexWrite) < last(Step::IndexSync), "{log:?}");
}

/// The index says all along that there is a whole tree.
#[test]
fn a_whole_tree_is_synced_before_it_takes_the_place_of_a_damaged_one() {
    for dirty in [0, u64::MAX] {
        let place = Place::new();
        let faults = Faults::default();
        let store = place.open(&faults, None).unwrap();
        arrive(&store, &place, How::InMemory);
        let peer = peer(&place, How::Given);
        let path = peer.info("sent").unwrap().path;
        faults.set_dirty_bytes(dirty);
        faults.record();
        store.repair(&path, &peer).unwrap();
        let log = faults.recorded();
        let placed = log.iter().rposition(|&step| step == Step::Rename).unwrap();
        let written = |step: &Step| matches!(step, Step::Write | Step::MakeFile | Step::Canonicalise);
        // The note of names is written between: it names nothing.
        let made = |step: &Step| matches!(step, Step::MakeFile | Step::Canonicalise);
        let synced = log[..placed]
            .iter()
            .rposition(|step| matches!(step, Step::Sync | Step::SyncFile))
            .unwrap();
        assert!(log[..synced].iter().any(written), "{log:?}");
        assert!(!log[synced..].iter().any(made), "{log:?}");
        assert!(log[placed..].contains(&Step::SyncFile), "{log:?}");
    }
}

#[test]
fn many_texts_share_the_syncs() {
    let place = Place::new();
    let faults = Faults::default();
    let store = place.open(&faults, None).unwrap();
    let texts: Vec<Text> = (0..50)
        .map(|number| text("text", &number.to_string(), &[]))
        .collect();
    faults.record();
    store.add_texts(&texts, &store.lease()).unwrap();
    let log = faults.recorded();
    let syncs = |log: &[Step], wanted| log.iter().filter(|&&step| step == wanted).count();
    assert_eq!((syncs(&log, Step::Sync), syncs(&log, Step::SyncFile)), (1, 0));
    assert!(log.iter().filter(|&&step| step == Step::IndexSync).count() <= 2);
}

#[test]
fn a_file_that_has_all_the_links_it_may_have_is_followed_by_a_new_one() {
    let place = Place::new();
    let faults = Faults::default();
    let store = place.open(&faults, None).unwrap();
    let lease = store.lease();
    let add = |name: &str| {
        let text = text(name, "the same bytes", &[]);
        let info = store.add_texts(&[text], &lease).unwrap().remove(0);
        fs::metadata(store.physical(&info.path)).unwrap()
    };
    let first = add("first");
    // The first time, the store finds out how files can be shared here.
    add("before");
    faults.record();
    let second = add("second");
    let log = faults.recorded();
    let Some(link) = log.iter().position(|&step| step == Step::HardLink) else {
        println!("SKIPPED: links past their number, because this file system shares extents instead");
        return;
    };
    assert_eq!(first.ino(), second.ino());
    faults.set(Plan::Fail(u64::try_from(link).unwrap(), Errno::MLINK));
    let third = add("third");
    assert_ne!(third.ino(), first.ino());
    // What comes later is linked to the newest, which has room.
    assert_eq!(add("fourth").ino(), third.ino());
}
