//! In which order things reach the disk, and how many syncs that takes.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::io::Errno;

use super::place::Place;
use super::{source, text};
use crate::Text;
use crate::faults::{Faults, Plan, Step};

#[test]
fn trees_are_synced_before_they_are_named_and_named_before_anybody_is_told() {
    for (dirty, step) in [(0, Step::Sync), (u64::MAX, Step::SyncFile)] {
        synced_named_told(dirty, step);
    }
}

fn synced_named_told(dirty: u64, sync: Step) {
    let place = Place::new();
    let faults = Faults::default();
    let store = place.open(&faults, None).unwrap();
    faults.set_dirty_bytes(dirty);
    faults.record();
    store
        .add_source(&place.source("one"), source("one"), &store.lease())
        .unwrap();
    let log = faults.recorded();
    let first = |step| log.iter().position(|&logged| logged == step).unwrap();
    let last = |step| log.iter().rposition(|&logged| logged == step).unwrap();
    if sync == Step::SyncFile {
        // Six files and three directories of the tree, and the one it is in.
        let synced = log.iter().filter(|&&step| step == Step::SyncFile).count();
        assert_eq!(synced, 10, "{log:?}");
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
    let data = log[..sync].iter().filter(|&&step| step == Step::Write).count();
    assert!(data >= 6, "{log:?}");
    let named = last(Step::Rename);
    assert!(synced < named && named < last(Step::IndexSync), "{log:?}");
    assert!(last(Step::IndexWrite) < last(Step::IndexSync), "{log:?}");
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
