//! Equal files exist once, and never twice in one tree.

#![allow(clippy::unwrap_used)]

mod samples;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use samples::{source, store};
use tvix_node_store::Store;

fn add(store: &Store, folder: &Path, name: &str, files: &[(&str, &str)]) -> std::path::PathBuf {
    let at = folder.join(name);
    fs::create_dir_all(&at).unwrap();
    for (file, content) in files {
        fs::write(at.join(file), content).unwrap();
        let mode = if file.ends_with(".sh") { 0o755 } else { 0o644 };
        fs::set_permissions(at.join(file), fs::Permissions::from_mode(mode)).unwrap();
    }
    let info = store.add_source(&at, source(name), &store.lease()).unwrap();
    store.physical(&info.path)
}

fn inode(at: &Path) -> u64 {
    fs::metadata(at).unwrap().ino()
}

/// Whether this file system makes hard links, not clones, of equal files.
fn links(store: &Store, folder: &Path) -> bool {
    let probe = |name: &str| add(store, folder, name, &[("probe", "probe")]).join("probe");
    let linked = inode(&probe("probe-1")) == inode(&probe("probe-2"));
    if !linked {
        println!("SKIPPED: hard links, because this file system shares extents between files instead");
    }
    linked
}

#[test]
fn equal_files_of_different_trees_are_one_file() {
    let (folder, store) = store();
    let folder = folder.path();
    if !links(&store, folder) {
        return;
    }
    let large = "x".repeat(1 << 20);
    let files = [
        ("a", "same"),
        ("large", &large),
        ("run.sh", "same"),
        ("empty", ""),
    ];
    let one = add(&store, folder, "one", &files);
    let two = add(&store, folder, "two", &files);
    assert_eq!(inode(&one.join("a")), inode(&two.join("a")));
    assert_eq!(inode(&one.join("large")), inode(&two.join("large")));
    assert_eq!(inode(&one.join("run.sh")), inode(&two.join("run.sh")));
    assert_ne!(
        inode(&one.join("a")),
        inode(&one.join("run.sh")),
        "modes belong to the file"
    );
    assert_ne!(
        inode(&one.join("empty")),
        inode(&two.join("empty")),
        "nothing to be gained"
    );
    // Texts, too.
    let text = samples::text("same", b"same", &[]);
    store
        .add_texts(std::slice::from_ref(&text), &store.lease())
        .unwrap();
    assert_eq!(inode(&store.physical(&text.path)), inode(&one.join("a")));
}

#[test]
fn a_tree_has_no_links_of_its_own() {
    let (folder, store) = store();
    let folder = folder.path();
    if !links(&store, folder) {
        return;
    }
    let files = [("a", "same"), ("b", "same"), ("c", "same")];
    let one = add(&store, folder, "one", &files);
    let two = add(&store, folder, "two", &files);
    let inodes = |at: &Path| ["a", "b", "c"].map(|name| inode(&at.join(name)));
    let [a, b, c] = inodes(&one);
    assert!(a != b && b != c && a != c);
    assert_eq!(inodes(&two), [a, b, c], "each is shared with its counterpart");
}

#[test]
fn a_stored_file_that_was_written_to_is_not_spread() {
    let (folder, store) = store();
    let folder = folder.path();
    if !links(&store, folder) {
        return;
    }
    let one = add(&store, folder, "one", &[("a", "same"), ("b", "more")]);
    for name in ["a", "b"] {
        fs::set_permissions(one.join(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    fs::write(one.join("a"), "evil").unwrap();
    fs::set_permissions(one.join("a"), fs::Permissions::from_mode(0o444)).unwrap();
    let two = add(&store, folder, "two", &[("a", "same"), ("b", "more")]);
    assert_eq!(fs::read(two.join("a")).unwrap(), b"same");
    assert_ne!(
        inode(&one.join("b")),
        inode(&two.join("b")),
        "it could be written to"
    );
}
