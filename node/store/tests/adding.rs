//! Adding trees by archive, by source and as texts; reading them again.

#![allow(clippy::unwrap_used)]

mod samples;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use samples::{home_entries, path, source, store, text, write_sample};
use tvix_node_protocol::nix::hash::{HashAlgorithm, NixHash, hash_bytes};
use tvix_node_protocol::nix::nar::Encoder;
use tvix_node_protocol::path_info::{NarHash, PathInfo};
use tvix_node_protocol::tree::{BlobDigest, Directory, Leaf, Node, PathComponent, SymlinkTarget, Tree};
use tvix_node_store::limits::TEXT_BYTES;
use tvix_node_store::{AddError, ContentName, GcOptions, Method, Naming, NamingError, Store, TreeWriteError};

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
    assert_eq!(archive.len() as u64, info.nar_size);
    assert_eq!(
        hash_bytes(HashAlgorithm::Sha256, &archive),
        NixHash::Sha256(info.nar_hash.0)
    );
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

#[test]
fn an_added_tree_survives_the_process() {
    let (folder, store) = store();
    write_sample(&folder.path().join("sample"));
    let info = store
        .add_source(&folder.path().join("sample"), source("sample"), &store.lease())
        .unwrap();
    drop(store);
    let store = Store::open(&folder.path().join("home")).unwrap();
    assert_eq!(store.query(&info.path).unwrap(), Some(info.clone()));
    assert_eq!(
        store.dump_nar(&info.path, &mut Vec::new()).unwrap(),
        info.nar_size
    );
}

#[test]
fn metadata_is_normalised() {
    let (folder, store) = store();
    let sample = folder.path().join("sample");
    write_sample(&sample);
    fs::set_permissions(sample.join("bin/tool"), fs::Permissions::from_mode(0o6777)).unwrap();
    fs::set_permissions(sample.join("share"), fs::Permissions::from_mode(0o1777)).unwrap();
    let info = store
        .add_source(&sample, source("sample"), &store.lease())
        .unwrap();
    let physical = store.physical(&info.path);
    for (name, mode) in [
        ("", 0o555),
        ("bin", 0o555),
        ("bin/tool", 0o555),
        ("share", 0o555),
        ("share/text", 0o444),
        ("share/empty", 0o555),
        ("large", 0o444),
        ("bin/link", 0o777),
    ] {
        let metadata = fs::symlink_metadata(physical.join(name)).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (mode, 1), "{name}");
    }
}

#[test]
fn a_tree_is_found_by_its_digest_down_to_the_blobs() {
    let (folder, store) = store();
    write_sample(&folder.path().join("sample"));
    let info = store
        .add_source(&folder.path().join("sample"), source("sample"), &store.lease())
        .unwrap();
    let name = |name: &str| PathComponent::new(name.as_bytes()).unwrap();
    let mut bin = Directory::default();
    bin.insert(
        name("link"),
        Node::Symlink(SymlinkTarget::new(b"../share/text").unwrap()),
    )
    .unwrap();
    bin.insert(name("tool"), Node::file(b"#!/bin/sh\n", true))
        .unwrap();
    let bin = Tree::Directory(bin);
    let Some(Tree::Directory(root)) = store.tree(&info.tree).unwrap() else {
        panic!("the root is a directory");
    };
    assert_eq!(root.get(&name("bin")), Some(&Node::Directory(bin.digest())));
    assert_eq!(store.tree(&bin.digest()).unwrap(), Some(bin));

    let mut text = String::new();
    let blob = BlobDigest::of(b"some text\n");
    store
        .open_blob(&blob)
        .unwrap()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "some text\n");
    assert!(
        store
            .open_blob(&BlobDigest::of(b"other text\n"))
            .unwrap()
            .is_none()
    );
}

