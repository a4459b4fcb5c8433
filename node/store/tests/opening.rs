//! Opening homes.

#![allow(clippy::unwrap_used)]

mod samples;

use std::fs;

use samples::{home_entries, store, text};
use tvix_node_protocol::StorePath;
use tvix_node_store::{OpenError, SCHEMA, Store};

/// A home with a text in its store, which is not open any more; the text's path.
fn closed_with_a_text() -> (tempfile::TempDir, StorePath) {
    let (folder, opened) = store();
    let text = text("text", b"text", &[]);
    opened
        .add_texts(std::slice::from_ref(&text), &opened.lease())
        .unwrap();
    (folder, text.path)
}

#[test]
fn a_newer_home_is_refused_and_not_touched() {
    let (folder, _) = closed_with_a_text();
    let home = folder.path().join("home");
    fs::write(home.join("store/schema"), format!("{}\n", SCHEMA + 1)).unwrap();
    fs::write(home.join("nix/store/.tmp-7"), "of a newer program").unwrap();
    let snapshot = || {
        let mut files: Vec<_> = fs::read_dir(home.join("store"))
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                (
                    entry.file_name(),
                    fs::read(entry.path()).unwrap(),
                    entry.metadata().unwrap().modified().unwrap(),
                )
            })
            .collect();
        files.sort();
        files
    };
    let before = snapshot();
    let error = Store::open(&home).unwrap_err();
    assert!(
        matches!(error, OpenError::Newer { found, .. } if found == SCHEMA + 1),
        "{error:?}"
    );
    let message = error.to_string();
    assert!(
        message.contains(&format!("version {}", SCHEMA + 1))
            && message.contains(&format!("version {SCHEMA}")),
        "{message}"
    );
    assert_eq!(snapshot(), before);
    assert!(home.join("nix/store/.tmp-7").exists());
}

#[test]
fn a_version_that_is_none_is_refused() {
    let (folder, opened) = store();
    drop(opened);
    let schema = folder.path().join("home/store/schema");
    fs::write(&schema, "two").unwrap();
    assert!(matches!(
        Store::open(&folder.path().join("home")),
        Err(OpenError::Schema { .. })
    ));
}

#[test]
fn a_lost_index_is_not_taken_for_an_empty_store() {
    let (folder, path) = closed_with_a_text();
    let home = folder.path().join("home");
    let (index, aside) = (home.join("store/index.redb"), folder.path().join("index"));
    fs::rename(&index, &aside).unwrap();
    let error = Store::open(&home).unwrap_err();
    assert!(matches!(error, OpenError::NoIndex { trees: 1, .. }), "{error:?}");
    let message = error.to_string();
    assert!(message.contains("index.redb' is missing") && message.contains("put the index back"));
    assert!(!index.exists());
    fs::rename(&aside, &index).unwrap();
    let opened = Store::open(&home).unwrap();
    assert!(opened.query(&path).unwrap().is_some());
}

/// Flips bits all over the index, a page at a time: an error or an answer, and never a panic.
#[test]
fn a_damaged_index_is_an_error() {
    let (folder, opened) = store();
    let texts: Vec<_> = (0..200)
        .map(|number| {
            text(
                &format!("text-{number}"),
                format!("text {number}").as_bytes(),
                &[],
            )
        })
        .collect();
    opened.add_texts(&texts, &opened.lease()).unwrap();
    let paths = opened.paths_after(None, 1000).unwrap();
    drop(opened);
    let home = folder.path().join("home");
    let index = home.join("store/index.redb");
    let whole = fs::read(&index).unwrap();
    let (mut refused, mut fine) = (0, 0);
    for page in 0..whole.len() / 4096 {
        let mut damaged = whole.clone();
        for byte in damaged[page * 4096..(page + 1) * 4096].iter_mut().step_by(3) {
            *byte ^= 0x55;
        }
        if damaged == whole {
            continue;
        }
        fs::write(&index, &damaged).unwrap();
        let looked = Store::open(&home)
            .map_err(|error| error.to_string())
            .and_then(|store| {
                let looked = paths
                    .iter()
                    .map(|path| store.query(path))
                    .collect::<Result<Vec<_>, _>>();
                looked.map_err(|error| error.to_string())
            });
        match looked {
            Ok(_) => fine += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 0 && fine > 0, "{refused} refused, {fine} fine");
}

#[test]
fn one_home_is_open_once() {
    let (folder, first) = store();
    let home = folder.path().join("home");
    let error = Store::open(&home).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error:?}");
    assert!(
        error.to_string().contains(&std::process::id().to_string()),
        "{error}"
    );
    // A lease is part of the store.
    let lease = first.lease();
    drop(first);
    assert!(matches!(Store::open(&home), Err(OpenError::InUse { .. })));
    drop(lease);
    Store::open(&home).unwrap();
}

#[test]
fn leftovers_go_and_what_is_not_ours_stays() {
    let (folder, first) = store();
    let text = text("text", b"text", &[]);
    first
        .add_texts(std::slice::from_ref(&text), &first.lease())
        .unwrap();
    drop(first);
    let home = folder.path().join("home");
    let trees = home.join("nix/store");
    fs::create_dir_all(trees.join(".tmp-12/sub/deeper")).unwrap();
    fs::write(trees.join(".tmp-12/sub/file"), "half").unwrap();
    fs::write(trees.join(".trash-3"), "old").unwrap();
    // Stock Nix, or a user, may keep something beside; only names that were noted are leftovers.
    let foreign = "00000000000000000000000000000000-foreign";
    let noted = "11111111111111111111111111111111-noted";
    fs::write(trees.join(foreign), "of somebody else").unwrap();
    fs::write(trees.join(noted), "begun, never reported").unwrap();
    let known = text.path.to_basename();
    fs::write(
        home.join("store/intent"),
        format!("{noted}\n{known}\n00000000000000000000000000000000-fo"),
    )
    .unwrap();
    let store = Store::open(&home).unwrap();
    assert_eq!(home_entries(&store), [foreign.to_owned(), known]);
    assert_eq!(fs::read(store.physical(&text.path)).unwrap(), b"text");
}

#[test]
fn a_home_that_cannot_be_made_is_an_error_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Store::open(&file.join("home")).unwrap_err();
    assert!(error.to_string().contains("file/home"), "{error}");
}
