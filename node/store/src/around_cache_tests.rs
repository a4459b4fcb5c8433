#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;

use super::*;
use crate::buffers::{ALIGNMENT, Buffers};
use crate::faults::{Faults, Plan, Step};
use crate::limits::{AROUND_CACHE_FROM, NAR_BUFFER};
use crate::{ContentName, Naming, Store};

/// As many bytes, of which no two pages are equal.
fn bytes(length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

fn new_file(folder: &Path) -> Option<(PathBuf, OwnedFd, AroundCache)> {
    let (disk, path) = (Disk::default(), folder.join("file"));
    let file = disk.make(&path, 0o600).unwrap();
    let around = AroundCache::begin(&disk, &file);
    if around.is_none() {
        eprintln!(
            "SKIPPED: '{}' lies on a file system without O_DIRECT",
            path.display()
        );
    }
    Some((path, file, around?))
}

fn naming() -> Naming {
    Naming::Content(ContentName::source("large"))
}

#[test]
fn pieces_and_a_rest_of_any_length_are_one_file() {
    for rest in [0, 1, 511, ALIGNMENT, ALIGNMENT + 1, NAR_BUFFER - 1] {
        let folder = tempfile::tempdir().unwrap();
        let Some((path, file, mut around)) = new_file(folder.path()) else {
            return;
        };
        let all = bytes(3 * NAR_BUFFER as u64 + rest as u64);
        let (back, empty) = sync_channel(3);
        let (whole, last) = all.split_at(3 * NAR_BUFFER);
        for chunk in whole.chunks(NAR_BUFFER) {
            let mut buffer = Buffers::default().take();
            buffer.copy_from_slice(chunk);
            let piece = Piece::new(buffer, NAR_BUFFER, back.clone());
            around.piece(&file, piece).unwrap();
        }
        around.rest(&file, last).unwrap();
        around.rest(&file, b"and more").unwrap();
        let expected = [&all[..], b"and more"].concat();
        assert!(
            fs::read(&path).unwrap() == expected,
            "with a rest of {rest} bytes"
        );
        assert_eq!(empty.try_iter().count(), 3, "every buffer comes back, once");
    }
}

#[test]
fn bytes_that_begin_within_a_page_are_written_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let Some((path, file, mut around)) = new_file(folder.path()) else {
        return;
    };
    let mut buffer = Buffers::default().take();
    buffer.copy_from_slice(&bytes(NAR_BUFFER as u64));
    around.rest(&file, &buffer[1..2 * ALIGNMENT]).unwrap();
    around.rest(&file, &buffer[..ALIGNMENT]).unwrap();
    let expected = [&buffer[1..2 * ALIGNMENT], &buffer[..ALIGNMENT]].concat();
    assert!(fs::read(&path).unwrap() == expected);
}

#[test]
fn a_large_source_is_what_its_archive_is() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("large");
    fs::write(&source, bytes(AROUND_CACHE_FROM + 12_345)).unwrap();
    let store = Store::open(&folder.path().join("home")).unwrap();
    let added = store.add_source(&source, naming(), &store.lease()).unwrap();
    let mut archive = Vec::new();
    store.dump_nar(&added.path, &mut archive).unwrap();
    // Another store, whose files go through the cache.
    let other = Store::open(&folder.path().join("other")).unwrap();
    let same = other.add_nar(&archive[..], naming(), &other.lease()).unwrap();
    assert_eq!((same.tree, same.nar_hash), (added.tree, added.nar_hash));
}

#[test]
fn large_sources_alone_go_around_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    if new_file(folder.path()).is_none() {
        return;
    }
    let store = Store::open(&folder.path().join("home")).unwrap();
    let wants = |from_source: bool, size| {
        let inner = &store.inner;
        let temporary = crate::trees::Temporary::new(&inner.trees, inner.next_number());
        let mut writer = crate::tree_writer::TreeWriter::new(&inner.index, &inner.sharing, temporary, None);
        if from_source {
            writer.large_files_around_cache();
        }
        writer.open_file(None, false, size).unwrap();
        writer.wants_pieces()
    };
    assert!(wants(true, AROUND_CACHE_FROM));
    assert!(!wants(true, AROUND_CACHE_FROM - 1));
    assert!(
        !wants(false, AROUND_CACHE_FROM),
        "outputs and archives are about to be read"
    );
}

