use super::*;

fn name(text: &str) -> PathComponent {
    PathComponent::new(text.as_bytes()).unwrap()
}

fn sample() -> Tree {
    let mut inner = Directory::default();
    inner.insert(name("run"), Node::file(b"#!", true)).unwrap();
    let mut outer = Directory::default();
    outer
        .insert(name("z"), Node::Symlink(SymlinkTarget::new(b"a/b").unwrap()))
        .unwrap();
    outer
        .insert(PathComponent::new(b"\xff").unwrap(), Node::file(b"", false))
        .unwrap();
    outer.insert(name("bin"), Tree::Directory(inner).into()).unwrap();
    Tree::Directory(outer)
}

#[test]
fn bad_names_cannot_be_written_down() {
    let long = vec![b'a'; 256];
    for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0", &long] {
        assert!(PathComponent::new(bad).is_err(), "{bad:?}");
    }
    for good in [&b"..."[..], b".a", b"\xff\n", &long[..255]] {
        assert!(PathComponent::new(good).is_ok(), "{good:?}");
    }
}

#[test]
fn a_tree_comes_back_from_its_bytes() {
    for tree in [
        sample(),
        Tree::Directory(Directory::default()),
        Tree::Leaf(Leaf::Symlink(SymlinkTarget::new(b"x").unwrap())),
        Tree::Leaf(Leaf::File {
            blob: BlobDigest::of(b"x"),
            size: 1,
            executable: true,
        }),
    ] {
        assert_eq!(Tree::from_bytes(&tree.to_bytes(), tree.digest()).unwrap(), tree);
    }
}

#[test]
fn the_digest_is_the_same_for_ever() {
    assert_eq!(sample().digest().to_string(), SAMPLE_DIGEST);
}
const SAMPLE_DIGEST: &str = "82a0ef415a1decbb128fdb318b288284c6d0614d56c725c4f81e54fb8b5ef99b";

#[test]
fn what_is_asked_for_must_come() {
    let other = Tree::Directory(Directory::default()).digest();
    assert!(matches!(
        Tree::from_bytes(&sample().to_bytes(), other),
        Err(TreeError::Digest { .. })
    ));
}

/// Entries out of order, twice, or with bad names: all under the digest of exactly those bytes.
#[test]
fn no_second_encoding_of_a_directory_is_read() {
    let file = || file_to_value(BlobDigest::of(b""), 0, false);
    let directory = |names: &[&[u8]]| {
        let entries = names
            .iter()
            .map(|name| Value::Array(vec![Value::Bytes(name.to_vec()), file()]));
        Value::Array(vec![
            Value::Text("dir".to_owned()),
            Value::Array(entries.collect()),
        ])
    };
    let read = |value: Value| {
        let mut bytes = Vec::new();
        ciborium::into_writer(&value, &mut bytes).unwrap();
        Tree::from_bytes(&bytes, TreeDigest(*blake3::hash(&bytes).as_bytes()))
    };
    assert!(read(directory(&[b"a", b"b"])).is_ok());
    assert!(matches!(
        read(directory(&[b"b", b"a"])),
        Err(TreeError::Encoding(CborError::NotDeterministic))
    ));
    assert!(matches!(
        read(directory(&[b"a", b"a"])),
        Err(TreeError::Duplicate(_))
    ));
    assert!(matches!(read(directory(&[b".."])), Err(TreeError::Name { .. })));
    assert!(matches!(read(directory(&[b"a/b"])), Err(TreeError::Name { .. })));
    let reference = Value::Array(vec![Value::Text("dir".to_owned()), Value::Bytes(vec![0; 32])]);
    assert!(read(reference).is_err());
}

#[test]
fn digests_are_text_for_people_and_bytes_for_machines() {
    let digest = sample().digest();
    let bytes = cbor::to_vec(&digest).unwrap();
    assert_eq!((bytes.len(), bytes[0]), (34, 0x58));
    assert_eq!(cbor::from_slice::<TreeDigest>(&bytes, 100).unwrap(), digest);
    assert_eq!(digest.to_string().parse::<TreeDigest>().unwrap(), digest);
}

