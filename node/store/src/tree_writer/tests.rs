//! Limits of the writer, reached without writing as much.

#![allow(clippy::unwrap_used)]

use tvix_node_protocol::limits::{SYMLINK_BYTES, TREE_NODE_BYTES};

use super::*;
use crate::Store;

fn name(name: &[u8]) -> PathComponent {
    PathComponent::new(name).unwrap()
}

/// In the root of a new tree.
fn writer(store: &Store) -> TreeWriter<'_> {
    let inner = &store.inner;
    let temporary = Temporary::new(&inner.trees, inner.next_number());
    let mut writer = TreeWriter::new(&inner.index, &inner.sharing, temporary, None);
    writer.open_directory(None).unwrap();
    writer
}

/// What could be stored and not be read again would stop every collection.
#[test]
fn a_directory_that_could_not_be_read_again_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("home")).unwrap();
    let mut writer = writer(&store);
    // As if as many links had been written.
    let target = [b'x'; SYMLINK_BYTES];
    let node = Node::Symlink(SymlinkTarget::new(&target).unwrap());
    let full = &mut writer.stack[0].directory;
    (0..TREE_NODE_BYTES)
        .try_for_each(|number| full.insert(name(format!("{number:04}").as_bytes()), node.clone()))
        .unwrap_err();
    let error = writer.symlink(Some(name(b"last")), &target).unwrap_err();
    assert!(
        matches!(error, TreeWriteError::Tree(TreeError::TooLarge(_))),
        "{error}"
    );
    writer.symlink(Some(name(b"lasting")), b"x").unwrap();
    let tree = writer.close_directory().unwrap();
    assert!(Tree::from_bytes(&writer.nodes[&tree].bytes, tree).is_ok());
}

#[test]
fn a_tree_has_so_many_entries_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("home")).unwrap();
    let inner = &store.inner;
    let mut writer = writer(&store);
    writer.entries = TREE_ENTRIES - 1;
    writer.symlink(Some(name(b"last")), b"x").unwrap();
    let error = writer.symlink(Some(name(b"one-more")), b"x").unwrap_err();
    assert!(matches!(error, TreeWriteError::TooManyEntries), "{error}");
    let error = writer
        .small_file(Some(name(b"one-more")), false, b"x")
        .unwrap_err();
    assert!(matches!(error, TreeWriteError::TooManyEntries), "{error}");
    assert!(error.to_string().contains("more than 2097152 files"), "{error}");
    drop(writer);
    assert_eq!(inner.trees.names().unwrap(), Vec::<Vec<u8>>::new());
}