#[test]
fn a_tree_can_be_one_file_or_link() {
    let (folder, store) = store();
    let lease = store.lease();
    for (name, tree) in [
        (
            "file",
            Tree::Leaf(Leaf::Symlink(SymlinkTarget::new(b"/nowhere").unwrap())),
        ),
        ("link", Tree::from_file(b"content", true)),
        ("large", Tree::from_file(&vec![b'x'; 1 << 20], false)),
    ] {
        let at = folder.path().join(name);
        tree.write(&at);
        let info = store.add_source(&at, source(name), &lease).unwrap();
        assert_eq!(info.tree, tree.digest());
        assert_eq!(store.tree_size(&info.tree).unwrap(), Some(tree.to_bytes().len()));
        assert_eq!(store.tree(&info.tree).unwrap(), Some(tree));
        assert_eq!(
            store.dump_nar(&info.path, &mut Vec::new()).unwrap(),
            info.nar_size
        );
    }
}

/// What the tests need of a leaf.
trait LeafSample {
    fn from_file(bytes: &[u8], executable: bool) -> Self;
    fn write(&self, at: &std::path::Path);
}

impl LeafSample for Tree {
    fn from_file(bytes: &[u8], executable: bool) -> Self {
        let (blob, size) = (BlobDigest::of(bytes), bytes.len() as u64);
        Self::Leaf(Leaf::File {
            blob,
            size,
            executable,
        })
    }

    fn write(&self, at: &std::path::Path) {
        match self {
            Tree::Leaf(Leaf::File { size, executable, .. }) => {
                let bytes = if *size == 7 {
                    b"content".to_vec()
                } else {
                    vec![b'x'; 1 << 20]
                };
                fs::write(at, bytes).unwrap();
                let mode = if *executable { 0o700 } else { 0o600 };
                fs::set_permissions(at, fs::Permissions::from_mode(mode)).unwrap();
            }
            _ => std::os::unix::fs::symlink("/nowhere", at).unwrap(),
        }
    }
}

/// Paths as stock Nix 2.8 prints them for `nix-store --add` and `nix-store --add-fixed [--recursive]
/// ALGORITHM` of a file `content` with the bytes `hello\n`.
#[test]
fn paths_that_follow_from_content_are_those_of_stock_nix() {
    let (folder, store) = store();
    let at = folder.path().join("content");
    fs::write(&at, "hello\n").unwrap();
    let lease = store.lease();
    let recursive = Method::Recursive;
    let flat = Method::Flat;
    use HashAlgorithm::{Md5, Sha1, Sha256, Sha512};
    for (method, expected) in [
        (recursive(Sha256), RECURSIVE_SHA256),
        (recursive(Sha1), RECURSIVE_SHA1),
        (recursive(Sha512), RECURSIVE_SHA512),
        (flat(Sha256), FLAT_SHA256),
        (flat(Sha1), FLAT_SHA1),
        (flat(Md5), FLAT_MD5),
        (flat(Sha512), FLAT_SHA512),
    ] {
        let name = ContentName {
            method,
            ..ContentName::source("content")
        };
        let info = store.add_source(&at, Naming::Content(name), &lease).unwrap();
        assert_eq!(info.path.to_string(), expected, "{method:?}");
        assert_eq!(fs::read(store.physical(&info.path)).unwrap(), b"hello\n");
    }
}
const RECURSIVE_SHA256: &str = "/nix/store/z4wgbnb34jhbl017fklh2fr3c94wfs0c-content";
const RECURSIVE_SHA1: &str = "/nix/store/a43kmy2ynh34hghi1laj37i298ssypj3-content";
const RECURSIVE_SHA512: &str = "/nix/store/0fcikhfrm8s2a0w6db2240kvm5dj6gfc-content";
const FLAT_SHA256: &str = "/nix/store/npcm5ms6azap8sf4ggkz477mmyljzdxm-content";
const FLAT_SHA1: &str = "/nix/store/hqsfz4vdvsb2ygmw4zb3qwar597x06yk-content";
const FLAT_MD5: &str = "/nix/store/p3rcn93arv05r96pcgx659kcmpqyh0gr-content";
const FLAT_SHA512: &str = "/nix/store/zwyryikvrjblaz7iscgdy7anqa05bspa-content";

