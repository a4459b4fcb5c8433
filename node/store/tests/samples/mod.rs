//! Stores, trees and texts for the tests.

#![allow(dead_code)] // No test uses all of it.

pub mod coming;
pub mod sent;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::store_path::build_text_path;
use tvix_node_store::{ContentName, Naming, Store, Text};

/// A new store, in a folder that goes with the first.
pub fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("home")).unwrap();
    (folder, store)
}

/// Some path of this name.
pub fn path(name: &str) -> StorePath {
    StorePath::from_parts([7; 20], name).unwrap()
}

/// A tree with everything that a tree can have.
pub fn write_sample(at: &Path) {
    fs::create_dir_all(at.join("bin")).unwrap();
    fs::create_dir_all(at.join("share/empty")).unwrap();
    fs::write(at.join("bin/tool"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(at.join("bin/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(at.join("share/text"), "some text\n").unwrap();
    fs::write(at.join("share/again"), "some text\n").unwrap();
    fs::write(at.join("share/nothing"), "").unwrap();
    fs::write(at.join("large"), vec![b'x'; 3 << 20]).unwrap();
    symlink("../share/text", at.join("bin/link")).unwrap();
}

/// Named as a source.
pub fn source(name: &str) -> Naming {
    Naming::Content(ContentName::source(name))
}

/// A text under its own path.
pub fn text(name: &str, content: &[u8], references: &[&Text]) -> Text {
    let references: BTreeSet<StorePath> = references.iter().map(|text| text.path.clone()).collect();
    Text {
        path: build_text_path(name, content, &references).unwrap(),
        references,
        content: content.to_vec(),
    }
}

/// Everything in the directory of trees.
pub fn home_entries(store: &Store) -> Vec<String> {
    let entries = fs::read_dir(store.home().join("nix/store")).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