/// The bytes of a directory are known before it is encoded, whatever is in it.
#[test]
fn a_directory_knows_how_large_it_is() {
    for count in [0, 1, 23, 24, 255, 256, 300] {
        let mut directory = Directory::default();
        for number in 0..count {
            let length = [1, 23, 24, 255][number % 4];
            let name = PathComponent::new(format!("{number:0length$}").as_bytes()).unwrap();
            let node = match number % 3 {
                0 => Node::Directory(TreeDigest([1; 32])),
                1 => Node::Symlink(SymlinkTarget::new(&vec![b'x'; number * 13 + 1]).unwrap()),
                _ => Node::File {
                    blob: BlobDigest([2; 32]),
                    size: [0, 24, 1 << 8, 1 << 16, u64::MAX][number % 5],
                    executable: true,
                },
            };
            directory.insert(name, node).unwrap();
        }
        let known = directory_bytes(count, directory.bytes);
        assert_eq!(Tree::Directory(directory).to_bytes().len(), known, "{count}");
    }
}

#[test]
fn a_directory_has_so_many_entries_and_no_more() {
    let link = Node::Symlink(SymlinkTarget::new(b"x").unwrap());
    let mut directory = Directory::default();
    for number in 0..DIRECTORY_ENTRIES {
        directory
            .insert(name(&format!("{number:06}")), link.clone())
            .unwrap();
    }
    let error = directory.clone().insert(name("~"), link).unwrap_err().to_string();
    let refused = "a directory of 400001 entries, more than the 400000 allowed";
    assert_eq!(error, refused);
    let tree = Tree::Directory(directory);
    let mut bytes = tree.to_bytes();
    assert_eq!(Tree::from_bytes(&bytes, tree.digest()).unwrap(), tree);
    // What another node might send: the count is after the two items and the word.
    let count = u32::try_from(DIRECTORY_ENTRIES).unwrap();
    assert_eq!(bytes[6..10], count.to_be_bytes());
    bytes[6..10].copy_from_slice(&(count + 1).to_be_bytes());
    bytes.extend_from_slice(b"\x82\x41~\x82\x64link\x41x");
    let digest = TreeDigest(*blake3::hash(&bytes).as_bytes());
    assert_eq!(Tree::from_bytes(&bytes, digest).unwrap_err().to_string(), refused);
}

#[test]
fn a_directory_has_so_many_bytes_and_no_more() {
    let link = |bytes| Node::Symlink(SymlinkTarget::new(&vec![b'x'; bytes]).unwrap());
    let mut directory = Directory::default();
    let mut number = 0;
    while directory
        .insert(name(&format!("{number:04}")), link(SYMLINK_BYTES))
        .is_ok()
    {
        number += 1;
    }
    let size = Tree::Directory(directory.clone()).to_bytes().len();
    // A pair, a name of four, an array, a word, and the head of the target.
    let last = TREE_NODE_BYTES - size - (1 + 5 + 1 + 5 + 3);
    let error = directory.clone().insert(name("last"), link(last + 1));
    assert_eq!(
        error.unwrap_err().to_string(),
        "a directory whose names and link targets take 33554433 bytes, more than the 33554432 allowed"
    );
    directory.insert(name("last"), link(last)).unwrap();
    let tree = Tree::Directory(directory);
    let mut bytes = tree.to_bytes();
    assert_eq!(bytes.len(), TREE_NODE_BYTES);
    assert_eq!(Tree::from_bytes(&bytes, tree.digest()).unwrap(), tree);
    bytes.push(0);
    let digest = TreeDigest(*blake3::hash(&bytes).as_bytes());
    let error = Tree::from_bytes(&bytes, digest).unwrap_err().to_string();
    assert!(error.contains("33554433"), "{error}");
}