#[test]
fn only_one_plain_file_can_be_named_by_its_bytes() {
    let (folder, store) = store();
    write_sample(&folder.path().join("sample"));
    for at in ["sample", "sample/bin/tool", "sample/bin/link"] {
        let name = ContentName {
            method: Method::Flat(HashAlgorithm::Sha256),
            ..ContentName::source("sample")
        };
        let result = store.add_source(&folder.path().join(at), Naming::Content(name), &store.lease());
        assert!(
            matches!(result, Err(AddError::Naming(NamingError::NotFlat(_)))),
            "{at}: {result:?}"
        );
    }
    assert_eq!(home_entries(&store), Vec::<String>::new());
}

#[test]
fn content_that_is_not_what_was_expected_leaves_nothing() {
    let (folder, store) = store();
    write_sample(&folder.path().join("sample"));
    let lease = store.lease();
    let info = store
        .add_source(&folder.path().join("sample"), source("sample"), &lease)
        .unwrap();
    let mut archive = Vec::new();
    store.dump_nar(&info.path, &mut archive).unwrap();
    let other = Store::open(&folder.path().join("other")).unwrap();
    let lease = other.lease();

    let mut hash = info.clone();
    hash.nar_hash = NarHash([0; 32]);
    let mut size = info.clone();
    size.nar_size += 1;
    let mut tree = info.clone();
    tree.tree.0[0] ^= 1;
    let mut renamed = info.clone();
    renamed.path = path("sample");
    let results =
        [hash, size, tree, renamed].map(|info| other.add_nar(&archive[..], Naming::Known(info), &lease));
    assert!(
        matches!(results[0], Err(AddError::Archive { .. })),
        "{:?}",
        results[0]
    );
    assert!(
        matches!(results[1], Err(AddError::Archive { .. })),
        "{:?}",
        results[1]
    );
    assert!(
        matches!(results[2], Err(AddError::Tree { .. })),
        "{:?}",
        results[2]
    );
    assert!(
        matches!(results[3], Err(AddError::Naming(NamingError::Mismatch { .. }))),
        "what says it is named by its content must be: {:?}",
        results[3]
    );
    let expected = ContentName {
        expected: Some(path("sample")),
        ..ContentName::source("sample")
    };
    let result = other.add_nar(&archive[..], Naming::Content(expected), &lease);
    assert!(
        matches!(result, Err(AddError::Naming(NamingError::Mismatch { .. }))),
        "{result:?}"
    );

    assert_eq!(other.count().unwrap(), 0);
    assert_eq!(home_entries(&other), Vec::<String>::new());
}

#[test]
fn an_archive_of_unknown_tree_is_checked_by_its_hash() {
    let (folder, store) = store();
    write_sample(&folder.path().join("sample"));
    let mut info = store
        .add_source(&folder.path().join("sample"), source("sample"), &store.lease())
        .unwrap();
    let mut archive = Vec::new();
    store.dump_nar(&info.path, &mut archive).unwrap();
    let other = Store::open(&folder.path().join("other")).unwrap();
    let (tree, hash) = (info.tree, info.nar_hash);
    info.tree.0 = [0; 32];
    info.nar_hash.0[5] ^= 1;
    let result = other.add_nar(&archive[..], Naming::KnownArchive(info.clone()), &other.lease());
    assert!(matches!(result, Err(AddError::Archive { .. })));
    info.nar_hash = hash;
    let added = other
        .add_nar(&archive[..], Naming::KnownArchive(info), &other.lease())
        .unwrap();
    assert_eq!(added.tree, tree);
}