/// What is on the disk already is no part of what is dirty: that is others', and would have to be waited for.
#[test]
fn others_are_not_waited_for_after_a_source_that_went_around_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    if new_file(folder.path()).is_none() {
        return;
    }
    let source = folder.path().join("large");
    let file = File::create(&source).unwrap();
    file.set_len(AROUND_CACHE_FROM).unwrap();
    let store = |name| {
        let store = Store::open(&folder.path().join(name)).unwrap();
        let faults = store.inner.trees.disk.faults.clone();
        faults.set_dirty_bytes(AROUND_CACHE_FROM);
        (store, faults)
    };
    let syncs = |faults: &Faults| {
        let steps = faults.recorded().into_iter();
        let mut syncs = steps.filter(|step| matches!(step, Step::Sync | Step::SyncFile));
        syncs.next().unwrap()
    };
    let (around, faults) = store("around");
    faults.record();
    let added = around.add_source(&source, naming(), &around.lease()).unwrap();
    assert_eq!(syncs(&faults), Step::SyncFile);
    // The same through the cache is all that is dirty.
    let mut archive = Vec::new();
    around.dump_nar(&added.path, &mut archive).unwrap();
    let (through, faults) = store("through");
    faults.record();
    through.add_nar(&archive[..], naming(), &through.lease()).unwrap();
    assert_eq!(syncs(&faults), Step::Sync);
}

#[test]
fn a_write_that_fails_in_the_thread_is_the_additions_error() {
    let folder = tempfile::tempdir().unwrap();
    if new_file(folder.path()).is_none() {
        return;
    }
    let source = folder.path().join("large");
    fs::write(&source, bytes(AROUND_CACHE_FROM)).unwrap();
    let store = Store::open(&folder.path().join("home")).unwrap();
    let faults = &store.inner.trees.disk.faults;
    let pieces = AROUND_CACHE_FROM / NAR_BUFFER as u64;
    // The file is made first; its first, a middle and its last piece follow.
    for step in [1, pieces / 2, pieces] {
        faults.set(Plan::Fail(step, Errno::NOSPC));
        let error = store.add_source(&source, naming(), &store.lease()).unwrap_err();
        let error = error.to_string();
        assert!(
            error.starts_with("cannot write '") && error.contains("No space left"),
            "{error}"
        );
        faults.set(Plan::Pass);
        assert_eq!(store.inner.trees.names().unwrap(), Vec::<Vec<u8>>::new());
    }
    let added = store.add_source(&source, naming(), &store.lease()).unwrap();
    let path = added.path.to_absolute_path();
    let name = Path::new(&path).file_name().unwrap();
    let path = store.inner.trees.path().join(name);
    let (mut stored, mut given) = (Vec::new(), Vec::new());
    File::open(path).unwrap().read_to_end(&mut stored).unwrap();
    File::open(&source).unwrap().read_to_end(&mut given).unwrap();
    assert!(stored == given);
}

#[test]
fn who_ends_early_waits_for_what_is_being_written() {
    let folder = tempfile::tempdir().unwrap();
    let Some((_, file, mut around)) = new_file(folder.path()) else {
        return;
    };
    let (back, empty) = sync_channel(1);
    let piece = Piece::new(Buffers::default().take(), NAR_BUFFER, back);
    around.piece(&file, piece).unwrap();
    drop(around);
    assert_eq!(empty.try_iter().count(), 1);
    let size = rustix::fs::fstat(file.as_fd()).unwrap().st_size;
    assert_eq!(u64::try_from(size).unwrap(), NAR_BUFFER as u64);
}
