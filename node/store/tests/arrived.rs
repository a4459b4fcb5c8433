//! Trees built from content that somebody sent.

#![allow(clippy::unwrap_used)]

mod samples;

use std::cell::Cell;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;

use samples::sent::Sent;
use samples::{home_entries, path, source, store, text, write_sample};
use tvix_node_protocol::nix::hash::HashAlgorithm;
use tvix_node_protocol::path_info::{NarHash, Origin, PathInfo};
use tvix_node_protocol::tree::{
    BlobDigest, Directory, Leaf, Node, PathComponent, SymlinkTarget, Tree, TreeDigest,
};
use tvix_node_store::{
    AddError, Arrived, ArrivedError, ArrivedFile, ComingFile, ContentName, Method, Naming, NamingError, Store,
};

/// The sample in one store, as it is sent.
fn sent_sample(name: &str) -> (Sent, PathInfo) {
    let (folder, sender) = store();
    write_sample(&folder.path().join("sample"));
    let info = sender
        .add_source(&folder.path().join("sample"), source(name), &sender.lease())
        .unwrap();
    (Sent::of(&sender, info.tree), info)
}

/// As an output that is not named by its content.
fn as_output(info: &PathInfo, name: &str) -> PathInfo {
    PathInfo {
        path: path(name),
        ca: None,
        origin: Origin::Built,
        ..info.clone()
    }
}