#[test]
fn texts_are_added_together_and_refer_to_each_other() {
    let (_folder, store) = store();
    let first = text("first", b"one", &[]);
    let second = text("second.drv", b"two", &[&first]);
    let lease = store.lease();
    let infos = store.add_texts(&[second.clone(), first.clone()], &lease).unwrap();
    assert_eq!(infos[0].path, second.path);
    assert_eq!(infos[0].references, BTreeSet::from([first.path.clone()]));
    assert_eq!(
        store.referrers(&first.path).unwrap(),
        std::slice::from_ref(&second.path)
    );
    let mut archive = Vec::new();
    store.dump_nar(&first.path, &mut archive).unwrap();
    assert_eq!(
        hash_bytes(HashAlgorithm::Sha256, &archive),
        NixHash::Sha256(infos[1].nar_hash.0)
    );
    // Again, with one that is new.
    let third = text("third", b"three", &[]);
    let again = store.add_texts(&[first, third.clone(), second], &lease).unwrap();
    assert_eq!((&again[0], &again[2]), (&infos[1], &infos[0]));
    assert_eq!(again[1].path, third.path);
    assert_eq!(store.count().unwrap(), 3);
}

#[test]
fn a_text_under_another_path_refuses_the_whole_batch() {
    let (_folder, store) = store();
    let good = text("good", b"one", &[]);
    let mut bad = text("bad", b"two", &[]);
    bad.content = b"three".to_vec();
    let result = store.add_texts(&[good, bad], &store.lease());
    assert!(
        matches!(result, Err(AddError::Naming(NamingError::Mismatch { .. }))),
        "{result:?}"
    );
    assert_eq!(store.count().unwrap(), 0);
    assert_eq!(home_entries(&store), Vec::<String>::new());
}

#[test]
fn a_path_is_added_only_after_what_it_refers_to() {
    let (_folder, store) = store();
    let first = text("first", b"one", &[]);
    let second = text("second", b"two", &[&first]);
    let result = store.add_texts(std::slice::from_ref(&second), &store.lease());
    assert!(
        matches!(&result, Err(AddError::MissingReference { path, reference })
            if *path == second.path && *reference == first.path),
        "{result:?}"
    );
    assert_eq!(home_entries(&store), Vec::<String>::new());
}

#[test]
fn what_is_there_already_is_answered_and_not_written_again() {
    let (folder, store) = store();
    let sample = folder.path().join("sample");
    write_sample(&sample);
    let lease = store.lease();
    let info = store.add_source(&sample, source("sample"), &lease).unwrap();
    let inode = fs::metadata(store.physical(&info.path)).unwrap().ino();
    assert_eq!(store.add_source(&sample, source("sample"), &lease).unwrap(), info);
    // A reader that must not be touched.
    struct Untouched;
    impl Read for Untouched {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("read"))
        }
    }
    assert_eq!(
        store
            .add_nar(Untouched, Naming::Known(info.clone()), &lease)
            .unwrap(),
        info
    );
    assert_eq!(fs::metadata(store.physical(&info.path)).unwrap().ino(), inode);
    assert_eq!(store.count().unwrap(), 1);
    assert_eq!(home_entries(&store), [info.path.to_basename()]);
}

#[test]
fn too_many_or_too_deep_is_refused_with_the_place() {
    let (folder, store) = store();
    let mut deep = folder.path().join("deep");
    for _ in 0..65 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).unwrap();
    let result = store.add_source(&folder.path().join("deep"), source("deep"), &store.lease());
    let error = result.unwrap_err();
    assert!(error.to_string().contains("64 directories"), "{error}");
    assert!(!matches!(error, AddError::Write(TreeWriteError::TooManyEntries)));
    fs::remove_dir(&deep).unwrap();
    fs::remove_dir(deep.parent().unwrap()).unwrap();
    store
        .add_source(&folder.path().join("deep"), source("deep"), &store.lease())
        .unwrap();
}

