//! What programs use, seen from a collection.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};

use super::*;
use crate::{GcOptions, Store, Text};

fn texts(store: &Store, names: &[&str]) -> Vec<StorePath> {
    let text = |name: &&str| {
        let references = BTreeSet::new();
        let path =
            tvix_node_protocol::nix::store_path::build_text_path(name, name.as_bytes(), &references).unwrap();
        let content = name.as_bytes().to_vec();
        Text {
            path,
            references,
            content,
        }
    };
    let texts: Vec<Text> = names.iter().map(text).collect();
    store.add_texts(&texts, &store.lease()).unwrap();
    texts.into_iter().map(|text| text.path).collect()
}

fn names(home: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(home.join(FOLDER)).unwrap();
    let name = |entry: io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    entries.map(name).collect()
}

#[test]
fn what_a_program_uses_stays_until_the_last_process_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("home")).unwrap();
    let paths = texts(&store, &["used", "unused"]);
    let running = Running::begin(store.home(), &[paths[0].clone()].into()).unwrap();
    running.inherit(true).unwrap();
    let mut program = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    running.inherit(false).unwrap();
    let mut other = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();

    assert_eq!(store.gc(&GcOptions::default()).unwrap().removed, paths[1..]);
    // Whoever started it is gone, it is not.
    drop(running);
    let dry_run = true;
    let plan = GcOptions {
        dry_run,
        ..GcOptions::default()
    };
    assert_eq!(store.gc(&plan).unwrap().removed, []);
    assert_eq!(store.gc(&GcOptions::default()).unwrap().removed, []);
    assert_eq!(names(store.home()).len(), 1);

    program.kill().unwrap();
    program.wait().unwrap();
    // One that was started beside it holds nothing.
    assert_eq!(store.gc(&GcOptions::default()).unwrap().removed, paths[..1]);
    assert_eq!(names(store.home()), Vec::<String>::new());
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn what_ends_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    drop(Running::begin(folder.path(), &BTreeSet::new()).unwrap());
    assert_eq!(names(folder.path()), Vec::<String>::new());
}

#[test]
fn one_that_is_being_made_is_not_in_the_way_and_one_that_was_never_made_goes() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join(FOLDER)).unwrap();
    let make = |name: &str| {
        let path = folder.path().join(FOLDER).join(format!("{BEGUN}{name}"));
        std::fs::write(&path, "half of a na").unwrap();
        path
    };
    let (being_made, left) = (make("1"), make("2"));
    let maker = File::open(&being_made).unwrap();
    rustix::fs::flock(maker.as_fd(), FlockOperation::LockExclusive).unwrap();
    assert_eq!(used_by_programs(folder.path()).unwrap(), BTreeSet::new());
    assert!(being_made.exists() && !left.exists());
}

#[test]
fn one_that_a_collection_took_before_it_was_locked_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let (begun, path) = (folder.path().join(".new-1"), folder.path().join("1"));
    let file = File::create(&begun).unwrap();
    assert_eq!(read_if_held(&begun).unwrap(), []);
    assert!(!begun.exists());
    assert!(Running::lock(file, &begun, path.clone(), "").unwrap().is_none());
    assert!(!path.exists());
}

#[test]
fn nothing_is_lost_to_collections_that_run_while_it_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path();
    let path = StorePath::from_basename(b"00000000000000000000000000000000-used").unwrap();
    let expected = BTreeSet::from([path]);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    used_by_programs(home).unwrap();
                }
            });
        }
        let tries: Vec<bool> = (0..300)
            .map(|_| {
                let running = Running::begin(home, &expected);
                running.is_ok_and(|_running| used_by_programs(home).is_ok_and(|used| used == expected))
            })
            .collect();
        // First, so that a failure ends the others, too.
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(tries.iter().all(|kept| *kept));
    });
    assert_eq!(names(home), Vec::<String>::new());
}

#[test]
fn a_file_that_cannot_be_understood_stops_a_collection() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("home")).unwrap();
    let paths = texts(&store, &["perhaps-used"]);
    let running = Running::begin(store.home(), &paths.iter().cloned().collect()).unwrap();
    std::fs::write(&running.path, "something else\n").unwrap();
    let error = store.gc(&GcOptions::default()).unwrap_err().to_string();
    assert!(
        error.contains("something else") && error.contains("/running/"),
        "{error}"
    );
    assert!(store.query(&paths[0]).unwrap().is_some());
}