fn refused(store: &Store, root: TreeDigest, sent: &Sent, naming: Naming) -> ArrivedError {
    let error = match store.prepare_arrived(root, sent, naming) {
        Err(AddError::Arrived(error)) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(home_entries(store), Vec::<String>::new(), "{error}");
    error
}

#[test]
fn what_arrived_becomes_the_tree_that_was_sent() {
    let (mut sent, info) = sent_sample("sample");
    for as_files in [false, true] {
        sent.as_files = as_files;
        let (_folder, receiver) = store();
        let lease = receiver.lease();
        let expected = ContentName {
            expected: Some(info.path.clone()),
            ..ContentName::source("sample")
        };
        let output = as_output(&info, "output");
        let prepared = [
            receiver
                .prepare_arrived(info.tree, &sent, Naming::Content(expected))
                .unwrap(),
            receiver
                .prepare_arrived(info.tree, &sent, Naming::Known(output.clone()))
                .unwrap(),
        ];
        let infos = receiver.register(prepared.into(), &lease).unwrap();
        assert_eq!((&infos[0].path, infos[0].tree), (&info.path, info.tree));
        assert_eq!(
            (infos[0].nar_hash, infos[0].nar_size),
            (info.nar_hash, info.nar_size)
        );
        assert_eq!(infos[0].ca, info.ca);
        assert_eq!(infos[1].path, output.path);
        let mut archives = [Vec::new(), Vec::new()];
        for (info, archive) in infos.iter().zip(&mut archives) {
            receiver.dump_nar(&info.path, archive).unwrap();
        }
        assert_eq!(archives[0], archives[1]);
        assert_eq!(archives[0].len() as u64, info.nar_size);
    }
}

#[test]
fn a_tree_that_is_one_file_or_one_link_arrives() {
    let (_folder, receiver) = store();
    let lease = receiver.lease();
    let mut sent = Sent::default();
    let Node::File {
        blob,
        size,
        executable,
    } = sent.file(b"flat")
    else {
        panic!("a file is a file");
    };
    let file = sent.put(Tree::Leaf(Leaf::File {
        blob,
        size,
        executable,
    }));
    let link = sent.put(Tree::Leaf(Leaf::Symlink(SymlinkTarget::new(b"target").unwrap())));
    let flat = ContentName {
        method: Method::Flat(HashAlgorithm::Sha256),
        ..ContentName::source("file")
    };
    let prepared = vec![
        receiver
            .prepare_arrived(file, &sent, Naming::Content(flat))
            .unwrap(),
        receiver.prepare_arrived(link, &sent, source("link")).unwrap(),
    ];
    let infos = receiver.register(prepared, &lease).unwrap();
    assert_eq!(fs::read(receiver.physical(&infos[0].path)).unwrap(), b"flat");
    let target = fs::read_link(receiver.physical(&infos[1].path)).unwrap();
    assert_eq!(target.to_str(), Some("target"));
}

#[test]
fn what_did_not_arrive_is_taken_from_the_store() {
    let (_folder, receiver) = store();
    let lease = receiver.lease();
    let (sent, info) = sent_sample("sample");
    let prepared = receiver
        .prepare_arrived(info.tree, &sent, source("sample"))
        .unwrap();
    receiver.register(vec![prepared], &lease).unwrap();

    // One new file in a directory that is known otherwise.
    let Some(Tree::Directory(known)) = sent.trees.get(&info.tree) else {
        panic!("the sample is a directory");
    };
    let mut changed = known.clone();
    let mut little = Sent::default();
    let new = little.file(b"new");
    changed.insert(PathComponent::new(b"new").unwrap(), new).unwrap();
    let root = little.put(Tree::Directory(changed));
    let prepared = receiver
        .prepare_arrived(root, &little, source("changed"))
        .unwrap();
    let changed = receiver.register(vec![prepared], &lease).unwrap().remove(0);
    assert_eq!(changed.tree, root);
    let inode = |info: &PathInfo, file: &str| {
        fs::metadata(receiver.physical(&info.path).join(file))
            .unwrap()
            .ino()
    };
    let texts = [text("one", b"same", &[]), text("two", b"same", &[])];
    let texts: [PathInfo; 2] = receiver.add_texts(&texts, &lease).unwrap().try_into().unwrap();
    let shared = texts.map(|info| fs::metadata(receiver.physical(&info.path)).unwrap().ino());
    if shared[0] != shared[1] {
        println!("SKIPPED: hard links, because this file system shares extents between files instead");
        return;
    }
    for file in ["large", "share/text"] {
        assert_eq!(inode(&info, file), inode(&changed, file), "{file}");
    }
}

#[test]
fn what_is_missing_is_named() {
    let (_folder, receiver) = store();
    let (sent, info) = sent_sample("sample");
    let mut less = sent.clone();
    let blob = BlobDigest::of(b"some text\n");
    less.blobs.remove(&blob);
    let error = refused(&receiver, info.tree, &less, source("sample"));
    assert!(
        matches!(&error, ArrivedError::MissingBlob { blob: missing, place } if *missing == blob && place == "share/again"),
        "{error}"
    );
    assert!(error.to_string().contains(&blob.to_string()), "{error}");

    let mut less = sent.clone();
    let Some(Tree::Directory(directory)) = sent.trees.get(&info.tree) else {
        panic!("the sample is a directory");
    };
    let Some(Node::Directory(share)) = directory.get(&PathComponent::new(b"share").unwrap()) else {
        panic!("share is a directory");
    };
    less.trees.remove(share);
    let error = refused(&receiver, info.tree, &less, source("sample"));
    assert!(
        matches!(&error, ArrivedError::MissingTree { digest, place } if digest == share && place == "share"),
        "{error}"
    );
    let error = refused(&receiver, TreeDigest([1; 32]), &sent, source("sample"));
    assert!(matches!(error, ArrivedError::MissingTree { .. }), "{error}");
}

#[test]
fn a_wrong_blob_is_refused_and_named() {
    let (_folder, receiver) = store();
    let (sent, info) = sent_sample("sample");
    let small = BlobDigest::of(b"some text\n");
    let large = BlobDigest::of(&vec![b'x'; 3 << 20]);
    for as_files in [false, true] {
        for (blob, place) in [(small, "share/again"), (large, "large")] {
            let mut wrong = sent.clone();
            wrong.as_files = as_files;
            let bytes = wrong.blobs.get_mut(&blob).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            let computed = BlobDigest::of(bytes);
            let error = refused(&receiver, info.tree, &wrong, source("sample"));
            let ArrivedError::WrongBlob {
                wanted,
                computed: got,
                place: at,
            } = error
            else {
                panic!("{error}");
            };
            assert_eq!((wanted, got, at.as_str()), (blob, computed, place));

            for cut in [true, false] {
                let mut wrong = sent.clone();
                wrong.as_files = as_files;
                let bytes = wrong.blobs.get_mut(&blob).unwrap();
                if cut {
                    bytes.pop();
                } else {
                    bytes.push(b'!');
                }
                let error = refused(&receiver, info.tree, &wrong, source("sample"));
                assert!(
                    matches!(&error, ArrivedError::Size { blob: of, .. } if *of == blob),
                    "{error}"
                );
            }
        }
    }
}

#[test]
fn a_wrong_directory_is_refused_and_named() {
    let (_folder, receiver) = store();
    let mut sent = Sent::default();
    let file = sent.file(b"content");
    let right = sent.put_directory(b"file", file.clone());
    let root = sent.put_directory(b"sub", Node::Directory(right));
    let mut other = Directory::default();
    other.insert(PathComponent::new(b"other").unwrap(), file).unwrap();
    sent.trees.insert(right, Tree::Directory(other.clone()));
    let error = refused(&receiver, root, &sent, source("it"));
    assert!(
        matches!(&error, ArrivedError::WrongTree { wanted, place, .. } if *wanted == right && place == "sub"),
        "{error}"
    );
    sent.trees.insert(root, Tree::Directory(other));
    let error = refused(&receiver, root, &sent, source("it"));
    assert!(
        matches!(&error, ArrivedError::WrongTree { wanted, place, .. } if *wanted == root && place.is_empty()),
        "{error}"
    );
    // A link where a directory is said to be, and as the whole tree.
    let link = Tree::Leaf(Leaf::Symlink(SymlinkTarget::new(b"/etc").unwrap()));
    sent.trees.insert(root, link.clone());
    let error = refused(&receiver, root, &sent, source("it"));
    assert!(matches!(error, ArrivedError::WrongTree { .. }), "{error}");
    let digest = sent.put(link);
    let root = sent.put_directory(b"sub", Node::Directory(digest));
    let error = refused(&receiver, root, &sent, source("it"));
    assert!(matches!(error, ArrivedError::NotDirectory { .. }), "{error}");
}

#[test]
fn a_tree_that_is_not_as_described_is_refused() {
    let (_folder, receiver) = store();
    let (sent, info) = sent_sample("sample");
    let known = |change: &dyn Fn(&mut PathInfo)| {
        let mut claimed = as_output(&info, "output");
        change(&mut claimed);
        let error = receiver.prepare_arrived(info.tree, &sent, Naming::Known(claimed));
        assert_eq!(home_entries(&receiver), Vec::<String>::new());
        error.unwrap_err()
    };
    let error = known(&|claimed| claimed.nar_hash = NarHash([1; 32]));
    assert!(matches!(error, AddError::Archive { .. }), "{error}");
    let error = known(&|claimed| claimed.nar_size += 8);
    assert!(matches!(error, AddError::Archive { .. }), "{error}");
    let error = known(&|claimed| claimed.tree = TreeDigest([1; 32]));
    assert!(matches!(error, AddError::Tree { .. }), "{error}");
    // Named by content, but by another's.
    let error = known(&|claimed| claimed.ca.clone_from(&info.ca));
    assert!(
        matches!(error, AddError::Naming(NamingError::Mismatch { .. })),
        "{error}"
    );
    let expected = ContentName {
        expected: Some(path("sample")),
        ..ContentName::source("sample")
    };
    let error = receiver
        .prepare_arrived(info.tree, &sent, Naming::Content(expected))
        .unwrap_err();
    assert!(
        matches!(error, AddError::Naming(NamingError::Mismatch { .. })),
        "{error}"
    );
    // As named by content it passes.
    receiver
        .prepare_arrived(info.tree, &sent, Naming::Known(info.clone()))
        .unwrap();
}

/// A few directories can name gigabytes.
#[test]
fn a_tree_larger_than_described_ends_before_it_is_written() {
    let (_folder, receiver) = store();
    let (_, info) = sent_sample("sample");
    let mut sent = Sent::default();
    let file = sent.file(&vec![b'y'; 1 << 20]);
    let mut digest = sent.put_directory(b"file", file);
    for _ in 0..30 {
        let mut directory = Directory::default();
        for name in [b"a", b"b"] {
            directory
                .insert(PathComponent::new(name).unwrap(), Node::Directory(digest))
                .unwrap();
        }
        digest = sent.put(Tree::Directory(directory));
    }
    let claimed = as_output(&info, "output");
    sent.most = Some(5 << 20);
    for (naming, most) in [(Naming::Known(claimed), info.nar_size), (source("it"), 5 << 20)] {
        let error = refused(&receiver, digest, &sent, naming);
        assert!(
            matches!(error, ArrivedError::TooLarge { size } if size == most),
            "{error}"
        );
    }
}

#[test]
fn deep_trees_arrive_and_too_deep_ones_are_refused() {
    let (_folder, receiver) = store();
    let mut sent = Sent::default();
    let file = sent.file(b"deep");
    // The file is the last of 64 objects on the way.
    let mut digest = sent.put_directory(b"d", file);
    for _ in 0..62 {
        digest = sent.put_directory(b"d", Node::Directory(digest));
    }
    let deeper = sent.put_directory(b"d", Node::Directory(digest));
    let deepest = (0..5000).fold(deeper, |digest, _| {
        sent.put_directory(b"d", Node::Directory(digest))
    });
    for digest in [deeper, deepest] {
        let error = refused(&receiver, digest, &sent, source("deep"));
        let ArrivedError::Depth { place } = &error else {
            panic!("{error}");
        };
        assert_eq!(place.split('/').count(), 64);
    }
    let prepared = receiver.prepare_arrived(digest, &sent, source("deep")).unwrap();
    let lease = receiver.lease();
    let info = receiver.register(vec![prepared], &lease).unwrap().remove(0);
    // The archive reader draws the line at the same depth.
    let mut archive = Vec::new();
    receiver.dump_nar(&info.path, &mut archive).unwrap();
    receiver.add_nar(&archive[..], source("again"), &lease).unwrap();
}

/// Files that lie in a folder, and are given away.
struct Given {
    sent: Sent,
    folder: std::path::PathBuf,
    how: Cell<How>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Complete,
    /// The rest of it is written while it is read.
    Coming,
    /// It is complete, and elsewhere, when it is looked for.
    Moved,
}

/// Writes the second half of a file when the first half has been read.
struct Half {
    path: std::path::PathBuf,
    file: fs::File,
    size: u64,
    rest: Mutex<Vec<u8>>,
}

impl ComingFile for Half {
    fn path(&self) -> &std::path::Path {
        &self.path
    }

    fn file(&self) -> &fs::File {
        &self.file
    }

    fn wait(&self, bytes: u64) -> io::Result<u64> {
        let rest = std::mem::take(&mut *self.rest.lock().unwrap());
        let there = self.size - rest.len() as u64;
        if bytes < there && !rest.is_empty() {
            *self.rest.lock().unwrap() = rest;
            return Ok(there);
        }
        (&self.file).write_all(&rest)?;
        Ok(self.size)
    }
}

impl Given {
    /// One file of these bytes, at these two places of a directory.
    fn twice(bytes: &[u8], folder: &std::path::Path) -> (Self, TreeDigest) {
        let mut directory = Directory::default();
        let mut sent = Sent::default();
        let blob = BlobDigest::of(bytes);
        for (name, executable) in [("a", false), ("b", false), ("c", true)] {
            let size = bytes.len() as u64;
            let node = Node::File {
                blob,
                size,
                executable,
            };
            directory
                .insert(PathComponent::new(name.as_bytes()).unwrap(), node)
                .unwrap();
        }
        let tree = Tree::Directory(directory);
        let digest = tree.digest();
        sent.trees.insert(digest, tree);
        fs::write(folder.join(blob.to_string()), bytes).unwrap();
        let (folder, how) = (folder.to_owned(), Cell::new(How::Complete));
        (Self { sent, folder, how }, digest)
    }
}

impl Arrived for Given {
    fn tree(&self, digest: TreeDigest) -> io::Result<Option<Tree>> {
        self.sent.tree(digest)
    }

    fn blob(&self, digest: BlobDigest) -> io::Result<Option<ArrivedFile>> {
        let path = self.folder.join(digest.to_string());
        let how = self.how.get();
        let rest = match how {
            How::Complete => return Ok(Some(ArrivedFile::Given(path))),
            How::Coming => {
                let bytes = fs::read(&path)?;
                let (first, rest) = bytes.split_at(bytes.len() / 2);
                fs::write(&path, first)?;
                // When all has been read nothing writes to it any more.
                self.how.set(How::Complete);
                rest.to_vec()
            }
            How::Moved => Vec::new(),
        };
        let file = fs::OpenOptions::new().read(true).append(true).open(&path)?;
        let path = match how {
            How::Moved => self.folder.join("elsewhere"),
            _ => path,
        };
        let size = file.metadata()?.len() + rest.len() as u64;
        let rest = Mutex::new(rest);
        Ok(Some(ArrivedFile::Coming(Box::new(Half {
            path,
            file,
            size,
            rest,
        }))))
    }
}

#[test]
fn a_file_that_is_given_away_becomes_the_tree_s_own_and_no_other_s() {
    for how in [How::Complete, How::Coming, How::Moved] {
        given_away(how);
    }
}

fn given_away(how: How) {
    let (folder, receiver) = store();
    let spool = folder.path().join("spool");
    fs::create_dir(&spool).unwrap();
    let bytes: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let (given, digest) = Given::twice(&bytes, &spool);
    given.how.set(how);
    let blob = spool.join(BlobDigest::of(&bytes).to_string());
    let inode = fs::metadata(&blob).unwrap().ino();
    let prepared = receiver.prepare_arrived(digest, &given, source("given")).unwrap();
    assert!(
        blob.exists(),
        "a node that is killed now has not lost what it fetched"
    );
    let info = receiver
        .register(vec![prepared], &receiver.lease())
        .unwrap()
        .remove(0);
    fs::remove_file(&blob).unwrap();
    let place = receiver.physical(&info.path);
    let look = |name: &str| fs::metadata(place.join(name)).unwrap();
    assert_eq!(look("a").ino() == inode, how != How::Moved, "{how:?}");
    for (name, mode) in [("a", 0o444), ("b", 0o444), ("c", 0o555)] {
        let metadata = look(name);
        assert_eq!(
            (metadata.nlink(), metadata.mode() & 0o7777, metadata.mtime()),
            (1, mode, 1)
        );
        assert_eq!(fs::read(place.join(name)).unwrap(), bytes);
    }
    assert_ne!(look("b").ino(), inode, "one tree shows no links of its own");
    assert!(receiver.verify_path(&info.path).unwrap().is_none());
}

#[test]
fn a_file_that_is_given_away_is_checked_like_any_other() {
    let (folder, receiver) = store();
    let spool = folder.path().join("spool");
    fs::create_dir(&spool).unwrap();
    let bytes = vec![7; 1 << 20];
    let (given, digest) = Given::twice(&bytes, &spool);
    let blob = spool.join(BlobDigest::of(&bytes).to_string());
    for how in [How::Complete, How::Coming, How::Moved] {
        given.how.set(how);
        // What was taken over is read-only.
        fs::remove_file(&blob).unwrap();
        fs::write(&blob, vec![8; 1 << 20]).unwrap();
        let error = receiver
            .prepare_arrived(digest, &given, source("it"))
            .unwrap_err();
        assert!(
            matches!(error, AddError::Arrived(ArrivedError::WrongBlob { .. })),
            "{error}"
        );
    }
    given.how.set(How::Complete);
    for length in [(1 << 20) - 1, (1 << 20) + 1] {
        fs::remove_file(&blob).unwrap();
        fs::write(&blob, vec![7; length]).unwrap();
        let error = receiver
            .prepare_arrived(digest, &given, source("it"))
            .unwrap_err();
        assert!(
            matches!(error, AddError::Arrived(ArrivedError::Size { .. })),
            "{error}"
        );
    }
    fs::remove_file(&blob).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &blob).unwrap();
    receiver
        .prepare_arrived(digest, &given, source("it"))
        .unwrap_err();
    assert_eq!(home_entries(&receiver), Vec::<String>::new());
}

/// What cannot be read is an error of its own, not a missing blob.
#[test]
fn an_unreadable_arrival_is_an_error() {
    struct Broken;
    impl Arrived for Broken {
        fn tree(&self, _: TreeDigest) -> io::Result<Option<Tree>> {
            Err(io::Error::other("the spool is gone"))
        }
        fn blob(&self, _: BlobDigest) -> io::Result<Option<ArrivedFile>> {
            Ok(None)
        }
    }
    let (_folder, receiver) = store();
    let error = receiver
        .prepare_arrived(TreeDigest([1; 32]), &Broken, source("it"))
        .unwrap_err();
    assert!(error.to_string().contains("the spool is gone"), "{error}");
}
