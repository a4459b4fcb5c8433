//! Adding trees by archive, by source, as texts and as build outputs.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io::BufReader;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::hash::{CAHash, HashAlgorithm, hash_bytes};
use tvix_node_protocol::nix::store_path::{build_ca_path, build_text_path};
use tvix_node_protocol::path_info::{NarHash, Origin, PathInfo};
use tvix_node_protocol::tree::{BlobDigest, Leaf, Node, PathComponent, Tree};
use tvix_node_store::{AddError, ContentName, Method, Naming, NamingError, ScratchOutput, Store, Text};

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("home")).unwrap();
    (folder, store)
}

fn path(name: &str) -> StorePath {
    StorePath::from_parts([7; 20], name).unwrap()
}

/// A tree with everything a tree can have.
fn write_sample(at: &Path) {
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

fn source(name: &str) -> Naming {
    Naming::Content(ContentName::source(name))
}

#[test]
fn a_source_comes_back_as_the_archive_it_was_registered_with() {
    let (folder, store) = store();
    write_sample(&folder.path().join("sample"));
    let lease = store.lease();
    let info = store
        .add_source(&folder.path().join("sample"), source("sample"), &lease)
        .unwrap();
    let mut archive = Vec::new();
    assert_eq!(store.dump_nar(&info.path, &mut archive).unwrap(), info.nar_size);
    let hash = hash_bytes(HashAlgorithm::Sha256, &archive);
    assert_eq!(hash.digest_as_bytes(), info.nar_hash.0);
    assert_eq!(store.query(&info.path).unwrap(), Some(info.clone()));

    // The archive of a tree gives the tree again, in another store.
    let other = Store::open(&folder.path().join("other")).unwrap();
    let lease = other.lease();
    let again = other
        .add_nar(BufReader::new(&archive[..]), Naming::Known(info.clone()), &lease)
        .unwrap();
    assert_eq!((again.tree, again.nar_hash), (info.tree, info.nar_hash));
    let by_content = other.add_nar(&archive[..], source("sample"), &lease).unwrap();
    assert_eq!(by_content.path, info.path);
}
