//! Trees that take more of the disk than their archives say: on a file system of the test's own, in a mount namespace of
//! its own, since a full one would fail other tests.

#![allow(clippy::unwrap_used)]

mod samples;

use std::fs;
use std::path::Path;
use std::process::Command;

use samples::{home_entries, source, text};
use tvix_node_store::{AddError, GcOptions, Store};

/// Where this file runs itself again: the folder that the file system is mounted on.
const INSIDE: &str = "TVIX_NODE_TEST_SMALL_DISK";

/// Runs a test again with a file system of this kind, where this machine allows it.
fn run_again(test: &str, options: &str) {
    let folder = tempfile::tempdir().unwrap();
    let within = |then: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
        command.arg(format!(
            "mount -t tmpfs -o {options} none \"${INSIDE}\" && {then}"
        ));
        command.env(INSIDE, folder.path());
        command
    };
    match within("true").output() {
        Ok(probed) if probed.status.success() => {}
        other => return println!("SKIPPED: no file system can be mounted in a namespace here: {other:?}"),
    }
    let mut command = within("exec \"$0\" \"$@\"");
    command.arg(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--nocapture"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// So many files of a few bytes, no two the same.
fn write_many(folder: &Path, files: u32) {
    fs::create_dir(folder).unwrap();
    for number in 0..files {
        fs::write(folder.join(number.to_string()), number.to_le_bytes()).unwrap();
    }
}

/// A tree of so many files is refused, and the rest of the disk is left to others.
fn is_refused_before_the_disk_is_full(place: &Path, files: u32) {
    let sources = tempfile::tempdir().unwrap();
    let many = sources.path().join("many");
    write_many(&many, files);
    let store = Store::open(&place.join("home")).unwrap();
    let lease = store.lease();
    let error = store.prepare_source(&many, source("many")).unwrap_err();
    assert!(
        error.to_string().contains("write more of") && error.to_string().contains("free some space"),
        "{error}"
    );
    assert!(matches!(&error, AddError::Write(_)), "{error:?}");
    assert_eq!(home_entries(&store), Vec::<String>::new());
    // There is room for what is small, and for a collection.
    let texts: Vec<_> = (0..100u32)
        .map(|number| text("small", &number.to_le_bytes(), &[]))
        .collect();
    store.add_texts(&texts, &lease).unwrap();
    drop(lease);
    assert!(store.gc(&GcOptions::default()).unwrap().failures.is_empty());
}

#[test]
fn a_tree_of_small_files_does_not_fill_the_disk() {
    match std::env::var_os(INSIDE) {
        // 40 MB in blocks of 4 KiB, 2 MB as an archive.
        Some(place) => is_refused_before_the_disk_is_full(place.as_ref(), 10_000),
        None => run_again("a_tree_of_small_files_does_not_fill_the_disk", "size=64m"),
    }
}

#[test]
fn a_tree_of_many_files_does_not_take_all_that_the_disk_can_have() {
    match std::env::var_os(INSIDE) {
        Some(place) => is_refused_before_the_disk_is_full(place.as_ref(), 7_000),
        None => {
            let test = "a_tree_of_many_files_does_not_take_all_that_the_disk_can_have";
            run_again(test, "size=1g,nr_inodes=10000");
        }
    }
}

#[test]
fn a_large_file_does_not_fill_the_disk() {
    let Some(place) = std::env::var_os(INSIDE) else {
        run_again("a_large_file_does_not_fill_the_disk", "size=64m");
        return;
    };
    let sources = tempfile::tempdir().unwrap();
    let large = sources.path().join("large");
    fs::File::create(&large).unwrap().set_len(60 << 20).unwrap();
    let store = Store::open(&Path::new(&place).join("home")).unwrap();
    let error = store.prepare_source(&large, source("large")).unwrap_err();
    assert!(error.to_string().contains("write more of"), "{error}");
    assert_eq!(home_entries(&store), Vec::<String>::new());
}