#[test]
fn closures_are_complete_and_say_what_is_missing() {
    let (_folder, store) = store();
    let a = text("a", b"a", &[]);
    let b = text("b", b"b", &[&a]);
    let c = text("c", b"c", &[&b]);
    let lone = text("lone", b"lone", &[]);
    store
        .add_texts(&[a.clone(), b.clone(), c.clone(), lone], &store.lease())
        .unwrap();
    let closure = store.closure([&c.path]).unwrap();
    let paths: BTreeSet<_> = closure.into_iter().map(|info| info.path).collect();
    assert_eq!(paths, BTreeSet::from([a.path, b.path, c.path]));
    let error = store.closure([&path("gone")]).unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
}

/// Longer than any path that the system takes at once.
#[test]
fn a_tree_may_have_paths_longer_than_the_system_takes() {
    let (_folder, store) = store();
    let mut encoder = Encoder::new(Vec::new()).unwrap();
    let name = vec![b'n'; 255];
    encoder.start_directory(None).unwrap();
    for _ in 0..40 {
        encoder.start_directory(Some(&name)).unwrap();
    }
    let mut file = encoder.start_regular(Some(b"file"), false, 4).unwrap();
    file.write_all(b"deep").unwrap();
    file.finish().unwrap();
    for _ in 0..41 {
        encoder.end_directory().unwrap();
    }
    let archive = encoder.finish().unwrap();
    let lease = store.lease();
    let info = store.add_nar(&archive[..], source("deep"), &lease).unwrap();
    let mut again = Vec::new();
    store.dump_nar(&info.path, &mut again).unwrap();
    assert_eq!(again, archive);
    let mut bytes = Vec::new();
    store
        .open_blob(&BlobDigest::of(b"deep"))
        .unwrap()
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    assert_eq!(bytes, b"deep");
    // What cannot be shared is written anew.
    store.add_texts(&[text("deep", b"deep", &[])], &lease).unwrap();
    drop(lease);
    store.gc(&GcOptions::default()).unwrap();
    assert_eq!(home_entries(&store), Vec::<String>::new());
}

#[test]
fn a_text_is_not_taken_for_what_was_put_under_its_name_without_looking_at_that() {
    for (put, is_same) in [(&b"true"[..], true), (b"false", false)] {
        let (_folder, store) = store();
        let lease = store.lease();
        let wanted = text("note", b"true", &[]);
        let other = store.add_texts(&[text("other", put, &[])], &lease).unwrap();
        let mut archive = Vec::new();
        store.dump_nar(&other[0].path, &mut archive).unwrap();
        // On somebody's word, who gave no content address.
        let believed = PathInfo {
            path: wanted.path.clone(),
            ca: None,
            ..other[0].clone()
        };
        store
            .add_nar(&archive[..], Naming::Known(believed), &lease)
            .unwrap();
        let result = store.add_texts(std::slice::from_ref(&wanted), &lease);
        match result {
            Ok(_) => assert!(is_same, "the text is another one"),
            Err(AddError::Conflict { path, .. }) => assert!(!is_same && path == wanted.path),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_text_has_so_many_bytes_and_no_more() {
    let (_folder, store) = store();
    let lease = store.lease();
    let mut content = vec![b'x'; TEXT_BYTES];
    let most = text("most", &content, &[]);
    let info = store.add_texts(&[most], &lease).unwrap().remove(0);
    assert!(store.verify_path(&info.path).unwrap().is_none());
    content.push(b'x');
    let error = store
        .add_texts(&[text("more", &content, &[])], &lease)
        .unwrap_err();
    assert!(matches!(error, AddError::TextSize { .. }), "{error}");
    let error = error.to_string();
    assert!(
        error.contains("67108865 bytes, more than the 67108864 allowed"),
        "{error}"
    );
    assert_eq!(home_entries(&store), [info.path.to_basename()]);
}
